"""The exact product of two tensors of codes, rounded once to float32, by way of float64 matrix products.

The values of a format within a band of exponents are whole multiples of one power of two, and not many of them. If the bands of
both operands are so narrow that K products, in units of the product of the two powers, stay within 2**53, every partial sum of
a float64 product is exact: whatever the order, the blocking or the thread count of the BLAS. The products of all pairs of
bands, over chunks of K where K is large, are then added exactly by the `exact_sum` kernel.

E4M3 needs one band each: its products are multiples of 2**-18 and at most 448**2 = 2**17.6, which leaves K up to 171,196 a
chunk. E5M2 needs one or two, E8M0 with its 255 powers of two up to 13. Bands are cut through the exponents that occur, which
often saves half of them; how they are cut cannot change an exact result.

NaN and infinity take a way of their own, as counts of which products are what.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp8np.codec import decode_table
from fp8np.formats import FloatFormat
from fp8np.kernels._arrays import Doubles
from fp8np.kernels._table import select
from fp8np.tensor import Codes, Floats

__all__ = ["exact_product"]

Used = npt.NDArray[np.bool_]
"""bool (256,): which codes occur."""
Band = tuple[Doubles, int]
"""float64 (256,), the values of the band's codes and zero for all others; and its largest magnitude, in units."""

SHORTEST = 4096
"""Terms that a chunk of K has at least (unless K is smaller): bands are narrowed until it fits. Adding one more part to an
element takes as long as some hundred multiply-adds."""
LONGEST = 8192
"""Terms that a chunk has at most, for the memory of the float64 operands: 64 MiB each."""
SIDE = 1024
"""Rows and columns of a block of the result, at most."""
PARTS = 1 << 23
"""Elements of all parts of a block together, about: 64 MiB."""
PIECE = 1 << 20
"""Codes that are counted at a time."""


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
    a_used, b_used = _used(a), _used(b)
    a_bands, b_bands, step = _split(a_used, a_format, b_used, b_format, K)
    chunks = [slice(k, k + step) for k in range(0, K, step)]
    count = len(a_bands) * len(b_bands) * len(chunks) + (init is not None)
    side = min(SIDE, max(64, int((PARTS / max(count, 1)) ** 0.5)))
    special = _has_special(a_used, a_format) or _has_special(b_used, b_format) or (init is not None and not np.isfinite(init).all())
    for z in range(Z):
        az = a[z if len(a) > 1 else 0]
        bz = b[z if len(b) > 1 else 0]
        for m in range(0, M, side):
            for n in range(0, N, side):
                rows = az[m : m + side]
                columns = bz[n : n + side]
                block = out[z, m : m + side, n : n + side]
                start = None if init is None else init[z, m : m + side, n : n + side]
                block[...] = _block(rows, a_bands, columns, b_bands, chunks, start)
                if special:
                    odd = _special(rows, decode_table(a_format), columns, decode_table(b_format), chunks, start)
                    np.copyto(block, odd, where=odd != 0, casting="same_kind")
    return out


def _block(a: Codes, a_bands: list[Band], b: Codes, b_bands: list[Band], chunks: list[slice], init: Floats | None) -> Floats:
    """f32 (M, N) of a (M, K) and b (N, K), finite values only."""
    shape = len(a), len(b)
    parts = np.empty((len(a_bands) * len(b_bands) * len(chunks) + (init is not None), *shape))
    p = 0
    for chunk in chunks:
        right = [table[b[:, chunk]].T for table, _ in b_bands]
        for table, _ in a_bands:
            left = table[a[:, chunk]]
            for operand in right:
                np.matmul(left, operand, out=parts[p])
                p += 1
    if init is not None:
        parts[p] = np.where(np.isfinite(init), init, 0)
    out = np.empty(shape, np.float32)
    select("exact_sum", reproducible=True)(parts.reshape(len(parts), out.size), out.reshape(out.size))
    return out


def _split(a_used: Used, a_format: FloatFormat, b_used: Used, b_format: FloatFormat, K: int) -> tuple[list[Band], list[Band], int]:
    """Bands of both operands, and how many terms stay exact for every pair of them."""
    a_count = b_count = 1
    while True:
        a_bands = _bands(a_format, a_used, a_count)
        b_bands = _bands(b_format, b_used, b_count)
        a_limit = max((limit for _, limit in a_bands), default=1)
        b_limit = max((limit for _, limit in b_bands), default=1)
        terms = 2**53 // (a_limit * b_limit)
        if terms >= min(K, SHORTEST):
            return a_bands, b_bands, max(1, min(terms, LONGEST))
        if a_limit >= b_limit:
            a_count += 1
        else:
            b_count += 1


def _used(codes: Codes) -> Used:
    """Which codes occur."""
    used = np.zeros(256, np.bool_)
    flat = codes.reshape(-1)
    for i in range(0, flat.size, PIECE):  # bincount widens its argument to 64 bits
        used |= np.bincount(flat[i : i + PIECE], minlength=256) > 0
    return used


def _bands(fmt: FloatFormat, used: Used, count: int) -> list[Band]:
    """The finite, non-zero codes in use, cut into at most `count` bands of equally many exponents."""
    values = decode_table(fmt).astype(np.float64)
    values[~used | ~np.isfinite(values)] = 0
    if not values.any():
        return []
    # frexp's mantissa is in [1/2, 1); subnormal values have the spacing of the smallest normal exponent.
    exponents = np.maximum(np.frexp(values)[1] - 1, fmt.min_exponent)
    low, high = int(exponents[values != 0].min()), int(exponents[values != 0].max())
    width = -(-(high - low + 1) // count)
    bands = []
    for start in range(low, high + 1, width):
        table = np.where((start <= exponents) & (exponents < start + width), values, 0)
        largest = float(np.abs(table).max())
        if largest:
            bands.append((table, int(largest * 2.0 ** (fmt.mantissa_bits - start))))
    return bands


def _has_special(used: Used, fmt: FloatFormat) -> bool:
    return bool(np.any(used & ~np.isfinite(decode_table(fmt))))


def _special(a: Codes, a_values: Floats, b: Codes, b_values: Floats, chunks: list[slice], init: Floats | None) -> Doubles:
    """f64 (M, N): NaN or infinity where the sum of init and the products is one, zero where it is finite."""
    # Infinite products with their sign, and without: half their sum counts the positive ones, half their difference the others.
    signed, total, invalid = np.zeros((3, len(a), len(b)))
    for chunk in chunks:
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
