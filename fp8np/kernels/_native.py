"""What native kernels need beside vectors: numbers at addresses, atomic counters, calls through an address.

An entry gets the address of its words, int64 each. A word holds an address, a size, or in its low half the bits of a float32.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir

from fp8np.kernels import _emit
from fp8np.kernels._jit import Entry, intrinsic, types
from fp8np.kernels._vector import memory

__all__ = [
    "byte_at",
    "call",
    "call_plain",
    "clear",
    "fetch_and_add",
    "float_at",
    "pause",
    "put_byte",
    "put_float",
    "put_word",
    "shared_word",
    "word",
]

_I64, _I8, _F32 = ir.IntType(64), ir.IntType(8), ir.FloatType()
_WORD = 8


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic(lambda address, i: int(memory(address + _WORD * i, 1, np.int64)[0]), types.int64, types.int64, types.int64)
def word(builder: Any, address: Any, i: Any) -> Any:
    """The int64 number i from an address on."""
    return builder.load(_at(builder, builder.add(address, builder.mul(i, ir.Constant(_I64, _WORD))), _I64))


def _put_word(address: int, value: int) -> None:
    memory(address, 1, np.int64)[0] = value


@intrinsic(_put_word, types.void, types.int64, types.int64)
def put_word(builder: Any, address: Any, value: Any) -> Any:
    """Writes an int64."""
    builder.store(value, _at(builder, address, _I64))


@intrinsic(lambda address: memory(address, 1, np.float32)[0], types.float32, types.int64)
def float_at(builder: Any, address: Any) -> Any:
    """The float32 at an address."""
    return builder.load(_at(builder, address, _F32))


def _put_float(address: int, value: Any) -> None:
    memory(address, 1, np.float32)[0] = value


@intrinsic(_put_float, types.void, types.int64, types.float32)
def put_float(builder: Any, address: Any, value: Any) -> Any:
    """Writes a float32."""
    builder.store(value, _at(builder, address, _F32))


@intrinsic(lambda address: int(memory(address, 1, np.uint8)[0]), types.int64, types.int64)
def byte_at(builder: Any, address: Any) -> Any:
    """The byte at an address, 0 .. 255."""
    return builder.zext(builder.load(_at(builder, address, _I8)), _I64)


def _put_byte(address: int, value: int) -> None:
    memory(address, 1, np.uint8)[0] = value & 255


@intrinsic(_put_byte, types.void, types.int64, types.int64)
def put_byte(builder: Any, address: Any, value: Any) -> Any:
    """Writes the low byte of an integer."""
    builder.store(builder.trunc(value, _I8), _at(builder, address, _I8))


def _clear(address: int, count: int) -> None:
    memory(address, count, np.uint8)[:] = 0


@intrinsic(_clear, types.void, types.int64, types.int64)
def clear(builder: Any, address: Any, count: Any) -> Any:
    """Sets bytes to zero."""
    _emit.clear(builder, address, count)


# -- between threads --------------------------------------------------------------------------------------------------


def _fetch_and_add(address: int, n: int) -> int:
    cell = memory(address, 1, np.int64)
    before = int(cell[0])
    cell[0] = before + n
    return before


@intrinsic(_fetch_and_add, types.int64, types.int64, types.int64)
def fetch_and_add(builder: Any, address: Any, n: Any) -> Any:
    """Adds to a shared int64 and returns what it was, in one step; what was written before is seen by who reads it after."""
    return builder.atomic_rmw("add", _at(builder, address, _I64), n, "acq_rel")


@intrinsic(lambda address: int(memory(address, 1, np.int64)[0]), types.int64, types.int64)
def shared_word(builder: Any, address: Any) -> Any:
    """An int64 that other threads write."""
    return builder.load_atomic(_at(builder, address, _I64), "acquire", 8, typ=_I64)


_PAUSE = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())


@intrinsic(lambda: None, types.void)
def pause(builder: Any) -> Any:
    """Tells the CPU that this thread waits for another."""
    if _PAUSE is not None:
        _emit.call(builder, _PAUSE, ir.VoidType())


@intrinsic(Entry.call, types.void, types.int64, types.int64, types.int64, types.int64)
def call(builder: Any, address: Any, words: Any, unit: Any, scratch: Any) -> Any:
    """Calls the entry at an address."""
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
    builder.call(builder.inttoptr(address, kind.as_pointer()), [words, unit, scratch])


@intrinsic(lambda address: None, types.void, types.int64)
def call_plain(builder: Any, address: Any) -> Any:
    """Calls a C function without arguments, through its address."""
    kind = ir.FunctionType(ir.VoidType(), [])
    builder.call(builder.inttoptr(address, kind.as_pointer()), [])
