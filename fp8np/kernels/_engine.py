"""The engine of this CPU: how operands of products are widened, packed and multiplied. One row a tier, one interface for all.

FP8 codes become the narrowest type that the tier multiplies, in which each of them is exact: bfloat16 (`amx`, `avx512bf16`) or
float32. Both operands keep their order along K; it is cut into steps of 32.

- The left operand lies widened in memory, and is read in place (see `fp8np.kernels._x86`).
- The right operand is packed once: the codes of 32 columns after each other, step by step, in the order in which they are widened
  into a *slab*, a few steps of 32 columns that stay in the first-level cache while rows pass by::

      packed   column block 0: step 0 | step 1 | ...    column block 1: ...      1024 codes a step
      slab     8 steps of 32 columns, 16 KiB of bfloat16 or 32 KiB of float32
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.formats import FloatFormat
from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._fma import fma_1x32, fma_2x16, fma_4x16, fma_6x16, fma_8x32
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import byte_at, float_at, put_byte, put_float, word
from fp8np.kernels._program import Task, Word, aligned_copy
from fp8np.kernels._vector import as_float, as_int, floats, ints, load_bytes, select_int, shl, shr, store
from fp8np.kernels._x86 import (
    amx_block_1,
    amx_block_2,
    amx_stream_1,
    amx_stream_2,
    bf16_dots_8,
    thin_1,
    thin_2,
    thin_4,
    tiles_off,
    tiles_on,
    widen_64,
    widen_packed_64,
)

__all__ = [
    "COLUMNS",
    "DEPTH",
    "ELEMENT",
    "STEP",
    "THIN",
    "begin",
    "block",
    "decode_tables",
    "end",
    "order_of_slab",
    "pack_codes",
    "pack_values",
    "packed_steps",
    "put_pair",
    "rounded_half",
    "streamed",
    "thin_block",
    "widen_codes",
    "widen_slab",
    "widened_task",
]

STEP = 32
"""Terms of K in a step."""
COLUMNS = 32
"""Columns of a block."""

_CPU = describe().cpu
_HALF = _CPU >= Cpu.AVX512_BF16

DEPTH = 16 if _CPU >= Cpu.AMX_BF16 else 8
"""Steps of a slab: 32 KiB."""

ELEMENT = 2 if _HALF else 4
"""Bytes of a widened element."""

if _CPU >= Cpu.AMX_BF16:

    @native
    def begin(scratch: int) -> None:
        """Before the products of a unit; writes 64 bytes of scratch."""
        tiles_on(scratch)

    @native
    def end() -> None:
        """After the products of a unit."""
        tiles_off()

    @native
    def block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int, rows: int) -> None:
        """c (+)= a @ b for up to 32 rows, of which whole groups of 16 are computed: what lies after the last is read, too."""
        if rows > 16:
            amx_block_2(a, stride, offsets, b, c, steps, first)
        else:
            amx_block_1(a, stride, offsets, b, c, steps, first)

    @native
    def streamed(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int, rows: int) -> None:
        """`block`, where b comes back soon and a does not."""
        if rows > 16:
            amx_stream_2(a, stride, offsets, b, c, steps, first)
        else:
            amx_stream_1(a, stride, offsets, b, c, steps, first)

else:

    @native
    def begin(scratch: int) -> None:
        """Before the products of a unit."""

    @native
    def end() -> None:
        """After the products of a unit."""

    if _CPU >= Cpu.AVX512_BF16:

        @native
        def block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int, rows: int) -> None:
            """c (+)= a @ b for up to 32 rows, of which whole groups of 8 are computed."""
            for r in range(0, rows, 8):
                bf16_dots_8(a + r * stride, stride, offsets, b, c + (r // 16) * 2048 + (r % 16) * 64, steps, first)

    elif _CPU >= Cpu.AVX512:

        @native
        def block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int, rows: int) -> None:
            """c (+)= a @ b for up to 32 rows, of which whole groups of 8 are computed, or one."""
            if rows == 1:
                fma_1x32(a, stride, offsets, b, c, steps, first)
                return
            for r in range(0, rows, 8):
                fma_8x32(a + r * stride, stride, offsets, b, c + (r // 16) * 2048 + (r % 16) * 64, steps, first)

    elif _CPU >= Cpu.AVX2:

        @native
        def block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int, rows: int) -> None:
            """c (+)= a @ b for up to 32 rows, of which whole groups of 6, 6 and 4 are computed."""
            for top in range(0, rows, 16):
                for j in range(2):
                    left, place = a + top * stride, c + (top // 16) * 2048 + j * 1024
                    fma_6x16(left, stride, offsets, b + 64 * j, place, steps, first)
                    if rows > top + 6:
                        fma_6x16(left + 6 * stride, stride, offsets, b + 64 * j, place + 384, steps, first)
                    if rows > top + 12:
                        fma_4x16(left + 12 * stride, stride, offsets, b + 64 * j, place + 768, steps, first)

    else:

        @native
        def block(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int, rows: int) -> None:
            """c (+)= a @ b for up to 32 rows, of which pairs are computed."""
            for r in range(0, rows, 2):
                place = c + (r // 16) * 2048 + (r % 16) * 64
                fma_2x16(a + r * stride, stride, offsets, b, place, steps, first)
                fma_2x16(a + r * stride, stride, offsets, b + 64, place + 1024, steps, first)


if _CPU < Cpu.AMX_BF16:
    streamed = block


# -- widening ---------------------------------------------------------------------------------------------------------
#
# Bytes of `tables`: 0 .. 255 the high, then the low bytes of the bfloat16 of each magnitude, for `vpermi2b`; from 256 on what the
# widening to float32 computes with (see `decode_f32` in `fp8np.kernels.codec`): int32 each.

_SHIFT, _NORMAL, _REBIAS, _QUANTUM, _TOP, _INFINITY, _LONE = range(256, 284, 4)


def decode_tables(fmt: FloatFormat) -> npt.NDArray[np.uint8]:
    """What `widen_slab` and `widen_codes` know of a format of 8 bits with a sign: u8 (320,)."""
    from fp8np.kernels._rule import INFINITY, MIN_EXPONENT, NAN, TOP, ZERO_SIGN, conversion_rule
    from fp8np.policy import IEEE
    from fp8np.tensor import code_values

    tables = np.zeros(320, np.uint8)
    with np.errstate(over="ignore"):
        bits = code_values(fmt)[:128].astype(np.float32).view(np.uint32)
    tables[:128], tables[128:256] = bits >> 24, bits >> 16 & 255
    rule = conversion_rule(fmt, IEEE)
    m = fmt.mantissa_bits
    facts = [
        23 - m,
        1 << m,
        (int(rule[MIN_EXPONENT]) - 1 + 127) << 23,
        (int(rule[MIN_EXPONENT]) - m + 23 + 127) << 23,
        int(rule[TOP]),
        int(rule[INFINITY]) if rule[INFINITY] != rule[NAN] else 0x100,
        int(rule[NAN]) if rule[ZERO_SIGN] == 0 else 0x100,
    ]
    tables[256:284] = np.array(facts, np.int32).view(np.uint8)
    tables.setflags(write=False)
    return tables


@native
def _fact(tables: int, place: int) -> Any:
    return as_int(floats(float_at(tables + place)))


@native
def widen_16(codes: Any, tables: int) -> Any:
    """The values of sixteen codes, int32 0 .. 255, as float32; NaN keeps its sign."""
    magnitude = codes & ints(0x7F)
    sign = shl(codes & ints(0x80), 24)
    normal = shl(magnitude, as_scalar(tables)) + _fact(tables, _REBIAS)
    quantum = _fact(tables, _QUANTUM)
    subnormal = as_int(as_float(quantum + magnitude) - as_float(quantum))
    bits = select_int(magnitude < _fact(tables, _NORMAL), subnormal, normal)
    special = select_int(magnitude == _fact(tables, _INFINITY), ints(0x7F800000), ints(0x7FC00000))
    bits = select_int(magnitude > _fact(tables, _TOP), special, bits)
    bits = select_int(codes == _fact(tables, _LONE), ints(0x7FC00000), bits)
    return as_float(bits | sign)


@native
def as_scalar(tables: int) -> Any:
    """By how many bits a normal magnitude moves up."""
    return byte_at(tables + _SHIFT)


if _HALF:

    @native
    def widen_slab(packed: int, tables: int, slab: int, steps: int) -> None:
        """Steps of packed codes into a slab."""
        for i in range(0, steps * 1024, 64):
            widen_packed_64(packed + i, tables, slab + 2 * i)

    @native
    def widen_codes(codes: int, tables: int, out: int, count: int, scratch: int) -> None:
        """`count` codes in a row, widened, then zeros up to a whole step; scratch: 192 bytes."""
        whole = count // 64 * 64
        for i in range(0, whole, 64):
            widen_64(codes + i, tables, out + 2 * i)
        rest = count - whole
        if rest:
            for i in range(rest):
                put_byte(scratch + i, byte_at(codes + whole + i))
            for i in range(rest, 64):
                put_byte(scratch + i, 0)
            widen_64(scratch, tables, scratch + 64)
            for i in range(0, (rest + 31) // 32 * 64, 4):
                put_float(out + 2 * whole + i, float_at(scratch + 64 + i))

else:

    @native
    def widen_slab(packed: int, tables: int, slab: int, steps: int) -> None:
        """Steps of packed codes into a slab."""
        for i in range(0, steps * 1024, 16):
            store(slab + 4 * i, widen_16(load_bytes(packed + i), tables))

    @native
    def widen_codes(codes: int, tables: int, out: int, count: int, scratch: int) -> None:
        """`count` codes in a row, widened, then zeros up to a whole step; scratch: 192 bytes."""
        whole = count // 16 * 16
        for i in range(0, whole, 16):
            store(out + 4 * i, widen_16(load_bytes(codes + i), tables))
        rest = count - whole
        if rest:
            for i in range(16):
                put_byte(scratch + i, byte_at(codes + whole + i) if i < rest else 0)
            store(out + 4 * whole, widen_16(load_bytes(scratch), tables))
            whole += 16
        for i in range(whole, (count + 31) // 32 * 32, 16):
            store(out + 4 * i, floats(np.float32(0)))


@entry
def widen_packed(args: int, unit: int, scratch: int) -> None:
    """All slabs of a block of columns. Words: packed codes, tables, where they go, steps."""
    steps = word(args, 3)
    widen_slab(word(args, 0) + unit * steps * 1024, word(args, 1), word(args, 2) + unit * steps * 1024 * ELEMENT, steps)


def widened_task(packed: Word, tables: Word, out: Word, blocks: int, steps: int) -> Task:
    """Packed codes (blocks, steps, 1024) -> the slabs that `widen_slab` makes of them."""
    return Task(widen_packed, (packed, tables, out, steps), blocks)


@native
def rounded_half(v: Any) -> Any:
    """float32 rounded to bfloat16, to nearest even; a NaN stays one."""
    bits = as_int(v)
    rounded = (bits + ints(0x7FFF) + (shr(bits, 16) & ints(1))) & ints(0xFFFF0000)
    return as_float(select_int(v == v, rounded, bits | ints(0x00400000)))


if _HALF:

    @native
    def put_pair(step: int, k: int, tile: int, x: Any, y: Any) -> None:
        """Writes the terms k (even) and k + 1 of sixteen columns into a step of a slab."""
        low, high = as_int(rounded_half(x)), as_int(rounded_half(y))
        store(step + tile * 1024 + k // 2 * 64, as_float(shr(low, 16) | (high & ints(0xFFFF0000))))

else:

    @native
    def put_pair(step: int, k: int, tile: int, x: Any, y: Any) -> None:
        """Writes the terms k (even) and k + 1 of sixteen columns into a step of a slab."""
        store(step + k * 128 + tile * 64, x)
        store(step + k * 128 + 128 + tile * 64, y)


THIN = 4 if _HALF else 0
"""Up to so many rows, products go through `thin_block`."""

if _HALF:

    @native
    def thin_block(a: int, stride: int, offsets: int, packed: int, tables: int, c: int, steps: int, rows: int) -> None:
        """c = a @ b for 1 to THIN rows and a column block of packed codes; rows after the last may be read."""
        if rows == 1:
            thin_1(a, stride, offsets, packed, tables, c, steps)
        elif rows == 2:
            thin_2(a, stride, offsets, packed, tables, c, steps)
        else:
            thin_4(a, stride, offsets, packed, tables, c, steps)

else:

    @native
    def thin_block(a: int, stride: int, offsets: int, packed: int, tables: int, c: int, steps: int, rows: int) -> None:
        """Never called."""


# -- packing ----------------------------------------------------------------------------------------------------------


def packed_steps(k: int) -> int:
    """Steps of K terms: one at least, since a sum needs a start."""
    return max(1, -(-k // STEP))


def _in_order(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, K) -> (blocks, steps, 1024): the elements of each slab in the order in which the engine multiplies them."""
    n, k = rows.shape
    blocks, steps = -(-n // COLUMNS), k // STEP
    full = np.zeros((blocks * COLUMNS, k), rows.dtype)
    full[:n] = rows
    if _HALF:
        # tile, pair of k, column, k in the pair
        return full.reshape(blocks, 2, 16, steps, 16, 2).transpose(0, 3, 1, 4, 2, 5).reshape(blocks, steps, 1024)
    return full.reshape(blocks, COLUMNS, steps, STEP).transpose(0, 2, 3, 1).reshape(blocks, steps, 1024)


def pack_codes(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A right operand u8 (N, K), K a multiple of STEP, as `widen_slab` reads it: u8 (blocks, steps, 1024). Columns past N are zero."""
    ordered = _in_order(codes)
    if not _HALF:
        return aligned_copy(ordered)
    # Of each 64, eight of the first 32, eight of the second, and so on: what `vpunpck` interleaves.
    blocks, steps, _ = ordered.shape
    return aligned_copy(ordered.reshape(blocks, steps, 16, 2, 4, 8).swapaxes(3, 4)).reshape(blocks, steps, 1024)


def order_of_slab() -> npt.NDArray[np.int64]:
    """For each byte of a packed step, whose it is: column * 32 + term."""
    index = np.arange(COLUMNS * STEP).reshape(COLUMNS, STEP)
    # In two halves, since the order is told in bytes.
    low, high = (pack_codes((index >> shift & 255).astype(np.uint8)).reshape(-1).astype(np.int64) for shift in (0, 8))
    return low | high << 8


def pack_values(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A right operand f32 (N, K) as a slab, nothing rounded: u8 (parts, blocks, steps, 1024 * ELEMENT), three parts of bfloat16 or one."""
    ordered = _in_order(values)
    if not _HALF:
        return aligned_copy(ordered[None]).view(np.uint8)
    parts = aligned_copy(np.empty((3, *ordered.shape), np.uint16))
    rest = np.ascontiguousarray(ordered)
    for i in range(3):
        with np.errstate(over="ignore", invalid="ignore"):
            bits = rest.view(np.uint32)
            # To nearest even; a NaN keeps its upper half.
            rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
            parts[i] = np.where(np.isnan(rest), bits >> 16 | 0x40, rounded)
            kept = (parts[i].astype(np.uint32) << 16).view(np.float32)
            rest = np.where(np.isfinite(kept), rest - kept, np.float32(0))
    return parts.view(np.uint8)
