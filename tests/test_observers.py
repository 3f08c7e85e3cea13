"""Histograms, the errors that are read off them, and the ranges that calibrators choose."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.errors import CalibrationError, RecipeError
from fp8np.formats import get_format
from fp8np.histogram import Histogram, divergence, squared_error
from fp8np.integers import INT8, activation_parameters, encode_activation
from fp8np.kernels import calibration as kernels
from fp8np.kernels._threads import threads
from fp8np.observers import CALIBRATORS, Calibrator, RangeObserver, parse_calibrator
from fp8np.scaling import dequantize, quantize, scale_for
from fp8np.tensor import code_values

E4M3, E3M4, E5M2 = (get_format(name) for name in ("e4m3fn", "e3m4fn", "e5m2"))
FORMATS = [E5M2, E4M3, E3M4, INT8]
LARGEST = float(np.finfo(np.float32).max)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(1, 40), elements=floats)
# Shapes of distributions as activations have them.
DRAWS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "after a ReLU": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
    "one-sided": lambda rng, n: rng.exponential(size=n) + 0.1,
    "heavy tails": lambda rng, n: rng.standard_t(3, n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "one outlier": lambda rng, n: np.append(rng.standard_normal(n - 1), -300.0),
}


def drawn(name: str, n: int = 20000, seed: int = 0) -> Any:
    return DRAWS[name](np.random.default_rng(seed), n).astype(np.float32)


def observed(data: Any, calibrator: str = "max") -> RangeObserver:
    observer = RangeObserver(parse_calibrator(calibrator))
    observer.update(data)
    return observer


def true_error(data: Any, limits: tuple[float, float], fmt: Any) -> float:
    """The squared error of the real thing."""
    if fmt is INT8:
        scale, zero = activation_parameters(*limits)
        rounded = (encode_activation(data, scale, zero).astype(float) - zero) * scale
    else:
        rounded = dequantize(quantize(data, fmt, scale=scale_for(max(map(abs, limits)), fmt))).astype(float)
    return float(((rounded - data) ** 2).sum())


# -- histograms -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(arrays, min_size=1, max_size=4))
def test_a_histogram_counts_as_numpy_does_in_any_order(parts: list[Any]) -> None:
    h, backwards = Histogram(), Histogram()
    for part in parts:
        h.add(part)
    for part in reversed(parts):
        backwards.add(part)
    everything = np.concatenate(parts)
    np.testing.assert_array_equal(h.counts, np.bincount(everything.view(np.uint32) >> kernels.SHIFT, minlength=kernels.BINS))
    np.testing.assert_array_equal(h.counts, backwards.counts)
    assert (h.minimum, h.maximum, h.total) == (everything.min(), everything.max(), everything.size)
    assert (backwards.minimum, backwards.maximum) == (h.minimum, h.maximum)
    assert math.copysign(1, h.minimum) == 1 or h.minimum < 0
    for bins, numbers in ((h.magnitudes(), np.abs(everything)), (h.numbers(), everything)):
        assert bins.zeros + bins.count.sum() == everything.size
        assert (bins.low <= bins.high).all()
        assert (bins.high[:-1] <= bins.low[1:]).all()
        nonzero = numbers[np.abs(numbers) >= 2.0**-132].astype(np.float64)
        inside = (bins.low[:, None] <= nonzero) & (nonzero <= bins.high[:, None])
        assert inside.any(axis=0).all()


def test_large_arrays_are_counted_by_several_threads_and_the_extremes_are_those_of_each_row() -> None:
    data = drawn("heavy tails", 3 * 500_001).reshape(3, -1)
    data[1, 400_000] = -1e6
    with threads(2):
        h = Histogram()
        extremes = h.add(data, 3)
    np.testing.assert_array_equal(h.counts, np.bincount(data.reshape(-1).view(np.uint32) >> kernels.SHIFT, minlength=kernels.BINS))
    np.testing.assert_array_equal(extremes, np.stack([data.min(axis=1), data.max(axis=1)], axis=1))


@settings(deadline=None)
@given(arrays, st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]), st.data())
def test_what_is_not_finite_shows_in_the_extremes(data: Any, bad: float, place: st.DataObject) -> None:
    data = np.concatenate([data, data])
    i = place.draw(st.integers(0, data.size - 1))
    data[i] = bad
    finite = np.isfinite(Histogram().add(data, 2)).all(axis=1)
    assert finite.tolist() == [i >= data.size // 2, i < data.size // 2]
    with pytest.raises(CalibrationError, match="holds NaN or infinity"):
        observed(data)


def test_the_kernels_mean_what_they_say_uncompiled() -> None:
    data = np.array([[1.5, -0.0, 2.25], [-3.0, 1e-40, 0.0]], np.float32)
    found = np.zeros((2, kernels.BINS), np.uint32)
    keys = np.empty((2, 2), np.int32)
    plain = getattr(kernels._histogram, "py_func", kernels._histogram)
    plain(data.view(np.int32), 1, 0, 2, found, keys)
    h = Histogram()
    h.add(data, 2)
    np.testing.assert_array_equal(found.sum(axis=0), h.counts)


@settings(deadline=None)
@given(arrays, st.floats(1e-3, 100), st.floats(1e-3, 100))
def test_a_percentile_is_monotone_and_within_a_bin(data: Any, p: float, q: float) -> None:
    h = observed(data).histogram
    low, high = h.percentile(min(p, q)), h.percentile(max(p, q))
    assert 0 <= low <= high <= h.amax
    exact = np.sort(np.abs(data))[max(math.ceil(max(p, q) / 100 * data.size - 1e-9), 1) - 1]
    assert high == pytest.approx(exact, rel=1 / 63, abs=2.0**-132)
    assert h.percentile(100) == pytest.approx(h.amax, abs=2.0**-132)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1])
def test_the_squared_error_is_that_of_rounding(name: str, fmt: Any, factor: float) -> None:
    data = drawn(name)
    h = observed(data).histogram
    if fmt is INT8:
        limits = min(h.minimum, 0) * factor, max(h.maximum, 0) * factor
        scale, zero = activation_parameters(*limits)
        found = squared_error(h.numbers(), (np.arange(256.0) - zero) * scale)
    else:
        limits = -h.amax * factor, h.amax * factor
        values = code_values(fmt)
        found = squared_error(h.magnitudes(), np.unique(np.abs(values[np.isfinite(values)])) / fmt.max * limits[1])
    assert found == pytest.approx(true_error(data, limits, fmt), rel=0.03)


def test_narrow_bins_beside_a_wide_grid_lose_nothing() -> None:
    # Numbers near 0, to whose squares the integral over all of the grid would leave no digit.
    h = observed(np.array([1e-12, 100.0], np.float32)).histogram
    grid = np.arange(-128.0, 128.0)
    assert squared_error(h.numbers(), grid) == pytest.approx(1e-24, rel=0.02)


def test_the_divergence_of_a_uniform_distribution_by_hand() -> None:
    h = Histogram()
    h.add(np.linspace(1, 2, 1 << 16, endpoint=False, dtype=np.float32))
    bins = h.magnitudes()
    # Cells [0.5, 1.5] and [1.5, 2] with half of the mass each: densities 1/2 and 1 where it is 1.
    assert divergence(bins, np.array([0.0, 1.0, 2.0])) == pytest.approx(math.log(2) / 2, abs=1e-3)
    # Cells that share the mass as it is.
    assert divergence(bins, np.array([0.75, 1.25, 1.75, 2.0])) == pytest.approx(0, abs=1e-3)
    # Clipped to 1.5: a quarter in [1, 1.25] and three in [1.25, 1.5], of which the grid knows a half each.
    found = divergence(bins, np.array([1.0, 1.0, 1.5]))
    assert found == pytest.approx(math.log(0.25 / 0.5) / 4 + 3 * math.log(0.75 / 0.5) / 4, abs=1e-3)
    # Both ends: 3/8 below 1.375, 1/4 between, 3/8 above 1.625, of which it knows 1/4, 1/2, 1/4.
    found = divergence(h.numbers(), np.array([1.25, 1.5, 1.75]))
    assert found == pytest.approx(6 / 8 * math.log(0.375 / 0.25) + math.log(0.25 / 0.5) / 4, abs=1e-3)
    assert divergence(bins, np.array([0.0, 0.5, 0.75])) == np.inf


@pytest.mark.parametrize("name", DRAWS)
def test_divergence_is_not_negative_and_clipping_has_its_price(name: str) -> None:
    bins = observed(drawn(name)).histogram.magnitudes()
    for fmt in (E5M2, E4M3, E3M4):
        values = code_values(fmt)
        grid = np.unique(np.abs(values[np.isfinite(values)])) / fmt.max
        everything = divergence(bins, grid * float(bins.high[-1]))
        assert everything >= 0
        assert divergence(bins, grid * float(np.median(bins.high))) > everything


# -- calibrators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("max", "max"),
        ("percentile", "percentile 99.99"),
        (" percentile  99.90 ", "percentile 99.9"),
        ("percentile 99.9999999", "percentile 99.9999999"),
        ("percentile 100", "percentile 100"),
        ("mse", "mse"),
        ("kl", "kl"),
        ("moving_average", "moving_average 0.9"),
        ("moving_average 0", "moving_average 0"),
    ],
)
def test_texts_of_calibrators(text: str, canonical: str) -> None:
    calibrator = parse_calibrator(text)
    assert str(calibrator) == canonical
    assert parse_calibrator(canonical) == parse_calibrator(calibrator) == calibrator


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("maximum", "unknown calibrator 'maximum'; did you mean max"),
        ("entropy", "unknown calibrator 'entropy'; known: max, percentile P"),
        ("", "expected a calibrator, got ''"),
        ("percentile 99 9", "expected a calibrator, got 'percentile 99 9'"),
        (None, "expected a calibrator, got None"),
        (99.9, "expected a calibrator, got 99.9"),
        ("mse 3", "calibrator mse has no parameter, got 3.0"),
        ("percentile ninety", "expected a number after percentile"),
        ("percentile 0", "out of range: 0.0"),
        ("percentile 100.1", "out of range"),
        ("percentile nan", "out of range"),
        ("moving_average 1", "out of range: 1.0"),
        ("moving_average -0.1", "out of range"),
    ],
)
def test_texts_that_mean_no_calibrator(text: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_calibrator(text)
    assert said in str(caught.value)
    assert "known: max, percentile P (0 < P <= 100), mse, kl, moving_average M (0 <= M < 1)" in str(caught.value)


def test_a_parameter_is_a_number() -> None:
    for wrong in ("99", True, [1]):
        with pytest.raises(RecipeError, match="out of range"):
            Calibrator("percentile", wrong)  # type: ignore[arg-type]


# -- ranges -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(DRAWS)), st.integers(0, 10**6), st.sampled_from(FORMATS), st.integers(-30, 30))
def test_mse_is_no_worse_than_max(name: str, seed: int, fmt: Any, exponent: int) -> None:
    data = np.ldexp(drawn(name, 3000, seed), exponent)
    largest, best = (observed(data, kind).limits(fmt) for kind in ("max", "mse"))
    assert true_error(data, best, fmt) <= 1.05 * true_error(data, largest, fmt)


def test_an_even_grid_gives_up_its_tail_and_a_float_grid_keeps_it() -> None:
    data = np.random.default_rng(0).laplace(size=1_000_000).astype(np.float32)
    observer = observed(data, "mse")
    low, high = observer.limits(INT8)
    # exp(-a) + a^2 / (3 * 4^8) halves the squared error of clipping exponential tails at a, and that of 256 even steps: least at 9.9.
    least = 9.9
    for _ in range(50):
        least = math.log(3 * 4**8 / least)
    assert -low == pytest.approx(least, rel=0.1)
    assert high == pytest.approx(least, rel=0.1)
    assert max(observer.limits(E4M3)) > 0.9 * observer.histogram.amax > 1.15 * least
    assert 0.6 * least < max(observed(data, "kl").limits(INT8)) < observer.histogram.amax


def test_limits_follow_the_two_sides_of_the_data() -> None:
    for data, low, high in ((drawn("one-sided"), 0.1, None), (-drawn("one-sided"), None, -0.1), (drawn("after a ReLU"), 0.0, None)):
        for kind in CALIBRATORS:
            for fmt in FORMATS:
                found = observed(data, kind).limits(fmt)
                assert found[0] <= found[1]
                assert low is None or found[0] in (pytest.approx(low, rel=0.01), 0.0)
                assert high is None or found[1] in (pytest.approx(high, rel=0.01), 0.0)
    both = observed(np.append(drawn("normal"), np.float32(50)), "percentile 99.9").limits(INT8)
    assert both == pytest.approx((-3.29, 3.29), rel=0.05)
    assert observed(np.full(10, -5.0), "percentile 50").limits() == pytest.approx((-5, -5), rel=0.01)


@pytest.mark.parametrize("kind", CALIBRATORS)
@pytest.mark.parametrize("fmt", [E5M2, E4M3, E3M4], ids=str)
def test_mirrored_numbers_have_the_mirrored_range(kind: str, fmt: Any) -> None:
    for seed in range(5):
        data = drawn("normal", 3000, seed)
        low, high = observed(data, kind).limits(fmt)
        assert observed(-data, kind).limits(fmt) == (-high, -low)


@pytest.mark.parametrize("kind", [k for k in CALIBRATORS if k != "moving_average"])
def test_the_order_of_batches_is_of_no_consequence(kind: str) -> None:
    data = drawn("heavy tails", 1200).reshape(12, 100)
    forwards, backwards = RangeObserver(Calibrator(kind)), RangeObserver(Calibrator(kind))
    for batch in data.reshape(4, 3, 100):
        forwards.update(batch, 3)
    for row in data[::-1]:
        backwards.update(row, 1)
    for fmt in FORMATS:
        assert forwards.limits(fmt) == backwards.limits(fmt)
    loud = np.abs(data).max(axis=1)
    for observer, at in ((forwards, int(loud.argmax())), (backwards, 11 - int(loud.argmax()))):
        assert (observer.loudest, observer.at, observer.others) == (loud.max(), at, np.sort(loud)[-2])


def test_a_moving_average_by_hand() -> None:
    observer = RangeObserver(Calibrator("moving_average", 0.75))
    for low, high in ((-1.0, 2.0), (-5.0, 6.0), (-1.0, 2.0)):
        observer.update(np.array([low, 0.0, high]))
    # -1, -1 * 0.75 - 5 / 4 = -2, -2 * 0.75 - 1 / 4
    assert observer.limits(E4M3) == (-1.75, 2.75)


def test_samples_that_do_not_share_an_array_evenly() -> None:
    observer = RangeObserver()
    observer.update(np.array([1.0, 3.0, 2.0]), samples=2)
    observer.update(np.array([5.0, 4.0]), samples=2)
    assert (observer.loudest, observer.at, observer.others) == (5.0, 2, 4.0)


@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("fmt", [E5M2, E4M3, E3M4], ids=str)
def test_powers_of_two_stay_what_they_are(kind: str, fmt: Any) -> None:
    for name, seed in itertools.product(DRAWS, range(5)):
        low, high = observed(drawn(name, 3000, seed), kind).limits(fmt, power_of_two=True)
        assert math.frexp(max(-low, high) / fmt.max)[0] == 0.5


@pytest.mark.parametrize("kind", CALIBRATORS)
@pytest.mark.parametrize("fmt", [*FORMATS, None], ids=str)
@pytest.mark.parametrize(
    "data",
    [
        [0.0],
        [0.0, -0.0, 0.0],
        [3.0],
        [-3.0] * 5,
        [LARGEST],
        [LARGEST, -LARGEST, 0.0],
        [1e-45],
        [1e-45, -1e-40, 1e-38],
        [1e-45, 1.0],
        [1e-45, LARGEST],
        [6.0, 6.0, 0.0, 0.0],
    ],
    ids=str,
)
def test_ranges_at_the_edges(kind: str, fmt: Any, data: list[float]) -> None:
    low, high = observed(np.array(data, np.float32), kind).limits(fmt)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= high
    amax = float(np.abs(np.array(data, np.float32)).max())
    assert max(abs(low), abs(high)) <= 1.4 * amax
    scale = activation_parameters(low, high)[0] if fmt is INT8 else float(scale_for(max(-low, high), E4M3))
    assert 0 < scale < math.inf
    if kind == "max":
        assert (low, high) == (np.float32(min(data)), np.float32(max(data)))
