"""Bound steps: with FP8 inputs, an op's kernel against its definition in float64 on what the codes mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from _weights import CONV, CONV_TRANSPOSE, indices, normal, recurrent_weights

from fp8np._finfo import finfo
from fp8np.errors import InputError
from fp8np.kernels._table import select
from fp8np.layers._op import OPS, Call, Spec, Step
from fp8np.layers._recurrent import one_step
from fp8np.layers.gru import _cell as gru_cell
from fp8np.layers.lstm import _cell as lstm_cell
from fp8np.scaling import dequantize, quantize
from fp8np.tensor import QTensor

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


# --- recurrent networks

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
