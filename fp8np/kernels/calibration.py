"""Kernels of calibration: how often numbers of each size occur, and what rounding costs at many scales at once."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fp8np.kernels._arrays import Doubles, Floats, read_only
from fp8np.kernels._bits import float32_bits, float32_of
from fp8np.kernels._jit import exact
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for

__all__ = ["BINS", "SHIFT", "histogram", "rounding_errors"]

SHIFT = 17
"""A bin is what float32 numbers have in common above this bit: the sign, the exponent and 6 bits of the mantissa."""
BINS = 1 << (32 - SHIFT)

# Numbers of one work item; and those of which extremes and bins are found while they are in the first cache.
PIECE = 1 << 16
_NEAR = 1 << 11
# Numbers whose squared errors are summed in float32.
_PART = 1 << 12

_U = np.uint32
_I = np.int32


# -- histogram --------------------------------------------------------------------------------------------------------


@exact
def _histogram(x: Any, pieces: int, start: int, stop: int, counts: Any, out: Any) -> None:
    # x: i32 (rows, n) bits of float32; counts: u32 (2, BINS); out: i32 (rows * pieces, 2). Two tables in turn, since the numbers of
    # one bin wait for each other: after a ReLU half of them are 0. Flipping the lower bits of negative numbers makes integers that
    # sort as the floats do, NaN beyond the infinities.
    upper = _I(BINS - 1)
    for item in range(start, stop):
        row, piece = divmod(item, pieces)
        part = x[row, piece * PIECE : (piece + 1) * PIECE]
        low, high = _I(0x7FFFFFFF), _I(-0x80000000)
        for first in range(0, part.size, _NEAR):
            near = part[first : first + _NEAR]
            for i in range(near.size):
                key = _I(near[i] ^ _I(_I(near[i] >> _I(31)) & _I(0x7FFFFFFF)))
                low = min(low, key)
                high = max(high, key)
            even = near.size - near.size % 2
            for i in range(0, even, 2):
                counts[0, _U(_I(near[i] >> _I(SHIFT)) & upper)] += _U(1)
                counts[1, _U(_I(near[i + 1] >> _I(SHIFT)) & upper)] += _U(1)
            if even < near.size:
                counts[0, _U(_I(near[even] >> _I(SHIFT)) & upper)] += _U(1)
        out[item, 0] = low
        out[item, 1] = high


def histogram(x: Floats, counts: Any, out: Floats) -> None:
    """x f32 (rows, n) -> counts i64 (BINS,) += how many numbers have these upper bits, out f32 (rows, 2): least and largest number.

    A row is not empty. Where it holds NaN or infinity, one of its extremes is NaN or infinity.
    """
    (bits,) = read_only(x.view(np.int32))
    pieces = -(-x.shape[1] // PIECE)
    keys = np.empty((x.shape[0] * pieces, 2), np.int32)
    lock = threading.Lock()

    def run(start: int, stop: int) -> None:
        # A range holds fewer than 2^32 numbers, unless the array is of 16 GiB.
        found = np.zeros((2, BINS), np.uint32)
        _histogram(bits, pieces, start, stop, found, keys)
        with lock:
            np.add(counts, found[0], out=counts)
            np.add(counts, found[1], out=counts)

    parallel_for(run, len(keys), x.size)
    by_row = keys.reshape(x.shape[0], pieces, 2)
    extremes = np.stack([by_row[:, :, 0].min(axis=1), by_row[:, :, 1].max(axis=1)], axis=1)
    out[:] = (extremes ^ ((extremes >> 31) & 0x7FFFFFFF)).view(np.float32)


# -- what rounding costs ----------------------------------------------------------------------------------------------
#
# As in `fp8np.kernels.codec`, an addition rounds: with E the exponent of y, at least that of the smallest normal value,
# (y + 2^(E + 23 - m)) - 2^(E + 23 - m) is y to m bits of mantissa, to nearest even.


@exact
def _rounding_errors(x: Any, inverse: Any, smallest: Any, lift: Any, top: Any, start: int, stop: int, out: Any) -> None:
    # The innermost loop is over scales, whose sums are apart: it becomes vector code without adding in another order.
    count = inverse.shape[1]
    sums = np.empty(count, np.float32)
    for r in range(start, stop):
        row, inv, total = x[r], inverse[r], out[r]
        for c in range(count):
            total[c] = 0.0
        for first in range(0, row.size, _PART):
            part = row[first : first + _PART]
            for c in range(count):
                sums[c] = np.float32(0)
            for i in range(part.size):
                a = np.float32(abs(part[i]))
                for c in range(count):
                    y = np.float32(a * inv[c])
                    e = _U(max(float32_bits(y), smallest))
                    g = float32_of(_U(_U(e & _U(0x7F800000)) + lift))
                    q = np.float32(min(np.float32(np.float32(y + g) - g), top))
                    d = np.float32(y - q)
                    sums[c] += np.float32(d * d)
            for c in range(count):
                total[c] += sums[c]


def rounding_errors(x: Floats, inverse: Floats, span: int, mantissa: int, top: float, out: Doubles) -> None:
    """What rounding each row costs, for several scales.

    Args:
        x: float32 (rows, n), finite.
        inverse: float32 (rows, scales): row r is multiplied by ``inverse[r, c]``, then rounded to a grid whose largest value is `top`.
        span: by how many binades the smallest normal value of the grid is below that of `top`, 1 to 2.
        mantissa: bits of the grid's mantissa.
        top: from 1 to 2.
        out: float64 (rows, scales), sums of squared differences, of numbers multiplied by `inverse`.
    """
    x, inverse = read_only(x, inverse)
    smallest, lift = np.float32(2.0**-span).view(np.uint32), _U((23 - mantissa) << 23)

    def run(start: int, stop: int) -> None:
        _rounding_errors(x, inverse, smallest, lift, np.float32(top), start, stop, out)

    parallel_for(run, x.shape[0], x.size * inverse.shape[1])


kernel("histogram", histogram, order="exact", reproducible=True)
kernel("rounding_errors", rounding_errors, order="4096 squares one after the other, then these sums", reproducible=True)
