"""Conversions, float32 to codes and back, and stochastic rounding: every bit of ours and of the peers against the exact law."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import fp8np
from fp8np import reference
from fp8np.kernels._rule import conversion_rule
from fp8np.kernels._table import select
from fp8np.policy import STOCHASTIC, Policy
from fp8np_benchmarks.case import OURS, Case, Check, CheckError, Ready, Setting
from fp8np_benchmarks.machine import Ceiling, copy_bandwidth
from fp8np_benchmarks.peers import find

FORMATS = ("float8_e4m3fn", "float8_e5m2")
SAMPLED = 500
"""Elements of stochastic rounding that are compared with the law; it takes tens of microseconds for each."""
BITS = 8
"""Random bits of an element in stochastic rounding."""


def cases(setting: Setting) -> list[Case]:
    """Encode and decode on one thread and on all, and stochastic rounding on all."""
    count = 1 << (16 if setting.quick else 24)
    size = "64 K" if setting.quick else "16 M"
    found = []
    for threads in sorted({1, setting.threads}):
        ceiling = partial(_copy, 5 * count, threads)
        for fmt in FORMATS:
            for name, prepare in (
                (f"encode float32 -> {fmt}, {size}", partial(encoding, fmt, count)),
                (f"decode {fmt} -> float32, {size}", partial(decoding, fmt, count)),
            ):
                found.append(Case("codec", name, threads, prepare, 5.0 * count, "byte", 5.0 * count, ceiling))
    for fmt in FORMATS:
        for rounding in STOCHASTIC:
            name = f"{rounding}, float32 -> {fmt}, {size}"
            found.append(Case("codec", name, setting.threads, partial(stochastic, fmt, rounding, count), 6.0 * count, "byte"))
    return found


def _copy(moved: int, threads: int) -> Ceiling:
    return Ceiling("copy", copy_bandwidth(moved, threads))


def encoding(fmt: str, count: int) -> Ready:
    """All write into memory that is there already, but for ml_dtypes, which is slower so."""
    x = _numbers(count)
    absent: dict[str, str] = {}
    out = np.empty(count, np.uint8)
    entries: dict[str, Any] = {OURS: lambda: fp8np.encode(x, fmt, out=out)}
    if ml_dtypes := find("ml_dtypes", absent, "ml_dtypes"):
        entries["ml_dtypes"] = lambda: x.astype(getattr(ml_dtypes, fmt))
    if torch := find("torch", absent, "torch"):
        source, target = torch.from_numpy(x), torch.empty(count, dtype=getattr(torch, fmt))
        entries["torch"] = lambda: target.copy_(source)
    return Ready(entries, _same_bits(nearest(x, fmt)), absent)


def decoding(fmt: str, count: int) -> Ready:
    """All write into memory that is there already."""
    codes = fp8np.encode(_numbers(count), fmt)
    absent: dict[str, str] = {}
    out = np.empty(count, np.float32)
    entries: dict[str, Any] = {OURS: lambda: fp8np.decode(codes, fmt, out=out)}
    if ml_dtypes := find("ml_dtypes", absent, "ml_dtypes"):
        typed, other = codes.view(getattr(ml_dtypes, fmt)), np.empty(count, np.float32)

        def decode() -> Any:
            np.copyto(other, typed)
            return other

        entries["ml_dtypes"] = decode
    if torch := find("torch", absent, "torch"):
        source, target = torch.from_numpy(codes).view(getattr(torch, fmt)), torch.empty(count)
        entries["torch"] = lambda: target.copy_(source)
    return Ready(entries, _same_bits(_values(fmt)[codes]), absent)


def stochastic(fmt: str, rounding: str, count: int) -> Ready:
    """With the random bits given, ours with a generator, and the kernel alone."""
    x, rng = _numbers(count), np.random.default_rng(1)
    bits = rng.integers(0, 1 << BITS, count, np.uint8)
    row, wide, out = fp8np.get_format(fmt), bits.astype(np.uint32), np.empty(count, np.uint8)
    kernel, rule = select("encode_f32_stochastic", row), conversion_rule(row, Policy(rounding=rounding))

    def alone() -> Any:
        kernel(x, rule, wide, BITS, out)
        return out

    entries = {
        OURS: lambda: fp8np.encode(x, fmt, rounding=rounding, random_bits=bits),
        "fp8np, the kernel alone": alone,
        "fp8np, with a Generator": lambda: fp8np.encode(x, fmt, rounding=rounding, random_bits=rng),
    }
    given = fp8np.encode(x, fmt, rounding=rounding, random_bits=bits)

    def law(i: int, chance: int) -> int:
        return reference.encode(row, float(x[i]), rounding=rounding, random_bits=(chance, BITS))

    def check(entry: str, result: Any) -> str:
        if entry.endswith("Generator"):
            wrong = [i for i in range(SAMPLED) if result[i] not in (law(i, 0), law(i, (1 << BITS) - 1))]
            said = f"one of the two neighbours, {SAMPLED} elements"
        else:
            wrong = [i for i in range(SAMPLED) if result[i] != law(i, int(bits[i]))] or np.flatnonzero(result != given)[:1].tolist()
            said = f"{SAMPLED} elements as by the law, all alike"
        if wrong:
            raise CheckError(f"element {wrong[0]}: {float(x[wrong[0]])!r} became code {int(result[wrong[0]]):#04x}")
        return said

    return Ready(entries, check)


def nearest(x: Any, fmt: str) -> Any:
    """Codes of numbers within the range of a format, by looking between which midpoints of its values they lie. Ties to even."""
    magnitudes = _values(fmt)[:128].astype(np.float64)
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    midpoints = (magnitudes[1:] + magnitudes[:-1]) / 2
    size = np.abs(x)
    low, high = (np.searchsorted(midpoints.astype(np.float32), size, side) for side in ("left", "right"))
    codes = np.where(low % 2 == 0, low, high).astype(np.uint8)
    return codes | (np.signbit(x).astype(np.uint8) << 7)


def _values(fmt: str) -> Any:
    row = fp8np.get_format(fmt)
    return np.array([float(reference.decode(row, code)) for code in range(256)], np.float32)


def _numbers(count: int) -> Any:
    return np.random.default_rng(0).standard_normal(count).astype(np.float32)


def _same_bits(expected: Any) -> Check:
    unsigned = f"u{expected.itemsize}"

    def check(entry: str, result: Any) -> str:
        if hasattr(result, "detach"):
            import torch

            result = result.view(torch.uint8 if result.itemsize == 1 else torch.int32).numpy()
        wrong = np.flatnonzero(result.view(unsigned) != expected.view(unsigned))
        if len(wrong):
            raise CheckError(f"{len(wrong):,} of {len(expected):,} results differ from the law, the first at element {wrong[0]}")
        return f"{len(expected):,} results as by the law"

    return check
