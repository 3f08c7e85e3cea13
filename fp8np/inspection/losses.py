"""What a tensor loses in fewer bits: noise, what saturates, what becomes zero, and how its magnitudes lie on the grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.inspection.operands import Coded, grid
from fp8np.metrics import decibels

__all__ = ["PER_OCTAVE", "Histogram", "Losses"]

Array = npt.NDArray[Any]

PER_OCTAVE = 4
"""Bins of a histogram for each factor of 2: as many as show the shape of a distribution, few enough that each is well filled."""

# Numbers beyond these many octaves below the smallest and above the largest value of a format count for the last bin.
_BELOW, _ABOVE = 8, 3
# Of larger arrays the histogram takes every n-th element.
_MOST = 1 << 20


class Histogram:
    """How magnitudes, in scales, lie on a log axis.

    >>> histogram = Histogram("e2m1fn")
    >>> histogram.add(np.array([0.0, 1.0, -1.1, 6.0, 1e9]))
    >>> found = histogram.as_dict()
    >>> found["first"], [(i, share) for i, share in enumerate(found["shares"]) if share]
    (0, [(0, 0.4), (10, 0.2), (23, 0.2)])
    """

    def __init__(self, fmt: str) -> None:
        values = grid(fmt)
        self._low = int(np.floor(np.log2(values[0]))) - _BELOW
        self._bins = (int(np.ceil(np.log2(values[-1]))) + _ABOVE - self._low) * PER_OCTAVE
        self._counts = np.zeros(self._bins, np.int64)
        self._seen = 0

    def add(self, x: Array) -> None:
        """Counts numbers; zeros have no place on the axis, and count as seen only."""
        flat = x.reshape(-1)
        flat = flat[:: -(-flat.size // _MOST)] if flat.size > _MOST else flat
        magnitudes = np.abs(flat[np.isfinite(flat) & (flat != 0)])
        places = np.floor((np.log2(magnitudes) - self._low) * PER_OCTAVE).astype(np.int64)
        self._counts += np.bincount(np.clip(places, 0, self._bins - 1), minlength=self._bins)
        self._seen += flat.size

    def as_dict(self) -> dict[str, Any]:
        """``first``: the bin that ``shares`` begin with, whose lower edge is 2**(first / PER_OCTAVE); shares of all numbers seen."""
        filled = np.flatnonzero(self._counts)
        if not filled.size:
            return {"first": 0, "shares": []}
        counts = self._counts[filled[0] : filled[-1] + 1]
        return {"first": int(filled[0]) + self._low * PER_OCTAVE, "shares": [float(f"{c / self._seen:.3g}") for c in counts]}


@dataclass
class Losses:
    """Sums over the arrays of one tensor. What the codes were made of may be unknown: then only their own values are counted.

    Attributes:
        format: name of the format.
        elements: how many numbers were added.
        scales: how many scales an array has; low_scale, high_scale: the smallest and the largest.
        amax: the largest magnitude of what the codes were made of.
    """

    format: str
    histogram: Histogram = field(init=False)
    elements: int = 0
    low_scale: float = np.inf
    high_scale: float = 0.0
    scales: int = 0
    amax: float = 0.0
    _signal: float = 0.0
    _noise: float = 0.0
    _saturated: int = 0
    _flushed: int = 0
    _known: int = 0

    def __post_init__(self) -> None:
        self.histogram = Histogram(self.format)

    def add(self, coded: Coded, original: Array | None) -> None:
        """Counts an array, with what it was before (same shape, float32), or None."""
        self.elements += coded.values.size
        self.scales = coded.scales.size
        if coded.scales.size:
            self.low_scale = min(self.low_scale, float(coded.scales.min()))
            self.high_scale = max(self.high_scale, float(coded.scales.max()))
        numbers = coded.values if original is None else original
        with np.errstate(all="ignore"):
            in_scales = numbers / coded.steps
        self.histogram.add(in_scales)
        if original is None:
            return
        # Up to half a step beyond the largest value a number still rounds to it.
        values = grid(self.format)
        half = (values[-1] - values[-2]) / 2
        self._known += original.size
        self._saturated += int(np.count_nonzero((in_scales > coded.high + half) | (in_scales < coded.low - half)))
        self._flushed += int(np.count_nonzero((original != 0) & (coded.values == 0)))
        exact = original.astype(np.float64)
        finite = np.isfinite(exact)
        exact = np.where(finite, exact, 0)
        self.amax = max(self.amax, float(np.abs(exact).max(initial=0)))
        difference = np.where(finite, coded.values - exact, 0)
        self._signal += float(np.vdot(exact, exact))
        self._noise += float(np.vdot(difference, difference))

    @property
    def sqnr(self) -> float | None:
        """In dB; None where it is not known what the codes were made of."""
        return decibels(self._signal, self._noise) if self._known else None

    @property
    def saturated(self) -> float | None:
        """The share of numbers beyond what the format reaches at its scale."""
        return self._saturated / self._known if self._known else None

    @property
    def flushed(self) -> float | None:
        """The share of numbers that are not zero, and become it."""
        return self._flushed / self._known if self._known else None
