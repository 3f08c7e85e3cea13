"""The pass `insert`: carries decisions out. Weights become codes, and quantize nodes appear before the nodes that read FP8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

from fp8np.calibrate import Range
from fp8np.errors import CalibrationError
from fp8np.graph import Constant, Graph, Names, Node, Value, leaves
from fp8np.ptq.assign import Decision
from fp8np.scaling import quantize, scale_for
from fp8np.scheme import PerChannel, Scheme
from fp8np.tensor import Floats, QTensor

__all__ = ["insert"]


def insert(graph: Graph, decisions: Sequence[Decision], ranges: Mapping[str, Range]) -> Graph:
    """The quantized graph.

    A value read as FP8 by several nodes (queries, keys and values of attention) is quantized once, just before the first of
    them; whoever reads it as float32 still does. A weight that all its readers want in one form keeps its name; otherwise
    each form is a constant of its own.

    Args:
        graph: the float32 graph.
        decisions: from `fp8np.ptq.assign.decide`.
        ranges: of the activations with a fixed scale.

    Raises:
        CalibrationError: the range of an activation is missing.
    """
    writer = _Writer(graph, decisions, ranges)
    for node in graph.nodes:
        writer.write(node)
    return graph.replace(
        nodes=tuple(writer.nodes),
        constants=MappingProxyType(writer.constants),
        values=MappingProxyType(writer.values),
    )


class _Writer:
    def __init__(self, graph: Graph, decisions: Sequence[Decision], ranges: Mapping[str, Range]) -> None:
        self.graph = graph
        self.ranges = ranges
        self.schemes = {decision.node: decision.schemes for decision in decisions}
        self.names = Names.beside(graph)
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
        inputs = list(node.inputs)
        for i, scheme in self.schemes.get(node.name, {}).items():
            name = cast(str, inputs[i])
            if (name, scheme) not in self.quantized:
                make = self.weight if name in self.graph.constants else self.activation
                self.quantized[name, scheme] = make(name, scheme)
            inputs[i] = self.quantized[name, scheme]
        self.nodes.append(node.replace(inputs=tuple(inputs)))

    def weight(self, name: str, scheme: Scheme) -> str:
        new = name if len(self.wanted[name]) == 1 else self.names.fresh(_name(name, scheme))
        self.constants[new] = quantized_weight(self.graph.constants[name], scheme)
        return new

    def activation(self, name: str, scheme: Scheme) -> str:
        new = self.names.fresh(_name(name, scheme))
        attrs = MappingProxyType({"format": scheme.format.name, "scale": self.scale(name, scheme)})
        self.nodes.append(Node(new, "quantize", (name,), (new,), attrs))
        self.values[new] = Value(new, self.graph.facts(name).shape, scheme.format.name)
        return new

    def scale(self, name: str, scheme: Scheme) -> float | None:
        if scheme.dynamic:
            return None
        if scheme.direct:
            return 1.0
        if name not in self.ranges:
            raise CalibrationError(f"quantize: activation {name!r} has not been calibrated")
        # A Python float that is exactly a float32: it is written down without loss and used without rounding.
        return float(scale_for(self.ranges[name].amax, scheme.format))


def quantized_weight(constant: Constant, scheme: Scheme) -> QTensor:
    """A float32 weight as FP8."""
    weight = cast(Floats, constant)
    if scheme.direct:
        return quantize(weight, scheme.format, scale=1.0)
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    return quantize(weight, scheme.format, axis=axis)


def _name(name: str, scheme: Scheme) -> str:
    return f"{name}.{scheme.format.name.removeprefix('float8_')}"
