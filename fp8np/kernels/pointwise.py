"""Functions of one element, and of two that meet by broadcasting, over float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._functions import ACTIVATIONS, activate_block, sigmoid, silu
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import float_at, word
from fp8np.kernels._program import Task, Word, float_word
from fp8np.kernels._vector import floats, load, load_n, maximum, minimum, select, store, store_n

__all__ = ["BINARY", "UNIT", "binary_task", "unary_task"]

UNIT = 1 << 14
"""Elements of a unit: 64 KiB, some microseconds, against the hundred nanoseconds that claiming a unit takes."""

BINARY = {"add": 0, "sub": 1, "rsub": 2, "mul": 3, "div": 4, "rdiv": 5, "maximum": 6, "minimum": 7, "prelu": 8, "glu": 9, "swiglu": 10}
"""Codes of functions of two: a + b, a - b, b - a, a b, a / b, b / a, the larger, the smaller (NaN if either is), a where a > 0
else a b, a sigmoid(b), silu(a) b."""

_F = np.float32
_INF = float("inf")


@entry
def unary(args: int, unit: int, scratch: int) -> None:
    # 0 x f32 (n,), 1 y f32 (n,), 2 n, 3 kind, 4 lo, 5 hi: as `activate` takes them.
    start = unit * UNIT
    count = min(word(args, 2) - start, UNIT)
    at = 4 * start
    activate_block(word(args, 0) + at, word(args, 1) + at, count, word(args, 3), float_at(args + 32), float_at(args + 40))


def unary_task(x: Word, y: Word, n: int, kind: str, lo: float = -_INF, hi: float = _INF) -> Task:
    """y = kind(x).

    Args:
        x: float32 (n,).
        y: float32 (n,); may be x.
        n: number of elements.
        kind: a name in `ACTIVATIONS`.
        lo: what it takes as lo.
        hi: what it takes as hi.
    """
    return Task(unary, (x, y, n, ACTIVATIONS[kind], float_word(lo), float_word(hi)), -(-n // UNIT))


@native
def _combined(op: int, a: Any, b: Any) -> Any:
    if op == 0:
        return a + b
    if op == 1:
        return a - b
    if op == 2:
        return b - a
    if op == 3:
        return a * b
    if op == 4:
        return a / b
    if op == 5:
        return b / a
    if op == 6:
        return select(a == a, maximum(a, b), a)
    if op == 7:
        return select(a == a, minimum(a, b), a)
    if op == 8:
        return select(a > floats(_F(0)), a, a * b)
    if op == 9:
        return a * sigmoid(b)
    return silu(a) * b


@native
def _row(op: int, x: int, v: int, along: int, y: int, n: int, lo: Any, hi: Any) -> None:
    # y f32 (n,) = x (n,) op v: (n,) where along is 1, one value where it is 0.
    whole = n & -16
    if along:
        for i in range(0, 4 * whole, 64):
            store(y + i, minimum(floats(hi), maximum(floats(lo), _combined(op, load(x + i), load(v + i)))))
    else:
        b = floats(float_at(v))
        for i in range(0, 4 * whole, 64):
            store(y + i, minimum(floats(hi), maximum(floats(lo), _combined(op, load(x + i), b))))
    if whole < n:
        i = 4 * whole
        b = load_n(v + i, n - whole) if along else floats(float_at(v))
        store_n(y + i, minimum(floats(hi), maximum(floats(lo), _combined(op, load_n(x + i, n - whole), b))), n - whole)


@entry
def binary(args: int, unit: int, scratch: int) -> None:
    # 0 x f32, 1 v f32, 2 y f32 (R, I, N), 3 op, 4 R I, 5 I, 6 N, 7 bytes from row to row of x; of v: 8 from one of R to the next,
    # 9 from one of I to the next, 10 whether it has N values a row. 11 rows a unit, 12 columns a unit, 13 units a row, 14 lo, 15 hi.
    op, inner, n, x_step, along = word(args, 3), word(args, 5), word(args, 6), word(args, 7), word(args, 10)
    rows, columns, across = word(args, 11), word(args, 12), word(args, 13)
    lo, hi = float_at(args + 14 * 8), float_at(args + 15 * 8)
    outer_step, inner_step = word(args, 8), word(args, 9)
    row = unit // across * rows
    stop = min(row + rows, word(args, 4))
    column = unit % across * columns
    count = min(n - column, columns)
    x = word(args, 0) + 4 * column
    v = word(args, 1) + 4 * column * along
    y = word(args, 2) + 4 * column
    while row < stop:
        place = v + row // inner * outer_step + row % inner * inner_step
        _row(op, x + row * x_step, place, along, y + 4 * row * n, count, lo, hi)
        row += 1


def binary_task(
    x: Word,
    v: Word,
    y: Word,
    op: str,
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    *,
    x_row: int | None = None,
    lo: float = -_INF,
    hi: float = _INF,
) -> Task:
    """y = min(max(x op v, lo), hi), v repeated along axes where its stride is 0.

    | v | shape | strides |
    |---|---|---|
    | of x's shape, n elements | (1, 1, n) | (0, 0, 1) |
    | one value | (1, 1, n) | (0, 0, 0) |
    | a value for each of the last axis (N,), as channels in channels-last | (1, rows, N) | (0, 0, 1) |
    | a value for each row | (1, rows, N) | (0, 1, 0) |
    | a value for each image and channel (B, N) of (B, H W, N) | (B, H W, N) | (N, 0, 1) |
    | a value for each channel (C,) of (B, C, H W) | (B, C, H W) | (0, 1, 0) |

    Args:
        x: float32 (R, I, N).
        v: float32, as `strides` says.
        y: float32 (R, I, N), dense; may be x where that is dense, or v where that has its shape.
        op: a name in `BINARY`.
        shape: R, I, N.
        strides: in elements, of v along R, I and N; the last is 0 or 1.
        x_row: elements from a row of x to the next; N where it is dense.
        lo: the smallest y.
        hi: the largest y.
    """
    outer, inner, n = shape
    # Columns are cut only where a row is more than a unit.
    columns = UNIT if n > 2 * UNIT else max(n, 1)
    rows = max(UNIT // columns, 1)
    across = -(-n // columns)
    sizes = (outer * inner, max(inner, 1), n, 4 * (n if x_row is None else x_row), 4 * strides[0], 4 * strides[1], strides[2])
    words = (x, v, y, BINARY[op], *sizes, rows, columns, max(across, 1), float_word(lo), float_word(hi))
    return Task(binary, words, -(-outer * inner // rows) * across)
