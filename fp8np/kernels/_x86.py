"""Instructions of x86 CPUs: AMX tiles, dot products of bfloat16, table look-ups in registers. Each has a twin in NumPy.

Blocks are 32 x 32. All tiers lay out the sums alike, as four tiles of 16 x 16 float32::

    c (2, 2, 16, 16) f32     c[i, j, r, n] is row 16 i + r, column 16 j + n

For bfloat16, b is in the order that the instructions take ("VNNI"): pairs of k side by side, 16 columns to a row of 64 bytes::

    b (steps, 2, 16, 16, 2) bf16   b[s, j, p, n, h] is k = 32 s + 2 p + h, column 16 j + n

a is read in place, 32 k (64 bytes) at a time, from wherever `offsets` says: row r of step s starts at a + r * stride + offsets[s].
A matrix has offsets 0, 64, 128, ...; a convolution's walk over the taps of its filter, so that no picture is ever unfolded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from fp8np.kernels._emit import at, call, clear, load, loop, plus, store, times
from fp8np.kernels._jit import intrinsic, types
from fp8np.kernels._vector import F32, memory

__all__ = [
    "amx_block_1",
    "amx_block_2",
    "amx_stream_1",
    "amx_stream_2",
    "bf16_dots_1",
    "bf16_dots_8",
    "configure",
    "store_brain",
    "thin_1",
    "thin_2",
    "thin_4",
    "tiles_off",
    "tiles_on",
    "widen_64",
    "widen_packed_64",
]

_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VOID, _V64, _VF, _VB = ir.VoidType(), ir.VectorType(_I8, 64), ir.VectorType(_F32, 16), ir.VectorType(_I32, 16)
TILE = 1024
"""Bytes of a tile."""


# -- AMX --------------------------------------------------------------------------------------------------------------
#
#     tiles 0 1   c      4   a, rows 0 .. 15        6   b, columns  0 .. 15
#           2 3          5   a, rows 16 .. 31       7   b, columns 16 .. 31
#
# Four products for four loads: each load of 16 cache lines takes 8 cycles, each product 16.


def configure(builder: Any, address: Any) -> None:
    """Emits the configuration of all eight tiles as 16 rows of 64 bytes; `address` is of 64 bytes that this writes and reads."""
    clear(builder, address, ir.Constant(_I64, 64))
    builder.store(ir.Constant(_I8, 1), at(builder, address))  # palette 1
    for tile in range(8):
        builder.store(ir.Constant(_I16, 64), at(builder, plus(builder, address, 16 + 2 * tile), _I16))
        builder.store(ir.Constant(_I8, 16), at(builder, plus(builder, address, 48 + tile)))
    call(builder, "llvm.x86.ldtilecfg", _VOID, at(builder, address))


tiles_on = intrinsic(lambda address: None, types.void, types.int64)(configure)
"""Configures the tiles; see `configure`."""


@intrinsic(lambda: None, types.void)
def tiles_off(builder: Any) -> Any:
    """Gives the tiles back: with tiles in use, every switch of threads saves 8 KiB."""
    call(builder, "llvm.x86.tilerelease", _VOID)


def _tile(builder: Any, name: str, *args: Any) -> None:
    call(builder, f"llvm.x86.{name}", _VOID, *[ir.Constant(_I8, a) if isinstance(a, int) else a for a in args])


def _amx(rows: int, load_a: str = "tileloadd64") -> Callable[..., Any]:
    c_tiles, a_tiles, b_tiles = (0, 1, 2, 3)[: 2 * rows], (4, 5)[:rows], (6, 7)

    def emit(builder: Any, a: Any, stride: Any, offsets: Any, b: Any, c: Any, steps: Any, first: Any) -> None:
        line = ir.Constant(_I64, 64)
        with builder.if_else(builder.icmp_signed("!=", first, ir.Constant(_I64, 0))) as (fresh, resumed):
            with fresh:
                for t in c_tiles:
                    _tile(builder, "tilezero", t)
            with resumed:
                for t in c_tiles:
                    _tile(builder, "tileloadd64", t, at(builder, plus(builder, c, t * TILE)), line)
        below = times(builder, stride, 16)

        def body(step: Any, _: list[Any]) -> list[Any]:
            offset = builder.load(at(builder, plus(builder, offsets, times(builder, step, 8)), _I64))
            top = plus(builder, a, offset)
            left = plus(builder, b, times(builder, step, 2 * TILE))
            for j, t in enumerate(b_tiles):
                _tile(builder, "tileloadd64", t, at(builder, plus(builder, left, j * TILE)), line)
            for i, t in enumerate(a_tiles):
                _tile(builder, load_a, t, at(builder, top if i == 0 else plus(builder, top, below)), stride)
            for i, ta in enumerate(a_tiles):
                for j, tb in enumerate(b_tiles):
                    _tile(builder, "tdpbf16ps", c_tiles[2 * i + j], ta, tb)
            return []

        loop(builder, steps, [], body)
        for t in c_tiles:
            _tile(builder, "tilestored64", t, at(builder, plus(builder, c, t * TILE)), line)

    return emit


def _bf16_values(words: Any) -> Any:
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _block_twin(rows: int) -> Callable[..., None]:
    def twin(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int) -> None:
        sums = memory(c, rows * 2 * 256, np.float32).reshape(rows, 2, 16, 16)
        if first:
            sums[:] = 0
        for s, offset in enumerate(memory(offsets, steps, np.int64)):
            right = _bf16_values(memory(b + s * 2 * TILE, TILE, np.uint16)).reshape(2, 16, 16, 2)
            for r in range(16 * rows):
                left = _bf16_values(memory(a + r * stride + int(offset), 32, np.uint16)).reshape(16, 2)
                sums[r // 16, :, r % 16] += np.einsum("ph,jpnh->jn", left, right)

    return twin


_BLOCK = (types.void, *(types.int64,) * 7)

amx_block_2 = intrinsic(_block_twin(2), *_BLOCK)(_amx(2))
"""c (+)= a @ b of a block, with AMX: (a, stride, offsets, b, c, steps, first); with `first`, c need not be zero before."""

amx_block_1 = intrinsic(_block_twin(1), *_BLOCK)(_amx(1))
"""The same for 16 rows."""


amx_stream_2 = intrinsic(_block_twin(2), *_BLOCK)(_amx(2, "tileloaddt164"))
"""`amx_block_2` with a hint that a will not be read again soon, which keeps b in the first-level cache. 32 rows by 16 steps, a from the
second level: 1.2 times faster; where a comes back, slower."""

amx_stream_1 = intrinsic(_block_twin(1), *_BLOCK)(_amx(1, "tileloaddt164"))
"""The same for 16 rows."""


# -- AVX-512 BF16 -----------------------------------------------------------------------------------------------------


def _dots(rows: int) -> Callable[..., Any]:
    """Emits c (+)= a @ b for `rows` rows within one tile row, 32 columns, in registers."""

    def emit(builder: Any, a: Any, stride: Any, offsets: Any, b: Any, c: Any, steps: Any, first: Any) -> None:
        places = [plus(builder, c, j * TILE + r * 64) for r in range(rows) for j in range(2)]
        fresh = builder.icmp_signed("!=", first, ir.Constant(_I64, 0))
        zero = ir.Constant(_VF, [0.0] * 16)
        sums = [builder.select(fresh, zero, load(builder, p, _VF)) for p in places]
        starts = [plus(builder, a, times(builder, stride, r)) for r in range(rows)]

        def body(step: Any, sums: list[Any]) -> list[Any]:
            offset = builder.load(at(builder, plus(builder, offsets, times(builder, step, 8)), _I64))
            left = plus(builder, b, times(builder, step, 2 * TILE))
            tops = [plus(builder, s, offset) for s in starts]

            def pair(p: Any, sums: list[Any]) -> list[Any]:
                columns = [load(builder, plus(builder, left, times(builder, p, 64), j * TILE), _VB) for j in range(2)]
                out = []
                for r in range(rows):
                    value = load(builder, plus(builder, tops[r], times(builder, p, 4)), _I32)
                    wide = builder.insert_element(ir.Constant(_VB, ir.Undefined), value, ir.Constant(_I32, 0))
                    wide = builder.shuffle_vector(wide, ir.Constant(_VB, ir.Undefined), ir.Constant(_VB, [0] * 16))
                    out += [_dot(builder, sums[2 * r + j], wide, columns[j]) for j in range(2)]
                return out

            return loop(builder, ir.Constant(_I64, 16), sums, pair)

        for place, value in zip(places, loop(builder, steps, sums, body), strict=True):
            store(builder, value, place)

    return emit


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _dot(builder: Any, total: Any, x: Any, y: Any) -> Any:
    kind = ir.VectorType(_BFloat(), 32)
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _VF, total, builder.bitcast(x, kind), builder.bitcast(y, kind))


def _dots_twin(rows: int) -> Callable[..., None]:
    def twin(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int) -> None:
        block = np.zeros((2, 16, 16), np.float32)
        sums = memory(c, 512, np.float32).reshape(2, 16, 16)
        if not first:
            block[:, :rows] = sums[:, :rows]
        for s, offset in enumerate(memory(offsets, steps, np.int64)):
            right = _bf16_values(memory(b + s * 2 * TILE, TILE, np.uint16)).reshape(2, 16, 16, 2)
            for r in range(rows):
                left = _bf16_values(memory(a + r * stride + int(offset), 32, np.uint16)).reshape(16, 2)
                block[:, r] += np.einsum("ph,jpnh->jn", left, right)
        sums[:, :rows] = block[:, :rows]

    return twin


bf16_dots_8 = intrinsic(_dots_twin(8), *_BLOCK)(_dots(8))
"""c (+)= a @ b for eight rows and 32 columns: the first eight rows of two tiles side by side; arguments as `amx_block_2`."""

bf16_dots_1 = intrinsic(_dots_twin(1), *_BLOCK)(_dots(1))
"""The same for one row."""


def _store_brain_twin(address: int, v: Any) -> None:
    bits = v.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    memory(address, 16, np.uint16)[:] = np.where(np.isnan(v), bits >> np.uint32(16) | np.uint32(0x40), rounded)


@intrinsic(_store_brain_twin, types.void, types.int64, F32)
def store_brain(builder: Any, address: Any, v: Any) -> Any:
    """Sixteen float32 as bfloat16, to nearest even, in one instruction; what is below the normal numbers becomes zero."""
    narrow = call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", ir.VectorType(_BFloat(), 16), v)
    store(builder, builder.bitcast(narrow, ir.VectorType(_I16, 16)), address)


# -- look-ups ---------------------------------------------------------------------------------------------------------
#
# The 128 magnitudes of a format are 128 bytes for the high and 128 for the low half of their bfloat16: two registers each, in
# which `vpermi2b` looks up 64 codes at once.


def _widen_twin(codes: int, tables: int, out: int) -> None:
    code = memory(codes, 64, np.uint8)
    table = memory(tables, 256, np.uint8)
    magnitude = code & 0x7F
    high = table[magnitude] | (code & 0x80)
    low = table[128 + magnitude.astype(np.int64)]
    memory(out, 64, np.uint16)[:] = high.astype(np.uint16) << 8 | low


def _widened(builder: Any, code: Any, tables: Any) -> tuple[Any, Any]:
    """The bfloat16 of 64 codes, 32 and 32."""
    return _widened_from(builder, code, [load(builder, plus(builder, tables, 64 * i), _V64) for i in range(4)])


def _widened_from(builder: Any, code: Any, halves: list[Any]) -> tuple[Any, Any]:
    magnitude = builder.and_(code, ir.Constant(_V64, [0x7F] * 64))
    sign = builder.and_(code, ir.Constant(_V64, [0x80] * 64))
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    high = builder.or_(call(builder, name, _V64, halves[0], magnitude, halves[1]), sign)
    low = call(builder, name, _V64, halves[2], magnitude, halves[3])
    index = ir.VectorType(_I32, 64)
    # Interleaved within lanes of 128 bits, which is one instruction each: 8 bytes of each lane go to the first half.
    first = [x for lane in range(0, 64, 16) for j in range(8) for x in (lane + j, 64 + lane + j)]
    second = [x + 8 for x in first]
    return tuple(builder.shuffle_vector(low, high, ir.Constant(index, i)) for i in (first, second))


@intrinsic(_widen_twin, types.void, types.int64, types.int64, types.int64)
def widen_64(builder: Any, codes: Any, tables: Any, out: Any) -> Any:
    """The bfloat16 of 64 codes in a row; tables u8 (2, 128): high and low bytes of the magnitudes."""
    quads = builder.bitcast(load(builder, codes, _V64), ir.VectorType(_I64, 8))
    order = ir.Constant(ir.VectorType(_I32, 8), [0, 4, 1, 5, 2, 6, 3, 7])
    mixed = builder.shuffle_vector(quads, ir.Constant(quads.type, ir.Undefined), order)
    for i, half in enumerate(_widened(builder, builder.bitcast(mixed, _V64), tables)):
        store(builder, half, plus(builder, out, 64 * i))


def _widen_packed_twin(codes: int, tables: int, out: int) -> None:
    natural = memory(codes, 64, np.uint8).reshape(4, 2, 8).swapaxes(0, 1).reshape(64).copy()
    _widen_twin(natural.ctypes.data, tables, out)


@intrinsic(_widen_packed_twin, types.void, types.int64, types.int64, types.int64)
def widen_packed_64(builder: Any, codes: Any, tables: Any, out: Any) -> Any:
    """As `widen_64`, of codes in the order that needs no permutation: of each 16, eight belong to the first 32, eight to the rest."""
    for i, half in enumerate(_widened(builder, load(builder, codes, _V64), tables)):
        store(builder, half, plus(builder, out, 64 * i))


# -- thin products ----------------------------------------------------------------------------------------------------
#
# For a few rows, widening is most of the work, and a slab in memory a detour: 64 codes, widened in registers, are two pairs of k for
# sixteen columns, and meet the rows at once. Two sums for each, since one would wait for its own latency.


def _thin(rows: int) -> Callable[..., Any]:
    def emit(builder: Any, a: Any, stride: Any, offsets: Any, packed: Any, tables: Any, c: Any, steps: Any) -> None:
        halves = [load(builder, plus(builder, tables, 64 * i), _V64) for i in range(4)]
        starts = [plus(builder, a, times(builder, stride, r)) for r in range(rows)]

        def body(step: Any, sums: list[Any]) -> list[Any]:
            sums = list(sums)
            offset = builder.load(at(builder, plus(builder, offsets, times(builder, step, 8)), _I64))
            codes = plus(builder, packed, times(builder, step, TILE))
            for chunk in range(16):
                tile, pair = chunk // 8, chunk % 8 * 2
                wide = _widened_from(builder, load(builder, plus(builder, codes, 64 * chunk), _V64), halves)
                for r in range(rows):
                    for i, half in enumerate(wide):
                        value = load(builder, plus(builder, starts[r], offset, 4 * (pair + i)), _I32, 4)
                        all_lanes = builder.insert_element(ir.Constant(_VB, ir.Undefined), value, ir.Constant(_I32, 0))
                        all_lanes = builder.shuffle_vector(all_lanes, ir.Constant(_VB, ir.Undefined), ir.Constant(_VB, [0] * 16))
                        place = (r * 2 + tile) * 2 + i
                        sums[place] = _dot(builder, sums[place], all_lanes, half)
            return sums

        results = loop(builder, steps, [ir.Constant(_VF, [0.0] * 16)] * (4 * rows), body)
        for r in range(rows):
            for tile in range(2):
                both = results[(r * 2 + tile) * 2 : (r * 2 + tile) * 2 + 2]
                store(builder, builder.fadd(*both), plus(builder, c, tile * TILE + r * 64))

    return emit


def _thin_twin(rows: int) -> Callable[..., None]:
    def twin(a: int, stride: int, offsets: int, packed: int, tables: int, c: int, steps: int) -> None:
        slab = np.empty(steps * TILE, np.uint16)
        for i in range(0, steps * TILE, 64):
            _widen_packed_twin(packed + i, tables, slab[i:].ctypes.data)
        _dots_twin(rows)(a, stride, offsets, slab.ctypes.data, c, steps, 1)

    return twin


_THIN = (types.void, *(types.int64,) * 7)
thin_1 = intrinsic(_thin_twin(1), *_THIN)(_thin(1))
"""c = a @ b for one row and 32 columns of packed codes: (a, stride, offsets, packed, tables, c, steps)."""
thin_2 = intrinsic(_thin_twin(2), *_THIN)(_thin(2))
"""The same for two rows."""
thin_4 = intrinsic(_thin_twin(4), *_THIN)(_thin(4))
"""The same for four."""
