"""INT8: scales and zero points, the definitions against Python's integers, and plans against the definitions, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _graphs import native
from _integers import DYNAMIC, STATIC, data, equal, integers, of_two, product, weight
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.artifact import load_graph, save
from fp8np.build import GraphBuilder
from fp8np.data import load_batches
from fp8np.errors import CalibrationError, DTypeError, GraphError, RecipeError, ScaleError
from fp8np.formats import get_format
from fp8np.graph import Graph, Names, leaves
from fp8np.integers import INT8, activation_parameters, encode_activation, measured_parameters, quantize_weight
from fp8np.interpret import interpret
from fp8np.layers._op import OPS
from fp8np.model import Model
from fp8np.plan.fuse import fused
from fp8np.ptq.assign import Decision
from fp8np.ptq.integers import INTEGER_OPS, IntegerWriter, integer_weight
from fp8np.ptq.report import make_report
from fp8np.scheme import PerChannel, PerTensor, PerToken, Scheme

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
SEEDS = st.integers(0, 2**16)


# -- scales and codes -------------------------------------------------------------------------------------------------


def test_codes_are_those_of_onnx() -> None:
    """The examples of QuantizeLinear and DynamicQuantizeLinear in the ONNX operator documentation."""
    x = np.array([0, 2, 3, 1000, -254, -1000], np.float32)
    assert encode_activation(x, 2.0, 128).tolist() == [128, 129, 130, 255, 1, 0]
    x = np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32)
    scale, zero = measured_parameters(x)
    assert (np.float32(scale), zero) == (np.float32(0.0196078438), 153)
    assert encode_activation(x, scale, zero).tolist() == [153, 255, 0, 26, 221, 179]


@pytest.mark.parametrize("scale", [0.1, 1.0, 3e-38, 1e36])
def test_every_code_of_every_zero_point_survives(scale: float) -> None:
    codes = np.arange(256)
    for zero in range(256):
        x = (codes - zero).astype(np.float32) * np.float32(scale)
        np.testing.assert_array_equal(encode_activation(x, scale, zero), codes)


@given(FLOATS, FLOATS, st.lists(st.floats(0, 1), max_size=9))
def test_a_range_is_covered_to_a_step(a: float, b: float, between: list[float]) -> None:
    low, high = sorted((a, b))
    scale, zero = activation_parameters(low, high)
    assert np.float32(scale) == scale
    x = np.array([low, high, 0.0, *(low + (high - low) * t for t in between)])
    codes = encode_activation(x, scale, zero).astype(np.float64)
    assert codes[2] == zero
    # Half a step for rounding, half for the zero point; below the smallest scale a step is more than the whole range.
    assert (np.abs((codes - zero) * scale - x) <= scale * (1 + 1e-4)).all()


def test_what_is_no_number() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3, -1], np.float32)
    assert encode_activation(x, 0.5, 100).tolist() == [100, 255, 0, 106, 98]
    assert measured_parameters(x) == activation_parameters(-1, 3)
    assert measured_parameters(x[:3]) == (1.0, 0)
    for bad in ((np.nan, 1), (0, np.inf), (1, 0)):
        with pytest.raises(ScaleError, match="expected a finite range"):
            activation_parameters(*bad)
    with pytest.raises(ScaleError, match="NaN or infinity"):
        quantize_weight(x, 0)
    with pytest.raises(DTypeError, match="expected floats, got int64"):
        quantize_weight(np.arange(3), None)


@given(SEEDS, st.sampled_from([(None, ()), (0, (5, 1, 1)), (-1, (1, 1, 4))]), st.sampled_from([1e-42, 1e-3, 1.0, 3e37]))
def test_weights_keep_their_largest_and_their_zeros(seed: int, axis: tuple[int | None, tuple[int, ...]], size: float) -> None:
    w = (np.random.default_rng(seed).normal(size=(5, 3, 4)) * size).astype(np.float32)
    w[2] = 0
    codes, scale = quantize_weight(w, axis[0])
    assert (codes.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, axis[1])
    assert codes.min() >= -127
    assert not codes[2].any()
    error = np.abs(codes * scale.astype(np.float64) - w)
    assert (error <= 0.5001 * scale).all()
    if size > 1e-40:
        reached = np.abs(codes).max(axis=None if axis[0] is None else tuple(i for i in range(3) if i != axis[0] % 3))
        others = np.ones(reached.shape, bool)
        if axis[0] == 0:
            others[2] = False
        assert (reached[others] == 127).all()


# -- the definitions --------------------------------------------------------------------------------------------------


def test_sums_are_those_of_python_s_integers() -> None:
    x, w = np.array([[255, 0, 7], [3, 200, 90]], np.uint8), np.array([[127, -127, 5], [1, 2, -3]], np.int8)
    one, zero, scales = np.float32(1), np.array(90, np.int32), np.ones((2, 1), np.float32)
    y = OPS["integer_linear"].define(x, one, zero, w, scales)
    exact = [[sum((int(a) - 90) * int(c) for a, c in zip(row, column, strict=True)) for column in w] for row in x]
    np.testing.assert_array_equal(y, np.array(exact, np.float32))
    np.testing.assert_array_equal(OPS["integer_matmul"].define(x, one, zero, w.T, one, beta=1, alpha=1), y)
    # One row of pixels, padded with what means zero.
    attrs = {"stride": (1,), "padding": (1,), "dilation": (1,), "groups": 1}
    line = OPS["integer_conv1d"].define(x[:1, None], one, zero, w[:1, None], scales[:1, None], **attrs)
    a, b, c = (int(v) - 90 for v in x[0])
    np.testing.assert_array_equal(line, [[[-127 * a + 5 * b, 127 * a - 127 * b + 5 * c, 127 * b - 127 * c]]])


def test_the_scaling_rounds_after_each_operation() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (3, 70)).astype(np.uint8), weight(4, 70)
    scale, scales, bias = np.float32(0.0371), rng.random((4, 1)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    sums = (x.astype(np.int64) - 9) @ w.T.astype(np.int64)
    expected = sums.astype(np.float32) * scale * scales[:, 0] + bias
    np.testing.assert_array_equal(OPS["integer_linear"].define(x, scale, np.array(9, np.int32), w, scales, bias), expected)
    law = OPS["integer_linear"].define(x, np.float64(scale), np.array(9, np.int32), w, scales.astype(np.float64), bias)
    assert law.dtype == np.float64
    np.testing.assert_allclose(expected, law, rtol=1e-5)


# -- plans ------------------------------------------------------------------------------------------------------------

QUANTIZED = st.sampled_from([DYNAMIC, STATIC, {"scale": 0.05, "zero_point": 0}, {"scale": 0.05, "zero_point": 255}])
ENDINGS = st.sampled_from(["", "relu", "relu6"])
few = settings(max_examples=40, deadline=None)


@few
@given(
    st.sampled_from([1, 2, 3, 4, 5, 33]), st.sampled_from([1, 31, 64, 513, 520, 1100, 2000]), st.sampled_from([1, 7, 33, 70]), SEEDS,
    QUANTIZED, st.booleans(), ENDINGS, st.sampled_from(["integer_linear", "integer_matmul"]),
)  # fmt: skip
def test_linear(m: int, k: int, n: int, seed: int, quantized: Any, extreme: bool, ending: str, op: str) -> None:
    w = weight(n, k, seed=seed, extreme=extreme)
    x = data(2, m, k, seed=seed, extreme=extreme, special=seed % 2 == 0)
    equal(*product(op, x, w.T.copy() if op == "integer_matmul" else w, quantized=quantized, ending=ending))


@few
@given(
    st.sampled_from([1, 2]), st.sampled_from(["dense", "depthwise", "grouped", "spread"]), st.integers(1, 3), st.integers(1, 2),
    st.integers(1, 2), st.one_of(st.integers(0, 2), st.sampled_from(["same", "valid"])), SEEDS, QUANTIZED, st.booleans(), ENDINGS,
)  # fmt: skip
def test_convolutions(
    axes: int, kind: str, kernel: int, stride: int, dilation: int, pad: Any, seed: int, quantized: Any, extreme: bool, ending: str
) -> None:
    rng = np.random.default_rng(seed)
    groups, o, c = {"dense": (1, 9, 70), "depthwise": (40, 40, 1), "grouped": (16, 64, 4), "spread": (2, 10, 3)}[kind]
    if kind == "dense" and seed % 3:
        o, c = 33, 3
    w = weight(o, c, *(kernel,) * axes, seed=seed, extreme=extreme)
    sizes = rng.integers(dilation * (kernel - 1) + 1, 14, axes)
    x = data(2, c * groups, *sizes, seed=seed, extreme=extreme, special=seed % 2 == 0)
    attrs = {"stride": (1 if pad == "same" else stride,) * axes, "dilation": (dilation,) * axes, "groups": groups}
    attrs["padding"] = pad if isinstance(pad, str) else (pad,) * axes
    equal(*product(f"integer_conv{axes}d", x, w, quantized=quantized, ending=ending, **attrs))


@few
@given(st.sampled_from([1, 5, 40]), st.sampled_from([1, 32, 257, 300, 600]), st.sampled_from([1, 33]), SEEDS, QUANTIZED, st.booleans())
def test_two_computed_operands(m: int, k: int, n: int, seed: int, quantized: Any, extreme: bool) -> None:
    shared = (k, n) if seed % 2 else (2, 3, k, n)
    equal(*of_two(data(2, 3, m, k, seed=seed, extreme=extreme), data(*shared, seed=seed + 1, extreme=extreme), quantized))


@pytest.mark.parametrize("x", [-1.0, 1.0, 0.0, np.nan, np.inf, 1e-42, 3e38, -3e38])
def test_dynamic_ranges_of_one_sign(x: float) -> None:
    given = np.full((3, 40), x, np.float32)
    if np.isfinite(x):
        given[1, 1:] *= np.linspace(0, 1, 39)
    equal(*product("integer_linear", given, weight(33, 40)))


@pytest.mark.parametrize(("k", "natively"), [(66311, True), (66312, False)])
def test_sums_up_to_the_last_that_32_bits_hold(k: int, natively: bool) -> None:
    """255 * 127 * 66311 is the last such product below 2^31; beyond it, the definition runs."""
    quantized = {"scale": 1.0, "zero_point": 0}
    x = np.full((5, k), 300, np.float32)
    graph, inputs = product("integer_linear", x, np.full((2, k), 127, np.int8), quantized=quantized)
    (y,) = equal(graph, inputs, natively)
    assert y[0, 0] == np.float32(np.float32(255 * 127 * k) * np.float32(0.5))
    # Every sum on the way, too: positive first, then all of it taken back.
    w = np.where(np.arange(k) < k // 2, 127, -127).astype(np.int8)[None]
    (y,) = equal(*product("integer_linear", x, w, quantized=quantized), natively)
    assert y[0, 0] == 255 * 127 * (k // 2 - (k - k // 2)) * 0.5


@pytest.mark.parametrize(("k", "natively"), [(33025, True), (33026, False)])
def test_sums_of_two_activations(k: int, natively: bool) -> None:
    equal(*of_two(np.full((2, k), 300, np.float32), np.full((k, 3), 300, np.float32), {"scale": 1.0, "zero_point": 0}), natively)


def test_what_kernels_do_not_take_runs_as_defined() -> None:
    w = weight(3, 40)
    w[1, 7] = -128
    equal(*product("integer_linear", data(4, 40), w), natively=False)
    # The taps of a depthwise filter are summed in float32, which holds these no more.
    deep = data(1, 2, 600, extreme=True)
    equal(*product("integer_conv1d", deep, np.full((2, 1, 600), 127, np.int8), groups=2), natively=False)
    equal(*product("integer_conv1d", deep, np.full((2, 1, 500), 127, np.int8), groups=2))
    equal(*product("integer_linear", data(0, 40), w), natively=False)


def test_bias_and_residual_add_one_rounding_less() -> None:
    """Kernels multiply by the scale and add the bias at once."""
    x, w = data(9, 300), weight(40, 300)
    graph, inputs = product("integer_linear", x, w, bias=True)
    unbiased = interpret(product("integer_linear", x, w)[0], inputs)
    want, got = interpret(graph, inputs), Model(graph).run(inputs)
    assert (np.abs(want - got) <= 2.0**-23 * (np.abs(unbiased) + np.abs(want))).all()
    assert np.abs(want - unbiased).max() > 0.9


# -- graphs -----------------------------------------------------------------------------------------------------------


def network() -> Graph:
    """Of every op that has a counterpart but embeddings: attention between convolutions and linears."""
    rng = np.random.default_rng(5)
    b = GraphBuilder()

    def normal(name: str, *shape: int) -> str:
        return b.constant(name, rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])))

    x = b.input("x", ("B", 8, 6, 6), "float32")
    y = b.node("relu", (b.node("conv2d", (b.node("pad", (x,), {"pad": (1, 0, 1, 0)}), normal("c", 12, 8, 3, 3)), {"stride": (2, 2)}),))
    y = b.node("add", (b.node("conv2d", (y, normal("d", 12, 1, 3, 3)), {"padding": (1, 1), "groups": 12}), y))
    t = b.node("transpose", (b.node("flatten", (y,), {"start_dim": 2}),), {"dim0": 1, "dim1": 2})
    q, k, v = (b.node("linear", (t, normal(f"{name}.weight", 12, 12), None), name=name) for name in ("q", "k", "v"))
    a = b.node("softmax", (b.node("matmul", (q, b.node("transpose", (k,), {"dim0": 1, "dim1": 2}))),), {"dim": -1})
    y = b.node("matmul", (b.node("matmul", (a, v)), normal("o", 12, 10)))
    y = b.node(
        "conv1d", (b.node("addmm", (normal("e", 16), y, normal("f", 10, 16))), normal("g", 4, 9, 3), normal("h", 4)), {"padding": (1,)}
    )
    return b.finish(y)


def test_a_network_in_integers() -> None:
    graph = network()
    x = data(3, 8, 6, 6)
    seen: dict[str, tuple[float, float]] = {}
    exact = interpret(graph, {"x": x}, observe=lambda name, a: seen.update({name: (float(a.min()), float(a.max()))}))
    for small in (integers(graph), integers(graph, ranges=seen)):
        ops = [node.op for node in small.nodes]
        assert sum(op in INTEGER_OPS for op in ops) == 0
        # t is read by three linears: quantized once.
        assert ops.count("quantize_integer") == 10
        want = interpret(small, {"x": x})
        assert 1e-4 < np.linalg.norm(want - exact) / np.linalg.norm(exact) < 0.06
        model = Model(small)
        for batch in (3, 1, 3):
            got = model.run(x[:batch])
            # A sum that is rounded otherwise may fall on the other side of a step of the next activation.
            np.testing.assert_allclose(got, interpret(small, {"x": x[:batch]}), atol=0.02 * np.abs(want).max())
            assert native(model)
        apart, together = (interpret(g, {"x": x}, dtype=np.float64) for g in (small, fused(small)))
        np.testing.assert_array_equal(together, apart)


def test_zeros_around_a_picture_stay_zero_at_every_size() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 8, "H", "W"), "float32")
    codes = b.node("quantize_integer", (x,), STATIC)
    one = b.constant("s", np.float32(1))
    y = b.node("integer_conv2d", (*codes, b.constant("w", weight(8, 1, 5, 5)), one), {"padding": (2, 2), "groups": 8})
    z = b.node("integer_conv2d", (*codes, b.constant("v", weight(5, 8, 1, 3)), one), {"padding": (0, 1), "stride": (1, 2)})
    model = Model(b.finish((y, z, codes[0], codes[1], codes[2])))
    for size in [(1, 8, 8), (2, 5, 9), (1, 8, 8), (3, 2, 2)]:
        equal(model.graph, {"x": data(size[0], 8, *size[1:])}, natively=False, model=model)


def tables() -> Graph:
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    table = b.constant("table", rng.normal(size=(20, 18)))
    ids, bags = b.input("ids", ("B", 3), "int64"), b.input("bags", ("B", 4), "int64")
    y = b.node("embedding", (table, ids))
    z = b.node("embedding_bag", (table, bags), {"mode": "max", "padding_idx": 2})
    return b.finish((y, z))


def test_tables() -> None:
    graph = tables()
    small = integers(graph)
    # One table, whoever reads it.
    assert list(small.constants) == ["table.int8", "table.int8.scale"]
    inputs = {"ids": np.array([[0, 19, 7]]), "bags": np.array([[2, 5, 2, 6]])}
    for got, want, floats in zip(equal(small, inputs, natively=False), interpret(small, inputs), interpret(graph, inputs), strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_allclose(got, floats, atol=0.02)


@pytest.mark.parametrize(
    ("graph", "inputs"),
    [
        (network(), {"x": data(2, 8, 6, 6)}),
        (tables(), {"ids": np.zeros((1, 3), np.int64), "bags": np.ones((1, 4), np.int64)}),
    ],
    ids=["network", "tables"],
)
def test_a_file_keeps_it(graph: Graph, inputs: Any, tmp_path: Path) -> None:
    small = integers(graph)
    save(small, tmp_path / "m.safetensors")
    again = load_graph(tmp_path / "m.safetensors")
    assert again.nodes == small.nodes
    assert {c.dtype.name for name, c in again.constants.items() if name.endswith(".int8")} == {"int8"}
    for a, b in zip(leaves(Model(again).run(inputs)), leaves(Model(small).run(inputs)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_report_knows_them() -> None:
    graph = network()
    small = integers(graph)
    static = Scheme(INT8, PerTensor(), dynamic=True)
    node = next(node for node in graph.nodes if node.name == "q")
    decision = Decision("q", {0: static, 1: Scheme(INT8, PerChannel(0))})
    report = make_report(graph, small, "int8", [decision], load_batches({"x": data(4, 8, 6, 6)}, inputs=graph.inputs))
    (layer,) = report.layers
    assert layer.how == "int8 channel 0 x int8 dynamic"
    kept = integer_weight(small, next(n for n in small.nodes if n.name == "q"), "weight")
    assert kept is not None
    w = graph.constants[str(node.inputs[1])]
    assert layer.weight_sqnr == pytest.approx(10 * np.log10((w**2).sum() / ((kept - w) ** 2).sum()), rel=1e-6)
    assert layer.bytes_after == 12 * 12 + 12 * 4


def one(op: str, *shapes: tuple[int, ...], constants: int = 1, **attrs: Any) -> Graph:
    b = GraphBuilder()
    names = [b.constant("w", np.ones(s)) if i >= len(shapes) - constants else b.input(f"x{i}", s, "float32") for i, s in enumerate(shapes)]
    y = b.node(op, tuple(names), attrs)
    return b.finish(y if isinstance(y, str) else y[0])


def test_what_cannot_be_written() -> None:
    graph = one("linear", (3, 4), (5, 4))
    writer = IntegerWriter(graph, Names.beside(graph), {})
    node, static, channel = graph.nodes[0], Scheme(INT8), Scheme(INT8, PerChannel(0))
    with pytest.raises(CalibrationError, match="'x0' has not been calibrated"):
        writer.write(node, {0: static, 1: channel})
    with pytest.raises(RecipeError, match=r"one scale for x.*one for each token"):
        writer.write(node, {0: Scheme(INT8, PerToken(), dynamic=True), 1: channel})
    with pytest.raises(RecipeError, match="of any size; got 1"):
        writer.write(node, {0: Scheme(INT8, direct=True), 1: channel})
    other = one("add", (3, 4), (3, 4), constants=0)
    with pytest.raises(RecipeError, match="int8 does not cover add"):
        IntegerWriter(other, Names.beside(other), {}).write(other.nodes[0], {0: static})


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "error", "message"),
    [
        ("quantize_integer", [("x", (3,), "int32")], STATIC, DTypeError, "expected float32"),
        ("quantize_integer", [("x", (3,), "float32")], {"scale": 1.0, "zero_point": None}, ScaleError, "both scale and zero_point"),
        ("quantize_integer", [("x", (3,), "float32")], {"scale": -1.0, "zero_point": 0}, ScaleError, "positive scale"),
        ("quantize_integer", [("x", (3,), "float32")], {"scale": 1.0, "zero_point": 256}, ScaleError, "zero_point in 0..255"),
    ],
)
def test_refused(op: str, inputs: list[Any], attrs: Any, error: type[Exception], message: str) -> None:
    b = GraphBuilder()
    with pytest.raises((error, GraphError), match=message):
        b.node(op, tuple(b.input(*i) for i in inputs), attrs)


def test_operands_are_checked() -> None:
    b = GraphBuilder()
    codes = b.node("quantize_integer", (b.input("x", (3, 4), "float32"),), STATIC)
    w, s, floats = b.constant("w", weight(5, 4)), b.constant("s", np.ones((5, 1))), b.constant("f", np.ones((5, 4)))
    for operands, message in [
        ((codes[0], codes[1], codes[1], w, s), "zero point int32"),
        ((*codes, floats, s), "a weight int8"),
        ((*codes, w, b.constant("t", np.ones((1, 4)))), r"scales \(5, 1\)"),
        ((*codes, b.constant("v", weight(5, 3)), s), r"x \(..., K\) and weight \(N, K\)"),
        ((*codes, w, s, b.constant("b", np.ones(4))), "bias"),
    ]:
        with pytest.raises(GraphError, match=message):
            b.node("integer_linear", operands)


def test_it_is_no_fp8() -> None:
    assert str(INT8) == INT8.short == "int8"
    assert Scheme(INT8) != Scheme(get_format("e4m3fn"))
