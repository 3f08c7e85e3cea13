"""The blocked product that matrix products and convolutions share.

The right operand is decoded, and laid out for reading along its lanes, one panel at a time; the left operand is decoded where
it is used, four rows by four terms at a time, since each of its values then serves a whole row of lanes::

        panel (DEPTH, LANES) f32             lanes: columns of a product, or output pixels
        k0   b b b b b b b b ...
        k0+1 b b b b b b b b ...
        k0+2 b b b b b b b b ...    tile (ROWS, LANES) f32:  tile[i, n] += sum_k a[row + i, k] * panel[k, n]
        k0+3 b b b b b b b b ...

Every element is summed with k ascending, one float32 rounding a term, whatever the sizes and however the work is cut. The
product of two 8-bit floats is exact in float32 unless it leaves float32's range, so a fused multiply-add changes no bit.

Measured at 1024 cubed on one thread, against NumPy's float32 product, on an AVX-512 CPU with 256-bit units (with AVX-512
switched off): depth 256 by 128 lanes 0.94 (0.80), 256 by 256 0.93 (0.88), 512 by 128 0.96, 64 by 256 0.69, 64 by 512 0.30.
Taken: 128 lanes, since fewer lanes are padding on small pictures and the panel of 128 KiB fits any second-level cache. The row
strides of tile and panel are constants because the compiler can then prove that four rows do not overlap, and vectorises
without run-time checks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fp8np.formats import FloatFormat
from fp8np.kernels._arrays import Codes, Floats
from fp8np.kernels._jit import exact, fused

__all__ = [
    "DEPTH",
    "LANES",
    "ORDER",
    "ROWS",
    "STEP",
    "accumulate",
    "fill",
    "load_rows",
    "padded",
    "products_are_exact",
    "store_rows",
]

ROWS = 4
"""Rows of a tile."""
LANES = 128
"""Columns of a tile and of a panel."""
DEPTH = 256
"""Terms that a panel holds."""

STEP = 8
"""Rows of b that are decoded side by side; four were 5 to 20 % slower, one half as fast."""

ORDER = "k ascending, one float32 rounding a term"


def products_are_exact(*formats: FloatFormat) -> bool:
    """Whether every product of finite values of these formats is a float32, so that a fused multiply-add cannot show."""
    quantum = sum(f.quantum_exponent for f in formats)
    return quantum >= -149 and math.prod(f.max for f in formats) <= float(np.finfo(np.float32).max)


@exact
def padded(lanes: int) -> Any:
    """Lanes to compute for `lanes` wanted: whole vectors of every width up to 512 bits."""
    return (lanes + 15) // 16 * 16


@exact
def fill(b: Codes, b_table: Floats, first: int, lanes: int, k0: int, depth: int, panel: Floats) -> None:
    """panel[k, n] = value of b[first + n, k0 + k], for k < depth and n < lanes.

    b u8 (N, K); b_table f32 (256,); panel f32 (>= depth * LANES,). Rows from N on repeat the last: their lanes are not stored.
    """
    last = b.shape[0] - 1
    for n in range(0, lanes, STEP):
        r0 = min(first + n, last)
        r1 = min(first + n + 1, last)
        r2 = min(first + n + 2, last)
        r3 = min(first + n + 3, last)
        r4 = min(first + n + 4, last)
        r5 = min(first + n + 5, last)
        r6 = min(first + n + 6, last)
        r7 = min(first + n + 7, last)
        for k in range(depth):
            p = k * LANES + n
            i = k0 + k
            panel[p] = b_table[b[r0, i]]
            panel[p + 1] = b_table[b[r1, i]]
            panel[p + 2] = b_table[b[r2, i]]
            panel[p + 3] = b_table[b[r3, i]]
            panel[p + 4] = b_table[b[r4, i]]
            panel[p + 5] = b_table[b[r5, i]]
            panel[p + 6] = b_table[b[r6, i]]
            panel[p + 7] = b_table[b[r7, i]]


@fused
def accumulate(a: Codes, a_table: Floats, row: int, k0: int, depth: int, panel: Floats, lanes: int, tile: Floats) -> None:
    """tile[i, n] += sum_k a[row + i, k0 + k] * panel[k, n], for k < depth and n < lanes.

    a u8 (M, K); a_table f32 (256,); panel f32 (DEPTH * LANES,); tile f32 (ROWS * LANES,). Rows from M on repeat the last.
    """
    last = a.shape[0] - 1
    r0 = row
    r1 = min(row + 1, last)
    r2 = min(row + 2, last)
    r3 = min(row + 3, last)
    fours = depth // 4 * 4
    for k in range(0, fours, 4):
        i = k0 + k
        a00, a01, a02, a03 = a_table[a[r0, i]], a_table[a[r0, i + 1]], a_table[a[r0, i + 2]], a_table[a[r0, i + 3]]
        a10, a11, a12, a13 = a_table[a[r1, i]], a_table[a[r1, i + 1]], a_table[a[r1, i + 2]], a_table[a[r1, i + 3]]
        a20, a21, a22, a23 = a_table[a[r2, i]], a_table[a[r2, i + 1]], a_table[a[r2, i + 2]], a_table[a[r2, i + 3]]
        a30, a31, a32, a33 = a_table[a[r3, i]], a_table[a[r3, i + 1]], a_table[a[r3, i + 2]], a_table[a[r3, i + 3]]
        p = k * LANES
        for n in range(lanes):
            b0 = panel[p + n]
            b1 = panel[p + LANES + n]
            b2 = panel[p + 2 * LANES + n]
            b3 = panel[p + 3 * LANES + n]
            tile[n] = tile[n] + a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
            tile[LANES + n] = tile[LANES + n] + a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
            tile[2 * LANES + n] = tile[2 * LANES + n] + a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
            tile[3 * LANES + n] = tile[3 * LANES + n] + a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3
    for k in range(fours, depth):
        i = k0 + k
        a0, a1, a2, a3 = a_table[a[r0, i]], a_table[a[r1, i]], a_table[a[r2, i]], a_table[a[r3, i]]
        p = k * LANES
        for n in range(lanes):
            b0 = panel[p + n]
            tile[n] += a0 * b0
            tile[LANES + n] += a1 * b0
            tile[2 * LANES + n] += a2 * b0
            tile[3 * LANES + n] += a3 * b0


@exact
def load_rows(out: Floats, row: int, stop: int, lane: int, lanes: int, tile: Floats) -> None:
    """Copies rows ``row .. stop`` of lanes ``lane .. lane + lanes`` into a tile.

    out f32 (B, M, P), its lanes counted through all of B and P; tile f32 (ROWS * LANES,).
    """
    size = out.shape[2]
    n = 0
    while n < lanes:
        b = (lane + n) // size
        start = (lane + n) % size
        run = min(size - start, lanes - n)
        for r in range(row, stop):
            t = (r - row) * LANES + n
            # Slices, because an index whose sign the compiler cannot see keeps it from vectorising (six times slower).
            source = out[b, r, start : start + run]
            target = tile[t : t + run]
            for j in range(run):
                target[j] = source[j]
        n += run


@exact
def store_rows(tile: Floats, row: int, stop: int, lane: int, lanes: int, out: Floats) -> None:
    """The reverse of `load_rows`."""
    size = out.shape[2]
    n = 0
    while n < lanes:
        b = (lane + n) // size
        start = (lane + n) % size
        run = min(size - start, lanes - n)
        for r in range(row, stop):
            t = (r - row) * LANES + n
            source = tile[t : t + run]
            target = out[b, r, start : start + run]
            for j in range(run):
                target[j] = source[j]
        n += run
