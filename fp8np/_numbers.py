"""Numbers as a person writes them, exactly: `parse_number` reads them, `show` writes them."""

from __future__ import annotations

import math
import operator
import re
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any

from fp8np.errors import InputError

__all__ = ["Number", "approximately", "as_number", "is_finite", "parse_number", "show", "size_text"]

Number = Fraction | float
"""A Fraction, or a float that is none: NaN, an infinity, or -0.0."""

# Beyond these, exact arithmetic takes long and tells nothing: the widest format ends at 2**127.
_MAX_EXPONENT = 3_000
_MAX_LENGTH = 1_000
_LAYOUTS = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52)}

_HEX = re.compile(r"([+-]?)0x(?=[0-9a-f]|\.[0-9a-f])([0-9a-f]*)(?:\.([0-9a-f]*))?(?:p([+-]?\d{1,9}))?")
_POWER = re.compile(r"([+-]?)2(?:\^|\*\*)([+-]?\d{1,9})")
_PATTERN = re.compile(r"(f16|bf16|f32|f64):(?:0x)?([0-9a-f]+)")
_DECIMAL_EXPONENT = re.compile(r"e([+-]?\d+)$")


def parse_number(text: str) -> Number:
    """The exact number that a text means.

    Args:
        text: a decimal (``0.3`` is 3/10, not the nearest float), a fraction ``1/3``, a hexadecimal integer or float ``0x1.8p-3``, a
            power ``2^-9``, ``inf``, ``nan``, ``-0``, or a bit pattern after ``f16:``, ``bf16:``, ``f32:`` or ``f64:``.

    Returns:
        A Fraction, or one of the floats NaN, infinity and -0.0. NaN keeps its sign, and of a bit pattern its payload.

    Raises:
        InputError: the text is none of these, or the number is too far from 1 to be worked with exactly.

    >>> parse_number("0.3"), parse_number("-0x1.8p-3"), parse_number("f32:3e99999a")
    (Fraction(3, 10), Fraction(-3, 16), Fraction(5033165, 16777216))
    >>> parse_number("-0"), parse_number("-Inf")
    (-0.0, -inf)
    """
    plain = text.strip().lower()
    if len(plain) > _MAX_LENGTH:
        raise InputError(f"expected a number of at most {_MAX_LENGTH} characters, got {len(plain)}")
    if pattern := _PATTERN.fullmatch(plain):
        return _from_bits(text, pattern[1], int(pattern[2], 16))
    if re.fullmatch(r"[+-]?(inf|infinity|nan)", plain):
        return math.copysign(abs(float(plain)), -1 if plain.startswith("-") else 1)
    try:
        value = _finite(plain)
    except InputError:
        raise
    except (ValueError, ZeroDivisionError):
        raise InputError(f"expected a number such as 0.3, 1/3, 0x1.8p-3, 2^-9, inf, nan, -0 or f32:0x3e99999a, got {text!r}") from None
    return -0.0 if not value and plain.startswith("-") else value


def _finite(text: str) -> Fraction:
    exponent = _DECIMAL_EXPONENT.search(text)
    power, digits = _POWER.fullmatch(text), _HEX.fullmatch(text)
    written = power[2] if power else (digits[4] or "0") if digits else exponent[1] if exponent else "0"
    if abs(int(written)) > _MAX_EXPONENT:
        raise InputError(f"expected an exponent of at most {_MAX_EXPONENT:,} in magnitude, got {written}")
    if power:
        return int(power[1] + "1") * Fraction(2) ** int(power[2])
    if digits:
        whole, part = digits[2], digits[3] or ""
        return int(digits[1] + "1") * Fraction(int(whole + part, 16), 16 ** len(part)) * Fraction(2) ** int(digits[4] or 0)
    return Fraction(text)


def _from_bits(text: str, layout: str, bits: int) -> Number:
    exponent_bits, mantissa_bits = _LAYOUTS[layout]
    if bits >> (1 + exponent_bits + mantissa_bits):
        raise InputError(f"expected {1 + exponent_bits + mantissa_bits} bits after {layout}:, got {text!r}")
    negative = bits >> (exponent_bits + mantissa_bits)
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = bits & ((1 << mantissa_bits) - 1)
    if exponent == (1 << exponent_bits) - 1:
        wide = negative << 63 | 0x7FF << 52 | mantissa << (52 - mantissa_bits)
        return float(*struct.unpack("<d", struct.pack("<Q", wide)))
    scale = Fraction(2) ** (max(exponent, 1) - (1 << (exponent_bits - 1)) + 1 - mantissa_bits)
    value = (mantissa | (exponent > 0) << mantissa_bits) * scale
    return (-value or -0.0) if negative else value


def as_number(x: Any) -> Number:
    """The exact number that a text, a Python number or a NumPy scalar is.

    Raises:
        InputError: it is none of these.

    >>> as_number(0.5), as_number("1/3"), as_number(-0.0)
    (Fraction(1, 2), Fraction(1, 3), -0.0)
    """
    if isinstance(x, str):
        return parse_number(x)
    if isinstance(x, Fraction):
        return x
    try:
        return Fraction(operator.index(x))
    except TypeError:
        pass
    try:
        value = float(x)  # exact for NumPy's and ml_dtypes' scalars of up to 64 bits
    except (TypeError, ValueError):
        raise InputError(f"expected a number or its text, got {type(x).__name__}") from None
    return Fraction(value) if math.isfinite(value) and (value or math.copysign(1, value) > 0) else value


def is_finite(x: Number) -> bool:
    """Whether a number is neither NaN nor infinite.

    >>> is_finite(-0.0), is_finite(float("inf"))
    (True, False)
    """
    return isinstance(x, Fraction) or x == 0


def show(x: Number) -> str:
    """A number as text: a float64 as Python prints it, a small fraction as such, anything else rounded, after ``≈``.

    >>> show(Fraction(448)), show(Fraction(1, 512)), show(Fraction(1, 3)), show(-0.0), show(math.inf)
    ('448', '0.001953125', '1/3', '-0', 'inf')
    """
    if isinstance(x, float):
        return "-0" if x == 0 else "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"
    if abs(x.numerator) < 10**7 and x.denominator & (x.denominator - 1) and x.denominator < 10**7:
        return str(x)
    try:
        near = float(x)
    except OverflowError:
        near = math.inf
    if math.isfinite(near) and Fraction(near) == x:
        return repr(near).removesuffix(".0")
    return f"≈{approximately(x, 12)}"


def approximately(x: Fraction, digits: int = 4) -> str:
    """A fraction to some digits, also beyond the range of float64.

    >>> approximately(Fraction(1, 3)), approximately(Fraction(2) ** 2000)
    ('0.3333', '1.148e+602')
    """
    return format(Decimal(x.numerator) / Decimal(x.denominator), f".{digits}g")


def size_text(n: float) -> str:
    """Bytes in three digits.

    >>> size_text(999), size_text(46_912_345), size_text(2e9)
    ('999 B', '46.9 MB', '2 GB')
    """
    for unit in ("B", "kB", "MB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"
