"""Graphs of INT8 and what they must give: `test_integers.py` draws them, `_tiers.py` runs some on every tier."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from _graphs import native

from fp8np.build import GraphBuilder
from fp8np.calibrate import Range
from fp8np.check import check
from fp8np.graph import Graph, Names, leaves, pruned
from fp8np.integers import INT8
from fp8np.interpret import interpret
from fp8np.layers._op import OPS
from fp8np.model import Model
from fp8np.ptq.integers import INTEGER_OPS, IntegerWriter
from fp8np.scheme import PerTensor, Scheme

DYNAMIC = MappingProxyType({"scale": None, "zero_point": None})
STATIC = MappingProxyType({"scale": 0.0123, "zero_point": 77})


def weight(*shape: int, seed: int = 0, extreme: bool = False) -> Any:
    """int8 of all magnitudes; or nearly all 127, so that sums are as large as they can be."""
    rng = np.random.default_rng((seed, *shape))
    return (np.where(rng.random(shape) < 0.97, 127, -127) if extreme else rng.integers(-127, 128, shape)).astype(np.int8)


def data(*shape: int, seed: int = 0, extreme: bool = False, special: bool = False) -> Any:
    """float32 of both signs; or nearly all the largest; with NaN and infinities among them."""
    rng = np.random.default_rng((seed, *shape))
    x = np.where(rng.random(shape) < 0.97, 9.0, -0.5) if extreme else rng.normal(0.5, 2, shape)
    x = x.astype(np.float32)
    if special and x.size:
        x.reshape(-1)[rng.integers(x.size, size=3)] = np.nan, np.inf, -np.inf
    return x


def product(
    op: str,
    x: Any,
    w: Any,
    *,
    quantized: Mapping[str, Any] = DYNAMIC,
    bias: bool = False,
    ending: str = "",
    **attrs: Any,
) -> tuple[Graph, dict[str, Any]]:
    """quantize_integer, then a product with a weight, then an activation; and its input."""
    b = GraphBuilder()
    axis = w.ndim - 1 if op == "integer_matmul" else 0
    n = w.shape[axis]
    scales = np.linspace(0.5, 2, n).reshape([-1 if i == axis else 1 for i in range(w.ndim)])
    codes = b.node("quantize_integer", (b.input("x", x.shape, "float32"),), quantized)
    added = b.constant("bias", np.linspace(-1, 1, n)) if bias else None
    operands = (b.constant("w", w), b.constant("s", scales))
    operands += (None, added) if op == "integer_matmul" else (added,)
    y = b.node(op, (*codes, *operands), attrs)
    return b.finish(b.node(ending, (y,)) if ending else y), {"x": x}


def of_two(a: Any, c: Any, quantized: Mapping[str, Any] = DYNAMIC) -> tuple[Graph, dict[str, Any]]:
    """The product of two computed operands."""
    b = GraphBuilder()
    left, right = (b.node("quantize_integer", (b.input(name, x.shape, "float32"),), quantized) for name, x in (("a", a), ("c", c)))
    return b.finish(b.node("integer_matmul", (*left, *right))), {"a": a, "c": c}


def equal(graph: Graph, inputs: Mapping[str, Any], natively: bool = True, model: Model | None = None) -> Any:
    """The plan's output: bit for bit what the definitions give."""
    model = model or Model(graph)
    got = list(leaves(model.run(inputs)))
    for a, b in zip(got, leaves(interpret(graph, inputs)), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    assert native(model) == natively
    return got


def integers(graph: Graph, *, ranges: Mapping[str, tuple[float, float]] | None = None) -> Graph:
    """A float32 graph with everything in integers that can be: dynamic, or with these ranges."""
    dynamic = ranges is None
    activation = Scheme(INT8, PerTensor(), dynamic=dynamic)
    spans = {(name, activation): Range(low, high, 1) for name, (low, high) in (ranges or {}).items()}
    writer = IntegerWriter(graph, Names.beside(graph), spans)
    nodes, constants, values = [], dict(graph.constants), dict(graph.values)
    for node in graph.nodes:
        if node.op not in INTEGER_OPS:
            nodes.append(node)
            continue
        row = OPS[node.op]
        schemes = {}
        for i, name in enumerate(node.inputs):
            role = row.input_name(i)
            if name is not None and role in row.quantizable:
                schemes[i] = Scheme(INT8, row.quantizable[role]) if name in graph.constants else activation
        written = writer.write(node, schemes)
        nodes += written.nodes
        constants |= written.constants
        values |= written.values
    frozen = MappingProxyType
    return check(pruned(graph.replace(nodes=tuple(nodes), constants=frozen(constants), values=frozen(values))))
