"""rounding: float32 to the values that codes of a format stand for, decode(encode(x / scale)) * scale, as float32.

What reads FP8 and is no product runs on these: sums, norms, attention. The codes themselves are never made. Bits are those of
`fp8np.scaling.dequantize` of `fp8np.scaling.quantize`, negative zeros and NaN included.
"""

from __future__ import annotations

import math
from typing import Any

from fp8np.formats import FloatFormat
from fp8np.kernels._grid import on_grid, round_words, rounding_of
from fp8np.kernels._jit import entry, native
from fp8np.kernels._native import float_at, word
from fp8np.kernels._program import Task, Word, float_word
from fp8np.kernels._vector import floats, load, load_n, select, store, store_n
from fp8np.kernels.pointwise import UNIT
from fp8np.kernels.widen import finite_top, scale_from

__all__ = ["round_task", "round_tokens_task", "rounds"]


def rounds(fmt: FloatFormat) -> bool:
    """Whether the tasks round to a format: every one with a sign and a mantissa whose steps are normal float32 numbers."""
    return fmt.signed and fmt.mantissa_bits >= 1 and fmt.quantum_exponent >= -63 and fmt.max < 2.0**63


@native
def _rounded(x: int, y: int, n: int, scale: Any, words: int) -> None:
    # y (n,) = x (n,), rounded. words: what a negative zero and what a NaN becomes, then a rounding.
    smallest, lift, bound, top = rounding_of(words + 16)
    # Adding a negative zero changes nothing, adding zero a negative zero alone.
    zero, nan = floats(float_at(words)), floats(float_at(words + 8))
    whole = n & -16
    for i in range(0, 4 * whole, 64):
        v = load(x + i) / scale
        r = on_grid(v, smallest, lift, bound, top) + zero
        store(y + i, select(v == v, r, nan) * scale)
    if whole < n:
        v = load_n(x + 4 * whole, n - whole) / scale
        r = on_grid(v, smallest, lift, bound, top) + zero
        store_n(y + 4 * whole, select(v == v, r, nan) * scale, n - whole)


def _words(fmt: FloatFormat, scale: Word) -> tuple[Word, ...]:
    zero = -0.0 if fmt.has_negative_zero else 0.0
    return float_word(zero), float_word(math.nan if fmt.nan_codes else fmt.max), *round_words(fmt, scale)


@entry
def round_floats(args: int, unit: int, scratch: int) -> None:
    # 0 x f32 (n,), 1 y f32 (n,), 2 n, 3 on: the words of `_rounded`.
    at = 4 * unit * UNIT
    count = min(word(args, 2) - unit * UNIT, UNIT)
    _rounded(word(args, 0) + at, word(args, 1) + at, count, floats(float_at(word(args, 5))), args + 24)


def round_task(x: Word, y: Word, n: int, fmt: FloatFormat, scale: Word) -> Task:
    """y = decode(encode(x / scale)) * scale.

    Args:
        x: float32 (n,).
        y: float32 (n,); may be x.
        n: number of elements.
        fmt: a format that `rounds` allows.
        scale: where the float32 scale is.
    """
    return Task(round_floats, (x, y, n, *_words(fmt, scale)), -(-n // UNIT))


@entry
def round_rows(args: int, unit: int, scratch: int) -> None:
    # 0 x, 1 bytes from row to row, 2 y f32 (R, K), 3 R, 4 K, 5 rows a unit, 6 whether scales are powers of two, 7 on: the words of
    # `_rounded`.
    k, rows = word(args, 4), word(args, 5)
    for row in range(unit * rows, min((unit + 1) * rows, word(args, 3))):
        x = word(args, 0) + row * word(args, 1)
        scale = scale_from(finite_top(x, k), float_at(args + 56 + 16 + 32), word(args, 6))
        _rounded(x, word(args, 2) + 4 * row * k, k, floats(scale), args + 56)


def round_tokens_task(x: Word, row: int, y: Word, shape: tuple[int, int], fmt: FloatFormat, *, power_of_two: bool) -> Task:
    """The same for each row with a scale of its own, by which its largest finite magnitude becomes the format's largest value.

    Args:
        x: float32 (R, K), K side by side.
        row: bytes from row to row of x.
        y: float32 (R, K), dense; may be x where that is dense, too.
        shape: R, K.
        fmt: a format that `rounds` allows.
        power_of_two: whether scales are rounded up to powers of two.
    """
    count, k = shape
    rows = max(UNIT // max(k, 1), 1)
    return Task(round_rows, (x, row, y, count, k, rows, int(power_of_two), *_words(fmt, 0)), -(-count // rows) if k else 0)
