"""Calibration: the range of chosen activations over a user's data, found by running the float32 graph.

An observer sees every array that a value takes and says in the end which range counts. `MaxObserver` is the paper's choice
(arXiv 2309.14592, section 3.1): for FP8, clipping moves the dense part of the grid away from most of the mass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fp8np.data import Batch, Progress
from fp8np.errors import CalibrationError, ExecutionError, InputError
from fp8np.graph import Graph, Node
from fp8np.interpret import interpret

__all__ = ["Execute", "MaxObserver", "Range", "RangeObserver", "calibrate"]


class Execute(Protocol):
    """Runs a graph and shows each value on the way: `fp8np.interpret.interpret`, or something faster that does the same."""

    def __call__(self, graph: Graph, inputs: Mapping[str, Any], /, *, observe: Callable[[str, Any], None]) -> Any:
        """Calls ``observe(name, array)`` for each input and each value computed."""


@dataclass(frozen=True)
class Range:
    """What an activation spans.

    Attributes:
        minimum, maximum: finite, minimum <= maximum.
        samples: how many samples were seen.
    """

    minimum: float
    maximum: float
    samples: int

    @property
    def amax(self) -> float:
        """The largest magnitude.

        >>> Range(-3.0, 2.0, samples=1).amax
        3.0
        """
        return max(abs(self.minimum), abs(self.maximum))


class RangeObserver(Protocol):
    """Sees the arrays of one value, all finite and not empty, then gives its range."""

    def update(self, array: npt.NDArray[Any]) -> None:
        """Takes note of the value's array in one batch."""

    def limits(self) -> tuple[float, float]:
        """The least and the largest number to be represented."""


class MaxObserver:
    """Everything seen is to be represented.

    >>> observer = MaxObserver()
    >>> observer.update(np.array([1.0, -2.0]))
    >>> observer.update(np.array([0.5]))
    >>> observer.limits()
    (-2.0, 1.0)
    """

    def __init__(self) -> None:
        self._minimum = np.inf
        self._maximum = -np.inf

    def update(self, array: npt.NDArray[Any]) -> None:
        """Takes note of the value's array in one batch."""
        self._minimum = min(self._minimum, float(array.min()))
        self._maximum = max(self._maximum, float(array.max()))

    def limits(self) -> tuple[float, float]:
        """The least and the largest number seen."""
        return self._minimum, self._maximum


def calibrate(
    graph: Graph,
    batches: Iterable[Batch],
    names: Iterable[str],
    *,
    samples: int | None = None,
    progress: Progress | None = None,
    observer: Callable[[], RangeObserver] = MaxObserver,
    execute: Execute = interpret,
) -> dict[str, Range]:
    """The range of each named value over all batches, in the order of `names`.

    Args:
        graph: the float32 graph, checked.
        batches: what `fp8np.data.load_batches` gives.
        names: inputs or node outputs of the graph.
        samples: stop after the batch with which so many have been seen; None: go through all.
        progress: told about each batch.
        observer: makes an observer for each name.
        execute: what runs the graph.

    Raises:
        CalibrationError: there are no batches, a name is unknown, or a named value is always empty or holds NaN or
            infinity; the message says where it comes from.
        InputError, ExecutionError: a node refused the values of a batch, or failed.
    """
    observers = {name: observer() for name in names}
    producers = {output: node for node in graph.nodes for output in node.outputs}
    unknown = sorted(set(observers) - set(producers) - {value.name for value in graph.inputs})
    if unknown:
        raise CalibrationError(f"calibration: the graph has no activation {unknown[0]!r}")
    filled: set[str] = set()
    done = 0
    for i, batch in enumerate(batches):

        def observe(name: str, array: Any, i: int = i) -> None:
            if name not in observers or array.size == 0:
                return
            if not (np.isfinite(array.min()) and np.isfinite(array.max())):
                raise CalibrationError(f"calibration: {_place(name, producers)} holds NaN or infinity in batch {i}")
            observers[name].update(array)
            filled.add(name)

        try:
            execute(graph, batch.inputs, observe=observe)
        except (ExecutionError, InputError) as error:
            raise type(error)(f"calibration, batch {i}: {error}") from error
        done += batch.samples
        if progress is not None:
            progress("calibrating", i + 1, _total(batches, batch, samples))
        if samples is not None and done >= samples:
            break
    if done == 0:
        raise CalibrationError("calibration: no samples")
    for name in observers:
        if name not in filled:
            raise CalibrationError(f"calibration: {_place(name, producers)} is empty in every batch, so it has no range")
    return {name: Range(*o.limits(), done) for name, o in observers.items()}


def _place(name: str, producers: Mapping[str, Node]) -> str:
    if name not in producers:
        return f"input {name!r}"
    node = producers[name]
    return f"{name!r}, computed by {node.place},"


def _total(batches: Iterable[Batch], batch: Batch, samples: int | None) -> int | None:
    """How many batches there will be, going by the size of one."""
    count: int | None = getattr(batches, "count", None)
    if samples is None or count is None:
        return count
    return min(count, -(-samples // max(batch.samples, 1)))
