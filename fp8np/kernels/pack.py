"""pack: a right operand in the engine's order, from codes as they lie. The definition is `fp8np.kernels._engine.pack_codes`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels._engine import COLUMNS, ELEMENT, STEP, order_of_slab, packed_steps, put_pair, rounded_half
from fp8np.kernels._grid import PARTS, ROUND_WORDS, on_grid, on_integers, rounding_of
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import byte_at, float_at, put_byte, put_float, word
from fp8np.kernels._program import Task, Word, aligned, run_tasks
from fp8np.kernels._vector import absolute, floats, load, load_n, select

__all__ = ["pack_floats_task", "pack_integers_task", "pack_task", "packed_bytes", "packed_codes", "packed_size"]


@lru_cache(maxsize=1)
def _places() -> npt.NDArray[np.int64]:
    # For column n and term k of a block, n * 32 + k: where its byte goes.
    places = np.empty(COLUMNS * STEP, np.int64)
    places[order_of_slab()] = np.arange(COLUMNS * STEP)
    return places


@entry
def pack(args: int, unit: int, scratch: int) -> None:
    """A unit is a block of 32 columns.

    Words: codes, bytes from column to column, from tap to tap, and from term to term; columns, taps, terms of a tap, steps of a tap;
    where the packed codes go; the places of `_places`.
    """
    source, column, tap, term = word(args, 0), word(args, 1), word(args, 2), word(args, 3)
    columns, taps, terms, steps = word(args, 4), word(args, 5), word(args, 6), word(args, 7)
    target, places = word(args, 8) + unit * taps * steps * 1024, word(args, 9)
    count = min(COLUMNS, columns - unit * COLUMNS)
    for t in range(taps):
        for s in range(steps):
            deep = min(STEP, terms - s * STEP)
            if count < COLUMNS or deep < STEP:
                for i in range(1024):
                    put_byte(target + i, 0)
            for n in range(count):
                line = source + (unit * COLUMNS + n) * column + t * tap + s * STEP * term
                row = places + n * STEP * 8
                for k in range(deep):
                    put_byte(target + word(row, k), byte_at(line + k * term))
            target += 1024


def packed_size(columns: int, taps: int, terms: int) -> tuple[int, int, int]:
    """The shape of the packed codes."""
    return -(-columns // COLUMNS), taps * packed_steps(terms), 1024


def pack_task(source: Word, strides: tuple[int, int, int], columns: int, taps: int, terms: int, target: Word) -> Task:
    """Codes (columns, taps, terms) at strides in bytes -> u8 `packed_size`."""
    steps = packed_steps(terms)
    return Task(pack, (source, *strides, columns, taps, terms, steps, target, _places()), -(-columns // COLUMNS))


def packed_codes(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """u8 (N, taps, K) of any strides, packed, from a cache line on."""
    n, t, k = codes.shape
    shape = packed_size(n, t, k)
    size = shape[0] * shape[1] * shape[2]
    out = aligned(size)[:size]
    if codes.size:
        (column, tap, term), (columns, taps, terms) = codes.strides, codes.shape
        run_tasks(pack_task(codes, (column, tap, term), columns, taps, terms, out))
    else:
        out[:] = 0
    return out.reshape(shape)


# -- floats, while a plan runs ----------------------------------------------------------------------------------------


@native
def _sixteen(source: int, stride: int, count: int, scratch: int) -> Any:
    # Sixteen columns of a row of terms, zeros from `count` on.
    if stride == 4:
        return load_n(source, count)
    for i in range(16):
        put_float(scratch + 4 * i, float_at(source + i * stride) if i < count else np.float32(0))
    return load(scratch)


@entry
def pack_floats(args: int, unit: int, scratch: int) -> None:
    """float32 (K, N) -> slabs: rounded to a format, or nothing rounded, in as many parts as a float32 takes.

    A unit is a block of 32 columns. Words: source, bytes from term to term and from column to column, K, N, target, bytes of a part (0:
    rounded to a format), then a rounding.
    """
    source, term, column, K, N = word(args, 0), word(args, 1), word(args, 2), word(args, 3), word(args, 4)
    part, rounding = word(args, 6), args + 56
    steps = (K + STEP - 1) // STEP
    target = word(args, 5) + unit * steps * 1024 * ELEMENT
    scale = floats(np.float32(1))
    smallest, lift, bound, top = rounding_of(rounding)
    if part == 0:
        scale = floats(float_at(word(rounding, 0)))
    zero = floats(np.float32(0))
    for k in range(0, steps * STEP, 2):
        for j in range(2):
            first = unit * COLUMNS + 16 * j
            place = source + k * term + first * column
            count = min(16, N - first)
            x = _sixteen(place, column, count if k < K else 0, scratch)
            y = _sixteen(place + term, column, count if k + 1 < K else 0, scratch)
            if part == 0:
                x = on_grid(x / scale, smallest, lift, bound, top)
                y = on_grid(y / scale, smallest, lift, bound, top)
            put_pair(target + k // STEP * 1024 * ELEMENT, k % STEP, j, x, y)
            if part and PARTS == 3:
                for p in range(1, 3):
                    high, other = rounded_half(x), rounded_half(y)
                    # What is left of an infinity is none.
                    x = select(absolute(x - high) < floats(np.float32(np.inf)), x - high, zero)
                    y = select(absolute(y - other) < floats(np.float32(np.inf)), y - other, zero)
                    put_pair(target + p * part + k // STEP * 1024 * ELEMENT, k % STEP, j, x, y)


def pack_floats_task(source: Word, strides: tuple[int, int], shape: tuple[int, int], target: Word, rounding: Sequence[Word] | None) -> Task:
    """float32 (K, N) at strides in bytes -> what `product_task` takes as widened codes; None: nothing is rounded.

    target: PARTS (or one) of `packed_bytes(K, N)`.
    """
    k, n = shape
    part = 0 if rounding is not None else packed_bytes(k, n)
    words = (source, *strides, k, n, target, part, *(rounding or (0,) * ROUND_WORDS))
    return Task(pack_floats, words, -(-n // COLUMNS), 64)


def packed_bytes(k: int, n: int) -> int:
    """Bytes of a part of a widened right operand (K, N)."""
    return -(-n // COLUMNS) * packed_steps(k) * 1024 * ELEMENT


@entry
def pack_integers(args: int, unit: int, scratch: int) -> None:
    """float32 (K, N) -> slabs of integers, codes without their zero point. A unit is a block of 32 columns.

    Words: source, bytes from term to term and from column to column, K, N, target, parameters.
    """
    source, term, column, K, N = word(args, 0), word(args, 1), word(args, 2), word(args, 3), word(args, 4)
    steps = (K + STEP - 1) // STEP
    target, parameters = word(args, 5) + unit * steps * 1024 * ELEMENT, word(args, 6)
    scale, lo, hi = (floats(float_at(parameters)), floats(float_at(parameters + 4)), floats(float_at(parameters + 8)))
    for k in range(0, steps * STEP, 2):
        for j in range(2):
            first = unit * COLUMNS + 16 * j
            place = source + k * term + first * column
            count = min(16, N - first)
            x = _sixteen(place, column, count if k < K else 0, scratch)
            y = _sixteen(place + term, column, count if k + 1 < K else 0, scratch)
            put_pair(target + k // STEP * 1024 * ELEMENT, k % STEP, j, on_integers(x / scale, lo, hi), on_integers(y / scale, lo, hi))


def pack_integers_task(source: Word, strides: tuple[int, int], shape: tuple[int, int], target: Word, parameters: Word) -> Task:
    """float32 (K, N) at strides in bytes -> integers as `integer_product_task` takes them, `packed_bytes(K, N)`.

    parameters: as `fp8np.kernels.integer_widen.fixed_parameters` has them.
    """
    k, n = shape
    return Task(pack_integers, (source, *strides, k, n, target, parameters), -(-n // COLUMNS), 64)
