"""gemm: out = (out + a @ b^T) * row_scale * column_scale + bias, on codes; the scaling rounds after each operation.

a u8 (Z|1, M, K); a_table f32 (256,), the values of a's codes; b u8 (Z|1, N, K), the layout of a linear layer's weight; b_table
f32 (256,); row_scale f32 (M,)|(1,); column_scale f32 (N,)|(1,); bias f32 (N,)|(0,); out f32 (Z, M, N), in and out.
"""

from __future__ import annotations

import numpy as np

from fp8np.kernels._arrays import Codes, Floats, read_only
from fp8np.kernels._jit import exact, fused
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for
from fp8np.kernels._tile import (
    DEPTH,
    LANES,
    ORDER,
    ROWS,
    STEP,
    accumulate,
    fill,
    load_rows,
    padded,
    products_are_exact,
    store_rows,
)

THIN = 2
"""Up to so many rows a panel does not pay. Weights (of 4096 by 4096) a second on one thread: row by row 3.9 G divided by the
number of rows; through panels 1.5 G for any number up to 8. Row by row means eight weights' rows at a time, each element one
scalar chain of additions (four: 3.3 G; two rows by four weights' rows: 2.9 G)."""


@exact
def _finish(out: Floats, row: int, stop: int, first: int, end: int, row_scale: Floats, column_scale: Floats, bias: Floats) -> None:
    # out f32 (M, N): scales and bias on rows row .. stop, columns first .. end.
    for m in range(row, stop):
        scale = row_scale[m] if row_scale.size > 1 else row_scale[0]
        if column_scale.size > 1:
            for n in range(first, end):
                out[m, n] = out[m, n] * scale * column_scale[n]
        else:
            for n in range(first, end):
                out[m, n] = out[m, n] * scale * column_scale[0]
        if bias.size:
            for n in range(first, end):
                out[m, n] += bias[n]


@exact
def _panels(
    a: Codes,
    a_table: Floats,
    b: Codes,
    b_table: Floats,
    row_scale: Floats,
    column_scale: Floats,
    bias: Floats,
    out: Floats,
    start: int,
    stop: int,
) -> None:
    # An item is ROWS rows of LANES columns. Neighbours share columns, so a range decodes each panel of b once.
    M, K = a.shape[1:]
    N = b.shape[1]
    blocks = (M + ROWS - 1) // ROWS
    stripes = (N + LANES - 1) // LANES
    panel = np.empty(DEPTH * LANES, np.float32)
    tile = np.zeros(ROWS * LANES, np.float32)
    item = start
    while item < stop:
        stripe = item // blocks
        block = item % blocks
        count = min(blocks - block, stop - item)
        z = stripe // stripes
        first = stripe % stripes * LANES
        lanes = min(LANES, N - first)
        az = a[z if a.shape[0] > 1 else 0]
        bz = b[z if b.shape[0] > 1 else 0]
        oz = out[z : z + 1]
        top = block * ROWS
        bottom = min((block + count) * ROWS, M)
        for k0 in range(0, K, DEPTH):
            depth = min(DEPTH, K - k0)
            fill(bz, b_table, first, padded(lanes), k0, depth, panel)
            for row in range(top, bottom, ROWS):
                end = min(row + ROWS, bottom)
                load_rows(oz, row, end, first, lanes, tile)
                accumulate(az, a_table, row, k0, depth, panel, padded(lanes), tile)
                store_rows(tile, row, end, first, lanes, oz)
        _finish(out[z], top, bottom, first, first + lanes, row_scale, column_scale, bias)
        item += count


@fused
def _dot(a: Codes, a_table: Floats, b: Codes, b_table: Floats, m: int, first: int, out: Floats) -> None:
    # out[m, n] += sum_k a[m, k] * b[n, k] for the STEP columns from first on; columns from N on repeat the last.
    last = b.shape[0] - 1
    r0 = min(first, last)
    r1 = min(first + 1, last)
    r2 = min(first + 2, last)
    r3 = min(first + 3, last)
    r4 = min(first + 4, last)
    r5 = min(first + 5, last)
    r6 = min(first + 6, last)
    r7 = min(first + 7, last)
    s0, s1, s2, s3 = out[m, r0], out[m, r1], out[m, r2], out[m, r3]
    s4, s5, s6, s7 = out[m, r4], out[m, r5], out[m, r6], out[m, r7]
    for k in range(b.shape[1]):
        x = a_table[a[m, k]]
        s0 += x * b_table[b[r0, k]]
        s1 += x * b_table[b[r1, k]]
        s2 += x * b_table[b[r2, k]]
        s3 += x * b_table[b[r3, k]]
        s4 += x * b_table[b[r4, k]]
        s5 += x * b_table[b[r5, k]]
        s6 += x * b_table[b[r6, k]]
        s7 += x * b_table[b[r7, k]]
    out[m, r0], out[m, r1], out[m, r2], out[m, r3] = s0, s1, s2, s3
    out[m, r4], out[m, r5], out[m, r6], out[m, r7] = s4, s5, s6, s7


@exact
def _thin(
    a: Codes,
    a_table: Floats,
    b: Codes,
    b_table: Floats,
    row_scale: Floats,
    column_scale: Floats,
    bias: Floats,
    out: Floats,
    start: int,
    stop: int,
) -> None:
    # An item is STEP columns, all rows.
    M = a.shape[1]
    N = b.shape[1]
    steps = (N + STEP - 1) // STEP
    for item in range(start, stop):
        z = item // steps
        first = item % steps * STEP
        az = a[z if a.shape[0] > 1 else 0]
        bz = b[z if b.shape[0] > 1 else 0]
        for m in range(M):
            _dot(az, a_table, bz, b_table, m, first, out[z])
            _finish(out[z], m, m + 1, first, min(first + STEP, N), row_scale, column_scale, bias)


def gemm(
    a: Codes,
    a_table: Floats,
    b: Codes,
    b_table: Floats,
    row_scale: Floats,
    column_scale: Floats,
    bias: Floats,
    out: Floats,
) -> None:
    """The entry of the row; arguments as in the module's docstring."""
    Z, M, N = out.shape
    work = Z * M * N * max(a.shape[2], 1)
    a, a_table, b, b_table, row_scale, column_scale, bias = read_only(a, a_table, b, b_table, row_scale, column_scale, bias)

    def thin(start: int, stop: int) -> None:
        _thin(a, a_table, b, b_table, row_scale, column_scale, bias, out, start, stop)

    def panels(start: int, stop: int) -> None:
        _panels(a, a_table, b, b_table, row_scale, column_scale, bias, out, start, stop)

    if M <= THIN:
        parallel_for(thin, Z * -(-N // STEP), work)
    else:
        # A multiply-add takes an eighth of the time of what `parallel_for` counts in.
        parallel_for(panels, Z * -(-N // LANES) * -(-M // ROWS), work // 8)


@exact
def _plain(a: Codes, a_table: Floats, b: Codes, b_table: Floats, out: Floats, start: int, stop: int) -> None:
    # An item is STEP columns, all rows. As `_dot`, but every product is rounded before it is added.
    M, K = a.shape[1:]
    N = b.shape[1]
    steps = (N + STEP - 1) // STEP
    sums = np.empty(STEP, np.float32)
    values = np.empty((STEP, K), np.float32)
    for item in range(start, stop):
        z = item // steps
        first = item % steps * STEP
        count = min(STEP, N - first)
        az = a[z if a.shape[0] > 1 else 0]
        bz = b[z if b.shape[0] > 1 else 0]
        for n in range(STEP):
            row = bz[first + min(n, count - 1)]
            for k in range(K):
                values[n, k] = b_table[row[k]]
        for m in range(M):
            sums[:count] = out[z, m, first : first + count]
            for k in range(K):
                x = a_table[az[m, k]]
                for n in range(STEP):
                    sums[n] += x * values[n, k]
            out[z, m, first : first + count] = sums[:count]


def sequential(
    a: Codes,
    a_table: Floats,
    b: Codes,
    b_table: Floats,
    row_scale: Floats,
    column_scale: Floats,
    bias: Floats,
    out: Floats,
) -> None:
    """`gemm` with every product rounded before it is added; takes no scales and no bias (ones and none)."""
    Z, M, N = out.shape
    a, a_table, b, b_table = read_only(a, a_table, b, b_table)

    def columns(start: int, stop: int) -> None:
        _plain(a, a_table, b, b_table, out, start, stop)

    parallel_for(columns, Z * -(-N // STEP), Z * M * N * max(a.shape[2], 1))


kernel("gemm", gemm, order=ORDER, reproducible=True, takes=products_are_exact)
kernel("gemm", gemm, order=ORDER + ", products fused where the CPU can", reproducible=False)

# Where no product rounds, rounding it first changes nothing.
kernel("gemm_sequential", gemm, order=ORDER, reproducible=True, takes=products_are_exact)
kernel("gemm_sequential", sequential, order=ORDER + ", products rounded first", reproducible=True)
