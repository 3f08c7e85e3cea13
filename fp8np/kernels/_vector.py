"""Vectors of sixteen lanes, written out: what the native kernels compute with.

A `float32` or `int32` vector is a value like a number: ``load`` it from an address, use ``+ - * & | ^ < >``, ``select`` by a
mask, ``store`` it. LLVM makes one 512-bit register of it, two of 256 bits or four of 128, whatever the CPU has, so one source serves
every CPU, and nothing depends on whether a loop could be vectorised.

Addresses are plain integers, in bytes. Each function has a twin in NumPy, which is its definition: without compilation
(``NUMBA_DISABLE_JIT=1``) the twins run, and a test compares the two.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from fp8np.kernels._emit import call as _call
from fp8np.kernels._jit import intrinsic, types

__all__ = [
    "LANES",
    "absolute",
    "as_float",
    "as_int",
    "floats",
    "fma",
    "from_int",
    "ints",
    "largest",
    "load",
    "load_bf16",
    "load_bytes",
    "load_bytes_n",
    "load_n",
    "maximum",
    "memory",
    "minimum",
    "select",
    "select_int",
    "shl",
    "shr",
    "store",
    "store_bf16",
    "store_bytes",
    "store_bytes_n",
    "store_n",
    "to_int",
    "total",
]

LANES = 16


_I32, _I64, _I8, _I16, _I1 = (ir.IntType(n) for n in (32, 64, 8, 16, 1))
_F32 = ir.FloatType()
F32, I32, MASK = "f32x16", "i32x16", "mask16"
"""Names of types, sixteen of an element."""
ELEMENTS = {F32: _F32, I32: _I32, MASK: _I1}
_VF, _VI = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def memory(address: int, count: int, dtype: Any) -> Any:
    """The twins' view of memory: `count` elements of a NumPy type, at an address."""
    dtype = np.dtype(dtype)
    if not count:
        return np.empty(0, dtype)
    return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(int(address)), dtype)


# -- operators --------------------------------------------------------------------------------------------------------


OPERATORS: list[tuple[Any, dict[str, Callable[..., Any]], str | None]] = [
    (operator.add, {F32: lambda b, x, y: b.fadd(x, y), I32: lambda b, x, y: b.add(x, y)}, None),
    (operator.sub, {F32: lambda b, x, y: b.fsub(x, y), I32: lambda b, x, y: b.sub(x, y)}, None),
    (operator.mul, {F32: lambda b, x, y: b.fmul(x, y), I32: lambda b, x, y: b.mul(x, y)}, None),
    (operator.truediv, {F32: lambda b, x, y: b.fdiv(x, y)}, None),
    (operator.and_, {I32: lambda b, x, y: b.and_(x, y), MASK: lambda b, x, y: b.and_(x, y)}, None),
    (operator.or_, {I32: lambda b, x, y: b.or_(x, y), MASK: lambda b, x, y: b.or_(x, y)}, None),
    (operator.xor, {I32: lambda b, x, y: b.xor(x, y)}, None),
    *(
        (
            comparison,
            {F32: lambda b, x, y, s=sign: b.fcmp_ordered(s, x, y), I32: lambda b, x, y, s=sign: b.icmp_signed(s, x, y)},
            MASK,
        )
        for comparison, sign in ((operator.lt, "<"), (operator.gt, ">"), (operator.eq, "=="))
    ),
]
"""Operator; by the type of both sides, what writes its instructions; the type of the result, None for that of the sides."""


# -- emission helpers -------------------------------------------------------------------------------------------------


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _splat(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_VI, [0] * LANES))


def _first_n(builder: Any, count: Any) -> Any:
    # <16 x i1>: lane < count
    lanes = ir.Constant(_VI, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(count, _I32)))


_SUFFIX = {"float": "f32", "i32": "i32", "i8": "i8", "i16": "i16"}


def _masked_load(builder: Any, address: Any, element: Any, count: Any) -> Any:
    kind = ir.VectorType(element, LANES)
    pointer = _pointer(builder, address, kind)
    name = f"llvm.masked.load.v{LANES}{_SUFFIX[str(element)]}.p0"
    zero = ir.Constant(kind, [0] * LANES)
    return _call(builder, name, kind, pointer, ir.Constant(_I32, 1), _first_n(builder, count), zero)


def _masked_store(builder: Any, value: Any, address: Any, count: Any) -> None:
    pointer = _pointer(builder, address, value.type)
    name = f"llvm.masked.store.v{LANES}{_SUFFIX[str(value.type.element)]}.p0"
    _call(builder, name, ir.VoidType(), value, pointer, ir.Constant(_I32, 1), _first_n(builder, count))


def _plain_load(builder: Any, address: Any, element: Any) -> Any:
    load = builder.load(_pointer(builder, address, ir.VectorType(element, LANES)))
    load.align = 1
    return load


def _plain_store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, _pointer(builder, address, value.type)).align = 1


# -- memory -----------------------------------------------------------------------------------------------------------


def _load_twin(address: int) -> Any:
    return memory(address, LANES, np.float32).copy()


@intrinsic(_load_twin, F32, types.int64)
def load(builder: Any, address: Any) -> Any:
    """Sixteen float32."""
    return _plain_load(builder, address, _F32)


def _load_n_twin(address: int, count: int) -> Any:
    out = np.zeros(LANES, np.float32)
    out[: max(count, 0)] = memory(address, max(min(count, LANES), 0), np.float32)
    return out


@intrinsic(_load_n_twin, F32, types.int64, types.int64)
def load_n(builder: Any, address: Any, count: Any) -> Any:
    """The first `count` of sixteen float32; zeros for the others, whose memory is not touched."""
    return _masked_load(builder, address, _F32, count)


def _store_twin(address: int, v: Any) -> None:
    memory(address, LANES, np.float32)[:] = v


@intrinsic(_store_twin, types.void, types.int64, F32)
def store(builder: Any, address: Any, v: Any) -> Any:
    """Sixteen float32."""
    _plain_store(builder, v, address)


def _store_n_twin(address: int, v: Any, count: int) -> None:
    n = max(min(count, LANES), 0)
    memory(address, n, np.float32)[:] = v[:n]


@intrinsic(_store_n_twin, types.void, types.int64, F32, types.int64)
def store_n(builder: Any, address: Any, v: Any, count: Any) -> Any:
    """The first `count` of sixteen float32."""
    _masked_store(builder, v, address, count)


def _load_bytes_twin(address: int) -> Any:
    return memory(address, LANES, np.uint8).astype(np.int32)


@intrinsic(_load_bytes_twin, I32, types.int64)
def load_bytes(builder: Any, address: Any) -> Any:
    """Sixteen bytes, as int32 0 .. 255."""
    return builder.zext(_plain_load(builder, address, _I8), _VI)


def _load_bytes_n_twin(address: int, count: int) -> Any:
    out = np.zeros(LANES, np.int32)
    n = max(min(count, LANES), 0)
    out[:n] = memory(address, n, np.uint8)
    return out


@intrinsic(_load_bytes_n_twin, I32, types.int64, types.int64)
def load_bytes_n(builder: Any, address: Any, count: Any) -> Any:
    """The first `count` of sixteen bytes; zeros for the others."""
    return builder.zext(_masked_load(builder, address, _I8, count), _VI)


def _store_bytes_twin(address: int, v: Any) -> None:
    memory(address, LANES, np.uint8)[:] = v.astype(np.uint8)


@intrinsic(_store_bytes_twin, types.void, types.int64, I32)
def store_bytes(builder: Any, address: Any, v: Any) -> Any:
    """The low bytes of sixteen int32."""
    _plain_store(builder, builder.trunc(v, ir.VectorType(_I8, LANES)), address)


def _store_bytes_n_twin(address: int, v: Any, count: int) -> None:
    n = max(min(count, LANES), 0)
    memory(address, n, np.uint8)[:] = v[:n].astype(np.uint8)


@intrinsic(_store_bytes_n_twin, types.void, types.int64, I32, types.int64)
def store_bytes_n(builder: Any, address: Any, v: Any, count: Any) -> Any:
    """The low bytes of the first `count` of sixteen int32."""
    _masked_store(builder, builder.trunc(v, ir.VectorType(_I8, LANES)), address, count)


def _store_bf16_twin(address: int, v: Any) -> None:
    memory(address, LANES, np.uint16)[:] = _bf16(v)


def _bf16(v: Any) -> Any:
    bits = v.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(v), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


@intrinsic(_store_bf16_twin, types.void, types.int64, F32)
def store_bf16(builder: Any, address: Any, v: Any) -> Any:
    """Sixteen float32, each rounded to bfloat16, to nearest even; a NaN stays one."""

    def word(x: int) -> Any:
        return ir.Constant(_VI, [x] * LANES)

    bits = builder.bitcast(v, _VI)
    high = builder.lshr(bits, word(16))
    rounded = builder.lshr(builder.add(bits, builder.add(word(0x7FFF), builder.and_(high, word(1)))), word(16))
    nan = builder.fcmp_unordered("uno", v, v)
    kept = builder.select(nan, builder.or_(high, word(0x40)), rounded)
    _plain_store(builder, builder.trunc(kept, ir.VectorType(_I16, LANES)), address)


def _load_bf16_twin(address: int) -> Any:
    return (memory(address, LANES, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


@intrinsic(_load_bf16_twin, F32, types.int64)
def load_bf16(builder: Any, address: Any) -> Any:
    """Sixteen bfloat16, as float32."""
    wide = builder.zext(_plain_load(builder, address, _I16), _VI)
    return builder.bitcast(builder.shl(wide, ir.Constant(_VI, [16] * LANES)), _VF)


# -- lanes ------------------------------------------------------------------------------------------------------------


def _floats_twin(x: Any) -> Any:
    return np.full(LANES, x, np.float32)


@intrinsic(_floats_twin, F32, types.float32)
def floats(builder: Any, x: Any) -> Any:
    """Sixteen times one float32."""
    return _splat(builder, x)


def _ints_twin(x: int) -> Any:
    return np.full(LANES, x, np.int64).astype(np.int32)


@intrinsic(_ints_twin, I32, types.int64)
def ints(builder: Any, x: Any) -> Any:
    """Sixteen times the low 32 bits of an integer."""
    return _splat(builder, builder.trunc(x, _I32))


@intrinsic(lambda v: v.view(np.int32), I32, F32)
def as_int(builder: Any, v: Any) -> Any:
    """The bits of floats."""
    return builder.bitcast(v, _VI)


@intrinsic(lambda v: v.view(np.float32), F32, I32)
def as_float(builder: Any, v: Any) -> Any:
    """The floats of bits."""
    return builder.bitcast(v, _VF)


@intrinsic(lambda v: v.astype(np.float32), F32, I32)
def from_int(builder: Any, v: Any) -> Any:
    """Integers as floats of that value."""
    return builder.sitofp(v, _VF)


@intrinsic(lambda v: v.astype(np.int32), I32, F32)
def to_int(builder: Any, v: Any) -> Any:
    """Floats below 2**31 in magnitude as integers, toward zero."""
    return builder.fptosi(v, _VI)


@intrinsic(lambda v, n: v << np.int32(n), I32, I32, types.int64)
def shl(builder: Any, v: Any, n: Any) -> Any:
    """Moved left by n bits."""
    return builder.shl(v, _splat(builder, builder.trunc(n, _I32)))


@intrinsic(lambda v, n: (v.view(np.uint32) >> np.uint32(n)).view(np.int32), I32, I32, types.int64)
def shr(builder: Any, v: Any, n: Any) -> Any:
    """Moved right by n bits, zeros coming in."""
    return builder.lshr(v, _splat(builder, builder.trunc(n, _I32)))


@intrinsic(lambda v: np.abs(v), F32, F32)
def absolute(builder: Any, v: Any) -> Any:
    """Magnitudes."""
    return _call(builder, f"llvm.fabs.v{LANES}f32", _VF, v)


def _fma_twin(x: Any, y: Any, z: Any) -> Any:
    # float64 holds the product; the sum is rounded twice, which differs from once in one case in 2^29 or fewer.
    return (x.astype(np.float64) * y + z).astype(np.float32)


@intrinsic(_fma_twin, F32, F32, F32, F32)
def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once where the CPU can."""
    return _call(builder, f"llvm.fmuladd.v{LANES}f32", _VF, x, y, z)


@intrinsic(lambda x, y: np.where(x < y, x, y), F32, F32, F32)
def minimum(builder: Any, x: Any, y: Any) -> Any:
    """x where x < y, else y: a NaN in x gives y, one in y stays."""
    return builder.select(builder.fcmp_ordered("<", x, y), x, y)


@intrinsic(lambda x, y: np.where(x > y, x, y), F32, F32, F32)
def maximum(builder: Any, x: Any, y: Any) -> Any:
    """x where x > y, else y: a NaN in x gives y, one in y stays."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _select_twin(mask: Any, x: Any, y: Any) -> Any:
    return np.where(mask, x, y)


@intrinsic(_select_twin, F32, MASK, F32, F32)
def select(builder: Any, mask: Any, x: Any, y: Any) -> Any:
    """x where the mask holds, else y: floats."""
    return builder.select(mask, x, y)


@intrinsic(_select_twin, I32, MASK, I32, I32)
def select_int(builder: Any, mask: Any, x: Any, y: Any) -> Any:
    """x where the mask holds, else y: integers."""
    return builder.select(mask, x, y)


def _halves(builder: Any, v: Any, combine: Callable[..., Any]) -> Any:
    # Folded in halves, eight with eight and so on: the order of a tree, the same on every CPU.
    for half in (8, 4, 2, 1):
        moved = [(i + half) % LANES for i in range(LANES)]
        v = combine(builder, v, builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), ir.Constant(_VI, moved)))
    return builder.extract_element(v, ir.Constant(_I32, 0))


def _folded(v: Any, combine: Callable[..., Any]) -> Any:
    for half in (8, 4, 2, 1):
        v = combine(v, np.roll(v, -half))
    return v[0]


@intrinsic(lambda v: _folded(v, np.add), types.float32, F32)
def total(builder: Any, v: Any) -> Any:
    """The sum of all lanes, in the order of a tree."""
    return _halves(builder, v, lambda b, x, y: b.fadd(x, y))


@intrinsic(lambda v: _folded(v, lambda x, y: np.where(x > y, x, y)), types.float32, F32)
def largest(builder: Any, v: Any) -> Any:
    """The largest of all lanes."""
    return _halves(builder, v, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
