"""Codes in order: exhaustive over all pairs of codes against exact values, and against NumPy's own float16 and ml_dtypes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from _law import ALL_FORMATS, EXTREME

from fp8np import codec, ordering, reference
from fp8np.errors import DTypeError, FormatError, ShapeError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.scaling import quantize
from fp8np.tensor import QTensor

FORMATS_TESTED = (*ALL_FORMATS, *EXTREME)
everywhere = pytest.mark.parametrize("fmt", FORMATS_TESTED, ids=str)
E4M3, E5M2 = get_format("e4m3fn"), get_format("e5m2")


def all_codes(fmt: FloatFormat) -> Any:
    return np.arange(1 << fmt.bits, dtype=np.uint8)


def law_values(fmt: FloatFormat) -> list[Fraction | float]:
    return [reference.decode(fmt, code) for code in range(1 << fmt.bits)]


def as_floats(fmt: FloatFormat) -> Any:
    return np.array([float(v) for v in law_values(fmt)])


@everywhere
def test_classes(fmt: FloatFormat) -> None:
    codes, values = all_codes(fmt), as_floats(fmt)
    np.testing.assert_array_equal(ordering.isnan(codes, fmt), np.isnan(values))
    np.testing.assert_array_equal(ordering.isinf(codes, fmt), np.isinf(values))
    np.testing.assert_array_equal(ordering.isfinite(codes, fmt), np.isfinite(values))
    number = ~np.isnan(values)
    np.testing.assert_array_equal(ordering.signbit(codes, fmt)[number], np.signbit(values)[number])


@everywhere
def test_nextafter_is_the_nearest_value_on_that_side(fmt: FloatFormat) -> None:
    # Against the sorted values, by bisection: another way than counting magnitudes.
    codes, values = all_codes(fmt), as_floats(fmt)
    known = np.unique(values[~np.isnan(values)])
    x, y = (grid.ravel() for grid in np.meshgrid(codes, codes, indexing="ij"))
    moved = ordering.nextafter(x, y, fmt)
    a, b = values[x], values[y]
    number = ~(np.isnan(a) | np.isnan(b))
    here = np.searchsorted(known, np.where(number, a, known[0]))
    expected = known[np.clip(here + np.where(a < b, 1, -1), 0, known.size - 1)]
    expected = np.where(a == b, b, expected)
    np.testing.assert_array_equal(values[moved][number], expected[number])
    # Zeros: the target's own where nothing moves; else the sign of where the step came from.
    zero = number & (values[moved] == 0)
    sign = np.where(a == b, np.signbit(b), np.signbit(a) & fmt.has_negative_zero)
    np.testing.assert_array_equal(np.signbit(values[moved])[zero], sign[zero])
    np.testing.assert_array_equal(moved[~number], np.where(np.isnan(a), x, y)[~number])


@everywhere
def test_spacing_is_the_step_away_from_zero(fmt: FloatFormat) -> None:
    codes, values = all_codes(fmt), as_floats(fmt)
    got = ordering.spacing(codes, fmt)
    assert got.dtype == np.float32
    for code, value, step in zip(codes.tolist(), law_values(fmt), got.tolist(), strict=True):
        if isinstance(value, float) and not math.isfinite(value):
            assert math.isnan(step)
            continue
        magnitude = code & fmt.magnitude_mask
        beyond = reference.magnitude_value(fmt, magnitude + 1)
        sign = -1 if value < 0 else 1
        assert Fraction(step) == sign * (beyond - abs(Fraction(value)))
        if magnitude < fmt.max_magnitude and value:
            away = np.uint8(fmt.max_magnitude | (fmt.sign_bit if value < 0 else 0))
            assert values[ordering.nextafter(np.uint8(code), away, fmt)] - values[code] == step


@everywhere
def test_compare(fmt: FloatFormat) -> None:
    codes, values = all_codes(fmt), as_floats(fmt)
    got = ordering.compare(codes[:, None], codes, fmt)
    a, b = values[:, None], values
    expected = np.where(np.isnan(a) | np.isnan(b), ordering.UNORDERED, (a > b).astype(int) - (a < b))
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, expected)


@everywhere
def test_total_order_is_total_and_refines_the_order_of_numbers(fmt: FloatFormat) -> None:
    codes, values = all_codes(fmt), as_floats(fmt)
    before = ordering.total_order(codes[:, None], codes, fmt)
    np.testing.assert_array_equal(before | before.T, True)
    np.testing.assert_array_equal(before & before.T, np.eye(codes.size, dtype=bool))
    ordered = codes[np.argsort(ordering.order_key(codes, fmt))]
    np.testing.assert_array_equal(before[np.ix_(ordered, ordered)], np.triu(np.ones((codes.size, codes.size), bool)))
    a, b = values[:, None], values
    assert before[a < b].all()
    assert not before[a > b].any()
    if fmt.has_negative_zero:
        assert before[fmt.sign_bit, 0]
    for code in fmt.nan_codes:
        others = ~np.isnan(values)
        assert (before[code, others] if code & fmt.sign_bit else before[others, code]).all()


def total_order_of_the_standard(x: int, y: int, fmt: FloatFormat) -> bool:
    # IEEE 754-2019, 5.10, clause by clause, for formats with a quiet bit.
    a, b = reference.decode(fmt, x), reference.decode(fmt, y)
    negative = bool(x & fmt.sign_bit), bool(y & fmt.sign_bit)
    nans = x in fmt.nan_codes, y in fmt.nan_codes
    if nans == (False, False):
        return a < b or (a == b and (negative[0] or not negative[1]))
    if nans != (True, True):
        return negative[0] if nans[0] else not negative[1]
    if negative[0] != negative[1]:
        return negative[0]
    quiet_bit = 1 << (fmt.mantissa_bits - 1)
    keys = [(bool(c & quiet_bit), c & (quiet_bit - 1)) for c in (x, y)]  # signalling below quiet, then the lesser payload
    return keys[0] >= keys[1] if negative[0] else keys[0] <= keys[1]


@pytest.mark.parametrize("name", ["e5m2", "e4m3", "e3m4"])
def test_total_order_is_that_of_the_standard(name: str) -> None:
    fmt = get_format(name)
    codes = all_codes(fmt)
    got = ordering.total_order(codes[:, None], codes, fmt)
    expected = [[total_order_of_the_standard(x, y, fmt) for y in codes.tolist()] for x in codes.tolist()]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e3m4", "float6_e2m3fn", "float4_e2m1fn"])
def test_against_ml_dtypes(name: str) -> None:
    fmt = get_format(name)
    codes = all_codes(fmt)
    theirs = codes.view(getattr(ml_dtypes, name))
    np.testing.assert_array_equal(ordering.signbit(codes, fmt), np.signbit(theirs))
    np.testing.assert_array_equal(ordering.signbit(theirs), np.signbit(theirs))
    np.testing.assert_array_equal(ordering.isnan(theirs), np.isnan(theirs))
    x, y = (grid.ravel() for grid in np.meshgrid(codes, codes, indexing="ij"))
    number = ~(ordering.isnan(x, fmt) | ordering.isnan(y, fmt))
    moved = np.nextafter(x.view(theirs.dtype), y.view(theirs.dtype)).view(np.uint8)
    got = ordering.nextafter(x, y, fmt)
    # Theirs keeps the first of two equal zeros; C and NumPy's own types give the second.
    zeros = ordering.compare(x, y, fmt) == 0
    np.testing.assert_array_equal(got[number & ~zeros], moved[number & ~zeros])
    with np.errstate(all="ignore"):
        spacing = np.spacing(theirs).astype(np.float32)
    inner = np.isfinite(as_floats(fmt)) & ((codes & fmt.magnitude_mask) < fmt.max_magnitude) & ((codes & fmt.magnitude_mask) > 0)
    np.testing.assert_array_equal(ordering.spacing(codes, fmt)[inner], spacing[inner])


def test_edges_as_numpy_has_them() -> None:
    # e5m2 is float16 without its last eight bits. Of two equal zeros C, and so NumPy's float32, gives the second; its float16 does not.
    codes = np.array([0x00, 0x80, 0x01, 0x81, 0x7B, 0x7C, 0xFC], np.uint8)
    half = (codes.astype(np.uint16) << 8).view(np.float16)
    with np.errstate(all="ignore"):
        theirs = np.signbit(np.nextafter(half[:, None], half))
        equal = half[:, None] == half
        single = np.signbit(np.nextafter(half[:, None].astype(np.float32), half.astype(np.float32)))
    got = ordering.nextafter(codes[:, None], codes, E5M2)
    np.testing.assert_array_equal(ordering.signbit(got, E5M2), np.where(equal, single, theirs))
    np.testing.assert_array_equal(got[equal], np.broadcast_to(codes, got.shape)[equal])
    assert ordering.nextafter(np.uint8(0x7B), np.uint8(0x7C), E5M2) == 0x7C
    assert ordering.nextafter(np.uint8(0x7C), np.uint8(0x00), E5M2) == 0x7B
    assert ordering.spacing(np.uint8(0x80), E5M2) == 2.0**-16
    assert math.isnan(ordering.spacing(np.uint8(0x7C), E5M2))


def test_sorting_sorts() -> None:
    codes = np.random.default_rng(1).integers(0, 256, (7, 500), np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x80
    ordered = np.take_along_axis(codes, np.argsort(ordering.order_key(codes, E4M3), axis=1), axis=1)
    np.testing.assert_array_equal(codec.decode(ordered, E4M3), np.sort(codec.decode(codes, E4M3), axis=1))
    negative_zeros, zeros = ordered == 0x80, ordered == 0x00
    assert (negative_zeros.argmax(axis=1) + negative_zeros.sum(axis=1) == zeros.argmax(axis=1)).all()


def test_scalars_and_shapes() -> None:
    one = np.uint8(0x38)
    for result, dtype in (
        (ordering.isnan(one, E4M3), np.bool_),
        (ordering.signbit(one, E4M3), np.bool_),
        (ordering.nextafter(one, one, E4M3), np.uint8),
        (ordering.spacing(one, E4M3), np.float32),
        (ordering.compare(one, one, E4M3), np.int8),
        (ordering.total_order(one, one, E4M3), np.bool_),
        (ordering.order_key(one, E4M3), np.int16),
    ):
        assert type(result) is dtype
    grid = np.zeros((4, 6), np.uint8)[::2, ::3]
    assert ordering.nextafter(grid, np.ones((3, 1, 1), np.uint8), E4M3).shape == (3, 2, 2)
    assert ordering.compare(np.zeros((0, 3), np.uint8), one, E4M3).shape == (0, 3)


def test_tensors_have_classes() -> None:
    q = quantize([[1.0, -2.0, math.nan]], E4M3)
    assert ordering.isnan(q).tolist() == [[False, False, True]]
    assert ordering.isfinite(q).tolist() == [[True, True, False]]
    assert ordering.signbit(q).tolist() == [[False, True, False]]
    big = QTensor(np.array([0x7B, 0x7C], np.uint8), E5M2, scale=3e38)
    assert ordering.isinf(big).tolist() == [False, True]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ordering.isnan(np.zeros(3, np.uint8)), FormatError, "isnan: the format of the codes is needed"),
        (lambda: ordering.spacing(np.zeros(3, np.float32), E4M3), DTypeError, "spacing: expected uint8 codes"),
        (lambda: ordering.spacing(np.zeros(3, np.float32)), DTypeError, "spacing: expected uint8 codes"),
        (lambda: ordering.order_key(quantize([1.0], E4M3)), DTypeError, "order_key: got a QTensor; give its .codes"),
        (lambda: ordering.isnan(quantize([1.0], E4M3), E5M2), FormatError, "isnan: the QTensor is float8_e4m3fn, but"),
        (lambda: ordering.isnan(np.array([16], np.uint8), FORMATS["float4_e2m1fn"]), FormatError, "codes of 4 bits"),
        (lambda: ordering.compare(np.zeros(2, np.uint8), np.zeros(3, np.uint8), E4M3), ShapeError, r"compare: shapes \(2,\)"),
        (
            lambda: ordering.compare(np.zeros(2, ml_dtypes.float8_e5m2), np.zeros(2, ml_dtypes.float8_e4m3fn)),
            FormatError,
            "compare: the operands are of different formats, float8_e5m2 and float8_e4m3fn",
        ),
        (lambda: ordering.total_order(np.zeros(2, ml_dtypes.float8_e5m2), np.uint8(0), E4M3), FormatError, "float8_e5m2, but the format"),
    ],
)
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
