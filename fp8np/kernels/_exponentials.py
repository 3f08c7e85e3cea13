"""Exponentials and logarithms of sixteen float32 at once.

Each is a few dozen instructions without a branch: the argument is brought into a small range, where a polynomial of the lowest
degree that serves takes over. Where an exponential would fall below 2^-125.5 it is zero: a result below the smallest normal
number costs 500 cycles a vector on the CPUs at hand, and no network needs one.

Polynomials were fitted by weighted least squares on a thousand Chebyshev points, reweighted until the largest relative error
was least (Lawson's method), against mpmath with 40 digits; then the coefficients were rounded to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._jit import native
from fp8np.kernels._vector import as_float, as_int, floats, fma, from_int, ints, maximum, minimum, select, shl, shr

__all__ = [
    "E3",
    "E4",
    "E5",
    "E6",
    "LN2_HIGH",
    "LN2_LOW",
    "LOG2E",
    "ROUND",
    "exp",
    "exp_negative",
    "expm1",
    "expm1_negative",
    "log",
    "log1p",
]

_F = np.float32
_ZERO, _HALF, _ONE, _TWO = _F(0), _F(0.5), _F(1), _F(2)
_INF, _NAN = _F(np.inf), _F(np.nan)

# Adding 1.5 * 2^23 rounds to an integer, whose bits are then the lowest of the sum.
ROUND = _F(12582912.0)
LOG2E = _F(1.44269504)
# ln 2 in two parts. The first has 9 bits, so that its products with exponents are exact without fused multiply-adds too.
LN2_HIGH, LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
# Between these an exponent fits a float: at the lower k is -126, at the upper the result is infinite.
_LEAST, _MOST = _F(-87.3), _F(89.0)

# (e^r - 1 - r - r^2 / 2) / r^3 for |r| <= ln(2) / 2. As e^r: 3.9e-9, a fifteenth of a rounding.
E3, E4, E5, E6 = _F(0.16666534543037415), _F(0.041667237877845764), _F(0.008367509581148624), _F(0.0013863756321370602)
# The same with one term more, for e^r - 1: 1.1e-9.
_M3, _M4, _M5 = _F(0.1666666567), _F(0.041666481643915176), _F(0.0083334194496274)
_M6, _M7 = _F(0.0013933288864791393), _F(0.000198241119505838)

# (2 artanh(s) - 2 s) / s^3 in s^2. For s <= 1/3: 4.6e-9; for s <= 0.172: 8.1e-10.
_A3, _A5, _A7, _A9 = _F(0.6666641302365203), _F(0.4002170615611072), _F(0.279990131629719), _F(0.28025141258932496)
_L3, _L5, _L7 = _F(0.6666677652193512), _F(0.39977522360733797), _F(0.2987228950689912)

_SQRT_HALF = 0x3F3504F3  # its bits
_TWO_23 = _F(8388608.0)
_SMALLEST = _F(1.17549435e-38)


@native
def _exp(x: Any) -> Any:
    # e^x for -87.3 <= x <= 89; NaN stays. Twice e^r times 2^(k - 1), because 2^128 is no float32, and because 2^-127, where
    # 2^(k - 1) begins, has the bits of zero.
    k = fma(x, floats(LOG2E), floats(ROUND))
    power = as_float(shl(as_int(k), 23) + ints(126 << 23))
    k = k - floats(ROUND)
    r = fma(k, floats(-LN2_HIGH), x)
    r = fma(k, floats(-LN2_LOW), r)
    p = fma(r, floats(_TWO * E6), floats(_TWO * E5))
    p = fma(r, p, floats(_TWO * E4))
    p = fma(r, p, floats(_TWO * E3))
    p = fma(r, p, floats(_ONE))
    p = fma(r, p, floats(_TWO))
    p = fma(r, p, floats(_TWO))
    return p * power


@native
def exp_negative(x: Any) -> Any:
    """e^x for x <= 0."""
    return _exp(maximum(floats(_LEAST), x))


@native
def exp(x: Any) -> Any:
    """e^x."""
    return exp_negative(minimum(floats(_MOST), x))


@native
def _expm1_parts(x: Any, half: Any) -> Any:
    # half * (e^x - 1) for -18 <= x <= 89, half 1 or 1/2: 2^k (e^r - 1) + (2^k - 1), of which the second is exact where it matters.
    k = fma(x, floats(LOG2E), floats(ROUND))
    power = as_float(shl(as_int(k), 23) + as_int(half))
    k = k - floats(ROUND)
    r = fma(k, floats(-LN2_HIGH), x)
    r = fma(k, floats(-LN2_LOW), r)
    p = fma(r, floats(_M7), floats(_M6))
    p = fma(r, p, floats(_M5))
    p = fma(r, p, floats(_M4))
    p = fma(r, p, floats(_M3))
    p = fma(r, p, floats(_HALF))
    # Not r^2 * p: the square of a small r would fall below the normal numbers.
    p = fma(r * p, r, r)
    return fma(power, p, power - half)


@native
def expm1_negative(x: Any) -> Any:
    """e^x - 1 for x <= 0; it is -1 from -17.4 down."""
    return _expm1_parts(maximum(floats(_F(-18.0)), x), floats(_ONE))


@native
def expm1(x: Any) -> Any:
    """e^x - 1."""
    half = _expm1_parts(minimum(floats(_MOST), maximum(floats(_F(-18.0)), x)), floats(_HALF))
    return half + half


@native
def log(x: Any) -> Any:
    """The natural logarithm: NaN of negative numbers, -inf of zeros."""
    # x = 2^k m with m between sqrt(1/2) and sqrt(2). Subnormal numbers are scaled up first.
    small = x < floats(_SMALLEST)
    bits = as_int(select(small, x * floats(_TWO_23), x)) + ints(0x3F800000 - _SQRT_HALF)
    k = from_int(shr(bits, 23)) - select(small, floats(_F(127 + 23)), floats(_F(127)))
    f = as_float((bits & ints(0x7FFFFF)) + ints(_SQRT_HALF)) - floats(_ONE)
    # ln m = 2 artanh(s) = f - s (f - s^2 p)
    s = f / (f + floats(_TWO))
    u = s * s
    p = fma(u, fma(u, floats(_L7), floats(_L5)), floats(_L3))
    y = fma(k, floats(LN2_LOW), f - s * (f - u * p))
    y = fma(k, floats(LN2_HIGH), y)
    y = select(x > floats(_ZERO), y, floats(_NAN))
    y = select(x == floats(_ZERO), floats(-_INF), y)
    return select(x == floats(_INF), x, y)


@native
def log1p(e: Any) -> Any:
    """ln(1 + e) = 2 artanh(e / (2 + e)) for 0 <= e <= 1."""
    s = e / (e + floats(_TWO))
    u = s * s
    p = fma(u, floats(_A9), floats(_A7))
    p = fma(u, p, floats(_A5))
    p = fma(u, p, floats(_A3))
    return fma(s * u, p, s + s)
