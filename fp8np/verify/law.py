"""The law of `fp8np.reference` for many inputs at once, independent of every kernel.

Between two neighbouring breakpoints (values of the format and midpoints between them) a conversion is constant. So the scalar law
is asked once at each breakpoint and once in each gap; inputs are looked up by bisection among exact float64 breakpoints::

    cell     0     1     2     3     4            2n   2n+1   2n+2 ...
             |-----------|-----------|--  ...     +Inf -Inf   NaN by sign and leading payload bits
    point    0          q/2          q
"""

from __future__ import annotations

import dataclasses
import math
import struct
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.errors import PolicyError
from fp8np.formats import FloatFormat
from fp8np.policy import SATURATE, STOCHASTIC, Policy

__all__ = ["breakpoints", "cells", "law", "law_table", "probes"]

Codes = npt.NDArray[np.uint8]


@lru_cache(maxsize=256)
def breakpoints(fmt: FloatFormat) -> tuple[Fraction, ...]:
    """0, and all values and midpoints, ascending, up to the second value that would follow the largest.

    >>> from fp8np.formats import get_format
    >>> [float(p) for p in breakpoints(get_format("e2m1fn"))][-4:]
    [7.0, 8.0, 10.0, 12.0]
    """
    values = [reference.magnitude_value(fmt, m) for m in range(fmt.max_magnitude + 3)]
    points = {Fraction(0), *values}
    points |= {(a + b) / 2 for a, b in pairwise(values)}
    if not fmt.has_zero:
        points.add(values[1] / 2)  # the tie of Policy.lowest = "zero"
    return tuple(sorted(points))


@lru_cache(maxsize=256)
def probes(fmt: FloatFormat) -> tuple[Fraction | float, ...]:
    """A number in each cell: points and gaps from 0 up, the same negated, both infinities, and NaNs of every leading payload."""
    points = breakpoints(fmt)
    gaps = [(a + b) / 2 for a, b in pairwise(points)] + [2 * points[-1]]
    positive = [p for pair in zip(points, gaps, strict=True) for p in pair]
    width = _payload_bits(fmt)
    nans = [_nan(sign, payload, width) for sign in (0, 1) for payload in range(1 << width)]
    return (*positive, *(-p or -0.0 for p in positive), math.inf, -math.inf, *nans)


def _payload_bits(fmt: FloatFormat) -> int:
    # Where every sign has one NaN or none, its payload cannot matter.
    return fmt.mantissa_bits if len(fmt.nan_codes) > 2 else 0


def _nan(sign: int, payload: int, width: int) -> float:
    # The lowest bit keeps a payload of zeros from being an infinity.
    (value,) = struct.unpack("<d", struct.pack("<Q", sign << 63 | 0x7FF << 52 | payload << (52 - width) | 1))
    return float(value)


@lru_cache(maxsize=1024)
def law_table(fmt: FloatFormat, policy: Policy = SATURATE) -> Codes:
    """The code of each cell: uint8, read-only.

    Raises:
        PolicyError: the rounding is stochastic, whose codes depend on random bits too.
    """
    if policy.rounding in STOCHASTIC:
        raise PolicyError(f"law_table: {policy.rounding} depends on random bits; ask fp8np.reference.encode")
    policy = dataclasses.replace(policy, via=None)  # `law` rounds to float16 beforehand
    plain = dataclasses.replace(policy, overflow=SATURATE.overflow, nan=SATURATE.nan)
    numbers = probes(fmt)
    how = dataclasses.asdict(policy)
    ends, below = _ends(fmt)
    if policy == plain:
        codes = np.empty(len(numbers), np.uint8)
        asked = np.setdiff1d(np.arange(len(numbers)), below)
    else:
        # These policies have a say at the ends only. Asking the law elsewhere again would take most of the time of a run.
        codes = law_table(fmt, plain).copy()
        asked = ends
    codes[asked] = [reference.encode(fmt, numbers[i], **how) for i in asked]
    if policy.negative == "magnitude":
        codes[below] = [reference.encode(fmt, numbers[i], **how) for i in below]
    elif below.size:
        # Far below zero, where there is no sign, every number has the same fate.
        codes[below] = reference.encode(fmt, -2 * fmt.smallest_subnormal, **how)
    codes.setflags(write=False)
    return codes


@lru_cache(maxsize=256)
def _points(fmt: FloatFormat) -> npt.NDArray[np.float64]:
    return np.array([float(p) for p in breakpoints(fmt)])


@lru_cache(maxsize=256)
def _ends(fmt: FloatFormat) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Cells in which overflow and NaN policies have a say; and those of an unsigned format between -max and twice -smallest."""
    x = np.array([float(p) for p in probes(fmt)])
    below = (x > -fmt.max) & (x < -2 * fmt.smallest_subnormal) if not fmt.signed else np.zeros(x.shape, bool)
    ends = ~(np.abs(x) < fmt.max) | (x == 0) | ((x < 0) & (not fmt.signed))
    return np.flatnonzero(ends & ~below), np.flatnonzero(below)


def cells(fmt: FloatFormat, x: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The cell of each number: an index into `law_table`, of x's shape."""
    points = _points(fmt)
    per_sign = 2 * len(points)
    minus = np.signbit(x)
    magnitude = np.abs(x)
    at = np.searchsorted(points, magnitude, side="right") - 1
    cell = 2 * at + (points[at] != magnitude) + per_sign * minus
    cell = np.where(np.isinf(x), 2 * per_sign + minus, cell)
    nan = np.isnan(x)
    if nan.any():
        width = _payload_bits(fmt)
        payload = x[nan].view(np.uint64) >> np.uint64(52 - width) & np.uint64((1 << width) - 1)
        cell[nan] = 2 * per_sign + 2 + (minus[nan].astype(np.intp) << width) + payload.astype(np.intp)
    return cell


def law(fmt: FloatFormat, x: Any, policy: Policy = SATURATE) -> Codes:
    """The codes of numbers.

    Args:
        fmt: the format.
        x: float64, float32 or float16, any shape.
        policy: any but stochastic ones.

    Returns:
        uint8 of x's shape.

    Raises:
        PolicyError: the rounding is stochastic.

    >>> from fp8np.formats import get_format
    >>> law(get_format("e4m3fn"), np.array([1, -0.3, 465, 1e9, np.nan])).tolist()
    [56, 170, 126, 126, 127]
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # signalling NaN; float16
        if policy.via == "float16":
            x = np.asarray(x).astype(np.float16)
        exact = np.asarray(x).astype(np.float64)
    return law_table(fmt, policy)[cells(fmt, exact)]
