"""Histograms of float32 numbers, and what rounding the numbers of one to a grid would cost.

A bin is a sign, an exponent and 6 bits of mantissa: 64 bins a binade, which are the upper 15 bits of a float32. So the bins hold any
number from the start, whatever comes later, and a histogram takes 256 KiB however much it has seen. Inside a bin the numbers are
taken to be spread evenly; that is exact to 1/128 of a number, where E3M4 has steps of 1/16 to 1/31.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels._table import select
from fp8np.kernels.calibration import BINS, SHIFT

__all__ = ["Bins", "Histogram", "divergence", "squared_error"]

_Doubles = npt.NDArray[np.float64]

_HALF = BINS // 2
# Bins of finite magnitudes.
_FINITE = 0x7F800000 >> SHIFT


@lru_cache(maxsize=1)
def _edges() -> _Doubles:
    """float64 (finite bins + 1,): where the bins of magnitudes begin, and where the last one ends."""
    bits = np.arange(_FINITE + 1, dtype=np.uint32) << np.uint32(SHIFT)
    edges = bits.view(np.float32).astype(np.float64)
    edges[-1] = 2.0**128
    return edges


@dataclass(frozen=True)
class Bins:
    """The bins in which numbers were found, in ascending order.

    Attributes:
        low, high: float64 (n,): where they begin and end; the outermost end with the extremes of what was seen.
        count: float64 (n,): how many numbers each holds.
        zeros: how many numbers were 0 (or below 2**-132), which are in none of these.
    """

    low: _Doubles
    high: _Doubles
    count: _Doubles
    zeros: int


class Histogram:
    """How often numbers of each size were seen; any number of arrays can be added.

    Attributes:
        counts: int64 (32768,): by the upper 15 bits of the float32.
        minimum, maximum: the extremes; inf and -inf where nothing was seen.

    >>> h = Histogram()
    >>> h.add(np.array([[1.0, -2.0], [0.0, 0.5]], np.float32)).tolist()
    [[-2.0, 1.0]]
    >>> h.total, h.amax, h.percentile(100), h.percentile(50)
    (4, 2.0, 2.0, 0.5078125)
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.minimum = np.inf
        self.maximum = -np.inf

    def add(self, array: Any, rows: int = 1) -> npt.NDArray[np.float32]:
        """Counts the numbers of an array.

        Args:
            array: of floats, not empty; rounded to float32 if of another type.
            rows: into how many parts of one size the array falls, along axis 0 where that is long enough, else in C order.

        Returns:
            float32 (rows, 2): the least and the largest number of each part. One of them is NaN or infinity where the part holds any;
            the histogram is of no use then.
        """
        values = np.ascontiguousarray(_as_it_lies(array), np.float32).reshape(rows, -1)
        extremes = np.empty((rows, 2), np.float32)
        select("histogram")(values, self.counts, extremes)
        extremes += np.float32(0)  # -0 is 0
        self.minimum = min(self.minimum, float(extremes[:, 0].min()))
        self.maximum = max(self.maximum, float(extremes[:, 1].max()))
        return extremes

    @property
    def total(self) -> int:
        """How many numbers were seen."""
        return int(self.counts.sum())

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))

    def magnitudes(self) -> Bins:
        """The bins of |x|."""
        return _bins(self.counts[:_FINITE] + self.counts[_HALF : _HALF + _FINITE], 0.0, self.amax)

    def numbers(self) -> Bins:
        """The bins of x."""
        positive = _bins(self.counts[:_FINITE], 0.0, max(self.maximum, 0.0))
        negative = _bins(self.counts[_HALF : _HALF + _FINITE], 0.0, max(-self.minimum, 0.0))
        return Bins(
            np.concatenate([-negative.high[::-1], positive.low]),
            np.concatenate([-negative.low[::-1], positive.high]),
            np.concatenate([negative.count[::-1], positive.count]),
            positive.zeros + negative.zeros,
        )

    def percentile(self, share: float) -> float:
        """The magnitude that `share` percent of all numbers do not exceed, zeros counted; 0 where they are zeros."""
        bins = self.magnitudes()
        reached = np.cumsum(bins.count) + bins.zeros
        wanted = share / 100 * self.total
        if wanted <= bins.zeros or not bins.count.size:
            return 0.0
        i = min(int(np.searchsorted(reached, wanted)), len(reached) - 1)
        part = min(1.0 - (reached[i] - wanted) / bins.count[i], 1.0)
        return float(bins.low[i] + part * (bins.high[i] - bins.low[i]))


def _as_it_lies(array: Any) -> Any:
    """An array with its axes but the first in the order in which they lie in memory: counting is quickest there, and needs no order."""
    if not isinstance(array, np.ndarray) or array.ndim < 3 or array.flags.c_contiguous:
        return array
    return array.transpose(0, *sorted(range(1, array.ndim), key=lambda axis: -array.strides[axis]))


def _bins(counts: npt.NDArray[np.int64], least: float, largest: float) -> Bins:
    found = np.flatnonzero(counts[1:]) + 1
    edges = _edges()
    low, high = edges[found], edges[found + 1]
    return Bins(np.clip(low, least, largest), np.clip(high, least, largest), counts[found].astype(np.float64), int(counts[0]))


def squared_error(bins: Bins, grid: _Doubles) -> float:
    """The sum of squared differences between the numbers of a histogram and the values of a grid to which they round.

    Args:
        bins: of x, or of |x|.
        grid: float64, ascending, with 0 in it. What is beyond its ends is clipped to them.

    >>> h = Histogram()
    >>> _ = h.add(np.linspace(0, 3, 30001, dtype=np.float32))
    >>> round(squared_error(h.magnitudes(), np.arange(4.0)) / h.total, 4) == round(1 / 12, 4)
    True
    """
    middles = (grid[1:] + grid[:-1]) / 2
    # Integrals of the squared distance: up to the middle between two values, then on from the next one.
    pieces = ((middles - grid[:-1]) ** 3 - (middles - grid[1:]) ** 3) / 3
    before = np.concatenate([[0.0], np.cumsum(pieces)])
    first, last = np.searchsorted(middles, bins.low), np.searchsorted(middles, bins.high)
    left, right = bins.low - grid[first], bins.high - grid[last]
    # Where a bin lies between two middles, without the difference of integrals, which for narrow bins would cancel.
    mean = (left * left + left * right + right * right) / 3
    across = np.flatnonzero(first != last)
    area = before[last[across]] - before[first[across]] + (right[across] ** 3 - left[across] ** 3) / 3
    mean[across] = area / (bins.high[across] - bins.low[across])
    return float(bins.count @ mean)


def divergence(bins: Bins, grid: _Doubles) -> float:
    """The Kullback-Leibler divergence in nats of the clipped numbers of a histogram from what rounding leaves of them.

    As in calibration by entropy for integers (Migacz, "8-bit inference with TensorRT", GTC 2017), with the grid's own cells in place of
    equal ones. The first distribution is that of the numbers, those beyond the grid piled up in its outermost cells. The second is made
    of the others: of each only its cell is known, so in a cell they are spread evenly. Zeros, exact on any grid, are left out.

    Args:
        bins: of x, or of |x|; not empty.
        grid: float64, ascending. Of |x|, from 0 on: nothing is below.

    Returns:
        inf where the grid ends in an empty cell and numbers lie beyond.

    >>> h = Histogram()
    >>> _ = h.add(np.linspace(1, 2, 64001, dtype=np.float32)[:-1])
    >>> coarse, fine = (divergence(h.magnitudes(), np.array(grid)) for grid in ([0, 1, 2], [0, 0.75, 1.25, 1.75, 2]))
    >>> round(coarse, 2), round(fine, 2) + 0
    (0.35, 0.0)
    """
    bounds = np.concatenate([grid[:1], (grid[1:] + grid[:-1]) / 2, grid[-1:]])
    mass = bins.count / bins.count.sum()
    # A bin may end where it begins, if all its numbers are the largest one: then it counts as wide as others.
    widths = np.maximum(bins.high - bins.low, np.maximum(np.abs(bins.low), np.abs(bins.high)) / 128)
    places = np.stack([bins.low, bins.high], axis=1).reshape(-1)
    reached = _along(places, mass, bounds)
    known = np.diff(_along(places, mass * np.log(mass / widths), bounds))
    cells = np.diff(reached)
    below, beyond = max(reached[0], 0.0), max(1 - reached[-1], 0.0)
    if cells.sum() <= 0 or (below > _NOTHING and cells[0] <= _NOTHING) or (beyond > _NOTHING and cells[-1] <= _NOTHING):
        return np.inf
    full = cells > _NOTHING
    piled = cells.copy()
    piled[0] += below
    piled[-1] += beyond
    piled, cells, known, lengths = piled[full], cells[full], known[full], np.diff(bounds)[full]
    raised = piled / cells
    return float((raised * (known + cells * np.log(cells.sum() * lengths / cells)) + piled * np.log(raised)).sum())


# What is left of a mass of 0 when sums of masses are subtracted.
_NOTHING = 1e-13


def _along(places: _Doubles, amounts: _Doubles, bounds: _Doubles) -> _Doubles:
    """How much of what is spread evenly over bins lies below each bound."""
    after = np.cumsum(amounts)
    return np.interp(bounds, places, np.stack([after - amounts, after], axis=1).reshape(-1), left=0.0, right=float(after[-1]))
