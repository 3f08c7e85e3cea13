"""product: y = act((sum over k of a * w) * a_scale * w_scale + bias + residual), blocks of 32 pixels by 32 columns.

A matrix product and a convolution are the same here: a is a widened image (see `fp8np.kernels._grid`), and each step of K reads 32
channels at a fixed distance from the output pixel, its tap..
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels import _words as W
from fp8np.kernels._ending import Ending, Left, finish, geometry, pixel_blocks, pixels, share, words
from fp8np.kernels._engine import DEPTH, ELEMENT, STEP, THIN, begin, block, end, streamed, thin_block, widen_slab
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import word
from fp8np.kernels._program import Task, Word

__all__ = ["SLAB", "Packed", "Placed", "deep_cut", "own_channels", "product_task"]

SLAB = 256
"""Where the slab starts in scratch: before it lie the configuration of tiles and spare lines."""


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

    @property
    def steps(self) -> int:
        """Steps of 32 terms."""
        return int(self.codes.shape[-2])


@dataclass(frozen=True)
class Placed:
    """A widened right operand that an earlier task of the program has packed, at an address; attributes as those of `Packed`."""

    codes: Word
    blocks: int
    steps: int
    columns: int
    part: int = 0
    widened: bool = True
    tables: Word = 0


@entry
def product(args: int, unit: int, scratch: int) -> None:
    """A unit is CHUNK blocks of 32 pixels by GROUP blocks of 32 columns; words as named in `fp8np.kernels._words`."""
    if word(args, W.FLAGS) & W.THIN:
        _thin(args, unit, scratch)
    elif word(args, W.DEPTH) >= word(args, W.STEPS):
        _shallow(args, unit, scratch)
    else:
        _deep(args, unit, scratch)


@native
def own_channels(args: int, n: int) -> Any:
    """Where a column block of a convolution in groups finds its channels."""
    if word(args, W.FLAGS) & W.GROUPED:
        return n // DEPTH * word(args, W.A_PANEL) + n % DEPTH * STEP * ELEMENT
    return 0


@native
def _thin(args: int, unit: int, scratch: int) -> None:
    # One to four rows: codes are widened in registers and meet the rows there.
    steps, blocks, group, rows = word(args, W.STEPS), word(args, W.BLOCKS), word(args, W.GROUP), word(args, W.COUNT)
    c = scratch + word(args, W.SUMS)
    a, stride, offsets, tables = word(args, W.A), word(args, W.A + 3), word(args, W.OFFSETS), word(args, W.TABLES)
    for n in range(unit * group, min((unit + 1) * group, blocks)):
        thin_block(a, stride, offsets, word(args, W.PACKED) + n * steps * 1024, tables, c, steps, rows)
        finish(args, c, 0, 0, 0, rows, n * 32)


@native
def _shallow(args: int, unit: int, scratch: int) -> None:
    # Few steps: the slabs of all columns of the unit stay in the cache, and each pixel's results are written side by side.
    steps, flags, offsets, stride = word(args, W.STEPS), word(args, W.FLAGS), word(args, W.OFFSETS), word(args, W.A + 3)
    pairs, terms = word(args, W.PAIRS), word(args, W.TERMS)
    first, last, start, stop = share(args, unit)
    slabs = scratch + SLAB
    size = steps * 1024 * ELEMENT
    begin(scratch)
    if flags & W.WIDENED:
        slabs = word(args, W.PACKED) + first * size
    else:
        widen_slab(word(args, W.PACKED) + first * steps * 1024, word(args, W.TABLES), slabs, (last - first) * steps)
    c = scratch + word(args, W.SUMS)
    for i in range(start, stop):
        image, within, p, rows, a = pixels(args, i)
        for n in range(first, last):
            slab = slabs + (n - first) * size
            for t in range(terms):
                left, right = word(pairs, 2 * t), word(pairs, 2 * t + 1)
                block(a + own_channels(args, n) + left, stride, offsets, slab + right, c, steps, t == 0, rows)
            finish(args, c, image, within, p, rows, n * 32)
    end()


@native
def _deep(args: int, unit: int, scratch: int) -> None:
    # Many steps, taken a slab at a time: the slab stays in the first-level cache while the pixels of the unit pass by, their panel of
    # channels in the second level while the columns do. Sums wait there, too.
    steps, chunk, depth = word(args, W.STEPS), word(args, W.CHUNK), word(args, W.DEPTH)
    flags, offsets, stride = word(args, W.FLAGS), word(args, W.OFFSETS), word(args, W.A + 3)
    pairs, terms = word(args, W.PAIRS), word(args, W.TERMS)
    first, last, start, stop = share(args, unit)
    size = 1024 * ELEMENT if flags & W.WIDENED else 1024
    slab = scratch + SLAB
    sums = scratch + word(args, W.SUMS)
    begin(scratch)
    for s in range(0, steps, depth):
        deep = min(depth, steps - s)
        for n in range(first, last):
            packed = word(args, W.PACKED) + (n * steps + s) * size
            if flags & W.WIDENED:
                slab = packed
            else:
                widen_slab(packed, word(args, W.TABLES), slab, deep)
            own = own_channels(args, n)
            c = sums + (n - first) * chunk * 4096
            for i in range(start, stop):
                image, within, p, rows, a = pixels(args, i)
                for t in range(terms):
                    left, right = word(pairs, 2 * t), word(pairs, 2 * t + 1)
                    streamed(a + own + left, stride, offsets + 8 * s, slab + right, c, deep, s == 0 and t == 0, rows)
                if s + deep >= steps:
                    finish(args, c, image, within, p, rows, n * 32)
                c += 4096
    end()


# Cycles of a step of a block, of widening a step, and of the end of a block, by element size: what units are cut by.
_STEP_COST, _WIDEN_COST, _END_COST = (64, 100, 350) if ELEMENT == 2 else (600, 400, 700)
_UNIT_COST = 150_000
"""Cycles of a unit, about: 50 microseconds."""
_TALL = 16
"""Blocks of pixels of a unit of many steps, at most: a panel of them is 560 kB of bfloat16."""
_WAITING = 128
"""Sums of such a unit, in blocks, at most: 512 KiB. With the panel they leave room in a second-level cache of 2 MiB.

2048 cubed on one thread, in GFLOP/s: 16 by 8 blocks 873; 24 by 8 833; 32 by 8 797; 32 by 4 754; slabs of 8 steps 440, with loads that keep
a in the first level. All steps of one column block after the other, so that few sums wait: 200, since each takes all of the panels
from further away."""

_SHALLOW = 16
"""Steps up to which columns share a unit."""
_SLABS = 1 << 17
"""Bytes of slabs of a unit, about."""


def _cut(total: int, blocks: int, steps: int, terms: int, threads: int) -> tuple[int, int, int]:
    """Of a unit: blocks of pixels, blocks of columns, and the steps of a slab."""
    cost = steps * terms * _STEP_COST + _END_COST
    aim = max(min(_UNIT_COST, total * blocks * cost // (4 * threads)), 10_000)
    if steps <= _SHALLOW:
        group = min(blocks, max(1, _SLABS // (steps * 1024 * ELEMENT)))
        if total * group * cost < aim:
            return total, group, steps
        chunk = max(1, min(total, aim // (group * cost)))
        # At least as much work for each column as widening it is.
        least = min(total, -(-2 * steps * _WIDEN_COST // cost))
        if chunk < least:
            chunk = least
            group = max(1, min(group, aim // (chunk * cost)))
        return chunk, group, steps
    return *deep_cut(total, blocks, threads), DEPTH


def deep_cut(total: int, blocks: int, threads: int) -> tuple[int, int]:
    """Of a unit whose sums wait: blocks of pixels, blocks of columns."""
    chunk = min(total, _TALL)
    group = min(blocks, _WAITING // chunk)
    # Fewer columns, then fewer pixels, until every thread has some units; widening wants 8 blocks of pixels.
    while group > 2 and -(-total // chunk) * -(-blocks // group) < 4 * threads:
        group = -(-group // 2)
    while chunk > 8 and -(-total // chunk) * -(-blocks // group) < 4 * threads:
        chunk = -(-chunk // 2)
    return chunk, group


def product_task(
    left: Left, packed: Packed | Placed, offsets: npt.NDArray[np.int64], ending: Ending, *, threads: int = 1, panel: int | None = None
) -> Task:
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
    blocks, steps = packed.blocks, packed.steps
    segments, count, _ = geometry(left)
    total = pixel_blocks(left)
    # Of three parts by three, those beyond the last bit of a float32 are left out.
    pairs = np.array(
        [(i * left.part, j * packed.part) for i in range(3 if left.part else 1) for j in range(3 if packed.part else 1) if i + j < 3],
        np.int64,
    )
    thin = left.images * segments == 1 and count <= THIN and not packed.widened and len(pairs) == 1 and panel is None
    if thin:
        chunk, group, depth = 1, max(1, min(-(-blocks // (4 * threads)), _UNIT_COST // (steps * _WIDEN_COST))), steps
    else:
        chunk, group, depth = _cut(total, blocks, steps, len(pairs), threads)
    table = offsets, steps, packed.codes, packed.tables, blocks
    slabs = 0 if packed.widened or thin else min(depth, steps) * 1024 * ELEMENT * (group if depth >= steps else 1)
    sums = SLAB + slabs
    what = words(
        left,
        ending,
        packed.columns,
        table=table,
        cut=(chunk, group),
        widened=packed.widened,
        depth=depth,
        pairs=pairs,
        panel=panel,
        thin=thin,
    )
    return Task(product, (*what, sums), -(-total // chunk) * -(-blocks // group), sums + (1 if depth >= steps else chunk * group) * 4096)
