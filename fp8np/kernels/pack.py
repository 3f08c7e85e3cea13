"""pack: a right operand in the engine's order, from codes as they lie. The definition is `fp8np.kernels._engine.pack_codes`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fp8np.kernels._engine import COLUMNS, STEP, order_of_slab, packed_steps
from fp8np.kernels._jit import entry
from fp8np.kernels._native import byte_at, put_byte, word
from fp8np.kernels._program import Task, Word, aligned, run_tasks

__all__ = ["pack_task", "packed_codes", "packed_size"]


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
    shape = packed_size(*codes.shape)
    size = shape[0] * shape[1] * shape[2]
    out = aligned(size)[:size]
    if codes.size:
        run_tasks(pack_task(codes, codes.strides, *codes.shape, out))
    else:
        out[:] = 0
    return out.reshape(shape)
