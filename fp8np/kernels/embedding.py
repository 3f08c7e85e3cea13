"""Rows of a table by number: out[i] = table[ids[i]], of float32 or of FP8 codes with a scale."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._jit import entry, native
from fp8np.kernels._lanes import gather, int_at
from fp8np.kernels._native import float_at, word
from fp8np.kernels._program import Task, Word
from fp8np.kernels._vector import floats, load, load_bytes, load_bytes_n, load_n, store, store_n
from fp8np.kernels.pointwise import UNIT

__all__ = ["embedding_task"]

_ONE = np.float32(1)


@native
def _copied(source: int, out: int, n: int) -> None:
    whole = n & -16
    for i in range(0, 4 * whole, 64):
        store(out + i, load(source + i))
    if whole < n:
        store_n(out + 4 * whole, load_n(source + 4 * whole, n - whole), n - whole)


@native
def _decoded(codes: int, values: int, scale: int, along: int, out: int, n: int) -> None:
    # scale: address of float32, n values where `along` is 1, one where it is 0.
    whole = n & -16
    one = floats(float_at(scale))
    for i in range(0, whole, 16):
        s = load(scale + 4 * i) if along else one
        store(out + 4 * i, gather(values, load_bytes(codes + i)) * s)
    if whole < n:
        left = n - whole
        s = load_n(scale + 4 * whole, left) if along else one
        store_n(out + 4 * whole, gather(values, load_bytes_n(codes + whole, left)) * s, left)


@entry
def embedding(args: int, unit: int, scratch: int) -> None:
    # 0 table f32 or u8 (V, N), 1 ids (R,), 2 bytes of an id, 4 or 8, 3 out f32 (R, N), 4 R, 5 N, 6 values of codes f32 (256,) or 0,
    # 7 scale f32, 8 bytes from a row's scale to the next row's, 9 whether there is one for each column, 10 rows a unit, 11 rows and 12
    # columns that share a scale.
    n, rows, values, high, wide = word(args, 5), word(args, 10), word(args, 6), word(args, 11), word(args, 12)
    row = unit * rows
    stop = min(row + rows, word(args, 4))
    while row < stop:
        i = word(word(args, 1), row) if word(args, 2) == 8 else int_at(word(args, 1) + 4 * row)
        out = word(args, 3) + 4 * row * n
        if values == 0:
            _copied(word(args, 0) + 4 * i * n, out, n)
        else:
            scale = word(args, 7) + i // high * word(args, 8)
            for c in range(0, n, wide):
                _decoded(word(args, 0) + i * n + c, values, scale, word(args, 9), out + 4 * c, min(wide, n - c))
                scale += 4
        row += 1


def embedding_task(
    table: Word,
    ids: Word,
    out: Word,
    shape: tuple[int, int],
    *,
    id_bytes: int,
    values: Any = None,
    scale: Word | None = None,
    scale_per: str = "tensor",
    block: tuple[int, int] = (1, 1),
) -> Task:
    """out = table[ids], times a scale where the table holds codes.

    Args:
        table: float32 (V, N), or u8 (V, N) where `values` are given.
        ids: int64 or int32 (R,), each in 0 .. V - 1: the caller has checked that.
        out: float32 (R, N).
        shape: R, N.
        id_bytes: 8 or 4.
        values: float32 (256,), what each code stands for.
        scale: float32, for codes: one value; per "row" (V,); per "column" (N,); per "block", as many along each axis as there are.
        scale_per: "tensor", "row", "column" or "block".
        block: rows and columns of a block.
    """
    count, n = shape
    rows = max(UNIT // max(n, 1), 1)
    high, wide = block if scale_per == "block" else (1, max(n, 1))
    step = {"row": 4, "block": 4 * -(-n // wide)}.get(scale_per, 0)
    sizes = (step, int(scale_per == "column"), rows, high, wide)
    words = (table, ids, id_bytes, out, count, n, 0 if values is None else values, np.ones(1, np.float32) if scale is None else scale)
    return Task(embedding, (*words, *sizes), -(-count // rows) if n else 0)
