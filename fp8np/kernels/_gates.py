"""Products of a few rows with the weights of recurrent gates, sixteen hidden units at a time. Each has a twin in NumPy.

All gates of sixteen hidden units are computed together, so that the cell can follow at once. Sums lie in tiles: gate g of row r at
c + 1024 g + 64 r. Weights of sixteen units, a *slice*, lie in one piece, in the order in which they are read:

- for float32 multiply-adds: term by term, of each the gates, sixteen each: f32, or bfloat16 where that holds them (FP8 values).
- for AMX: 32 terms by 32, of each a tile of bfloat16 for each gate (see `fp8np.kernels._x86`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._emit import I8, I32, I64, at, call, load, loop, plus, store, times
from fp8np.kernels._jit import intrinsic, native, types
from fp8np.kernels._vector import memory
from fp8np.kernels._x86 import tiles_off, tiles_on

__all__ = ["BRAIN", "FLOATS", "HAS_TILES", "TILES", "begin", "end", "fma_gates", "multiply_3", "multiply_4", "prefetch", "tile_gates"]

_F32 = ir.FloatType()
_VF, _VI = ir.VectorType(_F32, 16), ir.VectorType(I32, 16)


def _fma(rows: int, span: int, brain: bool) -> Callable[..., Any]:
    size = 32 if brain else 64

    def weights(builder: Any, address: Any) -> Any:
        if not brain:
            return load(builder, address, _VF)
        wide = builder.zext(load(builder, address, ir.VectorType(ir.IntType(16), 16)), _VI)
        return builder.bitcast(builder.shl(wide, ir.Constant(_VI, [16] * 16)), _VF)

    def emit(builder: Any, a: Any, stride: Any, b: Any, gates: Any, c: Any, terms: Any) -> None:
        starts = [plus(builder, a, times(builder, stride, r)) for r in range(rows)]
        step = times(builder, gates, size)

        def term(k: Any, sums: list[Any]) -> list[Any]:
            line = plus(builder, b, builder.mul(step, k))
            columns = [weights(builder, plus(builder, line, size * g)) for g in range(span)]
            out = []
            for r in range(rows):
                value = load(builder, plus(builder, starts[r], times(builder, k, 4)), _F32, 4)
                wide = builder.insert_element(ir.Constant(_VF, ir.Undefined), value, ir.Constant(I32, 0))
                wide = builder.shuffle_vector(wide, ir.Constant(_VF, ir.Undefined), ir.Constant(_VI, [0] * 16))
                out += [call(builder, "llvm.fmuladd.v16f32", _VF, wide, columns[g], sums[span * r + g]) for g in range(span)]
            return out

        sums = loop(builder, terms, [ir.Constant(_VF, [0.0] * 16)] * (rows * span), term)
        for r in range(rows):
            for g in range(span):
                store(builder, sums[span * r + g], plus(builder, c, 1024 * g + 64 * r))

    return emit


def _fma_twin(rows: int, span: int, brain: bool) -> Callable[..., None]:
    def twin(a: int, stride: int, b: int, gates: int, c: int, terms: int) -> None:
        count = terms * gates * 16
        if brain:
            weights = (memory(b, count, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            weights = memory(b, count, np.float32)
        for r in range(rows):
            sums = np.zeros((span, 16), np.float32)
            for x, line in zip(memory(a + r * stride, terms, np.float32), weights.reshape(terms, gates, 16), strict=True):
                sums += x * line[:span]
            for g in range(span):
                memory(c + 1024 * g + 64 * r, 16, np.float32)[:] = sums[g]

    return twin


def fma_gates(rows: int, span: int, brain: bool) -> Any:
    """c = a @ b for some rows and `span` gates, from that on which b and c point at: (a, stride, b, gates, c, terms).

    a: f32, rows at distances of `stride`. b: of a slice, bfloat16 if `brain`, else float32. Sums in the order of terms, at least one.
    """
    return intrinsic(_fma_twin(rows, span, brain), types.void, *(types.int64,) * 6)(_fma(rows, span, brain))


@intrinsic(lambda address: None, types.void, types.int64)
def prefetch(builder: Any, address: Any) -> Any:
    """Brings a cache line nearer that will be read soon."""
    hints = [ir.Constant(I32, i) for i in (0, 3, 1)]  # to read, keep in every level, data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), at(builder, address), *hints)


# -- AMX --------------------------------------------------------------------------------------------------------------
#
# Tiles: sums of the gates 0 .. 3, a 4, b 5 .. 7 in turn.


def _tile(builder: Any, name: str, *args: Any) -> None:
    call(builder, f"llvm.x86.{name}", ir.VoidType(), *[ir.Constant(I8, a) if isinstance(a, int) else a for a in args])


def _tiles(gates: int) -> Callable[..., Any]:
    def emit(builder: Any, a: Any, stride: Any, b: Any, c: Any, steps: Any) -> None:
        line = ir.Constant(I64, 64)
        for g in range(gates):
            _tile(builder, "tilezero", g)

        def step(s: Any, _: list[Any]) -> list[Any]:
            _tile(builder, "tileloadd64", 4, at(builder, plus(builder, a, times(builder, s, 64))), stride)
            left = plus(builder, b, times(builder, s, 1024 * gates))
            for g in range(gates):
                _tile(builder, "tileloadd64", 5 + g % 3, at(builder, plus(builder, left, 1024 * g)), line)
                _tile(builder, "tdpbf16ps", g, 4, 5 + g % 3)
            return []

        loop(builder, steps, [], step)
        for g in range(gates):
            _tile(builder, "tilestored64", g, at(builder, plus(builder, c, 1024 * g)), line)

    return emit


def _tiles_twin(gates: int) -> Callable[..., None]:
    def twin(a: int, stride: int, b: int, c: int, steps: int) -> None:
        def floats(words: Any) -> Any:
            return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)

        right = floats(memory(b, steps * gates * 512, np.uint16)).reshape(steps, gates, 16, 16, 2)
        sums = np.zeros((gates, 16, 16), np.float32)
        for r in range(16):
            left = floats(memory(a + r * stride, steps * 32, np.uint16)).reshape(steps, 16, 2)
            for s in range(steps):
                sums[:, r] += np.einsum("ph,gpnh->gn", left[s], right[s])
        memory(c, gates * 256, np.float32)[:] = sums.reshape(-1)

    return twin


def tile_gates(gates: int) -> Any:
    """c = a @ b for sixteen rows and up to four gates: (a, stride, b, c, steps). a: bfloat16, rows at distances of `stride`."""
    return intrinsic(_tiles_twin(gates), types.void, *(types.int64,) * 5)(_tiles(gates))


# -- for each CPU -----------------------------------------------------------------------------------------------------

FLOATS, BRAIN, TILES = range(3)
"""Orders of weights: float32 or bfloat16 for multiply-adds, bfloat16 for AMX."""

_CPU = describe().cpu
HAS_TILES = _CPU >= Cpu.AMX_BF16
"""Whether weights may be in the order of tiles here."""

if HAS_TILES:
    _tiles_3, _tiles_4 = tile_gates(3), tile_gates(4)

    @native
    def begin(order: int, scratch: int) -> None:
        """Before the products of a unit; writes 64 bytes of scratch."""
        if order == TILES:
            tiles_on(scratch)

    @native
    def end(order: int) -> None:
        """After the products of a unit."""
        if order == TILES:
            tiles_off()

else:

    @native
    def begin(order: int, scratch: int) -> None:
        """Before the products of a unit."""

    @native
    def end(order: int) -> None:
        """After the products of a unit."""

    @native
    def _tiles_3(a: int, stride: int, b: int, c: int, steps: int) -> None:
        """Never called."""

    _tiles_4 = _tiles_3

if _CPU >= Cpu.AVX512:
    # A weight read once serves four rows: 16 or 12 sums. Six rows are no faster.
    _ROWS, _SPAN_3, _SPAN_4 = 4, 3, 4
elif _CPU >= Cpu.AVX2:
    _ROWS, _SPAN_3, _SPAN_4 = 2, 3, 2
else:
    _ROWS, _SPAN_3, _SPAN_4 = 1, 3, 2
# One row alone waits for its own additions unless all gates are on their way; sixteen registers of 128 bits do not hold them.
_ALONE_4 = 4 if _CPU >= Cpu.AVX2 else 2

_floats_3, _floats_4 = fma_gates(_ROWS, _SPAN_3, False), fma_gates(_ROWS, _SPAN_4, False)
_brain_3, _brain_4 = fma_gates(_ROWS, _SPAN_3, True), fma_gates(_ROWS, _SPAN_4, True)
_floats_alone_3, _floats_alone_4 = fma_gates(1, 3, False), fma_gates(1, _ALONE_4, False)
_brain_alone_3, _brain_alone_4 = fma_gates(1, 3, True), fma_gates(1, _ALONE_4, True)


@native
def multiply_3(order: int, a: int, stride: int, b: int, c: int, terms: int, rows: int) -> None:
    """The sums of up to 16 rows with a slice of three gates. terms: a multiple of 32 where the order is TILES. See the module."""
    if order == TILES:
        _tiles_3(a, stride, b, c, terms // 32)
        return
    together = rows // _ROWS * _ROWS
    for r in range(0, together, _ROWS):
        if order == FLOATS:
            _floats_3(a + r * stride, stride, b, 3, c + 64 * r, terms)
        else:
            _brain_3(a + r * stride, stride, b, 3, c + 64 * r, terms)
    for r in range(together, rows):
        if order == FLOATS:
            _floats_alone_3(a + r * stride, stride, b, 3, c + 64 * r, terms)
        else:
            _brain_alone_3(a + r * stride, stride, b, 3, c + 64 * r, terms)


@native
def multiply_4(order: int, a: int, stride: int, b: int, c: int, terms: int, rows: int) -> None:
    """As `multiply_3`, of four gates."""
    if order == TILES:
        _tiles_4(a, stride, b, c, terms // 32)
        return
    together = rows // _ROWS * _ROWS
    for r in range(0, together, _ROWS):
        for g in range(0, 4, _SPAN_4):
            if order == FLOATS:
                _floats_4(a + r * stride, stride, b + 64 * g, 4, c + 64 * r + 1024 * g, terms)
            else:
                _brain_4(a + r * stride, stride, b + 32 * g, 4, c + 64 * r + 1024 * g, terms)
    for r in range(together, rows):
        for g in range(0, 4, _ALONE_4):
            if order == FLOATS:
                _floats_alone_4(a + r * stride, stride, b + 64 * g, 4, c + 64 * r + 1024 * g, terms)
            else:
                _brain_alone_4(a + r * stride, stride, b + 32 * g, 4, c + 64 * r + 1024 * g, terms)
