"""lstm and gru: all steps of a sequence in one call, given the products of the input, x @ weight_ih^T + bias_ih, of all steps.

A unit is a direction and a few rows of the batch, which it takes from the first step to the last: what one step makes the next one
needs, so there is nothing to share between threads along time. In a step, sixteen hidden units at a time: the products of their
gates with h, then their cell, whose new h is rounded at once to what the next step multiplies::

    left    twice (rows, H): h as it is multiplied, of this step and of the next
    state   f32 twice (rows, H): h, c

Weights stay widened, since a step of one row does nothing but read them. Measured for H = 256, four gates, one row: bfloat16 through
AMX tiles 6.4 us a step (16 rows take no longer), float32 8.8, bfloat16 widened on the way 9.9, codes looked up on the way 15.4. Where
float32 would not fit the second-level cache, bfloat16 is the faster: H = 512 49 against 139 us. From H = 1024 on all come from further
away, and codes would be: 262 us against 325; no recurrent network in sight is as wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels._cells import gru_cells, lstm_cells
from fp8np.kernels._float_blocks import load_to
from fp8np.kernels._gates import BRAIN, FLOATS, HAS_TILES, TILES, begin, end, multiply_3, multiply_4
from fp8np.kernels._grid import ROUND_WORDS, on_grid, rounding_of
from fp8np.kernels._jit import Entry, entry, native
from fp8np.kernels._native import clear, float_at, put_float, word
from fp8np.kernels._program import Task, Word, aligned_copy, float_word
from fp8np.kernels._vector import absolute, floats, largest, load, maximum, select, store, store_bf16, store_n

__all__ = ["Gates", "Side", "Steps", "gru_task", "lstm_task", "pack_gates", "state_scale_task"]

ROWS = 64
"""Rows of the batch in a unit, at most."""
_CACHED = 3 << 19
"""Bytes of weights that stay in the second-level cache beside everything else, 1.5 MiB."""

_ONE = np.float32(1)

# Words, then a group of words for each direction.
_ORDER, _STEPS, _BATCH, _HIDDEN, _TERMS, _GROUPS, _GROUP, _STRIDE = range(8)
_AT_LEFT, _AT_STATE, _AT_SUMS, _AT_SCALES, _ROUNDED, _ROUND = range(8, 14)
_SIDES = _ROUND + ROUND_WORDS
# A pair or a triple is an address and the bytes from step to step, if any, and from row to row.
_X, _Y, _H0, _C0, _H, _C, _WEIGHTS, _SCALE, _BIAS, _BACKWARD = 0, 3, 6, 8, 10, 12, 14, 15, 16, 17
_SIDE_WORDS = 18


@dataclass(frozen=True)
class Gates:
    """weight_hh as the steps read it: see `pack_gates`.

    Attributes:
        order: of `fp8np.kernels._gates`.
        weights: u8, the slices.
        scale: f32 (slices, gates, 16), of each column.
        bias: f32 (slices, gates, 16).
    """

    order: int
    weights: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Steps:
    """Where rows lie, float32 and dense: an address, bytes from step to step (0 for a state), and from row to row of the batch."""

    address: Word
    row: int
    step: int = 0


@dataclass(frozen=True)
class Side:
    """One direction of a layer: what it reads and writes.

    Attributes:
        x: f32 (T, B, g * H), x @ weight_ih^T + bias_ih.
        gates: of weight_hh and bias_hh.
        y: f32 (T, B, H), h after each step, or None.
        h0, c0: f32 (B, H), the state before the first step, zeros if None; c of an lstm only.
        h, c: f32 (B, H), where the state after the last step goes, or None; may be h0 and c0.
        backward: whether time runs from the last step to the first.
    """

    x: Steps
    gates: Gates
    y: Steps | None = None
    h0: Steps | None = None
    c0: Steps | None = None
    h: Steps | None = None
    c: Steps | None = None
    backward: bool = False


def pack_gates(values: Any, gates: int, *, scale: Any = None, bias: Any = None, fp8: bool) -> Gates:
    """weight_hh in the order in which this CPU multiplies it.

    Args:
        values: f32 (gates * H, H); of FP8 codes, their values.
        gates: 3 or 4.
        scale: f32 (gates * H,), (1,) or (), by which sums are multiplied; 1 unless given.
        bias: f32 (gates * H,), bias_hh; zeros unless given.
        fp8: whether values, and h, are FP8 values; a bfloat16 then holds them.
    """
    hidden = values.shape[1]
    slices = -(-hidden // 16)
    order = FLOATS
    if fp8:
        order = TILES if HAS_TILES else BRAIN if values.size * 4 > _CACHED else FLOATS
    terms = _terms(order, hidden)
    full = np.zeros((gates, slices * 16, terms), np.float32)
    full[:, :hidden, :hidden] = np.asarray(values).reshape(gates, hidden, hidden)
    if order == TILES:
        # slice, step of 32 terms, gate, pair of terms, column, term of the pair
        full = full.reshape(gates, slices, 16, terms // 32, 16, 2).transpose(1, 3, 0, 4, 2, 5)
    else:
        # slice, term, gate, column
        full = full.reshape(gates, slices, 16, terms).transpose(1, 3, 0, 2)
    if order != FLOATS:
        full = np.ascontiguousarray(full).view(np.uint32) >> 16
    weights = aligned_copy(full.astype(np.float32 if order == FLOATS else np.uint16)).view(np.uint8)

    def columns(x: Any, default: float) -> npt.NDArray[np.float32]:
        out = np.zeros((gates, slices * 16), np.float32)
        out[:, :hidden] = default if x is None else np.broadcast_to(np.asarray(x).reshape(-1), gates * hidden).reshape(gates, hidden)
        return aligned_copy(np.ascontiguousarray(out.reshape(gates, slices, 16).swapaxes(0, 1)))

    return Gates(order, weights, columns(scale, 1), columns(bias, 0))


def _terms(order: int, hidden: int) -> int:
    return -(-hidden // 32) * 32 if order == TILES else -(-hidden // 16) * 16


# -- what both kinds of cell share ------------------------------------------------------------------------------------


@native
def _put_left(args: int, place: int, unit: int, h: Any) -> None:
    # h of the hidden units from `unit` on, of the row at `place`, as it is multiplied.
    v = h
    if word(args, _ROUNDED):
        smallest, lift, bound, top = rounding_of(args + 8 * _ROUND)
        v = on_grid(h * floats(_ONE / float_at(word(args, _ROUND))), smallest, lift, bound, top)
    if word(args, _ORDER) == TILES:
        store_bf16(place + 2 * unit, v)
    else:
        store(place + 4 * unit, v)


@native
def _begin(args: int, side: int, first: int, rows: int, gates: int, scratch: int) -> None:
    # The state before the first step, and the factors of sums.
    H, slices = word(args, _HIDDEN), (word(args, _HIDDEN) + 15) // 16
    left, stride = scratch + word(args, _AT_LEFT), word(args, _STRIDE)
    state = scratch + word(args, _AT_STATE)
    clear(left, 2 * ((rows + 15) // 16 * 16) * stride)
    for r in range(rows):
        for u in range(0, H, 16):
            h = c = floats(np.float32(0))
            if word(side, _H0):
                h = load_to(word(side, _H0) + (first + r) * word(side, _H0 + 1) + 4 * u, H - u)
            if word(side, _C0):
                c = load_to(word(side, _C0) + (first + r) * word(side, _C0 + 1) + 4 * u, H - u)
            place = state + r * slices * 128 + 8 * u
            store(place, h)
            store(place + 64, c)
            _put_left(args, left + r * stride, u, h)
    factor = floats(float_at(word(args, _ROUND)) if word(args, _ROUNDED) else _ONE)
    for i in range(slices * gates):
        store(scratch + word(args, _AT_SCALES) + 64 * i, load(word(side, _SCALE) + 64 * i) * factor)


@native
def _finish(args: int, side: int, first: int, rows: int, scratch: int) -> None:
    # The state after the last step.
    H, slices = word(args, _HIDDEN), (word(args, _HIDDEN) + 15) // 16
    for r in range(rows):
        for u in range(0, H, 16):
            place = scratch + word(args, _AT_STATE) + r * slices * 128 + 8 * u
            if word(side, _H):
                store_n(word(side, _H) + (first + r) * word(side, _H + 1) + 4 * u, load(place), H - u)
            if word(side, _C):
                store_n(word(side, _C) + (first + r) * word(side, _C + 1) + 4 * u, load(place + 64), H - u)


@native
def _put(args: int, side: int, following: int, y: int, state: int, u: int, rows: int) -> None:
    # The new h of hidden units u .. u + 15 of up to sixteen rows, to where the next step and others read it.
    H, stride, distance = word(args, _HIDDEN), word(args, _STRIDE), (word(args, _HIDDEN) + 15) // 16 * 128
    row = word(side, _Y + 1)
    for r in range(rows):
        _put_left(args, following + r * stride, u, load(state + r * distance))
    if word(side, _Y):
        for r in range(rows):
            h, place = load(state + r * distance), y + r * row
            if H - u >= 16:
                store(place, h)
            else:
                store_n(place, h, H - u)


@native
def _walk(args: int, unit: int, scratch: int, gates: int) -> None:
    # A direction and a few rows, over all of time.
    side = args + 8 * (_SIDES + unit // word(args, _GROUPS) * _SIDE_WORDS)
    first = unit % word(args, _GROUPS) * word(args, _GROUP)
    rows = min(word(args, _GROUP), word(args, _BATCH) - first)
    order, H, T, stride, terms = word(args, _ORDER), word(args, _HIDDEN), word(args, _STEPS), word(args, _STRIDE), word(args, _TERMS)
    slices, row = (H + 15) // 16, word(side, _X + 1)
    size = terms * gates * (64 if order == FLOATS else 32)
    half = (rows + 15) // 16 * 16 * stride
    begin(order, scratch)
    _begin(args, side, first, rows, gates, scratch)
    for t in range(T):
        now = scratch + word(args, _AT_LEFT) + t % 2 * half
        following = scratch + word(args, _AT_LEFT) + (1 - t % 2) * half
        step = T - 1 - t if word(side, _BACKWARD) else t
        ahead = -word(side, _X + 2) if word(side, _BACKWARD) else word(side, _X + 2)
        for s in range(slices):
            weights = word(side, _WEIGHTS) + s * size
            # For all rows first: the slice is then still in the first-level cache.
            for r in range(0, rows, 16):
                sums, count = scratch + word(args, _AT_SUMS) + r * gates * 64, min(16, rows - r)
                if gates == 4:
                    multiply_4(order, now + r * stride, stride, weights, sums, terms, count)
                else:
                    multiply_3(order, now + r * stride, stride, weights, sums, terms, count)
            scales, bias = scratch + word(args, _AT_SCALES) + 64 * gates * s, word(side, _BIAS) + 64 * gates * s
            for r in range(0, rows, 16):
                sums, count = scratch + word(args, _AT_SUMS) + r * gates * 64, min(16, rows - r)
                x = word(side, _X) + step * word(side, _X + 2) + (first + r) * row + 64 * s
                y = word(side, _Y) + step * word(side, _Y + 2) + (first + r) * word(side, _Y + 1) + 64 * s
                state = scratch + word(args, _AT_STATE) + (r * slices + s) * 128
                if gates == 4:
                    lstm_cells(x, row, ahead, H, 16 * s, sums, scales, bias, state, count)
                else:
                    gru_cells(x, row, ahead, H, 16 * s, sums, scales, bias, state, count)
                _put(args, side, following + r * stride, y, state, 16 * s, count)
    end(order)
    _finish(args, side, first, rows, scratch)


@entry
def lstm(args: int, unit: int, scratch: int) -> None:
    """A unit is a direction and a few rows."""
    _walk(args, unit, scratch, 4)


@entry
def gru(args: int, unit: int, scratch: int) -> None:
    """A unit is a direction and a few rows."""
    _walk(args, unit, scratch, 3)


# -- tasks ------------------------------------------------------------------------------------------------------------


def _task(
    run: Entry, gates: int, sides: Sequence[Side], steps: int, batch: int, hidden: int, rounding: Sequence[Word], threads: int
) -> Task:
    order = sides[0].gates.order
    terms, slices = _terms(order, hidden), -(-hidden // 16)
    # Rows of one unit share the reading of the weights, so there are no more units than threads.
    groups = max(1, min(batch, max(-(-threads // len(sides)), -(-batch // ROWS))))
    group = -(-batch // groups)
    groups = -(-batch // max(group, 1))
    # Not a multiple of 4096 bytes, whose rows would share few sets of the first-level cache.
    stride = terms * (2 if order == TILES else 4) + 64
    whole = -(-group // 16) * 16
    sizes = (2 * whole * stride, group * slices * 128, whole * gates * 64, slices * gates * 64)
    places = [64 + sum(sizes[:i]) for i in range(len(sizes) + 1)]
    words: list[Word] = [order, steps, batch, hidden, terms, groups, group, stride, *places[:-1], int(bool(rounding))]
    words += [*rounding, *(0,) * (ROUND_WORDS - len(rounding))]
    for side in sides:
        for place in (side.x, side.y):
            words += (0, 0, 0) if place is None else (place.address, place.row, place.step)
        for place in (side.h0, side.c0, side.h, side.c):
            words += (0, 0) if place is None else (place.address, place.row)
        words += (side.gates.weights, side.gates.scale, side.gates.bias, int(side.backward))
    return Task(run, tuple(words), len(sides) * groups if batch else 0, places[-1])


def lstm_task(sides: Sequence[Side], *, steps: int, batch: int, hidden: int, rounding: Sequence[Word] = (), threads: int = 1) -> Task:
    """An lstm over a sequence, of one layer: c = sigmoid(f) * c + sigmoid(i) * tanh(g), h = sigmoid(o) * tanh(c).

    Args:
        sides: one or more directions, of the same sizes and order of weights.
        steps: T.
        batch: B.
        hidden: H.
        rounding: `fp8np.kernels._grid.round_words` of the format that h is rounded to before it is multiplied, with the address of its
            scale; none where weights are float32.
        threads: for how many threads the batch is cut. It changes no bits.
    """
    return _task(lstm, 4, sides, steps, batch, hidden, rounding, threads)


def gru_task(sides: Sequence[Side], *, steps: int, batch: int, hidden: int, rounding: Sequence[Word] = (), threads: int = 1) -> Task:
    """A gru over a sequence, of one layer: u = sigmoid(z + z'), h = (1 - u) * tanh(n + sigmoid(r + r') * n') + u * h.

    Args: as of `lstm_task`.
    """
    return _task(gru, 3, sides, steps, batch, hidden, rounding, threads)


# -- the scale of a given state ---------------------------------------------------------------------------------------


@entry
def state_scale(args: int, unit: int, scratch: int) -> None:
    """Words: f32 values, how many, where the scale goes, the largest value of the format (f32)."""
    count = word(args, 1)
    top = floats(_ONE)
    for i in range(0, count, 16):
        x = absolute(load_to(word(args, 0) + 4 * i, count - i))
        top = maximum(select(x < floats(np.float32(np.inf)), x, top), top)
    put_float(word(args, 2), largest(top) / float_at(args + 24))


def state_scale_task(h0: Word, count: int, out: Word, largest_value: float) -> Task:
    """The scale with which h is rounded: max(1, |h0|) / largest_value, since h stays within the larger of 1 and |h0|.

    Args:
        h0: f32 (count,), the initial states; NaN and infinities have no say.
        count: of them.
        out: f32 (1,).
        largest_value: of the format.
    """
    return Task(state_scale, (h0, count, out, float_word(largest_value)), 1)
