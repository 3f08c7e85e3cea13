"""How far a product of quantized matrices can be from the exact one: `error_bound`, for every accumulator.

The bound is computed from the operands, not from the result, in float64: a few matrix products of magnitudes, and for aligned
accumulators the largest exponent of each step (seconds for 1024 cubed). No result is further off. With u = 2**-24:

- ``"fp32"``: a float32 sum multiplies each term by ``1 + d``, ``|d| <= u``, once for each addition that it goes through: in any order
  w = K of them at most, one less where the sum starts from zero. Within ``gamma(w) = w u / (1 - w u)`` of the sum of magnitudes
  (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2).
- ``"sequential"``: the order is known, so each addition rounds a partial sum that is not larger than the exact one, errors so far and
  what its run of 32 products can add: half a unit of the last bit of that.
- An aligned step at the largest exponent E cuts each of its n products at ``unit = 2**(E - fraction_bits)`` and so loses less than
  ``unit`` of each, and not more than all of it: ``min(n * unit, sum |a| |b|)``, and as much of c. E is the exact largest exponent of the
  products, or that of the largest c that errors so far allow. Then the sum is rounded: one unit of its last bit, or half of it.
  What a step loses is carried on unchanged, so the errors of steps add up.
- All products of a row and a column are whole multiples of ``grid``, a power of two. Where a unit is not larger than that
  nothing is lost, and never more than ``unit - grid`` by a cut. So the bound is 0 wherever float32 holds every partial sum.
- Scales multiply on the way out: each that is not a power of two rounds once more. Partial sums of scaled blocks are added as
  `fp8np._blocks` says: their scale is rounded, and the sum.
- The bound's own roundings in float64 are covered by a margin of 2**-30; sums that float64 cannot hold count with their own error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._blocks import index_scales, segments_of
from fp8np._products import check_operands, float32_of, matrices
from fp8np.accumulators import Accumulator, resolve_accumulate
from fp8np.codec import decode_table
from fp8np.errors import PolicyError
from fp8np.formats import FloatFormat
from fp8np.kernels._arrays import Doubles
from fp8np.tensor import QTensor

__all__ = ["error_bound"]

_Index = npt.NDArray[np.intp]

_U = 2.0**-24
_SUBNORMAL = 2.0**-150
"""The largest error of a float32 operation whose result is subnormal."""
_FLOAT64 = 2.0**-53
_MARGIN = 1 + 2.0**-30
_NO_GRID = np.zeros(())
_COARSEST = 2.0**100
"""The last bit of a zero."""
_RUN = 32
_NOTHING = -8000
"""The exponent of a zero: with any other added, below all."""


def error_bound(
    a: QTensor,
    b: QTensor,
    accumulate: str | Accumulator = "fp32",
    promote_every: int | None = None,
    init: npt.ArrayLike | None = None,
) -> npt.NDArray[np.float64]:
    """A bound on ``|matmul(a, b, ...) - exact value|``, where the exact value is ``(init + a @ b) * a.scale * b.scale`` in real numbers.

    Args:
        a: (..., M, K) or (K,), as `fp8np.matmul` takes it, scaled blocks included.
        b: (..., K, N) or (K,).
        accumulate: a name of `fp8np.accumulators.ACCUMULATORS`, or an `Accumulator`.
        promote_every: as for `fp8np.matmul`.
        init: float32, broadcastable to the result.

    Returns:
        float64 of the result's shape; a NumPy scalar for two vectors. Infinite where a sum or a scaled sum may overflow float32; NaN where
        the exact value is infinite or none.

    Raises:
        As `fp8np.matmul`. The module's docstring has the derivation.

    >>> from fp8np.linalg import matmul
    >>> a = QTensor(np.full((1, 256), 0x39, np.uint8), "e4m3fn")  # 256 times 1.125
    >>> for name in ("exact", "fp32", "hopper"):  # 256 * 1.265625 = 324; hopper loses 2**-6 of 32 products
    ...     print(f"{name}: {error_bound(a, a.T, name)[0, 0]:.3f}, in fact {324 - matmul(a, a.T, accumulate=name)[0, 0]:.3f}")
    exact: 0.000, in fact 0.000
    fp32: 0.000, in fact 0.000
    hopper: 0.547, in fact 0.500
    """
    name = "error_bound"
    how = resolve_accumulate(name, accumulate, promote_every)
    check_operands(name, a=a, b=b)
    left, right, batch, shape = matrices(name, a, b)
    full = (*batch, left.shape[-2], right.shape[-1])
    start = None if init is None else float32_of(name, "init", init, shape).reshape(full).astype(np.float64)
    with np.errstate(all="ignore"):
        if a.block is not None or b.block is not None:
            if start is not None:
                raise PolicyError(f"{name}: init has no place in a product of scaled blocks; add it afterwards")
            total = _scaled_blocks(left, right, how)
        else:
            total = _scaled(_sum(_operands(left, right, how), how, start), left, right)
        bound = np.where(total.largest() * _MARGIN < 2.0**128 * (1 - _U), total.error * _MARGIN, np.inf)
        bound = np.where(np.isfinite(total.value), bound, np.nan)
    return np.broadcast_to(bound, full).reshape(shape)[()]


@dataclass(frozen=True)
class _Total:
    """A sum, exact and as computed, elementwise."""

    value: Doubles
    """The exact sum, as float64 has it."""
    doubt: Doubles
    """How far the exact sum may be from `value`."""
    error: Doubles
    """How far the computed sum may be from the exact one."""
    grid: Doubles
    """Both sums are whole multiples of this."""
    peak: Doubles
    """At least the magnitude of every partial sum as computed."""

    def largest(self) -> Doubles:
        """At least the magnitude of the computed sum, and of those on the way to it."""
        return np.maximum(np.abs(self.value) + self.doubt + self.error, self.peak)


@dataclass(frozen=True)
class _Operands:
    """Values of the codes of a (..., M, K) and b (..., K, N), and their exponents as the accumulator sees them."""

    a: Doubles
    b: Doubles
    a_exponent: npt.NDArray[np.int16]
    b_exponent: npt.NDArray[np.int16]

    def grid(self) -> Doubles:
        """f64 (..., M, N): a power of two that divides all products of a row and a column."""
        rows = _last_bits(self.a).min(axis=-1, initial=_COARSEST)
        columns = _last_bits(self.b).min(axis=-2, initial=_COARSEST)
        grid: Doubles = rows[..., :, None] * columns[..., None, :]
        return grid

    def at(self, k: _Index | slice) -> _Operands:
        """The same for some k only."""
        return _Operands(self.a[..., k], self.b[..., k, :], self.a_exponent[..., k], self.b_exponent[..., k, :])

    def top(self) -> Doubles:
        """f64 (..., M, N): the largest exponent of the products."""
        shape = np.broadcast_shapes((*self.a.shape[:-1], 1), (*self.b.shape[:-2], 1, self.b.shape[-1]))
        top = np.full(shape, 2 * _NOTHING, np.int16)
        for k in range(self.a.shape[-1]):
            np.maximum(top, self.a_exponent[..., k, None] + self.b_exponent[..., None, k, :], out=top)
        return top.astype(np.float64)


def _operands(a: QTensor, b: QTensor, how: Accumulator) -> _Operands:
    left, right = (decode_table(q.format).astype(np.float64)[q.codes] for q in (a, b))
    return _Operands(left, right, _exponents(left, a.format, how), _exponents(right, b.format, how))


def _last_bits(values: Doubles) -> Doubles:
    """The weight of the last 1 of each number, with 8 bits of precision."""
    fraction, exponent = np.frexp(values)
    units = np.abs(fraction * 256).astype(np.int64)
    return np.where(values == 0, _COARSEST, np.ldexp(units & -units, exponent - 8))


def _exponents(values: Doubles, fmt: FloatFormat, how: Accumulator) -> npt.NDArray[np.int16]:
    least = fmt.min_exponent if how.operand_exponent is None else how.operand_exponent
    exponent = np.maximum(np.frexp(values)[1] - 1, least)
    return np.where(values == 0, _NOTHING, exponent).astype(np.int16)


# -- sums -------------------------------------------------------------------------------------------------------------


def _sum(x: _Operands, how: Accumulator, start: Doubles | None) -> _Total:
    """Of start and all products, in the way of the accumulator."""
    grid = x.grid()
    if start is not None:
        grid = np.where(np.fmod(start, grid) == 0, grid, np.minimum(grid, 2.0**-149))
    first = np.zeros(()) if start is None else start
    K = x.a.shape[-1]
    if K == 0:
        return _Total(first, np.zeros(()), np.zeros(()), grid, np.abs(first))
    if how.kind == "aligned":
        return _aligned_sum(x, how, first, grid)
    magnitudes = np.abs(x.a) @ np.abs(x.b) + np.abs(first)
    value = x.a @ x.b + first
    doubt = _doubt(magnitudes, K, grid)
    if how.kind == "exact":
        largest = np.abs(value) + doubt
        return _Total(value, doubt, _rounding(largest, 23, "nearest_even", grid), grid, largest)
    if how.kind == "sequential":
        return _one_by_one(x, _Total(first, np.zeros(()), np.zeros(()), grid, np.abs(first)), from_zero=start is None)
    slack = _gamma(K - (start is None))  # nothing is rounded when zero is added to the first
    # Products that float32 cannot hold are rounded, once more than sums.
    error = np.where(grid >= 2.0**-149, slack * magnitudes, slack * magnitudes + K * _SUBNORMAL * (1 + slack))
    error = np.where(magnitudes <= np.where(grid >= 2.0**-149, grid * 2.0**24, 0.0), 0.0, error)
    return _Total(value, doubt, error, np.maximum(grid, 2.0**-149), magnitudes * (1 + slack))


def _one_by_one(x: _Operands, c: _Total, *, from_zero: bool) -> _Total:
    """One float32 addition a product, k ascending. What is known of partial sums is known at the ends of runs of products."""
    value, error, grid, peak = c.value, c.error, c.grid, c.peak
    magnitudes = np.abs(value)
    K = x.a.shape[-1]
    for k in range(0, K, _RUN):
        run = x.at(slice(k, k + _RUN))
        count = run.a.shape[-1]
        sizes = np.abs(run.a) @ np.abs(run.b)
        largest = (np.abs(value) + _doubt(magnitudes, k, grid) + error + sizes) * (1 + 2 * count * _U)
        additions = count - (from_zero and k == 0)
        error = error + additions * _rounding(largest, 23, "nearest_even", grid) + np.where(grid >= 2.0**-149, 0.0, count * _SUBNORMAL)
        value, magnitudes, peak = value + run.a @ run.b, magnitudes + sizes, np.maximum(peak, largest + error)
    return _Total(value, _doubt(magnitudes, K, grid), error, np.maximum(grid, 2.0**-149), peak)


def _aligned_sum(x: _Operands, how: Accumulator, start: Doubles, grid: Doubles) -> _Total:
    zero = np.zeros(())
    total = _Total(start, zero, zero, grid, np.abs(start))
    if how.promote_every is None:
        return _chain(x, how, list(_steps(x.a.shape[-1], how)), total)
    steps, per_part = list(_steps(x.a.shape[-1], how)), how.promote_every // how.group
    for i in range(0, len(steps), per_part):
        part = _chain(x, how, steps[i : i + per_part], _Total(zero, zero, zero, x.grid(), zero))
        total = _added(total, part, exactly=i == 0 and not start.any())
    return total


def _steps(K: int, how: Accumulator) -> Iterator[_Index]:
    """The k of each step."""
    order = np.array(how.order or range(how.group))
    ks = (np.arange(0, K, order.size)[:, None] + order).reshape(-1, how.group)
    for step in ks:
        yield step[step < K]


def _chain(x: _Operands, how: Accumulator, steps: Sequence[_Index], c: _Total) -> _Total:
    value, error, grid, peak = c.value, c.error, c.grid, c.peak
    magnitudes = np.abs(value)
    count = 0
    for ks in steps:
        step = x.at(ks)
        count += ks.size
        products, sizes = step.a @ step.b, np.abs(step.a) @ np.abs(step.b)
        before = np.abs(value) + _doubt(magnitudes, count, grid) + error
        value, magnitudes = value + products, magnitudes + sizes
        doubt = _doubt(magnitudes, count, grid)
        top = step.top() if how.fraction_bits is not None else np.full((), 2.0 * _NOTHING)
        error = error + _lost(how, ks.size, top, sizes, before, grid)
        # The terms are whole multiples of this.
        unit = np.maximum(_power(top - (how.fraction_bits or 0)), grid)
        if how.addend == "rounded":
            inner = np.abs(products) + _doubt(sizes, ks.size, grid) + _lost(how, ks.size, top, sizes, before, grid)
            rounded = _rounding(inner, how.output_fraction_bits, how.output_rounding, unit)
            peak = np.maximum(peak, inner + rounded)
            error = error + rounded
            error = error + _rounding(np.abs(value) + doubt + error, 23, "nearest_even", grid)
        else:
            if how.addend == "after":
                error = error + _rounding(np.abs(value) + doubt + error, how.sum_fraction_bits, "floor", grid)
                unit = grid
            largest = np.abs(value) + doubt + error
            error = error + _rounding(largest, how.output_fraction_bits, how.output_rounding, unit)
        peak = np.maximum(peak, np.abs(value) + doubt + error)
    return _Total(value, _doubt(magnitudes, count, grid), error, grid, peak)


def _lost(how: Accumulator, count: int, top: Doubles, sizes: Doubles, before: Doubles, grid: Doubles) -> Doubles:
    """What alignment takes from the products of a step, and from c, whose magnitude is at most `before`."""
    if how.fraction_bits is None:
        return np.zeros(())
    highest = np.maximum(top, _exponent(before)) if how.addend != "rounded" else top
    if how.addend == "aligned":
        loss = np.maximum(_power(highest - how.fraction_bits) - grid, 0.0)
        return np.asarray(np.minimum(count * loss, sizes) + np.minimum(loss, before))
    loss = np.maximum(_power(top - how.fraction_bits) - grid, 0.0)
    products = np.minimum(count * loss, sizes)
    if how.addend == "rounded":
        return np.asarray(products)
    # Of sums that are kept apart, those with a smaller exponent lose less than half as much of each product, and then no more than
    # the other half when they are brought to the same exponent. But what is floored may lose more than all of it.
    if how.interleave > 1 and how.alignment == "floor":
        products = count * loss
    wide = _power(highest - how.sum_fraction_bits - 1)
    joined = np.where(wide <= np.maximum(grid, _power(top - how.fraction_bits)), 0.0, wide)
    own = np.where(before > 0, np.maximum(_power(highest - how.fraction_bits) - grid, 0.0), 0.0)
    return np.asarray(products + joined + (own if how.alignment == "floor" else np.minimum(own, before)))


def _added(total: _Total, part: _Total, *, exactly: Any = False) -> _Total:
    """The sum of two, rounded to float32."""
    value, doubt = total.value + part.value, total.doubt + part.doubt
    grid = np.minimum(total.grid, part.grid)
    doubt = doubt + np.where(np.abs(value) < grid * 2.0**53, 0.0, np.abs(value) * _FLOAT64)
    error = total.error + part.error
    error = error + np.where(exactly, 0.0, _rounding(np.abs(value) + doubt + error, 23, "nearest_even", grid))
    peak = np.maximum(np.maximum(total.peak, part.peak), np.abs(value) + doubt + error)
    return _Total(value, doubt, error, grid, peak)


# -- scales -----------------------------------------------------------------------------------------------------------


def _scaled(x: _Total, a: QTensor, b: QTensor) -> _Total:
    """Multiplied by the scale of a, then by that of b, each product rounded to float32."""
    first, second = a.scale.astype(np.float64), b.scale.astype(np.float64)
    scale = first * second
    roundings = np.where(_is_power(first), 0, 1) + np.where(_is_power(second), 0, 1)
    size = np.abs(x.value) + x.doubt + x.error
    error = x.error * scale + size * scale * ((1 + _U) ** roundings - 1)
    # What may be subnormal on the way has an error of its own. Not so a zero.
    tiny = x.grid * np.minimum(first, scale) < np.where(roundings == 0, 2.0**-149, 2.0**-125)
    error = error + np.where(tiny & (size > 0), 2 * _SUBNORMAL * (1 + second), 0.0)
    peak = np.maximum(x.peak, size * np.maximum(first, scale) + error)
    return _Total(x.value * scale, (x.doubt + np.abs(x.value) * 2 * _FLOAT64) * scale, error, _NO_GRID, peak)


def _scaled_blocks(a: QTensor, b: QTensor, how: Accumulator) -> _Total:
    """As `fp8np._blocks` does it: segments of K in which no scale changes, each summed from zero, scaled and added in one rounding."""
    x = _operands(a, b, how)
    zero = np.zeros(())
    total = _Total(zero, zero, zero, np.full((), np.inf), zero)
    left, right = (index_scales(q).astype(np.float64) for q in (a, b))
    for start, stop in segments_of(a, b):
        part = _sum(x.at(slice(start, stop)), how, None)
        first, second = left[..., start : start + 1], right[..., start : start + 1, :]
        scale = first * second
        powers = _is_power(first) & _is_power(second)
        size = np.abs(part.value) + part.doubt + part.error
        # The product of the scales is rounded, unless one of them is a power of two.
        slack = np.where(_is_power(first) | _is_power(second), 0.0, _U) * size
        doubt = part.doubt + np.abs(part.value) * np.where(powers, 0.0, 2 * _FLOAT64)
        grid = np.where(powers, part.grid * scale, 0.0)
        scaled = _Total(part.value * scale, doubt * scale, (part.error + slack) * scale, grid, part.peak)
        # What is added to zero, scaled by powers of two, is a float32 already, unless it is subnormal.
        total = _added(total, scaled, exactly=(start == 0) & powers & (grid >= 2.0**-149))
    if how.kind != "exact":
        return total
    largest = np.abs(total.value) + total.doubt
    return _Total(total.value, total.doubt, _rounding(largest, 23, "nearest_even", total.grid), total.grid, largest)


# -- roundings --------------------------------------------------------------------------------------------------------


def _gamma(w: int) -> float:
    # Beyond 2^23 additions the bound says nothing.
    return w * _U / (1 - w * _U) if w * _U < 0.5 else np.inf


def _is_power(scale: Doubles) -> npt.NDArray[np.bool_]:
    return np.equal(np.frexp(scale)[0], 0.5)


def _power(exponent: Doubles) -> Doubles:
    power: Doubles = np.ldexp(1.0, np.maximum(exponent, -2000).astype(np.int64))
    return power


def _exponent(magnitude: Doubles) -> Doubles:
    """Of a float32 of at most this magnitude; `_NOTHING` for zero."""
    exponent = np.maximum(np.frexp(magnitude)[1] - 1.0, -126)
    return np.asarray(np.where(magnitude > 0, exponent, 2.0 * _NOTHING))


def _rounding(largest: Doubles, bits: int, how: str, unit: Doubles) -> Doubles:
    """The largest error of rounding a multiple of `unit`, of at most this magnitude, to so many fraction bits."""
    ulp = _power(_exponent(largest) - bits)
    loss = {"nearest_even": ulp / 2, "toward_zero": np.minimum(ulp - unit, largest), "floor": ulp}[how]
    return np.asarray(np.where(ulp <= unit, 0.0, loss))


def _doubt(magnitudes: Doubles, count: int, grid: Doubles) -> Doubles:
    """The error of a float64 sum, in any order, of multiples of `grid`: none, as long as float64 holds all partial sums."""
    return np.where(magnitudes <= grid * 2.0**52, 0.0, magnitudes * ((count + 1) * _FLOAT64 * 2))
