"""Blocks that share a scale: their largest magnitudes, division and multiplication by scales, and scaled sums of partial products.

Arrays are (O, P, I), cut into blocks of (1, p, i) of which the last along an axis may be shorter; a block's scale is element
[o, r // p, c // i] of (O, ceil(P / p), ceil(I / i)). Every other tensor is brought into this shape by joining axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._arrays import Doubles, Floats, read_only
from fp8np.kernels._bits import float64_bits, float64_of
from fp8np.kernels._expansion import to_odd, two_sum
from fp8np.kernels._jit import exact
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for

__all__ = ["add_scaled", "amax_blocks", "divide_blocks", "multiply_blocks"]

_U = np.uint32


@exact
def _amax_blocks(x: Any, p: int, i: int, out: Any, start: int, stop: int) -> None:
    # x: u32 (O, P, I) bits of float32; out: u32 (O, ceil(P / p), ceil(I / i)), rows start .. stop of its first two axes.
    # Positive floats sort as their bits do.
    for item in range(start, stop):
        o, block = divmod(item, out.shape[1])
        largest = out[o, block]
        for c in range(largest.size):
            largest[c] = _U(0)
        for r in range(block * p, min(block * p + p, x.shape[1])):
            row = x[o, r]
            if i == 1:
                for c in range(row.size):
                    a = _U(row[c] & _U(0x7FFFFFFF))
                    a = _U(0) if a >= _U(0x7F800000) else a
                    largest[c] = _U(max(largest[c], a))
            else:
                for b in range(largest.size):
                    part = row[b * i : b * i + i]
                    most = _U(0)
                    for c in range(part.size):
                        a = _U(part[c] & _U(0x7FFFFFFF))
                        a = _U(0) if a >= _U(0x7F800000) else a
                        most = _U(max(most, a))
                    largest[b] = _U(max(largest[b], most))


def amax_blocks(x: Floats, p: int, i: int, out: Floats) -> None:
    """x f32 (O, P, I) -> out f32, the largest finite magnitude of each block: NaN and infinities are left out."""
    (bits,) = read_only(x.view(np.uint32))
    largest = out.view(np.uint32)
    parallel_for(lambda start, stop: _amax_blocks(bits, p, i, largest, start, stop), out.shape[0] * out.shape[1], x.size)


@exact
def _divide_blocks(x: Floats, scale: Floats, p: int, i: int, out: Floats, start: int, stop: int) -> None:
    # An item is a row of x.
    for item in range(start, stop):
        o, r = divmod(item, x.shape[1])
        row, scales, quotients = x[o, r], scale[o, r // p], out[o, r]
        if i == 1:
            for c in range(row.size):
                quotients[c] = row[c] / scales[c]
        else:
            for b in range(scales.size):
                s = scales[b]
                part, result = row[b * i : b * i + i], quotients[b * i : b * i + i]
                for c in range(part.size):
                    result[c] = part[c] / s


def divide_blocks(x: Floats, scale: Floats, p: int, i: int, out: Floats) -> None:
    """out = x / scale, f32 (O, P, I)."""
    x, scale = read_only(x, scale)
    rows = x.shape[0] * x.shape[1]
    parallel_for(lambda start, stop: _divide_blocks(x, scale, p, i, out, start, stop), rows, x.size)


@exact
def _multiply_blocks(scale: Floats, p: int, i: int, values: Floats, start: int, stop: int) -> None:
    # An item is a row of values. One array in and out: of two that may overlap, LLVM makes no vector code.
    for item in range(start, stop):
        o, r = divmod(item, values.shape[1])
        row, scales = values[o, r], scale[o, r // p]
        if i == 1:
            for c in range(row.size):
                row[c] *= scales[c]
        else:
            for b in range(scales.size):
                s = scales[b]
                part = row[b * i : b * i + i]
                for c in range(part.size):
                    part[c] *= s


def multiply_blocks(scale: Floats, p: int, i: int, values: Floats) -> None:
    """values *= scale, f32 (O, P, I)."""
    (scale,) = read_only(scale)
    rows = values.shape[0] * values.shape[1]
    parallel_for(lambda start, stop: _multiply_blocks(scale, p, i, values, start, stop), rows, values.size)


# -- scaled sums ------------------------------------------------------------------------------------------------------
#
#     total = fma(partial, s, total)        s = left * right, rounded to the 24 bits of a float32 but never out of its range
#
# partial and s have 24 bits each, so their product is exact in float64; it is added without error, rounded to odd at 53 bits, and
# then to float32: what a fused multiply-add gives, on CPUs without one too.


@exact
def _add_scaled(partial: Floats, left: Doubles, right: Doubles, total: Floats, start: int, stop: int) -> None:
    # partial, total: f32 (Z, M, N); left: f64 (Z, M); right: f64 (Z, N). An item is a row.
    for item in range(start, stop):
        z, r = divmod(item, total.shape[1])
        terms, sums, columns, factor = partial[z, r], total[z, r], right[z], left[z, r]
        for c in range(sums.size):
            bits = float64_bits(factor * columns[c])
            # To nearest even at 24 bits; the carry of a full mantissa goes into the exponent, as it should.
            s = float64_of((bits + 0xFFFFFFF + ((bits >> 29) & 1)) & -0x20000000)
            high, rest = two_sum(np.float64(terms[c]) * s, np.float64(sums[c]))
            # Of NaN and infinity there is no rest.
            rest = rest if abs(high) < np.inf else 0.0
            sums[c] = np.float32(to_odd(high, rest))


def add_scaled(partial: Floats, left: Doubles, right: Doubles, total: Floats) -> None:
    """total f32 (Z, M, N), in and out: partial * (left[:, :, None] * right[:, None, :]) is added, with one rounding of the sum."""
    partial, left, right = read_only(partial, left, right)
    Z, M, N = total.shape
    parallel_for(lambda start, stop: _add_scaled(partial, left, right, total, start, stop), Z * M, 8 * Z * M * N)


kernel("amax_blocks", amax_blocks, order="exact", reproducible=True)
kernel("divide_blocks", divide_blocks, order="one rounding", reproducible=True)
kernel("multiply_blocks", multiply_blocks, order="one rounding", reproducible=True)
kernel("add_scaled", add_scaled, order="the scales' product rounded to 24 bits, then one rounding of the sum", reproducible=True)
