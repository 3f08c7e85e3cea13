"""softmax and log_softmax of rows, float32.

Each row is read three times, from the nearest cache: its largest element; exponentials and their sum; the division. The sum has a
fixed order, 16 partial sums and then a tree. To first order, with R = N / 16 + 9 roundings and d the distance of x from the largest,
y of softmax is within (R + d) 2^-24 of the exact one, relative; of log_softmax within (R + d + |y|) 2^-24, absolute.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._functions import exp, log
from fp8np.kernels._jit import entry, native
from fp8np.kernels._lanes import first
from fp8np.kernels._native import word
from fp8np.kernels._program import Task, Word
from fp8np.kernels._vector import floats, largest, load, load_n, maximum, select, store, store_n, total
from fp8np.kernels.pointwise import UNIT

__all__ = ["softmax_task"]

_ZERO, _ONE, _NONE = np.float32(0), np.float32(1), np.float32(-np.inf)


@native
def _top(x: int, n: int) -> Any:
    # The largest element that is not NaN, -inf if there is none. A NaN shows in the sum.
    a = b = c = d = floats(_NONE)
    i = 0
    while i + 64 <= n:
        p = x + 4 * i
        a = maximum(load(p), a)
        b = maximum(load(p + 64), b)
        c = maximum(load(p + 128), c)
        d = maximum(load(p + 192), d)
        i += 64
    while i + 16 <= n:
        a = maximum(load(x + 4 * i), a)
        i += 16
    if i < n:
        b = maximum(select(first(n - i), load_n(x + 4 * i, n - i), floats(_NONE)), b)
    return largest(maximum(maximum(a, b), maximum(c, d)))


@native
def _exponentials(x: int, y: int, step: int, n: int, top: Any) -> Any:
    # The sum of e^(x - top), which are written to y, vectors `step` bytes apart. One sum for all vectors is enough: an
    # exponential takes longer than an addition.
    s = floats(_ZERO)
    whole = n & -16
    for i in range(0, whole, 16):
        v = exp(load(x + 4 * i) - top)
        store(y, v)
        s = s + v
        y += step
    if whole < n:
        v = exp(load_n(x + 4 * whole, n - whole) - top)
        store_n(y, v, n - whole)
        s = s + select(first(n - whole), v, floats(_ZERO))
    return total(s)


@entry
def softmax(args: int, unit: int, scratch: int) -> None:
    # 0 x f32 (R, N), 1 y f32 (R, N), 2 R, 3 N, 4 rows a unit, 5 whether the logarithm is wanted. Scratch: 64 bytes.
    n, rows, logarithm = word(args, 3), word(args, 4), word(args, 5)
    whole = n & -16
    row = unit * rows
    stop = min(row + rows, word(args, 2))
    while row < stop:
        x = word(args, 0) + 4 * row * n
        y = word(args, 1) + 4 * row * n
        top = floats(_top(x, n))
        if logarithm:
            # The exponentials are not wanted, and y may be x.
            s = log(floats(_exponentials(x, scratch, 0, n, top)))
            for i in range(0, 4 * whole, 64):
                store(y + i, load(x + i) - top - s)
            if whole < n:
                store_n(y + 4 * whole, load_n(x + 4 * whole, n - whole) - top - s, n - whole)
        else:
            s = floats(_ONE) / floats(_exponentials(x, y, 64, n, top))
            for i in range(0, 4 * whole, 64):
                store(y + i, load(y + i) * s)
            if whole < n:
                store_n(y + 4 * whole, load_n(y + 4 * whole, n - whole) * s, n - whole)
        row += 1


def softmax_task(x: Word, y: Word, shape: tuple[int, int], *, logarithm: bool = False) -> Task:
    """y = e^x / sum(e^x) over the last axis, or its logarithm. A row of -inf alone gives NaN, and so does one with a NaN or inf.

    Args:
        x: float32 (R, N).
        y: float32 (R, N); may be x.
        shape: R, N.
        logarithm: log_softmax.
    """
    rows, n = shape
    unit = max(UNIT // max(n, 1), 1)
    return Task(softmax, (x, y, rows, n, unit, int(logarithm)), -(-rows // unit) if n else 0, 64)
