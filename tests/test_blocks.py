"""Blocks of scales: quantization against scalar definitions, products against sums of fractions."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from _products import assert_same_bits, rounded
from hypothesis import given
from hypothesis import strategies as st

import fp8np
from fp8np import _blocks, scaling
from fp8np.accumulators import ACCUMULATORS
from fp8np.codec import decode_table, encode
from fp8np.errors import FormatError, PolicyError, ScaleError, ShapeError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.kernels import blocks as kernels
from fp8np.kernels._threads import threads
from fp8np.scaling import SCALE_RULES, dequantize, quantize, scale_for
from fp8np.scheme import MX
from fp8np.tensor import QTensor, blocks_of

E8M0 = get_format("e8m0fnu")
LAYOUTS = [
    ((100,), (32,)),
    ((0, 5), (2, 2)),
    ((3, 0), (1, 4)),
    ((), ()),
    ((5, 70), (1, 32)),
    ((70, 5), (32, 1)),
    ((300, 200), (128, 128)),
    ((3, 40, 50), (1, 16, 0)),
    ((3, 40, 50), (0, 16, 7)),
    ((4, 64, 3, 3), (1, 32, 3, 3)),
    ((4, 64, 3, 3), (1, 32, 1, 1)),
    ((5, 6, 7), (2, 3, 2)),
    ((2, 6, 5, 7), (1, 4, 1, 3)),
    ((7, 9), (100, 4)),
]


def values(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-9, 9, shape))).astype(dtype)


def places(shape: tuple[int, ...], block: tuple[int, ...]) -> Any:
    """For each block, its index among the scales and where it lies, one block after the other."""
    for index in itertools.product(*(range(n) for n in blocks_of(shape, block))):
        yield index, tuple(slice(i * b, i * b + b) for i, b in zip(index, block, strict=True))


# -- quantize and dequantize ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "block"), LAYOUTS, ids=str)
def test_each_block_is_quantized_as_a_tensor_of_its_own(shape: tuple[int, ...], block: tuple[int, ...], dtype: Any) -> None:
    x = np.asarray(values(shape, dtype))
    q = quantize(x, "e4m3fn", block=block)
    assert (q.shape, q.scale.shape) == (shape, blocks_of(shape, q.block or ()))
    back, wide = np.asarray(dequantize(q)), np.asarray(dequantize(q, dtype=np.float64))
    for index, place in places(shape, q.block or ()):
        one = quantize(x[place], "e4m3fn")
        assert q.scale[index] == one.scale
        np.testing.assert_array_equal(q.codes[place], one.codes)
        np.testing.assert_array_equal(back[place], dequantize(one))
        np.testing.assert_array_equal(wide[place], dequantize(one, dtype=np.float64))
    again = quantize(x, "e4m3fn", block=block, scale=q.scale)
    np.testing.assert_array_equal(again.codes, q.codes)


def test_blocks_in_threads() -> None:
    x = values((1500, 1030))
    for block in ((1, 32), (128, 128), (32, 1)):
        with threads(1):
            alone = quantize(x, "e4m3fn", block=block)
        with threads(3):
            together = quantize(x, "e4m3fn", block=block)
            np.testing.assert_array_equal(dequantize(alone), dequantize(together))
        np.testing.assert_array_equal(alone.codes, together.codes)
        np.testing.assert_array_equal(alone.scale, together.scale)


def test_groups_along_an_axis() -> None:
    x = values((4, 70, 6))
    for axis, block in ((1, (1, 32, 1)), (-1, (1, 1, 32)), (0, (32, 1, 1))):
        q = quantize(x, "e5m2", axis=axis, block=32)
        assert q.block == block
        np.testing.assert_array_equal(q.codes, quantize(x, "e5m2", block=block).codes)
    np.testing.assert_array_equal(quantize(x, "e5m2", axis=1, block=0).scale, quantize(x, "e5m2", block=(1, 0, 1)).scale)


def mx_exponent(amax: Fraction, name: str, rule: str) -> int:
    """Shared exponents by their definitions, in rational numbers."""
    f = get_format(name)

    def floor_log2(x: Fraction) -> int:
        return next(e for e in range(400, -400, -1) if Fraction(2) ** e <= x)

    top = Fraction(f.max)
    if rule == "floor":
        shared = floor_log2(amax) - floor_log2(top)
    elif rule == "ceil":
        shared = next(e for e in range(-400, 400) if amax <= Fraction(2) ** e) - floor_log2(top)
    elif rule == "rceil":
        shared = next(e for e in range(-400, 400) if amax <= top * Fraction(2) ** e)
    else:
        exponent = floor_log2(amax)
        steps = amax / Fraction(2) ** (exponent - f.mantissa_bits)
        shared = floor_log2(math.floor(steps + Fraction(1, 2)) * Fraction(2) ** (exponent - f.mantissa_bits)) - floor_log2(top)
    return min(max(shared, -127), 127)


@given(st.sampled_from(sorted(MX)), st.sampled_from(SCALE_RULES), st.integers(1, 0x7F7FFFFF), st.integers(-1, 1), st.integers(-149, 127))
def test_mx_scales_follow_their_definitions(name: str, rule: str, bits: int, step: int, exponent: int) -> None:
    f = MX[name][0]
    # Any float32; and numbers next to where a rule changes: powers of two, the largest value, the value that rounds up.
    near = [math.ldexp(v, exponent) for v in (1.0, f.max, 2.0 - 2.0 ** -(f.mantissa_bits + 1))]
    for start in (np.uint32(bits).view(np.float32), *(np.float32(v) for v in near if v < 3e38)):
        with np.errstate(over="ignore"):
            x = np.nextafter(start, np.float32(np.inf) * step, dtype=np.float32) if step else start
        if not 0 < x < np.inf:
            continue
        q = quantize(np.full(3, x), name, scale_rule=rule)
        expected = mx_exponent(Fraction(float(x)), f.name, rule)
        assert float(q.scale[0]) == 2.0**expected
        assert q.codes[0] == encode(float(x) / 2.0**expected, f)


@pytest.mark.parametrize("name", MX)
def test_mx_groups(name: str) -> None:
    f = MX[name][0]
    x = values((5, 3, 70))
    q = quantize(x, name)
    assert (q.format, q.block, q.scale_format, q.scale.shape) == (f, (1, 1, 32), E8M0, (5, 3, 3))
    np.testing.assert_array_equal(q.scale_codes, encode(q.scale, E8M0))
    same = quantize(x, f, block=(1, 32), scale_format="e8m0fnu", scale_rule="floor")
    np.testing.assert_array_equal(q.codes, same.codes)
    other = quantize(x, name, axis=0)
    assert (other.block, other.scale.shape) == ((32, 1, 1), (1, 3, 70))
    np.testing.assert_array_equal(quantize(np.moveaxis(x, -1, 0), name, axis=0).codes, np.moveaxis(q.codes, -1, 0))
    # Dequantized values are exact in float32, and quantized again they stay.
    again = quantize(dequantize(q), name)
    np.testing.assert_array_equal(dequantize(again), dequantize(q))


def test_mx_elements_against_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = values((64, 96))
    for f, _ in MX.values():
        q = quantize(x, f, block=(1, 32), scale_format=E8M0)
        amax = np.abs(x).reshape(64, 3, 32).max(axis=2)
        shared = np.floor(np.log2(amax)) - math.floor(math.log2(f.max))
        np.testing.assert_array_equal(q.scale, np.exp2(shared))
        quotient = (x.reshape(64, 3, 32) / np.exp2(shared)[..., None]).clip(-f.max, f.max).reshape(x.shape)
        np.testing.assert_array_equal(q.codes, quotient.astype(getattr(ml_dtypes, f.name)).view(np.uint8))


def test_nan_infinity_and_zeros_in_mx() -> None:
    x = np.ones((4, 64), np.float32)
    x[0, 3], x[1, 40], x[2, :32] = np.nan, -np.inf, 0
    for dtype in (np.float32, np.float64):
        q = quantize(x.astype(dtype), "mxfp8_e4m3")
        assert q.scale.tolist() == [[2.0**-8] * 2, [2.0**-8] * 2, [2.0**-127, 2.0**-8], [2.0**-8] * 2]
        back = dequantize(q)
        assert np.flatnonzero(np.isnan(back)).tolist() == [3]
        assert back[1, 40] == -448 * 2.0**-8
        narrow = quantize(x.astype(dtype), "mxfp4")
        assert np.isnan(narrow.scale).tolist() == [[True, False], [False, False], [False, False], [False, False]]
        assert narrow.scale_codes[0].tolist() == [0xFF, 125]
        assert np.isnan(dequantize(narrow)[0, :32]).all()
        assert np.isnan(dequantize(narrow)).sum() == 32
        assert dequantize(narrow)[1, 40] == -1.5


def test_scales_of_a_format_with_a_mantissa() -> None:
    # NVFP4: groups of 16, E4M3 scales.
    x = values((6, 48)) * np.float32(2.0**-4)
    q = quantize(x, "e2m1fn", block=(1, 16), scale_format="e4m3fn")
    amax = np.abs(x).reshape(6, 3, 16).max(axis=2).astype(np.float64)
    np.testing.assert_array_equal(q.scale_codes, np.maximum(encode(amax / 6, "e4m3fn"), 1))
    assert scale_for(1e-9, "e2m1fn", scale_format="e4m3fn") == 2.0**-9
    assert scale_for([0.0, np.nan], "e2m1fn", scale_format="e4m3fn").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"block": 32}, ShapeError, "axis="),
        ({"block": (1, 32), "axis": 1}, ShapeError, "leave one out"),
        ({"block": (1, -1)}, ShapeError, "whole numbers"),
        ({"block": (1, 2, 3)}, ShapeError, "at most 2"),
        ({"block": (1, 2.0)}, ShapeError, "whole numbers"),
        ({"block": "ab"}, ShapeError, "whole numbers"),
        ({"block": (1, 2), "scale": np.ones((2, 3))}, ShapeError, r"\(2, 2\)"),
        ({"block": (1, 2), "scale": 1.0}, ShapeError, r"\(2, 2\)"),
        ({"block": (1, 2), "scale": np.zeros((2, 2))}, ScaleError, "positive"),
        ({"block": (1, 2), "scale": np.full((2, 2), 3.0), "scale_format": "e8m0fnu"}, ScaleError, "3.0 is not a value"),
        ({"block": (1, 2), "scale": np.full((2, 2), np.nan)}, ScaleError, "finite"),
        ({"block": (1, 2), "scale_rule": "floor"}, PolicyError, "powers of two"),
        ({"scale_rule": "flor", "scale_format": "e8m0fnu"}, PolicyError, "floor, ceil"),
        ({"scale_rule": "floor", "scale": 1.0}, PolicyError, "no use"),
        ({"fmt": "mxfp4", "block": (1, 16)}, PolicyError, "own block"),
        ({"fmt": "mxfp4", "axis": 2}, ShapeError, "got 2"),
        ({"fmt": "mxfp5"}, FormatError, "mxfp5"),
    ],
)
def test_quantize_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {"x": np.ones((2, 3), np.float32), "fmt": "e4m3fn"} | arguments
    with pytest.raises(error, match=message):
        quantize(call.pop("x"), call.pop("fmt"), **call)


# -- products ---------------------------------------------------------------------------------------------------------


def expanded(q: QTensor) -> np.ndarray:
    """float64 scales of q's shape."""
    scale = q.scale.astype(np.float64)
    for axis, (n, b) in enumerate(zip(q.shape, q.block or (), strict=False)):
        scale = scale.take(np.arange(n) // b, axis=axis)
    return np.broadcast_to(scale, q.shape)


def segments(a: QTensor, b: QTensor) -> list[slice]:
    K = a.shape[-1]
    ends = {0, K}
    for q, axis in ((a, -1), (b, -2)):
        if q.block is not None:
            ends |= set(range(0, K, q.block[axis]))
    return [slice(*pair) for pair in itertools.pairwise(sorted(ends))]


def law_exact(a: QTensor, b: QTensor) -> np.ndarray:
    """f32 (M, N) in rational numbers, rounded once."""
    left = [[Fraction(v) for v in row] for row in dequantize(a, dtype=np.float64).tolist()]
    right = [[Fraction(v) for v in row] for row in dequantize(b, dtype=np.float64).T.tolist()]
    return np.array([[rounded(sum((x * y for x, y in zip(r, c, strict=True)), Fraction(0))) for c in right] for r in left], np.float32)


def law_fused(a: QTensor, b: QTensor, how: str) -> np.ndarray:
    """f32 (M, N): partial sums of the codes, then one fused multiply-add for each segment."""
    (M, N), s, t = (a.shape[0], b.shape[1]), expanded(a), expanded(b)
    total = np.zeros((M, N), np.float32)
    for part in segments(a, b):
        sums = fp8np.matmul(QTensor(a.codes[:, part], a.format), QTensor(b.codes[part], b.format), accumulate=how)
        for m, n in np.ndindex(M, N):
            product = Fraction(s[m, part.start]) * Fraction(t[part.start, n])
            # Scales here stay within float32.
            total[m, n] = rounded(Fraction(float(total[m, n])) + Fraction(float(sums[m, n])) * Fraction(float(rounded(product))))
    return total


def operands(seed: int, M: int = 5, K: int = 70, N: int = 6) -> list[tuple[QTensor, QTensor]]:
    x, y = values((M, K), seed=seed), values((K, N), seed=seed + 1)
    return [
        (quantize(x, "mxfp8_e4m3"), quantize(y, "mxfp8_e5m2", axis=0)),
        (quantize(x, "mxfp4"), quantize(y, "mxfp6_e3m2", axis=0)),
        (quantize(x, "e4m3fn", block=(1, 48)), quantize(y, "e4m3fn", block=(48, 4))),
        (quantize(x, "e5m2", block=(2, 32)), quantize(y, "e3m4fn", block=(24, 1))),
        (quantize(x, "e5m2", axis=0), quantize(y, "mxfp8_e5m2", axis=0)),
        (quantize(x, "e4m3fn", block=(2, 0)), quantize(y, "e3m4fn")),
        (quantize(x, "e2m1fn", block=(1, 16), scale_format="e4m3fn"), quantize(y, "e2m1fn", block=(16, 1), scale_format="e4m3fn")),
    ]


@pytest.mark.parametrize("case", range(7))
def test_exact_products(case: int) -> None:
    a, b = operands(3)[case]
    assert_same_bits(fp8np.matmul(a, b, accumulate="exact"), law_exact(a, b))


@pytest.mark.parametrize("how", ["fp32", "sequential", "hopper"])
@pytest.mark.parametrize("case", range(7))
def test_fused_products(case: int, how: str) -> None:
    a, b = operands(5)[case]
    assert_same_bits(fp8np.matmul(a, b, accumulate=how), law_fused(a, b, how))


def test_exact_products_that_cancel() -> None:
    rng = np.random.default_rng(11)
    codes = rng.integers(0, 0x7B, (3, 64), np.uint8)
    scale = rng.uniform(0.5, 2, (3, 4)).astype(np.float32)
    a = QTensor(np.concatenate([codes, codes[:, :63]], axis=1), "e5m2", np.concatenate([scale, scale], axis=1), block=(1, 16))
    one = QTensor(np.array([0x3C] * 64 + [0xBC] * 63, np.uint8)[:, None], "e5m2", 1.0)
    last = decode_table("e5m2")[codes[:, 63]].astype(np.float64) * scale[:, 3]
    np.testing.assert_array_equal(fp8np.matmul(a, one, accumulate="exact")[:, 0], last.astype(np.float32))


@pytest.mark.parametrize("f", [f for f in FORMATS.values() if f.signed], ids=str)
def test_the_smallest_product_outlives_the_largest(f: FloatFormat) -> None:
    # (max^2 + middle^2 + min^2) - max^2 - middle^2, each bracket a segment, under the same scales: 2 to 24 bits, or powers of two.
    top, middle = f.max_magnitude, f.max_magnitude // 2
    codes = np.array([[top, middle, 1, top | f.sign_bit, middle | f.sign_bit, 0]], np.uint8)
    others = np.array([top, middle, 1, top, middle, 0], np.uint8)[:, None]
    for s, t in ((1.1, 1.3), (1 + 2.0**-23, 2 - 2.0**-23), (0.75, 4.0)):
        a = QTensor(codes, f, np.full((1, 2), s, np.float32), block=(1, 3))
        b = QTensor(others, f, np.full((2, 1), t, np.float32), block=(3, 1))
        assert_same_bits(fp8np.matmul(a, b, accumulate="exact"), law_exact(a, b))
    small = math.frexp(f.smallest_subnormal)[1]
    for code in (127, min(max(127 - small, 0), 200)):
        a = QTensor(codes, f, np.full((1, 2), code, np.uint8), block=(1, 3), scale_format=E8M0)
        b = QTensor(others, f, np.full((2, 1), code, np.uint8), block=(3, 1), scale_format=E8M0)
        got = fp8np.matmul(a, b, accumulate="exact")
        assert_same_bits(got, law_exact(a, b))
        assert got[0, 0] > 0 or code == 127


@pytest.mark.parametrize("name", sorted(ACCUMULATORS))
def test_every_accumulator_takes_blocks(name: str) -> None:
    a, b = operands(7)[0]
    exact = dequantize(a, dtype=np.float64) @ dequantize(b, dtype=np.float64)
    bound = np.abs(dequantize(a, dtype=np.float64)) @ np.abs(dequantize(b, dtype=np.float64))
    assert (np.abs(fp8np.matmul(a, b, accumulate=name) - exact) <= 2.0**-8 * bound).all()


@pytest.mark.parametrize("how", ["fp32", "exact"])
def test_batches_broadcast_and_vectors_fit(how: str) -> None:
    x, y = values((2, 1, 4, 40)), values((3, 40, 5), seed=1)
    for a, b in (
        (quantize(x, "mxfp8_e4m3"), quantize(y, "mxfp8_e4m3", axis=1)),
        (quantize(x, "e4m3fn", block=(0, 1, 3, 16)), quantize(y, "e4m3fn", block=(2, 16, 2))),
        (quantize(x, "e4m3fn", axis=0), quantize(y, "mxfp8_e4m3", axis=1)),
    ):
        got = fp8np.matmul(a, b, accumulate=how)
        assert got.shape == (2, 3, 4, 5)
        for i, j in np.ndindex(2, 3):
            left = QTensor(a.codes[i, 0], a.format, expanded(a)[i, 0], block=(1, 1))
            right = QTensor(b.codes[j], b.format, expanded(b)[j], block=(1, 1))
            if how == "exact":
                assert_same_bits(got[i, j], fp8np.matmul(left, right, accumulate=how))
            np.testing.assert_allclose(got[i, j], fp8np.matmul(left, right), rtol=1e-4, atol=1e-2)
    a, b = quantize(x[0, 0, 0], "mxfp4"), quantize(y[0, :, 0], "mxfp8_e4m3")
    assert fp8np.matmul(a, b, accumulate=how).shape == ()
    assert fp8np.matmul(quantize(x[0, 0], "mxfp4"), b, accumulate=how).shape == (4,)
    assert fp8np.matmul(a, quantize(y, "mxfp4", axis=1), accumulate=how).shape == (3, 5)


def test_linear_is_matmul_with_the_transposed_weight() -> None:
    x, w = quantize(values((2, 3, 70)), "e4m3fn", block=(1, 32)), quantize(values((9, 70), seed=2), "e4m3fn", block=(8, 32))
    for how in ("fp32", "exact", "hopper"):
        assert_same_bits(fp8np.linalg.linear(x, w, accumulate=how), fp8np.matmul(x, w.T, accumulate=how))


@pytest.mark.parametrize("how", ["fp32", "exact"])
def test_threads_and_tiles_change_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = values((300, 130)), values((130, 200), seed=1)
    a, b = quantize(x, "e4m3fn", block=(1, 64)), quantize(y, "e5m2", block=(64, 64))
    with threads(1):
        alone = fp8np.matmul(a, b, accumulate=how)
    monkeypatch.setattr(_blocks, "MEMORY", 1 << 18)
    with threads(3):
        assert_same_bits(fp8np.matmul(a, b, accumulate=how), alone)


@pytest.mark.parametrize("how", ["fp32", "exact"])
def test_empty_products(how: str) -> None:
    for M, K, N in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        a = quantize(np.ones((M, K), np.float32), "e4m3fn", block=(1, 2))
        b = quantize(np.ones((K, N), np.float32), "e4m3fn", block=(2, 1))
        assert_same_bits(fp8np.matmul(a, b, accumulate=how), np.full((M, N), K, np.float32))


@pytest.mark.parametrize("how", ["fp32", "exact", "hopper"])
def test_nan_and_infinity(how: str) -> None:
    one, inf = 0x3C, 0x7C
    codes = np.full((5, 8), one, np.uint8)
    codes[0, 1], codes[1, 6], codes[2, 0], codes[2, 7] = inf, inf | 0x80, inf, inf | 0x80
    scale = np.full((5, 2), 127, np.uint8)
    scale[3, 1] = 0xFF
    a = QTensor(codes, "e5m2", scale, block=(1, 4), scale_format=E8M0)
    b = QTensor(np.full((8, 2), one, np.uint8), "e5m2")
    np.testing.assert_array_equal(fp8np.matmul(a, b, accumulate=how)[:, 0], [np.inf, -np.inf, np.nan, np.nan, 8])


@pytest.mark.parametrize("how", ["fp32", "exact"])
def test_the_product_of_two_scales_may_leave_float32(how: str) -> None:
    code = np.array([[0x38] * 4 + [0] * 4], np.uint8)
    tiny = QTensor(code, "e4m3fn", np.array([[0, 254]], np.uint8), block=(1, 4), scale_format=E8M0)
    top = np.array([[0x7E] * 4 + [0x38] * 4], np.uint8)
    other = QTensor(top.T, "e4m3fn", np.array([[0, 254]], np.uint8).T, block=(4, 1), scale_format=E8M0)
    # 4 * 448 * 2^-254 is below float32; zeros times 2^254 are zero.
    assert fp8np.matmul(tiny, other, accumulate=how).tolist() == [[0]]
    huge = QTensor(code, "e4m3fn", np.array([[200, 127]], np.uint8), block=(1, 4), scale_format=E8M0)
    small = QTensor(top.T, "e4m3fn", np.array([[0, 127]], np.uint8).T, block=(4, 1), scale_format=E8M0)
    assert fp8np.matmul(huge, small, accumulate=how).tolist() == [[4 * 448 * 2.0 ** (200 - 127 - 127)]]


def test_a_nan_elsewhere_leaves_sums_that_only_their_scales_bring_into_range() -> None:
    # 32 products of 2^254 are beyond float32; scaled by 2^-200 they are 2^59.
    f = next(f for f in FORMATS.values() if f.max_exponent == 127 and not f.has_zero)
    codes = np.full((2, 32), f.max_magnitude, np.uint8)
    scale = np.full((2, 1), 2.0**-100, np.float32)
    a = QTensor(codes, f, scale, block=(1, 32))
    np.testing.assert_array_equal(fp8np.matmul(a, a.T, accumulate="exact"), np.full((2, 2), 2.0**59))
    codes = codes.copy()
    codes[1, 0] = next(iter(f.nan_codes))
    b = QTensor(codes, f, scale, block=(1, 32))
    np.testing.assert_array_equal(fp8np.matmul(a, b.T, accumulate="exact"), [[2.0**59, np.nan]] * 2)


def test_exact_products_of_every_format() -> None:
    rng = np.random.default_rng(2)
    for f in FORMATS.values():
        table = decode_table(f)
        finite = np.flatnonzero(np.isfinite(table)).astype(np.uint8)
        a = QTensor(rng.choice(finite, (2, 12)), f, rng.uniform(1, 2, (2, 3)), block=(1, 4))
        b = QTensor(rng.choice(finite, (12, 2)), "e4m3fn" if f.bits < 8 else f, np.full((3, 2), 2.0), block=(4, 1))
        assert_same_bits(fp8np.matmul(a, b, accumulate="exact"), law_exact(a, b))


def test_products_refuse() -> None:
    a, b = operands(0)[0]
    with pytest.raises(PolicyError, match="init"):
        fp8np.matmul(a, b, init=np.float32(1))
    with pytest.raises(ShapeError, match="the K differ"):
        fp8np.matmul(a, b.T)
    with pytest.raises(ScaleError, match="summed over"):
        fp8np.matmul(a, QTensor(b.codes, b.format, np.ones((70, 1))))
    with pytest.raises(ShapeError, match="broadcast"):
        fp8np.matmul(quantize(np.ones((2, 3, 4)), "mxfp4"), quantize(np.ones((3, 4, 2)), "mxfp4", axis=1))
    with pytest.raises(ShapeError, match="at least one axis"):
        fp8np.matmul(a, quantize(1.0, "e4m3fn", block=()))
    for conv, shape in ((fp8np.conv2d, (1, 4, 4, 4)), (fp8np.conv_transpose2d, (4, 4, 2, 2))):
        x, w = quantize(np.ones(shape), "e4m3fn"), quantize(np.ones(shape), "mxfp8_e4m3", axis=1)
        for left, right in ((x, w), (w, x)):
            with pytest.raises(ScaleError, match="blocks"):
                conv(left, right)


def test_parts_and_layouts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape, block in LAYOUTS:
        x = values(shape)
        q = quantize(x, "e4m3fn", block=block)
        back = dequantize(q)
        with monkeypatch.context() as patched:
            patched.setattr(scaling, "_layout", lambda *_: None)
            other = quantize(x, "e4m3fn", block=block)
            np.testing.assert_array_equal(q.codes, other.codes)
            np.testing.assert_array_equal(q.scale, other.scale)
            np.testing.assert_array_equal(back, dequantize(other))


# -- kernels ----------------------------------------------------------------------------------------------------------


def test_one_signature_for_every_core() -> None:
    for writeable in (True, False):
        for block in ((1, 8), (8, 1), (4, 8)):
            x = values((12, 30))
            x.flags.writeable = writeable
            a, b = quantize(x, "e4m3fn", block=block), quantize(x.T, "e4m3fn", block=(8, 8))
            for q in (a, a.T, b):
                dequantize(q)
            fp8np.matmul(a, b)
            fp8np.matmul(b.T, a.T)
    for core in (kernels._amax_blocks, kernels._divide_blocks, kernels._multiply_blocks, kernels._add_scaled):
        assert len(core.signatures) <= 1, core


PURE = """
import hashlib, numpy as np, fp8np
from fp8np.scaling import quantize, dequantize
rng, results = np.random.default_rng(6), []
x, y = rng.standard_normal((3, 20)).astype(np.float32), rng.standard_normal((20, 4)).astype(np.float32)
x[0, 0], x[1, 7] = np.inf, np.nan
for left, right in (((1, 8), (8, 1)), ((2, 8), (8, 2))):
    a, b = quantize(x, "e5m2", block=left), quantize(y, "e4m3fn", block=right)
    results += [a.codes, a.scale, b.codes, dequantize(a), dequantize(b), fp8np.matmul(a, b), fp8np.matmul(a, b, accumulate="exact")]
print([hashlib.sha256(np.nan_to_num(r).tobytes()).hexdigest() for r in results])
"""


def test_kernels_give_the_same_bits_uncompiled() -> None:
    def run(**variables: str) -> str:
        environment = {**os.environ, **variables}
        return subprocess.run([sys.executable, "-c", PURE], env=environment, capture_output=True, text=True, check=True).stdout

    assert run(NUMBA_DISABLE_JIT="1") == run()
