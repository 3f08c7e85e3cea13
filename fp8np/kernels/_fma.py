"""Blocks of a product in float32 multiply-adds, for CPUs without bfloat16 units.

The sums lie as those of `fp8np.kernels._x86`, four tiles of 16 x 16. a is read in place, 32 float32 (128 bytes) a step, from
a + r * stride + offsets[s]. b is f32 (steps, 32, 32): k, then columns.

With 512-bit registers eight rows by 32 columns are 16 sums, enough to hide the latency of a multiply-add. With sixteen registers of
256 bits six rows by 16 columns are 12 sums; four rows would be 8, which just hide it (4 cycles, two a cycle).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from fp8np.kernels._emit import I32, I64, at, call, load, loop, plus, store, times
from fp8np.kernels._jit import intrinsic, types
from fp8np.kernels._vector import memory

__all__ = ["fma_1x32", "fma_2x16", "fma_4x16", "fma_6x16", "fma_8x32", "part_1x32", "part_2x16", "part_6x16", "part_8x32"]

_F32 = ir.FloatType()
_VF = ir.VectorType(_F32, 16)
_VI = ir.VectorType(I32, 16)


def _rows(rows: int, vectors: int) -> Callable[..., Any]:
    def emit(builder: Any, a: Any, stride: Any, offsets: Any, b: Any, c: Any, steps: Any, first: Any, terms: Any = None) -> None:
        places = [plus(builder, c, j * 1024 + r * 64) for r in range(rows) for j in range(vectors)]
        fresh = builder.icmp_signed("!=", first, ir.Constant(I64, 0))
        sums = [builder.select(fresh, ir.Constant(_VF, [0.0] * 16), load(builder, p, _VF)) for p in places]
        starts = [plus(builder, a, times(builder, stride, r)) for r in range(rows)]

        def body(step: Any, sums: list[Any]) -> list[Any]:
            offset = builder.load(at(builder, plus(builder, offsets, times(builder, step, 8)), I64))
            left = plus(builder, b, times(builder, step, 4096))
            tops = [plus(builder, s, offset) for s in starts]

            def term(k: Any, sums: list[Any]) -> list[Any]:
                line = plus(builder, left, times(builder, k, 128))
                columns = [load(builder, plus(builder, line, 64 * j), _VF) for j in range(vectors)]
                out = []
                for r in range(rows):
                    value = load(builder, plus(builder, tops[r], times(builder, k, 4)), _F32, 4)
                    wide = builder.insert_element(ir.Constant(_VF, ir.Undefined), value, ir.Constant(I32, 0))
                    wide = builder.shuffle_vector(wide, ir.Constant(_VF, ir.Undefined), ir.Constant(_VI, [0] * 16))
                    out += [call(builder, "llvm.fmuladd.v16f32", _VF, wide, columns[j], sums[vectors * r + j]) for j in range(vectors)]
                return out

            return loop(builder, ir.Constant(I64, 32) if terms is None else terms, sums, term)

        for place, value in zip(places, loop(builder, steps, sums, body), strict=True):
            store(builder, value, place)

    return emit


def _twin(rows: int, vectors: int) -> Callable[..., None]:
    def twin(a: int, stride: int, offsets: int, b: int, c: int, steps: int, first: int, terms: int = 32) -> None:
        for j in range(vectors):
            sums = memory(c + j * 1024, rows * 16, np.float32).reshape(rows, 16)
            if first:
                sums[:] = 0
            for s, offset in enumerate(memory(offsets, steps, np.int64)):
                right = memory(b + s * 4096, 1024, np.float32).reshape(32, 32)[:, 16 * j : 16 * j + 16]
                for r in range(rows):
                    left = memory(a + r * stride + int(offset), terms, np.float32)
                    for k in range(terms):
                        sums[r] += left[k] * right[k]

    return twin


def _block(rows: int, vectors: int, parameters: int = 7) -> Any:
    return intrinsic(_twin(rows, vectors), types.void, *(types.int64,) * parameters)(_rows(rows, vectors))


fma_8x32 = _block(8, 2)
"""c (+)= a @ b for eight rows and 32 columns: (a, stride, offsets, b, c, steps, first); with `first`, c need not be zero before."""
fma_1x32 = _block(1, 2)
"""The same for one row."""
fma_6x16 = _block(6, 1)
"""The same for six rows and 16 columns."""
fma_4x16 = _block(4, 1)
"""The same for four rows and 16 columns."""
fma_2x16 = _block(2, 1)
"""The same for two rows and 16 columns."""

part_8x32 = _block(8, 2, 8)
"""`fma_8x32` over steps of fewer terms, the last argument; b has 32 lines a step all the same."""
part_6x16 = _block(6, 1, 8)
"""The same for six rows and 16 columns."""
part_2x16 = _block(2, 1, 8)
"""The same for two rows and 16 columns."""
part_1x32 = _block(1, 2, 8)
"""The same for one row and 32 columns."""
