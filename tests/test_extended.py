"""The extended scheme: FP8 operands of sums, products of elements, norms and attention, each as a plan runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _graphs import native, whole, whole_codes
from _weights import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.build import GraphBuilder
from fp8np.check import check
from fp8np.errors import GraphError
from fp8np.graph import Graph, leaves
from fp8np.interpret import interpret
from fp8np.kernels._threads import threads
from fp8np.layers._op import OPS
from fp8np.model import Model
from fp8np.plan.fuse import fused
from fp8np.scaling import quantize

HOW: dict[str, dict[str, Any]] = {
    "static": {"scale": 0.02},
    "dynamic": {},
    "dynamic power of two": {"power_of_two": True},
    "token": {"granularity": "token"},
    "token power of two": {"granularity": "token", "power_of_two": True},
}
FORMATS = ["e4m3fn", "e5m2", "e3m4fn", "e4m3fnuz", "float8_e4m3@11", "float8_e5m2@60"]
ARITHMETIC = ["add", "sub", "mul", "div"]
SHAPES = [((3, 5, 7), (3, 5, 7)), ((2, 9), (9,)), ((4,), (3, 4)), ((2, 3, 1), (2, 3, 8)), ((2, 6, 3, 3), (2, 6, 1, 1))]
ODD = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38]


def coded(b: GraphBuilder, x: str, fmt: str = "e4m3fn", **attrs: Any) -> str:
    return str(b.node("quantize", (x,), {"format": fmt, **attrs}))


def graph_of(build: Callable[..., Any], *shapes: tuple[Any, ...]) -> Graph:
    b = GraphBuilder()
    return b.finish(build(b, *(b.input(f"x{i}", shape, "float32") for i, shape in enumerate(shapes))))


def inputs_of(graph: Graph, *, odd: bool = False) -> dict[str, Any]:
    given = {}
    for i, value in enumerate(graph.inputs):
        array = normal(*value.shape, seed=i).astype(np.float32)  # type: ignore[arg-type]
        if odd:
            array.flat[: len(ODD)] = ODD[: array.size]
        given[value.name] = array
    return given


def same(graph: Graph, *, odd: bool = True) -> Model:
    """The plan gives the interpreter's bits, on any number of threads; one NaN is as good as another."""
    given, model = inputs_of(graph, odd=odd), Model(graph)
    want = list(leaves(interpret(graph, given)))
    for n in (1, 2):
        with threads(n):
            for a, w in zip(leaves(model.run(given)), want, strict=True):
                np.testing.assert_array_equal(a, w, strict=True)
                np.testing.assert_array_equal(np.signbit(a[~np.isnan(w)]), np.signbit(w[~np.isnan(w)]))
    return model


def close(graph: Graph, tolerance: float = 2e-6) -> Model:
    """The plan is as near to the law as a float32 computation of this depth is."""
    given, model = inputs_of(graph), Model(graph)
    for a, w in zip(leaves(model.run(given)), leaves(interpret(graph, given, dtype=np.float64)), strict=True):
        np.testing.assert_allclose(a, w, rtol=tolerance, atol=tolerance * max(1.0, np.abs(w).max(initial=0)))
    return model


# -- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "shapes", [((3, 5, 7), (3, 5, 7)), ((2, 9), (9,)), ((4,), (3, 4)), ((2, 3, 1), (2, 3, 8)), ((2, 6, 3, 3), (2, 6, 1, 1))]
)
def test_both_operands(op: str, how: str, shapes: tuple[Any, Any]) -> None:
    model = same(graph_of(lambda b, x, y: b.node(op, (coded(b, x, **HOW[how]), coded(b, y, "e5m2", **HOW[how]))), *shapes))
    assert native(model)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(ARITHMETIC),
    st.sampled_from(sorted(HOW)),
    st.sampled_from(FORMATS),
    st.integers(1, 3),
    st.integers(1, 70),
    st.booleans(),
)
def test_an_operand_of_any_format(op: str, how: str, fmt: str, rows: int, columns: int, first: bool) -> None:
    def build(b: GraphBuilder, x: str, y: str) -> str:
        q = coded(b, x, fmt, **HOW[how])
        return str(b.node(op, (q, y) if columns % 2 else (y, q)))

    same(graph_of(build, (rows, columns), (rows, columns)))


@pytest.mark.parametrize("op", ARITHMETIC)
def test_constants_and_numbers(op: str) -> None:
    """A table of positions, as codes; and a number beside a quantized tensor."""
    table = quantize(np.abs(normal(5, 8)).astype(np.float32) + 1, "e4m3fn")
    assert native(same(graph_of(lambda b, x: b.node(op, (coded(b, x), b.constant("w", table))), (2, 5, 8))))
    same(graph_of(lambda b, x: b.node(op, (coded(b, x), None), {"scalar": 0.7}), (2, 5, 8)))
    if op in ("add", "sub"):
        same(graph_of(lambda b, x: b.node(op, (coded(b, x), x), {"alpha": 0.3}), (2, 5, 8)))


def test_one_value_with_many_readers() -> None:
    """Products read codes, a sum and a norm what they stand for, and others the value itself."""

    def build(b: GraphBuilder, x: str) -> Any:
        y = b.node("linear", (coded(b, x, scale=0.01), b.constant("w", quantize(normal(16, 16).astype(np.float32), "e4m3fn", axis=0))))
        q = coded(b, y, scale=2.0**-5)
        z = b.node("linear", (q, b.constant("v", quantize(normal(16, 16).astype(np.float32), "e4m3fn", axis=0))))
        return z, b.node("add", (q, z)), b.node("layer_norm", (q,), {"normalized_shape": (16,)}), b.node("relu", (y,))

    assert native(close(graph_of(build, (5, 16))))


# -- norms ------------------------------------------------------------------------------------------------------------

NORMS: dict[str, Callable[[GraphBuilder, str], str]] = {
    "layer_norm": lambda b, q: b.node("layer_norm", (q, *_parameters(b, 6)[:2]), {"normalized_shape": (6,)}),
    "rms_norm": lambda b, q: b.node("rms_norm", (q, _parameters(b, 6)[0]), {"normalized_shape": (6,)}),
    "batch_norm": lambda b, q: b.node("batch_norm", (q, *_parameters(b, 4))),
    "group_norm": lambda b, q: b.node("group_norm", (q, *_parameters(b, 4)[:2]), {"num_groups": 2}),
    "instance_norm": lambda b, q: b.node("instance_norm", (q,)),
}


def _parameters(b: GraphBuilder, n: int) -> list[str]:
    return [b.constant("p", np.abs(normal(n, seed=i)).astype(np.float32) + 0.5) for i in range(4)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("how", HOW)
def test_norms(norm: str, how: str) -> None:
    close(graph_of(lambda b, x: NORMS[norm](b, coded(b, x, **HOW[how])), (2, 4, 5, 6)), 1e-5)


def test_channels_last_stays_so() -> None:
    """A picture between convolutions is rounded where it lies."""

    def build(b: GraphBuilder, x: str) -> str:
        w = b.constant("w", whole_codes(8, 8, 3, 3))
        ones, zeros = (b.constant("p", np.full(8, v, np.float32)) for v in (1, 0))
        y = b.node("conv2d", (coded(b, x, scale=1.0), w), {"padding": (1, 1)})
        y = b.node("batch_norm", (coded(b, y, scale=2.0), zeros, ones, ones, zeros), {"eps": 0.0})
        y = b.node("add", (coded(b, y, scale=1.0), coded(b, y, "e5m2", scale=0.5)))
        return str(b.node("conv2d", (coded(b, y, scale=1.0), w)))

    graph = graph_of(build, (2, 8, 7, 6))
    given, model = {"x0": whole(2, 8, 7, 6)}, Model(graph)
    np.testing.assert_array_equal(model.run(given), interpret(graph, given, dtype=np.float64))
    assert native(model)


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("attrs", [{}, {"is_causal": True}, {"scale": 0.3}])
def test_attention(how: str, attrs: dict[str, Any]) -> None:
    def build(b: GraphBuilder, *operands: str) -> str:
        return str(b.node("scaled_dot_product_attention", tuple(coded(b, x, **HOW[how]) for x in operands), attrs))

    assert native(close(graph_of(build, (2, 3, 9, 8), (2, 3, 11, 8), (2, 3, 11, 6)), 1e-5))


def test_attention_as_two_products() -> None:
    """Written out, both of its products run on codes, the one of the weights too."""

    def build(b: GraphBuilder, q: str, k: str, v: str) -> str:
        scores = b.node("matmul", (coded(b, q), coded(b, b.node("transpose", (k,), {"dim0": 2, "dim1": 3}))))
        weights = b.node("softmax", (b.node("div", (scores, None), {"scalar": 3.0}),), {"dim": -1})
        return str(b.node("matmul", (coded(b, weights, scale=1 / 448), coded(b, v, granularity="tensor"))))

    # A weight on the border between two codes may fall to either side.
    close(graph_of(build, (2, 3, 9, 8), (2, 3, 11, 8), (2, 3, 11, 6)), 2.0**-6)


# -- fusion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coded_operands", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("picture", [False, True])
def test_residuals_that_are_quantized(coded_operands: tuple[bool, bool], picture: bool) -> None:
    """Of a sum of a product and a residual, either or both as FP8; what is rounded between them cannot be left out."""

    def build(b: GraphBuilder, x: str, other: str) -> str:
        if picture:
            w = b.constant("w", quantize(normal(6, 6, 1, 1).astype(np.float32), "e4m3fn", axis=0))
            y = b.node("conv2d", (coded(b, x, scale=0.01), w))
        else:
            w = b.constant("w", quantize(normal(6, 6).astype(np.float32), "e4m3fn", axis=0))
            y = b.node("linear", (coded(b, x, scale=0.01), w))
        operands = [coded(b, v, "e5m2", scale=1.0) if c else v for v, c in zip((y, other), coded_operands, strict=True)]
        return str(b.node("relu", (b.node("add", tuple(operands)),)))

    shape = (2, 6, 5, 6) if picture else (2, 5, 6)
    graph = graph_of(build, shape, shape)
    check(fused(graph))
    # A product on the border between two codes of E5M2 may fall to either side.
    assert native(close(graph, 2e-6 if not coded_operands[0] else 0.25))
    ops = [node.op for node in fused(graph).nodes]
    assert ("add" in ops) == coded_operands[0]


def test_addmm() -> None:
    w, c = quantize(normal(8, 6).astype(np.float32), "e4m3fn", axis=-1), normal(6).astype(np.float32)
    graph = graph_of(lambda b, x: b.node("addmm", (b.constant("c", c), coded(b, x, granularity="token"), b.constant("w", w))), (5, 8))
    assert native(close(graph))


# -- what may be FP8 --------------------------------------------------------------------------------------------------


def test_what_the_scheme_covers() -> None:
    covered = {name: set(row.quantizable) for name, row in OPS.items() if row.quantizable}
    for op in ARITHMETIC:
        assert covered[op] == {"x", "y"}
    for op in NORMS:
        assert covered[op] == {"x"}
    assert covered["scaled_dot_product_attention"] == {"query", "key", "value"}
    assert {"embedding_bag", "matmul", "addmm", "lstm", "gru", "lstm_cell", "gru_cell"} <= set(covered)


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "message"),
    [
        ("layer_norm", ("x", "q6"), {"normalized_shape": (6,)}, "input 'weight' of layer_norm cannot be FP8"),
        ("scaled_dot_product_attention", ("x", "x", "x", "q"), {}, "attn_mask of bool or float32"),
        ("maximum", ("x", "q"), {}, "expected .* got .*float8_e4m3fn"),
    ],
)
def test_what_may_not_be_fp8(op: str, operands: tuple[str, ...], attrs: dict[str, Any], message: str) -> None:
    def build(b: GraphBuilder, x: str, small: str) -> str:
        names = {"x": x, "q": coded(b, x), "q6": coded(b, small)}
        return str(b.node(op, tuple(names[o] for o in operands), attrs))

    with pytest.raises(GraphError, match=message):
        graph_of(build, (2, 6, 6), (6,))
