"""product: y = act((sum over k of a * w) * a_scale * w_scale + bias + residual), blocks of 32 pixels by 32 columns.

A matrix product and a convolution are the same here: a is a widened image (see `fp8np.kernels._grid`), and each step of K reads 32
channels at a fixed distance from the output pixel, its tap..
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp8np.kernels import _words as W
from fp8np.kernels._ending import Ending, Left, finish, geometry, words
from fp8np.kernels._engine import COLUMNS, DEPTH, ELEMENT, STEP, begin, block, end, widen_slab
from fp8np.kernels._jit import entry
from fp8np.kernels._native import word
from fp8np.kernels._program import Task

__all__ = ["Packed", "product_task"]

_SLAB = 256
"""Where the slab starts in scratch: before it lie the configuration of tiles and spare lines."""
_C = _SLAB + 2 * DEPTH * STEP * COLUMNS * ELEMENT
"""Where the sums start."""


@dataclass(frozen=True)
class Packed:
    """A right operand in the engine's order.

    Attributes:
        codes: u8 (blocks, steps, 1024); or widened already, u8 (..., blocks, steps, 1024 * ELEMENT).
        tables: of the codes' format.
        columns: N.
        widened: whether `codes` are.
        part: as that of `Left`.
    """

    codes: npt.NDArray[np.uint8]
    tables: npt.NDArray[np.uint8]
    columns: int
    widened: bool = False
    part: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of 32 columns."""
        return int(self.codes.shape[-3])


@entry
def product(args: int, unit: int, scratch: int) -> None:
    """A unit is CHUNK blocks of 32 pixels by GROUP blocks of 32 columns; words as named above."""
    steps, blocks, chunk, group = word(args, W.STEPS), word(args, W.BLOCKS), word(args, W.CHUNK), word(args, W.GROUP)
    segments, count, depth = word(args, W.SEGMENTS), word(args, W.COUNT), word(args, W.DEPTH)
    flags, offsets, stride = word(args, W.FLAGS), word(args, W.OFFSETS), word(args, W.A + 3)
    pairs, terms = word(args, W.PAIRS), word(args, W.TERMS)
    groups = (blocks + group - 1) // group
    first_block = (unit % groups) * group
    per_segment = (count + 31) // 32
    total = word(args, W.IMAGES) * segments * per_segment
    start = (unit // groups) * chunk
    stop = min(start + chunk, total)
    size = 1024 * ELEMENT if flags & W.WIDENED else 1024
    waits = 0 if depth >= steps else 4096
    slab = scratch + _SLAB
    begin(scratch)
    for n in range(first_block, min(first_block + group, blocks)):
        packed = word(args, W.PACKED) + n * steps * size
        own = 0
        if flags & W.GROUPED:
            own = n // DEPTH * word(args, W.A_PANEL) + n % DEPTH * STEP * ELEMENT
        s = 0
        while s < steps:
            deep = min(depth, steps - s)
            if flags & W.WIDENED:
                slab = packed + s * size
            else:
                widen_slab(packed + s * size, word(args, W.TABLES), slab, deep)
            last = s + deep >= steps
            for i in range(start, stop):
                segment = i // per_segment
                p = (i - segment * per_segment) * 32
                image = segment // segments
                within = segment - image * segments
                rows = min(32, count - p)
                a = own + word(args, W.A) + image * word(args, W.A + 1) + within * word(args, W.A + 2) + p * stride
                c = scratch + _C + (i - start) * waits
                for t in range(terms):
                    left, right = word(pairs, 2 * t), word(pairs, 2 * t + 1)
                    block(a + left, stride, offsets + 8 * s, slab + right, c, deep, s == 0 and t == 0, rows)
                if last:
                    finish(args, c, image, within, p, rows, n * 32)
            s += deep
    end()


# Cycles of a step of a block, of widening a step, and of the end of a block, by element size: what units are cut by.
_STEP_COST, _WIDEN_COST, _END_COST = (64, 100, 350) if ELEMENT == 2 else (600, 400, 700)
_UNIT_COST = 150_000
"""Cycles of a unit, about: 50 microseconds."""
_TALL = 64
"""Blocks of a unit, at most, where sums wait in scratch for the next slab: 256 KiB."""


def _cut(total: int, blocks: int, steps: int, threads: int) -> tuple[int, int]:
    # (blocks of pixels, blocks of columns) of a unit.
    whole = total * blocks * (steps * _STEP_COST + _END_COST)
    aim = max(min(_UNIT_COST, whole // (4 * threads)), 10_000)
    column = steps * _WIDEN_COST + min(total, _TALL) * (steps * _STEP_COST + _END_COST)
    chunk = min(total, _TALL)
    if column > aim:
        # As even as possible, and no fewer than 8 blocks for each widening.
        parts = max(1, min(-(-column // aim), chunk // 8))
        chunk = -(-chunk // parts)
    one = steps * _WIDEN_COST + chunk * (steps * _STEP_COST + _END_COST)
    return chunk, max(1, min(blocks, aim // one))


def product_task(left: Left, packed: Packed, offsets: npt.NDArray[np.int64], ending: Ending, *, threads: int = 1, panel: int | None = None) -> Task:
    """The task of a product.

    Args:
        left: the left operand.
        packed: the right operand (K, N).
        offsets: i64 (steps,), bytes from a pixel's tap (0, 0) to what each step reads.
        ending: what becomes of the sums.
        threads: units are cut so that so many have something to do.
        panel: None; or bytes from a panel of the left operand to the next, where each block of columns reads its own step of 32
            channels alone (a convolution in groups).
    """
    blocks, steps = packed.blocks, packed.codes.shape[-2]
    segments, count, _ = geometry(left)
    total = left.images * segments * -(-count // 32)
    # Of three parts by three, those beyond the last bit of a float32 are left out.
    pairs = np.array(
        [(i * left.part, j * packed.part) for i in range(3 if left.part else 1) for j in range(3 if packed.part else 1) if i + j < 3],
        np.int64,
    )
    chunk, group = _cut(total, blocks, steps * len(pairs), threads)
    depth = steps if steps <= 2 * DEPTH or (packed.widened and total == 1) else DEPTH
    table = offsets, steps, packed.codes, packed.tables, blocks
    what = words(left, ending, packed.columns, table=table, cut=(chunk, group), widened=packed.widened, depth=depth, pairs=pairs, panel=panel)
    return Task(product, what, -(-total // chunk) * -(-blocks // group), _C + (4096 if depth >= steps else chunk * 4096))
