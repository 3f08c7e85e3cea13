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
from fp8np.kernels._functions import exp
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import byte_at, clear, float_at, put_float, word
from fp8np.kernels._parts import transpose_16
from fp8np.kernels._program import Task, Word, float_word
from fp8np.kernels._vector import floats, fma, ints, load, load_bytes_n, maximum, select, store, store_n

__all__ = ["Heads", "Mask", "attention_task"]

ROWS = 512
"""Query rows of a unit, at most: keys and values are packed for so many at once. Fewer where that leaves fewer than UNITS units."""
UNITS = 12
GROUP = 1 << 18
KEYS = 256
"""Keys of a block, at most. Blocks of 128 cost 5 % more (1024 tokens), of 64 20 %; whatever is walked over stays in the second-level
cache."""

_F = np.float32
_ZERO, _ONE, _NONE = _F(0), _F(1), _F(-np.inf)

# Words. Heads are an address and the bytes from batch to batch, head to head, row to row.
_Q, _K, _V, _OUT, _MASK, _MASK_STEP, _MASK_KIND = 0, 4, 8, 12, 16, 20, 21
_HEADS, _SHARED, _L, _S, _E, _EV, _SCALE, _CAUSAL = range(22, 30)
_ROWS, _KEYS, _LEADING, _OFFSETS, _GROUP, _ITEMS = range(30, 36)
# Where things lie in scratch.
_AT_Q, _AT_K, _AT_V, _AT_S, _AT_P, _AT_C, _AT_O, _AT_STATE, _AT_STAGE = range(36, 45)

_FLOAT_MASK, _BOOL_MASK = 1, 2

# From place 16 - n on: n zeros, then -inf.
_LEADING_ZEROS = np.concatenate([np.zeros(16, _F), np.full(16, _NONE, _F)])


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


@dataclass(frozen=True)
class Mask:
    """A mask (B, H, L, S): float32, added, or bool, who is seen. Bytes from each to the next along the axes; 0 broadcasts."""

    address: Word
    batch: int
    head: int
    row: int
    step: int
    boolean: bool


@native
def _place(c: int, r: int, column: int) -> int:
    # Address of row r (of 32), column `column` (a multiple of 16) in blocks of sums.
    return c + (column >> 5) * 4096 + (column & 31) * 64 + (r >> 4) * 2048 + (r & 15) * 64


@native
def _put_queries(args: int, q: int, rows: int, scratch: int) -> Any:
    # q * scale as the left operand; rows up to a whole block are zeros.
    E = word(args, _E)
    stride = (E + 31) // 32 * LEFT + 64
    out = scratch + word(args, _AT_Q)
    scale = floats(float_at(args + 8 * _SCALE))
    seen = floats(_ZERO)
    for r in range((rows + 31) // 32 * 32):
        for e in range(0, E, 32):
            count = E - e if r < rows else 0
            x = load_to(q + r * word(args, _Q + 3) + 4 * e, count) * scale
            y = load_to(q + r * word(args, _Q + 3) + 4 * e + 64, count - 16) * scale
            seen = put_left(out + r * stride + e // 32 * LEFT, x, y, seen)
    return seen


@native
def _pack_keys(args: int, k: int, keys: int, scratch: int) -> Any:
    E = word(args, _E)
    steps = (E + 31) // 32
    stride = word(args, _K + 3)
    seen = floats(_ZERO)
    for n in range(0, keys, 32):
        for s in range(steps):
            out = scratch + word(args, _AT_K) + (n // 32 * steps + s) * RIGHT
            source = k + n * stride + 128 * s
            seen = seen + pack_columns(source, stride, keys - n, E - 32 * s, out, scratch + word(args, _AT_STAGE))
    return seen


@native
def _pack_values(args: int, v: int, keys: int, scratch: int) -> Any:
    EV = word(args, _EV)
    stride = word(args, _V + 3)
    seen = floats(_ZERO)
    for j in range(0, EV, 32):
        for n in range(0, keys, 32):
            out = scratch + word(args, _AT_V) + (j // 32 * (word(args, _KEYS) // 32) + n // 32) * RIGHT
            source = v + n * stride + 4 * j
            seen = seen + pack_rows(source, stride, keys - n, EV - j, out, scratch + word(args, _AT_STAGE))
    return seen


@native
def _masked(args: int, mask: int, x: Any, n: int, visible: int, count: int) -> Any:
    # Sixteen scores, of keys n .. of a block, masked: key n of the row's mask lies at `mask`; the first `visible` keys are seen at all.
    left = min(max(visible - n, 0), 16)
    if left < 16:
        x = select(load(word(args, _LEADING) + 4 * (16 - left)) < floats(_ZERO), floats(_NONE), x)
    kind, step, left = word(args, _MASK_KIND), word(args, _MASK_STEP), count - n
    if kind == 0 or left <= 0:
        return x
    if kind == _FLOAT_MASK:
        return x + (load_to(mask, left) if step else floats(float_at(mask)))
    if step:
        return select(load_bytes_n(mask, left) == ints(0), floats(_NONE), x)
    return x if byte_at(mask) else floats(_NONE)


@native
def _folded_rows(stage: int) -> int:
    # Sixteen vectors at `stage`, one a row -> their lanes across, so that sixteen rows are folded at once.
    transpose_16(stage, 64, stage + 1024, 64)
    return stage + 1024


@native
def _largest(args: int, mask: int, s: int, row: int, rows: int, count: int, stage: int) -> None:
    # The largest of each lane of sixteen rows of scores, which it masks, to `stage`.
    bare = word(args, _MASK_KIND) == 0
    causal, step, below = word(args, _CAUSAL), word(args, _MASK_STEP), word(args, _MASK + 3)
    for r in range(16):
        x, y = floats(_NONE), floats(_NONE)
        if r < rows:
            visible = min(count, row + r + 1) if causal else count
            for n in range(0, count, 32):
                place = s + 64 * r + 128 * n
                a, b = load(place), load(place + 1024)
                if n + 32 > visible or not bare:
                    here = mask + r * below + n * step
                    a = _masked(args, here, a, n, visible, count)
                    b = _masked(args, here + 16 * step, b, n + 16, visible, count)
                    store(place, a)
                    store(place + 1024, b)
                x, y = maximum(a, x), maximum(b, y)
        store(stage + 64 * r, maximum(x, y))


@native
def _softmax(args: int, mask: int, s: int, p: int, state: int, row: int, rows: int, count: int, stage: int, plain: int) -> None:
    # Scores of up to sixteen rows, from query row `row` on, of `count` keys become exponentials, with zeros up to a whole step.
    # state: f32 (3, 16): the largest score, the sum, the factor of what was summed before.
    _largest(args, mask, s, row, rows, count, stage)
    # Sixteen rows are folded at once, their lanes across.
    across = stage + 1024
    transpose_16(stage, 64, across, 64)
    before = load(state)
    now = before
    for i in range(16):
        now = maximum(load(across + 64 * i), now)
    # A row that has seen nothing keeps 0, so that its exponentials are 0 and not NaN.
    high = select(now > floats(_NONE), now, floats(_ZERO))
    factor = exp(before - high)
    store(state, now)
    store(state + 128, factor)
    store(stage + 2048, high)
    stride = word(args, _KEYS) // 32 * LEFT + 64
    for r in range(rows):
        top = floats(float_at(stage + 2048 + 4 * r))
        sums = floats(_ZERO)
        for n in range(0, count, 32):
            place = s + 64 * r + 128 * n
            a, b = exp(load(place) - top), exp(load(place + 1024) - top)
            if plain:
                store(place, a)
                store(place + 1024, b)
            sums = sums + (a + b)
            put_left(p + r * stride + (n >> 5) * LEFT, a, b, sums)
        store(stage + 64 * r, sums)
    transpose_16(stage, 64, across, 64)
    sums = load(state + 64) * factor
    for i in range(16):
        sums = sums + load(across + 64 * i)
    store(state + 64, sums)


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
    E, EV, size = word(args, _E), word(args, _EV), word(args, _KEYS)
    steps = (E + 31) // 32
    offsets = word(args, _OFFSETS)
    stride = steps * LEFT + 64
    a = scratch + word(args, _AT_Q) + r0 * stride
    s = scratch + word(args, _AT_S)
    p = scratch + word(args, _AT_P)
    far = size // 32 * LEFT + 64
    if plain & 1:
        _plain_scores(args, q + r0 * word(args, _Q + 3), k, rows, keys, scratch)
    else:
        for n in range(0, keys, 32):
            block(a, stride, offsets, scratch + word(args, _AT_K) + n // 32 * steps * RIGHT, s + n // 32 * 4096, steps, rows)
    for r in range(0, rows, 16):
        state = scratch + word(args, _AT_STATE) + (r0 + r) // 16 * 192
        place = mask + (r0 + r) * word(args, _MASK + 3)
        stage = scratch + word(args, _AT_STAGE)
        _softmax(args, place, s + r * 128, p + r * far, state, first + r0 + r - key, min(16, rows - r), keys, stage, plain & 2)
    o = scratch + word(args, _AT_O) + r0 // 32 * ((EV + 31) // 32 * 4096)
    c = o if key == 0 else scratch + word(args, _AT_C)
    if plain & 2:
        _plain_sums(args, v, rows, keys, c, scratch)
    else:
        for j in range(0, EV, 32):
            b = scratch + word(args, _AT_V) + j // 32 * (size // 32) * RIGHT
            block(p, far, offsets, b, c + j // 32 * 4096, (keys + 31) // 32, rows)
    if key:
        columns = (EV + 31) // 32
        for r in range(rows):
            factor = floats(float_at(scratch + word(args, _AT_STATE) + (r0 + r >> 4) * 192 + 128 + (r & 15) * 4))
            place = (r >> 4) * 2048 + (r & 15) * 64
            for j in range(columns):
                here = place + j * 4096
                store(o + here, fma(load(o + here), factor, load(c + here)))
                store(o + here + 1024, fma(load(o + here + 1024), factor, load(c + here + 1024)))


@native
def _finish(out: int, stride: int, o: int, state: int, rows: int, EV: int) -> None:
    # The sums of a unit over their weights.
    for r in range(0, rows, 16):
        weight = load(state + 12 * r + 64)
        # One division for sixteen rows, and a rounding more for each result.
        store(state + 12 * r, floats(_ONE) / select(weight == floats(_ZERO), floats(_ONE), weight))
    for r in range(rows):
        factor = floats(float_at(state + (r >> 4) * 192 + (r & 15) * 4))
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
    mask = word(args, _MASK) + batch * word(args, _MASK + 1) + head * word(args, _MASK + 2) + first * word(args, _MASK + 3)
    state, o = scratch + word(args, _AT_STATE), scratch + word(args, _AT_O)
    for r in range(0, rows, 16):
        store(state + 12 * r, floats(_NONE))
        store(state + 12 * r + 64, floats(_ZERO))
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
                place = mask + key * word(args, _MASK_STEP)
                _rows(args, q, kk, vv, place, key, seen, first, r0, min(32, rows - r0), plain, scratch)
    _finish(out, word(args, _OUT + 3), o, state, rows, EV)


@entry
def attention(args: int, unit: int, scratch: int) -> None:
    """A unit is a few times up to ROWS query rows of a head."""
    group = word(args, _GROUP)
    begin(scratch)
    for item in range(unit * group, min(unit * group + group, word(args, _ITEMS))):
        _item(args, item, scratch)
    end()


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
        q: (B, H, L, E). k: (B, kv_heads, S, E). v: (B, kv_heads, S, Ev). out: (B, H, L, Ev), which must not overlap them.
        batch, heads, kv_heads, queries, keys, width, value_width: B, H, kv_heads, L, S, E, Ev; H is a multiple of kv_heads, and
            query head h reads key head h // (H / kv_heads).
        scale: 1 / sqrt(E) unless given.
        is_causal: whether query i sees keys 0 .. i only. What v holds behind them is then not always read: an infinity there
            may leave a result finite that the definition makes NaN.
        mask: (B, H, L, S).
    """
    rows = max(32, min(ROWS, -(-queries // 32) * 32))
    while rows > 32 and batch * heads * -(-queries // rows) < UNITS:
        rows = -(-rows // 64) * 32
    items = batch * heads * -(-queries // rows)
    # Small heads go in groups: to begin and end with a unit costs 300 cycles.
    group = max(1, min(GROUP // (rows * (keys + 1) * (width + value_width + 1)), items // (4 * UNITS)))
    size = min(KEYS, max(32, -(-keys // 32) * 32))
    steps, columns = -(-width // 32), -(-value_width // 32)
    sizes = {
        "q": rows * (steps * LEFT + 64),
        "k": size // 32 * steps * RIGHT,
        "v": columns * (size // 32) * RIGHT,
        "s": size // 32 * 4096,
        "p": 32 * (size // 32 * LEFT + 64),
        "c": columns * 4096,
        "o": rows // 32 * columns * 4096,
        "state": rows // 16 * 192,
        "stage": STAGE,
    }
    places = [64 + sum(list(sizes.values())[:i]) for i in range(len(sizes) + 1)]
    if mask is None:
        masked: tuple[Word, ...] = (0,) * 6
    else:
        kind = _BOOL_MASK if mask.boolean else _FLOAT_MASK
        masked = mask.address, mask.batch, mask.head, mask.row, mask.step, kind
    factor = 1 / math.sqrt(width) if scale is None else scale
    words = (
        *q.words,
        *k.words,
        *v.words,
        *out.words,
        *masked,
        heads,
        heads // kv_heads,
        queries,
        keys,
        width,
        value_width,
        float_word(factor),
        int(is_causal),
        rows,
        size,
        _LEADING_ZEROS,
        OFFSETS,
        group,
        items,
        *places[:-1],
    )
    return Task(attention, words, -(-items // group), places[-1])
