"""integer_product: sums of products of integers in 32 bits, by the engine that multiplies FP8.

A code without its zero point is an integer of magnitude 255 at most, a weight one of 127: bfloat16 holds both. Products of them, and sums
of products below 2^24, are exact in float32, in any order and on every tier. So the engine sums up a few steps of K at a time, and
int32 what it gives::

    x - zero   widened integers          |  engine: a slab of K, |  int32:   |  ending: rounded to float32,
    weight     int8, sign and magnitude  |  exact below 2^24     |  exact    |  scales, bias, ...

A product none of whose sums can reach 2^24 needs no int32, and is `fp8np.kernels.product`'s.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp8np.kernels import _words as W
from fp8np.kernels._ending import Ending, Left, finish, geometry, pixel_blocks, pixels, share, words
from fp8np.kernels._engine import DEPTH, ELEMENT, STEP, THIN, begin, end, streamed, thin_block, widen_slab
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import word
from fp8np.kernels._program import Task
from fp8np.kernels._vector import as_float, as_int, from_int, load, store, to_int
from fp8np.kernels.product import SLAB, Packed, Placed, deep_cut, own_channels, product_task

__all__ = ["EXACT", "INT32_SUMS", "integer_product_task"]

EXACT = 1 << 24
"""float32 holds every integer up to this."""
INT32_SUMS = 1 << 31
"""int32 holds every integer below this."""


@native
def _add(part: int, c: int, rows: int, first: int, last: int) -> None:
    # int32 c (+)= float32 part, of 32 columns; in the end as float32 again.
    for r in range(rows):
        for half in range(0, 2048, 1024):
            place = (r // 16) * 2048 + (r % 16) * 64 + half
            v = to_int(load(part + place))
            if first == 0:
                v = v + as_int(load(c + place))
            if last:
                store(c + place, from_int(v))
            else:
                store(c + place, as_float(v))


@entry
def integer_product(args: int, unit: int, scratch: int) -> None:
    """A unit is CHUNK blocks of 32 pixels by GROUP blocks of 32 columns; words as those of `product`."""
    steps, chunk, depth = word(args, W.STEPS), word(args, W.CHUNK), word(args, W.DEPTH)
    flags, offsets, stride, tables = word(args, W.FLAGS), word(args, W.OFFSETS), word(args, W.A + 3), word(args, W.TABLES)
    first, last, start, stop = share(args, unit)
    size = 1024 * ELEMENT if flags & W.WIDENED else 1024
    slab = scratch + SLAB
    sums = scratch + word(args, W.SUMS)
    part = sums - 4096
    begin(scratch)
    for s in range(0, steps, depth):
        deep = min(depth, steps - s)
        for n in range(first, last):
            packed = word(args, W.PACKED) + (n * steps + s) * size
            if flags & W.WIDENED:
                slab = packed
            elif not flags & W.THIN:
                widen_slab(packed, tables, slab, deep)
            own = own_channels(args, n)
            c = sums + (n - first) * chunk * 4096
            for i in range(start, stop):
                image, within, p, rows, a = pixels(args, i)
                if flags & W.THIN:
                    thin_block(a, stride, offsets + 8 * s, packed, tables, part, deep, rows)
                else:
                    streamed(a + own, stride, offsets + 8 * s, slab, part, deep, deep > 0, rows)
                _add(part, c, rows, s == 0, s + deep >= steps)
                if s + deep >= steps:
                    finish(args, c, image, within, p, rows, n * 32)
                c += 4096
    end()


_PAIRS = np.zeros(2, np.int64)


def integer_product_task(
    left: Left,
    packed: Packed | Placed,
    offsets: npt.NDArray[np.int64],
    ending: Ending,
    *,
    product: int,
    bound: int,
    threads: int = 1,
    panel: int | None = None,
) -> Task:
    """The task of a product of integers.

    Args:
        left: the left operand, widened integers.
        packed: the right one.
        offsets: i64 (steps,), bytes from a pixel's tap (0, 0) to what each step reads.
        ending: what becomes of the sums.
        threads: units are cut so that so many have something to do.
        panel: as that of `fp8np.kernels.product.product_task`.
        product: the largest magnitude of a product of two elements.
        bound: the largest that a sum can have, below INT32_SUMS.
    """
    if bound < EXACT:
        return product_task(left, packed, offsets, ending, threads=threads, panel=panel)
    # 512 products of activation and weight, 256 of two activations.
    depth = min(DEPTH, EXACT // (product * STEP))
    blocks, steps = packed.blocks, packed.steps
    segments, count, _ = geometry(left)
    total = pixel_blocks(left)
    thin = left.images * segments == 1 and count <= THIN and not packed.widened and panel is None
    chunk, group = deep_cut(total, blocks, threads)
    sums = SLAB + (0 if packed.widened or thin else depth * 1024 * ELEMENT) + 4096
    what = words(
        left,
        ending,
        packed.columns,
        table=(offsets, steps, packed.codes, packed.tables, blocks),
        cut=(chunk, group),
        widened=packed.widened,
        depth=depth,
        pairs=_PAIRS,
        panel=panel,
        thin=thin,
    )
    return Task(integer_product, (*what, sums), -(-total // chunk) * -(-blocks // group), sums + chunk * group * 4096)
