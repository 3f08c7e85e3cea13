"""FP8 operands: each op, as a plan runs it, against its definition in float64 on what the codes mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest
from _graphs import defined, exact, gamma, native, one_node, run_one
from _weights import CONV, CONV_TRANSPOSE, indices, normal, recurrent_weights

from fp8np._finfo import finfo
from fp8np.build import GraphBuilder
from fp8np.errors import InputError
from fp8np.formats import get_format
from fp8np.kernels._grid import takes
from fp8np.layers._recurrent import one_step
from fp8np.layers.gru import _cell as gru_cell
from fp8np.layers.lstm import _cell as lstm_cell
from fp8np.model import Model
from fp8np.plan.lowerings import tables
from fp8np.scaling import dequantize, quantize
from fp8np.tensor import QTensor

# The engine multiplies activations of all of these, weights of the first three pairs; the last runs as defined.
FORMATS = [("e4m3fn", "e4m3fn"), ("e5m2", "e3m4fn"), ("e4m3fnuz", "e3m4"), ("e4m3", "e4m3fnuz")]


def fp8(array: Any, fmt: str, axis: int | None = None) -> QTensor:
    return quantize(array.astype(np.float32), fmt, axis=axis)


def check_fp8(
    name: str,
    operands: tuple[Any, ...],
    constants: Collection[int],
    terms: int,
    attrs: Mapping[str, Any],
    natively: bool | None = True,
) -> Any:
    """The plan against the definition in float64 on what the codes mean, within gamma * sum |a| |b|; returns what the plan gives.

    natively: whether it runs without Python; None: either.
    """
    got, was_native = run_one(name, operands, constants, attrs)
    want = defined(name, operands, attrs)
    size = defined(name, tuple(None if x is None else np.abs(exact(x)) for x in operands), attrs)
    assert got.dtype == np.float32
    assert got.shape == want.shape
    # Beyond the sum: two scales, one bias.
    assert (np.abs(got - want) <= gamma(terms + 3) * size).all()
    assert natively in (None, was_native)
    return got


def test_what_is_quantized_on_the_way_in_is_what_was_given() -> None:
    for f, _ in FORMATS:
        q = fp8(normal(9, 50), f)
        again = quantize(dequantize(q), f, scale=q.scale)
        np.testing.assert_array_equal(dequantize(again), dequantize(q))


# --- products


def conv_natively(x: Any, weight_format: str) -> bool:
    return len(x) == 4 and 0 not in x and takes(get_format(weight_format))


@pytest.mark.parametrize(("f", "g"), FORMATS)
@pytest.mark.parametrize(("x", "weight", "stride", "padding", "dilation", "groups"), CONV)
def test_fp8_conv2d(f: str, g: str, x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    attrs = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}
    for axis, bias in ((0, None), (None, normal(weight[0]).astype(np.float32))):
        operands = fp8(normal(*x), f), fp8(normal(*weight), g, axis), bias
        check_fp8("conv2d", operands, (1, 2), int(np.prod(weight[1:])), attrs, conv_natively(x, g))


def test_fp8_conv_with_padding_by_name_and_with_one_axis() -> None:
    x, weight, bias = normal(2, 3, 9, 8), normal(4, 3, 3, 2), normal(4).astype(np.float32)
    check_fp8("conv2d", (fp8(x, "e4m3fn"), fp8(weight, "e4m3fn", 0)), (1,), 18, {"padding": "same"})
    check_fp8("conv2d", (fp8(x, "e4m3fn"), fp8(weight, "e4m3fn", 0)), (1,), 18, {"padding": "same", "dilation": (1, 3)})
    for lead in ((2,), ()):
        operands = fp8(normal(*lead, 4, 9), "e4m3fn"), fp8(normal(6, 2, 4), "e4m3fn", 0), normal(6).astype(np.float32)
        for padding in ((3,), "valid"):
            attrs = {"stride": (2,), "padding": padding, "dilation": (2,), "groups": 2}
            check_fp8("conv1d", operands, (1, 2), 8, attrs, bool(lead))
        check_fp8("conv1d", operands, (1, 2), 8, {"padding": "same", "dilation": (2,), "groups": 2}, bool(lead))
    check_fp8("conv2d", (fp8(x[0], "e4m3fn"), fp8(weight, "e4m3fn", 0), bias), (1, 2), 18, {}, False)


@pytest.mark.parametrize(("f", "g"), FORMATS)
@pytest.mark.parametrize(("x", "weight", "stride", "padding", "extra", "groups", "dilation"), CONV_TRANSPOSE)
def test_fp8_conv_transpose2d(
    f: str, g: str, x: Any, weight: Any, stride: Any, padding: Any, extra: Any, groups: int, dilation: Any
) -> None:
    attrs = {"stride": tuple(stride), "padding": tuple(padding), "output_padding": tuple(extra), "groups": groups}
    terms = weight[0] // groups * weight[2] * weight[3]
    for axis, bias in ((1, None), (None, normal(weight[1] * groups).astype(np.float32))):
        operands = fp8(normal(*x), f), fp8(normal(*weight), g, axis), bias
        natively = None if conv_natively(x, g) else False
        check_fp8("conv_transpose2d", operands, (1, 2), terms, attrs | {"dilation": tuple(dilation)}, natively)


def test_fp8_conv_transpose_of_one_group_runs_natively() -> None:
    operands = fp8(normal(2, 3, 5, 4), "e4m3fn"), fp8(normal(3, 4, 3, 2), "e4m3fn", 1), normal(4).astype(np.float32)
    attrs = {"stride": (2, 3), "padding": (1, 1), "output_padding": (1, 2), "dilation": (2, 1)}
    check_fp8("conv_transpose2d", operands, (1, 2), 18, attrs, True)


def test_fp8_conv_transpose1d() -> None:
    for lead in ((2,), ()):
        operands = fp8(normal(*lead, 4, 6), "e4m3fn"), fp8(normal(4, 3, 5), "e4m3fn", 1), normal(6).astype(np.float32)
        attrs = {"stride": (3,), "padding": (2,), "output_padding": (1,), "groups": 2}
        check_fp8("conv_transpose1d", operands, (1, 2), 10, attrs, None)
        one = operands[0], fp8(normal(4, 6, 5), "e4m3fn", 1), operands[2]
        check_fp8("conv_transpose1d", one, (1, 2), 20, attrs | {"groups": 1}, bool(lead))


@pytest.mark.parametrize(("f", "g"), FORMATS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("x", [(3, 5), (2, 3, 5), (2, 2, 3, 5), (5,), (40, 5), (1, 300), (0, 5)])
def test_fp8_linear(f: str, g: str, bias: bool, x: Any) -> None:
    for axis in (0, None):
        weight = fp8(normal(7, x[-1]), g, axis)
        operands = fp8(normal(*x), f), weight, normal(7).astype(np.float32) if bias else None
        check_fp8("linear", operands, (1, 2), x[-1], {}, takes(weight.format) and 0 not in x)


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
    check_fp8("matmul", (left, fp8(normal(*b), g)), (), 3, {}, True if a[:-2] == b[:-2] else None)
    weight = fp8(normal(*b), g, -1)
    check_fp8("matmul", (left, weight), (1,), 3, {}, len(b) == 2 and takes(weight.format))
    transposed = fp8(normal(*b).swapaxes(-1, -2), g)
    axes = (*range(len(b) - 2), len(b) - 1, len(b) - 2)
    check_fp8("matmul", (left, transposed.transpose(*axes)), (1,), 3, {}, None)


def test_fp8_matmul_with_an_operand_that_lies_otherwise() -> None:
    left, right = fp8(normal(5, 2, 3), "e4m3fn"), fp8(normal(5, 4, 3), "e5m2")
    b = GraphBuilder()
    turned = b.node("transpose", (b.input("b", right.shape, "float32"),), {"dim0": 1, "dim1": 2})
    sources = (b.input("a", left.shape, "float32"), left), (turned, right)
    names = (b.node("quantize", (name,), {"format": q.format.name, "scale": float(q.scale)}) for name, q in sources)
    model = Model(b.finish(b.node("matmul", tuple(names))))
    operands = exact(left), exact(right).swapaxes(1, 2)
    got = model.run({"a": dequantize(left), "b": dequantize(right)})
    assert (np.abs(got - operands[0] @ operands[1]) <= gamma(3 + 3) * (np.abs(operands[0]) @ np.abs(operands[1]))).all()
    assert native(model)


@pytest.mark.parametrize(("beta", "alpha"), [(1.0, 1.0), (1.0, 2.0), (0.5, 2.0), (0.0, 1.0)])
def test_fp8_addmm(beta: float, alpha: float) -> None:
    a, b = fp8(normal(2, 3), "e4m3fn"), fp8(normal(3, 4), "e3m4fn", -1)
    for c in ((4,), (2, 4), (1, 1)):
        for constants in ((0, 2), ()):
            weight = b if constants else fp8(normal(3, 4), "e3m4fn")
            natively = c == (4,) and bool(constants) and (beta, alpha) == (1, 1)
            operands = normal(*c).astype(np.float32), a, weight
            check_fp8("addmm", operands, constants, 4, {"beta": beta, "alpha": alpha}, natively)


def test_addmm_without_beta_does_not_read_c() -> None:
    c, a, b = np.full(4, np.nan, np.float32), fp8(normal(2, 3), "e4m3fn"), fp8(normal(3, 4), "e3m4fn", -1)
    assert np.isfinite(run_one("addmm", (c, a, b), (0, 2), {"beta": 0.0, "alpha": 1.0})[0]).all()
    assert np.isnan(run_one("addmm", (c, a, b), (0, 2), {})[0]).all()


def test_a_nan_stays_where_it_is() -> None:
    """NaN codes on either side reach the results that they take part in, and no others; padding does not spread them."""
    x, weight = fp8(normal(2, 20, 6, 5), "e4m3fn"), fp8(normal(40, 20, 3, 3), "e4m3fn", 0)
    x.codes[0, 3, 2, 2] = 0x7F
    weight.codes[33, 0, 0, 0] = 0xFF
    attrs = {"padding": (1, 1)}
    got, was_native = run_one("conv2d", (x, weight), (1,), attrs)
    want = defined("conv2d", (x, weight), attrs)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(want).any()
    assert not np.isnan(want).all()
    assert was_native
    rows, columns = fp8(normal(5, 40), "e4m3fn"), fp8(normal(7, 40), "e5m2", 0)
    rows.codes[3, 39] = 0x7F
    columns.codes[6, 0] = 0x7C
    got, _ = run_one("linear", (rows, columns, normal(7).astype(np.float32)), (1, 2))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(defined("linear", (rows, columns, None))))
    assert np.isinf(np.delete(got[:, 6], 3)).all()


def test_scales_that_the_kernel_cannot_apply_run_as_defined() -> None:
    a, b = fp8(normal(2, 3), "e4m3fn"), fp8(normal(3, 4), "e4m3fn")
    check_fp8("matmul", (a, fp8(normal(3, 4), "e4m3fn", 0)), (1,), 3, {}, False)
    check_fp8("matmul", (fp8(normal(2, 3), "e4m3fn", 0), b), (0,), 3, {}, False)
    check_fp8("matmul", (fp8(normal(3), "e4m3fn"), b), (), 3, {}, False)
    check_fp8("addmm", (normal(2).astype(np.float32), a, fp8(normal(3), "e4m3fn")), (), 3, {}, False)
    check_fp8("linear", (a, fp8(normal(5, 3), "e4m3fn", 1)), (1,), 3, {}, False)
    check_fp8("conv2d", (fp8(normal(1, 3, 4, 4), "e4m3fn"), fp8(normal(2, 3, 3, 3), "e4m3fn", 1)), (1,), 27, {}, False)


# --- one side in float32: nothing is rounded but sums


def check_mixed(name: str, operands: tuple[Any, ...], constants: Collection[int], terms: int, attrs: Mapping[str, Any]) -> None:
    """As `check_fp8`, where a float32 may be the sum of three bfloat16.

    Six products for one, of which those after the first are 2^-8 of it or less; three more, below 2^-26 of it in all, are left out.
    """
    got, was_native = run_one(name, operands, constants, attrs)
    want = defined(name, operands, attrs)
    size = defined(name, tuple(None if x is None else np.abs(exact(x)) for x in operands), attrs)
    assert (np.abs(got - want) <= (gamma(6 * terms + 3) * (1 + 2.0**-6) + 2.0**-26) * size).all()
    assert was_native


def test_a_float32_operand_is_multiplied_exactly() -> None:
    x, weight = normal(2, 3, 8, 8).astype(np.float32), normal(5, 3, 3, 3).astype(np.float32)
    for left, right in ((x, fp8(weight, "e4m3fn", 0)), (fp8(x, "e5m2"), weight), (x, weight)):
        check_mixed("conv2d", (left, right), (1,), 27, {"padding": (1, 1)})
    rows, columns = normal(3, 70).astype(np.float32), normal(70, 9).astype(np.float32)
    for left, right in ((rows, fp8(columns, "e4m3fn", -1)), (fp8(rows, "e5m2"), columns), (rows, columns)):
        check_mixed("matmul", (left, right), (1,), 70, {})
        check_mixed("linear", (left, right.T), (1,), 70, {})
    for left, right in ((rows, fp8(columns, "e4m3fn")), (fp8(rows, "e5m2"), columns), (rows, columns)):
        check_mixed("matmul", (left, right), (), 70, {})
    turned = normal(3, 5, 2, 3).astype(np.float32)
    for left, right in ((x, fp8(turned, "e4m3fn", 1)), (fp8(x, "e5m2"), turned), (x, turned)):
        check_mixed("conv_transpose2d", (left, right), (1,), 18, {"stride": (2, 2)})


# --- tables


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("f", ["e4m3fn", "e5m2fnuz"])
def test_fp8_embedding(f: str, axis: int | None) -> None:
    """Rows come out as `dequantize` gives them, bit for bit."""
    weight = fp8(normal(7, 4), f, axis)
    rows = dequantize(weight)
    for ids in (indices(2, 3), indices(4)[0:0], indices(3).astype(np.int32)):
        np.testing.assert_array_equal(run_one("embedding", (weight, ids), (0,))[0], rows[ids], strict=True)
    graph, _ = one_node("embedding", (weight, indices(1)), (0,))
    with pytest.raises(InputError, match=r"indices in 0\.\.6"):
        Model(graph).run(np.array([7]))


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0, 3, 6])
def test_fp8_embedding_bag(axis: int | None, mode: str, padding: int | None) -> None:
    """Bags are as their definition adds the rows that `dequantize` gives, bit for bit."""
    weight = fp8(normal(7, 4), "e4m3fn", axis)
    attrs = {"mode": mode, "padding_idx": padding}
    cases: list[tuple[Any, Any, Any]] = [
        (np.array([5, 1, 5, 3, 3, 1, 5, 1, 3]), np.array([0, 2, 2, 5]), None),
        (indices(3, 5), None, None),
        (indices(0, 5), None, None),
        (np.array([], np.int64), np.array([0, 0]), None),
    ]
    if mode == "sum":
        cases.append((indices(3, 5), None, normal(3, 5).astype(np.float32)))
    for operands in cases:
        got, _ = run_one("embedding_bag", (weight, *operands), (0,), attrs)
        _, given = one_node("embedding_bag", (dequantize(weight), *operands), (0,), attrs)
        want = Model(one_node("embedding_bag", (dequantize(weight), *operands), (0,), attrs)[0]).run(given)
        np.testing.assert_array_equal(got, want, strict=True)
        assert got.shape == defined("embedding_bag", (weight, *operands), attrs).shape


def test_a_bag_decodes_only_the_rows_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(np.ndarray):
        looked_up: list[int] = []  # noqa: RUF012 - a list of the class

        def __getitem__(self, key: Any) -> Any:
            self.looked_up.append(np.size(key))
            return np.asarray(self)[key]

    table = tables.decode_table
    monkeypatch.setattr(tables, "decode_table", lambda fmt: table(fmt).view(Counted))
    weight = fp8(normal(1000, 4), "e4m3fn", 0)
    graph, given = one_node("embedding_bag", (weight, np.array([[5, 999, 5], [7, 7, 7]])), (0,), {"mode": "sum"})
    with pytest.raises(InputError, match=r"embedding_bag: expected indices in 0\.\.999; got 0\.\.1000"):
        Model(graph).run(np.array([[0, 1, 1], [1000, 1, 1]]))
    got = Model(graph).run(given)
    assert Counted.looked_up == [3 * 4]
    rows = dequantize(weight)
    np.testing.assert_array_equal(got, [rows[[5, 999, 5]].sum(0), rows[[7, 7, 7]].sum(0)])


# --- recurrent networks: see `fp8np.plan.lowerings.recurrent` for what is rounded

CELLS = {4: lstm_cell, 3: gru_cell}


def fp8_weights(gates: int, fmt: str, layers: int, directions: int, bias: bool) -> tuple[Any, ...]:
    weights = recurrent_weights(gates, 5, 6, layers, directions, bias)
    return tuple(fp8(w, fmt, 0) if w.ndim == 2 else w.astype(np.float32) for w in weights)


def recurrent(gates: int, x: Any, states: tuple[Any, ...], weights: tuple[Any, ...], **attrs: Any) -> tuple[Any, Any, bool]:
    """The plan's results, those of the definition on what the codes mean, and whether the plan ran natively."""
    name = "lstm" if gates == 4 else "gru"
    operands = (x, *states, *weights)
    got, was_native = run_one(name, operands, range(len(states) + 1, len(operands)), attrs)
    return got, defined(name, operands, attrs), was_native


@pytest.mark.parametrize("gates", [4, 3])
@pytest.mark.parametrize(("f", "g"), FORMATS)
@pytest.mark.parametrize("bias", [False, True])
def test_fp8_cell(gates: int, f: str, g: str, bias: bool) -> None:
    """One step against float64, natively with the same codes of h, as defined with h itself. The error of the gates grows at most
    fourfold: the slopes of sigmoid and tanh are at most 1/4 and 1, and |c| <= 4 here."""
    x = fp8(normal(3, 5), f)
    state = tuple(np.tanh(normal(3, 6, seed=s)).astype(np.float32) for s in range(gates - 2))
    weights = fp8_weights(gates, g, 1, 1, bias)
    operands = (x, *state, *weights)
    result, was_native = run_one("lstm_cell" if gates == 4 else "gru_cell", operands, range(len(state) + 1, len(operands)))
    assert was_native or not takes(x.format, weights[0].format)
    codes_of_h = quantize(state[0], f, scale=1.0 if f == "e5m2" else np.float32(1) / np.float32(x.format.max))
    factors = (exact(x), exact(codes_of_h if was_native else state[0]))
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
    got, want, was_native = recurrent(gates, fp8(normal(7, 8, 5), f), (None,) * (gates - 2), weights, **attrs)
    assert was_native
    # What differs is the rounding of h, by at most eps/2 of its value at each step.
    eps = finfo(f).eps
    for a, b in zip(got, want, strict=True):
        assert a.dtype == np.float32
        assert np.sqrt(np.mean((a - b) ** 2)) < eps / 4 * np.sqrt(np.mean(np.square(b)))


@pytest.mark.parametrize("gates", [4, 3])
def test_a_sequence_is_the_same_as_its_steps(gates: int) -> None:
    """Handing h (and c) on from step to step gives the bits of the whole: nothing but the state passes between steps."""
    x, weights = fp8(normal(6, 2, 5), "e4m3fn"), fp8_weights(gates, "e4m3fn", 1, 1, True)
    whole, _, was_native = recurrent(gates, x, (np.zeros((1, 2, 6), np.float32),) * (gates - 2), weights)
    assert was_native
    state = tuple(np.zeros((1, 2, 6), np.float32) for _ in range(gates - 2))
    for t in range(6):
        (y, *state), _, _ = recurrent(gates, QTensor(x.codes[t : t + 1], x.format, x.scale), tuple(state), weights)  # type: ignore[assignment]
        np.testing.assert_array_equal(y[0], whole[0][t], strict=True)
    for got, want in zip(state, whole[1:], strict=True):
        np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("gates", [4, 3])
def test_an_initial_state_beyond_one_is_not_cut_off(gates: int) -> None:
    state = tuple(np.full((1, 2, 6), 5, np.float32) for _ in range(gates - 2))
    got, want, _ = recurrent(gates, fp8(normal(1, 2, 5), "e4m3fn"), state, fp8_weights(gates, "e4m3fn", 1, 1, True))
    np.testing.assert_allclose(got[0], want[0], atol=0.02)
