"""A number seen through formats: its code with the fields apart, the neighbours, the error, and what every preset makes of it and why.

Everything is exact: numbers are read as fractions, codes come from `fp8np.reference`, errors are fractions too.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from fp8np import reference
from fp8np._numbers import Number, approximately, as_number, is_finite, show
from fp8np.errors import FormatError
from fp8np.formats import FloatFormat, get_format
from fp8np.policy import OVERFLOW, PRESETS, SATURATE, STOCHASTIC, Policy

__all__ = [
    "Explanation",
    "Neighbour",
    "Outcome",
    "code_fields",
    "explain",
    "explain_code",
    "finite_values",
]

# As many as AVX10.2 takes for each element (VCVTBIASPH2HF8).
_RANDOM_BITS = 8


def code_fields(fmt: FloatFormat, code: int) -> str:
    """A code in binary, its sign, exponent and mantissa apart.

    >>> code_fields(get_format("e4m3fn"), 0xB9)
    '1 0111 001'
    """
    bits = f"{code:0{fmt.bits}b}"
    start, middle = int(fmt.signed), int(fmt.signed) + fmt.exponent_bits
    return " ".join(part for part in (bits[:start], bits[start:middle], bits[middle:]) if part)


@lru_cache(maxsize=256)
def finite_values(fmt: FloatFormat) -> tuple[tuple[Fraction, int], ...]:
    """The finite values of a format with their codes, ascending; -0 left out.

    >>> [(str(value), code) for value, code in finite_values(get_format("e2m1fn"))][-3:]
    [('3', 5), ('4', 6), ('6', 7)]
    """
    decoded = ((reference.decode(fmt, code), code) for code in range(1 << fmt.bits))
    return tuple(sorted((value, code) for value, code in decoded if isinstance(value, Fraction)))


# -- explanations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbour:
    """The closest value on one side of a number: its code, the value, and how far away it is (positive)."""

    code: int
    value: Fraction
    distance: Fraction


@dataclass(frozen=True)
class Outcome:
    """What some presets give.

    Attributes:
        presets: names of `fp8np.policy.PRESETS` that give it, and ``default``, which is what `fp8np.encode` does unasked.
        codes: the code with its share of the random bits, 1 without any; two codes where 8 random bits decide.
        why: what decided it where presets differ; else empty.
    """

    presets: tuple[str, ...]
    codes: tuple[tuple[int, Fraction], ...]
    why: str


@dataclass(frozen=True)
class Explanation:
    """One number in one format.

    Attributes:
        format: the format.
        number: the number, exactly.
        code: what `fp8np.encode` gives for it, or the code asked about.
        value: what the code stands for.
        kind: ``normal``, ``subnormal``, ``zero``, ``infinity`` or ``NaN``: what the code is.
        below: the largest finite value below the number; None where there is none, and for NaN.
        above: the smallest finite value above the number; likewise.
        error: value - number; None where either is not finite.
        note: how the number lies among the values, in words.
        outcomes: what every preset gives, grouped, the default first.
    """

    format: FloatFormat
    number: Number
    code: int
    value: Number
    kind: str
    below: Neighbour | None
    above: Neighbour | None
    error: Fraction | None
    note: str
    outcomes: tuple[Outcome, ...]

    @property
    def fields(self) -> str:
        """The code in binary, its fields apart."""
        return code_fields(self.format, self.code)

    @property
    def relative(self) -> Fraction | None:
        """error / |number|; None for a number that is zero or not finite."""
        return None if self.error is None or not self.number else self.error / abs(Fraction(self.number))

    @property
    def ulps(self) -> Fraction | None:
        """The error in units of the spacing of values around the number; beyond the largest value, in units of the last spacing."""
        return None if self.error is None else self.error / _spacing(self.format, abs(Fraction(self.number)))

    @property
    def agreed(self) -> bool:
        """Whether all presets give the same code."""
        return len(self.outcomes) == 1

    def as_dict(self) -> dict[str, Any]:
        """The same facts as JSON can hold them: numbers as floats, exact ones as text beside them; NaN and infinity as text."""
        fmt = self.format
        return {
            "format": fmt.name,
            "number": _plain(self.number),
            "exact": show(self.number) if isinstance(self.number, float) else str(self.number),
            "code": self.code,
            "hex": f"0x{self.code:02X}",
            "bits": self.fields,
            "kind": self.kind,
            "value": _plain(self.value),
            "error": _plain(self.error),
            "relative_error": _plain(self.relative),
            "ulps": _plain(self.ulps),
            "note": self.note,
            **{
                side: None if near is None else {"code": near.code, "value": _plain(near.value), "distance": _plain(near.distance)}
                for side, near in (("below", self.below), ("above", self.above))
            },
            "outcomes": [
                {
                    "presets": list(outcome.presets),
                    "codes": [{"code": code, "value": _plain(reference.decode(fmt, code)), "share": float(p)} for code, p in outcome.codes],
                    "why": outcome.why,
                }
                for outcome in self.outcomes
            ],
        }


def _plain(x: Number | None) -> float | str | None:
    if x is None:
        return None
    try:
        near = float(x)
    except OverflowError:
        return approximately(Fraction(x))
    return show(near) if not math.isfinite(near) else near


def explain(x: Any, fmt: Any) -> Explanation:
    """A number in a format.

    Args:
        x: a Python or NumPy number, taken exactly, or a text as `fp8np._numbers.parse_number` reads it: ``0.3`` is 3/10.
        fmt: the format: a name, a dtype, or a `FloatFormat`.

    Raises:
        InputError: x is not a number. FormatError: the format is unknown.

    >>> e = explain("0.3", "e4m3fn")
    >>> e.fields, show(e.value), show(e.below.value), e.note, str(e.ulps)
    ('0 0101 010', '0.3125', '0.28125', 'rounded up, to the nearest', '2/5')
    >>> [(o.presets[-1], hex(o.codes[0][0]), o.why) for o in explain(470, "e4m3fn").outcomes][1]
    ('amd_nosat', '0x7f', 'beyond 448: NaN, as there is no infinity (overflow=ieee or ieee_early)')
    """
    f, number = get_format(fmt), as_number(x)
    return _explanation(f, number, reference.encode(f, number))


def explain_code(code: int, fmt: Any) -> Explanation:
    """A code of a format, as `explain` has it for the value that it stands for.

    Raises:
        FormatError: the format is unknown, or has no such code. TypeError: code is not an integer.

    >>> e = explain_code(0x01, "e4m3fn")
    >>> e.kind, show(e.value), show(e.above.value)
    ('subnormal', '0.001953125', '0.00390625')
    """
    f, code = get_format(fmt), operator.index(code)
    if not 0 <= code < 1 << f.bits:
        raise FormatError(f"expected a code of {f} in 0..0x{(1 << f.bits) - 1:02X}, got {code:#04x}")
    value = reference.decode(f, code)
    if isinstance(value, float) and math.isnan(value) and f.has_negative_zero and code & f.sign_bit:
        value = -value
    return _explanation(f, value, code)


def _explanation(fmt: FloatFormat, number: Number, code: int) -> Explanation:
    value = reference.decode(fmt, code)
    magnitude = code & fmt.magnitude_mask
    if isinstance(value, float) and value != 0:
        kind = "NaN" if math.isnan(value) else "infinity"
    else:
        kind = "zero" if not value else "subnormal" if fmt.has_zero and magnitude >> fmt.mantissa_bits == 0 else "normal"
    below, above = _neighbours(fmt, number)
    finite = is_finite(number) and is_finite(value)
    error = Fraction(value) - Fraction(number) if finite else None
    return Explanation(fmt, number, code, value, kind, below, above, error, _note(fmt, number, value, below, above), _outcomes(fmt, number))


def _neighbours(fmt: FloatFormat, number: Number) -> tuple[Neighbour | None, Neighbour | None]:
    if isinstance(number, float) and number != 0:  # NaN, infinity
        return None, None
    x, pairs = Fraction(number), finite_values(fmt)
    low = bisect_left(pairs, x, key=operator.itemgetter(0)) - 1
    high = bisect_right(pairs, x, key=operator.itemgetter(0))
    below = Neighbour(pairs[low][1], pairs[low][0], x - pairs[low][0]) if low >= 0 else None
    above = Neighbour(pairs[high][1], pairs[high][0], pairs[high][0] - x) if high < len(pairs) else None
    return below, above


def _spacing(fmt: FloatFormat, x: Fraction) -> Fraction:
    if not x:
        return Fraction(2) ** fmt.quantum_exponent
    n, d = x.as_integer_ratio()
    exponent = n.bit_length() - d.bit_length()
    exponent -= x < Fraction(2) ** exponent
    return Fraction(2) ** (min(max(exponent, fmt.min_exponent), fmt.max_exponent) - fmt.mantissa_bits)


def _note(fmt: FloatFormat, number: Number, value: Number, below: Neighbour | None, above: Neighbour | None) -> str:
    if isinstance(number, float) and math.isnan(number):
        return "exact" if isinstance(value, float) and math.isnan(value) else "the format has no NaN"
    if not is_finite(number):
        if number == value:
            return "exact"
        return "fp8np saturates unless asked" if fmt.has_inf and fmt.signed else "the format has no such infinity"
    if not number and not fmt.has_zero:
        return "the format has no zero"
    if number == value:
        return "exact" if isinstance(number, Fraction) or fmt.has_negative_zero else "the format has no negative zero"
    if number < 0 and not fmt.signed:
        return "the format has no sign"
    if abs(Fraction(number)) > Fraction(fmt.max):
        rounds = _rounds_to_largest(fmt, number)
        return f"beyond the largest value, {show(Fraction(fmt.max))}{', but rounds to it' if rounds else ''}"
    if below is None or above is None:
        return "below the smallest value"
    if below.distance == above.distance:
        return "halfway between two values: to the even code"
    return f"rounded {'up' if value > number else 'down'}, to the nearest"


def _rounds_to_largest(fmt: FloatFormat, number: Number) -> bool:
    after = abs(Fraction(number)) - Fraction(fmt.max)
    step = reference.magnitude_value(fmt, fmt.max_magnitude + 1) - Fraction(fmt.max)
    return after < step / 2 or (after == step / 2 and fmt.max_magnitude % 2 == 0)


# -- what presets do, and why -----------------------------------------------------------------------------------------


def _outcomes(fmt: FloatFormat, number: Number) -> tuple[Outcome, ...]:
    policies = _policies(fmt)
    groups: dict[tuple[tuple[int, Fraction], ...], list[str]] = {}
    for name, policy in policies.items():
        groups.setdefault(_codes(fmt, number, policy), []).append(name)
    return tuple(
        Outcome(tuple(names), codes, _why(fmt, number, codes, [policies[n] for n in names], policies.values()) if len(groups) > 1 else "")
        for codes, names in groups.items()
    )


def _policies(fmt: FloatFormat) -> Mapping[str, Policy]:
    named = {name: rows[fmt.name] for name, rows in PRESETS.items() if fmt.name in rows}
    # Nobody's format: what one can ask for is as good as a vendor's choice.
    return {"default": SATURATE, **(named or {f"overflow={name}": Policy(name) for name in OVERFLOW[1:]})}


def _codes(fmt: FloatFormat, number: Number, policy: Policy) -> tuple[tuple[int, Fraction], ...]:
    """The codes that a policy gives, with the share of random bits that each gets: one without randomness, else up to two."""
    how = dataclasses.asdict(policy)
    if policy.rounding not in STOCHASTIC:
        return ((reference.encode(fmt, number, **how), Fraction(1)),)
    count = 1 << _RANDOM_BITS

    def code(r: int) -> int:
        return reference.encode(fmt, number, **how, random_bits=(r, _RANDOM_BITS))

    first, last = code(0), code(count - 1)
    if first == last:
        return ((first, Fraction(1)),)
    few = bisect_left(range(count), True, key=lambda r: code(r) != first)  # more random bits never round back towards zero
    return (first, Fraction(few, count)), (last, Fraction(count - few, count))


def _why(
    fmt: FloatFormat, number: Number, codes: tuple[tuple[int, Fraction], ...], policies: Iterable[Policy], others: Iterable[Policy]
) -> str:
    # A part of a policy decides if putting another preset's choice in its place changes the result. Random roundings are not put
    # in the place of others unless nothing else explains: they change the result of nearly every number.
    everyone = list(others)
    chosen: dict[str, list[str]] = {}
    for random in (False, True):
        for policy in policies:
            for field in dataclasses.fields(Policy):
                own = getattr(policy, field.name)
                choices = {getattr(other, field.name) for other in everyone} - {own}
                if not random and policy.rounding not in STOCHASTIC:
                    choices -= set(STOCHASTIC)
                if any(_codes(fmt, number, dataclasses.replace(policy, **{field.name: choice})) != codes for choice in choices):
                    values = chosen.setdefault(field.name, [])
                    if str(own) not in values:
                        values.append(str(own))
        if chosen:
            break
    return "; ".join(_reason(fmt, number, codes[-1][0], field, values) for field, values in chosen.items())


_NAN = {
    "keep_sign": "the sign of NaN is kept",
    "all_ones": "the sign of NaN is kept, every mantissa bit set",
    "positive": "the sign of NaN is dropped",
    "payload": "the sign and the leading payload bits of NaN are kept",
    "max": "NaN becomes the largest value",
    "negated_zero": "NaN becomes zero of the other sign",
}
_LOWEST = {"value": "the smallest value is one like any other", "zero": "the smallest value counts as zero in rounding"}
_VIA = {"None": "rounded once", "float16": "rounded to float16 first"}


def _reason(fmt: FloatFormat, number: Number, code: int, field: str, values: list[str]) -> str:
    # What a part of a policy did here, in words, and how to ask for it.
    given = reference.decode(fmt, code)
    match field:
        case "overflow" | "negative" if not fmt.signed and number < 0:
            lowest = "become the lowest value" if not given or given == Fraction(fmt.min) else "lose their sign"
            texts = [f"negative numbers {lowest if is_finite(given) else 'are NaN'}"]
        case "overflow":
            texts = [_overflow(fmt, number, given, early=values == ["ieee_early"])]
        case "zero":
            texts = [f"zero becomes {'the smallest value' if is_finite(given) else 'NaN'}"]
        case "nan" if is_finite(given) and given:
            texts = ["NaN becomes the largest value"]
        case "nan" | "lowest" | "via":
            texts = [{"nan": _NAN, "lowest": _LOWEST, "via": _VIA}[field][value] for value in values]
        case _:
            return f"rounds {' or '.join(value.replace('_', ' ') for value in values)}"
    return f"{', or '.join(texts)} ({field}={' or '.join(values)})"


def _overflow(fmt: FloatFormat, number: Number, given: Number, early: bool) -> str:
    infinite = not is_finite(number)
    subject = "infinity" if infinite else f"beyond {show(Fraction(fmt.max))}{' before rounding' if early else ''}"
    if is_finite(given):
        rounded = not infinite and _rounds_to_largest(fmt, number)
        return f"rounds to {show(given)}, which is in range" if rounded else f"{subject}: clamped"
    if math.isinf(given):
        return "infinity is kept" if infinite else f"{subject}: infinity"
    return f"{subject}: NaN{'' if fmt.has_inf else ', as there is no infinity'}"
