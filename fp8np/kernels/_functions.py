"""Functions of sixteen float32 at once: exponentials, what is made of them, and the activations.

None has a branch. What a function does with NaN and infinities is what its definition in `fp8np.layers.activation` does. Errors, in
units in the last place of the exact value, are the largest found on every seventh of all float32::

    gelu 6.3       silu 3.2       hardswish 2.5      softplus 2.8      elu 0.9       exp 0.9
    gelu_tanh 200  sigmoid 2.4    hardsigmoid 1.4    log_sigmoid 2.9   selu 1.8      log 1.0
    tanh 2.5       mish 4.5

Without fused multiply-adds exp has 1.2. The errors of gelu_tanh grow with -x, since its exponent is rounded: 14 down to -3, 32 to
-5, 200 where it ends. Tails end in zero where an exponential does (see `fp8np.kernels._exponentials`): gelu at -12.9, gelu_tanh at
-9.98, all others at -87.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._exponentials import (
    E3,
    E4,
    E5,
    E6,
    LN2_HIGH,
    LN2_LOW,
    LOG2E,
    ROUND,
    exp,
    exp_negative,
    expm1,
    expm1_negative,
    log,
    log1p,
)
from fp8np.kernels._jit import native
from fp8np.kernels._lanes import sqrt
from fp8np.kernels._vector import (
    absolute,
    as_float,
    as_int,
    floats,
    fma,
    ints,
    load,
    load_n,
    maximum,
    minimum,
    select,
    shl,
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
_SIGN = -(1 << 31)

# e^(z^2 / 2) * Phi(-z) = P(z) / Q(z) for 0 <= z <= 13.3: 5e-9. All coefficients are positive, so nothing cancels.
_P0, _P1, _P2, _P3, _P4 = _F(0.5), _F(0.4356868761219578), _F(0.181307184629862), _F(0.039984319237714935), _F(0.004020213154905872)
_Q1, _Q2, _Q3 = _F(1.6692586713023103), _F(1.1944859546081412), _F(0.4643814595487444)
_Q4, _Q5 = _F(0.10023320621684731), _F(0.010077036750823417)

# 2 sqrt(2 / pi) and 0.044715 times it: gelu_tanh(x) is x * sigmoid(C1 x + C3 x^3).
_C1, _C3 = _F(1.5957691216057308), _F(0.07135481282730183)

_SELU_SCALE, _SELU_ALPHA = _F(1.0507009873554805), _F(1.6732632423543772)
_SIXTH = _F(1 / 6)


@native
def _negative(x: Any) -> Any:
    # -|x|
    return as_float(as_int(x) | ints(_SIGN))


@native
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    e = exp_negative(_negative(x))
    return select(x < floats(_ZERO), e, floats(_ONE)) / (e + floats(_ONE))


@native
def silu(x: Any) -> Any:
    """x / (1 + e^-x)."""
    e = exp_negative(_negative(x))
    return x * select(x < floats(_ZERO), e, floats(_ONE)) / (e + floats(_ONE))


@native
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    z = _negative(x)
    m = expm1_negative(z + z)
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
    k = fma(h * h, floats(-_HALF * LOG2E), floats(ROUND))
    power = as_float(shl(as_int(k), 23) + ints(121 << 23))
    k = k - floats(ROUND)
    # r is -2 times what is left of -z^2 / 2; the coefficients make up for that, and for 2^(k - 6) in place of 2^k.
    r = fma(k, floats(_TWO * LN2_HIGH), h * h)
    r = fma(k, floats(_TWO * LN2_LOW), r)
    r = fma(z - h, z + h, r)
    e = fma(r, floats(E6), floats(_F(-2.0) * E5))
    e = fma(r, e, floats(_F(4.0) * E4))
    e = fma(r, e, floats(_F(-8.0) * E3))
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
    e = exp_negative(_negative(x * fma(x * x, floats(_C3), floats(_C1))))
    return x * select(x < floats(_ZERO), e, floats(_ONE)) / (e + floats(_ONE))


@native
def softplus(x: Any, beta: Any, threshold: Any) -> Any:
    """ln(1 + e^(beta x)) / beta, and x where beta x > threshold."""
    z = x * beta
    y = (maximum(floats(_ZERO), z) + log1p(exp_negative(_negative(z)))) / beta
    return select(z > threshold, x, y)


@native
def log_sigmoid(x: Any) -> Any:
    """-ln(1 + e^-x)."""
    return minimum(floats(_ZERO), x) - log1p(exp_negative(_negative(x)))


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
    return select(x > floats(_ZERO), x * scale, alpha * expm1_negative(minimum(floats(_ZERO), x * input_scale)))


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
    # A loop for each that networks use most, whose constants then stay in registers: an element of gelu takes 0.57 ns in place of
    # 0.64, of silu 0.35 in place of 0.40, of hardswish 0.10 in place of 0.22.
    whole = n & -16
    if kind == 0:
        for i in range(0, whole, 16):
            store(y + 4 * i, minimum(floats(hi), maximum(floats(lo), load(x + 4 * i))))
    elif kind == 1:
        for i in range(0, whole, 16):
            store(y + 4 * i, gelu(load(x + 4 * i)))
    elif kind == 3:
        for i in range(0, whole, 16):
            store(y + 4 * i, silu(load(x + 4 * i)))
    elif kind == 6:
        for i in range(0, whole, 16):
            store(y + 4 * i, hardswish(load(x + 4 * i)))
    else:
        for i in range(0, whole, 16):
            store(y + 4 * i, activate(load(x + 4 * i), kind, lo, hi))
    if whole < n:
        store_n(y + 4 * whole, activate(load_n(x + 4 * whole, n - whole), kind, lo, hi), n - whole)
