"""depthwise: y[pixel, c] = act((sum over taps of a[pixel + tap, c] * w[tap, c]) * a_scale * w_scale + bias + residual).

Each channel meets one filter of its own, so there is nothing for tiles to do: sixteen channels are a vector, four neighbouring
pixels by 32 channels eight sums in registers. The rest is as in `fp8np.kernels.product`, words and ending included; the packed
operand is f32 (blocks, taps, 32).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp8np.kernels import _words as W
from fp8np.kernels._ending import Ending, Left, finish, pixel_blocks, pixels, share, words
from fp8np.kernels._engine import DEPTH, ELEMENT, STEP
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import word
from fp8np.kernels._program import Task
from fp8np.kernels._vector import floats, fma, load, load_bf16, store

__all__ = ["depthwise_task"]

_C = 256

load_widened = load_bf16 if ELEMENT == 2 else load


@native
def _taps(a: int, stride: int, offsets: int, w: int, c: int, taps: int) -> None:
    # Four pixels by 32 channels; c: where the sums of the first go in two tiles side by side.
    zero = floats(np.float32(0))
    s00, s01, s10, s11, s20, s21, s30, s31 = zero, zero, zero, zero, zero, zero, zero, zero
    half = 16 * ELEMENT
    for t in range(taps):
        p = a + word(offsets, t)
        w0 = load(w + 128 * t)
        w1 = load(w + 128 * t + 64)
        s00 = fma(load_widened(p), w0, s00)
        s01 = fma(load_widened(p + half), w1, s01)
        p += stride
        s10 = fma(load_widened(p), w0, s10)
        s11 = fma(load_widened(p + half), w1, s11)
        p += stride
        s20 = fma(load_widened(p), w0, s20)
        s21 = fma(load_widened(p + half), w1, s21)
        p += stride
        s30 = fma(load_widened(p), w0, s30)
        s31 = fma(load_widened(p + half), w1, s31)
    store(c, s00)
    store(c + 64, s10)
    store(c + 128, s20)
    store(c + 192, s30)
    store(c + 1024, s01)
    store(c + 1088, s11)
    store(c + 1152, s21)
    store(c + 1216, s31)


@entry
def depthwise(args: int, unit: int, scratch: int) -> None:
    """The word of the tables is the bytes of a panel of a."""
    taps, offsets, stride, panel = word(args, W.STEPS), word(args, W.OFFSETS), word(args, W.A + 3), word(args, W.TABLES)
    first, last, start, stop = share(args, unit)
    c = scratch + _C
    # Pixels outside, channels inside: what a pixel reads lies together.
    for i in range(start, stop):
        image, within, p, rows, a = pixels(args, i)
        for n in range(first, last):
            w = word(args, W.PACKED) + n * taps * 128
            left = a + n // DEPTH * panel + n % DEPTH * STEP * ELEMENT
            for r in range(0, rows, 4):
                _taps(left + r * stride, stride, offsets, w, c + (r // 16) * 2048 + (r % 16) * 64, taps)
            finish(args, c, image, within, p, rows, n * 32)


_UNIT_COST = 60_000
"""Cycles of a unit, about."""


def depthwise_task(
    left: Left,
    filters: npt.NDArray[np.float32],
    channels: int,
    panel: int,
    offsets: npt.NDArray[np.int64],
    ending: Ending,
    *,
    threads: int = 1,
) -> Task:
    """The task of a depthwise convolution.

    Args:
        left: its input.
        filters: f32 (blocks, taps, 32), zeros past the last channel.
        channels: C.
        panel: bytes from a panel of the input to the next.
        offsets: i64 (taps,), bytes from a pixel's tap (0, 0) to each.
        ending: what becomes of the sums.
        threads: units are cut so that so many have something to do.
    """
    blocks, taps = filters.shape[:2]
    total = pixel_blocks(left)
    cost = 40 * taps + 350
    group = min(blocks, DEPTH)
    aim = max(5_000, min(_UNIT_COST, total * blocks * cost // (4 * threads)))
    chunk = max(1, min(total, aim // (cost * group)))
    table = offsets, taps, filters, panel, blocks
    what = words(left, ending, channels, table=table, cut=(chunk, group), widened=False, depth=0, pairs=np.empty(0, np.int64))
    return Task(depthwise, what, -(-total // chunk) * -(-blocks // group), _C + 4096)
