"""widen: codes, or float32 rounded to a format, as widened activations (see `fp8np.kernels._grid`); and the scale of a dynamic one.

Sources are float32 or u8 (B, H, W, C) with their channels side by side, or float32 (B, C, H, W). What is written is whole steps of
channels, the last filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels._ending import View
from fp8np.kernels._engine import DEPTH, ELEMENT, STEP, widen_codes
from fp8np.kernels._grid import PARTS, on_grid, rounding_of, store_widened
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import float_at, put_float, word
from fp8np.kernels._program import Task, Word, float_word
from fp8np.kernels._vector import (
    absolute,
    as_float,
    as_int,
    floats,
    ints,
    largest,
    load,
    load_bf16,
    load_n,
    maximum,
    minimum,
    select,
    store_n,
)

__all__ = [
    "finite_top",
    "place_task",
    "quantize_planes_task",
    "quantize_task",
    "quantize_tokens_task",
    "scale_from",
    "scale_tasks",
    "split_task",
    "widen_task",
]

_DEEP = DEPTH * STEP
"""Channels of a panel."""
_WORK = 1 << 15
"""Elements of a unit, about."""

# Words: a view of the source, one of the target, then sizes.
_SOURCE, _TARGET = 0, 4
_H, _W, _C, _PIXELS, _CHUNK, _PANEL, _TABLES = 8, 9, 10, 11, 12, 13, 14
_ROUND = 14


@native
def _place(args: int, view: int, pixel: int) -> Any:
    # The address of a pixel, counted through all images.
    H, W = word(args, _H), word(args, _W)
    y = pixel // W
    b = y // H
    return word(args, view) + b * word(args, view + 1) + (y - b * H) * word(args, view + 2) + (pixel - y * W) * word(args, view + 3)


@entry
def widen(args: int, unit: int, scratch: int) -> None:
    """u8 (B, H, W, C) -> widened. A unit is CHUNK pixels."""
    C, chunk, tables, panel = word(args, _C), word(args, _CHUNK), word(args, _TABLES), word(args, _PANEL)
    for pixel in range(unit * chunk, min((unit + 1) * chunk, word(args, _PIXELS))):
        source, target = _place(args, _SOURCE, pixel), _place(args, _TARGET, pixel)
        for c in range(0, C, _DEEP):
            widen_codes(source + c, tables, target + c // _DEEP * panel, min(_DEEP, C - c), scratch)


def _sizes(images: int, height: int, width: int, channels: int, panel: int) -> tuple[tuple[Word, ...], int]:
    pixels = images * height * width
    chunk = max(1, _WORK // max(channels, 1))
    return (height, width, channels, pixels, chunk, panel), -(-pixels // chunk)


def widen_task(source: View, target: View, panel: int, shape: tuple[int, int, int, int], tables: npt.NDArray[np.uint8]) -> Task:
    """u8 codes (B, H, W, C) -> a widened image. tables: `fp8np.kernels._engine.decode_tables` of their format."""
    sizes, units = _sizes(*shape, panel)
    return Task(widen, (*source.words, *target.words, *sizes, tables), units, 256)


@entry
def quantize_rows(args: int, unit: int, scratch: int) -> None:
    """float32 (B, H, W, C) -> widened, rounded to a format. A unit is CHUNK pixels."""
    C, chunk, panel = word(args, _C), word(args, _CHUNK), word(args, _PANEL)
    rounding = args + 8 * _ROUND
    scale = floats(float_at(word(rounding, 0)))
    smallest, lift, bound, top = rounding_of(rounding)
    whole = C // 16 * 16
    end = (C + STEP - 1) // STEP * STEP
    for pixel in range(unit * chunk, min((unit + 1) * chunk, word(args, _PIXELS))):
        source, target = _place(args, _SOURCE, pixel), _place(args, _TARGET, pixel)
        for c in range(0, whole, 16):
            place = target + c // _DEEP * panel + c % _DEEP * ELEMENT
            store_widened(place, on_grid(load(source + 4 * c) / scale, smallest, lift, bound, top))
        for c in range(whole, end, 16):
            place = target + c // _DEEP * panel + c % _DEEP * ELEMENT
            store_widened(place, on_grid(load_n(source + 4 * c, C - c) / scale, smallest, lift, bound, top))


def quantize_task(source: View, target: View, panel: int, shape: tuple[int, int, int, int], rounding: Sequence[Word]) -> Task:
    """float32 (B, H, W, C) -> a widened image, divided by the scale and rounded as the words of `round_words` say."""
    sizes, units = _sizes(*shape, panel)
    return Task(quantize_rows, (*source.words, *target.words, *sizes, *rounding), units)


@entry
def quantize_planes(args: int, unit: int, scratch: int) -> None:
    """float32 (B, C, H, W), rows side by side -> widened, rounded to a format. A unit is a row of an image.

    The view of the source is of its first channel; the word after the rounding is the bytes from a channel to the next.
    """
    W, C, panel = word(args, _W), word(args, _C), word(args, _PANEL)
    rounding = args + 8 * _ROUND
    plane = word(args, _ROUND + 5)
    scale = floats(float_at(word(rounding, 0)))
    smallest, lift, bound, top = rounding_of(rounding)
    steps = (C + 15) // 16 * 16
    end = (C + STEP - 1) // STEP * STEP
    source = _place(args, _SOURCE, unit * W)
    target = _place(args, _TARGET, unit * W)
    pitch = word(args, _TARGET + 3)
    for x0 in range(0, W, 16):
        count = min(16, W - x0)
        for c0 in range(0, steps, 16):
            # A square of 16 channels by 16 pixels, turned round in scratch.
            for c in range(16):
                line = load_n(source + (c0 + c) * plane + 4 * x0, count if c0 + c < C else 0)
                for_lane(scratch, c, line)
            for x in range(count):
                store_widened(
                    target + (x0 + x) * pitch + c0 // _DEEP * panel + c0 % _DEEP * ELEMENT,
                    on_grid(load(scratch + 64 * x) / scale, smallest, lift, bound, top),
                )
        for c in range(steps, end, 16):
            for x in range(count):
                store_widened(target + (x0 + x) * pitch + c // _DEEP * panel + c % _DEEP * ELEMENT, floats(np.float32(0)))


@native
def for_lane(scratch: int, column: int, line: Any) -> None:
    """Writes sixteen floats as column `column` of the square f32 (16, 16) at `scratch`."""
    store_n(scratch + 1024, line, 16)
    for i in range(16):
        put_float(scratch + 64 * i + 4 * column, float_at(scratch + 1024 + 4 * i))


def quantize_planes_task(
    source: View, plane: int, target: View, panel: int, shape: tuple[int, int, int, int], rounding: Sequence[Word]
) -> Task:
    """float32 (B, C, H, W) -> a widened image; shape (B, H, W, C), plane: bytes from a channel to the next."""
    images, height, width, channels = shape
    words = (*source.words, *target.words, height, width, channels, images * height * width, 1, panel, *rounding, plane)
    return Task(quantize_planes, words, images * height, 2048)


@native
def _store_parts(place: int, v: Any, part: int) -> None:
    # A float32 as the engine holds it: itself, or the sum of three bfloat16, each what the ones before leave over.
    if PARTS == 1:
        store_widened(place, v)
        return
    store_widened(place, v)
    rest = v - load_bf16(place)
    # What is left of an infinity is none, and NaN stays in the first.
    rest = select(absolute(rest) < floats(np.float32(np.inf)), rest, floats(np.float32(0)))
    store_widened(place + part, rest)
    store_widened(place + 2 * part, rest - load_bf16(place + part))


@entry
def split_rows(args: int, unit: int, scratch: int) -> None:
    """float32 (B, H, W, C) -> the engine's, nothing rounded. A unit is CHUNK pixels. The word of the tables is the bytes of a part."""
    C, chunk, panel, part = word(args, _C), word(args, _CHUNK), word(args, _PANEL), word(args, _TABLES)
    end = (C + STEP - 1) // STEP * STEP
    for pixel in range(unit * chunk, min((unit + 1) * chunk, word(args, _PIXELS))):
        source, target = _place(args, _SOURCE, pixel), _place(args, _TARGET, pixel)
        for c in range(0, end, 16):
            place = target + c // _DEEP * panel + c % _DEEP * ELEMENT
            _store_parts(place, load_n(source + 4 * c, C - c), part)


def split_task(source: View, target: View, panel: int, part: int, shape: tuple[int, int, int, int]) -> Task:
    """float32 (B, H, W, C) -> an image of PARTS parts; part: bytes from one to the next."""
    sizes, units = _sizes(*shape, panel)
    return Task(split_rows, (*source.words, *target.words, *sizes, part), units)


@entry
def place_rows(args: int, unit: int, scratch: int) -> None:
    """float32 (B, C, H, W) of any strides -> channels last, of any strides. A unit is a row of an image.

    Words: source, its strides of B, C, H, W; target, its strides of B, H, W; C, H, W.
    """
    C, H, W = word(args, 9), word(args, 10), word(args, 11)
    b, y = unit // H, unit % H
    source = word(args, 0) + b * word(args, 1) + y * word(args, 3)
    target = word(args, 5) + b * word(args, 6) + y * word(args, 7)
    plane, step, pixel = word(args, 2), word(args, 4), word(args, 8)
    for c in range(C):
        for x in range(W):
            put_float(target + x * pixel + 4 * c, float_at(source + c * plane + x * step))


def place_task(source: Word, strides: Sequence[int], target: View, shape: tuple[int, int, int, int]) -> Task:
    """float32 (B, C, H, W) at strides in bytes -> pixels of a few channels; shape (B, C, H, W)."""
    images, channels, height, width = shape
    return Task(place_rows, (source, *strides, *target.words, channels, height, width), images * height)


# -- dynamic scales ---------------------------------------------------------------------------------------------------


@native
def finite_top(x: int, count: int) -> Any:
    """The largest finite magnitude of float32 x (count,)."""
    limit = floats(np.float32(3.4028234663852886e38))
    zero = floats(np.float32(0))
    top = zero
    for i in range(0, count, 16):
        v = absolute(load_n(x + 4 * i, count - i))
        v = select(v > limit, zero, v)
        top = maximum(v, top)
    return largest(top)


@native
def scale_from(top: Any, most: Any, power_of_two: int) -> Any:
    """The scale by which `top` becomes `most`, that of `fp8np.scaling.scale_for`; rounded up to a power of two if asked."""
    # A scale below the normal numbers would lose bits.
    scale = min(max(top / most, np.float32(2.0**-126)), np.float32(3.4028234663852886e38))
    if not top > np.float32(0):
        scale = np.float32(1)
    if power_of_two:
        up = as_float((as_int(floats(scale)) + ints(0x7FFFFF)) & ints(0x7F800000))
        scale = largest(minimum(up, floats(np.float32(2.0**127))))
    return scale


@entry
def amax(args: int, unit: int, scratch: int) -> None:
    """The largest finite magnitude of CHUNK numbers. Words: float32, how many, chunk, where unit u writes its own (float32 u)."""
    start = unit * word(args, 2)
    count = min(word(args, 2), word(args, 1) - start)
    put_float(word(args, 3) + 4 * unit, finite_top(word(args, 0) + 4 * start, count))


@entry
def scale_of(args: int, unit: int, scratch: int) -> None:
    """Words: float32 maxima, how many, the largest value of the format, where the scale goes, whether it is to be a power of two."""
    top = np.float32(0)
    for i in range(word(args, 1)):
        top = max(top, float_at(word(args, 0) + 4 * i))
    put_float(word(args, 3), scale_from(top, float_at(args + 16), word(args, 4)))


def scale_tasks(x: Word, count: int, most: float, parts: Word, scale: Word, *, power_of_two: bool = False) -> tuple[Task, Task]:
    """The scale by which the largest finite magnitude of float32 x (count,) becomes the largest value of a format.

    Args:
        x: float32 (count,), in any order.
        count: of elements.
        most: the largest value of the format.
        parts: float32 for as many units as there are, one for each 32,768 elements.
        scale: where it goes, a float32.
        power_of_two: whether it is rounded up to one.
    """
    units = max(1, -(-count // _WORK))
    first = Task(amax, (x, count, _WORK, parts), units)
    return first, Task(scale_of, (parts, units, float_word(most), scale, int(power_of_two)), 1)


@entry
def quantize_tokens(args: int, unit: int, scratch: int) -> None:
    """float32 rows (R, K) -> widened, each divided by a scale of its own and rounded; and these scales. A unit is CHUNK rows.

    Words: source, bytes from row to row; target, bytes from row to row; R, K, CHUNK, panel; whether scales are powers of two; then a
    rounding, whose scale is the first row's.
    """
    K, chunk, panel, power = word(args, 5), word(args, 6), word(args, 7), word(args, 8)
    rounding = args + 72
    smallest, lift, bound, top = rounding_of(rounding)
    most = float_at(rounding + 32)
    end = (K + STEP - 1) // STEP * STEP
    for row in range(unit * chunk, min((unit + 1) * chunk, word(args, 4))):
        source = word(args, 0) + row * word(args, 1)
        target = word(args, 2) + row * word(args, 3)
        own = scale_from(finite_top(source, K), most, power)
        put_float(word(rounding, 0) + 4 * row, own)
        scale = floats(own)
        for c in range(0, end, 16):
            place = target + c // _DEEP * panel + c % _DEEP * ELEMENT
            store_widened(place, on_grid(load_n(source + 4 * c, K - c) / scale, smallest, lift, bound, top))


def quantize_tokens_task(
    source: tuple[Word, int], target: View, panel: int, shape: tuple[int, int], rounding: Sequence[Word], *, power_of_two: bool
) -> Task:
    """float32 rows (R, K) -> a widened matrix, each row divided by its own scale.

    Args:
        source: where the first row is, and bytes from row to row.
        target: the widened matrix.
        panel: bytes from a panel of it to the next.
        shape: R, K.
        rounding: the words of `round_words`; the scale is where those of the rows go, float32 (R,).
        power_of_two: whether scales are.
    """
    rows, k = shape
    chunk = max(1, _WORK // max(k, 1))
    words = (*source, target.address, target.pixel, rows, k, chunk, panel, int(power_of_two), *rounding)
    return Task(quantize_tokens, words, -(-rows // chunk))
