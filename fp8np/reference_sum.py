"""The law of accumulation: one sum of products, exactly as an `Accumulator` says, on Python's `int` and `fractions.Fraction`.

Slow and short on purpose. The kernels behind `matmul` must give the same bits; the tests compare them, and with what hardware gave.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction

from fp8np.accumulators import Accumulator
from fp8np.formats import FloatFormat
from fp8np.reference import decode

__all__ = ["dot"]

Number = Fraction | float
"""A finite number that is not -0 as a Fraction; NaN, the infinities and -0.0 as floats."""
Term = tuple[Fraction, int] | None
"""A value and the exponent that it is aligned by; None for a zero."""


def dot(
    how: Accumulator,
    a: Sequence[int],
    a_format: FloatFormat,
    b: Sequence[int],
    b_format: FloatFormat,
    init: float = 0.0,
) -> int:
    """The bits of the float32 that `init` and the sum of the products a[k] * b[k] give.

    Args:
        how: the accumulator.
        a: codes of a_format.
        a_format: of a.
        b: as many codes of b_format.
        b_format: of b.
        init: a float32: what the sum starts from.

    >>> from fp8np.accumulators import ACCUMULATORS
    >>> from fp8np.formats import get_format
    >>> e4m3 = get_format("e4m3fn")
    >>> one, tiny = 0x38, 0x18  # 1 and 2**-4: their square is 2**-8
    >>> for name in ("exact", "hopper"):  # 2**10 + 2**-8: hopper keeps 13 bits
    ...     print(f"{dot(ACCUMULATORS[name], [0x60, tiny], e4m3, [0x60, tiny], e4m3):08X}")
    44800020
    44800000
    """
    if not len(a) and how.kind != "exact":  # an exact sum of zero is +0
        return _float32_bits(init, how)
    left = [decode(a_format, code) for code in a]
    right = [decode(b_format, code) for code in b]
    if how.kind in ("fp32", "sequential"):
        return _float32_bits(_one_by_one(left, right, init), how)
    terms = list(zip(left, right, strict=True))
    if how.kind == "exact":
        return _float32_bits(_step_exactly(how, terms, _number(init)), how)
    if how.order:
        terms += [(Fraction(0), Fraction(0))] * (-len(terms) % len(how.order))
        terms = [terms[start + k] for start in range(0, len(terms), len(how.order)) for k in how.order]
    every = how.promote_every or len(terms)
    total = _number(init)
    for start in range(0, len(terms), every):
        part = terms[start : start + every]
        c: Number = Fraction(0) if how.promote_every else total
        for k in range(0, len(part), how.group):
            c = _step(how, part[k : k + how.group], c, (a_format, b_format))
        total = _sum32(total, c) if how.promote_every else c
    return _float32_bits(total, how)


def _one_by_one(left: Iterable[Number], right: Iterable[Number], c: float) -> Number:
    for x, y in zip(left, right, strict=True):
        # An exact product is exact in float64 too, and float64 has the bits to round such a sum twice without a trace
        # (2 * 24 + 2 <= 53) but for a product that float32 cannot hold: that one is rounded first.
        product = _as_float32(float(x) * float(y))
        c = _as_float32(c + product)
    return c


def _as_float32(x: float) -> float:
    if math.isnan(x) or math.isinf(x) or x == 0:
        return x
    return math.copysign(_rounded(Fraction(x), 23, nearest=True), x)


def _step_exactly(how: Accumulator, terms: list[tuple[Number, Number]], c: Number) -> Number:
    special = _special(terms, c)
    if special is not None:
        return special
    return _rounded(Fraction(c) + sum(Fraction(x) * Fraction(y) for x, y in terms), 23, nearest=how.output_rounding == "nearest_even")


def _step(how: Accumulator, terms: list[tuple[Number, Number]], c: Number, formats: tuple[FloatFormat, FloatFormat]) -> Number:
    """The new c: infinite, NaN, or a float32 as a Fraction."""
    special = _special(terms, c)
    if special is not None:
        return special
    c = Fraction(c)
    nearest = how.output_rounding == "nearest_even"
    least = [f.min_exponent if how.operand_exponent is None else how.operand_exponent for f in formats]
    products = [
        (Fraction(x) * Fraction(y), _exponent(Fraction(x), least[0]) + _exponent(Fraction(y), least[1])) if x != 0 and y != 0 else None
        for x, y in terms
    ]
    own = (c, _exponent(c, -126)) if c else None
    if how.addend == "after":
        sums = [_aligned(how, products[i :: how.interleave]) for i in range(how.interleave)]
        return _rounded(_joined_after(how, sums, own), how.output_fraction_bits, nearest=nearest)
    total = _aligned(how, [*products, own] if how.addend == "aligned" else products)
    new = _rounded(total[0] if total else Fraction(0), how.output_fraction_bits, nearest=nearest)
    return new if how.addend == "aligned" else _sum32(c, new)


def _aligned(how: Accumulator, terms: Sequence[Term]) -> Term:
    """The sum of the terms, each cut at `fraction_bits` below the largest exponent; and that exponent."""
    present = [t for t in terms if t is not None]
    if not present:
        return None
    top = max(exponent for _, exponent in present)
    if how.fraction_bits is None:
        return sum((value for value, _ in present), Fraction(0)), top
    return sum((_cut(value, top - how.fraction_bits) for value, _ in present), Fraction(0)), top


def _joined_after(how: Accumulator, sums: Sequence[Term], own: Term) -> Fraction:
    """What `addend="after"` makes of the interleaved sums and of c."""
    fraction, wide, floor = how.fraction_bits or 0, how.sum_fraction_bits, how.alignment == "floor"
    present = [s for s in sums if s]
    if not present and not own:
        return Fraction(0)
    top = max((exponent for _, exponent in present), default=0)
    total = sum((_cut(value, top - fraction, floor) for value, _ in present), Fraction(0))
    last = max(exponent for _, exponent in [*present, *([own] if own else [])])
    total = _cut(total, last - wide - 1, floor)
    if own and own[1] >= last - fraction - 1:
        total += _cut(own[0], last - fraction, floor)
    return _cut(total, _exponent(total, -126) - wide, floor) if total else total


def _special(terms: list[tuple[Number, Number]], c: Number) -> float | None:
    """NaN or infinity where the sum of c and the products is one."""
    total = float(c)
    for x, y in terms:
        total += float(x) * float(y)
    return None if math.isfinite(total) else total


def _exponent(value: Fraction, least: int) -> int:
    """floor(log2(abs(value))), and `least` for all below 2**least. Zero has none."""
    n, d = abs(value).as_integer_ratio()
    exponent = n.bit_length() - d.bit_length()
    return max(exponent - (abs(value) < Fraction(2) ** exponent), least)


def _cut(value: Fraction, exponent: int, floor: bool = False) -> Fraction:
    """The multiple of 2**exponent next to a value, downward or toward zero."""
    unit = Fraction(2) ** exponent
    return (math.floor(value / unit) if floor else math.trunc(value / unit)) * unit


def _rounded(value: Fraction, fraction_bits: int, *, nearest: bool) -> Number:
    """With so many fraction bits in float32's range of exponents; infinite from 2**128 on."""
    if not value:
        return value
    unit = Fraction(2) ** (_exponent(value, -126) - fraction_bits)
    result = (round(value / unit) if nearest else math.trunc(value / unit)) * unit
    return result if abs(result) < Fraction(2) ** 128 else math.copysign(math.inf, value)


def _sum32(x: Number, y: Number) -> Number:
    """A float32 addition, to nearest even."""
    total = float(x) + float(y)
    return _rounded(Fraction(x) + Fraction(y), 23, nearest=True) if math.isfinite(total) else total


def _number(x: float) -> Number:
    return Fraction(x) if math.isfinite(x) else x


def _float32_bits(x: Number, how: Accumulator) -> int:
    return how.nan_code if x != x else _bits(float(x))


def _bits(x: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", x))[0])
