"""What this CPU can at most: instructions alone, operands in registers. For `fp8np bench`, which states shares of it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from llvmlite import ir

from fp8np.kernels._cpu import Cpu, cpu_has
from fp8np.kernels._emit import I8, I64, call, loop, store
from fp8np.kernels._jit import entry, intrinsic, types
from fp8np.kernels._native import word
from fp8np.kernels._program import Program, Task, aligned
from fp8np.kernels._vector import memory

__all__ = ["KINDS", "measure"]

KINDS = ("tdpbf16ps", "fma")

_V = ir.VectorType(ir.FloatType(), 16)
_SUMS = 12
"""Vectors of multiply-adds that do not wait for each other: their latency, four cycles, times two a cycle, and some."""


def _tiles(builder: Any, count: Any) -> None:
    def body(step: Any, _: list[Any]) -> list[Any]:
        for t in range(4):
            call(builder, "llvm.x86.tdpbf16ps", ir.VoidType(), *(ir.Constant(I8, i) for i in (t, 4 + t // 2, 6 + t % 2)))
        return []

    loop(builder, count, [], body)


def _multiply_adds(builder: Any, out: Any, count: Any) -> None:
    # s / 2 + 1/2 stays an ordinary number for ever.
    x = ir.Constant(_V, [0.5] * 16)

    def body(step: Any, sums: list[Any]) -> list[Any]:
        return [call(builder, "llvm.fmuladd.v16f32", _V, x, s, x) for s in sums]

    for s in loop(builder, count, [ir.Constant(_V, [float(i)] * 16) for i in range(_SUMS)], body):
        store(builder, s, out)


tiles = intrinsic(lambda count: None, types.void, types.int64)(_tiles)
multiply_adds = intrinsic(lambda out, count: None, types.void, types.int64, types.int64)(_multiply_adds)


@entry
def tile_products(args: int, unit: int, scratch: int) -> None:
    """Words: the address of two tiles, how many times four products."""
    from_memory(word(args, 0), scratch)
    tiles(word(args, 1))
    released()


@entry
def vector_products(args: int, unit: int, scratch: int) -> None:
    """Words: nothing, how many times `_SUMS` multiply-adds."""
    multiply_adds(scratch, word(args, 1))


def _loaded(builder: Any, source: Any, scratch: Any) -> None:
    from fp8np.kernels._emit import at, plus
    from fp8np.kernels._x86 import configure

    configure(builder, scratch)
    for t in range(8):
        line = ir.Constant(I64, 64)
        call(builder, "llvm.x86.tileloadd64", ir.VoidType(), ir.Constant(I8, t), at(builder, plus(builder, source, 1024 * (t % 2))), line)


from_memory = intrinsic(lambda source, scratch: None, types.void, types.int64, types.int64)(_loaded)
released = intrinsic(lambda: None, types.void)(lambda builder: call(builder, "llvm.x86.tilerelease", ir.VoidType()))


def measure(kind: str, threads: int) -> float | None:
    """FLOP/s of ``"tdpbf16ps"`` or ``"fma"`` on so many threads, the best of some; None where the CPU has not got it.

    Operands are ordinary numbers: products of zeros take less power, and so run up to a fifth faster.

    >>> measure("tdpbf16ps", 0) is None
    True
    """
    if kind not in KINDS or threads < 1 or (kind == "tdpbf16ps" and not cpu_has(Cpu.AMX_BF16)):
        return None
    operands = aligned(2048)
    memory(operands.ctypes.data, 1024, np.uint16)[:] = (
        np.random.default_rng(0).standard_normal(1024).astype(np.float32).view(np.uint32) >> 16
    )
    entry_, flops = (tile_products, 4 * 16384.0) if kind == "tdpbf16ps" else (vector_products, _SUMS * 32.0)
    count = 20_000 if kind == "tdpbf16ps" else 200_000
    run = Program([Task(entry_, (operands, count), threads, 4096)]).memory()
    run.run(threads=threads)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        run.run(threads=threads)
        seconds.append(time.perf_counter() - start)
    return threads * count * flops / statistics.quantiles(seconds, n=4)[0]
