"""What is put to an implementation: numbers to encode, and products to sum."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.accumulators import ACCUMULATORS, Accumulator
from fp8np.formats import FORMATS, FloatFormat
from fp8np.policy import NAN, OVERFLOW, PRESETS, ROUNDING, SATURATE, STOCHASTIC, Policy
from fp8np.reference_sum import dot
from fp8np.verify.law import breakpoints

__all__ = ["PRESET", "Inputs", "ProductCase", "all_16_bit", "drawn", "edges", "inputs", "policies", "product_cases", "product_formats"]

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


# -- conversions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Numbers of one type.

    Attributes:
        suite: the check they belong to: ``16 bit``, ``float32`` or ``float64``.
        kind: what the numbers are: ``float16``, ``bfloat16`` (held in float32), ``float32``, ``float64``.
        x: the numbers, one axis.
    """

    suite: str
    kind: str
    x: npt.NDArray[Any]


@lru_cache(maxsize=2)
def all_16_bit(kind: str) -> npt.NDArray[Any]:
    """Every ``float16``, or every ``bfloat16`` as float32 (which holds it exactly); index = bits. Read-only."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    x = (bits << 16).view(np.float32) if kind == "bfloat16" else bits.astype(np.uint16).view(np.float16)
    x.setflags(write=False)
    return x


def edges(fmt: FloatFormat) -> npt.NDArray[np.float64]:
    """Where a conversion can go wrong by one code: float64, both signs.

    Every value and midpoint m; its float64 and float32 neighbours; m * (1 +- 2**-k) for k of 26, 30, 40 and 52, which float32
    rounds to m itself; the ends of float32 and of float64.
    """
    points = np.array([float(p) for p in breakpoints(fmt)])
    with np.errstate(over="ignore", under="ignore"):
        single = points.astype(np.float32)
        near = [np.nextafter(single, s * np.float32(np.inf)).astype(np.float64) for s in (1, -1)]
        near += [points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)]
        near += [points * (1 + s * 2.0**-k) for k in (26, 30, 40, 52) for s in (1, -1)]
    tiny = [5e-324, 2.0**-1022, 2.0**-149, 2.0**-126, 1e30, 3.4028234663852886e38, 1.7976931348623157e308]
    positive = np.concatenate([*near, tiny])
    return np.concatenate([positive, -positive])


PRESET = "preset "
"""How names of policies begin that are presets."""

RANDOM = 4096
"""Random numbers beside the crafted ones, spread over the range of the format and somewhat beyond."""


@lru_cache(maxsize=128)
def inputs(fmt: FloatFormat) -> tuple[Inputs, ...]:
    """All numbers that `verify` has encoded."""
    rng = np.random.default_rng(0x5EED)
    exponents = rng.integers(max(fmt.quantum_exponent - 4, -149), min(fmt.max_exponent + 4, 127), RANDOM)
    scattered = np.ldexp(rng.uniform(-2, 2, RANDOM), exponents)
    crafted = edges(fmt)
    with np.errstate(over="ignore", under="ignore"):
        single = np.concatenate([crafted, scattered]).astype(np.float32)
    # Quiet NaNs of each sign with every leading payload, and a signalling one; infinities.
    tops = np.array([s | 0x7F800000 | p << 19 for s in (0, 1 << 31) for p in range(8, 16)], np.uint32)
    signalling = np.array([0x7F800001, 0xFF800001, 0x7FA00000], np.uint32)
    specials = np.concatenate([tops, signalling]).view(np.float32)
    infinities = np.array([np.inf, -np.inf, 0.0, -0.0])
    with np.errstate(invalid="ignore"):
        double = np.concatenate([crafted, scattered, infinities, specials.astype(np.float64)])
    single = np.concatenate([single, infinities.astype(np.float32), specials])
    return (
        Inputs("16 bit", "float16", all_16_bit("float16")),
        Inputs("16 bit", "bfloat16", all_16_bit("bfloat16")),
        Inputs("float32", "float32", single),
        Inputs("float64", "float64", double),
    )


@lru_cache(maxsize=128)
def policies(fmt: FloatFormat) -> tuple[tuple[str, Policy], ...]:
    """(what it is called, policy) of all conversions without random bits to `fmt`, each once.

    Every overflow policy with every rounding, every NaN policy, and every preset that is none of these.
    """
    rows = {Policy(o, r): f"{o}, {r}" for o, r in itertools.product(OVERFLOW, ROUNDING) if r not in STOCHASTIC}
    for nan in NAN:
        if nan != SATURATE.nan and not (nan == "negated_zero" and fmt.nan_codes):
            for overflow in OVERFLOW[:2]:
                rows.setdefault(Policy(overflow, nan=nan), f"{overflow}, nan={nan}")
    for preset, formats in PRESETS.items():
        policy = formats.get(fmt.name)
        if policy is not None and policy.rounding not in STOCHASTIC:
            rows.setdefault(policy, PRESET + preset)
    return tuple((name, policy) for policy, name in rows.items())


# -- products ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ProductCase:
    """A product of two matrices of codes, and what it must be.

    Attributes:
        name: what is special about it: ``cancel``, ``long``, ...
        a: codes (M, K). a_format: their format.
        b: codes (K, N). b_format: their format.
        accumulate: how it is summed.
        promote_every: as in `fp8np.matmul`.
        init: what the sum starts from, float32 (M, N), or None.
        expected: the bits that must come out, float32 (M, N).
        tolerance: None, or how far a result may be from `expected`, float64 (M, N): for sums whose order is not laid down.
        any_nan: whether one NaN is as good as another; else its bits count too.
    """

    name: str
    a: Codes
    a_format: FloatFormat
    b: Codes
    b_format: FloatFormat
    accumulate: Accumulator
    promote_every: int | None
    init: Floats | None
    expected: Floats
    tolerance: npt.NDArray[np.float64] | None = None
    any_nan: bool = False


def product_formats(accumulator: Accumulator) -> tuple[tuple[FloatFormat, FloatFormat], ...]:
    """Pairs of formats whose products are checked: those that hardware multiplies; where a sum is not hardware's, all squares too."""
    hardware = [FORMATS[name] for name in PRESETS["ocp_sat"]]
    pairs = [(a, b) for a in hardware for b in hardware]
    if accumulator.kind != "aligned":
        # Beyond these exponents a product of two values leaves float32.
        pairs += [(f, f) for f in FORMATS.values() if f not in hardware and f.quantum_exponent > -60 and f.max_exponent < 60]
    return tuple(pairs)


@lru_cache(maxsize=256)
def _finite(fmt: FloatFormat) -> Codes:
    codes = [c for c in range(1 << fmt.bits) if math.isfinite(reference.decode(fmt, c))]
    return np.array(codes, np.uint8)


def drawn(rng: np.random.Generator, fmt: FloatFormat, shape: tuple[int, ...], kind: str) -> Codes:
    """Random codes: ``special`` of all codes, ``wide`` of all finite ones, ``narrow`` from a few binades."""
    if kind == "special":
        return rng.integers(0, 1 << fmt.bits, shape, dtype=np.uint8)
    codes = rng.choice(_finite(fmt), shape)
    if kind == "wide":
        return codes
    # A few binades, where most bits of every product survive the alignment and sums cancel.
    middle = (fmt.max_magnitude + 1) // 2
    spread = min(2 << fmt.mantissa_bits, middle - 1)
    sign = rng.integers(0, 2, shape, dtype=np.int64) * fmt.sign_bit
    return ((middle + rng.integers(-spread, spread, shape)) | sign).astype(np.uint8)


def _law(how: Accumulator, a: Codes, a_format: FloatFormat, b: Codes, b_format: FloatFormat, init: Floats | None) -> Floats:
    starts = np.zeros((a.shape[0], b.shape[1]), np.float32) if init is None else init
    columns = b.T.tolist()
    bits = [
        dot(how, row, a_format, column, b_format, start)
        for row, row_starts in zip(a.tolist(), starts.tolist(), strict=True)
        for column, start in zip(columns, row_starts, strict=True)
    ]
    return np.array(bits, np.uint32).reshape(starts.shape).view(np.float32)


def _bound(case: ProductCase) -> npt.NDArray[np.float64]:
    # gamma(K + 1) * (|init| + sum |a| |b|), the bound of a float32 sum in any order; and a rounding of `expected` itself.
    magnitudes = np.abs(_values(case.a, case.a_format)) @ np.abs(_values(case.b, case.b_format))
    if case.init is not None:
        magnitudes = magnitudes + np.abs(case.init)
    unit = (case.a.shape[1] + 2) * 2.0**-24
    bound: npt.NDArray[np.float64] = magnitudes * unit / (1 - unit)
    return bound


def _values(codes: Codes, fmt: FloatFormat) -> npt.NDArray[np.float64]:
    table: npt.NDArray[np.float64] = np.array([float(reference.decode(fmt, code)) for code in range(1 << fmt.bits)])
    return np.take(table, codes)


# name: terms in groups, further terms, shape, whether the sum starts from numbers, whether it is promoted.
_SHAPES: tuple[tuple[str, int, int, tuple[int, int], bool, bool], ...] = (
    ("narrow", 2, 0, (2, 3), False, False),
    ("wide", 2, 3, (2, 3), True, True),
    ("wide", 1, 1, (2, 3), True, False),
    ("special", 1, 0, (3, 3), False, False),
    ("narrow", 0, 1, (4, 4), False, False),
    ("narrow", 0, 0, (2, 2), True, False),
)


def product_cases(pair: tuple[FloatFormat, FloatFormat], accumulator: Accumulator) -> Iterator[ProductCase]:
    """Products of one pair of formats, with what the law `fp8np.reference_sum` makes of them.

    Sums end inside a group of the accumulator, at its end and just after it, with and without init and promotion.
    """
    a_format, b_format = pair
    group = len(accumulator.order) or accumulator.group or 32
    rng = np.random.default_rng([a_format.bits, a_format.bias, b_format.mantissa_bits, group])
    largest = a_format.max_exponent + b_format.max_exponent - 6
    exact = ACCUMULATORS["exact"]
    for kind, groups, more, shape, started, promoted in _SHAPES:
        terms = groups * group + more
        a, b = drawn(rng, a_format, (shape[0], terms), kind), drawn(rng, b_format, (terms, shape[1]), kind)
        start = None
        if started:
            start = np.ldexp(rng.uniform(-2, 2, shape), rng.integers(largest - 12, largest + 4, shape)).astype(np.float32)
            start[0, 0] = -0.0
        every = group if promoted and accumulator.kind == "aligned" else None
        how = accumulator if every is None else dataclasses.replace(accumulator, promote_every=every)
        loose = accumulator.kind == "fp32"
        expected = _law(exact if loose else how, a, a_format, b, b_format, start)
        case = ProductCase(kind, a, a_format, b, b_format, accumulator, every, start, expected, any_nan=accumulator.kind != "aligned")
        yield dataclasses.replace(case, tolerance=_bound(case)) if loose else case
    if accumulator.kind == "aligned":
        yield from _extremes(a_format, b_format, accumulator, group, rng)


def _extremes(
    a_format: FloatFormat, b_format: FloatFormat, accumulator: Accumulator, group: int, rng: np.random.Generator
) -> Iterator[ProductCase]:
    # What starts the sum is far above all products, and decides what is left of them; sums that are zero.
    a, b = drawn(rng, a_format, (2, group), "narrow"), drawn(rng, b_format, (group, 2), "narrow")
    top = a_format.max_exponent + b_format.max_exponent
    high = np.ldexp(rng.uniform(1, 2, (2, 2)), [[top - 2, top], [top + 3, top + 8]]).astype(np.float32)
    half = group // 2
    opposite = a.copy()
    opposite[:, half : 2 * half] = opposite[:, :half] ^ a_format.sign_bit
    opposite[:, 2 * half :] = 0
    same = b.copy()
    same[half : 2 * half] = same[:half]
    for name, left, right, start in (
        ("init above", a, b, high),
        ("sum of zero", opposite, same, None),
        ("sum of -0", np.full_like(a, a_format.sign_bit), b & ~np.uint8(b_format.sign_bit), np.full((2, 2), -0.0, np.float32)),
    ):
        expected = _law(accumulator, left, a_format, right, b_format, start)
        yield ProductCase(name, left, a_format, right, b_format, accumulator, None, start, expected)
