"""softmax and log_softmax of rows, float32.

Each row is read three times, from the nearest cache: its largest element; exponentials and their sum; the division. The sum has a
fixed order, 64 partial sums and then a tree. To first order, with R = N / 64 + 12 roundings and d the distance of x from the
largest, y of softmax is within (R + d) 2^-24 of the exact one, relative; of log_softmax within R (1 + d + |y|) 2^-24, absolute.
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
def _exponentials(x: int, y: int, n: int, top: Any, keep: bool) -> Any:
    # The sum of e^(x - top), which are written to y where they are to be kept. Four vectors at a time: with one, 1.2 times slower.
    a = b = c = d = floats(_ZERO)
    i = 0
    while i + 64 <= n:
        p, q = x + 4 * i, y + 4 * i
        v0, v1, v2, v3 = exp(load(p) - top), exp(load(p + 64) - top), exp(load(p + 128) - top), exp(load(p + 192) - top)
        if keep:
            store(q, v0)
            store(q + 64, v1)
            store(q + 128, v2)
            store(q + 192, v3)
        a, b, c, d = a + v0, b + v1, c + v2, d + v3
        i += 64
    while i + 16 <= n:
        v0 = exp(load(x + 4 * i) - top)
        if keep:
            store(y + 4 * i, v0)
        a = a + v0
        i += 16
    if i < n:
        v0 = exp(load_n(x + 4 * i, n - i) - top)
        if keep:
            store_n(y + 4 * i, v0, n - i)
        b = b + select(first(n - i), v0, floats(_ZERO))
    return total((a + b) + (c + d))


@entry
def softmax(args: int, unit: int, scratch: int) -> None:
    # 0 x f32 (R, N), 1 y f32 (R, N), 2 R, 3 N, 4 rows a unit, 5 whether the logarithm is wanted.
    n, rows, logarithm = word(args, 3), word(args, 4), word(args, 5)
    whole = n & -16
    row = unit * rows
    stop = min(row + rows, word(args, 2))
    while row < stop:
        x = word(args, 0) + 4 * row * n
        y = word(args, 1) + 4 * row * n
        top = floats(_top(x, n))
        s = floats(_exponentials(x, y, n, top, logarithm == 0))
        if logarithm:
            s = log(s)
            for i in range(0, 4 * whole, 64):
                store(y + i, load(x + i) - top - s)
            if whole < n:
                store_n(y + 4 * whole, load_n(x + 4 * whole, n - whole) - top - s, n - whole)
        else:
            s = floats(_ONE) / s
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
    return Task(softmax, (x, y, rows, n, unit, int(logarithm)), -(-rows // unit) if n else 0)
