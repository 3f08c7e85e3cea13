"""What is usually wrong with a sum of products: changes of what is summed, of how, or of what becomes of the sum.

The rest is the law's (`fp8np.reference_sum`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from fp8np.accumulators import ACCUMULATORS, Accumulator
from fp8np.errors import PolicyError
from fp8np.formats import FloatFormat
from fp8np.reference_sum import dot
from fp8np.verify._chain import Chain, float32_bits, rounded, stored

__all__ = ["LONGEST", "Element", "Suspect", "suspects"]

LONGEST = 4096
"""Longest sum that is looked at."""


@dataclass(frozen=True)
class Element:
    """One sum: codes, where it starts, how it is summed, and what was given."""

    a: tuple[int, ...]
    a_format: FloatFormat
    b: tuple[int, ...]
    b_format: FloatFormat
    init: float
    how: Accumulator
    got: int
    differs: bool
    tolerance: float
    any_nan: bool
    nan: int | None = None
    """The bits of NaN, where they are not those of `how`."""

    def law(self) -> int:
        """The bits of the sum."""
        bits = dot(self.how, self.a, self.a_format, self.b, self.b_format, self.init)
        return bits if self.nan is None or bits & 0x7FFFFFFF <= 0x7F800000 else self.nan

    def agrees(self, bits: int) -> bool:
        """Whether a prediction is what was given."""
        if bits == self.got:
            return True
        predicted, given = _float(bits), _float(self.got)
        if math.isnan(predicted) or math.isnan(given):
            return self.any_nan and math.isnan(predicted) and math.isnan(given)
        # Sums whose order is free are predicted by the exact sum.
        return self.tolerance > 0 and abs(predicted - given) <= self.tolerance


@dataclass(frozen=True)
class Suspect:
    """A kind of bug: in words, and what it does to the terms, to the sum, and to its bits."""

    text: str
    terms: Callable[[Element], Element | None] | None = None
    total: Callable[[Element], int | None] | None = None
    bits: Callable[[int], int] | None = None

    def before(self, element: Element) -> Element | None:
        """What is summed; None where the suspect has no say."""
        return self.terms(element) if self.terms else element

    def predict(self, element: Element) -> int | None:
        """The bits that would come out."""
        changed = self.before(element)
        if changed is None:
            return None
        total = self.total(changed) if self.total else changed.law()
        return total if total is None or not self.bits else self.bits(total)


def _how(**fields: Any) -> Callable[[Element], Element | None]:
    def change(element: Element) -> Element | None:
        try:
            return dataclasses.replace(element, how=dataclasses.replace(element.how, **fields))
        except PolicyError:  # this accumulator cannot have these fields
            return None

    return change


def _as(row: Accumulator) -> Callable[[Element], Element]:
    # Another rule of sums says nothing of NaN: that its bits are wrong would be another bug.
    return lambda element: dataclasses.replace(element, how=row, nan=element.how.nan_code)


def _chain(chain: Chain) -> Callable[[Element], int | None]:
    def total(e: Element) -> int | None:
        if e.how.kind != "aligned" or e.how.addend != "aligned" or e.how.fraction_bits is None:
            return None
        return chain.bits(e.how, e.a, e.a_format, e.b, e.b_format, e.init)

    return total


def _terms(choose: Callable[[Sequence[int], Accumulator], Sequence[int]]) -> Callable[[Element], Element]:
    """Other terms than all in order: `choose` picks from the numbers 0, 1, ..., K - 1."""

    def change(e: Element) -> Element:
        ks = choose(range(len(e.a)), e.how)
        return dataclasses.replace(e, a=tuple(e.a[k] for k in ks), b=tuple(e.b[k] for k in ks))

    return change


def _groups_reversed(e: Element) -> Element:
    # A last, incomplete group comes first: filled up with zeros, it moves no other.
    group = e.how.group or len(e.a)
    starts = range(0, len(e.a), max(group, 1))[::-1]

    def turned(codes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(c for k in starts for c in (*codes[k : k + group], *[0] * (k + group - len(codes))))

    return dataclasses.replace(e, a=turned(e.a), b=turned(e.b))


def _flush(codes: tuple[int, ...], fmt: FloatFormat) -> tuple[int, ...]:
    return tuple(c & fmt.sign_bit if 0 < c & fmt.magnitude_mask < 1 << fmt.mantissa_bits else c for c in codes)


def _init_last(e: Element) -> int | None:
    part = _float(dataclasses.replace(e, init=0.0).law())
    with np.errstate(all="ignore"):
        return int(np.float32(np.float32(part) + np.float32(e.init)).view(np.uint32))


def _kept(fraction_bits: int) -> Callable[[Element], int | None]:
    def total(e: Element) -> int | None:
        value = stored(fraction_bits, e.a, e.a_format, e.b, e.b_format, e.init)
        return None if value is None else float32_bits(value)

    return total


def _finite_bits(change: Callable[[float], float]) -> Callable[[int], int]:
    def bits(total: int) -> int:
        value = _float(total)
        return total if not math.isfinite(value) else _bits(change(value))

    return bits


def _narrowed(fraction_bits: int, nearest: bool) -> Callable[[int], int]:
    return _finite_bits(lambda x: math.copysign(float(abs(rounded(Fraction(x), fraction_bits, nearest=nearest))), x))


def suspects(elements: Sequence[Element]) -> Iterator[Suspect]:
    """All suspects for these sums, the more common first."""
    how = elements[0].how
    if how.kind == "aligned":
        yield from _aligned(how, len({e.how.promote_every for e in elements}) == 1)
    yield from _general()
    for row in ACCUMULATORS.values():
        if row.name not in (how.name, "fp32"):
            text = "sums in plain float32, one rounding a term" if row.kind == "sequential" else f"sums as {row.name!r} does"
            yield Suspect("sums exactly (or in float64) and rounds once" if row.kind == "exact" else text, _as(row))
    yield Suspect("the sum is kept in bfloat16, rounded after each term", total=_kept(7))
    yield Suspect("the sum is kept with float16's 10 fraction bits, rounded after each term", total=_kept(10))
    for bits, name in ((7, "bfloat16"), (10, "float16's 10 fraction bits")):
        yield Suspect(f"the result is rounded to {name}", bits=_narrowed(bits, nearest=True))
        yield Suspect(f"the result is cut to {name}", bits=_narrowed(bits, nearest=False))
    yield from _learned(elements)


def _aligned(how: Accumulator, one_interval: bool) -> Iterator[Suspect]:
    f, out, group = how.fraction_bits, how.output_fraction_bits, how.group
    if f is not None:
        for off in (-1, 1, -2, 2):
            text = f"accumulator {abs(off)} bit{'s' * (abs(off) > 1)} too {'short' if off < 0 else 'long'}"
            yield Suspect(
                f"{text}: {f + off} fraction bits after alignment, and kept", _how(fraction_bits=f + off, output_fraction_bits=out + off)
            )
            yield Suspect(f"{text}: {f + off} fraction bits after alignment", _how(fraction_bits=f + off))
            yield Suspect(f"{text}: {out + off} fraction bits kept of a sum", _how(output_fraction_bits=out + off))
        yield Suspect("the sum of a step is kept as a whole float32, not cut", _how(output_fraction_bits=23))
        for cut, text in (
            ("nearest", "rounded to nearest even"),
            ("floor", "cut toward -infinity (two's complement)"),
            ("exact", "not cut"),
        ):
            yield Suspect(f"aligned terms are {text}, not truncated toward zero", total=_chain(Chain(cut=cut)))
        yield Suspect("products are aligned by their own leading bit (normalised first)", total=_chain(Chain(normalised=True)))
        yield Suspect("subnormal operands are normalised before alignment", total=_chain(Chain(subnormals_normalised=True)))
        yield Suspect("c does not take part in finding the largest exponent", total=_chain(Chain(c_raises=False)))
    other = "nearest_even" if how.output_rounding == "toward_zero" else "toward_zero"
    rounding = "rounded to nearest even, not truncated" if other == "nearest_even" else "truncated, not rounded to nearest even"
    yield Suspect(f"the sum of a step is {rounding}", _how(output_rounding=other))
    yield Suspect("c is not aligned with the products: it is added after their sum, in float32", _how(addend="rounded"))
    yield from _promotion(how, one_interval)
    for size in sorted({group // 4, group // 2, 2 * group, 4 * group, LONGEST} - {0, group}):
        text = f"wrong group: {size if size < LONGEST else 'all K'} products are summed in a step, not {group}"
        yield Suspect(text, _how(group=size))


def _promotion(how: Accumulator, one_interval: bool) -> Iterator[Suspect]:
    def scaled(numerator: int, denominator: int, off: int) -> Callable[[Element], Element | None]:
        def change(e: Element) -> Element | None:
            every = e.how.promote_every
            if every is None:
                return e
            new = every * numerator // denominator + off * e.how.group
            return _how(promote_every=new)(e)

        return change

    yield Suspect("promotion is missing: one chain over all of K", _how(promote_every=None))
    intervals = ((1, 2, 0, "half of"), (2, 1, 0, "twice"), (4, 1, 0, "four times"), (1, 4, 0, "a quarter of"))
    for numerator, denominator, off, text in intervals:
        yield Suspect(f"wrong promotion interval: {text} what was asked", scaled(numerator, denominator, off))
    yield Suspect("wrong promotion interval: one group too long", scaled(1, 1, 1))
    yield Suspect("wrong promotion interval: one group too short", scaled(1, 1, -1))
    for every in sorted({how.group, 2 * how.group, 4 * how.group, 128}):
        always = f"wrong promotion interval: {every} whatever was asked" if not one_interval else f"wrong promotion interval: {every}"
        yield Suspect(always, _how(promote_every=every))
    yield Suspect("promotion: the first part starts from init", total=_chain(Chain(init_in_chain=True)))
    yield Suspect("promotion: parts are added with truncation", total=_chain(Chain(total="toward_zero")))


def _general() -> Iterator[Suspect]:
    yield Suspect("the last term of K is missing", _terms(lambda ks, _: ks[:-1]))
    yield Suspect("the first term of K is missing", _terms(lambda ks, _: ks[1:]))
    yield Suspect("the last, incomplete group of K is missing", _terms(lambda ks, how: ks[: len(ks) - len(ks) % max(how.group, 32)]))
    for step in (4, 8, 16):
        yield Suspect(f"the last terms of K are missing, after a multiple of {step}", _terms(_multiple(step)))
    yield Suspect("order reversed: k descends", _terms(lambda ks, _: ks[::-1]))
    yield Suspect("order of the groups reversed", _groups_reversed)
    yield Suspect("wrong order of k: even terms first, then odd ones", _terms(lambda ks, _: [*ks[::2], *ks[1::2]]))
    yield Suspect("wrong order of k: the two halves of K interleaved", _terms(_halves))
    yield Suspect("init is ignored", lambda e: dataclasses.replace(e, init=0.0))
    yield Suspect("init is subtracted", lambda e: dataclasses.replace(e, init=-e.init))
    yield Suspect("init is added last, in float32", total=_init_last)
    yield Suspect(
        "subnormal operands count as zero", lambda e: dataclasses.replace(e, a=_flush(e.a, e.a_format), b=_flush(e.b, e.b_format))
    )
    yield Suspect("subnormal operands of a count as zero", lambda e: dataclasses.replace(e, a=_flush(e.a, e.a_format)))
    yield Suspect("subnormal operands of b count as zero", lambda e: dataclasses.replace(e, b=_flush(e.b, e.b_format)))
    for text, change in (
        ("b is read in the format of a", lambda e: _formatted(e, e.a_format, e.a_format)),
        ("a is read in the format of b", lambda e: _formatted(e, e.b_format, e.b_format)),
        ("the formats of a and b are swapped", lambda e: _formatted(e, e.b_format, e.a_format)),
    ):
        yield Suspect(f"wrong format: {text}", change)
    yield Suspect("sign of zero: a zero result is -0", bits=lambda b: 0x80000000 if b == 0 else b)
    yield Suspect("sign of zero: a zero result is +0", bits=lambda b: 0 if b == 0x80000000 else b)
    yield Suspect("the result is negated", bits=lambda b: b ^ 0x80000000)
    yield Suspect("NaN results become zero", bits=lambda b: 0 if b & 0x7FFFFFFF > 0x7F800000 else b)
    yield Suspect("infinite results become the largest float32", bits=lambda b: b - 1 if b & 0x7FFFFFFF == 0x7F800000 else b)
    yield Suspect("subnormal results are flushed to zero", bits=lambda b: b & 0x80000000 if b & 0x7FFFFFFF < 0x00800000 else b)


def _multiple(step: int) -> Callable[[Sequence[int], Accumulator], Sequence[int]]:
    return lambda ks, _: ks[: len(ks) - len(ks) % step]


def _halves(ks: Sequence[int], how: Accumulator) -> list[int]:
    middle = (len(ks) + 1) // 2
    pairs = itertools.zip_longest(ks[:middle], ks[middle:])
    return [k for pair in pairs for k in pair if k is not None]


def _formatted(e: Element, a_format: FloatFormat, b_format: FloatFormat) -> Element:
    return dataclasses.replace(e, a_format=a_format, b_format=b_format)


def _learned(elements: Sequence[Element]) -> Iterator[Suspect]:
    """Patterns of the results: one code for all NaN."""
    codes = {e.got for e in elements if e.got & 0x7FFFFFFF > 0x7F800000}
    if len(codes) == 1 and not all(e.any_nan for e in elements):
        (code,) = codes
        yield Suspect(
            f"wrong NaN code: {code:#010x}, not {elements[0].how.nan_code:#010x}", bits=lambda b: code if b & 0x7FFFFFFF > 0x7F800000 else b
        )


def _float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _bits(x: float) -> int:
    try:
        return int(struct.unpack("<I", struct.pack("<f", x))[0])
    except OverflowError:
        return 0xFF800000 if x < 0 else 0x7F800000
