"""Ops with weights, products, norms and attention: their definitions against the operators of PyTorch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _layers import check_op, torch
from _weights import CONV, CONV_TRANSPOSE, indices, normal, recurrent_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.errors import InputError
from fp8np.layers._op import OPS, Op

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


BHW = {0: {0: "B", 2: "H", 3: "W"}}
BT = {0: {0: "B", 1: "T"}}


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
