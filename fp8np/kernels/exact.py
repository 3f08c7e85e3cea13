"""exact_sum: out = the exact sum over the parts, rounded once to float32 (to nearest, ties to even); a sum of zero gives +0.

parts f64 (P, L), finite, and so far from overflow that no sum of them reaches it; out f32 (L,).
"""

from __future__ import annotations

import numpy as np

from fp8np.kernels._arrays import Doubles, Floats, read_only
from fp8np.kernels._expansion import expansion, to_odd, two_sum
from fp8np.kernels._jit import exact
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for

__all__ = ["STRIP", "exact_sum", "round_sums"]

STRIP = 128
"""Sums that are computed side by side."""


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
            total, error = two_sum(high[j], part[j])
            high[j] = total
            total, error = two_sum(rest[j], error)
            rest[j] = total
            lost[j] += abs(error)
    for j in range(n):
        total, error = two_sum(high[j], rest[j])
        high[j] = total
        rest[j] = error
    for j in range(n):
        if lost[j] != 0.0:
            high[j], rest[j] = expansion(parts[:, first + j], terms)
    for j in range(n):
        out[j] = np.float32(to_odd(high[j], rest[j]))


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
