"""Products of float32 by float32 in blocks of 32 x 32, for operands that are made on the way: those of attention.

c = a @ b, all float32. Sums lie as in `fp8np.kernels._x86`, as four tiles of 16 x 16. K is cut into steps of 32 terms. Both operands
are written into scratch by the functions here, in the order that the CPU wants:

- with float32 multiply-adds: a, row r of step s: 32 float32 at a + r * stride + s * LEFT. b: f32 (steps, 32, 32), k, then columns.
- with AMX each float32 is a sum of three bfloat16 (see `fp8np.kernels._parts`), of which six products are added: a, row r of step s: its
  high parts, its middle ones, its low ones, 64 bytes each. b: for each step and part two tiles of 16 columns. In a step, pair p of a
  tile holds the terms p and p + 16, not neighbours: so two vectors of terms become pairs in one instruction.

On AMX the six products of bfloat16 run at twice the speed of one of float32 (355 against 177 GFLOP/s from the first-level cache); the
three of two parts would run at four times, but leave out 2^-16 of a product. The dot products of AVX-512 BF16 take two terms a lane
where a float32 multiply-add takes one: six of them lose.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._fma import fma_2x16, fma_4x16, fma_6x16, fma_8x32
from fp8np.kernels._jit import native
from fp8np.kernels._lanes import transpose_words
from fp8np.kernels._parts import LEFT_STEP, RIGHT_STEP, high_halves, parts_block_1, parts_block_2
from fp8np.kernels._vector import as_float, as_int, floats, fma, ints, load, load_n, store, total
from fp8np.kernels._x86 import tiles_off, tiles_on

__all__ = [
    "LEFT",
    "OFFSETS",
    "PARTS",
    "RIGHT",
    "STAGE",
    "begin",
    "block",
    "end",
    "is_clean",
    "load_to",
    "pack_columns",
    "pack_rows",
    "put_left",
]

_CPU = describe().cpu
_AMX = _CPU >= Cpu.AMX_BF16

_ZERO = np.float32(0)

PARTS = _AMX
"""Whether blocks can be multiplied by parts here."""
LEFT = (128, LEFT_STEP)
"""Bytes of a step of a row of a, whole and by parts."""
RIGHT = (4096, RIGHT_STEP)
"""Bytes of a step of 32 columns of b."""
STAGE = 3 * 1024
"""Bytes of memory that `pack_columns` needs."""
OFFSETS = np.arange(1024, dtype=np.int64) * 128
"""What `block` is told of a where it multiplies float32."""


@native
def load_to(address: int, count: int) -> Any:
    """The first `count` of sixteen float32, zeros for the others; any count."""
    if count >= 16:
        return load(address)
    return load_n(address, count)


@native
def _transposed(source: int, stride: int, rows: int, width: int, out: int, distance: int, spare: int) -> None:
    # Columns of sixteen rows of sixteen float32, zeros for what is not there; spare: 1 KiB.
    if rows < 16 or width < 16:
        for n in range(16):
            store(spare + 64 * n, load_to(source + n * stride, width if n < rows else 0))
        source, stride = spare, 64
    transpose_words(source, stride, out, distance)


# -- float32 multiply-adds --------------------------------------------------------------------------------------------


@native
def _pack_rows(source: int, stride: int, rows: int, width: int, out: int) -> Any:
    for k in range(32):
        count = width if k < rows else 0
        store(out + 128 * k, load_to(source + k * stride, count))
        store(out + 128 * k + 64, load_to(source + k * stride + 64, count - 16))
    return floats(_ZERO)


@native
def _pack_columns(source: int, stride: int, columns: int, width: int, out: int, stage: int) -> Any:
    for i in range(4):
        j, half = i >> 1, i & 1
        place = source + 16 * j * stride + 64 * half
        _transposed(place, stride, columns - 16 * j, width - 16 * half, out + 2048 * half + 64 * j, 128, stage)
    return floats(_ZERO)


if _CPU >= Cpu.AVX512:

    @native
    def _block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, rows: int) -> None:
        # c = a @ b for up to 32 rows, of which whole groups of 8 are computed.
        for r in range(0, rows, 8):
            fma_8x32(a + r * stride, stride, offsets, b, c + (r // 16) * 2048 + (r % 16) * 64, steps, 1)

elif _CPU >= Cpu.AVX2:

    @native
    def _block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, rows: int) -> None:
        # c = a @ b for up to 32 rows, of which whole groups of 6, 6 and 4 are computed.
        for top in range(0, rows, 16):
            for j in range(2):
                left, place = a + top * stride, c + (top // 16) * 2048 + j * 1024
                fma_6x16(left, stride, offsets, b + 64 * j, place, steps, 1)
                if rows > top + 6:
                    fma_6x16(left + 6 * stride, stride, offsets, b + 64 * j, place + 384, steps, 1)
                if rows > top + 12:
                    fma_4x16(left + 12 * stride, stride, offsets, b + 64 * j, place + 768, steps, 1)

else:

    @native
    def _block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, rows: int) -> None:
        # c = a @ b for up to 32 rows, of which pairs are computed.
        for r in range(0, rows, 2):
            place = c + (r // 16) * 2048 + (r % 16) * 64
            fma_2x16(a + r * stride, stride, offsets, b, place, steps, 1)
            fma_2x16(a + r * stride, stride, offsets, b + 64, place + 1024, steps, 1)


# -- by parts, or not -------------------------------------------------------------------------------------------------

if _AMX:

    @native
    def put_left(out: int, x: Any, y: Any, seen: Any, parts: int) -> Any:
        """Writes 32 terms of a row of a, a step. Returns `seen` for `is_clean`."""
        if parts == 0:
            store(out, x)
            store(out + 64, y)
            return seen
        upper = ints(-65536)
        store(out, high_halves(x, y))
        x = x - as_float(as_int(x) & upper)
        y = y - as_float(as_int(y) & upper)
        seen = fma(y, floats(_ZERO), fma(x, floats(_ZERO), seen))
        store(out + 64, high_halves(x, y))
        store(out + 128, high_halves(x - as_float(as_int(x) & upper), y - as_float(as_int(y) & upper)))
        return seen

    @native
    def _put_right(out: int, x: Any, y: Any, seen: Any) -> Any:
        # Terms p and p + 16 of sixteen columns: the parts rounded.
        half, upper = ints(0x8000), ints(-65536)
        a, b = as_float((as_int(x) + half) & upper), as_float((as_int(y) + half) & upper)
        store(out, high_halves(a, b))
        x, y = x - a, y - b
        seen = fma(y, floats(_ZERO), fma(x, floats(_ZERO), seen))
        a, b = as_float((as_int(x) + half) & upper), as_float((as_int(y) + half) & upper)
        store(out + 2048, high_halves(a, b))
        store(out + 4096, high_halves(x - a, y - b))
        return seen

    @native
    def pack_rows(source: int, stride: int, rows: int, width: int, out: int, parts: int) -> Any:
        """A step of b from the rows of 32 terms, `width` columns; of what is not there, zeros. Returns what `is_clean` judges."""
        if parts == 0:
            return _pack_rows(source, stride, rows, width, out)
        seen = floats(_ZERO)
        for j in range(2):
            count = width - 16 * j
            for p in range(16):
                x = load_to(source + p * stride + 64 * j, count if p < rows else 0)
                y = load_to(source + (p + 16) * stride + 64 * j, count if p + 16 < rows else 0)
                seen = _put_right(out + 1024 * j + 64 * p, x, y, seen)
        return seen

    @native
    def pack_columns(source: int, stride: int, columns: int, width: int, out: int, stage: int, parts: int) -> Any:
        """A step of b from the rows of 32 columns, each of `width` terms; of what is not there, zeros. Returns as `pack_rows`."""
        if parts == 0:
            return _pack_columns(source, stride, columns, width, out, stage)
        seen = floats(_ZERO)
        for j in range(2):
            for half in range(2):
                place = source + 16 * j * stride + 64 * half
                _transposed(place, stride, columns - 16 * j, width - 16 * half, stage + 1024 * half, 64, stage + 2048)
            for p in range(16):
                place = stage + 64 * p
                seen = _put_right(out + 1024 * j + 64 * p, load(place), load(place + 1024), seen)
        return seen

    @native
    def is_clean(seen: Any) -> bool:
        """Whether products stand for all that was seen. Parts do not for an infinity, which times a middle part of zero is NaN."""
        return bool(total(seen) == _ZERO)

    @native
    def begin(scratch: int, parts: int) -> None:
        """Before the blocks of a unit; writes 64 bytes of scratch."""
        if parts:
            tiles_on(scratch)

    @native
    def end(parts: int) -> None:
        """After the blocks of a unit."""
        if parts:
            tiles_off()

    @native
    def block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, rows: int, parts: int) -> None:
        """c = a @ b for up to 32 rows, of which whole groups of 16 are computed."""
        if parts == 0:
            _block(a, stride, offsets, b, c, steps, rows)
        elif rows > 16:
            parts_block_2(a, stride, b, c, steps)
        else:
            parts_block_1(a, stride, b, c, steps)

else:

    @native
    def put_left(out: int, x: Any, y: Any, seen: Any, parts: int) -> Any:
        """Writes 32 terms of a row of a, a step. Returns `seen` for `is_clean`."""
        store(out, x)
        store(out + 64, y)
        return seen

    @native
    def pack_rows(source: int, stride: int, rows: int, width: int, out: int, parts: int) -> Any:
        """A step of b from the rows of 32 terms, `width` columns; of what is not there, zeros. Returns what `is_clean` judges."""
        return _pack_rows(source, stride, rows, width, out)

    @native
    def pack_columns(source: int, stride: int, columns: int, width: int, out: int, stage: int, parts: int) -> Any:
        """A step of b from the rows of 32 columns, each of `width` terms; of what is not there, zeros. Returns as `pack_rows`."""
        return _pack_columns(source, stride, columns, width, out, stage)

    @native
    def is_clean(seen: Any) -> bool:
        """Whether products stand for all that was seen: here always, every float32 is multiplied as it is."""
        return True

    @native
    def begin(scratch: int, parts: int) -> None:
        """Before the blocks of a unit."""

    @native
    def end(parts: int) -> None:
        """After the blocks of a unit."""

    @native
    def block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, rows: int, parts: int) -> None:
        """c = a @ b for up to 32 rows."""
        _block(a, stride, offsets, b, c, steps, rows)
