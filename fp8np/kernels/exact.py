"""exact_sum: out = the exact sum over the parts, rounded once to float32 (to nearest, ties to even); a sum of zero gives +0.

parts f64 (P, L), finite, and so far from overflow that no sum of them reaches it; out f32 (L,).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp8np.kernels._bits import float64_bits, float64_of
from fp8np.kernels._jit import exact
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for
from fp8np.kernels._tile import Floats, read_only

Doubles = npt.NDArray[np.float64]


@exact
def _exact_sum(parts: Doubles, out: Floats, start: int, stop: int) -> None:
    # Shewchuk's expansion (Adaptive Precision Floating-Point Arithmetic, 1997, figure 6): `terms[:size]` are float64 whose sum
    # is exactly that of the parts so far; they grow in magnitude and their bits do not overlap.
    P = parts.shape[0]
    terms = np.empty(P, np.float64)
    for i in range(start, stop):
        size = 0
        for p in range(P):
            x = parts[p, i]
            kept = 0
            for j in range(size):
                # Knuth's TwoSum: total + error == x + y, exactly.
                y = terms[j]
                total = x + y
                z = total - x
                error = (x - (total - z)) + (y - z)
                if error != 0.0:
                    terms[kept] = error
                    kept += 1
                x = total
            size = kept
            if x != 0.0:
                terms[size] = x
                size += 1
        high = 0.0
        rest = 0.0
        while size > 0 and rest == 0.0:
            size -= 1
            y = terms[size]
            total = high + y
            rest = y - (total - high)
            high = total
        # The sum is high + rest + (terms below, all of them together smaller than the last bit of rest): it lies strictly
        # between `high` and its neighbour on the side of `rest`. Of these two take the one with an odd last bit. That is
        # rounding to odd, after which a second rounding to fewer than 52 bits gives what one rounding of the sum would.
        if rest != 0.0:
            bits = float64_bits(high)
            if bits % 2 == 0:
                high = float64_of(bits + 1 if (rest > 0.0) == (high > 0.0) else bits - 1)
        out[i] = np.float32(high)


def exact_sum(parts: Doubles, out: Floats) -> None:
    """The entry of the row; arguments as in the module's docstring."""
    (terms,) = read_only(parts)
    parallel_for(lambda start, stop: _exact_sum(terms, out, start, stop), out.size, parts.size * 4)


kernel("exact_sum", exact_sum, order="exact, one rounding", reproducible=True)
