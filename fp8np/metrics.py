"""Figures of merit: a model's outputs against what they should be, in a number. All in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.errors import InputError

__all__ = ["METRICS", "accuracy", "cosine", "decibels", "eer", "energy", "plain", "psnr", "spearman", "sqnr"]


def accuracy(logits: Any, labels: Any) -> float:
    """The share of samples whose largest logit is at the label; of equal logits the first counts.

    Args:
        logits: (..., classes).
        labels: integers (...).

    Raises:
        InputError: the shapes do not fit, or there are no samples.

    >>> accuracy([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    0.5
    """
    scores, truth = np.asarray(logits), np.asarray(labels)
    if scores.ndim == 0 or scores.shape[:-1] != truth.shape or scores.size == 0:
        raise InputError(f"accuracy: expected logits (..., classes) and labels (...), not empty, got {scores.shape} and {truth.shape}")
    return float(np.mean(scores.argmax(-1) == truth))


def spearman(a: Any, b: Any) -> float:
    """Spearman's rank correlation of two vectors: Pearson's of their ranks, equal values sharing the mean of their ranks.

    NaN where one of them is constant.

    Raises:
        InputError: they are not vectors of one length of at least 2.

    >>> spearman([1, 2, 3, 4], [1, 4, 9, 16])
    1.0
    """
    x, y = _pair("spearman", a, b)
    if x.ndim != 1 or len(x) < 2:
        raise InputError(f"spearman: expected two vectors of at least 2 numbers, got {x.shape}")
    rx, ry = (_ranks(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = np.sqrt((rx @ rx) * (ry @ ry))
    return float(rx @ ry / norm) if norm else float("nan")


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def psnr(image: Any, reference: Any, *, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(peak² / mean squared error); infinite where they are equal.

    Args:
        image: any shape.
        reference: of the same shape.
        peak: the largest value a pixel can have.

    Raises:
        InputError: the shapes differ, or are empty.

    >>> round(psnr([0.5, 0.5], [0.4, 0.6]), 6)
    20.0
    """
    x, y = _pair("psnr", image, reference)
    return decibels(peak * peak, float(np.mean((x - y) ** 2)))


def cosine(a: Any, b: Any) -> float:
    """The mean cosine of the angles between vectors: between a[..., :] and b[..., :].

    A vector of zeros has cosine 1 with another one, else 0.

    Raises:
        InputError: the shapes differ, or are empty.

    >>> cosine([[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [-1.0, 1.0]])
    0.5
    """
    x, y = _pair("cosine", a, b)
    if x.ndim == 0:
        raise InputError("cosine: expected vectors, got numbers")
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    products = np.sum(x * y, axis=-1)
    alike = (x == y).all(-1)
    return float(np.mean(np.where(norms > 0, products / np.where(norms > 0, norms, 1), alike)))


def eer(scores: Any, same: Any) -> float:
    """Equal error rate: where the share of different pairs accepted meets the share of same pairs rejected.

    A pair is accepted when its score is at least the threshold. Between neighbouring thresholds both shares are taken to be
    straight lines, as on a ROC curve.

    Args:
        scores: (n,), higher means more alike.
        same: (n,), true where the pair is the same.

    Raises:
        InputError: the shapes differ, or one of the two kinds of pair is missing.

    >>> eer([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0])
    0.5
    """
    score, truth = np.asarray(scores, np.float64), np.asarray(same).astype(bool)
    if score.ndim != 1 or score.shape != truth.shape or not truth.any() or truth.all():
        raise InputError("eer: expected two vectors of one length, with same and with different pairs")
    order = np.argsort(-score, kind="stable")
    # Pairs of equal score are accepted together: only the last of them ends a step.
    steps = np.append(np.diff(score[order]) != 0, True)
    accepted = np.cumsum(truth[order])[steps]
    false_accept = np.append(0.0, np.cumsum(~truth[order])[steps] / (~truth).sum())
    false_reject = np.append(1.0, 1 - accepted / truth.sum())
    i = int(np.argmax(false_accept >= false_reject))
    # Between points i-1 and i the difference of the two goes from negative to not negative.
    before, after = false_accept[i - 1] - false_reject[i - 1], false_accept[i] - false_reject[i]
    weight = before / (before - after)
    return float(false_accept[i - 1] + weight * (false_accept[i] - false_accept[i - 1]))


def sqnr(approximation: Any, reference: Any) -> float:
    """Signal to quantization noise ratio in dB: 10 log10(sum reference² / sum (approximation - reference)²).

    Infinite where they are equal, -infinite where only the reference is zero.

    Raises:
        InputError: the shapes differ, or are empty.

    >>> round(sqnr([1.1, 0.9], [1.0, 1.0]), 6)
    20.0
    """
    x, y = _pair("sqnr", approximation, reference)
    return decibels(float(np.sum(y * y)), float(np.sum((x - y) ** 2)))


def energy(array: Any) -> float:
    """The sum of squares, in float64, added up in the order in which the numbers lie in memory.

    >>> energy(np.array([[3.0, 4.0]], np.float32))
    25.0
    """
    flat = np.asarray(array, np.float64).ravel(order="K")
    return float(np.vdot(flat, flat))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies; infinite where there is no noise.

    >>> decibels(100.0, 1.0), decibels(0.0, 1.0), decibels(0.0, 0.0)
    (20.0, -inf, inf)
    """
    if noise == 0:
        return float("inf")
    with np.errstate(divide="ignore"):
        return float(10 * (np.log10(signal) - np.log10(noise)))


def plain(value: float | None) -> float | str | None:
    """A figure as JSON can hold it: one that is not finite becomes "inf", "-inf" or "nan".

    >>> plain(1.5), plain(float("inf")), plain(None)
    (1.5, 'inf', None)
    """
    return value if value is None or np.isfinite(value) else str(value)


def _pair(name: str, a: Any, b: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or x.size == 0:
        raise InputError(f"{name}: expected two arrays of one shape, not empty, got {x.shape} and {y.shape}")
    return x, y


METRICS: Mapping[str, Callable[[Any, Any], float]] = MappingProxyType(
    {"accuracy": accuracy, "cosine": cosine, "eer": eer, "psnr": psnr, "spearman": spearman, "sqnr": sqnr}
)
"""Every metric by name: ``metric(outputs, what they should be)``."""
