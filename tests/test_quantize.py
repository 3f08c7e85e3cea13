"""quantize, dequantize and scale_for: scales of every shape, special values, and the definition codes = encode(x / scale)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from _law import EXTREME, SIGNED_FORMATS

from fp8np import codec, scaling
from fp8np.errors import DTypeError, FormatError, ScaleError, ShapeError
from fp8np.formats import FloatFormat, get_format
from fp8np.kernels import _bits
from fp8np.kernels._table import select
from fp8np.kernels._threads import threads
from fp8np.tensor import QTensor

E4M3FN = get_format("e4m3fn")
SHAPES = [(), (0,), (1,), (37,), (5, 0), (0, 5), (6, 33), (4, 5, 6), (2, 1, 3, 7)]


def normal(shape: Any, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_those_of_the_quotient(shape: tuple[int, ...], dtype: Any) -> None:
    x = normal(shape, dtype) * np.asarray(3, dtype)
    wide = x.astype(np.float64 if dtype is np.float64 else np.float32)
    for f in (E4M3FN, get_format("e5m2"), get_format("e3m4fn")):
        for axis in (None, *range(-len(shape), len(shape))):
            q = scaling.quantize(x, f, axis=axis)
            others = None if axis is None else tuple(i for i in range(len(shape)) if i != axis % len(shape))
            amax = np.abs(wide).max(axis=others, keepdims=axis is not None, initial=0)
            expected = np.where(amax > 0, amax / wide.dtype.type(f.max), 1).astype(np.float32)
            np.testing.assert_array_equal(q.scale, expected)
            np.testing.assert_array_equal(q.codes, codec.encode(wide / q.scale.astype(wide.dtype), f))
            assert (q.shape, q.format, q.scale.shape) == (shape, f, expected.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_of_every_shape(dtype: Any) -> None:
    x = normal((4, 5, 6), dtype)
    for axis, n in enumerate(x.shape):
        scale = np.linspace(0.01, 0.2, n, dtype=np.float32)
        along = scale.reshape([-1 if i == axis else 1 for i in range(3)])
        expected = codec.encode(x / along.astype(dtype), E4M3FN)
        for q in (
            scaling.quantize(x, E4M3FN, axis=axis, scale=scale),
            scaling.quantize(x, E4M3FN, axis=axis - 3, scale=scale.tolist()),
            scaling.quantize(x, E4M3FN, axis=axis, scale=along),
            scaling.quantize(x, E4M3FN, scale=along),
        ):
            np.testing.assert_array_equal(q.codes, expected)
            np.testing.assert_array_equal(q.scale, along)
    for one in (0.25, np.float64(0.25), np.full((1, 1, 1), 0.25)):
        for axis in (None, 1):
            np.testing.assert_array_equal(scaling.quantize(x, E4M3FN, axis=axis, scale=one).codes, codec.encode(x * 4, E4M3FN))
    each = np.abs(normal(x.shape, np.float32, 1)) + 0.1
    np.testing.assert_array_equal(scaling.quantize(x, E4M3FN, scale=each).codes, codec.encode(x / each.astype(dtype), E4M3FN))


def test_an_axis_of_length_one_with_one_scale() -> None:
    x = normal((5, 1))
    q = scaling.quantize(x, E4M3FN, axis=1, scale=[0.5])
    assert q.scale.shape == (1, 1)
    np.testing.assert_array_equal(q.codes, codec.encode(x * 2, E4M3FN))


def test_nan_and_infinity_have_no_say_in_the_scale() -> None:
    x = np.array([[1.0, -2.0, np.nan, np.inf, -np.inf], [0, 0, 0, 0, 0], [np.nan] * 5, [np.inf, 0, 1e-3, 0, 0]])
    for dtype in (np.float32, np.float64):
        q = scaling.quantize(x.astype(dtype), E4M3FN, axis=0)
        assert q.scale.tolist() == [[np.float32(2 / 448)], [1], [1], [np.float32(dtype(1e-3) / 448)]]
        assert q.codes[0].tolist() == [0x76, 0xFE, 0x7F, 0x7E, 0xFE]
        assert q.codes[1:3].tolist() == [[0] * 5, [0x7F] * 5]
        assert q.codes[3].tolist() == [0x7E, 0, 0x7E, 0, 0]
    assert scaling.quantize(x[0].astype(np.float32), "e5m2").codes.tolist() == [0x77, 0xFB, 0x7E, 0x7B, 0xFB]
    assert scaling.quantize([-np.nan], "e5m2").codes.tolist() == [0xFE]


@pytest.mark.parametrize("f", [*SIGNED_FORMATS, *EXTREME], ids=str)
@pytest.mark.parametrize("amax", [5e-324, 1.4e-45, 2.0**-140, 2.0**-126, 1e-30, 1.0, 1e30, 3.4e38, 1e39, 1.7e308])
def test_scales_are_finite_and_positive_and_cover(f: FloatFormat, amax: float) -> None:
    scale = scaling.scale_for(amax, f)
    assert scale.dtype == np.float32
    assert 2.0**-126 <= scale <= np.finfo(np.float32).max
    if scale < np.finfo(np.float32).max:
        assert amax / float(scale) <= f.max * (1 + 2.0**-24)
    for x in (np.array([amax, -amax]), np.array([amax, -amax]).clip(-3.4e38, 3.4e38).astype(np.float32)):
        q = scaling.quantize(x, f)
        assert np.isfinite(codec.decode(q.codes, f)).all()
        with np.errstate(divide="ignore"):
            assert (q.codes[0] & f.magnitude_mask) == (q.codes[1] & f.magnitude_mask)


def test_scale_for_arrays() -> None:
    scales = scaling.scale_for([[0.0, np.nan, np.inf], [-1.0, 448.0, 1.0]], E4M3FN)
    assert scales.tolist() == [[1, 1, 1], [1, 1, np.float32(1 / 448)]]


def test_float64_is_divided_in_float64() -> None:
    # 1 + 2^-30 over 1 is above the midpoint only in float64.
    x = np.array([1.0625 * (1 + 2.0**-30)])
    assert scaling.quantize(x, E4M3FN, scale=1.0).codes.tolist() == [0x39]
    assert scaling.quantize(x.astype(np.float32), E4M3FN, scale=1.0).codes.tolist() == [0x38]


def test_threads_change_nothing() -> None:
    x = normal((3 << 10, 1 << 10))
    x[0, 0] = np.inf
    for axis in (None, 0, 1):
        with threads(1):
            alone = scaling.quantize(x, E4M3FN, axis=axis)
        with threads(3):
            together = scaling.quantize(x, E4M3FN, axis=axis)
        np.testing.assert_array_equal(alone.codes, together.codes)
        np.testing.assert_array_equal(alone.scale, together.scale)


def test_amax_leaves_out_what_is_not_finite() -> None:
    x = normal((3, 4, 5))
    x[0, 0, 0], x[1, 1, 1], x[2, 2, 2] = np.nan, -np.inf, np.inf
    out = np.full(4, np.nan, np.float32)
    select("amax")(x, out)
    np.testing.assert_array_equal(out, np.where(np.isfinite(x), np.abs(x), 0).max(axis=(0, 2)))


def test_dequantize_rounds_once() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(5)
    scale = rng.uniform(0.5, 2, (256, 1)).astype(np.float32)
    q = QTensor(np.repeat(np.arange(256, dtype=np.uint8)[None], 256, axis=0), E4M3FN, scale)
    exact = codec.decode_table(E4M3FN).astype(np.float64) * scale.astype(np.float64)
    np.testing.assert_array_equal(scaling.dequantize(q, dtype=np.float64), exact)
    np.testing.assert_array_equal(scaling.dequantize(q), exact.astype(np.float32))
    np.testing.assert_array_equal(scaling.dequantize(q, dtype=np.float16), exact.astype(np.float16))
    halves = scaling.dequantize(q, dtype=ml_dtypes.bfloat16).astype(np.float64)
    number = np.isfinite(exact)
    assert (np.abs(halves - exact)[number] <= 2.0**-8 * np.abs(exact)[number]).all()
    with pytest.raises(DTypeError, match="int8"):
        scaling.dequantize(q, dtype=np.int8)


def test_dequantize_to_bfloat16_where_two_roundings_would_go_wrong() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    # 1.125 * s lies just above a midpoint of bfloat16, by less than float32 can tell.
    scales = np.float32(1) + np.arange(1, 1 << 19, dtype=np.float32) * np.float32(2.0**-23)
    exact = 1.125 * scales.astype(np.float64)
    midpoint = np.floor(exact * 128) / 128 + 2.0**-8
    wanted = (exact > midpoint) & (exact.astype(np.float32) == midpoint)
    assert (midpoint[wanted].astype(ml_dtypes.bfloat16) < midpoint[wanted]).any()
    for s, m in zip(scales[wanted].tolist(), midpoint[wanted].tolist(), strict=True):
        value = scaling.dequantize(QTensor(np.array([0x39], np.uint8), E4M3FN, s), dtype=ml_dtypes.bfloat16)
        assert float(value[0]) == m + 2.0**-8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"axis": 2}, ShapeError, "got 2"),
        ({"axis": -3}, ShapeError, "got -3"),
        ({"scale": [1, 2, 3]}, ShapeError, "axis="),
        ({"scale": [1, 2], "axis": 1}, ShapeError, r"\(2,\).*\(2, 3\)"),
        ({"scale": np.ones((2, 1)), "axis": 1}, ShapeError, "axis=1"),
        ({"scale": np.ones((1, 2, 3))}, ShapeError, "does not fit"),
        ({"scale": 0.0}, ScaleError, "positive"),
        ({"scale": -1.0}, ScaleError, "positive"),
        ({"scale": np.nan}, ScaleError, "finite"),
        ({"scale": [1, np.inf], "axis": 0}, ScaleError, "finite"),
        ({"fmt": "e8m0fnu"}, FormatError, "scales"),
        ({"x": ["a"]}, DTypeError, "real numbers"),
    ],
)
def test_quantize_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"x": np.ones((2, 3), np.float32), "fmt": "e4m3fn"} | arguments
    with pytest.raises(error, match=message):
        scaling.quantize(given.pop("x"), given.pop("fmt"), **given)


def test_bit_casts_have_pure_python_twins() -> None:
    for x in (np.float32(-1.5), np.float32(1e-45), np.float32(np.inf)):
        bits = x.view(np.uint32)
        assert _bits.float32_bits(x) == _bits.float32_bits.py_func(x) == bits
        assert _bits.float32_of(bits) == _bits.float32_of.py_func(bits) == x
