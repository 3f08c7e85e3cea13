"""Functions of sixteen float32 at once: exponentials, what is made of them, and the activations.

Each is a few dozen instructions without a branch: the argument is brought into a small range, where a polynomial of the lowest
degree that serves takes over. What a function does with NaN, infinities and zeros is what its definition in
`fp8np.layers.activation` does.

Where an exponential would fall below 2^-125.5 it is zero: a result below the smallest normal number costs some CPUs a hundred
cycles, and no network needs one. So tails end there: silu at -87, gelu at -12.9. Nothing else is cut off.

Polynomials were fitted by weighted least squares on a thousand Chebyshev points, reweighted until the largest relative error
was least (Lawson's method), against mpmath with 40 digits; then the coefficients were rounded to float32. The two leading ones
of an exponential are 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._jit import native
from fp8np.kernels._lanes import sqrt
from fp8np.kernels._vector import (
    absolute,
    as_float,
    as_int,
    floats,
    fma,
    from_int,
    ints,
    load,
    load_n,
    maximum,
    minimum,
    select,
    shl,
    shr,
    store,
    store_n,
)

__all__ = [
    "ACTIVATIONS",
    "activate",
    "activate_block",
    "exp",
    "expm1",
    "gelu",
    "gelu_tanh",
    "hardsigmoid",
    "hardswish",
    "log",
    "log_sigmoid",
    "mish",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]

ACTIVATIONS = {
    "": 0,
    "gelu": 1,
    "gelu_tanh": 2,
    "silu": 3,
    "sigmoid": 4,
    "tanh": 5,
    "hardswish": 6,
    "hardsigmoid": 7,
    "softplus": 8,
    "mish": 9,
    "elu": 10,
    "selu": 11,
    "leaky_relu": 12,
    "log_sigmoid": 13,
    "exp": 14,
    "log": 15,
    "sqrt": 16,
    "rsqrt": 17,
    "reciprocal": 18,
    "square": 19,
    "abs": 20,
    "neg": 21,
}
"""Codes of `activate`. Those that take parameters take them as lo and hi:

| code | lo | hi |
|---|---|---|
| "", which is none, relu, relu6, hardtanh, clip | smallest y | largest y |
| softplus | beta | threshold |
| elu | alpha | input_scale |
| leaky_relu | negative_slope | |
"""

_F = np.float32
_ZERO, _HALF, _ONE, _TWO = _F(0), _F(0.5), _F(1), _F(2)
_MINUS_ZERO = _F(-0.0)
_INF, _NAN = _F(np.inf), _F(np.nan)
_SIGN = -(1 << 31)

# Adding 1.5 * 2^23 rounds to an integer, whose bits are then the lowest of the sum.
_ROUND = _F(12582912.0)
_LOG2E = _F(1.44269504)
# ln 2 in two parts. The first has 9 bits, so that its products with exponents are exact without fused multiply-adds too.
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
# Between these an exponent fits a float: at the lower k is -126, at the upper the result is infinite.
_LEAST, _MOST = _F(-87.3), _F(89.0)

# (e^r - 1 - r - r^2 / 2) / r^3 for |r| <= ln(2) / 2. As e^r: 3.9e-9, a fifteenth of a rounding.
_E3, _E4, _E5, _E6 = _F(0.16666534543037415), _F(0.041667237877845764), _F(0.008367509581148624), _F(0.0013863756321370602)
# The same with one term more, for e^r - 1: 1.1e-9.
_M3, _M4, _M5, _M6, _M7 = _F(0.1666666567), _F(0.041666481643915176), _F(0.0083334194496274), _F(0.0013933288864791393), _F(0.000198241119505838)

# e^(z^2 / 2) * Phi(-z) = P(z) / Q(z) for 0 <= z <= 13.3: 5e-9. All coefficients are positive, so nothing cancels.
_P0, _P1, _P2, _P3, _P4 = _F(0.5), _F(0.4356868761219578), _F(0.181307184629862), _F(0.039984319237714935), _F(0.004020213154905872)
_Q1, _Q2, _Q3 = _F(1.6692586713023103), _F(1.1944859546081412), _F(0.4643814595487444)
_Q4, _Q5 = _F(0.10023320621684731), _F(0.010077036750823417)

# (2 artanh(s) - 2 s) / s^3 in s^2. For s <= 1/3: 4.6e-9; for s <= 0.172: 8.1e-10.
_A3, _A5, _A7, _A9 = _F(0.6666641302365203), _F(0.4002170615611072), _F(0.279990131629719), _F(0.28025141258932496)
_L3, _L5, _L7 = _F(0.6666677652193512), _F(0.39977522360733797), _F(0.2987228950689912)

_SQRT_HALF = 0x3F3504F3  # its bits
_TWO_23 = _F(8388608.0)
_SMALLEST = _F(1.17549435e-38)

# 2 sqrt(2 / pi) and 0.044715 times it: gelu_tanh(x) is x * sigmoid(C1 x + C3 x^3).
_C1, _C3 = _F(1.5957691216057308), _F(0.07135481282730183)

_SELU_SCALE, _SELU_ALPHA = _F(1.0507009873554805), _F(1.6732632423543772)
_SIXTH = _F(1 / 6)


@native
def _exp_of_sum(x: Any, low: Any) -> Any:
    # e^(x + low) for -87.3 <= x <= 89 and a small low; NaN stays. Twice e^r times 2^(k - 1), because 2^128 is no float32, and
    # because 2^-127, where 2^(k - 1) begins, has the bits of zero.
    k = fma(x, floats(_LOG2E), floats(_ROUND))
    power = as_float(shl(as_int(k), 23) + ints(126 << 23))
    k = k - floats(_ROUND)
    r = fma(k, floats(-_LN2_HIGH), x)
    r = fma(k, floats(-_LN2_LOW), r) + low
    p = fma(r, floats(_TWO * _E6), floats(_TWO * _E5))
    p = fma(r, p, floats(_TWO * _E4))
    p = fma(r, p, floats(_TWO * _E3))
    p = fma(r, p, floats(_ONE))
    p = fma(r, p, floats(_TWO))
    p = fma(r, p, floats(_TWO))
    return p * power


@native
def _exp_negative(x: Any) -> Any:
    # e^x for x <= 0.
    return _exp_of_sum(maximum(floats(_LEAST), x), floats(_MINUS_ZERO))


@native
def exp(x: Any) -> Any:
    """e^x."""
    return _exp_negative(minimum(floats(_MOST), x))


@native
def _expm1_parts(x: Any, half: Any) -> Any:
    # half * (e^x - 1) for -18 <= x <= 89, half 1 or 1/2: 2^k (e^r - 1) + (2^k - 1), of which the second is exact where it matters.
    k = fma(x, floats(_LOG2E), floats(_ROUND))
    power = as_float(shl(as_int(k), 23) + as_int(half))
    k = k - floats(_ROUND)
    r = fma(k, floats(-_LN2_HIGH), x)
    r = fma(k, floats(-_LN2_LOW), r)
    p = fma(r, floats(_M7), floats(_M6))
    p = fma(r, p, floats(_M5))
    p = fma(r, p, floats(_M4))
    p = fma(r, p, floats(_M3))
    p = fma(r, p, floats(_HALF))
    # Not r^2 * p: the square of a small r would fall below the normal numbers.
    p = fma(r * p, r, r)
    return fma(power, p, power - half)


@native
def _expm1_negative(x: Any) -> Any:
    # e^x - 1 for x <= 0; it is -1 from -17.4 down.
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
    y = fma(k, floats(_LN2_LOW), f - s * (f - u * p))
    y = fma(k, floats(_LN2_HIGH), y)
    y = select(x > floats(_ZERO), y, floats(_NAN))
    y = select(x == floats(_ZERO), floats(-_INF), y)
    return select(x == floats(_INF), x, y)


@native
def _log1p(e: Any) -> Any:
    # ln(1 + e) = 2 artanh(e / (2 + e)) for 0 <= e <= 1.
    s = e / (e + floats(_TWO))
    u = s * s
    p = fma(u, floats(_A9), floats(_A7))
    p = fma(u, p, floats(_A5))
    p = fma(u, p, floats(_A3))
    return fma(s * u, p, s + s)


@native
def _negative(x: Any) -> Any:
    # -|x|
    return as_float(as_int(x) | ints(_SIGN))


@native
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    e = _exp_negative(_negative(x))
    return select(x < floats(_ZERO), e, floats(_ONE)) / (e + floats(_ONE))


@native
def silu(x: Any) -> Any:
    """x / (1 + e^-x)."""
    e = _exp_negative(_negative(x))
    return x * select(x < floats(_ZERO), e, floats(_ONE)) / (e + floats(_ONE))


@native
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    z = _negative(x)
    m = _expm1_negative(z + z)
    y = as_int(m / (m + floats(_TWO)))
    return as_float((y & ints(0x7FFFFFFF)) | (as_int(x) & ints(_SIGN)))


@native
def gelu(x: Any) -> Any:
    """x Phi(x), Phi the normal distribution function."""
    # Phi(-12.95) would be below the normal numbers: there k is -121 and the power zero. From 2^-40 down nothing depends on z,
    # but its square would be below them.
    z = maximum(floats(_F(2.0**-40)), minimum(floats(_F(12.95)), absolute(x)))
    # z^2 = h^2 + (z - h) (z + h). h has 12 bits, so its square is exact; rounded, a square of 167 would cost 80 ulp.
    h = as_float(as_int(z) & ints(-4096))
    k = fma(h * h, floats(-_HALF * _LOG2E), floats(_ROUND))
    power = as_float(shl(as_int(k), 23) + ints(121 << 23))
    k = k - floats(_ROUND)
    # r is -2 times what is left of -z^2 / 2; the coefficients make up for that, and for 2^(k - 6) in place of 2^k.
    r = fma(k, floats(_TWO * _LN2_HIGH), h * h)
    r = fma(k, floats(_TWO * _LN2_LOW), r)
    r = fma(z - h, z + h, r)
    e = fma(r, floats(_E6), floats(_F(-2.0) * _E5))
    e = fma(r, e, floats(_F(4.0) * _E4))
    e = fma(r, e, floats(_F(-8.0) * _E3))
    e = fma(r, e, floats(_F(8.0)))
    e = fma(r, e, floats(_F(-32.0)))
    e = fma(r, e, floats(_F(64.0)))
    p = fma(z, floats(_P4), floats(_P3))
    p = fma(z, p, floats(_P2))
    p = fma(z, p, floats(_P1))
    p = fma(z, p, floats(_P0))
    q = fma(z, floats(_Q5), floats(_Q4))
    q = fma(z, q, floats(_Q3))
    q = fma(z, q, floats(_Q2))
    q = fma(z, q, floats(_Q1))
    q = fma(z, q, floats(_ONE))
    # In this order the division waits for neither: 8 % faster.
    tail = e * power * (p / q)
    return x * select(x < floats(_ZERO), tail, floats(_ONE) - tail)


@native
def gelu_tanh(x: Any) -> Any:
    """x (1 + tanh(u)) / 2, which is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    e = _exp_negative(_negative(x * fma(x * x, floats(_C3), floats(_C1))))
    return x * select(x < floats(_ZERO), e, floats(_ONE)) / (e + floats(_ONE))


@native
def softplus(x: Any, beta: Any, threshold: Any) -> Any:
    """ln(1 + e^(beta x)) / beta, and x where beta x > threshold."""
    z = x * beta
    y = (maximum(floats(_ZERO), z) + _log1p(_exp_negative(_negative(z)))) / beta
    return select(z > threshold, x, y)


@native
def log_sigmoid(x: Any) -> Any:
    """-ln(1 + e^-x)."""
    return minimum(floats(_ZERO), x) - _log1p(_exp_negative(_negative(x)))


@native
def mish(x: Any) -> Any:
    """x tanh(ln(1 + e^x)): with w = e^x and n = w (w + 2), x n / (n + 2)."""
    # From 20 on the fraction is 1.
    w = exp(minimum(floats(_F(20.0)), x))
    n = w * (w + floats(_TWO))
    return x * (n / (n + floats(_TWO)))


@native
def hardsigmoid(x: Any) -> Any:
    """min(max(x + 3, 0), 6) / 6."""
    three = floats(_F(3.0))
    return minimum(floats(_F(6.0)), maximum(floats(_ZERO), x + three)) * floats(_SIXTH)


@native
def hardswish(x: Any) -> Any:
    """x min(max(x + 3, 0), 6) / 6."""
    return x * hardsigmoid(x)


@native
def _elu(x: Any, scale: Any, alpha: Any, input_scale: Any) -> Any:
    # scale x where x > 0, else scale alpha (e^(input_scale x) - 1). scale and alpha have been multiplied.
    return select(x > floats(_ZERO), x * scale, alpha * _expm1_negative(minimum(floats(_ZERO), x * input_scale)))


@native
def activate(v: Any, kind: int, lo: Any, hi: Any) -> Any:
    """The activation of code `kind` in ACTIVATIONS. v: sixteen float32; lo, hi: float32."""
    if kind == 0:
        return minimum(floats(hi), maximum(floats(lo), v))
    if kind == 1:
        return gelu(v)
    if kind == 2:
        return gelu_tanh(v)
    if kind == 3:
        return silu(v)
    if kind == 4:
        return sigmoid(v)
    if kind == 5:
        return tanh(v)
    if kind == 6:
        return hardswish(v)
    if kind == 7:
        return hardsigmoid(v)
    if kind == 8:
        return softplus(v, floats(lo), floats(hi))
    if kind == 9:
        return mish(v)
    if kind == 10:
        return _elu(v, floats(_ONE), floats(lo), floats(hi))
    if kind == 11:
        return _elu(v, floats(_SELU_SCALE), floats(_SELU_SCALE * _SELU_ALPHA), floats(_ONE))
    if kind == 12:
        return select(v > floats(_ZERO), v, v * floats(lo))
    if kind == 13:
        return log_sigmoid(v)
    if kind == 14:
        return exp(v)
    if kind == 15:
        return log(v)
    if kind == 16:
        return sqrt(v)
    if kind == 17:
        return floats(_ONE) / sqrt(v)
    if kind == 18:
        return floats(_ONE) / v
    if kind == 19:
        return v * v
    if kind == 20:
        return absolute(v)
    return as_float(as_int(v) ^ ints(_SIGN))


@native
def activate_block(x: int, y: int, n: int, kind: int, lo: Any, hi: Any) -> None:
    """The activation of n float32 from address x on, to address y, which may be the same."""
    # A loop for each, so that its constants stay in registers: gelu takes XX ns an element, through `activate` 1.2.
    whole = n & -16
    if kind == 0:
        for i in range(0, whole, 16):
            store(y + 4 * i, minimum(floats(hi), maximum(floats(lo), load(x + 4 * i))))
    elif kind == 1:
        for i in range(0, whole, 16):
            store(y + 4 * i, gelu(load(x + 4 * i)))
    elif kind == 2:
        for i in range(0, whole, 16):
            store(y + 4 * i, gelu_tanh(load(x + 4 * i)))
    elif kind == 3:
        for i in range(0, whole, 16):
            store(y + 4 * i, silu(load(x + 4 * i)))
    elif kind == 4:
        for i in range(0, whole, 16):
            store(y + 4 * i, sigmoid(load(x + 4 * i)))
    elif kind == 5:
        for i in range(0, whole, 16):
            store(y + 4 * i, tanh(load(x + 4 * i)))
    elif kind == 6:
        for i in range(0, whole, 16):
            store(y + 4 * i, hardswish(load(x + 4 * i)))
    else:
        for i in range(0, whole, 16):
            store(y + 4 * i, activate(load(x + 4 * i), kind, lo, hi))
    if whole < n:
        store_n(y + 4 * whole, activate(load_n(x + 4 * whole, n - whole), kind, lo, hi), n - whole)
