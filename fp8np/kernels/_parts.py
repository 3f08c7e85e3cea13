"""Instructions of `_float_blocks` and `_scores`: float32 as three bfloat16, their products on AMX. Each has a twin in NumPy.

A float32 has 24 bits, a bfloat16 eight: cut off, the high part, the middle and the low one hold all of them::

    x         1.fffffff|ffffffff|ffffffff * 2^e      high  + middle + low
                        below 2^(e - 7)               below 2^(e - 15)
    rounded             up to 2^(e - 8)               up to 2^(e - 17), signs differ
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from fp8np.kernels._emit import I8, I32, I64, at, call, loop, plus, times
from fp8np.kernels._jit import intrinsic, types
from fp8np.kernels._vector import F32, memory

__all__ = ["LEFT_STEP", "PARTS", "RIGHT_STEP", "fraction", "high_halves", "parts_block_1", "parts_block_2", "scaled"]


def _high_halves_twin(x: Any, y: Any) -> Any:
    return ((x.view(np.uint32) >> np.uint32(16)) | (y.view(np.uint32) & np.uint32(0xFFFF0000))).view(np.float32)


@intrinsic(_high_halves_twin, F32, F32, F32)
def high_halves(builder: Any, x: Any, y: Any) -> Any:
    """Pairs of bfloat16, cut off from the floats of x and y: words with that of x in their low half, of y in their high one."""
    words = ir.VectorType(ir.IntType(16), 32)
    places = ir.Constant(words, [i for lane in range(16) for i in (2 * lane + 1, 32 + 2 * lane + 1)])
    name = "llvm.x86.avx512.vpermi2var.hi.512"
    return builder.bitcast(call(builder, name, words, builder.bitcast(x, words), places, builder.bitcast(y, words)), x.type)


# -- powers of two ----------------------------------------------------------------------------------------------------


def _exact_call(builder: Any, name: str, *args: Any) -> Any:
    # An AVX-512 instruction in its masked form, all lanes on.
    mask, mode = ir.Constant(ir.IntType(16), -1), ir.Constant(I32, 4)
    return call(builder, name, args[0].type, *args, args[0], mask, mode)


def _fraction_twin(x: Any) -> Any:
    with np.errstate(invalid="ignore"):
        difference = x.astype(np.float64) - np.floor(x)
        rounded = difference.astype(np.float32)
        return np.where(np.isinf(x), np.float32(0), np.where(rounded > difference, np.nextafter(rounded, np.float32(0)), rounded))


@intrinsic(_fraction_twin, F32, F32)
def fraction(builder: Any, x: Any) -> Any:
    """x - floor(x), rounded down; 0 of an infinity; AVX-512."""
    return _exact_call(builder, "llvm.x86.avx512.mask.reduce.ps.512", x, ir.Constant(I32, 9))


def _scaled_twin(x: Any, n: Any) -> Any:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(n <= -126, np.float32(0), x * np.exp2(np.floor(n).astype(np.float64))).astype(np.float32)


@intrinsic(_scaled_twin, F32, F32, F32)
def scaled(builder: Any, x: Any, n: Any) -> Any:
    """x * 2^floor(n), 0 where n <= -126; AVX-512."""
    zero = ir.Constant(n.type, [0.0] * 16)
    kept = builder.fcmp_unordered(">", n, ir.Constant(n.type, [-126.0] * 16))
    name = "llvm.x86.avx512.mask.scalef.ps.512"
    return call(builder, name, n.type, x, n, zero, builder.bitcast(kept, ir.IntType(16)), ir.Constant(I32, 4))


# -- products of parts, on AMX ----------------------------------------------------------------------------------------

PARTS = 3
LEFT_STEP = PARTS * 64
"""Bytes of 32 terms of a row of the left operand: the high parts, the middle ones, the low ones."""
RIGHT_STEP = PARTS * 2048
"""Bytes of 32 terms of 32 columns of the right operand: for each part two tiles."""

_HIGH, _MIDDLE, _LOW = range(3)
# Parts of a and b that are multiplied. Each has an operand in common with the one before, whose tiles stay. With a cut off and b
# rounded, what is left out is below 2^-22 of a product.
_SMALL = ((_LOW, _HIGH), (_MIDDLE, _HIGH), (_MIDDLE, _MIDDLE), (_HIGH, _MIDDLE), (_HIGH, _LOW))


def _tile(builder: Any, name: str, *args: Any) -> None:
    call(builder, f"llvm.x86.{name}", ir.VoidType(), *[ir.Constant(I8, a) if isinstance(a, int) else a for a in args])


def _parts(rows: int) -> Callable[..., Any]:
    # Tiles as in `_x86`: sums 0 .. 3, a 4 and 5, b 6 and 7.
    sums, left, right = (0, 1, 2, 3)[: 2 * rows], (4, 5)[:rows], (6, 7)

    def emit(builder: Any, a: Any, stride: Any, b: Any, c: Any, steps: Any) -> None:
        line = ir.Constant(I64, 64)
        below = times(builder, stride, 16)
        for t in sums:
            _tile(builder, "tilezero", t)

        def multiply(step: Any, pairs: tuple[tuple[int, int], ...]) -> list[Any]:
            top, column = plus(builder, a, times(builder, step, LEFT_STEP)), plus(builder, b, times(builder, step, RIGHT_STEP))
            held: tuple[Any, Any] = (None, None)
            for pair in pairs:
                if pair[0] != held[0]:
                    for i, t in enumerate(left):
                        place = plus(builder, top, pair[0] * 64)
                        _tile(builder, "tileloadd64", t, at(builder, place if i == 0 else plus(builder, place, below)), stride)
                if pair[1] != held[1]:
                    for j, t in enumerate(right):
                        _tile(builder, "tileloadd64", t, at(builder, plus(builder, column, pair[1] * 2048 + j * 1024)), line)
                held = pair
                for i, ta in enumerate(left):
                    for j, tb in enumerate(right):
                        _tile(builder, "tdpbf16ps", sums[2 * i + j], ta, tb)
            return []

        # The small products first: they then add hardly any rounding to that of the large ones.
        loop(builder, steps, [], lambda step, _: multiply(step, _SMALL))
        loop(builder, steps, [], lambda step, _: multiply(step, ((_HIGH, _HIGH),)))
        for t in sums:
            _tile(builder, "tilestored64", t, at(builder, plus(builder, c, t * 1024)), line)

    return emit


def _bf16_values(words: Any) -> Any:
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _parts_twin(rows: int) -> Callable[..., None]:
    def twin(a: int, stride: int, b: int, c: int, steps: int) -> None:
        sums = memory(c, rows * 512, np.float32).reshape(rows, 2, 16, 16)
        sums[:] = 0
        for pairs in (_SMALL, ((_HIGH, _HIGH),)):
            for s in range(steps):
                right = _bf16_values(memory(b + s * RIGHT_STEP, RIGHT_STEP // 2, np.uint16)).reshape(PARTS, 2, 16, 16, 2)
                for r in range(16 * rows):
                    left = _bf16_values(memory(a + r * stride + s * LEFT_STEP, 32 * PARTS, np.uint16)).reshape(PARTS, 16, 2)
                    for i, j in pairs:
                        sums[r // 16, :, r % 16] += np.einsum("ph,jpnh->jn", left[i], right[j])

    return twin


_BLOCK = (types.void, *(types.int64,) * 5)

parts_block_2 = intrinsic(_parts_twin(2), *_BLOCK)(_parts(2))
"""c = a @ b of 32 rows and 32 columns: (a, stride, b, c, steps); sums as in `fp8np.kernels._x86`."""
parts_block_1 = intrinsic(_parts_twin(1), *_BLOCK)(_parts(1))
"""The same for 16 rows."""
