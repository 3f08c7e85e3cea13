from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.errors import InputError
from fp8np.metrics import METRICS, accuracy, cosine, decibels, eer, psnr, spearman, sqnr


def test_accuracy_counts_the_first_of_equal_logits() -> None:
    logits = np.array([[1, 1, 0], [0, 2, 1], [0, 0, 3]], np.float32)
    assert accuracy(logits, [0, 1, 2]) == 1.0
    assert accuracy(logits, [1, 1, 0]) == pytest.approx(1 / 3)
    assert accuracy(logits.reshape(1, 3, 3), [[0, 1, 0]]) == pytest.approx(2 / 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30))
def test_spearman_is_scipys_with_ties(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, np.float64).T
    got = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)


def test_psnr_and_sqnr_by_their_formulas() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 5, 7))
    assert psnr(x, y, peak=255.0) == pytest.approx(10 * math.log10(255**2 / np.mean((x - y) ** 2)))
    assert sqnr(x, y) == pytest.approx(10 * math.log10(np.sum(y**2) / np.sum((x - y) ** 2)))
    assert psnr(x, x) == sqnr(x, x) == math.inf
    assert sqnr(x, np.zeros_like(x)) == -math.inf
    assert decibels(1.0, 1.0) == 0.0


def test_cosine_is_the_mean_over_vectors() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 4, 6))
    expected = np.mean([u @ v / math.sqrt((u @ u) * (v @ v)) for u, v in zip(a, b, strict=True)])
    assert cosine(a, b) == pytest.approx(expected, abs=1e-14)
    assert cosine(np.zeros((1, 3)), np.zeros((1, 3))) == 1.0
    assert cosine(np.zeros((1, 3)), np.ones((1, 3))) == 0.0


def test_eer_of_separated_reversed_and_uninformative_scores() -> None:
    assert eer([4, 3, 2, 1], [1, 1, 0, 0]) == 0.0
    assert eer([1, 2, 3, 4], [1, 1, 0, 0]) == 1.0
    assert eer([5, 5, 5, 5], [1, 1, 0, 0]) == 0.5


def test_eer_of_two_normal_distributions() -> None:
    # Quantiles of N(0, 1) and N(2, 1): the errors meet halfway, at a threshold of 1.
    n = 2000
    quantiles = scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)
    scores = np.concatenate([quantiles, quantiles + 2])
    assert eer(scores, np.repeat([0, 1], n)) == pytest.approx(scipy.stats.norm.cdf(-1), abs=1 / n)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=25))
def test_eer_lies_where_the_errors_cross(pairs: list[tuple[int, bool]]) -> None:
    scores, same = np.array([s for s, _ in pairs]), np.array([t for _, t in pairs])
    if same.all() or not same.any():
        return
    value = eer(scores, same)
    rates = [((scores[~same] >= t).mean(), (scores[same] < t).mean()) for t in sorted({*scores, 7})]
    # At every threshold one of the two errors is at least, and one at most, the equal error rate.
    assert all(min(pair) - 1e-12 <= value <= max(pair) + 1e-12 for pair in rates)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        METRICS[name](np.zeros((2, 3)), np.zeros((4, 3)))
    with pytest.raises(InputError, match=name):
        METRICS[name](np.zeros((0, 3)), np.zeros(0))


def test_rank_correlation_of_one_pair_and_eer_of_one_kind_are_refused() -> None:
    with pytest.raises(InputError):
        spearman([1.0], [2.0])
    with pytest.raises(InputError):
        eer([0.1, 0.2], [1, 1])
    with pytest.raises(InputError):
        cosine(1.0, 1.0)
