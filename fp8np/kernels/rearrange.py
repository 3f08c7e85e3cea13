"""Copies between orders of axes: elements of 4 bytes or 1, of whatever type.

A copy whose last axis stays the last moves whole rows. Any other is, for all pairs of the other two axes, a transpose between the
axis that lies densely in the source and the one that does so in the result; that is done in registers, 16 x 16 elements at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from fp8np.kernels._jit import entry, native
from fp8np.kernels._lanes import transpose_bytes, transpose_words
from fp8np.kernels._native import word
from fp8np.kernels._program import Task, Word
from fp8np.kernels._vector import load, load_bytes, load_bytes_n, load_n, store, store_bytes, store_bytes_n, store_n
from fp8np.kernels.pointwise import UNIT

__all__ = ["permute_task", "transpose_task"]


@native
def _rows(size: int, source: int, out: int, n: int) -> None:
    # n elements of `size` bytes.
    whole = n & -16
    if size == 4:
        for i in range(0, 4 * whole, 64):
            store(out + i, load(source + i))
        if whole < n:
            store_n(out + 4 * whole, load_n(source + 4 * whole, n - whole), n - whole)
    else:
        for i in range(0, whole, 16):
            store_bytes(out + i, load_bytes(source + i))
        if whole < n:
            store_bytes_n(out + whole, load_bytes_n(source + whole, n - whole), n - whole)


@native
def _tile(size: int, source: int, step: int, rows: int, out: int, out_step: int, columns: int, scratch: int) -> None:
    # out[j, i] = source[i, j] for i < rows <= 16, j < columns <= 16; steps in bytes.
    if rows == 16 and columns == 16:
        if size == 4:
            transpose_words(source, step, out, out_step)
        else:
            transpose_bytes(source, step, out, out_step)
        return
    # At the edge through scratch memory, 16 x 16 twice, so that nothing beyond is touched.
    turned = scratch + 16 * 16 * size
    for i in range(rows):
        _rows(size, source + i * step, scratch + 16 * size * i, columns)
    if size == 4:
        transpose_words(scratch, 64, turned, 64)
    else:
        transpose_bytes(scratch, 16, turned, 16)
    for j in range(columns):
        _rows(size, turned + 16 * size * j, out + j * out_step, rows)


@entry
def rows_moved(args: int, unit: int, scratch: int) -> None:
    # 0 x, 1 out (A, B, C, N), 2 bytes of an element, 3 A B C, 4 B, 5 C, 6 N, 7, 8, 9 bytes from one of A, B, C to the next in x,
    # 10 rows a unit.
    size, b, c, n = word(args, 2), word(args, 4), word(args, 5), word(args, 6)
    a_step, b_step, c_step = word(args, 7), word(args, 8), word(args, 9)
    row = unit * word(args, 10)
    stop = min(row + word(args, 10), word(args, 3))
    while row < stop:
        source = word(args, 0) + row // (b * c) * a_step + row // c % b * b_step + row % c * c_step
        _rows(size, source, word(args, 1) + row * n * size, n)
        row += 1


@entry
def planes_turned(args: int, unit: int, scratch: int) -> None:
    # 0 x, 1 out, 2 bytes of an element, 3 second of the outer axes, 4 M, 5 N: out[.., j, i] = x[.., i, j] for i < M, j < N. In bytes,
    # from one to the next in x and in out: 6, 7 of the first outer axis, 8, 9 of the second, 10 of i in x, 11 of j in out.
    # 12 tiles of 16 j a unit, 13 units a plane. Scratch: two tiles.
    size, m, n = word(args, 2), word(args, 4), word(args, 5)
    step, out_step = word(args, 10), word(args, 11)
    plane, part = unit // word(args, 13), unit % word(args, 13)
    p, q = plane // word(args, 3), plane % word(args, 3)
    source = word(args, 0) + p * word(args, 6) + q * word(args, 8)
    out = word(args, 1) + p * word(args, 7) + q * word(args, 9)
    j = part * word(args, 12) * 16
    stop = min(j + word(args, 12) * 16, n)
    while j < stop:
        for i in range(0, m, 16):
            _tile(
                size, source + i * step + j * size, step, min(m - i, 16), out + j * out_step + i * size, out_step, min(n - j, 16), scratch
            )
        j += 16


def permute_task(x: Word, out: Word, shape: Sequence[int], strides: Sequence[int], size: int = 4) -> Task:
    """out[a, b, c, d] = x[a, b, c, d] of four axes, where x lies otherwise than out.

    Args:
        x: elements at the given strides.
        out: (A, B, C, D), dense.
        shape: A, B, C, D.
        strides: elements from one of each axis to the next in x; one of them is 1.
        size: bytes of an element, 4 or 1.
    """
    strides = [1 if n == 1 and i == 3 else s for i, (n, s) in enumerate(zip(shape, strides, strict=True))]
    a, b, c, d = shape
    if not a * b * c * d:
        return Task(rows_moved, (x, out), 0)
    steps = [s * size for s in strides]
    if strides[3] == 1:
        rows = max(UNIT // d, 1)
        return Task(rows_moved, (x, out, size, a * b * c, b, c, d, *steps[:3], rows), -(-a * b * c // rows))
    out_steps = [b * c * d * size, c * d * size, d * size, size]
    dense = list(strides).index(1)
    p, q = (i for i in range(3) if i != dense)
    tiles = max(UNIT // (16 * d), 1)
    parts = -(-shape[dense] // (16 * tiles))
    sizes = (size, shape[q], d, shape[dense], steps[p], out_steps[p], steps[q], out_steps[q], steps[3], out_steps[dense], tiles, parts)
    return Task(planes_turned, (x, out, *sizes), shape[p] * shape[q] * parts, 2 * 16 * 16 * size)


def transpose_task(x: Word, out: Word, shape: tuple[int, int, int], size: int = 4) -> Task:
    """x (B, M, N) -> out (B, N, M): between (B, C, H W) and (B, H W, C), for one.

    Args:
        x: dense.
        out: dense.
        shape: B, M, N.
        size: bytes of an element, 4 or 1.
    """
    b, m, n = shape
    return permute_task(x, out, (1, b, n, m), (b * m * n, m * n, 1, n), size)
