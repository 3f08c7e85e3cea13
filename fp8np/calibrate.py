"""Calibration: the range of chosen activations over a user's data, found by running the float32 graph.

Which range counts is the calibrator's business: see `fp8np.observers`. Max is the paper's choice (arXiv 2309.14592, section 3.1): for
FP8, clipping moves the dense part of the grid away from most of the mass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fp8np.data import Batch, Progress, limited
from fp8np.errors import CalibrationError, ExecutionError, InputError
from fp8np.graph import Graph, Node
from fp8np.observers import Calibrator, RangeObserver
from fp8np.scheme import Scheme
from fp8np.watch import Watch

__all__ = ["Execute", "Need", "Range", "calibrate", "warnings_of"]

Need = tuple[str, Scheme]
"""A value, and how it is to be quantized."""

BULK = 99.99
"""The share, in percent, of a value's numbers that its `bulk` is not below."""

OUTLIER = 2.0
"""How many times as far as all others a sample has to reach for a warning: it costs the others a bit of INT8, or a binade of FP8."""

MANY = 32
"""Samples from which on the others alone say what is usual. The loudest of fewer may well be twice as loud as the next."""


class Execute(Protocol):
    """Runs a graph and shows each value on the way, as `fp8np.interpret.interpret` does."""

    def __call__(self, graph: Graph, inputs: Mapping[str, Any], /, *, observe: Callable[[str, Any], None]) -> Any:
        """Calls ``observe(name, array)`` for each input and each value computed."""


@dataclass(frozen=True)
class Range:
    """What an activation spans.

    Attributes:
        minimum, maximum: what is to be represented: finite, minimum <= maximum.
        samples: how many samples were seen.
        loudest, at: the largest magnitude seen, and the sample, counted from 0, that had it first.
        others: the largest magnitude in all other samples; 0 where there is none.
        bulk: the magnitude that 99.99 % of all numbers do not exceed.
    """

    minimum: float
    maximum: float
    samples: int
    loudest: float = 0.0
    at: int = 0
    others: float = 0.0
    bulk: float = 0.0

    @property
    def amax(self) -> float:
        """The largest magnitude to be represented.

        >>> Range(-3.0, 2.0, samples=1).amax
        3.0
        """
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def outlier(self) -> float:
        """How many times as far as all other samples the range reaches; of few samples, as far as the bulk of the numbers too.

        >>> Range(-3.0, 2.0, samples=100, loudest=3.0, at=12, others=0.5, bulk=0.4).outlier
        6.0
        """
        usual = self.others if self.samples >= MANY else max(self.others, self.bulk)
        return self.amax / usual if usual else 1.0


def calibrate(
    graph: Graph,
    batches: Iterable[Batch],
    needs: Iterable[Need],
    *,
    calibrator: Calibrator | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
    execute: Execute | None = None,
) -> dict[Need, Range]:
    """The range of each value over all batches, for the scheme by which it is to be quantized, in the order of `needs`.

    Args:
        graph: the float32 graph, checked.
        batches: what `fp8np.data.load_batches` gives.
        needs: inputs or node outputs of the graph, each with a scheme: the best range depends on the format.
        calibrator: which range counts; None: all that is seen.
        samples: stop after the batch with which so many have been seen; None: go through all.
        progress: told about each batch.
        execute: what runs the graph; None: `fp8np.watch.Watch`.

    Raises:
        CalibrationError: there are no batches, a name is unknown, or a named value is always empty or holds NaN or
            infinity; the message says where it comes from.
        InputError, ExecutionError: a node refused the values of a batch, or failed.
    """
    wanted = tuple(dict.fromkeys(needs))
    observers = {name: RangeObserver(calibrator) for name, _ in wanted}
    producers = {output: node for node in graph.nodes for output in node.outputs}
    order = [name for name in (*(value.name for value in graph.inputs), *producers) if name in observers]
    unknown = sorted(set(observers).difference(order))
    if unknown:
        raise CalibrationError(f"calibration: the graph has no activation {unknown[0]!r}")
    filled: set[str] = set()
    done = 0
    run = _runner(graph, order, execute)
    for i, batch in enumerate(limited(batches, samples, "calibrating", progress)):

        def observe(name: str, array: Any, i: int = i, batch: Batch = batch) -> None:
            if name not in observers or array.size == 0:
                return
            try:
                observers[name].update(array, batch.samples)
            except CalibrationError as error:
                raise CalibrationError(f"calibration: {_place(name, producers)} {error} in batch {i}") from None
            filled.add(name)

        try:
            run(batch.inputs, observe)
        except (ExecutionError, InputError) as error:
            raise type(error)(f"calibration, batch {i}: {error}") from error
        done += batch.samples
    if done == 0:
        raise CalibrationError("calibration: no samples")
    for name in observers:
        if name not in filled:
            raise CalibrationError(f"calibration: {_place(name, producers)} is empty in every batch, so it has no range")
    return {(name, scheme): _range(observers[name], scheme, done) for name, scheme in wanted}


def _runner(graph: Graph, names: list[str], execute: Execute | None) -> Callable[[Mapping[str, Any], Callable[[str, Any], None]], None]:
    if execute is not None:
        return lambda inputs, observe: execute(graph, inputs, observe=observe)
    watch = Watch(graph, names)

    def run(inputs: Mapping[str, Any], observe: Callable[[str, Any], None]) -> None:
        def use(values: dict[str, Any]) -> None:
            for name, array in values.items():
                observe(name, array)

        watch.look(inputs, use)

    return run


def _range(observer: RangeObserver, scheme: Scheme, samples: int) -> Range:
    low, high = observer.limits(scheme.format, power_of_two=scheme.power_of_two)
    bulk = observer.histogram.percentile(BULK)
    return Range(low, high, samples, observer.loudest, observer.at, max(observer.others, 0.0), bulk)


def warnings_of(graph: Graph, ranges: Mapping[Need, Range]) -> list[str]:
    """A sentence for each activation whose range rests on one outlier: a sample that reaches `OUTLIER` times as far as all others.

    Args:
        graph: that was calibrated.
        ranges: what `calibrate` gave.
    """
    readers: dict[str, Node] = {}
    for node in graph.nodes:
        for name in node.inputs:
            if name is not None:
                readers.setdefault(name, node)
    found: dict[str, str] = {}
    for (name, _), r in ranges.items():
        if r.outlier <= OUTLIER:
            continue
        read = f" (read by {readers[name].place})" if name in readers else ""
        others = f"the other {r.samples - 1} go up to {r.others:.3g} and " if r.samples > 1 else ""
        found.setdefault(
            name,
            f"activation {name!r}{read}: its range rests on one outlier: {r.loudest:.3g} in sample {r.at}, while {others}{BULK} % of all "
            f"numbers are at most {r.bulk:.3g}; look at that sample, or try calibrator = 'percentile {BULK}' or 'mse'",
        )
    return list(found.values())


def _place(name: str, producers: Mapping[str, Node]) -> str:
    if name not in producers:
        return f"input {name!r}"
    node = producers[name]
    return f"{name!r}, computed by {node.place},"
