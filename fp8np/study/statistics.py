"""What a study may conclude from its samples: relative losses, intervals by the paired bootstrap, and intervals of pass rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.evaluate import metric_function
from fp8np.metrics import METRICS

__all__ = ["FAILS", "PASSES", "UNDECIDED", "Interval", "distribution", "loss_interval", "passes", "relative_loss", "verdict", "wilson"]

Floats = npt.NDArray[np.float64]

PASSES, FAILS, UNDECIDED = "passes", "fails", "undecided"

CONFIDENCE = 0.95
_ALPHA = (1 - CONFIDENCE) / 2
# Of a normal distribution, at 97.5 %.
_Z = 1.959963984540054
# A metric may be undefined in some resamples (an error rate, where one of the two kinds is missing); with so few left, nothing is said.
_LEAST_USABLE = 0.5
# So that 0.99 of 1.00 is a loss of 1 %, whatever the last bits say.
_SLACK = 1e-9
# Sets of units on which it is tried whether a metric is a mean, of two sizes each, and how close to it that has to be.
_TRIALS = 3
_EXACT = 1e-12
# Resampled scores held at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included; `usable`: from how many resamples."""

    low: float
    high: float
    usable: int


def relative_loss(reference: float, value: float, *, lower_is_better: bool = False) -> float:
    """(reference - value) / |reference|: how much of FP32's figure is lost; the sign is turned for errors. A gain is negative.

    Of a reference of 0 nothing can be lost in relation: 0 where the value is the same, else an infinity.

    >>> relative_loss(0.8, 0.76), relative_loss(0.1, 0.2, lower_is_better=True), relative_loss(0.0, 0.1, lower_is_better=True)
    (0.050000000000000044, 1.0, inf)
    """
    lost = value - reference if lower_is_better else reference - value
    if reference:
        return lost / abs(reference)
    return math.copysign(math.inf, lost) if lost else 0.0


def passes(loss: float, tolerance: float) -> bool:
    """Whether a loss is within the tolerance, as the paper counts it.

    >>> passes(relative_loss(1.0, 0.99), 0.01), passes(0.0101, 0.01)
    (True, False)
    """
    return loss <= tolerance + _SLACK


def verdict(interval: Interval | None, tolerance: float) -> str:
    """What the samples show: the whole interval of the loss is within the tolerance, all of it is beyond, or neither.

    >>> verdict(Interval(-0.002, 0.008, 2000), 0.01), verdict(Interval(-0.01, 0.02, 2000), 0.01)
    ('passes', 'undecided')
    """
    if interval is None:
        return UNDECIDED
    if passes(interval.high, tolerance):
        return PASSES
    return UNDECIDED if passes(interval.low, tolerance) else FAILS


def wilson(passed: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson, 1927): within 0 to 1, and sensible for few trials.

    >>> [round(end, 3) for end in wilson(9, 10)]
    [0.596, 0.982]
    """
    if count == 0:
        return 0.0, 1.0
    rate, shrink = passed / count, _Z * _Z / count
    middle = (rate + shrink / 2) / (1 + shrink)
    reach = _Z * math.sqrt(rate * (1 - rate) / count + shrink / (4 * count)) / (1 + shrink)
    # The ends are exact where all or none passed.
    return (0.0 if passed == 0 else middle - reach), (1.0 if passed == count else middle + reach)


def distribution(metric: str, predictions: Any, targets: Any, *, resamples: int, seed: int) -> Floats:
    """A metric on resamples of the units (Efron, 1979): (resamples,) float64, NaN where it is undefined.

    Equal `seed` and as many units give the same resamples, so that two calls, for FP32 and for a recipe, are paired.

    Args:
        metric: as for `fp8np.evaluate.evaluate`. Those that are means over the units, or in METRICS functions of such means, are
            computed for all resamples at once, others one after the other.
        predictions: (n, ...); rows are drawn with replacement.
        targets: (n, ...).
        resamples: how many.
        seed: of the draws.
    """
    n = len(predictions)
    draws = np.random.default_rng([seed, n])
    if metric in _MEANS:
        scores, finish = _MEANS[metric]
        of_units = np.asarray(scores(np.asarray(predictions), np.asarray(targets)), np.float64).reshape(n, -1)
        with np.errstate(all="ignore"):
            return np.asarray(finish(_means(of_units, resamples, draws)), np.float64)
    function = metric_function(metric)
    alone = _alone(function, predictions, targets)
    if alone is not None:
        return _means(alone[:, None], resamples, draws)[:, 0]
    return np.array([_value(function, predictions, targets, draws.integers(0, n, n)) for _ in range(resamples)])


def _means(of_units: Floats, resamples: int, draws: np.random.Generator) -> Floats:
    """The means (resamples, k) of figures (n, k) over the units drawn."""
    n = len(of_units)
    step = max(1, _CHUNK // of_units.size)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([of_units[draws.integers(0, n, (size, n))].mean(1) for size in sizes])


def _alone(function: Callable[[Any, Any], float], predictions: Any, targets: Any) -> Floats | None:
    """A metric of each unit alone (n,), where the metric of many is the mean of these; otherwise None.

    That it is one is tried on all units and on some drawn at random: a metric that is no mean shows in each of these.
    """
    n = len(predictions)
    values = np.empty(n)
    for i in range(n):
        values[i] = _value(function, predictions, targets, slice(i, i + 1))
        if not math.isfinite(values[i]):
            return None
    draws = np.random.default_rng(n)
    for rows in (np.arange(n), *draws.integers(0, n, (_TRIALS, n)), *draws.integers(0, n, (_TRIALS, 1 + n // 3))):
        whole, mean = _value(function, predictions, targets, rows), float(values[rows].mean())
        if not abs(whole - mean) <= _EXACT * max(1.0, np.abs(values).max()):
            return None
    return values


def _value(function: Callable[[Any, Any], float], predictions: Any, targets: Any, rows: Any) -> float:
    try:
        with np.errstate(all="ignore"):
            return float(function(predictions[rows], targets[rows]))
    except Exception:
        # On all units it was defined; these lack something that it needs.
        return math.nan


def loss_interval(reference: Floats, values: Floats, loss: float, *, lower_is_better: bool = False) -> Interval | None:
    """The 95 % interval of the relative loss, by percentiles; None where the metric is defined on too few resamples.

    Args:
        reference: FP32's values on resamples, from `distribution`.
        values: the recipe's on the same ones.
        loss: on all units; the interval always contains it.
        lower_is_better: see `relative_loss`.
    """
    lost = values - reference if lower_is_better else reference - values
    with np.errstate(all="ignore"):
        losses = np.where(reference != 0, lost / np.abs(reference), np.where(lost == 0, 0.0, np.copysign(np.inf, lost)))
    losses = losses[np.isfinite(values) & np.isfinite(reference)]
    if len(losses) < max(1, _LEAST_USABLE * len(values)):
        return None
    # Ends that are losses seen: between two of which one is infinite there is no number.
    low = float(np.quantile(losses, _ALPHA, method="lower"))
    high = float(np.quantile(losses, 1 - _ALPHA, method="higher"))
    return Interval(min(low, loss), max(high, loss), len(losses))


def _accuracy(logits: Any, labels: Any) -> Any:
    return (logits.argmax(-1) == labels).reshape(len(labels), -1).mean(1)


def _cosine(a: Any, b: Any) -> Any:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    cosines = np.where(norms > 0, (x * y).sum(-1) / np.where(norms > 0, norms, 1), (x == y).all(-1))
    return cosines.reshape(len(x), -1).mean(1)


def _noise(a: Any, b: Any) -> Any:
    return ((np.asarray(a, np.float64) - b) ** 2).reshape(len(a), -1).mean(1)


def _noise_and_signal(a: Any, b: Any) -> Any:
    return np.stack([_noise(a, b), (np.asarray(b, np.float64) ** 2).reshape(len(b), -1).mean(1)], 1)


def _itself(means: Floats) -> Floats:
    return means[:, 0]


_MEANS: Mapping[str, tuple[Callable[[Any, Any], Any], Callable[[Floats], Any]]] = MappingProxyType(
    {
        "accuracy": (_accuracy, _itself),
        "cosine": (_cosine, _itself),
        "psnr": (_noise, lambda means: -10 * np.log10(means[:, 0])),
        "sqnr": (_noise_and_signal, lambda means: 10 * (np.log10(means[:, 1]) - np.log10(means[:, 0]))),
    }
)
"""Metrics that are a function of means: figures of each unit, (n,) or (n, k), and what is made of their means, (resamples, k)."""

assert set(_MEANS) <= set(METRICS)
