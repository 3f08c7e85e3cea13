"""exact_gemm: out = init + a @ b^T on codes, the exact sum rounded once to float32 (nearest, ties to even); zero sums give +0.

a u8 (Z|1, M, K); a_tables f64 (A, 256), the values of a's codes cut into A bands, all finite; b u8 (Z|1, N, K); b_tables f64
(B, 256); step, how many products of any two bands have exact float64 sums; init f32 (Z, M, N)|(0, 0, 0), of which what is not
finite counts as zero; out f32 (Z, M, N).

codes_used: used[c] = whether the code c occurs. codes u8 (n,); used u8 (256,).

The sums of `step` terms need no order, since nothing is rounded. So a shallow panel of b stays in the first-level cache while
many rows of a pass by, with their float64 sums in the second level::

        panel (DEPTH, LANES) f64            parts (A * B * chunks + init, rows, LANES) f64
        k0   b b b b b b b b ...            +-- rows --------------------+
        k0+1 b b b b b b b b ...    --->    | + a * panel, ROWS at a time |   summed and rounded by `round_sums`
        ...                                 +----------------------------+

Measured at 1024 cubed on one thread with 512-bit units (float64 peak about 128 GFLOP/s), the loops alone: 110 GFLOP/s; with 64
rows at a time 92; DEPTH 64 by 256 rows 98; DEPTH 256 by 64 rows 65; 4 rows by 8 terms a pass 83; 5 or 6 rows by 4 terms the same,
but 10 to 20 % slower with 16 vector registers. Buffers that do not start on a cache line cost 40 %, vectors of 256 bits 45 %. All
of the product runs at 91; 512 rows at a time 95, but that many sums are beyond the second-level cache of smaller CPUs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._arrays import Codes, Doubles, Floats, read_only
from fp8np.kernels._jit import exact, fused, wide_vectors
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for
from fp8np.kernels._tile import fill, padded
from fp8np.kernels.exact import STRIP, round_sums

ROWS = 4
"""Rows of a that share a load of the panel."""
LANES = STRIP
"""Columns of a panel."""
DEPTH = 32
"""Terms that a panel holds; a multiple of 4. 32 KiB."""
TALL = 256
"""Rows that pass one panel, at most: 256 KiB of sums."""
SCRATCH = 1 << 18
"""Elements of all parts together, about; never fewer than ROWS rows of each."""
GROUP = 16
"""Columns that are computed together: vectors of every width, and no loop for a rest, whose values would take up registers."""

LARGEST = np.float32(np.finfo(np.float32).max)


@exact
def _cache_aligned(size: int) -> Any:
    """f64 (size,), uninitialised, from the start of a cache line on."""
    raw = np.empty(size + 8, np.float64)
    skip = (64 - np.int64(raw.ctypes.data) % 64) % 64 // 8
    return raw[skip : skip + size]


@fused
def _accumulate(a: Codes, table: Doubles, row: int, k0: int, depth: int, panel: Doubles, groups: int, tile: Doubles) -> None:
    # tile[i, n] += sum_k table[a[row + i, k0 + k]] * panel[k, n]. Rows from M on, and terms from K on, repeat the last: the
    # former are not stored, and the panel is zero at the latter.
    wide_vectors()
    last = a.shape[0] - 1
    end = a.shape[1] - 1
    r0 = row
    r1 = min(row + 1, last)
    r2 = min(row + 2, last)
    r3 = min(row + 3, last)
    for k in range(0, depth, 4):
        i0 = k0 + k
        i1 = min(i0 + 1, end)
        i2 = min(i0 + 2, end)
        i3 = min(i0 + 3, end)
        a00, a01, a02, a03 = table[a[r0, i0]], table[a[r0, i1]], table[a[r0, i2]], table[a[r0, i3]]
        a10, a11, a12, a13 = table[a[r1, i0]], table[a[r1, i1]], table[a[r1, i2]], table[a[r1, i3]]
        a20, a21, a22, a23 = table[a[r2, i0]], table[a[r2, i1]], table[a[r2, i2]], table[a[r2, i3]]
        a30, a31, a32, a33 = table[a[r3, i0]], table[a[r3, i1]], table[a[r3, i2]], table[a[r3, i3]]
        # A slice, because an index whose sign the compiler cannot see keeps it from loading vectors (five times slower).
        terms = panel[k * LANES : (k + 4) * LANES]
        for n in range(groups * GROUP):
            b0 = terms[n]
            b1 = terms[LANES + n]
            b2 = terms[2 * LANES + n]
            b3 = terms[3 * LANES + n]
            tile[n] = tile[n] + a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
            tile[LANES + n] = tile[LANES + n] + a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
            tile[2 * LANES + n] = tile[2 * LANES + n] + a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
            tile[3 * LANES + n] = tile[3 * LANES + n] + a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3


@exact
def _load_init(init: Floats, top: int, bottom: int, first: int, lanes: int, part: Doubles) -> None:
    # init f32 (M, N); part f64 (rows * LANES,).
    for m in range(top, bottom):
        source = init[m, first : first + lanes]
        target = part[(m - top) * LANES : (m - top) * LANES + lanes]
        for n in range(lanes):
            target[n] = source[n] if abs(source[n]) <= LARGEST else np.float32(0)


@exact
def _exact_gemm(
    a: Codes, a_tables: Doubles, b: Codes, b_tables: Doubles, step: int, init: Floats, out: Floats, tall: int, start: int, stop: int
) -> None:
    # An item is ROWS rows of LANES columns; up to `tall` rows of a range share a panel.
    wide_vectors()
    M, K = a.shape[1:]
    N = b.shape[1]
    A = a_tables.shape[0]
    B = b_tables.shape[0]
    blocks = (M + ROWS - 1) // ROWS
    stripes = (N + LANES - 1) // LANES
    P = A * B * ((K + step - 1) // step) + int(init.size > 0)
    size = tall * LANES
    panel = _cache_aligned(DEPTH * LANES)
    sums = _cache_aligned(3 * STRIP)
    parts = _cache_aligned(P * size).reshape(P, size)
    terms = np.empty(P, np.float64)
    item = start
    while item < stop:
        stripe = item // blocks
        block = item % blocks
        count = min(blocks - block, min(stop - item, tall // ROWS))
        z = stripe // stripes
        first = stripe % stripes * LANES
        lanes = min(LANES, N - first)
        az = a[z if a.shape[0] > 1 else 0]
        bz = b[z if b.shape[0] > 1 else 0]
        top = block * ROWS
        bottom = min((block + count) * ROWS, M)
        used = count * ROWS * LANES
        p = 0
        for chunk in range(0, K, step):
            for i in range(p, p + A * B):
                parts[i, :used] = 0.0
            end = min(chunk + step, K)
            for k0 in range(chunk, end, DEPTH):
                depth = min(DEPTH, end - k0)
                for j in range(B):
                    fill(bz, b_tables[j], first, padded(lanes), k0, depth, panel)
                    panel[depth * LANES : (depth + 3) // 4 * 4 * LANES] = 0.0
                    for i in range(A):
                        part = parts[p + i * B + j]
                        for row in range(top, bottom, ROWS):
                            offset = (row - top) * LANES
                            tile = part[offset : offset + ROWS * LANES]
                            _accumulate(az, a_tables[i], row, k0, depth, panel, padded(lanes) // GROUP, tile)
            p += A * B
        if init.size:
            _load_init(init[z], top, bottom, first, lanes, parts[p])
        for m in range(top, bottom):
            round_sums(parts, (m - top) * LANES, terms, sums, out[z, m, first : first + lanes])
        item += count


def exact_gemm(a: Codes, a_tables: Doubles, b: Codes, b_tables: Doubles, step: int, init: Floats, out: Floats) -> None:
    """The entry of the row; arguments as in the module's docstring."""
    Z, M, N = out.shape
    K = a.shape[2]
    pairs = len(a_tables) * len(b_tables)
    parts = pairs * -(-K // step) + 1
    tall = max(ROWS, min(TALL, SCRATCH // (LANES * parts) // ROWS * ROWS))
    a, a_tables, b, b_tables, init = read_only(a, a_tables, b, b_tables, init)

    def run(start: int, stop: int) -> None:
        _exact_gemm(a, a_tables, b, b_tables, step, init, out, tall, start, stop)

    # A multiply-add takes a quarter of the time of what `parallel_for` counts in.
    parallel_for(run, Z * -(-N // LANES) * -(-M // ROWS), Z * M * N * (pairs * K + parts) // 4)


@exact
def _codes_used(codes: Codes, used: Codes) -> None:
    for i in range(codes.size):
        used[codes[i]] = 1


def codes_used(codes: Codes, used: Codes) -> None:
    """The entry of the row; arguments as in the module's docstring."""
    (flat,) = read_only(codes)
    _codes_used(flat, used)


kernel("exact_gemm", exact_gemm, order="exact, one rounding", reproducible=True)
kernel("codes_used", codes_used, order="none", reproducible=True)
