"""Sums of float64 without any rounding error."""

from __future__ import annotations

from typing import Any

from fp8np.kernels._arrays import Doubles
from fp8np.kernels._bits import float64_bits, float64_of
from fp8np.kernels._jit import exact

__all__ = ["expansion", "to_odd", "two_sum"]


@exact
def two_sum(x: float, y: float) -> Any:
    """Knuth's TwoSum: total + error == x + y, exactly."""
    total = x + y
    z = total - x
    return total, (x - (total - z)) + (y - z)


@exact
def expansion(parts: Doubles, terms: Doubles) -> Any:
    """The two leading numbers of the exact sum of the parts; `terms` is scratch of their length.

    Shewchuk's expansion (Adaptive Precision Floating-Point Arithmetic, 1997, figure 6): ``terms[:size]`` are float64 whose sum
    is exactly that of the parts so far; they grow in magnitude and their bits do not overlap.
    """
    size = 0
    for p in range(parts.size):
        x = parts[p]
        kept = 0
        for j in range(size):
            x, error = two_sum(x, terms[j])
            if error != 0.0:
                terms[kept] = error
                kept += 1
        size = kept
        if x != 0.0:
            terms[size] = x
            size += 1
    # What is below the two leading numbers is, all together, smaller than the last bit of `rest`.
    high = 0.0
    rest = 0.0
    while size > 0 and rest == 0.0:
        size -= 1
        high, rest = two_sum(high, terms[size])
    return high, rest


@exact
def to_odd(high: float, rest: float) -> Any:
    """high + rest (the latter less than a last bit of the former), rounded to odd.

    The sum lies strictly between `high` and its neighbour on the side of `rest`; of these two it is the one with an odd last
    bit. A second rounding, to fewer than 52 bits, gives what one rounding of the sum would.
    """
    bits = float64_bits(high)
    # As arithmetic, because branches on random bits are mispredicted half of the time.
    outward = 2 * int((rest > 0.0) == (high > 0.0)) - 1
    even = 1 - (bits & 1)
    return float64_of(bits + outward * even * int(rest != 0.0))
