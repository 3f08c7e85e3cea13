"""Plans against the interpreter, at several sizes: networks, layouts of values, endings of products, FP8 values with many readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _graphs import cnn, defined, gamma, native, run_one, tokens, transformer, whole, whole_codes
from _weights import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.build import GraphBuilder
from fp8np.check import check
from fp8np.codec import decode_table
from fp8np.formats import FORMATS
from fp8np.graph import Graph, leaves
from fp8np.interpret import interpret
from fp8np.kernels._grid import holds
from fp8np.model import Model
from fp8np.scaling import dequantize, quantize


def equal(graph: Graph, inputs: Any, natively: bool | None = True, model: Model | None = None) -> Any:
    """Runs the plan: bit for bit what the interpreter gives, where float32 holds every sum, which is checked."""
    model = model or Model(graph)
    got = list(leaves(model.run(inputs)))
    want, law = (list(leaves(interpret(graph, inputs, dtype=dtype))) for dtype in (np.float32, np.float64))
    for a, b, exact in zip(got, want, law, strict=True):
        np.testing.assert_array_equal(b, exact)
        np.testing.assert_array_equal(a, b, strict=True)
    assert natively in (None, native(model))
    return got


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 16, 8), (5, 16, 32), (3, 32, 16), (1, 64, 64)])
def test_cnn(size: tuple[int, int, int]) -> None:
    b, h, w = size
    model = Model(cnn())
    for batch in (b, b + 1, b):
        equal(model.graph, {"x": whole(batch, 3, h, w)}, model=model)


def test_cnn_at_one_size_after_another() -> None:
    """Plans of a model work in the same memory: what was zero around a picture at one size is not at another."""
    model = Model(cnn())
    for size in [(1, 3, 8, 8), (2, 3, 32, 16), (1, 3, 16, 8), (1, 3, 8, 8), (2, 3, 32, 16), (4, 3, 16, 16), (1, 3, 16, 8)]:
        equal(model.graph, {"x": whole(*size, seed=size[0])}, model=model)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 16), (1, 33), (5, 20)])
def test_transformer(size: tuple[int, int]) -> None:
    """As near to the law as NumPy's float32 is: every kernel makes as many roundings, and functions within a few units."""
    model = Model(transformer())
    inputs = tokens(*size)
    near, law = (list(leaves(interpret(model.graph, inputs, dtype=dtype))) for dtype in (np.float32, np.float64))
    for a, b, exact in zip(leaves(model.run(inputs)), near, law, strict=True):
        assert a.shape == exact.shape
        assert np.abs(a - exact).max() <= 4 * np.abs(b - exact).max() + 16 * 2.0**-24 * np.abs(exact).max()
    # The check of the indices is all that runs in Python.
    *_, plan = model._plans.values()
    assert sum(not isinstance(s, tuple) for s in plan.segments) == 1


@pytest.mark.parametrize(("graph", "inputs"), [(cnn(), {"x": whole(0, 3, 8, 8)}), (transformer(), tokens(0, 5))])
def test_nothing_to_do(graph: Graph, inputs: Any) -> None:
    for a, b in zip(leaves(Model(graph).run(inputs)), leaves(interpret(graph, inputs)), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


# -- layouts ----------------------------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[GraphBuilder, str, Callable[..., Any]], str]] = {
    "transpose": lambda b, x, pick: b.node("transpose", (x,), {"dim0": pick(4), "dim1": pick(4)}),
    "permute": lambda b, x, pick: b.node("permute", (x,), {"dims": [(0, 2, 3, 1), (3, 0, 1, 2), (1, 0, 3, 2), (0, 3, 1, 2)][pick(4)]}),
    "slice": lambda b, x, pick: b.node("slice", (x,), {"dim": pick(4), "start": pick(2), "end": 9, "step": 1 + pick(2)}),
    "narrow": lambda b, x, pick: (lambda d: b.node("narrow", (x,), {"dim": d, "start": 0, "length": min(2, size(b, x)[d])}))(pick(4)),
    "split": lambda b, x, pick: (lambda d: _last(b.node("split", (x,), {"split_size": 2, "dim": d})))(pick(4)),
    "expand": lambda b, x, pick: b.node("expand", (b.node("slice", (x,), {"dim": 1, "end": 1}), None), {"size": (-1, 3, -1, -1)}),
    "flatten": lambda b, x, pick: b.node("unsqueeze", (b.node("flatten", (x,), {"start_dim": 1, "end_dim": 2}),), {"dim": pick(4)}),
    "relu": lambda b, x, pick: b.node("relu", (x,)),
    "double": lambda b, x, pick: b.node("add", (x, x)),
    "own": lambda b, x, pick: b.node("mul", (x, b.node("select", (x,), {"dim": 0, "index": 0}))),
    "conv": lambda b, x, pick: b.node("conv2d", (x, b.constant("w", whole(4, size(b, x)[1], 1, 1, most=1)))),
    "linear": lambda b, x, pick: b.node("linear", (x, b.constant("w", whole(3, size(b, x)[3], most=1)))),
}  # fmt: skip
ENDS: dict[str, Callable[[GraphBuilder, str], str]] = {
    "output": lambda b, x: x,
    "relu": lambda b, x: b.node("relu", (x,)),
    "max": lambda b, x: b.node("amax", (x,), {"dim": (1,)}),
    "pool": lambda b, x: b.node("max_pool2d", (x,), {"kernel_size": (1, 1)}),
    "concat": lambda b, x: b.node("concat", (x, x), {"dim": 2}),
    "codes by rows": lambda b, x: b.node("linear", (coded(b, x), b.constant("w", whole_codes(5, size(b, x)[3])))),
    "codes by channels": lambda b, x: b.node("conv2d", (coded(b, x), b.constant("w", whole_codes(5, size(b, x)[1], 1, 1)))),
    "own product": lambda b, x: b.node("matmul", (x, b.node("transpose", (x,), {"dim0": 2, "dim1": 3}))),
    "product of codes": lambda b, x: b.node("matmul", (coded(b, x), coded(b, b.node("transpose", (x,), {"dim0": 2, "dim1": 3}), "e5m2"))),
}  # fmt: skip


def size(b: GraphBuilder, x: str) -> tuple[int, ...]:
    return b.facts(x).shape  # type: ignore[return-value]


def _last(parts: Any) -> str:
    return str(parts if isinstance(parts, str) else parts[-1])


def coded(b: GraphBuilder, x: str, fmt: str = "e4m3fn") -> str:
    return str(b.node("quantize", (x,), {"format": fmt, "scale": 1.0}))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_values_may_lie_in_any_order(data: st.DataObject) -> None:
    """Views of views, read by whatever computes: each layout comes out as it is meant."""
    b = GraphBuilder()
    shape = data.draw(st.sampled_from([(2, 3, 4, 5), (1, 4, 1, 6), (2, 1, 3, 3), (3, 17, 2, 2)]))
    x = b.input("x", shape, "float32")
    y = x
    for name in data.draw(st.lists(st.sampled_from(sorted(VIEWS)), max_size=5)):
        y = VIEWS[name](b, y, lambda n: data.draw(st.integers(0, n - 1)))
        if 0 in size(b, y):
            return
    end = ENDS[data.draw(st.sampled_from(sorted(ENDS)))](b, y)
    graph = b.finish((end, y))
    inputs = {"x": whole(*shape, seed=data.draw(st.integers(0, 3)), most=2)}
    got, want = (list(leaves(r)) for r in (Model(graph).run(inputs), interpret(graph, inputs, dtype=np.float64)))
    for a, b_ in zip(got, want, strict=True):
        # Beyond 2^24 sums are rounded: chains of products of products.
        if np.abs(b_).max(initial=0) < 2**20:
            np.testing.assert_array_equal(a, b_)


@pytest.mark.parametrize("kind", ["softmax", "layer_norm", "gelu", "mean"])
def test_layouts_that_others_read(kind: str) -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 6, 5, 8), "float32")
    turned = b.node("permute", (b.node("slice", (x,), {"dim": 3, "start": 1, "end": 8, "step": 2}),), {"dims": (0, 3, 1, 2)})
    attrs: dict[str, Any] = {"softmax": {"dim": -1}, "layer_norm": {"normalized_shape": (5,), "eps": 1e-5}, "mean": {"dim": (2, 3)}}
    inputs = (turned, b.constant("g", normal(5)), None) if kind == "layer_norm" else (turned,)
    graph = b.finish(b.node(kind, inputs, attrs.get(kind)))
    given = {"x": normal(3, 6, 5, 8).astype(np.float32)}
    np.testing.assert_allclose(Model(graph).run(given), interpret(graph, given, dtype=np.float64), rtol=1e-5, atol=1e-6)


FILTERS = [
    ((1, 3, 12, 12), (5, 3, 7, 7), {}),
    ((1, 8, 9, 9), (5, 8, 5, 5), {"padding": (2, 2)}),
    ((1, 3, 18, 18), (5, 3, 11, 11), {}),
    ((2, 40, 6, 6), (7, 40, 3, 3), {"padding": (1, 1)}),
    ((1, 40, 6, 6), (40, 1, 3, 3), {"groups": 40, "padding": (1, 1)}),
    ((1, 32, 6, 6), (32, 8, 3, 3), {"groups": 4}),
    ((1, 18, 6, 6), (24, 6, 3, 3), {"groups": 3}),
]


@pytest.mark.parametrize(("shape", "weight", "attrs"), FILTERS)
@pytest.mark.parametrize("codes", [True, False])
def test_nan_reaches_what_it_takes_part_in(shape: Any, weight: Any, attrs: Any, codes: bool) -> None:
    """And nothing else, but other groups of the same block: these meet it with a weight of zero."""
    x = whole(*shape)
    x[0, 1, 4, 4] = np.nan
    w = whole_codes(*weight) if codes else whole(*weight)
    for left in (x, quantize(x, "e4m3fn", scale=1.0)):
        got, want = np.isnan(run_one("conv2d", (left, w), (1,), attrs)[0]), np.isnan(defined("conv2d", (left, w), attrs))
        assert (got >= want).all()
        assert want.any()
        assert not want.all()
        if attrs.get("groups", 1) in (1, shape[1]):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("rows", "k"), [(1, 33), (3, 32), (5, 50), (40, 33)])
def test_nan_stays_in_its_row(rows: int, k: int) -> None:
    x = whole(rows, k)
    x[-1, -1] = np.nan
    for left in (x, quantize(x, "e4m3fn", scale=1.0)):
        for w in (whole(7, k), whole_codes(7, k)):
            np.testing.assert_array_equal(run_one("linear", (left, w), (1,))[0], defined("linear", (left, w)))


# -- FP8 values with several readers ----------------------------------------------------------------------------------

Reader = Callable[[GraphBuilder, str], str]
READERS: dict[str, Reader] = {
    "wide": lambda b, q: b.node("conv2d", (q, b.constant("w", whole_codes(5, 16, 3, 3))), {"padding": (1, 2)}),
    "dilated": lambda b, q: b.node("conv2d", (q, b.constant("w", whole_codes(5, 16, 3, 3))), {"padding": (3, 1), "dilation": (2, 1)}),
    "strided": lambda b, q: b.node("conv2d", (q, b.constant("w", whole_codes(5, 16, 1, 1))), {"stride": (2, 2)}),
    "depthwise": lambda b, q: b.node("conv2d", (q, b.constant("w", whole_codes(16, 1, 3, 3))), {"groups": 16, "padding": (1, 1)}),
    "grouped": lambda b, q: b.node("conv2d", (q, b.constant("w", whole_codes(16, 8, 3, 3))), {"groups": 2, "padding": (1, 0)}),
    "spread": lambda b, q: b.node("conv2d", (q, b.constant("w", whole_codes(24, 2, 1, 1))), {"groups": 8}),
    "transposed": lambda b, q: b.node("conv_transpose2d", (q, b.constant("w", whole_codes(16, 1, 2, 2))), {"stride": (2, 2), "groups": 1}),
    "rows": lambda b, q: b.node("linear", (q, b.constant("w", whole_codes(5, 9)))),
    "columns": lambda b, q: b.node("matmul", (q, b.constant("w", whole_codes(5, 9).T))),
    "computed": lambda b, q: b.node("matmul", (q, coded(b, b.node("transpose", ("x",), {"dim0": 2, "dim1": 3})))),
    "computed bias": lambda b, q: b.node("linear", (q, b.constant("w", whole_codes(5, 9)), b.node("relu", (b.constant("b", whole(5)),)))),
    "other weights": lambda b, q: b.node("linear", (q, b.constant("w", quantize(whole(5, 9), "e4m3fnuz", scale=1.0)))),
}  # fmt: skip


@pytest.mark.parametrize("fmt", ["e4m3fn", "e5m2fnuz"])
@pytest.mark.parametrize("made", ["given", "computed", "returned"])
@pytest.mark.parametrize("first", READERS)
def test_one_fp8_value_many_readers(first: str, made: str, fmt: str) -> None:
    """Each pair of readers, of a value that is given, that a convolution computes, and that is returned as floats, too."""
    model = None
    for second in READERS:
        b = GraphBuilder()
        x = b.input("x", ("B", 16, 7, 9), "float32")
        y = x if made == "given" else b.node("relu", (b.node("conv2d", (x, b.constant("w", whole_codes(16, 16, 1, 1)))),))
        q = coded(b, y, fmt)
        outputs = [READERS[first](b, q), READERS[second](b, q)]
        model = Model(b.finish((*outputs, y) if made == "returned" else tuple(outputs)))
        equal(model.graph, {"x": whole(2, 16, 7, 9, most=2)}, None, model)


def test_a_vector_that_is_computed_in_fp8() -> None:
    b = GraphBuilder()
    y = b.node("linear", (b.input("x", (8,), "float32"), b.constant("w", whole(6, 8))))
    equal(b.finish(b.node("matmul", (coded(b, y), b.constant("v", whole_codes(7, 6).T)))), {"x": whole(8)})


def test_a_sum_of_nothing_is_the_bias() -> None:
    b = GraphBuilder()
    y = b.node("linear", (b.input("x", ("B", 0), "float32"), b.constant("w", np.zeros((3, 0), np.float32)), b.constant("b", whole(3))))
    equal(b.finish(y), {"x": whole(2, 0)}, None)


@pytest.mark.parametrize("fmt", [name for name in FORMATS if name.startswith("float8_") and FORMATS[name].signed] + ["e4m3@62", "e5m2@100"])
def test_every_format_of_an_activation(fmt: str) -> None:
    """x in the format, times one: rounded as `quantize` rounds, NaN and infinity, too; natively where the engine holds the format."""
    b = GraphBuilder()
    q = b.node("quantize", (b.input("x", ("B", 40), "float32"),), {"format": fmt, "scale": 0.75})
    model = Model(check(b.finish(b.node("linear", (q, b.constant("w", quantize(np.eye(40, dtype=np.float32), "e4m3fn", scale=1.0)))))))
    x = (normal(64, 40) * np.ldexp(1.0, np.random.default_rng(0).integers(-20, 9, (64, 40)))).astype(np.float32)
    x[0, :6] = [0, -0.0, np.inf, -np.inf, 3e38, -1e-40]
    x[1, 3] = np.nan
    rounded = quantize(x, fmt, scale=0.75)
    want = dequantize(rounded)
    want[1] = np.nan
    np.testing.assert_array_equal(model.run(x), want)
    assert native(model) == holds(rounded.format)


@pytest.mark.parametrize("scale", [0.3, 0.01, 0.5])
def test_results_rounded_on_the_way_out(scale: float) -> None:
    """Of exact sums, halfway between two values of the format among them: rounded as what is divided by the scale to within a unit."""
    fmt = FORMATS["float8_e4m3fn"]
    values = np.sort(decode_table(fmt)[: fmt.max_magnitude + 1])
    sums = ((values[1:] + values[:-1]) / np.float32(2) * np.float32(scale))[None]
    n = sums.shape[1]
    b = GraphBuilder()
    y = b.node("linear", (b.input("x", ("B", n), "float32"), b.constant("w", np.eye(n, dtype=np.float32))))
    q = b.node("quantize", (y,), {"format": fmt.name, "scale": scale})
    model = Model(b.finish(b.node("linear", (q, b.constant("w", quantize(np.eye(n, dtype=np.float32), "e4m3fn", scale=1.0))))))
    got = model.run(sums) / np.float32(scale)
    exact = sums / np.float32(scale)
    low, high = (dequantize(quantize(np.nextafter(exact, np.float32(to)), fmt, scale=1.0)) for to in (0, np.inf))
    np.testing.assert_allclose(np.clip(got, low, high), got, rtol=2.0**-23)
    assert native(model)


# -- scales found while the plan runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [normal(5, 40), np.zeros((5, 40)), normal(5, 40) * 1e-38, normal(5, 40) * 1e-41, normal(5, 40) * 1e35])
def test_dynamic_scales(x: Any) -> None:
    given = x.astype(np.float32)
    weight = quantize(normal(7, 40).astype(np.float32), "e4m3fn", axis=0)
    b = GraphBuilder()
    q = b.node("quantize", (b.input("x", ("B", 40), "float32"),), {"format": "e4m3fn", "scale": None})
    model = Model(b.finish(b.node("linear", (q, b.constant("w", weight)))))
    left, right = (dequantize(t, dtype=np.float64) for t in (quantize(given, "e4m3fn"), weight))
    # Below the normal numbers a unit is 2^-149.
    bound = gamma(40 + 3) * (np.abs(left) @ np.abs(right.T)) + 2.0**-149
    assert (np.abs(model.run(given) - left @ right.T) <= bound).all()
    assert native(model)


def test_a_dynamic_scale_heeds_neither_infinity_nor_nan() -> None:
    b = GraphBuilder()
    q = b.node("quantize", (b.input("x", ("B", 4, 3, 3), "float32"),), {"format": "e4m3fn", "scale": None})
    graph = b.finish(b.node("conv2d", (q, b.constant("w", whole_codes(1, 4, 1, 1)))))
    x = whole(2, 4, 3, 3, seed=1)
    x[0, 0, 0, 0], x[1, 3, 2, 2], x[0, 1, 1, 1], x[1, 0, 0, 1] = 448, np.nan, np.inf, -np.inf
    got = Model(graph).run(x)
    np.testing.assert_array_equal(got, interpret(graph, {"x": x}))
    assert np.isnan(got).sum() == 1
