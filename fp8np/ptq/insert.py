"""The pass `insert`: carries decisions out. Weights become codes, and quantize nodes appear before the nodes that read FP8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from fp8np.calibrate import Need, Range
from fp8np.errors import CalibrationError
from fp8np.graph import Graph, Names, Node, Value, leaves
from fp8np.integers import IntegerFormat, activation_parameters, encode_activation, measured_parameters
from fp8np.layers._op import OPS
from fp8np.ptq.assign import Decision
from fp8np.ptq.codes import quantized_weight
from fp8np.ptq.integers import IntegerWriter
from fp8np.scaling import dequantize, quantize, scale_for
from fp8np.scheme import PerToken, Scheme
from fp8np.tensor import Floats, QTensor

__all__ = ["insert", "quantized_weights", "range_of", "rounded_activation", "scale_of"]

NOTHING: Mapping[Any, Any] = MappingProxyType({})


def insert(
    graph: Graph,
    decisions: Sequence[Decision],
    ranges: Mapping[Need, Range],
    *,
    weight_calibrator: str = "max",
    weights: Mapping[tuple[str, Scheme], QTensor] = NOTHING,
) -> Graph:
    """The quantized graph.

    A value read as FP8 by several nodes (queries, keys and values of attention) is quantized once, just before the first of
    them; whoever reads it as float32 still does. A weight that all its readers want in one form keeps its name; otherwise
    each form is a constant of its own.

    Args:
        graph: the float32 graph.
        decisions: from `fp8np.ptq.assign.decide`.
        ranges: of the activations with a fixed scale; see `fp8np.ptq.assign.needs`.
        weight_calibrator: how the scales of weights are found: see `Recipe`.
        weights: those that are quantized already.

    Raises:
        CalibrationError: the range of an activation is missing.
    """
    writer = _Writer(graph, decisions, ranges, weight_calibrator, weights)
    for node in graph.nodes:
        writer.write(node)
    return graph.replace(
        nodes=tuple(writer.nodes),
        constants=MappingProxyType(writer.constants),
        values=MappingProxyType(writer.values),
    )


def quantized_weights(graph: Graph, decisions: Sequence[Decision], weight_calibrator: str = "max") -> dict[tuple[str, Scheme], QTensor]:
    """The weights in FP8 that `insert` would make, for its argument of that name."""
    nodes = {node.name: node for node in graph.nodes}
    wanted = {(str(nodes[d.node].inputs[i]), scheme) for d in decisions for i, scheme in d.schemes.items()}
    return {
        (name, scheme): quantized_weight(graph.constants[name], scheme, weight_calibrator)
        for name, scheme in sorted(wanted, key=str)
        if name in graph.constants and not isinstance(scheme.format, IntegerFormat)
    }


class _Writer:
    def __init__(
        self,
        graph: Graph,
        decisions: Sequence[Decision],
        ranges: Mapping[Need, Range],
        weight_calibrator: str,
        weights: Mapping[tuple[str, Scheme], QTensor],
    ) -> None:
        self.graph = graph
        self.ranges = ranges
        self.weight_calibrator = weight_calibrator
        self.weights = weights
        self.schemes = {decision.node: decision.schemes for decision in decisions}
        self.names = Names.beside(graph)
        self.integers = IntegerWriter(graph, self.names, ranges, weight_calibrator)
        self.wanted = self._wanted()
        self.nodes: list[Node] = []
        self.values = dict(graph.values)
        self.constants = {name: c for name, c in graph.constants.items() if None in self.wanted[name]}
        self.quantized: dict[tuple[str, Scheme], str] = {}

    def _wanted(self) -> dict[str, set[Scheme | None]]:
        """For each constant, the forms in which it is read; None is the form that it has."""
        wanted: dict[str, set[Scheme | None]] = {name: set() for name in self.graph.constants}
        for node in self.graph.nodes:
            schemes = self.schemes.get(node.name, {})
            for i, name in enumerate(node.inputs):
                if name in wanted:
                    wanted[name].add(schemes.get(i))
        for name in leaves(self.graph.outputs):
            if name in wanted:
                wanted[name].add(None)
        return wanted

    def write(self, node: Node) -> None:
        schemes = self.schemes.get(node.name, {})
        if any(isinstance(scheme.format, IntegerFormat) for scheme in schemes.values()):
            written = self.integers.write(node, schemes)
            self.constants |= written.constants
            self.values |= written.values
            self.nodes += written.nodes
            return
        inputs = list(node.inputs)
        for i, scheme in schemes.items():
            name = cast(str, inputs[i])
            if (name, scheme) not in self.quantized:
                make = self.weight if name in self.graph.constants else self.activation
                self.quantized[name, scheme] = make(name, scheme)
            inputs[i] = self.quantized[name, scheme]
        self.nodes.append(node.replace(inputs=tuple(inputs)))

    def weight(self, name: str, scheme: Scheme) -> str:
        new = name if len(self.wanted[name]) == 1 else self.names.fresh(_name(name, scheme))
        given = self.weights.get((name, scheme))
        self.constants[new] = quantized_weight(self.graph.constants[name], scheme, self.weight_calibrator) if given is None else given
        return new

    def activation(self, name: str, scheme: Scheme) -> str:
        new = self.names.fresh(_name(name, scheme))
        attrs = quantize_attrs(scheme, self.scale(name, scheme))
        self.nodes.append(Node(new, "quantize", (name,), (new,), MappingProxyType(attrs)))
        self.values[new] = Value(new, self.graph.facts(name).shape, scheme.format.name)
        return new

    def scale(self, name: str, scheme: Scheme) -> float | None:
        if scheme.dynamic:
            return None
        if scheme.direct:
            return 1.0
        return scale_of(range_of(self.ranges, name, scheme), scheme)


def scale_of(found: Range, scheme: Scheme) -> float:
    """The scale of a range: a Python float that is exactly a float32, so that it is written down without loss and used without rounding."""
    return float(scale_for(found.amax, scheme.format, power_of_two=scheme.power_of_two))


def rounded_activation(x: Floats, name: str, scheme: Scheme, ranges: Mapping[Need, Range]) -> Floats:
    """What readers of an activation get of it: rounded to the format and back; of integers too.

    Raises:
        CalibrationError: its range is needed and missing.
    """
    if isinstance(scheme.format, IntegerFormat):
        found = None if scheme.dynamic else range_of(ranges, name, scheme)
        scale, zero = measured_parameters(x) if found is None else activation_parameters(found.minimum, found.maximum)
        return (encode_activation(x, scale, zero).astype(np.float32) - np.float32(zero)) * np.float32(scale)
    if scheme.direct or not scheme.dynamic:
        fixed = 1.0 if scheme.direct else scale_of(range_of(ranges, name, scheme), scheme)
        return dequantize(quantize(x, scheme.format, scale=fixed))
    attrs = OPS["quantize"].filled(quantize_attrs(scheme, None))
    return dequantize(OPS["quantize"].define(x, **attrs))


def quantize_attrs(scheme: Scheme, scale: float | None) -> dict[str, Any]:
    """The attributes of a quantize node."""
    attrs: dict[str, Any] = {"format": scheme.format.name, "scale": scale}
    if isinstance(scheme.granularity, PerToken):
        attrs["granularity"] = "token"
    if scheme.power_of_two and scheme.dynamic:
        attrs["power_of_two"] = True
    return attrs


def range_of(ranges: Mapping[Need, Range], name: str, scheme: Scheme) -> Range:
    """The range of an activation.

    Raises:
        CalibrationError: it is missing.
    """
    if (name, scheme) not in ranges:
        raise CalibrationError(f"quantize: activation {name!r} has not been calibrated")
    return ranges[name, scheme]


def _name(name: str, scheme: Scheme) -> str:
    return f"{name}.{scheme.format.name.removeprefix('float8_')}"
