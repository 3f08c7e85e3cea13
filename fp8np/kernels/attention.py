"""attention: y = softmax(q @ k^T * scale + mask) @ v in float32, without the matrix of all scores.

A unit is up to ROWS query rows of a head. It walks over the keys in blocks: packs keys and values, multiplies, takes exponentials
relative to the largest score so far, multiplies by the values, and scales down what it had when a larger score appears (Milakov,
Gimelshein 2018; Rabe, Staats 2021)::

    for a block of keys:  s = q k^T            32 rows at a time; sums of `_float_blocks`
                          m' = max(m, s)
                          p = exp(s - m')      written as a left operand
                          o = o exp(m - m') + p v
                          l = l exp(m - m') + sum of p
    y = o / l

Everything is read and written through strides, so that heads are split from a projection (B, T, H, E) and merged again by
nothing but numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8np.kernels._float_blocks import (
    LEFT,
    OFFSETS,
    PARTS,
    RIGHT,
    STAGE,
    begin,
    block,
    end,
    is_clean,
    load_to,
    pack_columns,
    pack_rows,
    put_left,
)
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import clear, float_at, put_float, word
from fp8np.kernels._program import Task, Word, float_word
from fp8np.kernels._scores import STATE, UNIT, Mask, mask_words, softmax, start
from fp8np.kernels._vector import floats, fma, load, select, store, store_n

__all__ = ["Heads", "Mask", "attention_task"]

ROWS = 512
"""Query rows of a head in one piece, at most: keys and values are packed once for all of them. Fewer where that makes too few pieces."""
KEYS = 256
"""Keys of a block, at most. Blocks of 128 take 5 % longer (1024 tokens), of 64 20 %: what is done for each block of 16 rows adds up."""
PIECES = 12
"""So many pieces, if there are enough rows, for threads to share."""
SMALL = 1 << 18
"""Pieces with fewer multiply-adds go together: to begin and end with a unit costs 300 cycles."""
PARTS_FROM = 96
"""Keys from which on parts pay, where the CPU has tiles. Against float32 multiply-adds, time of a head of 32, 64, 128, 256, 512 tokens
on one thread: 1.27, 1.09 (E = 64) to 1.23 (E = 32), 0.96, 0.86, 0.83. With tiles in use the clock is lower for all else, too; and it
gains nothing to weave their products into the exponentials of other rows."""

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)

# Words. Heads are an address and the bytes from batch to batch, head to head, row to row.
_Q, _K, _V, _OUT, _MASKS = 0, 4, 8, 12, 16
_CAUSAL = _MASKS + 6
_HEADS, _SHARED, _L, _S, _E, _EV, _SCALE, _ROWS, _KEYS, _GROUP, _ITEMS, _PARTS, _OFFSETS = range(24, 37)
# Where things lie in scratch.
_AT_Q, _AT_K, _AT_V, _AT_S, _AT_P, _AT_C, _AT_O, _AT_STATE, _AT_STAGE = range(37, 46)


@dataclass(frozen=True)
class Heads:
    """Where the rows of (B, H, T, E) lie: an address, and bytes from batch to batch, head to head and row to row; E is dense."""

    address: Word
    batch: int
    head: int
    row: int

    @property
    def words(self) -> tuple[Word, ...]:
        """As the entry reads it."""
        return self.address, self.batch, self.head, self.row


@native
def _place(c: int, r: int, column: int) -> int:
    # Address of row r (of 32), column `column` (a multiple of 16) in blocks of sums.
    return c + (column >> 5) * 4096 + (column & 31) * 64 + (r >> 4) * 2048 + (r & 15) * 64


@native
def _put_queries(args: int, q: int, rows: int, scratch: int) -> Any:
    # q * scale as the left operand; rows up to a whole block are zeros.
    E, parts = word(args, _E), word(args, _PARTS)
    step = LEFT[parts]
    stride = (E + 31) // 32 * step + 64
    out = scratch + word(args, _AT_Q)
    scale = floats(float_at(args + 8 * _SCALE))
    seen = floats(_ZERO)
    for r in range((rows + 31) // 32 * 32):
        for e in range(0, E, 32):
            count = E - e if r < rows else 0
            x = load_to(q + r * word(args, _Q + 3) + 4 * e, count) * scale
            y = load_to(q + r * word(args, _Q + 3) + 4 * e + 64, count - 16) * scale
            seen = put_left(out + r * stride + e // 32 * step, x, y, seen, parts)
    return seen


@native
def _pack_keys(args: int, k: int, keys: int, scratch: int) -> Any:
    E, stride, parts = word(args, _E), word(args, _K + 3), word(args, _PARTS)
    steps = (E + 31) // 32
    seen = floats(_ZERO)
    for n in range(0, keys, 32):
        for s in range(steps):
            out = scratch + word(args, _AT_K) + (n // 32 * steps + s) * RIGHT[parts]
            source = k + n * stride + 128 * s
            seen = seen + pack_columns(source, stride, keys - n, E - 32 * s, out, scratch + word(args, _AT_STAGE), parts)
    return seen


@native
def _pack_values(args: int, v: int, keys: int, scratch: int) -> Any:
    EV, stride, parts = word(args, _EV), word(args, _V + 3), word(args, _PARTS)
    steps = word(args, _KEYS) // 32
    seen = floats(_ZERO)
    for j in range(0, EV, 32):
        for n in range(0, keys, 32):
            out = scratch + word(args, _AT_V) + (j // 32 * steps + n // 32) * RIGHT[parts]
            seen = seen + pack_rows(v + n * stride + 4 * j, stride, keys - n, EV - j, out, parts)
    return seen


@native
def _plain_scores(args: int, q: int, k: int, rows: int, keys: int, scratch: int) -> None:
    # Scores of up to 32 rows where parts cannot stand for an infinity.
    scale = float_at(args + 8 * _SCALE)
    for r in range(rows):
        for n in range(keys):
            s = _ZERO
            for e in range(word(args, _E)):
                s = s + float_at(q + r * word(args, _Q + 3) + 4 * e) * scale * float_at(k + n * word(args, _K + 3) + 4 * e)
            put_float(_place(scratch + word(args, _AT_S), r, n // 16 * 16) + n % 16 * 4, s)


@native
def _plain_sums(args: int, v: int, rows: int, keys: int, c: int, scratch: int) -> None:
    # Exponentials by values, likewise.
    for r in range(rows):
        for e in range(word(args, _EV)):
            o = _ZERO
            for n in range(keys):
                p = float_at(_place(scratch + word(args, _AT_S), r, n // 16 * 16) + n % 16 * 4)
                o = o + p * float_at(v + n * word(args, _V + 3) + 4 * e)
            put_float(_place(c, r, e // 16 * 16) + e % 16 * 4, o)


@native
def _rows(
    args: int, q: int, k: int, v: int, mask: int, key: int, keys: int, first: int, r0: int, rows: int, plain: int, scratch: int
) -> None:
    # Rows r0 .. r0 + rows (32 at most) of a unit that starts with query row `first`, against `keys` keys from `key` on.
    E, EV, size, parts = word(args, _E), word(args, _EV), word(args, _KEYS), word(args, _PARTS)
    steps = (E + 31) // 32
    offsets = word(args, _OFFSETS)
    stride = steps * LEFT[parts] + 64
    a = scratch + word(args, _AT_Q) + r0 * stride
    s = scratch + word(args, _AT_S)
    p = scratch + word(args, _AT_P)
    far = size // 32 * LEFT[parts] + 64
    stage = scratch + word(args, _AT_STAGE)
    if plain & 1:
        _plain_scores(args, q + r0 * word(args, _Q + 3), k, rows, keys, scratch)
    else:
        for n in range(0, keys, 32):
            b = scratch + word(args, _AT_K) + n // 32 * steps * RIGHT[parts]
            block(a, stride, offsets, b, s + n // 32 * 4096, steps, rows, parts)
    for r in range(0, rows, 16):
        state = scratch + word(args, _AT_STATE) + (r0 + r) // 16 * STATE
        place = mask + (r0 + r) * word(args, _MASKS + 3)
        row, count, here = first + r0 + r - key, min(16, rows - r), p + r * far
        softmax(args + 8 * _MASKS, place, s + r * 128, here, far, parts, state, row, count, keys, stage, plain & 2)
    o = scratch + word(args, _AT_O) + r0 // 32 * ((EV + 31) // 32 * 4096)
    # Where there are several blocks of keys o has left the first-level cache meanwhile, and a stored tile would wait for it: 7 % (512
    # tokens). So it goes through c, which stays.
    several = word(args, _S) > size
    c = scratch + word(args, _AT_C) if several else o
    if plain & 2:
        _plain_sums(args, v, rows, keys, c, scratch)
    else:
        for j in range(0, EV, 32):
            b = scratch + word(args, _AT_V) + j // 32 * (size // 32) * RIGHT[parts]
            block(p, far, offsets, b, c + j // 32 * 4096, (keys + 31) // 32, rows, parts)
    for r in range(rows if several else 0):
        factor = floats(float_at(scratch + word(args, _AT_STATE) + (r0 + r >> 4) * STATE + 128 + (r & 15) * 4))
        place = (r >> 4) * 2048 + (r & 15) * 64
        for here in range(place, place + (EV + 31) // 32 * 4096, 4096):
            x, y = load(c + here), load(c + here + 1024)
            if key:
                x = fma(load(o + here), factor, x)
                y = fma(load(o + here + 1024), factor, y)
            store(o + here, x)
            store(o + here + 1024, y)


@native
def _finish(out: int, stride: int, o: int, state: int, rows: int, EV: int) -> None:
    # The sums of a unit over their weights.
    for r in range(0, rows, 16):
        place = state + r // 16 * STATE
        weight = load(place + 64)
        # One division for sixteen rows, and a rounding more for each result.
        store(place, floats(_ONE) / select(weight == floats(_ZERO), floats(_ONE), weight))
    for r in range(rows):
        factor = floats(float_at(state + (r >> 4) * STATE + (r & 15) * 4))
        source = o + (r >> 5) * ((EV + 31) // 32 * 4096) + (r >> 4 & 1) * 2048 + (r & 15) * 64
        for j in range(0, EV, 16):
            y = load(source + (j >> 5) * 4096 + (j & 16) * 64) * factor
            if EV - j >= 16:
                store(out + r * stride + 4 * j, y)
            else:
                store_n(out + r * stride + 4 * j, y, EV - j)


@native
def _item(args: int, item: int, scratch: int) -> None:
    # Rows of a head.
    L, S, EV, size = word(args, _L), word(args, _S), word(args, _EV), word(args, _KEYS)
    blocks = (L + word(args, _ROWS) - 1) // word(args, _ROWS)
    # The last rows first: where the mask is causal, theirs is the most work.
    first = (blocks - 1 - item % blocks) * word(args, _ROWS)
    head = item // blocks % word(args, _HEADS)
    batch = item // blocks // word(args, _HEADS)
    shared = head // word(args, _SHARED)
    rows = min(word(args, _ROWS), L - first)
    q = word(args, _Q) + batch * word(args, _Q + 1) + head * word(args, _Q + 2) + first * word(args, _Q + 3)
    k = word(args, _K) + batch * word(args, _K + 1) + shared * word(args, _K + 2)
    v = word(args, _V) + batch * word(args, _V + 1) + shared * word(args, _V + 2)
    out = word(args, _OUT) + batch * word(args, _OUT + 1) + head * word(args, _OUT + 2) + first * word(args, _OUT + 3)
    mask = word(args, _MASKS) + batch * word(args, _MASKS + 1) + head * word(args, _MASKS + 2) + first * word(args, _MASKS + 3)
    state, o = scratch + word(args, _AT_STATE), scratch + word(args, _AT_O)
    for r in range(0, rows, 16):
        start(state + r // 16 * STATE)
    queries = is_clean(_put_queries(args, q, rows, scratch))
    limit = min(S, first + rows) if word(args, _CAUSAL) else S
    if limit == 0:
        clear(o, (rows + 31) // 32 * ((EV + 31) // 32) * 4096)
    for key in range(0, limit, size):
        keys = min(size, limit - key)
        kk, vv = k + key * word(args, _K + 3), v + key * word(args, _V + 3)
        plain = 0 if is_clean(_pack_keys(args, kk, keys, scratch)) and queries else 1
        plain += 0 if is_clean(_pack_values(args, vv, keys, scratch)) else 2
        for r0 in range(0, rows, 32):
            seen = min(keys, first + r0 + 32 - key) if word(args, _CAUSAL) else keys
            if seen > 0:
                place = mask + key * word(args, _MASKS + 4)
                _rows(args, q, kk, vv, place, key, seen, first, r0, min(32, rows - r0), plain, scratch)
    _finish(out, word(args, _OUT + 3), o, state, rows, EV)


@entry
def attention(args: int, unit: int, scratch: int) -> None:
    """A unit is a few times up to ROWS query rows of a head."""
    group = word(args, _GROUP)
    begin(scratch, word(args, _PARTS))
    for item in range(unit * group, min(unit * group + group, word(args, _ITEMS))):
        _item(args, item, scratch)
    end(word(args, _PARTS))


def attention_task(
    q: Heads,
    k: Heads,
    v: Heads,
    out: Heads,
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    width: int,
    value_width: int,
    scale: float | None = None,
    is_causal: bool = False,
    mask: Mask | None = None,
) -> Task:
    """scaled_dot_product_attention, float32.

    Args:
        q: (B, H, L, E).
        k: (B, kv_heads, S, E).
        v: (B, kv_heads, S, Ev).
        out: (B, H, L, Ev); overlaps none of them.
        batch: B.
        heads: H, a multiple of kv_heads: query head h reads key head h // (H / kv_heads).
        kv_heads: of k and v.
        queries: L.
        keys: S. Without any, out is zero.
        width: E, at least 1.
        value_width: Ev.
        scale: 1 / sqrt(E) unless given.
        is_causal: whether query i sees keys 0 .. i only. What v holds behind them is not always read then: an infinity there
            may leave a result finite that the definition makes NaN.
        mask: (B, H, L, S).
    """
    rows = max(32, min(ROWS, -(-queries // 32) * 32))
    while rows > 32 and batch * heads * -(-queries // rows) < PIECES:
        rows = -(-rows // 64) * 32
    items = batch * heads * -(-queries // rows)
    group = max(1, min(SMALL // (rows * (keys + 1) * (width + value_width)), items // (4 * PIECES)))
    size = min(KEYS, max(32, -(-keys // 32) * 32))
    parts = int(PARTS and keys >= PARTS_FROM)
    left, right = LEFT[parts], RIGHT[parts]
    steps, columns = -(-width // 32), -(-value_width // 32)
    sizes = {
        "q": rows * (steps * left + 64),
        "k": size // 32 * steps * right,
        "v": columns * (size // 32) * right,
        "s": size // 32 * 4096,
        "p": 32 * (size // 32 * left + 64),
        "c": columns * 4096,
        "o": rows // 32 * columns * 4096,
        "state": rows // 16 * STATE,
        "stage": STAGE,
    }
    places = [64 + sum(list(sizes.values())[:i]) for i in range(len(sizes) + 1)]
    factor = 1 / math.sqrt(width) if scale is None else scale
    words = (
        *q.words,
        *k.words,
        *v.words,
        *out.words,
        *mask_words(mask, is_causal),
        heads,
        heads // kv_heads,
        queries,
        keys,
        width,
        value_width,
        float_word(factor * UNIT),
        rows,
        size,
        group,
        items,
        parts,
        OFFSETS,
        *places[:-1],
    )
    return Task(attention, words, -(-items // group), places[-1])
