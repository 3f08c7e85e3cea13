"""Pooling of channels-last float32 images: the largest or the mean of windows, and means over all pixels.

A unit is a row of windows. Of a window only the taps that lie in the image are read. Sums run over the taps in order, so a mean of
K taps has passed through K roundings; one over all P pixels through 64 + P / 64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._columns import COLUMNS, sums
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import word
from fp8np.kernels._program import Task, Word
from fp8np.kernels._vector import floats, load, load_n, maximum, select, store, store_n

__all__ = ["avg_pool_task", "global_mean_task", "max_pool_task"]

_ZERO, _NONE = np.float32(0), np.float32(-np.inf)


@native
def _larger(v: Any, m: Any) -> Any:
    # NaN if either is.
    return select(v == v, maximum(v, m), v)


@native
def _largest_of(x: int, row: int, step: int, rows: int, taps: int, y: int, channels: int) -> None:
    # y f32 (channels,) = the largest over `rows` x `taps` pixels from x on, `row` and `step` bytes apart.
    c = 0
    while c + 64 <= channels:
        m0 = m1 = m2 = m3 = floats(_NONE)
        for i in range(rows):
            p = x + i * row + 4 * c
            for _ in range(taps):
                m0 = _larger(load(p), m0)
                m1 = _larger(load(p + 64), m1)
                m2 = _larger(load(p + 128), m2)
                m3 = _larger(load(p + 192), m3)
                p += step
        store(y + 4 * c, m0)
        store(y + 4 * c + 64, m1)
        store(y + 4 * c + 128, m2)
        store(y + 4 * c + 192, m3)
        c += 64
    while c < channels:
        m0 = floats(_NONE)
        for i in range(rows):
            p = x + i * row + 4 * c
            for _ in range(taps):
                m0 = _larger(load_n(p, channels - c), m0)
                p += step
        store_n(y + 4 * c, m0, channels - c)
        c += 16


@native
def _mean_of(x: int, row: int, step: int, rows: int, taps: int, y: int, channels: int, divisor: Any) -> None:
    # The same for sums / divisor.
    d = floats(divisor)
    c = 0
    while c + 64 <= channels:
        m0 = m1 = m2 = m3 = floats(_ZERO)
        for i in range(rows):
            p = x + i * row + 4 * c
            for _ in range(taps):
                m0 = m0 + load(p)
                m1 = m1 + load(p + 64)
                m2 = m2 + load(p + 128)
                m3 = m3 + load(p + 192)
                p += step
        store(y + 4 * c, m0 / d)
        store(y + 4 * c + 64, m1 / d)
        store(y + 4 * c + 128, m2 / d)
        store(y + 4 * c + 192, m3 / d)
        c += 64
    while c < channels:
        m0 = floats(_ZERO)
        for i in range(rows):
            p = x + i * row + 4 * c
            for _ in range(taps):
                m0 = m0 + load_n(p, channels - c)
                p += step
        store_n(y + 4 * c, m0 / d, channels - c)
        c += 16


@native
def _from(start: int, dilation: int) -> int:
    # The first tap at or after pixel 0, of a window that starts at `start`.
    return 0 if start >= 0 else (dilation - 1 - start) // dilation


@native
def _to(start: int, dilation: int, size: int, kernel: int) -> int:
    # One past the last tap before pixel `size`; no less than 0.
    return max(min(kernel, (size - start + dilation - 1) // dilation), 0)


@entry
def pool(args: int, unit: int, scratch: int) -> None:
    # 0 x f32 (B, H, W, C), 1 y f32 (B, OH, OW, C), 2 H, 3 W, 4 C, 5 OH, 6 OW, then of the windows, for rows and columns:
    # 7, 8 kernel, 9, 10 stride, 11, 12 padding, 13, 14 dilation. 15: what becomes of the elements: 0 the largest, 1 the mean of those
    # in the image, 2 the mean with padding counted as zeros, 3 the sum / word 16.
    height, width, channels, across = word(args, 2), word(args, 3), word(args, 4), word(args, 6)
    kind, given = word(args, 15), word(args, 16)
    kernel_w, stride_w, padding_w, dilation_w = word(args, 8), word(args, 10), word(args, 12), word(args, 14)
    dilation_h = word(args, 13)
    image, oh = unit // word(args, 5), unit % word(args, 5)
    step = 4 * channels
    top = oh * word(args, 9) - word(args, 11)
    i0 = _from(top, dilation_h)
    rows = max(_to(top, dilation_h, height, word(args, 7)) - i0, 0)
    # Counted with padding: what hangs over the padding, because of ceil_mode, is not.
    tall = min(top + word(args, 7), height + word(args, 11)) - top
    start = word(args, 0) + (image * height + top + i0 * dilation_h) * width * step
    y = word(args, 1) + unit * across * step
    for ow in range(across):
        left = ow * stride_w - padding_w
        j0 = _from(left, dilation_w)
        taps = max(_to(left, dilation_w, width, kernel_w) - j0, 0)
        x = start + (left + j0 * dilation_w) * step
        if kind == 0:
            _largest_of(x, dilation_h * width * step, dilation_w * step, rows, taps, y, channels)
        else:
            count = given
            if kind == 1:
                count = rows * taps
            elif kind == 2:
                count = tall * (min(left + kernel_w, width + padding_w) - left)
            _mean_of(x, width * step, step, rows, taps, y, channels, np.float32(count))
        y += step


Pair = tuple[int, int]


def _pool_task(
    x: Word,
    y: Word,
    shape: tuple[int, int, int, int],
    out: Pair,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    kind: int,
    given: int,
) -> Task:
    images, height, width, channels = shape
    words = (x, y, height, width, channels, *out, *kernel, *stride, *padding, *dilation, kind, given)
    return Task(pool, words, images * out[0] if channels else 0)


def max_pool_task(
    x: Word,
    y: Word,
    shape: tuple[int, int, int, int],
    out: Pair,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Task:
    """y = the largest element of each window; NaN if one is.

    Args:
        x: float32 (B, H, W, C), channels last.
        y: float32 (B, OH, OW, C).
        shape: B, H, W, C.
        out: OH, OW, as the shape rule of the layer gives them, with ceil_mode or without.
        kernel: of a window, rows and columns.
        stride: likewise.
        padding: likewise, on each side.
        dilation: likewise.
    """
    return _pool_task(x, y, shape, out, kernel, stride, padding, dilation, 0, 0)


def avg_pool_task(
    x: Word,
    y: Word,
    shape: tuple[int, int, int, int],
    out: Pair,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Task:
    """y = the sum of each window / the number of its elements, padding counted or not, or / divisor_override.

    Arguments as of `max_pool_task`.
    """
    kind = 3 if divisor_override is not None else 2 if count_include_pad else 1
    return _pool_task(x, y, shape, out, kernel, stride, padding, (1, 1), kind, divisor_override or 0)


@entry
def mean_of_pixels(args: int, unit: int, scratch: int) -> None:
    # 0 x f32 (B, P, C), 1 y f32 (B, C), 2 P, 3 C, 4 units an image. Scratch: f32 (64,).
    pixels, channels, across = word(args, 2), word(args, 3), word(args, 4)
    image, c = unit // across, unit % across * COLUMNS
    count = min(channels - c, COLUMNS)
    sums(word(args, 0) + 4 * (image * pixels * channels + c), 4 * channels, pixels, count, scratch)
    for i in range(0, count, 16):
        store_n(word(args, 1) + 4 * (image * channels + c + i), load(scratch + 4 * i) / floats(np.float32(pixels)), count - i)


def global_mean_task(x: Word, y: Word, shape: tuple[int, int, int]) -> Task:
    """y = the mean over all pixels.

    Args:
        x: float32 (B, H W, C), channels last.
        y: float32 (B, C).
        shape: B, H W, C.
    """
    images, pixels, channels = shape
    across = -(-channels // COLUMNS)
    return Task(mean_of_pixels, (x, y, pixels, channels, max(across, 1)), images * across, 4 * COLUMNS)
