"""Which range of an activation counts: calibrators, as recipes name them, and the observer that carries one out.

| calibrator | range |
|---|---|
| `max` | everything seen: the paper's choice for FP8 (arXiv 2309.14592, section 3.1) |
| `percentile P` | the magnitude that P percent of all numbers do not exceed; 99.99 unless said |
| `mse` | the one whose rounding to the format's grid has the least squared error |
| `kl` | the one whose rounding to the format's grid loses the least information (Kullback-Leibler divergence) |
| `moving_average M` | moving average of the extremes of each batch, of which M stays when the next one comes; 0.9 unless said |

All but the last see every number once, in a `Histogram`, in whatever order.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.errors import CalibrationError, RecipeError
from fp8np.formats import FloatFormat
from fp8np.histogram import Bins, Histogram, divergence, squared_error
from fp8np.integers import IntegerFormat
from fp8np.scaling import rounded_up_to_power_of_two
from fp8np.tensor import code_values

__all__ = ["CALIBRATORS", "Calibrator", "RangeObserver", "parse_calibrator"]

_Doubles = npt.NDArray[np.float64]
_Limits = tuple[float, float]
_Measure = Callable[[Bins, _Doubles], float]

CALIBRATORS = MappingProxyType({"max": None, "percentile": 99.99, "mse": None, "kl": None, "moving_average": 0.9})
"""Every kind of calibrator, and the parameter it has unless another is given; None for those that have none."""

_SPELLED = "max, percentile P (0 < P <= 100), mse, kl, moving_average M (0 <= M < 1)"


@dataclass(frozen=True)
class Calibrator:
    """A calibrator of the module's table.

    Attributes:
        kind: its name.
        parameter: the share in percent of `percentile`, the momentum of `moving_average`; None stands for the usual one.

    Raises:
        RecipeError: there is no such kind, or the parameter is out of its range, or there should be none.

    >>> str(Calibrator("percentile"))
    'percentile 99.99'
    """

    kind: str = "max"
    parameter: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in CALIBRATORS:
            close = difflib.get_close_matches(str(self.kind), CALIBRATORS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise RecipeError(f"unknown calibrator {self.kind!r}; {hint}known: {_SPELLED}")
        usual = CALIBRATORS[self.kind]
        if usual is None:
            if self.parameter is not None:
                raise RecipeError(f"calibrator {self.kind} has no parameter, got {self.parameter!r}; known: {_SPELLED}")
            return
        value = usual if self.parameter is None else self.parameter
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (0 < value <= 100 if self.kind == "percentile" else 0 <= value < 1):
            raise RecipeError(f"calibrator {self.kind}: its parameter is out of range: {value!r}; known: {_SPELLED}")
        object.__setattr__(self, "parameter", float(value))

    def __str__(self) -> str:
        return self.kind if self.parameter is None else f"{self.kind} {self.parameter:.15g}"


def parse_calibrator(text: Any) -> Calibrator:
    """The calibrator that a recipe's text means; a `Calibrator` is returned as it is.

    Raises:
        RecipeError: the text means none; the message says what does.

    >>> parse_calibrator("percentile 99.9")
    Calibrator(kind='percentile', parameter=99.9)
    """
    if isinstance(text, Calibrator):
        return text
    words = text.split() if isinstance(text, str) else []
    if not 1 <= len(words) <= 2:
        raise RecipeError(f"expected a calibrator, got {text!r}; known: {_SPELLED}")
    if len(words) == 1:
        return Calibrator(words[0])
    try:
        parameter = float(words[1])
    except ValueError:
        raise RecipeError(f"calibrator {text!r}: expected a number after {words[0]}; known: {_SPELLED}") from None
    return Calibrator(words[0], parameter)


class RangeObserver:
    """Sees every array that one value takes, and says which range counts, for any number of formats.

    Attributes:
        histogram: of all numbers seen.
        loudest, at: the largest magnitude seen, and the sample, counted from 0, that had it first.
        others: the largest magnitude in all other samples.

    >>> observer = RangeObserver(parse_calibrator("max"))
    >>> observer.update(np.array([[1.0, -2.0], [0.5, 9.0]]), samples=2)
    >>> observer.limits(), observer.at, observer.others
    ((-2.0, 9.0), 1, 2.0)
    """

    def __init__(self, calibrator: Calibrator | None = None) -> None:
        self.calibrator = calibrator or Calibrator()
        self.histogram = Histogram()
        self.loudest = -1.0
        self.others = -1.0
        self.at = 0
        self._samples = 0
        self._average: _Limits | None = None

    def update(self, array: Any, samples: int = 1) -> None:
        """Takes note of the value's array in one batch.

        Args:
            array: of floats, not empty.
            samples: how many samples the batch has: they follow each other in the array, in C order.

        Raises:
            CalibrationError: the array holds NaN or infinity.
        """
        # An array that the samples do not share evenly belongs to all of them.
        rows = samples if samples > 0 and array.size % samples == 0 else 1
        extremes = self.histogram.add(array, rows)
        if not np.isfinite(extremes).all():
            raise CalibrationError("holds NaN or infinity")
        self._notice(np.abs(extremes).max(axis=1))
        self._samples += samples
        if self.calibrator.kind == "moving_average":
            batch = float(extremes[:, 0].min()), float(extremes[:, 1].max())
            kept = self.calibrator.parameter or 0.0
            before = self._average or batch
            self._average = kept * before[0] + (1 - kept) * batch[0], kept * before[1] + (1 - kept) * batch[1]

    def _notice(self, amax: npt.NDArray[np.float32]) -> None:
        first = int(np.argmax(amax))
        rest = float(np.delete(amax, first).max(initial=-1.0))
        largest = float(amax[first])
        if largest > self.loudest:
            self.others = max(self.loudest, rest)
            self.loudest, self.at = largest, self._samples + first
        else:
            self.others = max(self.others, largest)

    def limits(self, fmt: FloatFormat | IntegerFormat | None = None, *, power_of_two: bool = False) -> _Limits:
        """The least and the largest number to be represented.

        Args:
            fmt: the format whose grid counts, for `mse` and `kl`: that of a float format around 0, or of an integer format with a zero
                point. Others do not ask.
            power_of_two: scales will be rounded up to powers of two (float formats).

        Returns:
            Finite numbers, the first not above the second, both of which may lie outside of what was seen: a little more than
            the largest magnitude may fall better on the grid.
        """
        seen = self.histogram.minimum, self.histogram.maximum
        match self.calibrator.kind:
            case "moving_average":
                return self._average or seen
            case "percentile":
                return self._within(self.histogram.percentile(self.calibrator.parameter or 0.0))
            case "mse" | "kl":
                measure = squared_error if self.calibrator.kind == "mse" else divergence
                if isinstance(fmt, IntegerFormat):
                    bins = self.histogram.numbers()
                    return _integer_limits(bins, (min(seen[0], 0.0), max(seen[1], 0.0)), fmt, measure) if bins.count.size else seen
                if fmt is not None:
                    bins = self.histogram.magnitudes()
                    return self._within(_float_limit(bins, self.histogram.amax, fmt, measure, power_of_two)) if bins.count.size else seen
        return seen

    def _within(self, limit: float) -> _Limits:
        low, high = (float(np.clip(x, -limit, limit)) for x in (self.histogram.minimum, self.histogram.maximum))
        if limit > self.histogram.amax:
            return (low, limit) if abs(high) >= abs(low) else (-limit, high)
        return low, high


# -- searches ---------------------------------------------------------------------------------------------------------
#
# The error is no smooth function of the range: it repeats itself with every octave, as the grid does, and between octaves it depends
# on where the numbers fall on it. So many ranges are tried.


_BEYOND = 2.0**0.25


def _octaves(first: float, last: float, step: float) -> Iterator[float]:
    """2**first, 2**(first - step), ... 2**last; 1, which is `max`, comes before all others, so that it wins among equals."""
    yield 1.0
    for k in range(round((first - last) / step) + 1):
        yield float(2.0 ** (first - k * step))


def _float_limit(bins: Bins, amax: float, fmt: FloatFormat, measure: _Measure, power_of_two: bool) -> float:
    grid = _unit_grid(fmt)

    def price(limit: float) -> float:
        return measure(bins, grid * limit)

    if power_of_two:
        whole = fmt.max * float(rounded_up_to_power_of_two(amax / fmt.max))
        return min((whole * factor for factor in _octaves(0, -10, 1)), key=price)
    coarse = min((amax * factor for factor in _octaves(0.25, -10, 1 / 8)), key=price)
    return min((coarse * factor for factor in _octaves(3 / 32, -3 / 32, 1 / 32)), key=price)


@lru_cache(maxsize=64)
def _unit_grid(fmt: FloatFormat) -> _Doubles:
    """The values of a format from 0 up, over the largest."""
    values = code_values(fmt)
    return np.unique(np.abs(values[np.isfinite(values)])) / fmt.max


def _integer_limits(bins: Bins, seen: _Limits, fmt: IntegerFormat, measure: _Measure) -> _Limits:
    codes = np.arange(fmt.activation_max + 1)

    def price(limits: _Limits) -> float:
        low, high = limits
        step = (high - low) / fmt.activation_max
        return measure(bins, (codes - np.clip(np.rint(-low / step), 0, fmt.activation_max)) * step)

    # Both ends together, then one after the other.
    best = min(((seen[0] * f, seen[1] * f) for f in _octaves(0.25, -10, 1 / 4)), key=price)
    for step in (1 / 4, 1 / 16):
        if best[1] > 0:
            best = min(((best[0], min(best[1] * f, seen[1] * _BEYOND)) for f in _octaves(4 * step, -4 * step, step)), key=price)
        if best[0] < 0:
            best = min(((max(best[0] * f, seen[0] * _BEYOND), best[1]) for f in _octaves(4 * step, -4 * step, step)), key=price)
    return best
