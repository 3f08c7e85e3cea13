"""Sums over the rows of a matrix, for a few columns at a time: what means over pixels are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._jit import native
from fp8np.kernels._vector import floats, fma, load, load_n, store

__all__ = ["COLUMNS", "sums", "sums_of_squares"]

COLUMNS = 64
"""Columns of a call: four vectors, whose sums are independent, so that an addition need not wait for the one before."""

# Rows are summed in blocks: a sum of R rows has passed through 64 + R / 64 roundings, not R.
_BLOCK = 64

_ZERO = np.float32(0)


@native
def _four(x: int, i: int, count: int) -> Any:
    # Vector i of a row of which `count` values exist; zeros for the others.
    if count == COLUMNS:
        return load(x + 64 * i)
    return load_n(x + 64 * i, count - 16 * i)


@native
def sums(x: int, step: int, rows: int, count: int, out: int) -> None:
    """The sums of columns.

    x: address of float32, `rows` rows `step` bytes apart, of which the first `count` <= 64 values are summed.
    out: address of float32 (64,).
    """
    s0 = s1 = s2 = s3 = floats(_ZERO)
    row = 0
    while row < rows:
        stop = min(row + _BLOCK, rows)
        a = b = c = d = floats(_ZERO)
        while row < stop:
            place = x + row * step
            a = a + _four(place, 0, count)
            b = b + _four(place, 1, count)
            c = c + _four(place, 2, count)
            d = d + _four(place, 3, count)
            row += 1
        s0 = s0 + a
        s1 = s1 + b
        s2 = s2 + c
        s3 = s3 + d
    store(out, s0)
    store(out + 64, s1)
    store(out + 128, s2)
    store(out + 192, s3)


@native
def sums_of_squares(x: int, step: int, rows: int, count: int, centre: int, out: int) -> None:
    """The sums of (x - centre)^2 over columns; as `sums`. centre: address of float32 (64,)."""
    s0 = s1 = s2 = s3 = floats(_ZERO)
    m0, m1, m2, m3 = load(centre), load(centre + 64), load(centre + 128), load(centre + 192)
    row = 0
    while row < rows:
        stop = min(row + _BLOCK, rows)
        a = b = c = d = floats(_ZERO)
        while row < stop:
            place = x + row * step
            v = _four(place, 0, count) - m0
            a = fma(v, v, a)
            v = _four(place, 1, count) - m1
            b = fma(v, v, b)
            v = _four(place, 2, count) - m2
            c = fma(v, v, c)
            v = _four(place, 3, count) - m3
            d = fma(v, v, d)
            row += 1
        s0 = s0 + a
        s1 = s1 + b
        s2 = s2 + c
        s3 = s3 + d
    store(out, s0)
    store(out + 64, s1)
    store(out + 128, s2)
    store(out + 192, s3)
