"""Graphs that tell the mean of each channel of some values: what the passes that match statistics add to a graph."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from fp8np.check import infer
from fp8np.graph import Graph, Names, Node, Value
from fp8np.layers._op import OPS

__all__ = ["Extension"]


class Extension:
    """A graph to which nodes are added, where each of its own nodes ends.

    Attributes:
        nodes: so far, in order.
        values: those of the graph and of the new nodes.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.values = dict(graph.values)
        self.inputs = list(graph.inputs)
        self.names = Names.beside(graph)

    def add(self, op: str, name: str, *inputs: str | None, output: str | None = None, **attrs: Any) -> str:
        """Adds a node; gives the name of its output: a fresh one, or `output`."""
        fresh = self.names.fresh(name)
        made = output or fresh
        node = Node(fresh, op, OPS[op].padded(inputs), (made,), MappingProxyType(attrs))
        (spec,) = infer(node, self._facts)
        self.nodes.append(node)
        self.values[made] = Value(made, spec.shape, spec.dtype)
        return made

    def input(self, name: str, size: int) -> str:
        """Declares a vector of floats as a further input."""
        fresh = self.names.fresh(name)
        self.inputs.append(Value(fresh, (size,), "float32"))
        return fresh

    def renamed(self, node: Node) -> str:
        """Appends a node of the graph, its only output under a new name, which it gives; the old one is free for what follows it."""
        name = node.outputs[0]
        raw = self.names.fresh(f"{name}.raw")
        self.nodes.append(node.replace(outputs=(raw,)))
        self.values[raw] = Value(raw, self.values[name].shape, self.values[name].dtype)
        return raw

    def channel_mean(self, name: str, axis: int) -> str:
        """The mean of a value over all axes but one: (C,)."""
        return self.add("mean", f"{name}.mean", name, dim=self._others(name, axis))

    def channel_variance(self, name: str, axis: int) -> str:
        """The variance of a value over all axes but one, around its own mean: (C,)."""
        return self.add("var", f"{name}.variance", name, dim=self._others(name, axis), correction=0)

    def along(self, vector: str, name: str, axis: int) -> str:
        """A vector (C,) in a shape in which it meets each channel of a value."""
        after = len(self.values[name].shape) - axis - 1
        return self.add("reshape", f"{vector}.along", vector, shape=(-1, *(1,) * after)) if after else vector

    def finished(self) -> Graph:
        """The graph with what was added; its outputs are as they were."""
        return self.graph.replace(nodes=tuple(self.nodes), values=MappingProxyType(self.values), inputs=tuple(self.inputs))

    def _others(self, name: str, axis: int) -> tuple[int, ...]:
        return tuple(i for i in range(len(self._facts(name).shape)) if i != axis)

    def _facts(self, name: str) -> Value:
        if name in self.values:
            return self.values[name]
        return next((v for v in self.inputs if v.name == name), None) or self.graph.facts(name)
