"""Sums of products with the choices open that `fp8np.accumulators` does not offer, since nobody is known to make them on purpose."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from fp8np import reference
from fp8np.accumulators import Accumulator
from fp8np.formats import FloatFormat

__all__ = ["Chain", "float32_bits", "rounded", "stored"]


@dataclass(frozen=True)
class Chain:
    """What may differ in an aligned sum. The defaults are the rule of `fp8np.reference_sum` for ``addend="aligned"``.

    Attributes:
        cut: how a term loses the bits below: ``toward_zero``, ``floor``, ``nearest``, ``exact`` (it keeps them).
        normalised: products are aligned by their own leading bit, not by the sum of their operands' exponents.
        subnormals_normalised: a subnormal operand counts with its own leading bit, not with the smallest exponent.
        c_raises: whether c takes part in finding the largest exponent.
        coarser: added to the exponent at which terms are cut.
        total: how parts are added where the chain is promoted: ``nearest`` or ``toward_zero``.
        init_in_chain: with promotion, the first part starts from init, not the total.
    """

    cut: str = "toward_zero"
    normalised: bool = False
    subnormals_normalised: bool = False
    c_raises: bool = True
    coarser: int = 0
    total: str = "nearest"
    init_in_chain: bool = False

    def bits(self, how: Accumulator, a: Sequence[int], a_format: FloatFormat, b: Sequence[int], b_format: FloatFormat, init: float) -> int:
        """The bits of the float32 that comes out."""
        if not a:
            return _bits(init)
        terms = [(reference.decode(a_format, x), reference.decode(b_format, y)) for x, y in zip(a, b, strict=True)]
        special = float(init) + math.fsum(p for x, y in terms if not math.isfinite(p := float(x) * float(y))) * 1.0
        if not math.isfinite(special):
            return how.nan_code if math.isnan(special) else _bits(special)
        every = how.promote_every or max(len(terms), 1)
        total = Fraction(init)
        for start in range(0, len(terms), every):
            fresh = bool(how.promote_every) and not (self.init_in_chain and start == 0)
            c = Fraction(0) if fresh else total
            for k in range(start, min(start + every, len(terms)), how.group):
                c = self._step(how, terms[k : min(k + how.group, start + every)], c, a_format, b_format)
            total = rounded(total + c, 23, nearest=self.total == "nearest") if fresh else c
        return float32_bits(total)

    def _step(
        self,
        how: Accumulator,
        terms: Sequence[tuple[Fraction | float, Fraction | float]],
        c: Fraction,
        a_format: FloatFormat,
        b_format: FloatFormat,
    ) -> Fraction:
        values, exponents = [], []
        for x, y in terms:
            if x and y:
                left, right = Fraction(x), Fraction(y)
                values.append(left * right)
                exponents.append(self._exponent(left, right, a_format, b_format))
        if c:
            values.append(c)
            if self.c_raises or not exponents:
                exponents.append(_leading(c))
        if not values:
            return Fraction(0)
        unit = Fraction(2) ** (max(exponents) - (how.fraction_bits or 0) + self.coarser)
        total = sum((self._cut(v / unit) for v in values), Fraction(0)) * unit
        return rounded(total, how.output_fraction_bits, nearest=how.output_rounding == "nearest_even")

    def _exponent(self, x: Fraction, y: Fraction, a_format: FloatFormat, b_format: FloatFormat) -> int:
        if self.normalised:
            return _leading(x * y)
        if self.subnormals_normalised:
            return _leading(x) + _leading(y)
        return max(_leading(x), a_format.min_exponent) + max(_leading(y), b_format.min_exponent)

    def _cut(self, value: Fraction) -> Fraction:
        match self.cut:
            case "toward_zero":
                return Fraction(math.trunc(value))
            case "floor":
                return Fraction(math.floor(value))
            case "nearest":
                return Fraction(round(value))
        return value


def stored(
    fraction_bits: int, a: Sequence[int], a_format: FloatFormat, b: Sequence[int], b_format: FloatFormat, init: float
) -> Fraction | None:
    """The sum, k ascending, with a rounding to so many fraction bits after each addition; None if it is not finite."""
    total = Fraction(init) if math.isfinite(init) else None
    for x, y in zip(a, b, strict=True):
        left, right = reference.decode(a_format, x), reference.decode(b_format, y)
        if total is None or not (math.isfinite(left) and math.isfinite(right)):
            return None
        total = rounded(total + Fraction(left) * Fraction(right), fraction_bits, nearest=True)
    return total


def rounded(value: Fraction, fraction_bits: int, *, nearest: bool) -> Fraction:
    """With so many fraction bits, float32's exponents below, none above."""
    if not value:
        return value
    unit = Fraction(2) ** (max(_leading(value), -126) - fraction_bits)
    return (round(value / unit) if nearest else math.trunc(value / unit)) * unit


def float32_bits(value: Fraction) -> int:
    """Of the float32 nearest to a rational; of infinity beyond its range."""
    nearest = rounded(value, 23, nearest=True)
    return _bits(math.copysign(math.inf, nearest) if abs(nearest) >= Fraction(2) ** 128 else float(nearest))


def _leading(value: Fraction) -> int:
    n, d = abs(value).as_integer_ratio()
    exponent = n.bit_length() - d.bit_length()
    return exponent - (abs(value) < Fraction(2) ** exponent)


def _bits(x: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", x))[0])
