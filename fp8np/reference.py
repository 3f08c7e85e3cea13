"""The law: exact scalar conversion between FP8 codes and numbers, on Python's `int` and `fractions.Fraction`.

Slow and short on purpose. `codec` and every kernel behind it must give the same codes; the tests compare them exhaustively.

The magnitudes of a format (its codes without the sign bit) count its values in ascending order, so rounding is a choice
between two neighbouring integers, and a carry out of the mantissa is an ordinary +1::

    magnitude   ..0 0110 111   ..0 0111 000   ..0 0111 001        e4m3fn
    value          0.9375           1.0           1.125
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

from fp8np.formats import FloatFormat
from fp8np.policy import Policy, infinity_magnitude, nan_code, points_inward

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
    negative: str = "range",
    zero: str = "smallest",
    lowest: str = "value",
    via: str | None = None,
    random_bits: tuple[int, int] = (0, 1),
) -> int:
    """The code of a number. The policies are those of `fp8np.policy`.

    Args:
        fmt: the format.
        x: an int, a Fraction, or a float (exactly what it is; NaN, infinities and -0.0 included).
        overflow: a name of `policy.OVERFLOW`.
        rounding: a name of `policy.ROUNDING`.
        nan: a name of `policy.NAN`.
        negative: what becomes of numbers below zero where there is no sign.
        zero: what becomes of zero where there is none. Positive numbers below the smallest value of such a format become the
            smallest value under every policy and rounding, since there is nothing below to round to; but see `lowest`.
        lowest: whether such a format's smallest value counts as zero for numbers around it.
        via: None, or "float16" to round to that first.
        random_bits: (R, N), the random integer R of N bits, for stochastic rounding.

    Raises:
        PolicyError: a policy is unknown.

    >>> from fp8np.formats import get_format
    >>> [f"{encode(get_format('e4m3fn'), x):02X}" for x in (1, Fraction(-1, 3), 464, 1e9, float("nan"))]
    ['38', 'AB', '7E', '7E', '7F']
    >>> f"{encode(get_format('e4m3fn'), 465, overflow='ieee'):02X}"
    '7F'
    """
    policy = Policy(overflow, rounding, nan, negative, zero, lowest, via)  # refuses unknown names
    if via == "float16":
        x = _float16(x)
    minus = math.copysign(1, x) < 0 if isinstance(x, float) else x < 0
    if isinstance(x, float) and math.isnan(x):
        return nan_code(fmt, nan, minus) | (_payload(fmt, x) if nan == "payload" else 0)
    if x == 0:
        if not fmt.has_zero:
            return nan_code(fmt, "keep_sign", minus) if zero == "nan" else 0
        return fmt.sign_bit if minus and fmt.has_negative_zero else 0
    if minus and not fmt.signed:
        if negative == "magnitude":
            x, minus = -x, False
        elif negative == "zero" or (negative == "range" and fmt.has_zero and overflow in ("saturate", "propagate")):
            return 0
    infinite = isinstance(x, float) and math.isinf(x)
    magnitude = fmt.max_magnitude + 1 if infinite else _rounded(fmt, abs(Fraction(x)), minus, policy, random_bits)
    inward = points_inward(rounding, minus) and not infinite
    if minus and not fmt.signed:
        # Below the range, and not clamped: NaN, unless it rounds to zero.
        return 0 if fmt.has_zero and (inward or magnitude == 0) else nan_code(fmt, "keep_sign", minus)

    sign = fmt.sign_bit if minus else 0
    beyond = magnitude > fmt.max_magnitude or (overflow == "ieee_early" and not -fmt.max <= x <= fmt.max)
    if beyond:
        clamped = inward or overflow == "saturate" or (overflow == "propagate" and not infinite)
        return sign | (fmt.max_magnitude if clamped else infinity_magnitude(fmt))
    if magnitude == 0 and not fmt.has_negative_zero:
        return 0
    return sign | magnitude


def _rounded(fmt: FloatFormat, value: Fraction, negative: bool, policy: Policy, random_bits: tuple[int, int]) -> int:
    # The magnitude of value > 0, the exponent unbounded.
    low = floor_magnitude(fmt, value)
    if not fmt.has_zero and low <= 0:
        second = magnitude_value(fmt, 1)
        if policy.lowest == "zero" and value < second:
            # Between 0 and the second value, as though code 0 were zero; the one tie goes to it.
            nearest = policy.rounding in ("nearest_even", "nearest_away")
            return int(2 * value > second if nearest else _away(0, value / second, policy.rounding, negative, random_bits))
        if low < 0:
            return 0
    below, above = magnitude_value(fmt, low), magnitude_value(fmt, low + 1)
    return low + _away(low, (value - below) / (above - below), policy.rounding, negative, random_bits)


def _away(low: int, nu: Fraction, rounding: str, negative: bool, random_bits: tuple[int, int]) -> bool:
    # Whether to take low + 1 (away from zero) for a number that lies the fraction 0 <= nu < 1 of the way to it.
    bits, width = random_bits
    match rounding:
        case "nearest_even":
            return nu > Fraction(1, 2) or (nu == Fraction(1, 2) and low % 2 == 1)
        case "nearest_away":
            return nu >= Fraction(1, 2)
        case "toward_zero":
            return False
        case "up" | "down":
            return nu > 0 and (rounding == "down") == negative
        case "odd":
            return nu > 0 and low % 2 == 0
        case "stochastic_a":
            return math.floor(nu * (1 << width)) + bits >= 1 << width
        case "stochastic_b":
            return math.floor(nu * (2 << width)) + 2 * bits + 1 >= 2 << width
    return round(nu * (1 << width)) + bits >= 1 << width


def _float16(x: Fraction | float) -> Fraction | float:
    # Rounded to nearest even; NaN keeps the ten leading bits of its payload, which is all that an FP8 NaN can hold.
    if isinstance(x, float) and (x == 0 or not math.isfinite(x)):
        return x
    value = abs(Fraction(x))
    exponent = max(math.frexp(value)[1] - 1, -14) if value < 2**17 else 17
    step = Fraction(2) ** (exponent - 10)
    rounded = round(value / step) * step
    if rounded > 65504:
        return -math.inf if x < 0 else math.inf
    return (-rounded or -0.0) if x < 0 else rounded


def _payload(fmt: FloatFormat, x: float) -> int:
    # The leading bits of a NaN's mantissa, as many as the format has; none where a single magnitude is NaN.
    if len(fmt.nan_codes) <= 2:
        return 0
    (bits,) = struct.unpack("<Q", struct.pack("<d", x))
    return int(bits) >> (52 - fmt.mantissa_bits) & ((1 << fmt.mantissa_bits) - 1)
