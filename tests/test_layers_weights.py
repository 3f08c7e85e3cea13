"""Ops with weights, products, norms and attention: their definitions against PyTorch's operators, their FP8 steps against float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _layers import check_op, torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.codec import dequantize, quantize
from fp8np.errors import DTypeError, InputError, ShapeError
from fp8np.formats import finfo
from fp8np.kernels._table import select
from fp8np.layers._op import OPS, Call, Op, Spec, Step
from fp8np.layers._recurrent import one_step
from fp8np.layers.gru import _cell as gru_cell
from fp8np.layers.lstm import _cell as lstm_cell
from fp8np.tensor import QTensor

MODULES = (
    "attention",
    "batch_norm",
    "conv",
    "conv_transpose",
    "einsum",
    "embedding",
    "group_norm",
    "gru",
    "layer_norm",
    "lstm",
    "matmul",
    "rms_norm",
    "softmax",
)
FOREIGN = {
    foreign.name: (row, foreign)
    for row in OPS.values()
    for foreign in row.torch
    if row.shape.__module__ in {f"fp8np.layers.{m}" for m in MODULES}
}


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def indices(*shape: int, below: int = 7) -> Any:
    return np.random.default_rng(shape).integers(0, below, shape)


# --- definitions, by the operators that mean them


def as_call(name: str, args: tuple[Any, ...]) -> tuple[Op, tuple[Any, ...], dict[str, Any]]:
    """The inputs and attributes that a call of an ATen operator becomes, as a converter does it."""
    row, foreign = FOREIGN[name]
    named = {**foreign.attrs, **{ours: value for ours, value in zip(foreign.args, args, strict=False) if ours}}
    if foreign.convert is not None:
        named = foreign.convert(named)
    inputs: list[Any] = []
    for mark in row.inputs:
        value = named.pop(mark.rstrip("?*"), None)
        inputs += value if mark.endswith("*") else [value]
    return row, tuple(inputs), {k: tuple(v) if isinstance(v, list) else v for k, v in named.items()}


def check_aten(name: str, *args: Any, symbolic: Any = None, rtol32: float = 1e-4) -> None:
    """Checks the op that an ATen operator means against that operator."""
    packet, overload = name.removeprefix("aten.").split(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload)
    positional = operator._schema.arguments
    tensors = [_tensors(arg) for arg in args]
    # Arguments after the star of the schema go by name.
    by_name = {a.name: v for a, v in zip(positional, tensors, strict=False) if a.kwarg_only}
    by_place = [v for a, v in zip(positional, tensors, strict=False) if not a.kwarg_only]
    expected = operator(*by_place, **by_name)
    row, inputs, attrs = as_call(name, args)
    # Some operators return more than the op does: what training needs.
    result = expected if isinstance(expected, torch.Tensor) or row.name in ("lstm", "lstm_cell", "gru") else expected[0]
    check_op(row.name, inputs, attrs, lambda *_: result, symbolic=symbolic, rtol32=rtol32)


def _tensors(arg: Any) -> Any:
    if isinstance(arg, list) and arg and isinstance(arg[0], np.ndarray):
        return [torch.from_numpy(a) for a in arg]
    return torch.from_numpy(arg) if isinstance(arg, np.ndarray) else arg


def recurrent_weights(gates: int, inputs: int, hidden: int, layers: int, directions: int, bias: bool) -> list[Any]:
    weights = []
    for cell in range(layers * directions):
        size = inputs if cell < directions else hidden * directions
        weights += [normal(gates * hidden, size, seed=cell) / 2, normal(gates * hidden, hidden, seed=cell) / 2]
        weights += [normal(gates * hidden, seed=cell + s) for s in (10, 20)] if bias else []
    return weights


BHW = {0: {0: "B", 2: "H", 3: "W"}}
BT = {0: {0: "B", 1: "T"}}
CONV = [
    ((2, 3, 9, 8), (4, 3, 3, 3), [1, 1], [0, 0], [1, 1], 1),
    ((2, 3, 9, 8), (4, 3, 3, 2), [2, 3], [1, 2], [2, 1], 1),
    ((1, 6, 7, 7), (4, 3, 3, 3), [2, 1], [1, 0], [1, 2], 2),
    ((2, 4, 9, 8), (4, 1, 3, 3), [2, 2], [1, 1], [1, 1], 4),
    ((2, 4, 9, 8), (8, 1, 3, 5), [1, 2], [1, 2], [2, 1], 4),
    ((2, 5, 6, 5), (3, 5, 1, 1), [1, 1], [0, 0], [1, 1], 1),
    ((1, 1, 6, 6), (3, 1, 6, 6), [1, 1], [0, 0], [1, 1], 1),
    ((3, 5, 4), (2, 3, 3, 2), [1, 1], [1, 1], [1, 1], 1),
    ((0, 3, 5, 5), (2, 3, 3, 3), [1, 1], [1, 1], [1, 1], 1),
]


@pytest.mark.parametrize(("x", "weight", "stride", "padding", "dilation", "groups"), CONV)
def test_conv2d(x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    symbolic = BHW if len(x) == 4 else None
    check_aten("aten.conv2d.default", normal(*x), normal(*weight), None, stride, padding, dilation, groups, symbolic=symbolic)
    check_aten("aten.conv2d.default", normal(*x), normal(*weight), normal(weight[0]), stride, padding, dilation, groups)
    if stride == [1, 1]:
        for text in ("same", "valid"):
            if text == "same" or min(x[-2:]) >= max(weight[2:]):
                args = normal(*x), normal(*weight), normal(weight[0]), stride, text, dilation, groups
                check_aten("aten.conv2d.padding", *args, symbolic=symbolic)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([(1, 3, 2), (2, 2, 1), (3, 1, 2), (4, 1, 1)]),
    *(st.tuples(st.integers(1, 3), st.integers(1, 3)) for _ in range(3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(7, 12), st.integers(7, 12)),
)
def test_conv2d_of_any_geometry(b: int, channels: Any, kernel: Any, stride: Any, dilation: Any, padding: Any, size: Any) -> None:
    groups, inputs, outputs = channels
    x, weight = normal(b, groups * inputs, *size), normal(groups * outputs, inputs, *kernel)
    check_aten("aten.conv2d.default", x, weight, None, list(stride), list(padding), list(dilation), groups, symbolic=BHW)


@pytest.mark.parametrize(
    ("x", "weight", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3, 9), (4, 3, 3), [1], [0], [1], 1),
        ((2, 4, 9), (6, 2, 4), [2], [3], [2], 2),
        ((2, 4, 9), (4, 1, 3), [3], [1], [1], 4),
        ((1, 1, 32), (5, 1, 8), [4], [0], [1], 1),
        ((3, 9), (4, 3, 2), [1], [0], [3], 1),
    ],
)
def test_conv1d(x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    symbolic = {0: {0: "B", 2: "L"}} if len(x) == 3 else None
    check_aten("aten.conv1d.default", normal(*x), normal(*weight), normal(weight[0]), stride, padding, dilation, groups, symbolic=symbolic)
    if stride == [1]:
        check_aten("aten.conv1d.padding", normal(*x), normal(*weight), None, stride, "same", dilation, groups, symbolic=symbolic)


CONV_TRANSPOSE = [
    ((2, 3, 5, 4), (3, 4, 3, 3), [1, 1], [0, 0], [0, 0], 1, [1, 1]),
    ((2, 3, 5, 4), (3, 4, 3, 2), [2, 3], [1, 2], [1, 2], 1, [2, 1]),
    ((1, 6, 4, 4), (6, 2, 4, 4), [2, 2], [1, 1], [0, 0], 3, [1, 1]),
    ((2, 4, 4, 5), (4, 1, 3, 3), [2, 1], [0, 1], [1, 0], 4, [1, 2]),
    ((3, 5, 4), (3, 2, 1, 2), [3, 3], [0, 0], [2, 1], 1, [1, 1]),
]


@pytest.mark.parametrize(("x", "weight", "stride", "padding", "extra", "groups", "dilation"), CONV_TRANSPOSE)
def test_conv_transpose2d(x: Any, weight: Any, stride: Any, padding: Any, extra: Any, groups: int, dilation: Any) -> None:
    symbolic = BHW if len(x) == 4 else None
    bias = normal(weight[1] * groups)
    check_aten(
        "aten.conv_transpose2d.input", normal(*x), normal(*weight), bias, stride, padding, extra, groups, dilation, symbolic=symbolic
    )
    check_aten("aten.conv_transpose2d.input", normal(*x), normal(*weight), None, stride, padding, extra, groups, dilation)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose1d(groups: int) -> None:
    args = normal(2, 4, 6), normal(4, 3, 5), normal(3 * groups), [3], [2], [1], groups, [2]
    check_aten("aten.conv_transpose1d.default", *args, symbolic={0: {0: "B", 2: "L"}})


def test_embedding() -> None:
    check_aten("aten.embedding.default", normal(7, 4), indices(2, 3), 0, symbolic={1: {0: "B", 1: "T"}})
    check_aten("aten.embedding.default", normal(7, 4), indices(1)[0:0], -1)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("padding", [None, 3])
def test_embedding_bag(mode: int, padding: int | None) -> None:
    weight, ids = normal(7, 4), indices(9)
    # An empty bag in the middle, and one at the end.
    for offsets, last in (([0, 1, 1, 5], False), ([0, 1, 1, 5, 9], True), ([0, 9], False)):
        args = weight, ids, np.array(offsets), False, mode, False, None, last
        check_aten("aten.embedding_bag.padding_idx", *args, padding, symbolic={1: {0: "N"}, 2: {0: "B"}})
        check_aten("aten.embedding_bag.default", *args)
    if mode == 0:
        args = weight, ids, np.array([0, 4]), False, 0, False, normal(9), False, padding
        check_aten("aten.embedding_bag.padding_idx", *args)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag_of_rows(mode: str) -> None:
    check_op(
        "embedding_bag",
        (normal(7, 4), indices(5, 3)),
        {"mode": mode},
        lambda weight, ids: torch.nn.functional.embedding_bag(ids, weight, mode=mode),
        symbolic={1: {0: "B", 1: "L"}},
    )


@pytest.mark.parametrize("op", ["embedding", "embedding_bag"])
def test_embedding_refuses_an_index_out_of_range(op: str) -> None:
    row = OPS[op]
    for wrong in (-1, 7):
        with pytest.raises(InputError, match=rf"{op}: expected indices in 0..6; got .*{wrong}"):
            row.define(normal(7, 4), np.array([[0, wrong]]), **row.filled({}))


def test_embedding_bag_refuses_offsets_that_are_none() -> None:
    row = OPS["embedding_bag"]
    for offsets in ([1, 2], [0, 3, 2], [0, 9]):
        with pytest.raises(InputError, match="embedding_bag: expected offsets from 0, not decreasing, at most 5"):
            row.define(normal(7, 4), indices(5), np.array(offsets), **row.filled({}))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3), (3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (6, 3, 4)),
        ((3,), (3, 4)),
        ((5, 2, 3), (3,)),
        ((3,), (3,)),
    ],
)
def test_matmul(a: Any, b: Any) -> None:
    check_aten("aten.matmul.default", normal(*a), normal(*b), symbolic={0: {0: "A"}} if len(a) > 1 and a[0] == 5 != b[0] else None)
    check_aten("aten.linalg_matmul.default", normal(*a), normal(*b))
    name = {(2, 2): "aten.mm.default", (3, 3): "aten.bmm.default", (1, 1): "aten.dot.default"}.get((len(a), len(b)))
    if name:
        check_aten(name, normal(*a), normal(*b))


def test_matmul_of_a_vector() -> None:
    check_aten("aten.mv.default", normal(4, 3), normal(3))
    check_aten("aten.addmv.default", normal(4), normal(4, 3), normal(3), 0.5, 2)


@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (0.5, 2), (0, 1)])
def test_addmm(beta: float, alpha: float) -> None:
    for c in ((4,), (2, 4), (1, 1)):
        check_aten("aten.addmm.default", normal(*c), normal(2, 3), normal(3, 4), beta, alpha, symbolic={1: {0: "M"}} if c == (4,) else None)
    check_aten("aten.baddbmm.default", normal(5, 2, 1), normal(5, 2, 3), normal(5, 3, 4), beta, alpha)


def test_addmm_does_not_read_c_with_beta_0() -> None:
    y = OPS["addmm"].define(np.full(4, np.nan), normal(2, 3), normal(3, 4), beta=0, alpha=1)
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("bihd,bjhd->bhij", [(2, 3, 4, 5), (2, 6, 4, 5)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ba, Cb", [(2, 3), (4, 2)]),
        ("...ij,...j->...i", [(2, 1, 3, 4), (5, 4)]),
        ("...ij->ij", [(2, 3, 4)]),
        ("i...j->...", [(2, 3, 4)]),
        ("i,j,k->kij", [(2,), (3,), (4,)]),
        ("ii->i", [(3, 3)]),
        ("ii", [(3, 3)]),
        ("ij,jk->ik", [(2, 1), (3, 4)]),
        ("ij->", [(2, 3)]),
    ],
)
def test_einsum(equation: str, shapes: Any) -> None:
    symbolic = {0: {0: "B"}, 1: {0: "B"}} if equation.startswith("b") and "->" in equation else None
    check_aten("aten.einsum.default", equation, [normal(*s, seed=i) for i, s in enumerate(shapes)], symbolic=symbolic)


def test_batch_norm() -> None:
    mean, var, weight, bias = normal(3, seed=1), np.abs(normal(3, seed=2)), normal(3, seed=3), normal(3, seed=4)
    for x, affine in (((2, 3, 4, 5), (weight, bias)), ((2, 3), (None, None)), ((2, 3, 4), (weight, None)), ((2, 3, 1), (None, bias))):
        check_aten("aten.batch_norm.default", normal(*x), *affine, mean, var, False, 0.1, 1e-3, False, symbolic={0: {0: "B"}})
    check_aten("aten._native_batch_norm_legit_no_training.default", normal(2, 3, 4), weight, bias, mean, var, 0.1, 1e-3)


def test_batch_norm_of_a_model_in_training_is_refused() -> None:
    for training, mean in ((True, "mean"), (False, None)):
        with pytest.raises(ValueError, match=r"model\.eval\(\)|statistics"):
            as_call("aten.batch_norm.default", ("x", None, None, mean, "var", training, 0.1, 1e-5, False))


def test_norms() -> None:
    x, weight, bias = normal(2, 6, 4, 5), normal(4, 5), normal(4, 5, seed=1)
    for pair in ((weight, bias), (None, None), (weight, None), (None, bias)):
        check_aten("aten.layer_norm.default", x, [4, 5], *pair, 1e-5, symbolic=BT)
    check_aten("aten.layer_norm.default", x, [5], normal(5), normal(5, seed=1), 1e-12, symbolic={0: {0: "A", 1: "B", 2: "C"}})
    for affine in (weight, None):
        check_aten("aten.rms_norm.default", x, [4, 5], affine, 1e-5, symbolic=BT)
    channels = normal(6), normal(6, seed=1)
    for groups in (1, 2, 6):
        check_aten("aten.group_norm.default", x, groups, *channels, 1e-5, symbolic={0: {0: "B", 2: "H"}})
    check_aten("aten.group_norm.default", x, 3, None, None, 1e-5)
    check_aten("aten.instance_norm.default", x, *channels, None, None, True, 0.1, 1e-5, False, symbolic={0: {0: "B", 2: "H"}})


def test_rms_norm_without_eps_has_that_of_float32() -> None:
    x = normal(2, 4) * 1e-4
    _, _, attrs = as_call("aten.rms_norm.default", (x, [4], None, None))
    want = torch.nn.functional.rms_norm(torch.from_numpy(x).float(), [4]).numpy()
    np.testing.assert_allclose(OPS["rms_norm"].define(x.astype(np.float32), **attrs), want, rtol=1e-5)


def test_instance_norm_by_running_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="track_running_stats"):
        as_call("aten.instance_norm.default", ("x", None, None, "mean", "var", False, 0.1, 1e-5, False))


@pytest.mark.parametrize(
    ("name", "inner"),
    [("aten.softmax.int", "aten._softmax.default"), ("aten.log_softmax.int", "aten._log_softmax.default")],
)
def test_softmax(name: str, inner: str) -> None:
    large = np.array([[1e4, 0, -1e4], [-np.inf, 0, 1]])
    for x in (normal(2, 3, 4), large):
        for dim in (0, -1, 1):
            check_aten(name, x, dim, symbolic=BT)
            check_aten(inner, x, dim, False)
    check_aten(name, np.array(2.0), 0)
    # A row with nothing in it is NaN, in PyTorch too.
    check_aten(name, np.full((2, 3), -np.inf), 1)


def mask(kind: str, *shape: int) -> Any:
    seen = np.random.default_rng(shape).random(shape) < 0.6
    seen[..., 0, :] = False  # the first query sees nothing
    return seen if kind == "bool" else np.where(seen, normal(*shape), -np.inf)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(kind: str, scale: float | None) -> None:
    q, k, v = normal(2, 4, 3, 8), normal(2, 4, 5, 8), normal(2, 4, 5, 6)
    mapped = "aten.scaled_dot_product_attention.default"
    symbolic = {0: {0: "B", 2: "L"}, 1: {0: "B", 2: "S"}, 2: {0: "B", 2: "S"}}
    for shape in ((3, 5), (2, 1, 3, 5), (2, 4, 3, 5)):
        given = None if kind == "none" else mask(kind, *shape)
        check_aten(mapped, q, k, v, given, 0.0, False, scale, symbolic=symbolic if given is None else None)
        check_aten(mapped, q, k[:, :2], v[:, :2], given, 0.0, False, scale, True)
    check_aten(mapped, q[0, 0], k[0, 0], v[0, 0], None, 0.0, False, scale)
    check_aten(mapped, q, k, v, None, 0.0, True, scale)


@pytest.mark.parametrize("gates", [4, 3])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (3, False), (2, True)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent(gates: int, layers: int, bidirectional: bool, batch_first: bool, bias: bool) -> None:
    directions = 1 + bidirectional
    x = normal(3, 4, 5)
    weights = recurrent_weights(gates, 5, 6, layers, directions, bias)
    h, c = (normal(layers * directions, 3 if batch_first else 4, 6, seed=s) for s in (1, 2))
    name, state = ("aten.lstm.input", [h, c]) if gates == 4 else ("aten.gru.input", h)
    batch = {1: {1: "B"}} | ({2: {1: "B"}} if gates == 4 else {})
    symbolic = {0: {0: "B", 1: "T"} if batch_first else {0: "T", 1: "B"}, **batch}
    check_aten(name, x, state, weights, bias, layers, 0.0, False, bidirectional, batch_first, symbolic=symbolic)


def test_an_lstm_with_projections_is_refused() -> None:
    with pytest.raises(ValueError, match="proj_size"):
        as_call("aten.lstm.input", ("x", ["h", "c"], ["w"] * 5, True, 1, 0.0, False, False, False))


def test_a_state_left_out_is_zeros() -> None:
    x, weights = normal(3, 4, 5), recurrent_weights(4, 5, 6, 1, 1, True)
    row, zeros = OPS["lstm"], np.zeros((1, 4, 6))
    for got, want in zip(
        row.define(x, None, None, *weights, **row.filled({})), row.define(x, zeros, zeros, *weights, **row.filled({})), strict=True
    ):
        np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("bias", [False, True])
def test_cells(bias: bool) -> None:
    x, h, c = normal(3, 5), normal(3, 6, seed=1), normal(3, 6, seed=2)
    symbolic = {0: {0: "B"}, 1: {0: "B"}}
    lstm, gru = (recurrent_weights(gates, 5, 6, 1, 1, bias) for gates in (4, 3))
    check_aten("aten.lstm_cell.default", x, [h, c], *lstm, symbolic=symbolic | {2: {0: "B"}})
    check_aten("aten.gru_cell.default", x, h, *gru, symbolic=symbolic)


def test_a_gate_far_from_zero_does_not_overflow() -> None:
    """e^-x overflows in float32 below x = -88; with warnings as errors this would be seen."""
    x, h = np.full((1, 1), -200, np.float32), np.zeros((1, 1), np.float32)
    ones = np.ones((4, 1), np.float32)
    for y in OPS["lstm_cell"].define(x, h, h, ones, ones):
        np.testing.assert_array_equal(y, 0)


def test_every_operator_of_these_modules_is_checked() -> None:
    """Each name in a `torch=` of these modules stands in a check above."""
    assert set(FOREIGN) <= set(re.findall(r'"(aten\.\S+?)"', Path(__file__).read_text(encoding="utf-8")))


# --- shape rules refuse


def f32(*shape: int) -> Spec:
    return Spec(shape)


WRONG: list[tuple[str, tuple[Spec | None, ...], dict[str, Any], str]] = [
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 2, 3, 3)), {}, r"conv2d: expected x \(\.\.\., C, H, W\) and weight \(O, C/1, kh, kw\); got x"),
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3), f32(3)), {}, r"conv2d: expected bias \(4\); got bias float32\[3\]"),
    ("conv2d", (f32(2, 3, 2, 8), f32(4, 3, 3, 3)), {}, "conv2d: expected a padded x at least as large as the kernel"),
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3)), {"stride": (0, 1)}, r"conv2d: expected positive stride; got stride \(0, 1\)"),
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3)), {"stride": (1,)}, "conv2d: expected 2 strides and dilations"),
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3)), {"padding": "same", "stride": (2, 2)}, 'with stride 1, "same"; got padding same'),
    ("conv2d", (f32(2, 4, 8, 8), f32(3, 2, 3, 3)), {"groups": 2}, "C/2"),
    ("conv1d", (f32(2, 3, 8), f32(4, 2, 3)), {}, r"conv1d: expected x \(\.\.\., C, L\)"),
    ("conv1d", (f32(2, 3, 8), f32(4, 3, 3)), {"padding": (-1,)}, "conv1d: expected 1 non-negative paddings"),
    ("conv_transpose2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3)), {}, r"weight \(C, O/1, kh, kw\); got x"),
    ("conv_transpose2d", (f32(2, 4, 8, 8), f32(4, 3, 3, 3), f32(3)), {"groups": 2}, r"expected bias \(6\); got bias"),
    ("conv_transpose2d", (f32(2, 4, 1, 1), f32(4, 3, 1, 1)), {"padding": (1, 1)}, "padding that leaves a result"),
    ("conv_transpose1d", (f32(2, 4, 8), f32(4, 3, 3)), {"stride": (1, 1)}, "conv_transpose1d: expected 1 of each"),
    ("embedding", (f32(4), Spec((2,), "int64")), {}, r"embedding: expected weight \(V, D\); got weight float32\[4\]"),
    ("embedding_bag", (f32(4, 2), Spec((2,), "int64")), {}, r"indices \(B, L\) or indices \(N,\) and offsets \(B,\)"),
    ("embedding_bag", (f32(4, 2), Spec((2, 2), "int64")), {"mode": "min"}, "mode among sum, mean, max; got mode min"),
    ("embedding_bag", (f32(4, 2), Spec((2, 2), "int64"), None, f32(2, 2)), {}, "per_sample_weights only with mode sum"),
    ("matmul", (f32(2, 3), f32(4, 3)), {}, r"matmul: expected a \(\.\.\., M, K\) and b \(\.\.\., K, N\); got a float32\[2, 3\]"),
    ("matmul", (f32(5, 2, 3), f32(4, 3, 2)), {}, "matmul: shapes do not broadcast"),
    ("matmul", (f32(), f32(3)), {}, "matmul: expected a"),
    ("addmm", (f32(3), f32(2, 3), f32(3, 4)), {}, "addmm: shapes do not broadcast"),
    ("addmm", (f32(5, 2, 4), f32(2, 3), f32(3, 4)), {}, r"addmm: expected c that broadcasts to float32\[2, 4\]"),
    ("einsum", (f32(2, 3), f32(4, 5)), {"equation": "ij,jk->ik"}, "axis 'j': shapes do not broadcast"),
    ("einsum", (f32(2, 3),), {"equation": "ij,jk->ik"}, "expected 1 terms for 1 operands"),
    ("einsum", (f32(2, 3),), {"equation": "ij->ii"}, "each once"),
    ("einsum", (f32(2, 3),), {"equation": "ij->ik"}, "a result of letters that operands have"),
    ("einsum", (f32(2, 3),), {"equation": "i1->i"}, "an equation such as"),
    ("einsum", (f32(2, 3),), {"equation": "ijk"}, "an operand with axes 'ijk'"),
    ("batch_norm", (f32(2, 3), f32(3), f32(4)), {}, r"batch_norm: expected running_var \(3\); got running_var float32\[4\]"),
    ("batch_norm", (f32(3), f32(3), f32(3)), {}, r"batch_norm: expected x \(B, C, \.\.\.\)"),
    ("layer_norm", (f32(2, 3),), {"normalized_shape": (2,)}, "layer_norm: expected x that ends in normalized_shape"),
    ("layer_norm", (f32(2, 3), f32(2)), {"normalized_shape": (3,)}, r"layer_norm: expected weight \(3\)"),
    ("rms_norm", (f32(2, 3),), {"normalized_shape": ()}, "rms_norm: expected x that ends"),
    ("group_norm", (f32(2, 6),), {"num_groups": 4}, r"group_norm: expected x \(B, C, \.\.\.\) with C a multiple of 4"),
    ("instance_norm", (f32(2, 6), f32(5)), {}, r"instance_norm: expected weight \(6\)"),
    ("softmax", (f32(2, 3),), {"dim": 2}, "softmax: expected an axis of 2, got 2"),
    ("log_softmax", (f32(2, 3),), {"dim": -3}, "log_softmax: expected an axis of 2, got -3"),
    ("scaled_dot_product_attention", (f32(2, 3), f32(4, 5), f32(4, 5)), {}, r"key \(\.\.\., S, E\)"),
    ("scaled_dot_product_attention", (f32(2, 3), f32(4, 3), f32(4, 5), f32(3, 4)), {}, "do not broadcast"),
    ("scaled_dot_product_attention", (f32(2, 3), f32(4, 3), f32(4, 5), Spec((2, 4), "int64")), {}, "attn_mask of bool or float32"),
    ("scaled_dot_product_attention", (f32(3, 2, 3), f32(2, 4, 3), f32(2, 4, 5)), {"enable_gqa": True}, "a multiple of the key"),
    ("lstm", (f32(3, 4, 5), None, None, f32(24, 5), f32(24, 6)), {}, "lstm: expected 4 weights, 4 for each layer and direction"),
    ("lstm", (f32(3, 4, 5), None, None, f32(24, 4), f32(24, 6)), {"bias": False}, r"lstm, cell 0: expected weight_ih \(24, 5\)"),
    ("lstm", (f32(3, 4, 5), f32(1, 3, 6), None, f32(24, 5), f32(24, 6)), {"bias": False}, r"lstm: expected h0 \(1, 4, 6\)"),
    ("gru", (f32(3, 4), None, f32(18, 5), f32(18, 6)), {"bias": False}, r"gru: expected x \(T, B, I\), or with batch_first"),
    ("gru", (f32(3, 4, 5), None, f32(24, 5), f32(24, 6)), {"bias": False}, r"gru, cell 0: expected weight_ih \(18, 5\)"),
    ("lstm_cell", (f32(4, 5), f32(4, 6), f32(3, 6), f32(24, 5), f32(24, 6)), {}, r"lstm_cell: expected c \(4, 6\)"),
    ("gru_cell", (f32(4, 5), f32(3, 6), f32(18, 5), f32(18, 6)), {}, r"gru_cell: expected x \(B, I\) and h \(B, H\)"),
]


@pytest.mark.parametrize(("op", "specs", "attrs", "message"), WRONG)
def test_a_wrong_shape_is_named(op: str, specs: Any, attrs: Any, message: str) -> None:
    row = OPS[op]
    with pytest.raises(ShapeError, match=message) as error:
        row.shape(*specs, **row.filled(attrs))
    assert op in str(error.value)


@pytest.mark.parametrize(
    ("op", "specs", "message"),
    [
        ("conv2d", (Spec((2, 3, 8, 8), "int64"), f32(4, 3, 3, 3)), r"conv2d: expected x in float32 or FP8; got int64\[2, 3, 8, 8\]"),
        ("embedding", (f32(4, 2), f32(3)), r"embedding: expected indices of an integer type; got float32\[3\]"),
        ("matmul", (f32(2, 3), Spec((3, 2), "bool")), "matmul: expected b in float32 or FP8"),
    ],
)
def test_a_wrong_type_is_named(op: str, specs: Any, message: str) -> None:
    row = OPS[op]
    with pytest.raises(DTypeError, match=message):
        row.shape(*specs, **row.filled({}))


# --- bound: FP8 codes go to the kernels

FORMATS = [("e4m3fn", "e4m3fn"), ("e5m2", "e3m4fn"), ("e4m3fnuz", "e3m4")]


def fp8(array: Any, fmt: str, axis: int | None = None) -> QTensor:
    return quantize(array.astype(np.float32), fmt, axis=axis)


def bound(name: str, inputs: tuple[Any, ...], constants: tuple[int, ...], attrs: Any) -> Step | None:
    """The step that a plan would run; `constants` are the positions of weights."""
    row = OPS[name]
    assert row.bind is not None
    specs = tuple(None if x is None else Spec(x.shape, x.format.name if isinstance(x, QTensor) else x.dtype.name) for x in inputs)
    known = tuple(x if i in constants else None for i, x in enumerate(inputs))
    return row.bind(Call(specs, known, row.filled(attrs), lambda i, key, make: make(inputs[i])), select)


def exact(x: Any) -> Any:
    return None if x is None else dequantize(x, dtype=np.float64) if isinstance(x, QTensor) else x.astype(np.float64)


def gamma(n: int) -> float:
    """The relative error of n roundings to float32 (Higham, Accuracy and Stability, lemma 3.1)."""
    return n * 2.0**-24 / (1 - n * 2.0**-24)


def check_fp8(name: str, inputs: tuple[Any, ...], constants: tuple[int, ...], terms: int, attrs: Any) -> None:
    """The bound step against the definition in float64 on what the codes mean, within gamma * sum |a| |b|."""
    row = OPS[name]
    step = bound(name, inputs, constants, attrs)
    assert step is not None
    got = step(*inputs)
    arrays = [exact(x) for x in inputs]
    want = row.define(*arrays, **row.filled(attrs))
    size = row.define(*(None if x is None else np.abs(x) for x in arrays), **row.filled(attrs))
    assert got.dtype == np.float32
    assert got.shape == want.shape
    # Beyond the sum: two scales, one bias.
    assert (np.abs(got - want) <= gamma(terms + 3) * size).all()


@pytest.mark.parametrize(("f", "g"), FORMATS)
@pytest.mark.parametrize(("x", "weight", "stride", "padding", "dilation", "groups"), CONV[:-1])
def test_fp8_conv2d(f: str, g: str, x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    attrs = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}
    for axis, bias in ((0, None), (None, normal(weight[0]).astype(np.float32))):
        inputs = fp8(normal(*x), f), fp8(normal(*weight), g, axis), bias
        check_fp8("conv2d", inputs, (1, 2), int(np.prod(weight[1:])), attrs)


def test_fp8_conv_with_padding_by_name_and_with_one_axis() -> None:
    x, weight, bias = normal(2, 3, 9, 8), normal(4, 3, 3, 2), normal(4).astype(np.float32)
    check_fp8("conv2d", (fp8(x, "e4m3fn"), fp8(weight, "e4m3fn", 0)), (1,), 18, {"padding": "same"})
    for lead in ((2,), ()):
        inputs = fp8(normal(*lead, 4, 9), "e4m3fn"), fp8(normal(6, 2, 4), "e4m3fn", 0), normal(6).astype(np.float32)
        for padding in ((3,), "valid"):
            check_fp8("conv1d", inputs, (1, 2), 8, {"stride": (2,), "padding": padding, "dilation": (2,), "groups": 2})
    check_fp8("conv2d", (fp8(x[0], "e4m3fn"), fp8(weight, "e4m3fn", 0), bias), (1, 2), 18, {})


@pytest.mark.parametrize(("f", "g"), FORMATS)
@pytest.mark.parametrize(("x", "weight", "stride", "padding", "extra", "groups", "dilation"), CONV_TRANSPOSE)
def test_fp8_conv_transpose2d(
    f: str, g: str, x: Any, weight: Any, stride: Any, padding: Any, extra: Any, groups: int, dilation: Any
) -> None:
    attrs = {"stride": tuple(stride), "padding": tuple(padding), "output_padding": tuple(extra), "groups": groups}
    terms = weight[0] // groups * weight[2] * weight[3]
    for axis, bias in ((1, None), (None, normal(weight[1] * groups).astype(np.float32))):
        inputs = fp8(normal(*x), f), fp8(normal(*weight), g, axis), bias
        check_fp8("conv_transpose2d", inputs, (1, 2), terms, attrs | {"dilation": tuple(dilation)})


def test_fp8_conv_transpose1d() -> None:
    for lead in ((2,), ()):
        inputs = fp8(normal(*lead, 4, 6), "e4m3fn"), fp8(normal(4, 3, 5), "e4m3fn", 1), normal(6).astype(np.float32)
        check_fp8("conv_transpose1d", inputs, (1, 2), 10, {"stride": (3,), "padding": (2,), "output_padding": (1,), "groups": 2})


MATMUL = [
    ((2, 3), (3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((5, 1, 2, 3), (6, 3, 4)),
    ((2, 3), (1, 1, 3, 4)),
]


@pytest.mark.parametrize(("f", "g"), FORMATS)
@pytest.mark.parametrize(("a", "b"), MATMUL)
def test_fp8_matmul(f: str, g: str, a: Any, b: Any) -> None:
    left = fp8(normal(*a), f)
    check_fp8("matmul", (left, fp8(normal(*b), g)), (), 3, {})
    check_fp8("matmul", (left, fp8(normal(*b), g, -1)), (1,), 3, {})
    transposed = fp8(normal(*b).swapaxes(-1, -2), g)
    axes = (*range(len(b) - 2), len(b) - 1, len(b) - 2)
    check_fp8("matmul", (left, transposed.transpose(*axes)), (), 3, {})


@pytest.mark.parametrize(("beta", "alpha"), [(1.0, 1.0), (1.0, 2.0), (0.5, 2.0), (0.0, 1.0)])
def test_fp8_addmm(beta: float, alpha: float) -> None:
    a, b = fp8(normal(2, 3), "e4m3fn"), fp8(normal(3, 4), "e3m4fn", -1)
    for c in ((4,), (2, 4), (1, 1)):
        for constants in ((0, 2), ()):
            weight = b if constants else fp8(normal(3, 4), "e3m4fn")
            check_fp8("addmm", (normal(*c).astype(np.float32), a, weight), constants, 4, {"beta": beta, "alpha": alpha})


def test_scales_that_the_kernel_cannot_apply_run_as_defined() -> None:
    a, b = fp8(normal(2, 3), "e4m3fn"), fp8(normal(3, 4), "e4m3fn")
    assert bound("matmul", (a, fp8(normal(3, 4), "e4m3fn", 0)), (1,), {}) is None
    assert bound("matmul", (fp8(normal(2, 3), "e4m3fn", 0), b), (0,), {}) is None
    assert bound("matmul", (fp8(normal(3), "e4m3fn"), b), (), {}) is None
    assert bound("addmm", (normal(4), a, fp8(normal(3), "e4m3fn")), (), {}) is None


def test_a_float32_input_runs_as_defined() -> None:
    x, weight = normal(2, 3, 8, 8).astype(np.float32), fp8(normal(3, 3, 3, 3), "e4m3fn", 0)
    assert bound("conv2d", (x, weight), (1,), {}) is None
    assert bound("conv_transpose2d", (x, weight), (1,), {}) is None
    assert bound("matmul", (x, fp8(normal(8, 4), "e4m3fn")), (1,), {}) is None
    assert bound("embedding", (normal(7, 4).astype(np.float32), indices(3)), (0,), {}) is None
    assert bound("embedding_bag", (normal(7, 4).astype(np.float32), indices(3, 2)), (0,), {}) is None
    weights = tuple(w.astype(np.float32) for w in recurrent_weights(4, 5, 6, 1, 1, True))
    assert bound("lstm", (fp8(normal(3, 4, 5), "e4m3fn"), None, None, *weights), (3, 4, 5, 6), {}) is None


@pytest.mark.parametrize("axis", [0, None])
def test_fp8_embedding(axis: int | None) -> None:
    """Rows come out as `dequantize` gives them, bit for bit; bags as their definition adds those rows."""
    weight = fp8(normal(7, 4), "e4m3fn", axis)
    rows = dequantize(weight)
    for ids in (indices(2, 3), indices(4)[0:0]):
        step = bound("embedding", (weight, ids), (0,), {})
        assert step is not None
        np.testing.assert_array_equal(step(weight, ids), rows[ids], strict=True)
        with pytest.raises(InputError, match=r"indices in 0\.\.6"):
            step(weight, np.array([7]))
    row = OPS["embedding_bag"]
    for mode in ("sum", "mean", "max"):
        for padding in (None, 0, 3, 6):
            attrs = row.filled({"mode": mode, "padding_idx": padding})
            inputs = weight, np.array([5, 1, 5, 3, 3, 1, 5, 1, 3]), np.array([0, 2, 2, 5]), None
            step = bound("embedding_bag", inputs, (0,), attrs)
            assert step is not None
            np.testing.assert_array_equal(step(*inputs), row.define(rows, *inputs[1:], **attrs), strict=True)


# --- bound: recurrent networks

CELLS = {4: lstm_cell, 3: gru_cell}


def fp8_weights(gates: int, fmt: str, layers: int, directions: int, bias: bool) -> tuple[Any, ...]:
    weights = recurrent_weights(gates, 5, 6, layers, directions, bias)
    return tuple(fp8(w, fmt, 0) if w.ndim == 2 else w.astype(np.float32) for w in weights)


def recurrent(gates: int, x: Any, states: tuple[Any, ...], weights: tuple[Any, ...], **attrs: Any) -> tuple[Any, ...]:
    """The bound step's results, and those of the definition on what the codes mean."""
    name = "lstm" if gates == 4 else "gru"
    inputs = (x, *states, *weights)
    step = bound(name, inputs, tuple(range(len(states) + 1, len(inputs))), attrs)
    assert step is not None
    row = OPS[name]
    return step(*inputs), row.define(*(exact(v) for v in inputs), **row.filled(attrs))


@pytest.mark.parametrize("gates", [4, 3])
@pytest.mark.parametrize(("f", "g"), FORMATS)
@pytest.mark.parametrize("bias", [False, True])
def test_fp8_cell(gates: int, f: str, g: str, bias: bool) -> None:
    """One step against float64 with the same codes of h. The error of the gates grows at most fourfold: the slopes of sigmoid
    and tanh are at most 1/4 and 1, and |c| <= 4 here."""
    x = fp8(normal(3, 5), f)
    state = tuple(np.tanh(normal(3, 6, seed=s)).astype(np.float32) for s in range(gates - 2))
    weights = fp8_weights(gates, g, 1, 1, bias)
    name = "lstm_cell" if gates == 4 else "gru_cell"
    inputs = (x, *state, *weights)
    step = bound(name, inputs, tuple(range(len(state) + 1, len(inputs))), {})
    assert step is not None
    result = step(*inputs)
    codes_of_h = quantize(state[0], f, scale=1.0 if f == "e5m2" else np.float32(1) / np.float32(x.format.max))
    factors = (exact(x), exact(codes_of_h))
    matrices = tuple(exact(w).T for w in weights[:2])
    biases = tuple(exact(b) for b in weights[2:]) or (None, None)
    # Only the products see the codes of h: a GRU's mean with the old h takes h itself.
    want = one_step(CELLS[gates], factors[0], tuple(exact(s) for s in state), *biases, lambda _, i: factors[i] @ matrices[i])
    size = sum(np.abs(v) @ np.abs(w) for v, w in zip(factors, matrices, strict=True)).max() + sum(
        np.abs(b).max() for b in biases if b is not None
    )
    for got, expected in zip(result if gates == 4 else (result,), want, strict=True):
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 4 * gamma(6 + 4) * size + gamma(8) * 4


@pytest.mark.parametrize("gates", [4, 3])
@pytest.mark.parametrize("f", ["e4m3fn", "e5m2", "e3m4fn"])
@pytest.mark.parametrize(("layers", "bidirectional", "batch_first"), [(1, False, False), (2, True, True)])
def test_fp8_recurrent_stays_near_its_definition(gates: int, f: str, layers: int, bidirectional: bool, batch_first: bool) -> None:
    weights = fp8_weights(gates, f, layers, 1 + bidirectional, True)
    attrs = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first}
    got, want = recurrent(gates, fp8(normal(7, 8, 5), f), (None,) * (gates - 2), weights, **attrs)
    # What differs is the rounding of h, by at most eps/2 of its value at each step.
    eps = finfo(f).eps
    for a, b in zip(got, want, strict=True):
        assert a.dtype == np.float32
        assert np.sqrt(np.mean((a - b) ** 2)) < eps / 4 * np.sqrt(np.mean(np.square(b)))


@pytest.mark.parametrize("gates", [4, 3])
def test_a_sequence_is_the_same_as_its_steps(gates: int) -> None:
    """Handing h (and c) on from step to step gives the bits of the whole: nothing but the state passes between steps."""
    x, weights = fp8(normal(6, 2, 5), "e4m3fn"), fp8_weights(gates, "e4m3fn", 1, 1, True)
    whole, _ = recurrent(gates, x, (np.zeros((1, 2, 6), np.float32),) * (gates - 2), weights)
    state = tuple(np.zeros((1, 2, 6), np.float32) for _ in range(gates - 2))
    for t in range(6):
        (y, *state), _ = recurrent(gates, QTensor(x.codes[t : t + 1], x.format, x.scale), tuple(state), weights)
        np.testing.assert_array_equal(y[0], whole[0][t], strict=True)
    for got, want in zip(state, whole[1:], strict=True):
        np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("gates", [4, 3])
def test_an_initial_state_beyond_one_is_not_cut_off(gates: int) -> None:
    state = tuple(np.full((1, 2, 6), 5, np.float32) for _ in range(gates - 2))
    got, want = recurrent(gates, fp8(normal(1, 2, 5), "e4m3fn"), state, fp8_weights(gates, "e4m3fn", 1, 1, True))
    np.testing.assert_allclose(got[0], want[0], atol=0.02)
