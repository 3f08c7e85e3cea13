"""More on vectors: masks of their first lanes, roots, look-ups, and transposing 16 x 16 elements in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from fp8np.kernels._emit import I8, I32, I64, call, load, plus, store, times
from fp8np.kernels._jit import intrinsic, types
from fp8np.kernels._vector import F32, LANES, MASK, memory
from fp8np.kernels._vector import I32 as INTS

__all__ = ["first", "gather", "int_at", "sqrt", "transpose_bytes", "transpose_words"]

_F32, _I1 = ir.FloatType(), ir.IntType(1)
_VF, _VI, _V64 = ir.VectorType(_F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(I64, LANES)


def _splat(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_VI, [0] * LANES))


@intrinsic(lambda count: np.arange(LANES) < count, MASK, types.int64)
def first(builder: Any, count: Any) -> Any:
    """The mask that holds for lanes 0 .. count - 1."""
    lanes = ir.Constant(_VI, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(count, I32)))


@intrinsic(lambda v: np.sqrt(v), F32, F32)
def sqrt(builder: Any, v: Any) -> Any:
    """Square roots, correctly rounded; NaN of negative numbers."""
    return call(builder, f"llvm.sqrt.v{LANES}f32", _VF, v)


def _gather_twin(table: int, index: Any) -> Any:
    return memory(table, int(index.max()) + 1, np.float32)[index]


@intrinsic(_gather_twin, F32, types.int64, INTS)
def gather(builder: Any, table: Any, index: Any) -> Any:
    """The float32 of a table, from an address on, that sixteen indices >= 0 name."""
    places = builder.add(_splat(builder, table), builder.shl(builder.zext(index, _V64), ir.Constant(_V64, [2] * LANES)))
    pointers = builder.inttoptr(places, ir.VectorType(_F32.as_pointer(), LANES))
    everywhere = ir.Constant(ir.VectorType(_I1, LANES), [1] * LANES)
    name = f"llvm.masked.gather.v{LANES}f32.v{LANES}p0"
    return call(builder, name, _VF, pointers, ir.Constant(I32, 4), everywhere, ir.Constant(_VF, [0.0] * LANES))


@intrinsic(lambda address: int(memory(address, 1, np.int32)[0]), types.int64, types.int64)
def int_at(builder: Any, address: Any) -> Any:
    """The int32 at an address."""
    return builder.sext(load(builder, address, I32), I64)


# -- transposing ------------------------------------------------------------------------------------------------------


def _transpose_twin(dtype: Any) -> Callable[..., None]:
    def twin(source: int, stride: int, out: int, out_stride: int) -> None:
        block = np.array([memory(source + i * stride, 16, dtype) for i in range(16)])
        for j in range(16):
            memory(out + j * out_stride, 16, dtype)[:] = block[:, j]

    return twin


def _shuffle(builder: Any, x: Any, y: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(places)), places))


@intrinsic(_transpose_twin(np.uint32), types.void, *(types.int64,) * 4)
def transpose_words(builder: Any, source: Any, stride: Any, out: Any, out_stride: Any) -> Any:
    """Sixteen words of 32 bits from each of sixteen rows `stride` bytes apart -> their columns, `out_stride` bytes apart."""
    # Lane group q (128 bits) of vector i is made of words 4c .. 4c + 3 of row i + 4q, by loads alone. Transposing the 4 x 4 words
    # within each lane group, over i, then gives columns 4c .. 4c + 3 with their rows in order: 32 shuffles that cross no lane
    # group, where a transpose of whole registers takes 64, half of which do.
    quarter = ir.VectorType(I32, 4)
    starts = [plus(builder, source, times(builder, stride, i)) for i in range(16)]

    def in_groups(pattern: tuple[int, int, int, int]) -> list[int]:
        # Words of a lane group; those of the second operand from 4 on.
        return [4 * q + p if p < 4 else 16 + 4 * q + p - 4 for q in range(4) for p in pattern]

    for c in range(4):
        rows = []
        for i in range(4):
            pieces = [load(builder, plus(builder, starts[i + 4 * q], 16 * c), quarter) for q in range(4)]
            halves = [_shuffle(builder, x, y, list(range(8))) for x, y in (pieces[:2], pieces[2:])]
            rows.append(_shuffle(builder, halves[0], halves[1], list(range(16))))
        low = [_shuffle(builder, rows[i], rows[i + 1], in_groups((0, 4, 1, 5))) for i in (0, 2)]
        high = [_shuffle(builder, rows[i], rows[i + 1], in_groups((2, 6, 3, 7))) for i in (0, 2)]
        for half, pair in enumerate((low, high)):
            for j, pattern in enumerate(((0, 1, 4, 5), (2, 3, 6, 7))):
                place = plus(builder, out, times(builder, out_stride, 4 * c + 2 * half + j))
                store(builder, _shuffle(builder, pair[0], pair[1], in_groups(pattern)), place)


@intrinsic(_transpose_twin(np.uint8), types.void, *(types.int64,) * 4)
def transpose_bytes(builder: Any, source: Any, stride: Any, out: Any, out_stride: Any) -> Any:
    """The same for bytes."""
    # Interleaving rows i and i + 8 four times turns row numbers into lane numbers, a bit at a time.
    rows = [load(builder, plus(builder, source, times(builder, stride, i)), ir.VectorType(I8, 16)) for i in range(16)]
    low, high = ([p for i in range(k, k + 8) for p in (i, i + 16)] for k in (0, 8))
    for _ in range(4):
        rows = [_shuffle(builder, rows[i], rows[i + 8], half) for i in range(8) for half in (low, high)]
    for j, row in enumerate(rows):
        store(builder, row, plus(builder, out, times(builder, out_stride, j)))
