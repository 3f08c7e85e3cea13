"""What is usually wrong with a conversion to FP8, as predictions that can be compared with what an implementation gave.

A suspect acts on one of three stages, and what it leaves alone is the law's::

    number --source--> number' --policy--> cell of `law.law_table` --codes--> code

The last two stages see cells only (`fp8np.verify.law`), a thousand or so for a format: so they cost nothing, and two of them can be
tried together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.formats import FORMATS, FloatFormat
from fp8np.policy import IEEE, NAN, OVERFLOW, ROUNDING, STOCHASTIC, Policy
from fp8np.verify.law import law, law_table, probes

__all__ = ["Grid", "Suspect", "grid", "sources", "tables", "wholes"]

Codes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """The cells of a format, one entry each.

    Attributes:
        fmt: the format.
        x: a number in the cell.
        minus: its sign.
        low: the largest magnitude (code without sign) not above abs(x), the exponent unbounded; -1 where there is none.
        part: where abs(x) lies between the values of low and low + 1: 0 on the lower, 1 below the middle, 2 on it, 3 above it.
        finite: x is a number.
        beyond: x is a finite number that rounds to nearest to more than the largest value.
    """

    fmt: FloatFormat
    x: Numbers
    minus: Mask
    low: npt.NDArray[np.intp]
    part: npt.NDArray[np.intp]
    finite: Mask
    beyond: Mask

    @property
    def subnormal(self) -> Mask:
        """Numbers below the smallest normal one."""
        return np.asarray(self.finite & (self.x != 0) & (self.low < 1 << self.fmt.mantissa_bits))

    def sign(self) -> Codes:
        """The sign bit of each cell."""
        return np.where(self.minus, self.fmt.sign_bit, 0).astype(np.uint8)

    def zero(self) -> Codes:
        """The code of zero with each cell's sign, where the format has one."""
        return self.sign() if self.fmt.has_negative_zero else np.zeros(self.x.shape, np.uint8)


@lru_cache(maxsize=64)
def grid(fmt: FloatFormat) -> Grid:
    """The cells of `law.law_table`, in its order."""
    x = np.array([float(p) for p in probes(fmt)])
    finite = np.isfinite(x)
    magnitude = np.where(finite, np.abs(x), 0)
    values = np.array([float(reference.magnitude_value(fmt, m)) for m in range(fmt.max_magnitude + 4)])
    low = np.searchsorted(values, magnitude, side="right") - 1
    at = np.clip(low, 0, len(values) - 2)
    middle = (values[at] + values[at + 1]) / 2
    part = np.where(magnitude == values[at], 0, 2 + np.sign(magnitude - middle)).astype(np.intp)
    part[low < 0] = 1
    beyond = finite & (low + (part + low % 2 > 2) > fmt.max_magnitude)
    return Grid(fmt, x, np.signbit(x), low, part, finite, beyond)


@dataclass(frozen=True)
class Suspect:
    """A kind of bug: in words, and as what it changes. See the module's docstring.

    One that is `special` holds for a part of the numbers only. It is not named beside one that explains as much.
    """

    text: str
    source: Callable[[Numbers], Numbers] | None = None
    policy: Callable[[Policy], Policy] | None = None
    codes: Callable[[Grid, Policy, Codes], Codes] | None = None
    special: bool = False

    def table(self, fmt: FloatFormat, policy: Policy, codes: Codes | None = None) -> Codes:
        """The code of each cell; `codes` are those to begin with, where another suspect has already acted."""
        changed = self.policy(policy) if self.policy else policy
        begun = law_table(fmt, changed) if codes is None else codes
        return self.codes(grid(fmt), changed, begun) if self.codes else begun


# -- the source -------------------------------------------------------------------------------------------------------


def _through(dtype: Any, toward_zero: bool = False) -> Callable[[Numbers], Numbers]:
    def convert(x: Numbers) -> Numbers:
        with np.errstate(all="ignore"):
            narrow = x.astype(dtype)
            if toward_zero:
                narrow = np.where(np.abs(narrow) > np.abs(x), np.nextafter(narrow, dtype(0)), narrow)
        return narrow.astype(np.float64)

    return convert


def _bfloat16(toward_zero: bool) -> Callable[[Numbers], Numbers]:
    def convert(x: Numbers) -> Numbers:
        with np.errstate(all="ignore"):
            bits = x.astype(np.float32).view(np.uint32)
        added = np.zeros_like(bits) if toward_zero else np.uint32(0x7FFF) + (bits >> 16 & 1)
        rounded = np.where(np.isnan(x), bits, bits + added & np.uint32(0xFFFF0000))
        with np.errstate(invalid="ignore"):
            return rounded.view(np.float32).astype(np.float64)

    return convert


def _flushed(smallest: float) -> Callable[[Numbers], Numbers]:
    return lambda x: np.where(np.abs(x) < smallest, np.copysign(0.0, x), x)


def sources() -> Iterator[Suspect]:
    """Suspects of the first stage."""
    yield Suspect("double rounding: the source is rounded to float16 first", _through(np.float16))
    yield Suspect("double rounding: the source is rounded to float32 first", _through(np.float32))
    yield Suspect("double rounding: the source is rounded to bfloat16 first", _bfloat16(False))
    yield Suspect("sticky bits are lost: the source is cut to float32 first", _through(np.float32, toward_zero=True))
    yield Suspect("sticky bits are lost: the source is cut to float16 first", _through(np.float16, toward_zero=True))
    yield Suspect("sticky bits are lost: the source is cut to bfloat16 first", _bfloat16(True))
    yield Suspect("exponent off by one: every result is doubled (bias)", lambda x: x * 2)
    yield Suspect("exponent off by one: every result is halved (bias)", lambda x: x / 2)
    yield Suspect("the sign is lost: numbers are taken by magnitude", np.abs)
    yield Suspect("the sign is inverted", np.negative)
    yield Suspect("sources that are subnormal float32 are flushed to zero", _flushed(2.0**-126))
    yield Suspect("sources that are subnormal float16 are flushed to zero", _flushed(2.0**-14))


# -- the policy, and what becomes of a cell ---------------------------------------------------------------------------

_ROUNDING_TEXTS = {
    "nearest_even": "rounds to nearest, ties to even",
    "nearest_away": "ties go away from zero",
    "toward_zero": "truncation: rounds toward zero",
    "up": "rounds up, toward +infinity",
    "down": "rounds down, toward -infinity",
    "odd": "rounds to odd",
}
_OVERFLOW_TEXTS = {
    "saturate": "overflow saturates: finite numbers beyond the largest, and infinity, become the largest",
    "ieee": "overflow does not saturate: it gives infinity, or NaN where there is none",
    "propagate": "finite overflow saturates, but infinity does not",
    "ieee_early": "overflow is decided before rounding: all above the largest value overflows",
}
_NAN_TEXTS = {
    "keep_sign": "wrong NaN code: only the quiet bit is set, sign kept",
    "all_ones": "wrong NaN code: every mantissa bit is set",
    "positive": "wrong NaN code: the sign is dropped",
    "payload": "wrong NaN code: the payload is kept",
    "max": "NaN becomes the largest value",
    "negated_zero": "NaN becomes zero of the other sign",
}


def _with(**fields: Any) -> Callable[[Policy], Policy]:
    return lambda policy: dataclasses.replace(policy, **fields)


def _policies(fmt: FloatFormat) -> Iterator[Suspect]:
    for rounding in ROUNDING:
        if rounding not in STOCHASTIC:
            yield Suspect(_ROUNDING_TEXTS[rounding], policy=_with(rounding=rounding))
    for overflow in OVERFLOW:
        yield Suspect(_OVERFLOW_TEXTS[overflow], policy=_with(overflow=overflow))
    for nan in NAN:
        if nan != "negated_zero" or not fmt.nan_codes:
            yield Suspect(_NAN_TEXTS[nan], policy=_with(nan=nan))
    if not fmt.signed:
        for negative in ("range", "nan", "zero", "magnitude"):
            yield Suspect(f"numbers below zero are treated as negative={negative!r}", policy=_with(negative=negative))
    if not fmt.has_zero:
        for zero in ("smallest", "nan"):
            yield Suspect(f"zero is treated as zero={zero!r}", policy=_with(zero=zero))
        for lowest in ("value", "zero"):
            yield Suspect(f"the smallest value is treated as lowest={lowest!r}", policy=_with(lowest=lowest))
    yield Suspect("the source is not rounded to float16 first", policy=_with(via=None))


def _rounded(g: Grid, codes: Codes, where: Mask, up: Mask) -> Codes:
    """The codes of low, or of low + 1 where `up`, with the overflow and the zeros that `codes` have."""
    magnitude = g.low + up
    sign = g.sign()
    finite = np.flatnonzero(g.finite)
    # The last finite cell of a sign lies beyond everything, the second is the first gap above zero.
    ends = {s: codes[finite[g.minus[finite] == s][-1]] for s in (False, True)}
    over = np.where(g.minus, ends[True], ends[False])
    result = np.where(magnitude > g.fmt.max_magnitude, over, np.where(magnitude == 0, g.zero(), sign | magnitude.astype(np.uint8)))
    usable = where & g.finite & (g.low >= 0) & (g.x != 0) & (g.fmt.signed | ~g.minus)
    return np.where(usable, result, codes).astype(np.uint8)


def _ties(choose: Callable[[Grid], Mask]) -> Callable[[Grid, Policy, Codes], Codes]:
    return lambda g, _, codes: _rounded(g, codes, g.part == 2, choose(g))


def _region(where: Callable[[Grid], Mask], rounding: str) -> Callable[[Grid, Policy, Codes], Codes]:
    def change(g: Grid, policy: Policy, codes: Codes) -> Codes:
        return np.where(where(g), law_table(g.fmt, dataclasses.replace(policy, rounding=rounding)), codes)

    return change


def _where(where: Callable[[Grid, Codes], Any], value: Callable[[Grid, Codes], Any]) -> Callable[[Grid, Policy, Codes], Codes]:
    return lambda g, _, codes: np.where(where(g, codes), value(g, codes), codes).astype(np.uint8)


def _magnitude(g: Grid, codes: Codes) -> npt.NDArray[np.intp]:
    return (codes & g.fmt.magnitude_mask).astype(np.intp)


def _plus_zero(g: Grid, codes: Codes) -> Codes:
    return np.zeros_like(codes)


def _sign_bit(g: Grid, codes: Codes) -> Codes:
    return np.full_like(codes, g.fmt.sign_bit)


def _is_zero(g: Grid, codes: Codes) -> Mask:
    return np.asarray((codes == 0) | (codes == g.zero())) & g.finite


def _top(off: int) -> Callable[[Grid, Codes], Any]:
    return lambda g, codes: g.sign() | (g.fmt.max_magnitude + off & g.fmt.magnitude_mask)


def _carried(g: Grid, codes: Codes) -> Any:
    # A result one above `low` whose mantissa is 0: rounding carried into the exponent, beyond the largest value too.
    over = g.low + (g.part + g.low % 2 > 2)
    nearest = np.where(g.beyond, over, _magnitude(g, codes))
    return g.finite & (nearest == g.low + 1) & (nearest % (1 << g.fmt.mantissa_bits) == 0)


def _uncarried(subnormals: bool, lost: int) -> Callable[[Grid, Policy, Codes], Codes]:
    """Results into whose exponent rounding carried, with `lost` taken from their magnitude."""

    def where(g: Grid, codes: Codes) -> Any:
        return _carried(g, codes) & (subnormals | ~g.subnormal)

    return _where(where, lambda g, codes: g.sign() | (g.low + 1 - lost & g.fmt.magnitude_mask))


def _wrapped(fmt: FloatFormat, policy: Policy, x: Numbers) -> Codes:
    magnitude = np.where(np.isfinite(x), np.abs(x), 0)
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, fmt.min_exponent)
    quanta = np.rint(np.ldexp(magnitude, fmt.mantissa_bits - exponent)).astype(np.int64)
    code = ((exponent - fmt.min_exponent).astype(np.int64) << fmt.mantissa_bits) + quanta
    sign = np.where(np.signbit(x), fmt.sign_bit, 0)
    return np.where(code > fmt.max_magnitude, sign | (code & fmt.magnitude_mask), law(fmt, x, policy)).astype(np.uint8)


def wholes(fmt: FloatFormat) -> Iterator[tuple[str, Callable[[FloatFormat, Policy, Numbers], Codes]]]:
    """Suspects that no table of cells can say: in words, and the codes of numbers."""
    if fmt.has_zero and fmt.signed:
        yield "overflow wraps around: the upper bits of the exponent are dropped", _wrapped
    for other in FORMATS.values():
        if other != fmt and other.bits == fmt.bits:
            yield f"wrong format: these are the codes of {other}", lambda _, policy, x, other=other: law(other, x, policy)  # type: ignore[misc]


def _early(g: Grid) -> Mask:
    return g.finite & (g.low < 1 << g.fmt.mantissa_bits)


def _zeros(fmt: FloatFormat) -> Iterator[Suspect]:
    def minus_zero(g: Grid, codes: Codes) -> Any:
        return (g.x == 0) & g.minus

    def underflow(g: Grid, codes: Codes) -> Any:
        return _is_zero(g, codes) & (g.x != 0) & g.minus

    def either(g: Grid, codes: Codes) -> Any:
        return _is_zero(g, codes) & g.minus

    cases = ((minus_zero, "a source of -0"), (underflow, "negative numbers that round to zero"), (either, "all negative zeros"))
    for where, text in cases:
        if fmt.has_negative_zero:
            yield Suspect(f"sign of zero: {text} become +0", codes=_where(where, _plus_zero))
        elif fmt.signed:
            code = "NaN here" if fmt.sign_bit in fmt.nan_codes else "no zero here"
            yield Suspect(f"sign of zero: {text} give {fmt.sign_bit:#04x}, which is {code}", codes=_where(where, _sign_bit))


def _underflows(fmt: FloatFormat) -> Iterator[Suspect]:
    step = 1 << fmt.mantissa_bits

    def results(g: Grid, codes: Codes) -> Any:
        return g.finite & (_magnitude(g, codes) < step) & ~g.beyond & (codes != g.fmt.sign_bit)

    def tiny(g: Grid, codes: Codes) -> Any:
        return g.finite & (g.low == 0) & (g.part > 0)

    if fmt.mantissa_bits:
        yield Suspect("subnormal results are flushed to zero", codes=_where(results, lambda g, _: g.zero()))
        yield Suspect("subnormal results are flushed to +0", codes=_where(results, _plus_zero))
        early: Callable[[Grid, Codes], Any] = lambda g, _: _early(g)  # noqa: E731
        yield Suspect("numbers below the smallest normal are flushed to zero before rounding", codes=_where(early, lambda g, _: g.zero()))
        for rounding in ("toward_zero", "nearest_away", "nearest_even"):
            yield Suspect(f"subnormals alone: {_ROUNDING_TEXTS[rounding]}", codes=_region(lambda g: g.subnormal, rounding), special=True)
            yield Suspect(
                f"normal numbers alone: {_ROUNDING_TEXTS[rounding]}",
                codes=_region(lambda g: g.finite & ~g.subnormal, rounding),
                special=True,
            )
    yield Suspect("numbers below the smallest value are flushed to zero", codes=_where(tiny, lambda g, _: g.zero()))
    yield Suspect("nothing but zero becomes zero: tiny numbers give the smallest value", codes=_where(tiny, lambda g, _: g.sign() | 1))


def tables(fmt: FloatFormat) -> Iterator[Suspect]:
    """Suspects of the second and third stage, the more common first."""
    yield from _policies(fmt)
    if fmt.has_zero:
        yield from _zeros(fmt)
        yield from _underflows(fmt)
    yield Suspect("ties go toward zero", codes=_ties(lambda g: np.zeros_like(g.minus)))
    yield Suspect("ties go up, toward +infinity (half up)", codes=_ties(lambda g: ~g.minus))
    yield Suspect("ties go down, toward -infinity", codes=_ties(lambda g: g.minus))
    yield Suspect("ties go to odd", codes=_ties(lambda g: g.low % 2 == 0))
    yield Suspect("rounds away from zero", codes=lambda g, _, codes: _rounded(g, codes, g.part > 0, np.ones_like(g.minus)))
    sticky: Callable[[Grid, Policy, Codes], Codes] = lambda g, _, codes: _rounded(g, codes, g.part == 3, g.low % 2 == 1)  # noqa: E731
    yield Suspect("the sticky bit is ignored: all above the middle is a tie", codes=sticky)
    for rounding in ("toward_zero", "nearest_away"):
        yield Suspect(
            f"negative numbers alone: {_ROUNDING_TEXTS[rounding]}", codes=_region(lambda g: g.finite & g.minus, rounding), special=True
        )
        yield Suspect(
            f"positive numbers alone: {_ROUNDING_TEXTS[rounding]}", codes=_region(lambda g: g.finite & ~g.minus, rounding), special=True
        )

    def out(g: Grid, codes: Codes) -> Any:
        return g.beyond | np.isinf(g.x)

    def at_top(g: Grid, codes: Codes) -> Any:
        return g.finite & (_magnitude(g, codes) == fmt.max_magnitude)

    def late(g: Grid, codes: Codes) -> Any:
        return g.finite & (g.low == fmt.max_magnitude)

    def top_tie(g: Grid, codes: Codes) -> Any:
        return late(g, codes) & (g.part == 2)

    def overflowed(g: Grid, codes: Codes) -> Any:
        table = law_table(fmt, IEEE)
        return np.where(g.minus, table[np.isinf(g.x) & g.minus][0], table[np.isinf(g.x) & ~g.minus][0])

    yield Suspect("saturation off by one: overflow gives the code below the largest value", codes=_where(out, _top(-1)))
    yield Suspect("saturation off by one: the largest value is never given, but the one below", codes=_where(at_top, _top(-1)))
    yield Suspect("saturation off by one: overflow gives the code above the largest value", codes=_where(out, _top(1)))
    yield Suspect("overflow begins at the value after the largest, not at the middle before it", codes=_where(late, _top(0)))
    yield Suspect("the tie above the largest value overflows, or not, contrary to the rule", codes=_where(top_tie, overflowed))
    yield Suspect("the largest value itself overflows", codes=_where(at_top, overflowed))
    if fmt.mantissa_bits and fmt.has_zero:
        step = 1 << fmt.mantissa_bits
        for subnormals in (True, False):
            which = "" if subnormals else " (of normal numbers)"
            yield Suspect(f"the carry of rounding{which} is lost: mantissa wraps, exponent stays", codes=_uncarried(subnormals, step))
            yield Suspect(f"the carry of rounding{which} is clipped: the mantissa stays all ones", codes=_uncarried(subnormals, 1))
    if fmt.signed:
        kinds = (("NaN", lambda g, _: np.isnan(g.x)), ("infinity", lambda g, _: np.isinf(g.x)), ("overflow", out))
        for name, where in kinds:
            yield Suspect(f"the sign of {name} is lost", codes=_where(where, lambda g, codes: codes & np.uint8(g.fmt.magnitude_mask)))
