"""The law of `fp8np.reference` for many inputs at once.

Between two neighbouring breakpoints (values of the format and midpoints between them) the law is constant. So it is asked
once at each breakpoint and once in each gap, and exact float64 inputs are looked up by bisection.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from fp8np import reference
from fp8np.formats import FORMATS, FloatFormat

BIASED = tuple(FORMATS[name].with_bias(bias) for name, bias in (("float8_e4m3", 3), ("float8_e4m3", 15), ("float8_e5m2", 62)))
ALL_FORMATS = (*FORMATS.values(), *BIASED)
SIGNED_FORMATS = tuple(f for f in ALL_FORMATS if f.signed)
DETERMINISTIC = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "odd")
# The biases at the ends, where float32 has no exponent to spare.
EXTREME = tuple(FORMATS[name].with_bias(bias) for name in ("float8_e5m2", "float8_e3m4", "float8_e4m3fnuz") for bias in (0, 127))


@lru_cache
def breakpoints(fmt: FloatFormat) -> tuple[Fraction, ...]:
    """0, and all values and midpoints, ascending, up to the first value beyond what rounds to the largest."""
    values = [reference.magnitude_value(fmt, m) for m in range(fmt.max_magnitude + 3)]
    points = {Fraction(0), *values}
    points |= {(a + b) / 2 for a, b in pairwise(values)}
    return tuple(sorted(points))


@lru_cache
def _probes(fmt: FloatFormat, negative: bool) -> tuple[Fraction | float, ...]:
    # A number in each cell: breakpoint, gap, breakpoint, gap, ... and what lies beyond.
    points = breakpoints(fmt)
    gaps = [(a + b) / 2 for a, b in pairwise(points)] + [2 * points[-1]]
    cells = [p for pair in zip(points, gaps, strict=True) for p in pair]
    return tuple(-p or -0.0 for p in cells) if negative else tuple(cells)


@lru_cache
def _cells(fmt: FloatFormat, overflow: str, rounding: str, negative: bool) -> Any:
    probes = _probes(fmt, negative)
    if overflow == "saturate":
        return np.array([reference.encode(fmt, p, rounding=rounding) for p in probes], np.uint8)
    # The overflow policy has a say at the ends only: asking the law elsewhere again would take most of the tests' time.
    codes = _cells(fmt, "saturate", rounding, negative).copy()
    for i, p in enumerate(probes):
        if p == 0 or abs(p) >= fmt.max or (negative and not fmt.signed):
            codes[i] = reference.encode(fmt, p, overflow=overflow, rounding=rounding)
    return codes


def law(fmt: FloatFormat, x: Any, overflow: str = "saturate", rounding: str = "nearest_even", nan: str = "keep_sign") -> Any:
    """uint8 codes of x, float64 of any shape."""
    points = np.array([float(p) for p in breakpoints(fmt)])
    positive, negative = (_cells(fmt, overflow, rounding, n) for n in (False, True))
    infinite = [reference.encode(fmt, s * math.inf, overflow=overflow, rounding=rounding) for s in (1, -1)]
    sign = np.signbit(x)
    magnitude = np.abs(x)
    at = np.searchsorted(points, magnitude, side="right") - 1
    at = np.clip(at, 0, None)
    cell = 2 * at + (points[at] != magnitude)
    codes = np.where(sign, negative[cell], positive[cell])
    codes = np.where(np.isinf(x), np.where(sign, infinite[1], infinite[0]), codes)
    nans = [reference.encode(fmt, math.copysign(math.nan, s), nan=nan) for s in (1, -1)]
    return np.where(np.isnan(x), np.where(sign, nans[1], nans[0]), codes).astype(np.uint8)


def edges(fmt: FloatFormat) -> Any:
    """float64: every breakpoint and its float64 and float32 neighbours, and the extremes, with both signs."""
    points = np.array([float(p) for p in breakpoints(fmt)])
    with np.errstate(over="ignore", under="ignore"):
        single = points.astype(np.float32)
        near = [np.nextafter(single, s * np.float32(np.inf)).astype(np.float64) for s in (1, -1)]
    near += [points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)]
    near += [points * (1 + s * 2.0**-k) for k in (26, 30, 40, 52) for s in (1, -1)]
    tiny = [5e-324, 2.0**-1022, 2.0**-149, 2.0**-126, 1e30, 3.4028234663852886e38, 1.7976931348623157e308]
    positive = np.concatenate([*near, tiny])
    return np.concatenate([positive, -positive])


def all_16_bit(kind: str) -> Any:
    """Every float16 or bfloat16 as float64 (float32 holds both exactly), index = bits; and the array to encode."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    with np.errstate(invalid="ignore"):  # signalling NaN
        single = (bits << 16).view(np.float32) if kind == "bfloat16" else bits.astype(np.uint16).view(np.float16).astype(np.float32)
        return single.astype(np.float64)
