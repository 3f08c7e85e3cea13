"""What is usually wrong with a table of FP8 values: whole tables, with one bug each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.formats import FORMATS, FloatFormat

__all__ = ["SuspectValues", "values_of"]

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SuspectValues:
    """A kind of bug in words, the float32 value that it gives each code, and where that is not the right one."""

    text: str
    values: Values
    changed: npt.NDArray[np.bool_]


@lru_cache(maxsize=64)
def values_of(fmt: FloatFormat) -> tuple[SuspectValues, ...]:
    """The suspects for a format that change anything, the more common first."""
    right = _law(fmt)
    found = []
    for text, values in _suspects(fmt, right):
        with np.errstate(invalid="ignore"):
            single = values.astype(np.float32)
        changed = (single.view(np.uint32) != right.view(np.uint32)) & ~(np.isnan(single) & np.isnan(right))
        if changed.any():
            found.append(SuspectValues(text, single, changed))
    return tuple(found)


def _law(fmt: FloatFormat) -> Values:
    return np.array([float(reference.decode(fmt, c)) for c in range(1 << fmt.bits)], np.float32)


def _suspects(fmt: FloatFormat, right: Values) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    wide = right.astype(np.float64)
    codes = np.arange(right.size)
    magnitude = codes & fmt.magnitude_mask
    minus = (codes & fmt.sign_bit) != 0
    sign = np.where(minus, -1.0, 1.0)
    step = 1 << fmt.mantissa_bits
    exponent, mantissa = np.divmod(magnitude, step)
    special = ~np.isfinite(wide)
    for other in FORMATS.values():
        if other.bits == fmt.bits and other != fmt:
            yield f"wrong format: these are the values of {other}", _law(other).astype(np.float64)
    yield "exponent off by one: every value is doubled (bias)", wide * 2
    yield "exponent off by one: every value is halved (bias)", wide / 2
    # The fields read as though nothing were special.
    with np.errstate(over="ignore"):
        hidden = np.ldexp(1 + mantissa / step, exponent - fmt.bias) * sign
    plain = np.where(exponent > 0, hidden, np.ldexp(mantissa / step, 1 - fmt.bias) * sign) if fmt.has_zero else hidden
    nan, inf = np.isnan(wide), np.isinf(wide)
    yield "NaN codes are read as numbers", np.where(nan, plain, wide)
    yield "infinity is read as a number", np.where(inf, plain, wide)
    yield "infinity and NaN codes are read as numbers", np.where(special, plain, wide)
    yield "NaN codes are read as infinity", np.where(nan, sign * np.inf, wide)
    yield "infinity is read as NaN", np.where(inf, np.nan, wide)
    if fmt.has_zero and fmt.mantissa_bits:
        low = (exponent == 0) & ~special
        yield "subnormals are flushed to zero", np.where(low, sign * 0.0, wide)
        yield "subnormals are flushed to +0", np.where(low, 0.0, wide)
        yield "subnormals get a hidden bit", np.where(low & (mantissa > 0), hidden, wide)
        yield "subnormals have the exponent one too small: 2**-bias", np.where(low, wide / 2, wide)
        yield "subnormals have the exponent one too large", np.where(low, wide * 2, wide)
        yield (
            "normal numbers lack the hidden bit",
            np.where((exponent > 0) & ~special, wide - sign * np.ldexp(1.0, exponent - fmt.bias), wide),
        )
    if fmt.signed:
        yield "sign of zero: -0 is read as +0", np.where(wide == 0, 0.0, wide)
        yield "the sign is lost", np.abs(wide)
        yield "the sign is inverted", -wide
        yield "the NaN at the code of negative zero is read as zero", np.where(nan & (magnitude == 0), -0.0, wide)
        yield "the NaN at the code of negative zero is read as +0", np.where(nan & (magnitude == 0), 0.0, wide)
        yield "the code of negative zero is read as NaN", np.where(minus & (magnitude == 0), np.nan, wide)
        # Two's complement for sign and magnitude.
        yield "codes are read as two's complement", np.where(minus & ~special, -wide[(-codes) & (right.size - 1)], wide)
    yield "the largest value is read as NaN", np.where(magnitude == fmt.max_magnitude, np.nan, wide)
    yield "the largest value is read as infinity", np.where(magnitude == fmt.max_magnitude, sign * np.inf, wide)
