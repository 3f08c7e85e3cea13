"""Stochastic rounding with given random bits: whether each number goes up for exactly the random integers for which it must.

Under the law a number goes away from zero from some random integer on. That threshold is found by bisection, and integers on both
sides of it are put to the implementation; of 8 bits, all 256.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.formats import FloatFormat
from fp8np.policy import STOCHASTIC
from fp8np.verify._judge import Failure, attempt, code_text, compare, number_text
from fp8np.verify._result import Difference, Row
from fp8np.verify.implementation import Checked

__all__ = ["against_law", "thresholds"]

Array = npt.NDArray[Any]

_RANDOM_TYPES = (np.uint8, np.uint16, np.uint32)


def against_law(implementation: Checked, fmt: FloatFormat) -> Iterator[Row]:
    """A row for each rounding."""
    for rounding in STOCHASTIC:
        row = Row("stochastic", "the law", fmt.name, rounding)
        for bits in _RANDOM_TYPES:
            for source in (np.float32, np.float64):
                row = _grown(row, implementation, fmt, rounding, np.dtype(bits), source)
        yield row


def _grown(row: Row, implementation: Checked, fmt: FloatFormat, rounding: str, bits: np.dtype[Any], source: Any) -> Row:
    width = 8 * bits.itemsize
    numbers = _numbers(fmt, 12 if source is np.float32 else 36)
    up_from, low, high = thresholds(fmt, rounding, width, numbers)
    integers = _integers(up_from, width)
    x = np.repeat(np.array([x for x, _ in numbers], source), integers.shape[1])
    random = integers.reshape(-1)
    expected = np.where(integers >= up_from[:, None], high[:, None], low[:, None]).reshape(-1).astype(np.uint8)
    options = {"overflow": "saturate", "rounding": rounding, "nan": "keep_sign"}
    got = attempt(lambda: implementation.encode_stochastic(x, fmt.name, **options, random_bits=random.astype(bits)))

    def show(i: int) -> Difference:
        given = f"{number_text(x[i])}, random bits {int(random[i])} of {width}"
        return Difference(given, code_text(fmt, int(expected[i])), code_text(fmt, int(got[i])))  # type: ignore[index]

    row = compare(row, expected, got, show)
    if row.mismatches and not row.diagnosis and not isinstance(got, Failure):
        fewer, more = _ups(expected, got, low, high, integers.shape[1])
        row = _diagnosed(row, fewer, more, width)
    return row


def _diagnosed(row: Row, fewer: int, more: int, width: int) -> Row:
    if fewer and more:
        text = f"numbers go up for other random integers of {width} bits"
    elif fewer:
        text = f"numbers go up too rarely with {width} random bits"
    elif more:
        text = f"numbers go up too often with {width} random bits"
    else:
        text = f"codes that are neither neighbour, with {width} random bits"
    return replace(row, diagnosis=text)


def _ups(expected: Array, got: Array, low: Array, high: Array, each: int) -> tuple[int, int]:
    """How many results are the lower neighbour where the upper is right, and the other way round."""
    lows, highs = np.repeat(low, each), np.repeat(high, each)
    differs = (expected != got) & (lows != highs)
    return int(np.count_nonzero(differs & (got == lows))), int(np.count_nonzero(differs & (got == highs)))


def _numbers(fmt: FloatFormat, bits: int) -> tuple[tuple[float, float], ...]:
    """(number, the fraction nu of the way to the next value that it lies at); nu has so many bits at most. Signs alternate."""
    rng = np.random.default_rng(bits)
    top = fmt.max_magnitude
    byte = 1 << (bits - 8)
    steps = [0, 1, byte, byte - 1, 1 << (bits - 1), (1 << bits) - 1, int(rng.integers(1 << bits))]
    found: list[tuple[float, float]] = []
    for magnitude in sorted({0, 1, int(rng.integers(top)), top - 1, top}):
        value, after = (float(reference.magnitude_value(fmt, m)) for m in (magnitude, magnitude + 1))
        for step in steps:
            sign = -1.0 if fmt.signed and len(found) % 2 else 1.0
            found.append((sign * (value + (after - value) * (step / 2**bits)), step / 2**bits))
    return tuple(found)


def thresholds(fmt: FloatFormat, rounding: str, width: int, numbers: tuple[tuple[float, float], ...]) -> tuple[Array, Array, Array]:
    """When each number goes up: the least random integer that does it, 2**width where none does; and its lower and upper code.

    The fractions beside the numbers say where to look first; the law is asked in any case.

    >>> from fp8np.formats import get_format
    >>> [int(a[0]) for a in thresholds(get_format("e4m3fn"), "stochastic_a", 8, ((1.03125, 0.25),))]
    [192, 56, 57]
    """
    up_from, low, high = [], [], []
    for x, nu in numbers:

        def encode(random: int, x: float = x) -> int:
            return reference.encode(fmt, x, rounding=rounding, random_bits=(random, width))

        first, last = encode(0), encode((1 << width) - 1)
        start, stop = 0, 1 << width  # between them is the least integer that gives `last`, if that is another code
        if first == last:
            start = stop
        near = (1 << width) - round(nu * (1 << width))
        for guess in (near, near - 1):
            if start < guess < stop:
                start, stop = (start, guess) if encode(guess) == last else (guess + 1, stop)
        while start < stop:
            middle = (start + stop) // 2
            start, stop = (start, middle) if encode(middle) == last else (middle + 1, stop)
        up_from.append(start)
        low.append(first)
        high.append(last)
    return np.array(up_from, np.int64), np.array(low, np.uint8), np.array(high, np.uint8)


def _integers(up_from: Array, width: int) -> Array:
    """int64 (numbers, integers): all of 8 bits; else both ends, both sides of each threshold, and a few at random."""
    last = (1 << width) - 1
    if width == 8:
        return np.tile(np.arange(1 << width, dtype=np.int64), (len(up_from), 1))
    rng = np.random.default_rng(width)
    near = up_from[:, None] + np.array([-2, -1, 0, 1])
    scattered = rng.integers(0, last, (len(up_from), 8), np.int64)
    ends = np.tile(np.array([0, last]), (len(up_from), 1))
    integers: Array = np.clip(np.concatenate([near, ends, scattered], axis=1), 0, last)
    return integers
