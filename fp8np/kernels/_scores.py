"""Scores of attention: masked, and turned into exponentials as the left operand of the product with the values.

They lie as the sums of `fp8np.kernels._float_blocks`, 16 rows of 32 columns in two tiles, the next 32 columns 4096 bytes further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._float_blocks import LEFT, load_to, put_left
from fp8np.kernels._functions import exp
from fp8np.kernels._jit import native
from fp8np.kernels._lanes import transpose_words
from fp8np.kernels._native import byte_at, float_at, put_float, word
from fp8np.kernels._parts import fraction, scaled
from fp8np.kernels._program import Word
from fp8np.kernels._vector import floats, fma, ints, load, load_bytes_n, maximum, select, store

__all__ = ["MASK_WORDS", "STATE", "UNIT", "Mask", "mask_words", "softmax", "start"]

_F = np.float32
_ZERO, _NONE = _F(0), _F(-np.inf)

STATE = 192
"""Bytes of the state of sixteen rows: the largest score, the sum of exponentials, the factor of what was summed before; f32 (3, 16)."""
MASK_WORDS = 8
"""Words of a mask: an address, bytes from batch to batch, head to head, row to row, key to key; kind; whether causal; a table."""
_ROW, _STEP, _KIND, _CAUSAL, _TABLE = range(3, 8)
_FLOAT, _BOOL = 1, 2

# From place 16 - n on: n zeros, then -inf.
_FIRST_ZEROS = np.concatenate([np.zeros(16, _F), np.full(16, _NONE, _F)])


@dataclass(frozen=True)
class Mask:
    """A mask (B, H, L, S): float32, added, or bool, who is seen. Bytes from each to the next along the axes; 0 broadcasts."""

    address: Word
    batch: int
    head: int
    row: int
    step: int
    boolean: bool


def mask_words(mask: Mask | None, is_causal: bool) -> tuple[Word, ...]:
    """As `softmax` reads a mask."""
    if mask is None:
        return 0, 0, 0, 0, 0, 0, int(is_causal), _FIRST_ZEROS
    kind = _BOOL if mask.boolean else _FLOAT
    return mask.address, mask.batch, mask.head, mask.row, mask.step, kind, int(is_causal), _FIRST_ZEROS


# -- exponentials -----------------------------------------------------------------------------------------------------

_FAST = describe().cpu >= Cpu.AVX512
UNIT = float(np.log2(np.e)) if _FAST else 1.0
"""What scores are multiplied by, beside their scale, so that `_power` is their exponential."""

if _FAST:
    # 2^f = 1 + f Q(f) for 0 <= f <= 1: 2e-9; fitted as the polynomials of `_functions`. Of the time of attention, this
    # saves 5 % on AMX.
    _Q0, _Q1, _Q2 = _F(0.6931470632553101), _F(0.2402293086051941), _F(0.055485282093286514)
    _Q3, _Q4, _Q5 = _F(0.009675451554358006), _F(0.0012467845808714628), _F(0.00021612919226754457)

    @native
    def _power(x: Any) -> Any:
        # 2^x for x <= 0.
        f = fraction(x)
        q = fma(f, floats(_Q5), floats(_Q4))
        q = fma(f, q, floats(_Q3))
        q = fma(f, q, floats(_Q2))
        q = fma(f, q, floats(_Q1))
        q = fma(f, q, floats(_Q0))
        return scaled(fma(f, q, floats(_F(1))), x)

    @native
    def _in_units(mask: Any) -> Any:
        # What is finite stays finite: some networks mask with the least float32.
        least = floats(_F(np.finfo(_F).min))
        return select(mask > floats(_NONE), maximum(mask * floats(_F(UNIT)), least), mask)

else:
    _power = exp

    @native
    def _in_units(mask: Any) -> Any:
        return mask


# -- masks ------------------------------------------------------------------------------------------------------------


@native
def _masked(masks: int, mask: int, x: Any, n: int, visible: int, count: int, spare: int) -> Any:
    # Scores x of keys n .. n + 15, the mask of the first of which lies at `mask`; only the first `visible` keys are seen at all.
    left = min(max(visible - n, 0), 16)
    if left < 16:
        x = select(load(word(masks, _TABLE) + 4 * (16 - left)) < floats(_ZERO), floats(_NONE), x)
    kind, step, left = word(masks, _KIND), word(masks, _STEP), min(count - n, 16)
    if kind == 0 or left <= 0:
        return x
    if kind == _FLOAT:
        if step == 0:
            return x + _in_units(floats(float_at(mask)))
        if step == 4:
            return x + _in_units(load_to(mask, left))
        for i in range(left):
            put_float(spare + 4 * i, float_at(mask + i * step))
        return x + _in_units(load_to(spare, left))
    if step == 1:
        return select(load_bytes_n(mask, left) == ints(0), floats(_NONE), x)
    for i in range(left):
        put_float(spare + 4 * i, _ZERO if byte_at(mask + i * step) else _NONE)
    return select(load_to(spare, left) < floats(_ZERO), floats(_NONE), x)


@native
def _largest(masks: int, mask: int, s: int, row: int, rows: int, count: int, stage: int) -> None:
    # The largest of each lane of sixteen rows of scores, which it masks, to `stage`.
    bare = word(masks, _KIND) == 0
    causal, step, below = word(masks, _CAUSAL), word(masks, _STEP), word(masks, _ROW)
    for r in range(16):
        x, y = floats(_NONE), floats(_NONE)
        if r < rows:
            visible = min(count, row + r + 1) if causal else count
            for n in range(0, count, 32):
                place = s + 64 * r + 128 * n
                a, b = load(place), load(place + 1024)
                if n + 32 > visible or not bare:
                    here = mask + r * below + n * step
                    a = _masked(masks, here, a, n, visible, count, stage + 2048)
                    b = _masked(masks, here + 16 * step, b, n + 16, visible, count, stage + 2048)
                    store(place, a)
                    store(place + 1024, b)
                x, y = maximum(a, x), maximum(b, y)
        store(stage + 64 * r, maximum(x, y))


@native
def start(state: int) -> None:
    """The state of sixteen rows that have seen nothing."""
    store(state, floats(_NONE))
    store(state + 64, floats(_ZERO))


@native
def softmax(
    masks: int, mask: int, s: int, p: int, stride: int, parts: int, state: int, row: int, rows: int, count: int, stage: int, keep: int
) -> None:
    """Scores of up to sixteen rows become exponentials, relative to the largest so far.

    Args:
        masks: address of MASK_WORDS.
        mask: address of that of the first row and key.
        s: scores. They are masked; with `keep` they become the exponentials.
        p: exponentials as a left operand, zeros up to a whole step.
        stride: of p from row to row.
        parts: whether p is in parts.
        state: of these rows.
        row: which row the first is, counted from the first key: where the mask is causal it sees the keys up to `row`.
        rows: how many rows.
        count: how many keys.
        stage: 3 KiB to work in.
        keep: see s.
    """
    _largest(masks, mask, s, row, rows, count, stage)
    # Sixteen rows are folded at once, their lanes across.
    across = stage + 1024
    transpose_words(stage, 64, across, 64)
    before = load(state)
    now = before
    for i in range(16):
        now = maximum(load(across + 64 * i), now)
    # A row that has seen nothing keeps 0, so that its exponentials are 0 and not NaN.
    high = select(now > floats(_NONE), now, floats(_ZERO))
    factor = _power(before - high)
    store(state, now)
    store(state + 128, factor)
    store(stage + 2048, high)
    step = LEFT[parts]
    for r in range(rows):
        top = floats(float_at(stage + 2048 + 4 * r))
        sums = floats(_ZERO)
        for n in range(0, count, 32):
            place = s + 64 * r + 128 * n
            a, b = _power(load(place) - top), _power(load(place + 1024) - top)
            if keep:
                store(place, a)
                store(place + 1024, b)
            sums = sums + (a + b)
            put_left(p + r * stride + (n >> 5) * step, a, b, sums, parts)
        store(stage + 64 * r, sums)
    transpose_words(stage, 64, across, 64)
    sums = load(state + 64) * factor
    for i in range(16):
        sums = sums + load(across + 64 * i)
    store(state + 64, sums)
