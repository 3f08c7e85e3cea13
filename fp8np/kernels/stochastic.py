"""Kernels of the codec: float32 to codes, rounded stochastically with up to 16 random bits.

`fp8np.policy` has the three definitions. With nu the discarded fraction and R the random integer of N bits, each of them asks
whether a sum carries past the point; here all do so in steps of 2^-17 of the format's last bit, for m = 3 and N = 8::

    |x|            1 nnn|fffffffffffffffff      float32 has 23 - m bits there, at least 16; subnormal numbers have more
      + addend          |RRRRRRRR000000000      A, and C, whose |x| was rounded to N bits first
                        |RRRRRRRR100000000      B: R and a half

For A and B what lies beyond the 2^-17 cannot change a carry, since it is less than one unit of the last bit that is added. So the
cut needs no shift of its own: |x| times a power of two is converted to an integer. In 32 bits throughout, without branches,
variable shifts or float32 subnormals, as in `fp8np.kernels.codec`: 3.4 Gelem/s on one thread with AVX-512, 2.3 with AVX2
(`encode_f64`, on numbers that are float64 already: 1.7 with AVX-512).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels import _rule
from fp8np.kernels._arrays import read_only
from fp8np.kernels._bits import float32_of
from fp8np.kernels._jit import exact
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for
from fp8np.kernels.codec import code_of_steps, encode_f64, encode_parameters

__all__ = ["encode_f32_stochastic"]

_U = np.uint32
_POINT = 17


def _by_multiplication(fmt: Any) -> bool:
    # The power of two that turns |x| into steps must be a normal float32, and the smallest normal float32 less than one step: it
    # stands for zero and for the subnormal numbers. Beyond the largest value the format must have one more power of two.
    return bool(fmt.has_zero) and fmt.min_exponent >= fmt.mantissa_bits + _POINT - 125 and fmt.max_exponent < 127


@exact
def _code(bits: Any, addend: Any, scale: Any, whole: Any, weight: Any, parameters: Any) -> Any:
    # bits: u32 of a float32; addend: in steps of 2^-17; scale: u32 bits of the float32 that would turn 1 into units, times 2^127;
    # whole: round to units first; weight: of a unit, in steps -> u8 code
    smallest, beyond = parameters[1], parameters[2]
    a = _U(bits & _U(0x7FFFFFFF))
    near = _U(min(_U(max(a, _U(0x00800000))), beyond))
    e = _U(_U(max(near, smallest)) & _U(0x7F800000))
    units = float32_of(near) * float32_of(_U(scale - e))
    if whole:
        units = np.rint(units)  # to even
    n = _U(np.int32(units))
    n = _U(_U(_U(n * weight) + addend) >> _U(_POINT))
    return code_of_steps(bits, n, e, parameters)


@exact
def _encode_f32_stochastic(x: Any, rule: Any, random: Any, width: Any, out: Any) -> None:
    # x: u32 (n,) bits of float32; random: u32 (n,), integers below 2^width; width: at most 16; out: u8 (n,)
    parameters = encode_parameters(rule)
    m = rule[_rule.MANTISSA_BITS]
    mode = rule[_rule.ROUNDING_MODE]
    weight = _U(1 << (_POINT - width))  # of the last random bit, in steps
    if mode == _rule.STOCHASTIC_C:
        scale = _U((254 + m + width) << 23)
        for i in range(x.size):
            out[i] = _code(x[i], _U(random[i] * weight), scale, True, weight, parameters)
    else:
        half = _U(weight >> 1) if mode == _rule.STOCHASTIC_B else _U(0)
        scale = _U((254 + m + _POINT) << 23)
        for i in range(x.size):
            out[i] = _code(x[i], _U(_U(random[i] * weight) + half), scale, False, _U(1), parameters)


def encode_f32_stochastic(x: Any, rule: Any, random: Any, width: int, out: Any) -> None:
    """x f32 (n,) -> out u8 (n,), rounded stochastically as the rule says. Unsigned formats get the code of |x|.

    random: u32 (n,), integers below 2**width; width: 1 to 16.
    """
    bits, random = read_only(x.view(np.uint32), random)
    parallel_for(
        lambda start, stop: _encode_f32_stochastic(bits[start:stop], rule, random[start:stop], width, out[start:stop]), x.size, x.size
    )


def encode_f32_stochastic_any(x: Any, rule: Any, random: Any, width: int, out: Any) -> None:
    """As `encode_f32_stochastic`, for every format and a width of up to 32."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = x.astype(np.float64)
    encode_f64(wide, rule, random, width, out)


kernel("encode_f32_stochastic", encode_f32_stochastic, takes=_by_multiplication, order="one stochastic rounding", reproducible=True)
kernel("encode_f32_stochastic", encode_f32_stochastic_any, order="one stochastic rounding", reproducible=True)
