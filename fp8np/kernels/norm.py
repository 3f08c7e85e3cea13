"""Normalisations of float32: rows (layer, rms), channels of channels-last images (group), and what is left of batch_norm.

Mean and variance take two passes over data that is by then in the nearest cache. Sums have a fixed order: 64 partial sums, column
i of each 64 to the i-th, then those in a tree. So a sum of N terms has passed through N / 64 + 6 roundings, and

    |y - exact| <= (N / 64 + 12) 2^-24 (|y| + |weight| |mean| / sigma)    to first order

where the last part is that of any computation in float32: of subtracting a rounded mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._columns import COLUMNS, sums, sums_of_squares
from fp8np.kernels._jit import entry, native
from fp8np.kernels._lanes import first, sqrt
from fp8np.kernels._native import float_at, put_float, word
from fp8np.kernels._program import Task, Word, float_word
from fp8np.kernels._vector import floats, fma, load, load_n, maximum, minimum, select, store, store_n, total
from fp8np.kernels.pointwise import UNIT

__all__ = ["batch_norm_task", "group_norm_task", "layer_norm_task", "rms_norm_task"]

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_INF = float("inf")


# -- rows -------------------------------------------------------------------------------------------------------------


@native
def _added(x: int, r: int, t: int, n: int) -> None:
    # t (n,) = x + r.
    whole = n & -16
    for i in range(0, 4 * whole, 64):
        store(t + i, load(x + i) + load(r + i))
    if whole < n:
        store_n(t + 4 * whole, load_n(x + 4 * whole, n - whole) + load_n(r + 4 * whole, n - whole), n - whole)


@native
def _sum(x: int, n: int) -> Any:
    a = b = c = d = floats(_ZERO)
    i = 0
    while i + 64 <= n:
        p = x + 4 * i
        a = a + load(p)
        b = b + load(p + 64)
        c = c + load(p + 128)
        d = d + load(p + 192)
        i += 64
    while i + 16 <= n:
        a = a + load(x + 4 * i)
        i += 16
    if i < n:
        b = b + load_n(x + 4 * i, n - i)
    return total((a + b) + (c + d))


@native
def _squares(x: int, n: int, centre: Any) -> Any:
    # The sum of (x - centre)^2.
    a = b = c = d = floats(_ZERO)
    i = 0
    while i + 64 <= n:
        p = x + 4 * i
        v = load(p) - centre
        a = fma(v, v, a)
        v = load(p + 64) - centre
        b = fma(v, v, b)
        v = load(p + 128) - centre
        c = fma(v, v, c)
        v = load(p + 192) - centre
        d = fma(v, v, d)
        i += 64
    while i + 16 <= n:
        v = load(x + 4 * i) - centre
        a = fma(v, v, a)
        i += 16
    if i < n:
        v = select(first(n - i), load_n(x + 4 * i, n - i) - centre, floats(_ZERO))
        b = fma(v, v, b)
    return total((a + b) + (c + d))


@entry
def rows_normed(args: int, unit: int, scratch: int) -> None:
    # 0 x f32 (R, N), 1 residual f32 (R, N) or 0, 2 y f32 (R, N), 3 where x + residual goes, f32 (R, N), 4 weight f32 (N,),
    # 5 bias f32 (N,), 6 R, 7 N, 8 eps, 9 rows a unit, 10 whether the mean is subtracted.
    n, rows, centred = word(args, 7), word(args, 9), word(args, 10)
    weight, bias, eps = word(args, 4), word(args, 5), float_at(args + 64)
    residual = word(args, 1)
    whole = n & -16
    row = unit * rows
    stop = min(row + rows, word(args, 6))
    while row < stop:
        at = 4 * row * n
        t = word(args, 0) + at
        y = word(args, 2) + at
        if residual != 0:
            _added(t, residual + at, word(args, 3) + at, n)
            t = word(args, 3) + at
        mean = floats(_sum(t, n) / _F(n)) if centred else floats(_ZERO)
        scale = floats(_ONE) / sqrt(floats(_squares(t, n, mean) / _F(n) + eps))
        for i in range(0, 4 * whole, 64):
            store(y + i, fma((load(t + i) - mean) * scale, load(weight + i), load(bias + i)))
        if whole < n:
            i = 4 * whole
            left = n - whole
            store_n(y + i, fma((load_n(t + i, left) - mean) * scale, load_n(weight + i, left), load_n(bias + i, left)), left)
        row += 1


def _rows_task(
    x: Word, y: Word, shape: tuple[int, int], weight: Word | None, bias: Word | None, eps: float, residual: Word | None, total: Word | None
) -> Task:
    rows, n = shape
    unit = max(UNIT // max(n, 1), 1)
    words = (
        x,
        0 if residual is None else residual,
        y,
        y if total is None else total,
        np.ones(n, _F) if weight is None else weight,
        np.zeros(n, _F) if bias is None else bias,
    )
    return Task(rows_normed, (*words, rows, n, float_word(eps), unit, 1), -(-rows // unit) if n else 0)


def layer_norm_task(
    x: Word,
    y: Word,
    shape: tuple[int, int],
    *,
    eps: float,
    weight: Word | None = None,
    bias: Word | None = None,
    residual: Word | None = None,
    total: Word | None = None,
) -> Task:
    """y = (t - mean(t)) / sqrt(var(t) + eps) * weight + bias over the last axis, t = x + residual.

    Args:
        x: float32 (R, N).
        y: float32 (R, N); may be x or residual.
        shape: R, N.
        eps: added to the variance.
        weight: float32 (N,).
        bias: float32 (N,).
        residual: float32 (R, N).
        total: float32 (R, N), where t is to be kept; may be x or residual.
    """
    return _rows_task(x, y, shape, weight, bias, eps, residual, total)


def rms_norm_task(
    x: Word,
    y: Word,
    shape: tuple[int, int],
    *,
    eps: float,
    weight: Word | None = None,
    residual: Word | None = None,
    total: Word | None = None,
) -> Task:
    """y = t / sqrt(mean(t^2) + eps) * weight over the last axis, t = x + residual; arguments as of `layer_norm_task`."""
    task = _rows_task(x, y, shape, weight, None, eps, residual, total)
    return Task(task.entry, (*task.words[:-1], 0), task.units)


# -- channels ---------------------------------------------------------------------------------------------------------


@entry
def affine(args: int, unit: int, scratch: int) -> None:
    # 0 x f32, 1 scale f32, 2 shift f32, 3 y f32 (R, I, N), 4 R I, 5 I, 6 N; of scale and shift: 7 bytes from one of I to the next,
    # 8 whether they have N values. 9 rows a unit, 10 lo, 11 hi.
    inner, n, step, along, rows = word(args, 5), word(args, 6), word(args, 7), word(args, 8), word(args, 9)
    lo, hi = floats(float_at(args + 80)), floats(float_at(args + 88))
    whole = n & -16
    left = n - whole
    row = unit * rows
    stop = min(row + rows, word(args, 4))
    while row < stop:
        x = word(args, 0) + 4 * row * n
        y = word(args, 3) + 4 * row * n
        scale = word(args, 1) + row % inner * step
        shift = word(args, 2) + row % inner * step
        i = 4 * whole
        if along:
            for j in range(0, 4 * whole, 64):
                store(y + j, minimum(hi, maximum(lo, fma(load(x + j), load(scale + j), load(shift + j)))))
            if left:
                v = fma(load_n(x + i, left), load_n(scale + i, left), load_n(shift + i, left))
                store_n(y + i, minimum(hi, maximum(lo, v)), left)
        else:
            a, b = floats(float_at(scale)), floats(float_at(shift))
            for j in range(0, 4 * whole, 64):
                store(y + j, minimum(hi, maximum(lo, fma(load(x + j), a, b))))
            if left:
                store_n(y + i, minimum(hi, maximum(lo, fma(load_n(x + i, left), a, b))), left)
        row += 1


def batch_norm_task(
    x: Word,
    scale: Word,
    shift: Word,
    y: Word,
    shape: tuple[int, int, int],
    *,
    channels_last: bool,
    lo: float = -_INF,
    hi: float = _INF,
) -> Task:
    """y = min(max(x * scale + shift, lo), hi), scale and shift per channel.

    Args:
        x: float32 (B, H W, C), or (B, C, H W) without `channels_last`.
        scale: float32 (C,).
        shift: float32 (C,).
        y: as x, which it may be.
        shape: of x.
        channels_last: whether channels are the last axis.
        lo: the smallest y.
        hi: the largest y.
    """
    outer, inner, n = shape
    rows = max(UNIT // max(n, 1), 1)
    step, along = (0, 1) if channels_last else (4, 0)
    words = (x, scale, shift, y, outer * inner, max(inner, 1), n, step, along, rows, float_word(lo), float_word(hi))
    return Task(affine, words, -(-outer * inner // rows) if n else 0)


@native
def _shared(values: int, channels: int, each: int, divisor: Any) -> None:
    # values f32 (channels,): in each group of `each` channels, their sum / divisor.
    c = 0
    while c < channels:
        s = _ZERO
        for i in range(each):
            s += float_at(values + 4 * (c + i))
        s /= divisor
        for i in range(each):
            put_float(values + 4 * (c + i), s)
        c += each


@entry
def groups_normed(args: int, unit: int, scratch: int) -> None:
    # 0 x f32 (B, P, C), 1 y f32 (B, P, C), 2 weight f32 (C,), 3 bias f32 (C,), 4 P, 5 C, 6 channels of a group, 7 channels of a unit,
    # whole groups, 8 units an image, 9 eps. Scratch: means and variances f32, channels of a unit + 64 each.
    pixels, channels, each, wide = word(args, 4), word(args, 5), word(args, 6), word(args, 7)
    image, c0 = unit // word(args, 8), unit % word(args, 8) * wide
    count = min(channels - c0, wide)
    step = 4 * channels
    at = image * pixels * step + 4 * c0
    x, y = word(args, 0) + at, word(args, 1) + at
    weight, bias = word(args, 2) + 4 * c0, word(args, 3) + 4 * c0
    mean = scratch
    scale = scratch + 4 * (wide + COLUMNS)
    terms = _F(each) * _F(pixels)
    eps = floats(float_at(args + 72))
    for c in range(0, count, COLUMNS):
        sums(x + 4 * c, step, pixels, min(count - c, COLUMNS), mean + 4 * c)
    _shared(mean, count, each, terms)
    for c in range(0, count, COLUMNS):
        sums_of_squares(x + 4 * c, step, pixels, min(count - c, COLUMNS), mean + 4 * c, scale + 4 * c)
    _shared(scale, count, each, terms)
    for c in range(0, count, 16):
        store(scale + 4 * c, load_n(weight + 4 * c, count - c) / sqrt(load(scale + 4 * c) + eps))
    for _ in range(pixels):
        for c in range(0, count, 16):
            v = load_n(x + 4 * c, count - c) - load(mean + 4 * c)
            store_n(y + 4 * c, fma(v, load(scale + 4 * c), load_n(bias + 4 * c, count - c)), count - c)
        x += step
        y += step


def group_norm_task(
    x: Word, y: Word, shape: tuple[int, int, int], groups: int, *, eps: float, weight: Word | None = None, bias: Word | None = None
) -> Task:
    """y = (x - mean) / sqrt(var + eps) * weight + bias; mean and var of each image and group of channels.

    Args:
        x: float32 (B, H W, C), channels last.
        y: float32 (B, H W, C); may be x.
        shape: B, H W, C.
        groups: their number, which divides C; C for instance_norm.
        eps: added to the variance.
        weight: float32 (C,).
        bias: float32 (C,).
    """
    images, pixels, channels = shape
    each = channels // groups
    wide = -(-COLUMNS // max(each, 1)) * each
    across = -(-channels // wide) if wide else 0
    parameters = (np.ones(channels, _F) if weight is None else weight, np.zeros(channels, _F) if bias is None else bias)
    words = (x, y, *parameters, pixels, channels, each, wide, max(across, 1), float_word(eps))
    return Task(groups_normed, words, images * across if pixels else 0, 8 * (wide + COLUMNS))
