"""Fusion: a fused graph means what the graph meant, bit for bit, and has the nodes that it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _weights import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.build import GraphBuilder
from fp8np.check import check
from fp8np.graph import Graph, leaves
from fp8np.interpret import interpret
from fp8np.model import Model
from fp8np.plan.fuse import PASSES, fused
from fp8np.scaling import quantize

PASS = dict(PASSES)
Build = Callable[[GraphBuilder, str], Any]


def weight(b: GraphBuilder, *shape: int, fmt: str = "") -> str:
    values = normal(*shape).astype(np.float32)
    return b.constant("w", quantize(values, fmt, axis=0) if fmt else values)


def quantized(b: GraphBuilder, x: str, scale: float | None = 0.02) -> str:
    return b.node("quantize", (x,), {"format": "e4m3fn", "scale": scale})


def graph_of(build: Build, shape: tuple[Any, ...]) -> Graph:
    b = GraphBuilder()
    return b.finish(build(b, b.input("x", shape, "float32")))


def values_of(graph: Graph) -> dict[str, Any]:
    """Inputs for a graph, infinities and NaN among them; symbolic sizes are 2."""
    given = {}
    for i, value in enumerate(graph.inputs):
        shape = tuple(n if isinstance(n, int) else 2 for n in value.shape)
        array = normal(*shape, seed=i).astype(np.float32)
        array.flat[: 4 * (array.size > 8)] = [np.inf, -np.inf, np.nan, -0.0][: 4 * (array.size > 8)]
        given[value.name] = array
    return given


def same_bits(got: Any, want: Any) -> None:
    """Equal bits; one NaN is as good as another."""
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.where(np.isnan(got), 0, got.view(np.uint32)), np.where(np.isnan(want), 0, want.view(np.uint32)))


def means_the_same(changed: Graph, graph: Graph) -> None:
    given = values_of(graph)
    check(changed)
    got, want = (list(leaves(interpret(g, given))) for g in (changed, graph))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        same_bits(a, b)


def applied(name: str, build: Build, shape: tuple[Any, ...]) -> list[str]:
    """The ops after one pass, which means the same as before."""
    graph = graph_of(build, shape)
    changed = PASS[name](graph)
    means_the_same(changed, graph)
    means_the_same(fused(graph), graph)
    assert [v.name for v in changed.inputs] == [v.name for v in graph.inputs]
    return [node.op for node in changed.nodes]


# -- pads into convolutions -------------------------------------------------------------------------------------------

PICTURE = ("B", 4, 6, 7)


def padded(pad: tuple[Any, ...] = (1, 2, 3, 0), **attrs: Any) -> Callable[[GraphBuilder, str], str]:
    return lambda b, x: b.node("pad", (x,), {"pad": pad, **attrs})


def convolved(b: GraphBuilder, x: str, fmt: str = "", **attrs: Any) -> str:
    return b.node("conv2d", (x, weight(b, 5, 4, 3, 3, fmt=fmt), b.constant("bias", normal(5))), attrs)


PAD_HITS: list[tuple[str, Build, list[str]]] = [
    ("four sides", lambda b, x: convolved(b, padded()(b, x)), ["fused_conv2d"]),
    ("one axis", lambda b, x: convolved(b, padded((2, 1))(b, x)), ["fused_conv2d"]),
    ("zero by name", lambda b, x: convolved(b, padded(value=0.0)(b, x)), ["fused_conv2d"]),
    ("nothing on channels", lambda b, x: convolved(b, padded((1, 2, 3, 0, 0, 0))(b, x)), ["fused_conv2d"]),
    ("and its own", lambda b, x: convolved(b, padded()(b, x), padding=(2, 1), stride=(2, 1), dilation=(1, 2)), ["fused_conv2d"]),
    ("and same", lambda b, x: convolved(b, padded()(b, x), padding="same", dilation=(1, 2)), ["fused_conv2d"]),
    ("and valid", lambda b, x: convolved(b, padded()(b, x), padding="valid"), ["fused_conv2d"]),
    ("through quantize", lambda b, x: convolved(b, quantized(b, padded()(b, x)), fmt="e4m3fn"), ["quantize", "fused_conv2d"]),
    ("through dynamic", lambda b, x: convolved(b, quantized(b, padded()(b, x), None), fmt="e4m3fn"), ["quantize", "fused_conv2d"]),
    ("two in a row", lambda b, x: convolved(b, padded((0, 1))(b, padded()(b, x))), ["pad", "fused_conv2d"]),
]


def test_pads_of_several_readers_go_into_each() -> None:
    def build(b: GraphBuilder, x: str) -> Any:
        y = padded()(b, x)
        q, r = quantized(b, y), quantized(b, y, 0.5)
        return convolved(b, y), convolved(b, y, padding=(1, 1)), convolved(b, q, fmt="e4m3fn"), convolved(b, r), convolved(b, q)

    ops = applied("pads into convolutions", build, PICTURE)
    assert sorted(ops) == ["fused_conv2d"] * 5 + ["quantize"] * 2


@pytest.mark.parametrize(("build", "ops"), [c[1:] for c in PAD_HITS], ids=[c[0] for c in PAD_HITS])
def test_pads_into_convolutions(build: Build, ops: list[str]) -> None:
    assert applied("pads into convolutions", build, PICTURE) == ops


def both(first: Build, second: Build, make: Build) -> Build:
    def build(b: GraphBuilder, x: str) -> Any:
        y = make(b, x)
        return first(b, y), second(b, y)

    return build


PAD_MISSES: list[tuple[str, Build, list[str]]] = [
    ("cuts", lambda b, x: convolved(b, padded((-1, 2, 3, 0))(b, x)), ["pad", "conv2d"]),
    ("with a value", lambda b, x: convolved(b, padded(value=1.0)(b, x)), ["pad", "conv2d"]),
    ("with a mode", lambda b, x: convolved(b, padded(mode="reflect")(b, x)), ["pad", "conv2d"]),
    ("other readers", both(convolved, lambda b, y: b.node("relu", (y,)), padded()), ["pad", "conv2d", "relu"]),
    ("is an output", both(convolved, lambda b, y: y, padded()), ["pad", "conv2d"]),
    ("no reader", padded(), ["pad"]),
    (
        "codes have other readers",
        both(convolved, lambda b, q: b.node("linear", (q, weight(b, 3, 10))), lambda b, x: quantized(b, padded()(b, x))),
        ["pad", "quantize", "conv2d", "linear"],
    ),
]


@pytest.mark.parametrize(("build", "ops"), [c[1:] for c in PAD_MISSES], ids=[c[0] for c in PAD_MISSES])
def test_pads_that_stay(build: Build, ops: list[str]) -> None:
    assert applied("pads into convolutions", build, PICTURE) == ops


def test_a_pad_of_channels_stays() -> None:
    build: Build = lambda b, x: convolved(b, padded((1, 1, 1, 1, 1, 1))(b, x))  # noqa: E731
    assert applied("pads into convolutions", build, ("B", 2, 6, 7)) == ["pad", "conv2d"]


def test_a_pad_of_filters_stays() -> None:
    def build(b: GraphBuilder, x: str) -> Any:
        return b.node("conv2d", (x, padded((1, 1))(b, b.input("w", (5, 4, 3, 1), "float32"))))

    assert applied("pads into convolutions", build, PICTURE) == ["pad", "conv2d"]


def test_a_pad_of_symbolic_size_stays() -> None:
    def build(b: GraphBuilder, x: str) -> Any:
        return convolved(b, b.node("pad", (x,), {"pad": (b.facts(x).shape[0], 0)}))

    assert applied("pads into convolutions", build, PICTURE) == ["pad", "conv2d"]


def test_a_pad_of_one_picture_without_a_batch_stays() -> None:
    assert applied("pads into convolutions", lambda b, x: convolved(b, padded()(b, x)), (4, 6, 7)) == ["pad", "conv2d"]
    graph = graph_of(lambda b, x: convolved(b, padded()(b, x)), (4, 6, 7))
    x = normal(4, 6, 7).astype(np.float32)
    np.testing.assert_allclose(Model(graph).run(x), interpret(graph, {"x": x}), rtol=1e-5, atol=1e-5)


# -- lines as pictures ------------------------------------------------------------------------------------------------

LINE = ("B", 4, 9)


def on_line(b: GraphBuilder, x: str, fmt: str = "", groups: int = 1, **attrs: Any) -> str:
    return b.node("conv1d", (x, weight(b, 6, 4 // groups, 3, fmt=fmt), b.constant("bias", normal(6))), {"groups": groups, **attrs})


LIFTED = ["unsqueeze", "conv2d", "squeeze"]
LINE_HITS: list[tuple[str, Build, list[str]]] = [
    ("floats", on_line, LIFTED),
    ("attributes", lambda b, x: on_line(b, x, stride=(2,), padding=(3,), dilation=(2,), groups=2), LIFTED),
    ("same", lambda b, x: on_line(b, x, padding="same", dilation=(2,)), LIFTED),
    ("codes", lambda b, x: on_line(b, quantized(b, x), fmt="e4m3fn"), ["unsqueeze", "quantize", "conv2d", "squeeze"]),
    ("dynamic", lambda b, x: on_line(b, quantized(b, x, None), fmt="e5m2"), ["unsqueeze", "quantize", "conv2d", "squeeze"]),
]


@pytest.mark.parametrize(("build", "ops"), [c[1:] for c in LINE_HITS], ids=[c[0] for c in LINE_HITS])
def test_lines_as_pictures(build: Build, ops: list[str]) -> None:
    assert applied("lines as pictures", build, LINE) == ops


def test_lines_that_stay() -> None:
    def computed(b: GraphBuilder, x: str) -> str:
        return b.node("conv1d", (x, b.input("w", (6, 4, 3), "float32")))

    assert applied("lines as pictures", computed, LINE) == ["conv1d"]
    assert applied("lines as pictures", on_line, (4, 9)) == ["conv1d"]


def test_codes_that_others_read_stay_beside_the_picture() -> None:
    build = both(lambda b, q: on_line(b, q, fmt="e4m3fn"), lambda b, q: b.node("linear", (q, weight(b, 3, 9))), quantized)
    assert applied("lines as pictures", build, LINE) == ["quantize", "unsqueeze", "quantize", "conv2d", "squeeze", "linear"]


# -- products and what follows ----------------------------------------------------------------------------------------

ROWS = ("B", 8)


def product(b: GraphBuilder, x: str) -> str:
    return b.node("linear", (x, weight(b, 8, 8), b.constant("bias", normal(8))))


def image(b: GraphBuilder, x: str) -> str:
    return b.node("conv2d", (x, weight(b, 4, 4, 3, 3)), {"padding": (1, 1)})


def after(name: str, **attrs: Any) -> Build:
    return lambda b, x: b.node(name, (product(b, x),), attrs)


def test_products_as_fused() -> None:
    assert applied("products as fused", product, ROWS) == ["fused_linear"]
    assert applied("products as fused", lambda b, x: b.node("linear", (x, weight(b, 3, 8))), ("B", "T", 8)) == ["fused_linear"]
    assert applied("products as fused", image, PICTURE) == ["fused_conv2d"]
    assert applied("products as fused", lambda b, x: convolved(b, x, padding="same", dilation=(2, 1)), PICTURE) == ["fused_conv2d"]
    assert applied("products as fused", lambda b, x: convolved(b, quantized(b, x), fmt="e5m2"), PICTURE) == ["quantize", "fused_conv2d"]
    # Without a batch it stays.
    assert applied("products as fused", convolved, (4, 6, 7)) == ["conv2d"]


ENDINGS = [
    ("relu", {}, {"lo": 0.0}),
    ("relu6", {}, {"lo": 0.0, "hi": 6.0}),
    ("hardtanh", {}, {"lo": -1.0, "hi": 1.0}),
    ("hardtanh", {"min_val": -0.5, "max_val": 2}, {"lo": -0.5, "hi": 2.0}),
    ("clamp", {"min": -0.25}, {"lo": -0.25}),
    ("clamp", {"max": 1}, {"hi": 1.0}),
    ("clamp", {"min": 1.0, "max": -1.0}, {"lo": 1.0, "hi": -1.0}),
    ("gelu", {}, {"activation": "gelu"}),
    ("gelu", {"approximate": "tanh"}, {"activation": "gelu_tanh"}),
    *((name, {}, {"activation": name}) for name in ("silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish")),
]


@pytest.mark.parametrize(("name", "attrs", "ending"), ENDINGS)
def test_activations_into_products(name: str, attrs: dict[str, Any], ending: dict[str, Any]) -> None:
    for make, shape, op in ((product, ROWS, "fused_linear"), (image, PICTURE, "fused_conv2d")):
        graph = graph_of(lambda b, x, make=make: b.node(name, (make(b, x),), attrs), shape)  # type: ignore[misc]
        (node,) = fused(graph).nodes
        assert node.op == op
        full = {"activation": "", "lo": -np.inf, "hi": np.inf, **ending}
        assert {key: node.attrs.get(key, full[key]) for key in full} == full
        means_the_same(fused(graph), graph)


def with_bounds(b: GraphBuilder, x: str) -> str:
    return b.node("clamp", (product(b, x), b.constant("low", np.zeros(8, np.float32)), None))


def of_three(make: Build, second: Build) -> Build:
    return lambda b, x: second(b, make(b, x))


ACTIVATION_MISSES: list[tuple[str, Build, list[str]]] = [
    ("bounds are tensors", with_bounds, ["fused_linear", "clamp"]),
    ("read twice", both(lambda b, y: b.node("relu", (y,)), lambda b, y: b.node("exp", (y,)), product), ["fused_linear", "relu", "exp"]),
    ("is an output", both(lambda b, y: b.node("relu", (y,)), lambda b, y: y, product), ["fused_linear", "relu"]),
    ("clamped already", of_three(after("relu"), lambda b, y: b.node("relu6", (y,))), ["fused_linear", "relu6"]),
    ("activated already", of_three(after("gelu"), lambda b, y: b.node("relu", (y,))), ["fused_linear", "relu"]),
    ("other functions", after("exp"), ["fused_linear", "exp"]),
    ("of no product", lambda b, x: b.node("relu", (b.node("exp", (x,)),)), ["exp", "relu"]),
]


@pytest.mark.parametrize(("build", "ops"), [c[1:] for c in ACTIVATION_MISSES], ids=[c[0] for c in ACTIVATION_MISSES])
def test_activations_that_stay(build: Build, ops: list[str]) -> None:
    graph = graph_of(build, ROWS)
    means_the_same(fused(graph), graph)
    assert [node.op for node in fused(graph).nodes] == ops


def added(left: Build, right: Build, **attrs: Any) -> Build:
    return lambda b, x: b.node("add", (left(b, x), right(b, x)), attrs)


def itself(b: GraphBuilder, x: str) -> str:
    return x


def plus_x(b: GraphBuilder, y: str) -> str:
    return str(b.node("add", (y, "x")))


def other(*shape: int, name: str = "r", dtype: str = "float32") -> Build:
    return lambda b, x: b.input(name, shape, dtype)


RESIDUALS: list[tuple[str, Build, tuple[Any, ...], list[str]]] = [
    ("after", added(product, itself), ROWS, ["fused_linear"]),
    ("before", added(itself, product), ROWS, ["fused_linear"]),
    ("of pictures", added(image, itself), PICTURE, ["fused_conv2d"]),
    ("of products", added(product, product), ROWS, ["fused_linear", "fused_linear"]),
    ("then an activation", of_three(added(product, itself), lambda b, y: b.node("relu", (y,))), ROWS, ["fused_linear"]),
    ("of what is computed later", added(product, lambda b, x: b.node("exp", (x,))), ROWS, ["exp", "fused_linear"]),
    # What an activation gives is no product any more.
    ("after an activation", added(after("relu"), itself), ROWS, ["fused_linear", "add"]),
    ("with alpha", added(product, itself, alpha=2), ROWS, ["fused_linear", "add"]),
    ("with alpha one", added(product, itself, alpha=1), ROWS, ["fused_linear"]),
    ("broadcast", added(product, other(1, 8)), (3, 8), ["fused_linear", "add"]),
    ("that broadcasts", added(product, other(5, 1, 8)), (3, 8), ["fused_linear", "add"]),
    ("of integers", added(product, other(3, 8, dtype="int32")), (3, 8), ["fused_linear", "add"]),
    ("of a constant", added(product, lambda b, x: b.constant("c", np.ones((3, 8)))), (3, 8), ["fused_linear", "add"]),
    ("of a number", lambda b, x: b.node("add", (product(b, x),), {"scalar": 2.0}), ROWS, ["fused_linear", "add"]),
    ("of itself", lambda b, x: (lambda y: b.node("add", (y, y)))(product(b, x)), ROWS, ["fused_linear", "add"]),
    ("read twice", both(plus_x, lambda b, y: b.node("exp", (y,)), product), ROWS, ["fused_linear", "add", "exp"]),
    ("is an output", both(plus_x, lambda b, y: y, product), ROWS, ["fused_linear", "add"]),
    ("two", added(added(product, itself), other(3, 8)), (3, 8), ["fused_linear", "add"]),
]


@pytest.mark.parametrize(("build", "shape", "ops"), [c[1:] for c in RESIDUALS], ids=[c[0] for c in RESIDUALS])
def test_residuals_into_products(build: Build, shape: tuple[Any, ...], ops: list[str]) -> None:
    graph = graph_of(build, shape)
    means_the_same(fused(graph), graph)
    assert [node.op for node in fused(graph).nodes] == ops


def test_a_product_with_an_ending_of_its_own_takes_no_other() -> None:
    for ending in ({"lo": 0.0}, {"hi": 2.0}, {"activation": "gelu"}):

        def build(b: GraphBuilder, x: str, ending: dict[str, Any] = ending) -> Any:
            y = b.node("fused_linear", (x, weight(b, 8, 8)), ending)
            return b.node("add", (y, x)), b.node("relu", (b.node("fused_linear", (x, weight(b, 8, 8)), ending),))

        graph = graph_of(build, ROWS)
        means_the_same(fused(graph), graph)
        assert [node.op for node in fused(graph).nodes] == ["fused_linear", "add", "fused_linear", "relu"]


def test_the_later_of_two_products_takes_the_other_as_its_residual() -> None:
    first, second = fused(graph_of(added(product, product), ROWS)).nodes
    assert second.inputs[3] == first.outputs[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_chain_means_the_same(data: st.DataObject) -> None:
    """Products, sums, clamps and pads in any order, any of them read again or returned."""
    b = GraphBuilder()
    values = [b.input("x", ("B", 4, 5, 5), "float32")]
    for _ in range(data.draw(st.integers(1, 8))):
        x, y = (data.draw(st.sampled_from(values)) for _ in range(2))
        kind = data.draw(st.sampled_from(["conv", "padded", "relu", "clamp", "gelu", "add", "quantized", "linear"]))
        if kind == "conv":
            values.append(image(b, x))
        elif kind == "padded":
            values.append(b.node("conv2d", (padded((1, 1, 1, 1))(b, x), weight(b, 4, 4, 3, 3))))
        elif kind == "quantized":
            values.append(b.node("conv2d", (quantized(b, padded((1, 1, 1, 1))(b, x)), weight(b, 4, 4, 3, 3, fmt="e4m3fn"))))
        elif kind == "linear":
            values.append(b.node("linear", (x, weight(b, 5, 5))))
        elif kind == "add":
            values.append(b.node("add", (x, y)))
        else:
            values.append(b.node(kind, (x,), {"min": -1.0, "max": 1.0} if kind == "clamp" else {}))
    kept = data.draw(st.lists(st.sampled_from(values[1:]), min_size=0, max_size=2))
    graph = b.finish((values[-1], *kept))
    step = graph
    for _, apply in PASSES:
        step = apply(step)
        means_the_same(step, graph)
    assert len(step.nodes) <= len(graph.nodes)
