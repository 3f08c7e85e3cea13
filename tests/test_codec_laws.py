"""What must hold for any numbers: monotone, idempotent, symmetric, scaled by powers of two, and a bounded error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from _law import ALL_FORMATS, DETERMINISTIC, SIGNED_FORMATS
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fp8np import codec, scaling
from fp8np.formats import FloatFormat
from fp8np.policy import NAN, OVERFLOW

law = settings(max_examples=60, deadline=None, derandomize=True)

formats = st.sampled_from(ALL_FORMATS)
signed_formats = st.sampled_from(SIGNED_FORMATS)
roundings = st.sampled_from(DETERMINISTIC)
floats = st.floats(allow_nan=False) | st.floats(-1e3, 1e3) | st.floats(-1e-3, 1e-3)


def arrays(dtype: Any, elements: Any = None) -> Any:
    return hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=9), elements=elements)


def order(f: FloatFormat, codes: Any) -> Any:
    # Place of each code in the ascending order of values; both zeros at 0.
    magnitude = (codes & f.magnitude_mask).astype(int)
    return np.where(codes & f.sign_bit, -magnitude, magnitude)


@law
@given(formats, roundings, arrays(np.float64, floats))
def test_monotone(f: FloatFormat, rounding: str, x: Any) -> None:
    ascending = np.sort(np.abs(x) if not f.signed else x, axis=None)
    for source in (ascending, ascending.astype(np.float32) if np.abs(ascending).max() < 1e38 else ascending):
        places = order(f, codec.encode(source, f, rounding=rounding))
        assert (np.diff(places) >= 0).all()


@law
@given(formats, roundings, st.sampled_from(OVERFLOW), arrays(np.uint8))
def test_idempotent(f: FloatFormat, rounding: str, overflow: str, codes: Any) -> None:
    codes &= (1 << f.bits) - 1
    for dtype in (np.float32, np.float64):
        values = codec.decode(codes, f, dtype=dtype)
        back = codec.encode(values, f, rounding=rounding, overflow=overflow)
        finite = np.isfinite(values)
        np.testing.assert_array_equal(back[finite], codes[finite])
        again = codec.encode(codec.decode(back, f, dtype=dtype), f, rounding=rounding, overflow=overflow)
        np.testing.assert_array_equal(again, back)


@law
@given(signed_formats, roundings, st.sampled_from(OVERFLOW), st.sampled_from(NAN[:2]), arrays(np.float32))
def test_sign_symmetric(f: FloatFormat, rounding: str, overflow: str, nan: str, x: Any) -> None:
    mirrored = {"up": "down", "down": "up"}.get(rounding, rounding)
    codes = codec.encode(x, f, rounding=rounding, overflow=overflow, nan=nan)
    opposite = codec.encode(-x, f, rounding=mirrored, overflow=overflow, nan=nan)
    if f.has_negative_zero:
        np.testing.assert_array_equal(codes ^ f.sign_bit, opposite)
    else:
        lone = (codes == 0) | (codes == f.sign_bit)
        np.testing.assert_array_equal(np.where(lone, codes, codes ^ f.sign_bit), opposite)


@law
@given(formats, roundings, arrays(np.float64, st.floats(-1, 1)), st.integers(-3, 3))
def test_scaling_by_a_power_of_two_moves_the_exponent_field(f: FloatFormat, rounding: str, x: Any, k: int) -> None:
    # All within the normal range, where the format is a scaled copy of itself. Without a mantissa, every second binade has
    # the even code, so ties go up in one and down in the next.
    assume(f.exponent_bits > 2 and (f.mantissa_bits or rounding not in ("nearest_even", "odd")))
    if not f.signed:
        x = np.abs(x)
    middle = 2.0 ** ((f.min_exponent + f.max_exponent) // 2)
    x = np.copysign(np.abs(x) + 1, x) * middle
    k = max(-2, min(2, k)) if f.exponent_bits == 3 else k
    codes = codec.encode(x, f, rounding=rounding)
    np.testing.assert_array_equal(codec.encode(x * 2.0**k, f, rounding=rounding), codes.astype(int) + (k << f.mantissa_bits))


@law
@given(formats, floats)
def test_stochastic_rounding_takes_a_neighbour_in_proportion(f: FloatFormat, x: float) -> None:
    if not f.signed or abs(x) > f.max:
        return
    low = codec.encode(x, f, rounding="toward_zero")
    high = codec.encode(x, f, rounding="up" if x > 0 else "down")
    values = [abs(float(codec.decode(c, f, dtype=np.float64))) for c in (low, high)]
    nu = (abs(x) - values[0]) / (values[1] - values[0]) if values[1] > values[0] else 0.0
    codes = codec.encode(np.full(256, x), f, rounding="stochastic_a", random_bits=np.arange(256, dtype=np.uint8))
    assert np.count_nonzero(codes == high) == (256 if low == high else math.floor(nu * 256))
    assert np.isin(codes, [low, high]).all()


@law
@given(signed_formats, arrays(np.float32, st.floats(width=32, allow_nan=False, allow_infinity=False)), st.data())
def test_quantization_error_is_at_most_half_a_step(f: FloatFormat, x: Any, data: st.DataObject) -> None:
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    q = scaling.quantize(x, f, axis=axis)
    scale = q.scale.astype(np.float64)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    if f.max < 1:
        x = np.clip(x, -(2.0**126), 2.0**126)  # a scale beyond float32 is clamped: what is out of reach saturates
        q = scaling.quantize(x, f, axis=axis)
        scale = q.scale.astype(np.float64)
    error = np.abs(scaling.dequantize(q, dtype=np.float64) - x)
    # Half a step of the mantissa or of the subnormals; x / scale adds a rounding of its own to float32, which may be subnormal.
    step = np.maximum(np.abs(x.astype(np.float64)) * 2.0**-f.mantissa_bits, f.smallest_subnormal * scale)
    assert (error <= step / 2 * (1 + 2.0**-15) + scale * 2.0**-149).all()


@law
@given(signed_formats, arrays(np.float32))
def test_dynamic_scale_brings_the_largest_to_the_top(f: FloatFormat, x: Any) -> None:
    q = scaling.quantize(x, f)
    finite = np.abs(x[np.isfinite(x)]).max(initial=0)
    if finite > 2.0**-100 and f.max >= 1:
        assert (q.codes & f.magnitude_mask).max() >= f.max_magnitude
    np.testing.assert_array_equal(np.isnan(scaling.dequantize(q)), np.isnan(x) & bool(f.nan_codes))
