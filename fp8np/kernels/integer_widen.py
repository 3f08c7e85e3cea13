"""Activations as integers: float32 divided by the scale, rounded and clamped, widened as the engine multiplies them.

What is widened is the code without its zero point, 0 - zero .. 255 - zero, so the zeros around a picture and past the last channel
are zeros as for FP8. The code itself is never written down; a reader that wants it gets it from the op's definition.

What is known of such an activation, its parameters, are PARAMETERS bytes: float32 scale, lo = -zero point, hi = 255 - zero point, then the
zero point as int32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp8np.integers import INT8
from fp8np.kernels._ending import View
from fp8np.kernels._engine import DEPTH, ELEMENT, STEP
from fp8np.kernels._grid import on_integers, store_widened
from fp8np.kernels._jit import entry
from fp8np.kernels._native import float_at, put_float, word
from fp8np.kernels._program import Task, Word
from fp8np.kernels._vector import absolute, as_float, floats, ints, largest, load, load_n, maximum, select, store_n

__all__ = ["PARAMETERS", "fixed_parameters", "integers_task", "parameters_parts", "parameters_tasks"]

PARAMETERS = 16
_DEEP = DEPTH * STEP
"""Channels of a panel."""
_WORK = 1 << 15
"""Elements of a unit, about."""


def fixed_parameters(scale: float, zero_point: int) -> npt.NDArray[np.uint8]:
    """The parameters of a scale and a zero point, u8 (PARAMETERS,)."""
    numbers = np.array([scale, -zero_point, INT8.activation_max - zero_point], np.float32)
    return np.concatenate([numbers.view(np.uint8), np.array([zero_point], np.int32).view(np.uint8)])


@entry
def integer_rows(args: int, unit: int, scratch: int) -> None:
    # 0 .. 3 a view of float32 (B, H, W, C), 4 .. 7 one of the widened image, 8 H, 9 W, 10 C, 11 pixels a unit, within a row, 12 units a
    # row, 13 bytes from panel to panel, 14 parameters.
    C, chunk, chunks, panel, parameters = word(args, 10), word(args, 11), word(args, 12), word(args, 13), word(args, 14)
    row = unit // chunks
    b, y = row // word(args, 8), row % word(args, 8)
    scale, lo, hi = floats(float_at(parameters)), floats(float_at(parameters + 4)), floats(float_at(parameters + 8))
    first = (unit - row * chunks) * chunk
    source = word(args, 0) + b * word(args, 1) + y * word(args, 2)
    target = word(args, 4) + b * word(args, 5) + y * word(args, 6)
    step, pitch = word(args, 3), word(args, 7)
    whole = C // 16 * 16
    end = (C + STEP - 1) // STEP * STEP
    for x in range(first, min(first + chunk, word(args, 9))):
        pixel, place = source + x * step, target + x * pitch
        for c in range(0, whole, 16):
            store_widened(place + c // _DEEP * panel + c % _DEEP * ELEMENT, on_integers(load(pixel + 4 * c) / scale, lo, hi))
        for c in range(whole, end, 16):
            store_widened(place + c // _DEEP * panel + c % _DEEP * ELEMENT, on_integers(load_n(pixel + 4 * c, C - c) / scale, lo, hi))


def integers_task(source: View, target: View, panel: int, shape: tuple[int, int, int, int], parameters: Word) -> Task:
    """float32 (B, H, W, C), channels side by side -> a widened image of integers."""
    images, height, width, channels = shape
    chunk = max(1, _WORK // max(channels, 1))
    chunks = -(-width // chunk)
    words = (*source.words, *target.words, height, width, channels, chunk, chunks, panel, parameters)
    return Task(integer_rows, words, images * height * chunks)


# -- dynamic parameters -----------------------------------------------------------------------------------------------


@entry
def extremes(args: int, unit: int, scratch: int) -> None:
    # 0 float32, 1 how many, 2 how many a unit, 3 where unit u writes its largest finite number, and that of the negatives: two float32.
    x, count, chunk = word(args, 0), word(args, 1), word(args, 2)
    start = unit * chunk
    stop = min(start + chunk, count)
    limit = floats(np.float32(np.inf))
    zero = floats(np.float32(0))
    high, low = zero, zero
    for i in range(start, stop, 16):
        v = load_n(x + 4 * i, stop - i)
        v = select(absolute(v) < limit, v, zero)
        high = maximum(v, high)
        low = maximum(zero - v, low)
    put_float(word(args, 3) + 8 * unit, largest(high))
    put_float(word(args, 3) + 8 * unit + 4, largest(low))


@entry
def parameters_of(args: int, unit: int, scratch: int) -> None:
    # 0 what `extremes` wrote, 1 of how many units, 2 where the parameters go.
    high = np.float32(0)
    low = np.float32(0)
    for i in range(word(args, 1)):
        high = max(high, float_at(word(args, 0) + 8 * i))
        low = max(low, float_at(word(args, 0) + 8 * i + 4))
    scale = np.float32(1)
    zero = 0.0
    if high > 0 or low > 0:
        scale = np.float32(max((np.float64(high) + np.float64(low)) / 255.0, 2.0**-126))
        # To the nearest integer, ties to even: the sum has no bits after the point.
        point = 1.5 * 2.0**52
        zero = min((np.float64(low) / np.float64(scale) + point) - point, 255.0)
    put_float(word(args, 2), scale)
    put_float(word(args, 2) + 4, np.float32(-zero))
    put_float(word(args, 2) + 8, np.float32(255.0 - zero))
    store_n(word(args, 2) + 12, as_float(ints(int(zero))), 1)


def parameters_parts(count: int) -> int:
    """Bytes that `parameters_tasks` needs beside."""
    return 8 * max(1, -(-count // _WORK))


def parameters_tasks(x: Word, count: int, parts: Word, parameters: Word) -> tuple[Task, Task]:
    """The parameters of float32 x (count,), those of `fp8np.integers.measured_parameters`; parts: `parameters_parts` bytes."""
    units = parameters_parts(count) // 8
    first = Task(extremes, (x, count, _WORK, parts), units)
    return first, Task(parameters_of, (parts, units, parameters), 1)
