"""The law: exact scalar conversion between FP8 codes and numbers, on Python's `int` and `fractions.Fraction`.

Slow and short on purpose. `codec` and every kernel behind it must give the same codes; the tests compare them exhaustively.

The magnitudes of a format (its codes without the sign bit) count its values in ascending order, so rounding is a choice
between two neighbouring integers, and a carry out of the mantissa is an ordinary +1::

    magnitude   ..0 0110 111   ..0 0111 000   ..0 0111 001        e4m3fn
    value          0.9375           1.0           1.125
"""

from __future__ import annotations

import math
from fractions import Fraction

from fp8np.formats import FloatFormat
from fp8np.policy import Policy, infinity_magnitude, nan_code

__all__ = ["decode", "encode", "floor_magnitude", "magnitude_value"]


def magnitude_value(fmt: FloatFormat, magnitude: int) -> Fraction:
    """The value at a magnitude, as if the exponent field were unbounded: beyond the largest value, what would follow it.

    >>> from fp8np.formats import get_format
    >>> [int(magnitude_value(get_format("e4m3fn"), m)) for m in (0x7D, 0x7E, 0x7F, 0x80)]
    [416, 448, 480, 512]
    """
    exponent, mantissa = divmod(magnitude, 1 << fmt.mantissa_bits)
    if exponent or not fmt.has_zero:
        mantissa += 1 << fmt.mantissa_bits
        exponent -= fmt.has_zero
    return mantissa * Fraction(2) ** (fmt.quantum_exponent + exponent)


def floor_magnitude(fmt: FloatFormat, value: Fraction) -> int:
    """The largest magnitude whose value is at most `value` > 0, the exponent unbounded; -1 where there is none.

    >>> from fp8np.formats import get_format
    >>> floor_magnitude(get_format("e4m3fn"), Fraction(449)) == 0x7E
    True
    """
    n, d = value.as_integer_ratio()
    exponent = n.bit_length() - d.bit_length()
    exponent -= value < Fraction(2) ** exponent
    steps = max(0, exponent - fmt.min_exponent)
    quanta = math.floor(value / Fraction(2) ** (fmt.quantum_exponent + steps))
    return (steps << fmt.mantissa_bits) + quanta - (0 if fmt.has_zero else 1 << fmt.mantissa_bits)


def decode(fmt: FloatFormat, code: int) -> Fraction | float:
    """The value of a code: a Fraction, or the float NaN, an infinity, or -0.0.

    >>> from fp8np.formats import get_format
    >>> decode(get_format("e4m3fn"), 0xB9), decode(get_format("e4m3fn"), 0xFF), decode(get_format("e4m3fn"), 0x80)
    (Fraction(-9, 8), nan, -0.0)
    """
    negative = bool(code & fmt.sign_bit)
    if code in fmt.nan_codes:
        return math.nan
    if code in fmt.inf_codes:
        return -math.inf if negative else math.inf
    value = magnitude_value(fmt, code & fmt.magnitude_mask)
    if not negative:
        return value
    return -value if value else -0.0


def encode(
    fmt: FloatFormat,
    x: Fraction | float,
    *,
    overflow: str = "saturate",
    rounding: str = "nearest_even",
    nan: str = "keep_sign",
    random_bits: tuple[int, int] = (0, 1),
) -> int:
    """The code of a number. The policies are those of `fp8np.policy`.

    An unsigned format (MX scales) has neither negative numbers nor zero. Negative numbers are NaN. Zero is clamped to the
    smallest value, but under ``ieee`` it is NaN, as infinity is: it has no code. Positive numbers below the smallest value become
    the smallest value under every policy and rounding: there is nothing below to round to.

    Args:
        fmt: the format.
        x: an int, a Fraction, or a float (exactly what it is; NaN, infinities and -0.0 included).
        overflow: a name of `policy.OVERFLOW`.
        rounding: a name of `policy.ROUNDING`.
        nan: a name of `policy.NAN`.
        random_bits: (R, N), the random integer R of N bits, for stochastic rounding.

    Raises:
        PolicyError: a policy is unknown.

    >>> from fp8np.formats import get_format
    >>> [f"{encode(get_format('e4m3fn'), x):02X}" for x in (1, Fraction(-1, 3), 464, 1e9, float("nan"))]
    ['38', 'AB', '7E', '7E', '7F']
    >>> f"{encode(get_format('e4m3fn'), 465, overflow='ieee'):02X}"
    '7F'
    """
    Policy(overflow, rounding, nan)  # refuses unknown names
    negative = math.copysign(1, x) < 0 if isinstance(x, float) else x < 0
    if isinstance(x, float) and math.isnan(x):
        return nan_code(fmt, nan, negative)
    if not fmt.signed and x < 0:
        return nan_code(fmt, nan, negative)
    sign = fmt.sign_bit if negative else 0
    if isinstance(x, float) and math.isinf(x):
        return sign | (fmt.max_magnitude if overflow == "saturate" else infinity_magnitude(fmt))
    if x == 0:
        if not fmt.has_zero:
            return nan_code(fmt, nan, negative) if overflow == "ieee" else 0
        return sign if fmt.has_negative_zero else 0

    value = abs(Fraction(x))
    low = floor_magnitude(fmt, value)
    if low < 0:
        return 0
    below, above = magnitude_value(fmt, low), magnitude_value(fmt, low + 1)
    magnitude = low + _away(low, (value - below) / (above - below), rounding, negative, random_bits)
    if magnitude > fmt.max_magnitude:
        inward = rounding == "toward_zero" or rounding == ("up" if negative else "down")
        return sign | (infinity_magnitude(fmt) if overflow == "ieee" and not inward else fmt.max_magnitude)
    if magnitude == 0 and not fmt.has_negative_zero:
        return 0
    return sign | magnitude


def _away(low: int, nu: Fraction, rounding: str, negative: bool, random_bits: tuple[int, int]) -> bool:
    # Whether to take low + 1 (away from zero) for a number that lies the fraction 0 <= nu < 1 of the way to it.
    if rounding == "nearest_even":
        return nu > Fraction(1, 2) or (nu == Fraction(1, 2) and low % 2 == 1)
    if rounding == "nearest_away":
        return nu >= Fraction(1, 2)
    if rounding == "toward_zero":
        return False
    if rounding in ("up", "down"):
        return nu > 0 and (rounding == "down") == negative
    bits, width = random_bits
    return math.floor(nu * (1 << width)) + bits >= 1 << width
