"""One step of an accumulator, for a tile of rows and lanes: the products of a group, and c.

A rule is int64[12], indexed by the constants below; `fp8np.accumulators.Accumulator` says what they mean. Arrays of a tile are
(rows, LANES), an interleaved sum has one of its own. Products are exact in float64, and so is every sum here: its terms are whole
multiples of one unit, fewer than 2**53 all together.

Two passes over the products of a step, both along the lanes: the largest sum of exponents, then the sum of what is left of each
product at that exponent. Measured on one thread of an AVX-512 CPU, e4m3fn, 512 cubed: 8.1 GMAC/s; with float32 products cut by
their conversion to int32, 11.0, for one more condition on formats and bits to keep: not taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels._arrays import Doubles, Floats
from fp8np.kernels._bits import float32_bits, float64_bits, float64_of
from fp8np.kernels._expansion import expansion, to_odd, two_sum
from fp8np.kernels._jit import exact
from fp8np.kernels._tile import ROWS

__all__ = ["A_EXPONENT", "B_EXPONENT", "EMPTY", "GROUP", "INTERLEAVE", "NAN", "PROMOTE", "Exponents", "Rule", "step"]

Rule = npt.NDArray[np.int64]
Exponents = npt.NDArray[np.int32]

GROUP = 0
INTERLEAVE = 1
FRACTION = 2  # bits below the largest exponent; -1: all
FLOOR = 3  # 1: sums are floored when they are aligned, 0: cut toward zero
ADDEND = 4  # how c takes part: 0 as a term of the step, or one of the next two
AFTER = 1
ROUNDED = 2
SUM_FRACTION = 5
OUTPUT = 6
NEAREST = 7  # 1: the new c is rounded to nearest even, 0: cut toward zero
NAN = 8  # bits of the NaN of a result
PROMOTE = 9  # products in a part; 0: all of K is one part
A_EXPONENT = 10  # log2 of the smallest normal value of a
B_EXPONENT = 11

EMPTY = -20000
"""The exponent of a zero. With any other exponent added it is below that of every product."""
LEAST = -600
"""Below the exponent of every product, and such that powers of two of it, and of all that is added, are float64s."""


@exact
def _power(exponent: Any) -> Any:
    # 2.0 ** exponent, of -1022 to 1023.
    return float64_of((np.int64(exponent) + 1023) << 52)


@exact
def _exponent(c: Any) -> Any:
    # Of a float32; a zero has none.
    bits = np.uint32(float32_bits(c) & np.uint32(0x7FFFFFFF))
    e = max(np.int32(np.int32(bits >> np.uint32(23)) - np.int32(127)), np.int32(-126))
    return np.int32(2 * EMPTY) if bits == np.uint32(0) else e


@exact
def _rounded(x: float, rule: Rule) -> Any:
    # As float32 with the rule's fraction bits; infinite beyond the largest.
    fraction = rule[OUTPUT]
    drop = 52 - fraction
    mask = (np.int64(1) << drop) - 1
    bits = float64_bits(x)
    half = ((mask >> 1) + ((bits >> drop) & 1)) * rule[NEAREST]
    normal = float64_of((bits + half) & ~mask)
    # Below 2**-126 float32 keeps the spacing of its smallest normal values; a zero is +0.
    units = x * _power(126 + fraction)
    cut = (np.rint(units) if rule[NEAREST] == 1 else np.trunc(units)) + 0.0
    return np.float32(cut * _power(-126 - fraction) if abs(x) < 2.0**-126 else normal)


@exact
def _tops(a: Exponents, k0: int, stop: int, by: int, b: Exponents, lanes: int, top: Exponents) -> None:
    # top[r, n] = the largest exponent of the products k0, k0 + by, ... of row r and column n.
    top[:] = np.int32(2 * EMPTY)
    t0, t1, t2, t3 = top[0, :lanes], top[1, :lanes], top[2, :lanes], top[3, :lanes]
    k = k0
    while k + 3 * by < stop:
        b0, b1, b2, b3 = b[k, :lanes], b[k + by, :lanes], b[k + 2 * by, :lanes], b[k + 3 * by, :lanes]
        a00, a01, a02, a03 = a[0, k], a[0, k + by], a[0, k + 2 * by], a[0, k + 3 * by]
        a10, a11, a12, a13 = a[1, k], a[1, k + by], a[1, k + 2 * by], a[1, k + 3 * by]
        a20, a21, a22, a23 = a[2, k], a[2, k + by], a[2, k + 2 * by], a[2, k + 3 * by]
        a30, a31, a32, a33 = a[3, k], a[3, k + by], a[3, k + 2 * by], a[3, k + 3 * by]
        for n in range(lanes):
            e0, e1, e2, e3 = b0[n], b1[n], b2[n], b3[n]
            t0[n] = max(max(max(t0[n], np.int32(a00 + e0)), np.int32(a01 + e1)), max(np.int32(a02 + e2), np.int32(a03 + e3)))
            t1[n] = max(max(max(t1[n], np.int32(a10 + e0)), np.int32(a11 + e1)), max(np.int32(a12 + e2), np.int32(a13 + e3)))
            t2[n] = max(max(max(t2[n], np.int32(a20 + e0)), np.int32(a21 + e1)), max(np.int32(a22 + e2), np.int32(a23 + e3)))
            t3[n] = max(max(max(t3[n], np.int32(a30 + e0)), np.int32(a31 + e1)), max(np.int32(a32 + e2), np.int32(a33 + e3)))
        k += 4 * by
    while k < stop:
        b0 = b[k, :lanes]
        a0, a1, a2, a3 = a[0, k], a[1, k], a[2, k], a[3, k]
        for n in range(lanes):
            t0[n] = max(t0[n], np.int32(a0 + b0[n]))
            t1[n] = max(t1[n], np.int32(a1 + b0[n]))
            t2[n] = max(t2[n], np.int32(a2 + b0[n]))
            t3[n] = max(t3[n], np.int32(a3 + b0[n]))
        k += by


@exact
def _scales(c: Floats, rule: Rule, lanes: int, top: Exponents, scale: Doubles) -> None:
    # One row: top[n] becomes the exponent that the terms are aligned to, scale[n] makes the last bit that is kept 1.
    joined = rule[ADDEND] == 0
    for n in range(lanes):
        e = max(top[n], _exponent(c[n])) if joined else top[n]
        top[n] = e
        scale[n] = _power(rule[FRACTION] - max(np.int64(e), np.int64(LEAST)))


@exact
def _sums(a: Doubles, k0: int, stop: int, by: int, b: Doubles, lanes: int, scale: Doubles, sums: Doubles) -> None:
    # sums[r, n] = sum of trunc(product * scale[r, n]) over the products k0, k0 + by, ...
    sums[:] = 0.0
    for r in range(0, ROWS, 2):
        s0, s1 = scale[r, :lanes], scale[r + 1, :lanes]
        u0, u1 = sums[r, :lanes], sums[r + 1, :lanes]
        k = k0
        while k + 3 * by < stop:
            b0, b1, b2, b3 = b[k, :lanes], b[k + by, :lanes], b[k + 2 * by, :lanes], b[k + 3 * by, :lanes]
            a00, a01, a02, a03 = a[r, k], a[r, k + by], a[r, k + 2 * by], a[r, k + 3 * by]
            a10, a11, a12, a13 = a[r + 1, k], a[r + 1, k + by], a[r + 1, k + 2 * by], a[r + 1, k + 3 * by]
            for n in range(lanes):
                v0, v1, v2, v3 = b0[n], b1[n], b2[n], b3[n]
                s = s0[n]
                u0[n] += np.trunc(a00 * v0 * s) + np.trunc(a01 * v1 * s) + np.trunc(a02 * v2 * s) + np.trunc(a03 * v3 * s)
                s = s1[n]
                u1[n] += np.trunc(a10 * v0 * s) + np.trunc(a11 * v1 * s) + np.trunc(a12 * v2 * s) + np.trunc(a13 * v3 * s)
            k += 4 * by
        while k < stop:
            b0 = b[k, :lanes]
            a0, a1 = a[r, k], a[r + 1, k]
            for n in range(lanes):
                u0[n] += np.trunc(a0 * b0[n] * s0[n])
                u1[n] += np.trunc(a1 * b0[n] * s1[n])
            k += by


@exact
def _join(c: Floats, rule: Rule, lanes: int, top: Exponents, sums: Doubles) -> None:
    # One row: c is one more term, or what is rounded is added to it in float32.
    fraction = rule[FRACTION]
    joined = rule[ADDEND] == 0
    for n in range(lanes):
        e = max(np.int64(top[n]), np.int64(LEAST))
        term = np.trunc(np.float64(c[n]) * _power(fraction - e)) if joined else 0.0
        new = _rounded((sums[n] + term) * _power(e - fraction), rule)
        c[n] = new if joined else c[n] + new


@exact
def _floor(x: float, floor: Any) -> Any:
    return np.floor(x) if floor == 1 else np.trunc(x)


@exact
def _join_after(c: Floats, rule: Rule, lanes: int, r: int, tops: Any, sums: Any) -> None:
    # Row r: the interleaved sums are aligned with each other, then with c.
    fraction, wide, floor = rule[FRACTION], rule[SUM_FRACTION], rule[FLOOR]
    for n in range(lanes):
        top = np.int64(LEAST)
        for i in range(tops.shape[0]):
            top = max(top, np.int64(tops[i, r, n]))
        total = 0.0
        for i in range(tops.shape[0]):
            total += _floor(sums[i, r, n] * _power(max(np.int64(tops[i, r, n]), np.int64(LEAST)) - top), floor)
        own = np.int64(_exponent(c[n]))
        last = max(top, own)
        unit = _power(last - wide - 1)
        total = _floor(total * _power(top - fraction) * _power(wide + 1 - last), floor) * unit
        if own >= last - fraction - 1:
            total += _floor(np.float64(c[n]) * _power(fraction - last), floor) * _power(last - fraction)
        e = max(((float64_bits(total) >> 52) & 2047) - 1023, np.int64(-126))
        total = _floor(total * _power(wide - e), floor) * _power(e - wide)
        c[n] = _rounded(total, rule)


@exact
def _exactly(a: Doubles, k0: int, stop: int, b: Doubles, lanes: int, rule: Rule, c: Floats, pairs: Doubles, terms: Doubles) -> None:
    # One row of a group whose products are all kept: the same as in kernels/exact.py, along the lanes. pairs (3, LANES).
    high, rest, lost = pairs[0, :lanes], pairs[1, :lanes], pairs[2, :lanes]
    joined = rule[ADDEND] == 0
    for n in range(lanes):
        high[n] = np.float64(c[n]) if joined else 0.0
        rest[n] = 0.0
        lost[n] = 0.0
    for k in range(k0, stop):
        x = a[k]
        values = b[k, :lanes]
        for n in range(lanes):
            total, error = two_sum(high[n], x * values[n])
            high[n] = total
            total, error = two_sum(rest[n], error)
            rest[n] = total
            lost[n] += abs(error)
    for n in range(lanes):
        if lost[n] == 0.0:
            total, error = two_sum(high[n], rest[n])
        else:
            parts = terms[: stop - k0 + 1]
            for k in range(k0, stop):
                parts[k - k0] = a[k] * b[k, n]
            parts[stop - k0] = np.float64(c[n]) if joined else 0.0
            total, error = expansion(parts, terms[parts.size :])
        new = _rounded(to_odd(total, error) + 0.0, rule)
        c[n] = new if joined else c[n] + new


@exact
def step(
    a: Doubles,
    a_exponents: Exponents,
    k: int,
    stop: int,
    b: Doubles,
    b_exponents: Exponents,
    lanes: int,
    rule: Rule,
    c: Floats,
    tops: Any,
    scale: Doubles,
    sums: Any,
    terms: Doubles,
) -> None:
    """c[r, n] = what the accumulator makes of it and of the products k .. stop of row r and lane n.

    a f64 (ROWS, depth) and b f64 (depth, LANES), finite, with their exponents; c f32 (<= ROWS, LANES). Scratch: tops i32 and sums
    f64 (interleave, ROWS, LANES), scale f64 (ROWS, LANES), terms f64 (2 * group + 2,).
    """
    if rule[FRACTION] < 0:
        for r in range(c.shape[0]):
            _exactly(a[r], k, stop, b, lanes, rule, c[r], scale, terms)
        return
    ways = rule[INTERLEAVE]
    for i in range(ways):
        _tops(a_exponents, k + i, stop, ways, b_exponents, lanes, tops[i])
        for r in range(ROWS):
            _scales(c[min(r, c.shape[0] - 1)], rule, lanes, tops[i, r], scale[r])
        _sums(a, k + i, stop, ways, b, lanes, scale, sums[i])
    for r in range(c.shape[0]):
        if rule[ADDEND] == AFTER:
            _join_after(c[r], rule, lanes, r, tops, sums)
        else:
            _join(c[r], rule, lanes, tops[0, r], sums[0, r])
