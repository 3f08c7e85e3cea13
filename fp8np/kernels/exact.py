"""exact_sum: out = the exact sum over the parts, rounded once to float32 (to nearest, ties to even); a sum of zero gives +0.

parts f64 (P, L), finite, and so far from overflow that no sum of them reaches it; out f32 (L,).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._arrays import Doubles, Floats, read_only
from fp8np.kernels._bits import float64_bits, float64_of
from fp8np.kernels._jit import exact
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for

__all__ = ["STRIP", "exact_sum", "round_sums"]

STRIP = 128
"""Sums that are computed side by side."""


@exact
def _two_sum(x: float, y: float) -> Any:
    # Knuth's TwoSum: total + error == x + y, exactly.
    total = x + y
    z = total - x
    return total, (x - (total - z)) + (y - z)


@exact
def _expansion(parts: Doubles, i: int, terms: Doubles) -> Any:
    # Shewchuk's expansion (Adaptive Precision Floating-Point Arithmetic, 1997, figure 6): `terms[:size]` are float64 whose sum
    # is exactly that of the parts so far; they grow in magnitude and their bits do not overlap.
    size = 0
    for p in range(parts.shape[0]):
        x = parts[p, i]
        kept = 0
        for j in range(size):
            x, error = _two_sum(x, terms[j])
            if error != 0.0:
                terms[kept] = error
                kept += 1
        size = kept
        if x != 0.0:
            terms[size] = x
            size += 1
    # The two leading numbers of the sum. What is below them is, all together, smaller than the last bit of `rest`.
    high = 0.0
    rest = 0.0
    while size > 0 and rest == 0.0:
        size -= 1
        high, rest = _two_sum(high, terms[size])
    return high, rest


@exact
def round_sums(parts: Doubles, first: int, terms: Doubles, sums: Doubles, out: Floats) -> None:
    """out[j] = the sum of parts[:, first + j], rounded once. f64 (P,) `terms` and (3 * STRIP,) `sums` are scratch; out.size <= STRIP."""
    n = out.size
    high = sums[:n]
    rest = sums[STRIP : STRIP + n]
    lost = sums[2 * STRIP : 2 * STRIP + n]
    for j in range(n):
        high[j] = 0.0
        rest[j] = 0.0
        lost[j] = 0.0
    # Two numbers nearly always hold the sum, and are found for a whole strip at a time; the general way is one element at a time.
    for p in range(parts.shape[0]):
        part = parts[p, first : first + n]
        for j in range(n):
            total, error = _two_sum(high[j], part[j])
            high[j] = total
            total, error = _two_sum(rest[j], error)
            rest[j] = total
            lost[j] += abs(error)
    for j in range(n):
        total, error = _two_sum(high[j], rest[j])
        high[j] = total
        rest[j] = error
    for j in range(n):
        if lost[j] != 0.0:
            high[j], rest[j] = _expansion(parts, first + j, terms)
    for j in range(n):
        # The sum lies strictly between `high` and its neighbour on the side of `rest`. Of these two take the one with an odd
        # last bit. That is rounding to odd, after which a second rounding, to fewer than 52 bits, gives what one rounding of
        # the sum would.
        bits = float64_bits(high[j])
        # As arithmetic, because branches on random bits are mispredicted half of the time.
        outward = 2 * int((rest[j] > 0.0) == (high[j] > 0.0)) - 1
        even = 1 - (bits & 1)
        out[j] = np.float32(float64_of(bits + outward * even * int(rest[j] != 0.0)))


@exact
def _exact_sum(parts: Doubles, out: Floats, start: int, stop: int) -> None:
    # An item is a strip.
    terms = np.empty(parts.shape[0], np.float64)
    sums = np.empty(3 * STRIP, np.float64)
    for item in range(start, stop):
        first = item * STRIP
        round_sums(parts, first, terms, sums, out[first : min(first + STRIP, out.size)])


def exact_sum(parts: Doubles, out: Floats) -> None:
    """The entry of the row; arguments as in the module's docstring."""
    (terms,) = read_only(parts)
    parallel_for(lambda start, stop: _exact_sum(terms, out, start, stop), -(-out.size // STRIP), parts.size)


kernel("exact_sum", exact_sum, order="exact, one rounding", reproducible=True)
