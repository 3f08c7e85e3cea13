"""The matrix product of tensors with a scale for each block.

K is cut wherever a block of either operand ends. Within such a segment every scale is constant, so each segment's products are
summed on their own, from zero, as the accumulator says; what is scaled are those partial sums P::

    K            |------- a, blocks of 128 -------|-----------...
                 |-- b, 32 --|---------|----------|-----------...
    segments          0          1          2           3

    how.kind "exact"     the sum over segments of P * a.scale * b.scale in exact numbers, rounded once to float32
    otherwise            total = fma(P, s, total), segments ascending from total = +0, s = a.scale * b.scale rounded to 24 bits

The second is what GPU kernels for block-scaled FP8 compute: the product of two scales in float32, then a fused multiply-add into
float32. Here the product of the scales keeps its exponent even where it leaves float32's range, as two E8M0 scales may.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from fp8np._exact import Band, Used, bands, put_specials
from fp8np._products import one_nan, product
from fp8np.accumulators import Accumulator
from fp8np.codec import decode_table
from fp8np.formats import FloatFormat
from fp8np.kernels._arrays import Doubles
from fp8np.kernels._table import select
from fp8np.tensor import Floats, QTensor

__all__ = ["block_matmul", "index_scales", "segments_of"]

MEMORY = 64 << 20
"""Bytes of scaled partial sums that the exact way keeps at a time."""
SMALLEST = 16
"""Rows and columns of the result that it takes at a time, at least."""
PART_BITS = 48
"""Bits of an exact partial sum, at most: two halves of 24."""

_ALL: Used = np.ones(256, np.bool_)


def block_matmul(a: QTensor, b: QTensor, batch: tuple[int, ...], how: Accumulator) -> Floats:
    """f32 (*batch, M, N): ``a @ b``, scales applied, one code for every NaN.

    Args:
        a: (..., M, K).
        b: (..., K, N). Of the two, at least one has blocks; the scale of the other does not vary along K.
        batch: the axes that the leading axes of a and b broadcast to.
        how: how each segment is summed.
    """
    return one_nan(_exact(a, b, batch) if how.kind == "exact" else _fused(a, b, batch, how), how)


class _Segments:
    """The segments of K, and the scales in each of them."""

    def __init__(self, a: QTensor, b: QTensor, batch: tuple[int, ...]) -> None:
        self._lengths = _lengths(a, b)
        self.bounds = segments_of(a, b)
        self._rows = index_scales(a, -1)
        self._columns = index_scales(b, -2)
        self._batch = batch

    def scales(self, start: int) -> tuple[Doubles, Doubles]:
        """The scales of a, f64 (*batch, M), and of b, (*batch, N), in the segment that begins at `start`."""
        rows = self._rows[..., start // self._lengths[0]].astype(np.float64)
        columns = self._columns[..., start // self._lengths[1], :].astype(np.float64)
        return np.broadcast_to(rows, (*self._batch, rows.shape[-1])), np.broadcast_to(columns, (*self._batch, columns.shape[-1]))


def _lengths(a: QTensor, b: QTensor) -> tuple[int, int]:
    # Of a block along K, in each operand.
    whole = max(a.shape[-1], 1)
    return (a.block[-1] if a.block else whole), (b.block[-2] if b.block else whole)


def segments_of(a: QTensor, b: QTensor) -> list[tuple[int, int]]:
    """(start, stop) of the segments of K in which no scale of a (..., M, K) and b (..., K, N) changes."""
    K = a.shape[-1]
    return list(itertools.pairwise(sorted({K, *(k for length in _lengths(a, b) for k in range(0, K, length))})))


def index_scales(q: QTensor, kept: int | None = None) -> Floats:
    """f32: one scale for each index of every axis, but one for each block along the axis `kept`, counted from the end (-1, -2, ...)."""
    last = None if kept is None else q.ndim + kept
    if q.block is None:
        scale = q.scale.reshape(q.scale.shape or (1,) * q.ndim)
        return np.broadcast_to(scale, [1 if i == last else n for i, n in enumerate(q.shape)])
    scale = q.scale
    for i, (n, length) in enumerate(zip(q.shape, q.block, strict=True)):
        if i != last and length > 1:
            scale = scale.take(np.arange(n) // length, axis=i)
    return scale


def _fused(a: QTensor, b: QTensor, batch: tuple[int, ...], how: Accumulator) -> Floats:
    M, N = a.shape[-2], b.shape[-1]
    Z = math.prod(batch)
    total = np.zeros((Z, M, N), np.float32)
    segments = _Segments(a, b, batch)
    add = select("add_scaled")
    for start, stop in segments.bounds:
        # Without their scales: those of the segment are applied here.
        codes = QTensor(a.codes[..., start:stop], a.format), QTensor(b.codes[..., start:stop, :], b.format)
        partial = product(*codes, batch, how, None).reshape(total.shape)
        left, right = segments.scales(start)
        add(partial, np.ascontiguousarray(left).reshape(Z, M), np.ascontiguousarray(right).reshape(Z, N), total)
    return total.reshape(*batch, M, N)


def _exact(a: QTensor, b: QTensor, batch: tuple[int, ...]) -> Floats:
    # A segment's sum is exact in float64, cut into bands of exponents where a format is wide. Scaled, it is a few float64 whose
    # products with the scales are exact; all of those are added without error.
    M, K, N = *a.shape[-2:], b.shape[-1]
    out = np.zeros((*batch, M, N), np.float32)
    segments = _Segments(a, b, batch)
    longest = max((stop - start for start, stop in segments.bounds), default=0)
    a_bands, b_bands = _fitting(a.format, b.format, longest)
    whole = all(q.scale_format is not None and q.scale_format.mantissa_bits == 0 for q in (a, b))
    count = len(segments.bounds) * len(a_bands) * len(b_bands) * (1 if whole else 4)
    if not count or not out.size:
        return out
    side = max(SMALLEST, math.isqrt(MEMORY // (8 * count)))
    parts = np.empty((count, side * side), np.float64)
    a_codes, b_codes = np.broadcast_to(a.codes, (*batch, M, K)), np.broadcast_to(b.codes, (*batch, K, N))
    scales = [segments.scales(start) for start, _ in segments.bounds]
    for z in np.ndindex(*batch):
        for m in range(0, M, side):
            for n in range(0, N, side):
                rows, columns = slice(m, m + side), slice(n, n + side)
                tile = out[z][rows, columns]
                used = parts.reshape(-1)[: count * tile.size].reshape(count, *tile.shape)
                place = 0
                for (start, stop), (left, right) in zip(segments.bounds, scales, strict=True):
                    s, t = _finite(left[z][rows])[:, None], _finite(right[z][columns])
                    x, y = a_codes[z][rows, start:stop], b_codes[z][start:stop, columns]
                    for (p, _), (q, _) in itertools.product(a_bands, b_bands):
                        place = _scaled(p[x] @ q[y], s, t, whole, used, place)
                sums = np.empty(tile.size, np.float32)
                select("exact_sum")(used.reshape(count, -1), sums)
                tile[...] = sums.reshape(tile.shape)
    _put_specials(out, a, b, batch, segments)
    return out


def _scaled(sums: Doubles, s: Doubles, t: Doubles, whole: bool, parts: Doubles, place: int) -> int:
    """Writes float64 whose sum is exactly sums * s * t, from parts[place] on; returns the place after them."""
    if whole:
        np.multiply(sums, s * t, out=parts[place])
        return place + 1
    # 48 bits as 24 + 24, times 48 bits as 24 + 24: each product has 48.
    factor = s * t
    for high in _halves(sums):
        for other in _halves(factor):
            np.multiply(high, other, out=parts[place])
            place += 1
    return place


def _halves(x: Doubles) -> tuple[Doubles, Doubles]:
    """x, of at most 48 bits, as the sum of two float64 of at most 24 bits (Veltkamp's splitting)."""
    c = x * (2.0**29 + 1)
    high = c - (c - x)
    return high, x - high


def _finite(scales: Doubles) -> Doubles:
    return np.where(np.isnan(scales), 1.0, scales)


def _put_specials(out: Floats, a: QTensor, b: QTensor, batch: tuple[int, ...], segments: _Segments) -> None:
    # NaN and infinity of the codes, and NaN of the scales, take part as in any sum. Scales are positive: of infinity and zero
    # they change nothing.
    tables = decode_table(a.format), decode_table(b.format)
    if any(not np.isfinite(table[q.codes]).all() for table, q in zip(tables, (a, b), strict=True) if not np.isfinite(table).all()):
        a_codes = np.broadcast_to(a.codes, (*batch, *a.shape[-2:]))
        b_codes = np.broadcast_to(b.codes, (*batch, *b.shape[-2:])).swapaxes(-1, -2)
        for z in np.ndindex(*batch):
            put_specials(out[z], a_codes[z], tables[0], b_codes[z], tables[1], None)
    if np.isnan(a.scale).any() or np.isnan(b.scale).any():
        for start, _ in segments.bounds:
            left, right = segments.scales(start)
            out[np.isnan(left)[..., :, None] | np.isnan(right)[..., None, :]] = np.nan


def _fitting(a: FloatFormat, b: FloatFormat, terms: int) -> tuple[list[Band], list[Band]]:
    """Fewest bands of exponents so that a sum of `terms` products of any two has at most 48 bits."""
    count = 1
    while True:
        sides = bands(a, _ALL, count), bands(b, _ALL, count)
        limits = [max((limit for _, limit in side), default=0) for side in sides]
        if limits[0] * limits[1] * terms <= 2**PART_BITS:
            return sides
        count += 1
