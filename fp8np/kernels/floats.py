"""floats: a product of float32 by float32 in multiply-adds, for few channels or few rows.

Where the engine's elements are bfloat16, a float32 is three of them, and six products stand for one. That pays where tiles are full. A
picture's first convolution has three channels, a row of its filter 21 numbers side by side; a last layer on one picture has one row:
there the CPU's float32 units are faster (MobileNet-V2's first convolution: 0.2 ms instead of 0.6 to 1.5, its widening, 0.6, included).

Words are those of `fp8np.kernels.product`; a is float32, read in place; the packed operand f32 (blocks, steps, 32, 32): terms, then
columns; the word of the terms says how many of a step's 32 there are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp8np.kernels import _words as W
from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._ending import Ending, Left, finish, geometry, pixel_blocks, pixels, share, words
from fp8np.kernels._fma import part_1x32, part_2x16, part_6x16, part_8x32
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import word
from fp8np.kernels._program import Task, aligned_array

__all__ = ["float_product_task", "packed_floats"]

_C = 256
_CPU = describe().cpu

if _CPU >= Cpu.AVX512:

    @native
    def _block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, terms: int, rows: int) -> None:
        if rows == 1:
            part_1x32(a, stride, offsets, b, c, steps, 1, terms)
            return
        for r in range(0, rows, 8):
            part_8x32(a + r * stride, stride, offsets, b, c + (r // 16) * 2048 + (r % 16) * 64, steps, 1, terms)

else:

    @native
    def _block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, terms: int, rows: int) -> None:
        if rows == 1:
            part_1x32(a, stride, offsets, b, c, steps, 1, terms)
            return
        for top in range(0, rows, 16):
            for j in range(2):
                left, place = a + top * stride, c + (top // 16) * 2048 + j * 1024
                part_6x16(left, stride, offsets, b + 64 * j, place, steps, 1, terms)
                part_6x16(left + 6 * stride, stride, offsets, b + 64 * j, place + 384, steps, 1, terms)
                part_2x16(left + 12 * stride, stride, offsets, b + 64 * j, place + 768, steps, 1, terms)
                part_2x16(left + 14 * stride, stride, offsets, b + 64 * j, place + 896, steps, 1, terms)


@entry
def float_product(args: int, unit: int, scratch: int) -> None:
    """A unit is what `share` says; words as above."""
    steps, terms, offsets, stride = word(args, W.STEPS), word(args, W.TABLES), word(args, W.OFFSETS), word(args, W.A + 3)
    first, last, start, stop = share(args, unit)
    c = scratch + _C
    for i in range(start, stop):
        image, within, p, rows, a = pixels(args, i)
        for n in range(first, last):
            _block(a, stride, offsets, word(args, W.PACKED) + n * steps * 4096, c, steps, terms, rows)
            finish(args, c, image, within, p, rows, n * 32)


_UNIT_COST = 60_000
"""Cycles of a unit, about."""


def float_product_task(
    left: Left,
    packed: npt.NDArray[np.float32],
    terms: int,
    columns: int,
    offsets: npt.NDArray[np.int64],
    ending: Ending,
    *,
    threads: int = 1,
) -> Task:
    """The task of a product of floats.

    Args:
        left: the left operand, float32; up to 32 pixels beyond its last are read.
        packed: what `packed_floats` makes.
        terms: of a step.
        columns: N.
        offsets: i64 (steps,), bytes from a pixel's tap (0, 0) to what each step reads.
        ending: what becomes of the sums.
        threads: units are cut so that so many have something to do.
    """
    blocks, steps = packed.shape[:2]
    total = pixel_blocks(left)
    cost = steps * terms * (40 if geometry(left)[1] > 1 else 4) + 350
    aim = max(5_000, min(_UNIT_COST, total * blocks * cost // (4 * threads)))
    group = max(1, min(blocks, aim // cost))
    chunk = max(1, min(total, aim // (cost * group)))
    table = offsets, steps, packed, terms, blocks
    what = words(left, ending, columns, table=table, cut=(chunk, group), widened=False, depth=0, pairs=np.empty(0, np.int64))
    return Task(float_product, what, -(-total // chunk) * -(-blocks // group), _C + 4096)


def packed_floats(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Weights (N, steps, terms) -> f32 (blocks, steps, 32, 32), zeros past the last column and term."""
    n, steps, terms = rows.shape
    blocks = -(-n // 32)
    out = aligned_array((blocks, steps, 32, 32))
    out[:] = 0
    for block in range(blocks):
        part = rows[block * 32 : block * 32 + 32]
        out[block, :, :terms, : len(part)] = part.transpose(1, 2, 0)
    return out
