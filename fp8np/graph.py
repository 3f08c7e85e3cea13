"""The graph of a model: plain frozen data, in topological order. Meaning is in `fp8np.layers`, checks in `fp8np.check`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.dims import Size
from fp8np.tensor import QTensor

__all__ = [
    "Attr",
    "Constant",
    "Graph",
    "Names",
    "Node",
    "Structure",
    "Value",
    "leaves",
    "map_structure",
    "named_leaves",
    "pruned",
]

Constant = npt.NDArray[Any] | QTensor
"""A weight: float32, integer or bool array, or FP8 codes with their scale."""

Attr = Any
"""None, bool, int, float, str, a `Size`, or a tuple of these."""

Structure = Any
"""A value's name, None, or a tuple, list or str-keyed dict of structures: the shape of what a model returns."""


@dataclass(frozen=True)
class Value:
    """A tensor that flows: its name, its shape (sizes may be symbolic) and its element type.

    The element type is NumPy's name ("float32", "int64", "bool", ...) or a format's ("float8_e4m3fn"), in which case the
    tensor is a `QTensor` when the graph runs.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Node:
    """One application of an op.

    Attributes:
        name: unique in the graph.
        op: the name of a row of OPS.
        inputs: names of values or constants, in the op's order; None for an optional input left out.
        outputs: names of the values produced.
        attrs: the op's attributes; those equal to a default may be left out.
        origin: where this stands in the user's model ("layer1.0.conv1", "model.py:31"), for messages.
    """

    name: str
    op: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = field(default_factory=lambda: MappingProxyType({}))
    origin: str = ""

    @property
    def place(self) -> str:
        """The node, its op and its origin, as messages name them."""
        return f"node {self.name!r} ({self.op}{self.origin and f', from {self.origin}'})"

    def replace(self, **changes: Any) -> Node:
        """The same node with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Graph:
    """A model.

    Attributes:
        inputs: what a caller passes, in order.
        constants: weights by name.
        nodes: in an order in which each can be computed from what precedes it.
        values: shape and type of each node output by name.
        outputs: what the model returns, as a structure of names.
        meta: free text about the model (source, recipe, ...).
    """

    inputs: tuple[Value, ...]
    constants: Mapping[str, Constant]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    outputs: Structure
    meta: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def replace(self, **changes: Any) -> Graph:
        """The same graph with some fields changed."""
        return dataclasses.replace(self, **changes)

    def facts(self, name: str) -> Value:
        """Shape and type of an input, a constant or a node output. Raises KeyError for any other name."""
        if name in self.values:
            return self.values[name]
        if name in self.constants:
            return constant_value(name, self.constants[name])
        for value in self.inputs:
            if value.name == name:
                return value
        raise KeyError(name)

    def consumers(self) -> dict[str, list[Node]]:
        """For each name, the nodes that read it, in order."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(n for n in node.inputs if n is not None):
                readers.setdefault(name, []).append(node)
        return readers

    def __str__(self) -> str:
        lines = [f"input   {value}" for value in self.inputs]
        lines += [f"const   {constant_value(name, c)}" for name, c in self.constants.items()]
        for node in self.nodes:
            out = ", ".join(str(self.values[o]) for o in node.outputs)
            args = [str(i) for i in node.inputs] + [f"{k}={v}" for k, v in node.attrs.items()]
            lines.append(f"{out} = {node.op}({', '.join(args)})" + (f"  # {node.origin}" if node.origin else ""))
        lines.append(f"return  {self.outputs}")
        return "\n".join(lines)


def constant_value(name: str, constant: Constant) -> Value:
    """Shape and type of a constant."""
    if isinstance(constant, QTensor):
        return Value(name, constant.shape, constant.format.name)
    return Value(name, constant.shape, np.dtype(constant.dtype).name)


class Names:
    """Gives out names, each once.

    >>> names = Names(["x"])
    >>> names.fresh("x"), names.fresh("y"), names.fresh("x")
    ('x_1', 'y', 'x_2')
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    @classmethod
    def beside(cls, graph: Graph) -> Names:
        """Names that no value, constant or node of the graph has."""
        return cls([v.name for v in graph.inputs] + [*graph.constants, *graph.values] + [n.name for n in graph.nodes])

    def fresh(self, name: str) -> str:
        """`name`, or `name` with a number after it."""
        unique, i = name, 0
        while unique in self._taken:
            i += 1
            unique = f"{name}_{i}"
        self._taken.add(unique)
        return unique


def pruned(graph: Graph) -> Graph:
    """The graph without the nodes and constants that no output needs. Inputs stay: they are the model's signature."""
    needed = set(leaves(graph.outputs))
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(name for name in node.inputs if name is not None)
    nodes = tuple(reversed(kept))
    outputs = {name for node in nodes for name in node.outputs}
    return graph.replace(
        nodes=nodes,
        constants=MappingProxyType({name: c for name, c in graph.constants.items() if name in needed}),
        values=MappingProxyType({name: v for name, v in graph.values.items() if name in outputs}),
    )


def leaves(structure: Structure) -> Iterator[Any]:
    """The leaves of a structure that are not None, in order."""
    if isinstance(structure, dict):
        for part in structure.values():
            yield from leaves(part)
    elif isinstance(structure, list | tuple):
        for part in structure:
            yield from leaves(part)
    elif structure is not None:
        yield structure


def named_leaves(structure: Structure, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves that are not None, each with where it is: keys and positions with dots between, "output" for one alone.

    >>> list(named_leaves({"logits": "y", "states": ("h", "c")}))
    [('logits', 'y'), ('states.0', 'h'), ('states.1', 'c')]
    """
    if isinstance(structure, dict | list | tuple):
        parts = structure.items() if isinstance(structure, dict) else enumerate(structure)
        for key, part in parts:
            yield from named_leaves(part, f"{path}.{key}" if path else str(key))
    elif structure is not None:
        yield path or "output", structure


def map_structure(function: Callable[[Any], Any], structure: Structure) -> Structure:
    """The same structure with `function` applied to each leaf that is not None."""
    if isinstance(structure, dict):
        return {key: map_structure(function, part) for key, part in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(map_structure(function, part) for part in structure)
    return None if structure is None else function(structure)
