"""What quantization did to each layer: formats, scales, noise, sizes, and why a layer was left alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from fp8np._numbers import size_text
from fp8np.data import Batches, Progress
from fp8np.graph import Constant, Graph, Node, named_leaves
from fp8np.integers import INT8
from fp8np.layers._op import OPS
from fp8np.metrics import decibels, energy, plain
from fp8np.ptq.assign import Decision
from fp8np.ptq.integers import integer_weight
from fp8np.scaling import dequantize
from fp8np.scheme import PerToken, Scheme
from fp8np.tensor import QTensor
from fp8np.watch import Watch

if TYPE_CHECKING:
    from rich.table import Table

NO_NOTES: Mapping[str, str] = MappingProxyType({})

__all__ = ["LayerReport", "Report", "make_report"]


@dataclass(frozen=True)
class LayerReport:
    """One layer that was, or could have been, quantized.

    Attributes:
        name, op, origin: of the node.
        weights: format of its FP8 weights; "" where it has none.
        weight_scales: how many scales they have: "tensor", "channel 0", "block 1x128", ..., with " 2^n" behind powers of two.
        activations: format of its FP8 activations; "" where it has none.
        activation_scales: "static", "dynamic", "token" (dynamic, too) or "direct" (1), with " 2^n" behind powers of two; "" where there
            are none.
        weight_sqnr: signal to quantization noise ratio of its weights in dB; None where none is FP8.
        output_sqnr: the same of its output, against the float32 model on the same data: all noise from the layers before it
            is in it. None where nothing was run.
        bytes_before, bytes_after: of all its constants.
        reason: why it was not quantized; "" where it was.
        note: why these formats; "" where the recipe names them.
    """

    name: str
    op: str
    origin: str
    weights: str
    weight_scales: str
    activations: str
    activation_scales: str
    weight_sqnr: float | None
    output_sqnr: float | None
    bytes_before: int
    bytes_after: int
    reason: str
    note: str = ""

    @property
    def how(self) -> str:
        """Formats and scales in words: "e4m3fn channel 0 x e4m3fn static"."""
        parts = (self.weights, self.weight_scales), (self.activations, self.activation_scales)
        return " x ".join(f"{fmt.replace('float8_', '')} {scales}" for fmt, scales in parts if fmt)


@dataclass(frozen=True)
class Report:
    """The report on a model.

    Attributes:
        recipe: its name.
        layers: every node whose op can be quantized, in order.
        output_sqnr: in dB, for each float output of the model by its key or position; empty where nothing was run.
        bytes_before, bytes_after: of all constants, each counted once.
        samples: on how many the outputs were compared.
        note: why these formats, of the model as a whole; "" where the recipe names them.
    """

    recipe: str
    layers: tuple[LayerReport, ...]
    output_sqnr: Mapping[str, float]
    bytes_before: int
    bytes_after: int
    samples: int
    note: str = ""

    @property
    def quantized(self) -> int:
        """How many layers are quantized."""
        return sum(not layer.reason for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON. An SQNR is a number, None where there is none, or "inf", "-inf" or "nan"."""
        return {
            "recipe": self.recipe,
            "layers": [
                {
                    **dataclasses.asdict(layer),
                    "weight_sqnr": plain(layer.weight_sqnr),
                    "output_sqnr": plain(layer.output_sqnr),
                }
                for layer in self.layers
            ],
            "output_sqnr": {name: plain(value) for name, value in self.output_sqnr.items()},
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "samples": self.samples,
            "note": self.note,
            "quantized": self.quantized,
        }

    def table(self) -> Table:
        """The report as a table for the terminal, readable from 80 columns on."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        title = f"recipe {self.recipe}: {self.quantized} of {len(self.layers)} layers quantized"
        table = Table(
            title=escape(title),
            caption=escape(self._caption()),
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("layer", overflow="fold", min_width=12)
        table.add_column("op", no_wrap=True)
        table.add_column("weights x activations, or why not")
        for heading in ("weight\nSQNR", "output\nSQNR", "size\nbefore", "\nafter"):
            table.add_column(heading, justify="right", no_wrap=True)
        for layer in self.layers:
            table.add_row(
                escape(layer.name),
                layer.op,
                escape(layer.reason or layer.how),
                _shown(layer.weight_sqnr),
                _shown(layer.output_sqnr),
                size_text(layer.bytes_before),
                size_text(layer.bytes_after),
                style="dim" if layer.reason else None,
            )
        table.add_section()
        table.add_row("whole model", "", "", "", "", size_text(self.bytes_before), size_text(self.bytes_after))
        return table

    def _caption(self) -> str:
        if not self.output_sqnr:
            return self.note
        figures = ", ".join(f"{name} {_shown(value)}" for name, value in self.output_sqnr.items())
        return f"SQNR in dB, on {self.samples} samples. The model's outputs: {figures}" + (f"\n{self.note}" if self.note else "")


def make_report(
    before: Graph,
    after: Graph,
    recipe: str,
    decisions: Sequence[Decision],
    data: Batches | None = None,
    *,
    reference: Graph | None = None,
    notes: Mapping[str, str] = NO_NOTES,
    batches: int = 4,
    progress: Progress | None = None,
) -> Report:
    """Compares a float32 graph with what `fp8np.ptq.insert` made of it.

    Args:
        before: the float32 graph.
        after: the quantized one; nodes and values keep their names in it.
        recipe: its name.
        decisions: those carried out.
        data: both graphs are run on its first batches.
        reference: the graph whose values are right, where `before` was changed to make up for rounding; None: `before`.
        notes: why a node's formats were chosen, by its name; and under "" why the model's.
        batches: on how many.
        progress: told about each batch.
    """
    old = {node.name: node for node in before.nodes}
    decisions = [decision for decision in decisions if _told(before, old[decision.node], decision)]
    new = {node.name: node for node in after.nodes}
    outputs = dict(named_leaves(before.outputs))
    watched = [old[decision.node].outputs[0] for decision in decisions] + [name for name in outputs.values() if name in before.values]
    noise, samples = ({}, 0) if data is None else _compare(reference or before, after, watched, data, batches, progress)
    layers = tuple(_layer(before, after, old[d.node], new[d.node], d, noise, notes.get(d.node, "")) for d in decisions)
    return Report(
        recipe,
        layers,
        {path: noise[name].db for path, name in outputs.items() if name in noise},
        sum(c.nbytes for c in before.constants.values()),
        sum(c.nbytes for c in after.constants.values()),
        samples,
        notes.get("", ""),
    )


def _told(graph: Graph, node: Node, decision: Decision) -> bool:
    """Whether a node is worth a line: it is quantized, covered by the recipe, or has a weight that is not."""
    if "does not cover" not in decision.reason:
        return True
    row = OPS[node.op]
    weights = [graph.constants.get(str(name)) for i, name in enumerate(node.inputs) if row.input_name(i) in row.quantizable]
    return any(weight is not None and weight.ndim > 1 for weight in weights)


@dataclass
class _Energies:
    """Of a signal and of what was added to it."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, approximation: Any, reference: Any) -> None:
        exact = np.asarray(reference, np.float64)
        self.signal += energy(exact)
        self.noise += energy(approximation - exact)

    @property
    def db(self) -> float:
        return decibels(self.signal, self.noise)


def _compare(
    before: Graph, after: Graph, names: Iterable[str], data: Batches, batches: int, progress: Progress | None
) -> tuple[dict[str, _Energies], int]:
    """The energies of each named float value, over the first batches; and how many samples those are."""
    floats = [name for name in dict.fromkeys(names) if name in before.values and before.values[name].dtype == "float32"]
    exact, rounded = Watch(before, floats), Watch(after, floats)
    energies: dict[str, _Energies] = {}
    samples = 0
    total = None if data.count is None else min(data.count, batches)
    for i, batch in enumerate(itertools.islice(data, batches)):

        def compare(right: dict[str, Any], got: dict[str, Any]) -> None:
            for name in floats:
                energies.setdefault(name, _Energies()).add(got[name], right[name])

        exact.look(batch.inputs, lambda right, inputs=batch.inputs: rounded.look(inputs, partial(compare, right)))  # type: ignore[misc]
        samples += batch.samples
        if progress is not None:
            progress("comparing", i + 1, total)
    return energies, samples


def _layer(before: Graph, after: Graph, old: Node, new: Node, decision: Decision, noise: Mapping[str, _Energies], note: str) -> LayerReport:
    weights: list[Scheme] = []
    activations: list[Scheme] = []
    energies = _Energies()
    for i, scheme in decision.schemes.items():
        name, new_name = old.inputs[i], new.inputs[i]
        codes = after.constants.get(str(new_name))
        if scheme.format is INT8:
            values = integer_weight(after, new, OPS[old.op].input_name(i))
        else:
            values = dequantize(codes) if isinstance(codes, QTensor) else None
        if values is not None:
            energies.add(values, before.constants[str(name)])
            weights.append(scheme)
        else:
            activations.append(scheme)
    output = noise.get(old.outputs[0])
    return LayerReport(
        name=old.name,
        op=old.op,
        origin=old.origin,
        weights=_joined(s.format.name for s in weights),
        weight_scales=_joined("direct" if s.direct else str(s.granularity) + _POWERS * s.power_of_two for s in weights),
        activations=_joined(s.format.name for s in activations),
        activation_scales=_joined(map(_activation_scales, activations)),
        weight_sqnr=energies.db if weights else None,
        output_sqnr=None if output is None else output.db,
        bytes_before=_bytes(before.constants, old),
        bytes_after=_bytes(after.constants, new),
        reason=decision.reason,
        note=note,
    )


_POWERS = " 2^n"


def _activation_scales(scheme: Scheme) -> str:
    if scheme.direct:
        return "direct"
    how = "token" if isinstance(scheme.granularity, PerToken) else "dynamic" if scheme.dynamic else "static"
    return how + _POWERS * scheme.power_of_two


def _bytes(constants: Mapping[str, Constant], node: Node) -> int:
    return sum(constants[name].nbytes for name in {n for n in node.inputs if n in constants} if name is not None)


def _joined(words: Iterable[str]) -> str:
    return "/".join(dict.fromkeys(words))


def _shown(db: float | None) -> str:
    if db is None:
        return ""
    return "exact" if db == math.inf else f"{db:.1f}"
