"""gemm_aligned: out = out and a @ b^T, on codes, in steps as an accumulator of kind "aligned" takes them.

a u8 (Z|1, M, K); a_table f32 (256,), the values of a's codes; b u8 (Z|1, N, K); b_table f32 (256,); rule int64[12], see
`fp8np.kernels._step`; out f32 (Z, M, N), in and out.

NaN and infinity are not in the two passes of a step: where a group, or c, holds one, the row's sums are also taken in plain
float64, and what is not finite there is the result of the step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._arrays import Codes, Doubles, Floats, read_only
from fp8np.kernels._bits import float32_bits, float32_of
from fp8np.kernels._jit import exact
from fp8np.kernels._step import A_EXPONENT, B_EXPONENT, EMPTY, GROUP, INTERLEAVE, NAN, PROMOTE, Exponents, Rule, step
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for
from fp8np.kernels._tile import LANES, ROWS, fill, padded

DEPTH = 256
"""Terms of a panel, about: whole steps."""


@exact
def _split(values: Floats, least: Any, finite: Doubles, exponents: Exponents) -> Any:
    # Finite values and their exponents, `least` below the normal ones; NaN and infinity become zero. Whether there were any.
    odd = np.uint32(0)
    for n in range(values.size):
        x = values[n]
        bits = np.uint32(float32_bits(x) & np.uint32(0x7FFFFFFF))
        special = bits >= np.uint32(0x7F800000)
        none = special | (bits == np.uint32(0))
        odd = np.uint32(odd | np.uint32(special))
        e = max(np.int32(np.int32(bits >> np.uint32(23)) - np.int32(127)), np.int32(least))
        exponents[n] = np.int32(EMPTY) if none else e
        finite[n] = 0.0 if none else np.float64(x)
    return odd != 0


@exact
def _any_odd(c: Floats) -> Any:
    odd = np.uint32(0)
    for n in range(c.size):
        odd = np.uint32(odd | np.uint32((float32_bits(c[n]) & np.uint32(0x7F800000)) == np.uint32(0x7F800000)))
    return odd != 0


@exact
def _plain_sums(
    a: Codes, a_table: Floats, b: Codes, b_table: Floats, first: int, lanes: int, k0: int, stop: int, c: Floats, out: Doubles
) -> None:
    # out[n] = c[n] and the products of a step of row a, NaN and infinity included.
    last = b.shape[0] - 1
    for n in range(lanes):
        row = min(first + n, last)
        total = np.float64(c[n])
        for k in range(k0, stop):
            total += np.float64(a_table[a[k]]) * np.float64(b_table[b[row, k]])
        out[n] = total


@exact
def _start(out: Floats, rule: Rule, chain: Floats) -> None:
    # A part starts from zero, and all of K from what out holds.
    for r in range(chain.shape[0]):
        for n in range(out.shape[1]):
            chain[r, n] = out[r, n] if rule[PROMOTE] == 0 else np.float32(0.0)


@exact
def _end(chain: Floats, rule: Rule, out: Floats) -> None:
    # A part is added to out; all of K becomes it.
    nan = float32_of(np.uint32(rule[NAN]))
    for r in range(chain.shape[0]):
        for n in range(out.shape[1]):
            total = chain[r, n] if rule[PROMOTE] == 0 else out[r, n] + chain[r, n]
            out[r, n] = nan if total != total else total


@exact
def _stripes(a: Codes, a_table: Floats, b: Codes, b_table: Floats, rule: Rule, out: Floats, start: int, stop: int) -> None:
    # An item is ROWS rows of LANES columns. Neighbours share columns, so a range decodes each panel of b once.
    M, K = a.shape[1:]
    N = b.shape[1]
    group, every = rule[GROUP], rule[PROMOTE]
    blocks = (M + ROWS - 1) // ROWS
    stripes = (N + LANES - 1) // LANES
    depth = max(1, DEPTH // group) * group
    raw = np.empty(group * LANES, np.float32)
    b_values = np.empty((depth, LANES), np.float64)
    b_exponents = np.empty((depth, LANES), np.int32)
    b_odd = np.empty(depth // group, np.bool_)
    a_values = np.empty((ROWS, depth), np.float64)
    a_exponents = np.empty((ROWS, depth), np.int32)
    a_row = np.empty(group, np.float32)
    a_odd = np.empty((ROWS, depth // group), np.bool_)
    tops = np.empty((rule[INTERLEAVE], ROWS, LANES), np.int32)
    sums = np.empty((rule[INTERLEAVE], ROWS, LANES), np.float64)
    scale = np.empty((ROWS, LANES), np.float64)
    terms = np.empty(2 * group + 2, np.float64)
    plain = np.zeros((ROWS, LANES), np.float64)
    item = start
    while item < stop:
        stripe = item // blocks
        block = item % blocks
        count = min(blocks - block, stop - item)
        z = stripe // stripes
        first = stripe % stripes * LANES
        end = min(first + LANES, N)
        lanes = padded(end - first)
        az = a[z if a.shape[0] > 1 else 0]
        bz = b[z if b.shape[0] > 1 else 0]
        top = block * ROWS
        bottom = min((block + count) * ROWS, M)
        chains = np.zeros((bottom - top, LANES), np.float32)
        for k0 in range(0, K, depth):
            d = min(depth, K - k0)
            for k in range(0, d, group):
                size = min(group, d - k)
                fill(bz, b_table, first, lanes, k0 + k, size, raw)
                odd = False
                for i in range(size):
                    values = raw[i * LANES : i * LANES + lanes]
                    odd |= _split(values, rule[B_EXPONENT], b_values[k + i, :lanes], b_exponents[k + i, :lanes])
                b_odd[k // group] = odd
            for row in range(top, bottom, ROWS):
                for r in range(ROWS):
                    m = min(row + r, M - 1)
                    for k in range(0, d, group):
                        size = min(group, d - k)
                        for i in range(size):
                            a_row[i] = a_table[az[m, k0 + k + i]]
                        odd = _split(a_row[:size], rule[A_EXPONENT], a_values[r, k : k + size], a_exponents[r, k : k + size])
                        a_odd[r, k // group] = odd
                chain = chains[row - top : min(row + ROWS, bottom) - top]
                target = out[z, row : min(row + ROWS, bottom), first:end]
                for k in range(0, d, group):
                    after = min(k + group, d)
                    if k0 + k == 0 or (every > 0 and (k0 + k) % every == 0):
                        _start(target, rule, chain)
                    for r in range(chain.shape[0]):
                        plain[r, :] = 0.0
                        if b_odd[k // group] or a_odd[r, k // group] or _any_odd(chain[r]):
                            _plain_sums(az[row + r], a_table, bz, b_table, first, lanes, k0 + k, k0 + after, chain[r], plain[r])
                    step(a_values, a_exponents, k, after, b_values, b_exponents, lanes, rule, chain, tops, scale, sums, terms)
                    for r in range(chain.shape[0]):
                        for n in range(lanes):
                            chain[r, n] = chain[r, n] if np.isfinite(plain[r, n]) else plain[r, n]
                    if k0 + after == K or (every > 0 and (k0 + after) % every == 0):
                        _end(chain, rule, target)
        item += count


def gemm_aligned(a: Codes, a_table: Floats, b: Codes, b_table: Floats, rule: Rule, out: Floats) -> None:
    """The entry of the row; arguments as in the module's docstring."""
    Z, M, N = out.shape
    work = Z * M * N * max(a.shape[2], 1)
    a, a_table, b, b_table, rule = read_only(a, a_table, b, b_table, rule)

    def run(start: int, stop: int) -> None:
        _stripes(a, a_table, b, b_table, rule, out, start, stop)

    # A product takes about what `parallel_for` counts in.
    parallel_for(run, Z * -(-N // LANES) * -(-M // ROWS), work)


kernel("gemm_aligned", gemm_aligned, order="steps of k ascending, as the accumulator says", reproducible=True)
