"""`GraphBuilder`: how converters write a graph down, one node after the other, with shapes inferred and names kept unique."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fp8np.check import check, infer
from fp8np.dims import Size, parse
from fp8np.errors import GraphError
from fp8np.graph import Attr, Constant, Graph, Names, Node, Structure, Value, constant_value, pruned
from fp8np.layers._op import OPS
from fp8np.tensor import QTensor

__all__ = ["GraphBuilder"]


class GraphBuilder:
    """Builds a `Graph` in topological order.

    >>> b = GraphBuilder()
    >>> x = b.input("x", ("B", 3), "float32")
    >>> w = b.constant("weight", np.ones((2, 3), np.float32))
    >>> y = b.node("linear", (x, w))
    >>> print(b.finish(y))
    input   x: float32[B, 3]
    const   weight: float32[2, 3]
    linear: float32[B, 2] = linear(x, weight, None)
    return  linear
    """

    def __init__(self) -> None:
        self._inputs: list[Value] = []
        self._constants: dict[str, Constant] = {}
        self._nodes: list[Node] = []
        self._values: dict[str, Value] = {}
        self._facts: dict[str, Value] = {}
        self._names = Names()

    def input(self, name: str, shape: tuple[Size | str, ...], dtype: str) -> str:
        """Declares an input; a str in `shape` is a symbolic size. Returns its name."""
        value = Value(self._names.fresh(name), tuple(parse(s) if isinstance(s, str) else s for s in shape), dtype)
        self._inputs.append(value)
        self._facts[value.name] = value
        return value.name

    def constant(self, name: str, value: Constant) -> str:
        """Adds a weight; floats of any width become float32. Returns its name, made unique."""
        if not isinstance(value, QTensor):
            array = np.asarray(value)
            value = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
        name = self._names.fresh(name)
        self._constants[name] = value
        self._facts[name] = constant_value(name, value)
        return name

    def node(
        self,
        op: str,
        inputs: tuple[str | None, ...],
        attrs: Mapping[str, Attr] | None = None,
        *,
        name: str | None = None,
        origin: str = "",
    ) -> Any:
        """Adds a node.

        Args:
            op: a row of OPS.
            inputs: names, None for one left out (those at the end may be missing).
            attrs: those that differ from the defaults.
            name: of the node and of its output (with ".0", ".1", ... where there are several); the op's name by default.
            origin: where this stands in the user's model.

        Returns:
            The name of the output, or a tuple of names where the op has several.

        Raises:
            GraphError: the op is unknown, or refuses the inputs.
        """
        if op not in OPS:
            raise GraphError(f"{origin or name or op}: unknown op {op!r}")
        node = Node(name or op, op, OPS[op].padded(inputs), (), MappingProxyType(dict(attrs or {})), origin)
        specs = infer(node, self.facts)
        name = self._names.fresh(node.name)
        several = len(specs) > 1
        names = tuple(self._names.fresh(f"{name}.{i}") for i in range(len(specs))) if several else (name,)
        for output, spec in zip(names, specs, strict=True):
            self._values[output] = self._facts[output] = Value(output, spec.shape, spec.dtype)
        self._nodes.append(node.replace(name=name, outputs=names))
        return names if several else name

    def facts(self, name: str) -> Value:
        """Shape and type of anything named so far.

        Raises:
            GraphError: there is no such name.
        """
        if name not in self._facts:
            raise GraphError(f"{name!r} has not been built yet")
        return self._facts[name]

    def finish(self, outputs: Structure, meta: Mapping[str, str] | None = None) -> Graph:
        """The checked graph; constants and nodes that no output needs are dropped.

        Raises:
            GraphError: an invariant of `fp8np.check` does not hold.
        """
        graph = Graph(
            tuple(self._inputs),
            MappingProxyType(dict(self._constants)),
            tuple(self._nodes),
            MappingProxyType(dict(self._values)),
            outputs,
            MappingProxyType(dict(meta or {})),
        )
        return check(pruned(graph))
