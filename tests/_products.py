"""Codes to multiply, and the exact law of a sum of products: shared by the tests of products."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

from fp8np.codec import decode_table
from fp8np.formats import FORMATS, FloatFormat
from fp8np.tensor import QTensor

# Of P3109's thirty, the ends: no mantissa, the widest range, the longest mantissa, with and without a sign and infinity.
P3109 = ("binary8p1ue", "binary8p3se", "binary8p7sf", "binary8p8uf")
PAIRS = list(itertools.product([f for f in FORMATS.values() if not f.name.startswith("binary") or f.name in P3109], repeat=2))
PAIR_IDS = [f"{a.name.removeprefix('float8_')}-{b.name.removeprefix('float8_')}" for a, b in PAIRS]


def finite_codes(fmt: FloatFormat) -> np.ndarray:
    """Every code of a finite value."""
    return np.flatnonzero(np.isfinite(decode_table(fmt))).astype(np.uint8)


def random_codes(rng: np.random.Generator, fmt: FloatFormat, shape: tuple[int, ...]) -> np.ndarray:
    """Finite codes, half of them from a narrow range of exponents, where sums cancel and round."""
    codes = rng.choice(finite_codes(fmt), shape)
    finite = finite_codes(fmt)
    by_size = finite[np.argsort(np.abs(decode_table(fmt)[finite]), kind="stable")]
    near = by_size[(rng.integers(-18, 18, shape) + finite.size // 2) % finite.size]
    return np.where(rng.random(shape) < 0.5, codes, near).astype(np.uint8)


def values(q: QTensor) -> np.ndarray:
    """float64 values of the codes, scale not applied."""
    return decode_table(q.format)[q.codes].astype(np.float64)


def rounded(x: Fraction) -> np.float32:
    """The float32 nearest to a rational, ties to even; zero is +0."""
    if x == 0:
        return np.float32(0)
    magnitude = abs(x)
    # The largest e with 2**e <= magnitude.
    e = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    e -= Fraction(2) ** e > magnitude
    quantum = Fraction(2) ** (max(e, -126) - 23)
    units = round(magnitude / quantum)  # a Fraction rounds to nearest, ties to even
    if units * quantum >= Fraction(2) ** 128:
        return np.float32(np.copysign(np.inf, float(x.numerator > 0) - 0.5))
    return np.float32(float(units * quantum) * (1 if x > 0 else -1))


def exact_products(a: np.ndarray, b: np.ndarray, init: np.ndarray | None = None) -> np.ndarray:
    """float32 (M, N): init + a @ b of finite float64 a (M, K) and b (K, N), in rationals, rounded once."""
    left = [[Fraction(v) for v in row] for row in a.tolist()]
    right = [[Fraction(v) for v in column] for column in b.T.tolist()]
    out = np.empty((len(left), len(right)), np.float32)
    for m, row in enumerate(left):
        for n, column in enumerate(right):
            start = Fraction(0) if init is None else Fraction(float(init[m, n]))
            out[m, n] = rounded(start + sum(x * y for x, y in zip(row, column, strict=True)))
    return out


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal float32 bits; one NaN is as good as another."""
    assert got.dtype == expected.dtype == np.float32
    assert got.shape == expected.shape
    same = (got.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(got) & np.isnan(expected))
    assert same.all(), f"{np.argwhere(~same)[:3].tolist()}: {got[~same][:3]} for {expected[~same][:3]}"


def sum_bound(K: int, magnitudes: np.ndarray) -> np.ndarray:
    """What a float32 sum of K terms with these sums of magnitudes may be wrong by: gamma(K) * sum |a| |b|."""
    u = 2.0**-24
    return K * u / (1 - K * u) * magnitudes
