"""The exact product of two tensors of codes, rounded once to float32, by way of float64 sums.

The values of a format within a band of exponents are whole multiples of one power of two, and not many of them. If the bands of
both operands are so narrow that K products, in units of the product of the two powers, stay within 2**53, every partial sum in
float64 is exact: whatever the order, the blocking or the thread count. The sums of all pairs of bands, over chunks of K where K
is large, are then added exactly. All of that is the `exact_gemm` kernel; here the bands are cut.

E4M3 needs one band each: its products are multiples of 2**-18 and at most 448**2 = 2**17.6, which leaves K up to 171,196 a
chunk. E5M2 by E5M2 needs three bands of one operand, and chunks of 668; E8M0 by itself, with 255 powers of two, 13 by 10. Bands
are cut through the exponents that occur, which often saves half of them; how they are cut cannot change an exact result.

NaN and infinity take a way of their own, as counts of which products are what.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt

from fp8np.codec import decode_table
from fp8np.formats import FloatFormat
from fp8np.kernels._arrays import Doubles
from fp8np.kernels._table import select
from fp8np.tensor import Codes, Floats

__all__ = ["Band", "Used", "bands", "exact_product", "put_specials"]

Used = npt.NDArray[np.bool_]
"""bool (256,): which codes occur."""
Band = tuple[Doubles, int]
"""float64 (256,), the values of the band's codes and zero for all others; and its largest magnitude, in units."""

ADDITION = 32
"""Multiply-adds that take as long as adding one more part to an element: weighs few bands against long chunks."""
MOST = 32
"""Bands of an operand, at most. One exponent a band would be 255; pairs of 16 bands each have exact sums of 2**22 terms."""
LONGEST = 8192
"""Terms that are searched for NaN and infinity at a time, for the memory of their float64 signs."""
SIDE = 1024
"""Rows and columns that are searched at a time."""


def exact_product(a: Codes, a_format: FloatFormat, b: Codes, b_format: FloatFormat, init: Floats | None = None) -> Floats:
    """f32 (Z, M, N): init + a @ b^T, summed exactly and rounded once; a sum of zero gives +0.

    Args:
        a: u8 (Z|1, M, K), any strides.
        a_format: of a's codes.
        b: u8 (Z|1, N, K), any strides.
        b_format: of b's codes.
        init: f32 (Z, M, N).
    """
    Z = max(len(a), len(b)) if len(a) and len(b) else 0
    M, K = a.shape[1:]
    N = b.shape[1]
    out = np.empty((Z, M, N), np.float32)
    if not out.size:
        return out
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    start = np.empty((0, 0, 0), np.float32) if init is None else np.ascontiguousarray(init)
    a_used, b_used = _used(a), _used(b)
    a_bands, b_bands, step = _split(a_used, a_format, b_used, b_format, K)
    select("exact_gemm", a_format, b_format, reproducible=True)(a, _tables(a_bands), b, _tables(b_bands), step, start, out)
    if _has_special(a_used, a_format) or _has_special(b_used, b_format) or not np.isfinite(start).all():
        a_values, b_values = decode_table(a_format), decode_table(b_format)
        for z in range(Z):
            az = a[z if len(a) > 1 else 0]
            bz = b[z if len(b) > 1 else 0]
            put_specials(out[z], az, a_values, bz, b_values, None if init is None else init[z])
    return out


def put_specials(out: Floats, a: Codes, a_values: Floats, b: Codes, b_values: Floats, init: Floats | None) -> None:
    """Writes NaN and infinity to out f32 (M, N) where the sum of init (M, N) and the products of a (M, K) and b (N, K) is one."""
    M, N = out.shape
    for m in range(0, M, SIDE):
        for n in range(0, N, SIDE):
            block = np.s_[m : m + SIDE, n : n + SIDE]
            begin = None if init is None else init[block]
            odd = _special(a[m : m + SIDE], a_values, b[n : n + SIDE], b_values, begin)
            np.copyto(out[block], odd, where=odd != 0, casting="same_kind")


def _tables(cut: list[Band]) -> Doubles:
    """f64 (bands, 256)."""
    return np.array([table for table, _ in cut], np.float64).reshape(len(cut), 256)


def _split(a_used: Used, a_format: FloatFormat, b_used: Used, b_format: FloatFormat, K: int) -> tuple[list[Band], list[Band], int]:
    """Bands of both operands, and how many terms stay exact for every pair of them: what takes the least time."""
    best: tuple[float, list[Band], list[Band], int] | None = None
    for a_count in range(1, MOST + 1):
        a_bands = bands(a_format, a_used, a_count)
        a_limit = max((limit for _, limit in a_bands), default=1)
        for b_count in range(1, MOST + 1):
            pairs = a_count * b_count
            if best and pairs * K > best[0]:
                break  # even without an addition
            b_bands = bands(b_format, b_used, b_count)
            b_limit = max((limit for _, limit in b_bands), default=1)
            terms = min(2**53 // (a_limit * b_limit), max(K, 1))
            if not terms:
                continue
            cost = pairs * (K + ADDITION * (-(-K // terms) - 1))
            if best is None or cost <= best[0]:  # of equals the most bands of a: each of b's is decoded anew
                best = cost, a_bands, b_bands, terms
    # Bands as narrow as MOST makes them fit any two formats of 8 bits.
    _, a_bands, b_bands, terms = cast(tuple[float, list[Band], list[Band], int], best)
    return a_bands, b_bands, terms


def _used(codes: Codes) -> Used:
    """Which codes occur. C-contiguous codes."""
    used = np.zeros(256, np.uint8)
    select("codes_used")(codes.reshape(-1), used)
    return used.astype(np.bool_)


def bands(fmt: FloatFormat, used: Used, count: int) -> list[Band]:
    """The finite, non-zero codes in use, cut into at most `count` bands of equally many exponents."""
    return _cut(fmt, used.tobytes(), count)


@lru_cache(maxsize=1024)
def _cut(fmt: FloatFormat, used: bytes, count: int) -> list[Band]:
    values = decode_table(fmt).astype(np.float64)
    values[~np.frombuffer(used, np.bool_) | ~np.isfinite(values)] = 0
    if not values.any():
        return []
    # frexp's mantissa is in [1/2, 1); subnormal values have the spacing of the smallest normal exponent.
    exponents = np.maximum(np.frexp(values)[1] - 1, fmt.min_exponent)
    low, high = int(exponents[values != 0].min()), int(exponents[values != 0].max())
    width = -(-(high - low + 1) // count)
    found = []
    for start in range(low, high + 1, width):
        table = np.where((start <= exponents) & (exponents < start + width), values, 0)
        largest = float(np.abs(table).max())
        if largest:
            found.append((table, int(largest * 2.0 ** (fmt.mantissa_bits - start))))
    return found


def _has_special(used: Used, fmt: FloatFormat) -> bool:
    return bool(np.any(used & ~np.isfinite(decode_table(fmt))))


def _special(a: Codes, a_values: Floats, b: Codes, b_values: Floats, init: Floats | None) -> Doubles:
    """f64 (M, N): NaN or infinity where the sum of init and the products is one, zero where it is finite."""
    # Infinite products with their sign, and without: half their sum counts the positive ones, half their difference the others.
    signed, total, invalid = np.zeros((3, len(a), len(b)))
    for k in range(0, a.shape[1], LONGEST):
        chunk = slice(k, k + LONGEST)
        left, right = a_values[a[:, chunk]], b_values[b[:, chunk]]
        a_infinite, a_finite = _signs(left)
        b_infinite, b_finite = _signs(right)
        b_all = b_infinite + b_finite
        signed += a_infinite @ b_all.T + a_finite @ b_infinite.T
        total += abs(a_infinite) @ abs(b_all).T + abs(a_finite) @ abs(b_infinite).T
        invalid += abs(a_infinite) @ (right == 0).T.astype(np.float64) + (left == 0).astype(np.float64) @ abs(b_infinite).T
        invalid += np.any(np.isnan(left), axis=1, keepdims=True)
        invalid += np.any(np.isnan(right), axis=1)
    with np.errstate(invalid="ignore"):
        result = np.where(total + signed > 0, np.inf, 0.0) + np.where(total > signed, -np.inf, 0.0)
        if init is not None:
            result += np.where(np.isfinite(init), 0, init)
    return np.where(invalid > 0, np.nan, result)


def _signs(values: Floats) -> tuple[Doubles, Doubles]:
    """Signs of the infinite values, and of the finite ones; zero elsewhere."""
    sign = np.where(np.isnan(values), 0.0, np.sign(values))
    infinite = np.isinf(values)
    return np.where(infinite, sign, 0), np.where(infinite, 0, sign)
