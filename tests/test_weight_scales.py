"""The scales of weights: the usual ones, and those of a search for the least error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.errors import RecipeError
from fp8np.formats import get_format
from fp8np.integers import INT8, quantize_weight
from fp8np.kernels._threads import threads
from fp8np.kernels.calibration import _rounding_errors
from fp8np.observers import Calibrator
from fp8np.ptq.weights import _PIECE, _squared_errors, weight_scales
from fp8np.scaling import dequantize, quantize
from fp8np.scheme import PerBlock, PerChannel, PerTensor, Scheme

NAMES = ["e5m2", "e4m3fn", "e3m4fn", "e4m3fnuz", "e5m2@127", "e4m3@0", "float6_e3m2fn", "binary8p1se"]
GRANULARITIES = [
    PerTensor(),
    PerChannel(0),
    PerChannel(1),
    PerChannel(-1),
    PerBlock((4, 8)),
    PerBlock((1, 7)),
    PerBlock((5, 0)),
    PerBlock((1, 8), get_format("e8m0fnu")),
]
E4M3 = get_format("e4m3fn")


def weights(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def quantized(weight: Any, scheme: Scheme, scales: Any) -> Any:
    if isinstance(scheme.granularity, PerBlock):
        return quantize(weight, scheme.format, block=scheme.granularity.shape, scale=scales)
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    return quantize(weight, scheme.format, axis=axis, scale=scales)


def squared_error(weight: Any, scheme: Scheme, scales: Any) -> float:
    rounded = dequantize(quantized(weight, scheme, scales), dtype=np.float64)
    return float(((rounded - weight) ** 2).sum())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "e3m4fn"])
def test_max_is_what_quantize_does_by_itself(granularity: Any, name: str) -> None:
    w = weights((10, 30))
    scheme = Scheme(get_format(name), granularity)
    scales = weight_scales(w, scheme)
    if isinstance(granularity, PerBlock):
        # Scales of a format are rounded by their own rule.
        expected = quantize(w, name, block=granularity.shape, scale_format=granularity.scale_format)
    else:
        expected = quantize(w, name, axis=granularity.axis if isinstance(granularity, PerChannel) else None)
    np.testing.assert_array_equal(scales, expected.scale)
    assert scales.shape == expected.scale.shape
    np.testing.assert_array_equal(quantized(w, scheme, scales).codes, expected.codes)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.sampled_from([g for g in GRANULARITIES if not (isinstance(g, PerBlock) and g.scale_format)]),
    st.integers(0, 10**6),
    st.integers(-110, 110),
    st.booleans(),
)
def test_mse_is_no_worse_than_max(name: str, granularity: Any, seed: int, exponent: int, power_of_two: bool) -> None:
    w = np.ldexp(weights((9, 20), seed), exponent)
    scheme = Scheme(get_format(name), granularity, power_of_two=power_of_two)
    largest, best = weight_scales(w, scheme), weight_scales(w, scheme, "mse")
    assert best.shape == largest.shape
    assert squared_error(w, scheme, best) <= squared_error(w, scheme, largest) * (1 + 1e-5)
    if power_of_two:
        assert (np.frexp(best)[0] == 0.5).all()
        assert (np.frexp(largest)[0] == 0.5).all()


@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "e3m4fn", "float6_e3m2fn"])
def test_mse_gains_where_channels_have_scales_of_their_own(name: str) -> None:
    w = weights((200, 50))
    scheme = Scheme(get_format(name), PerChannel(0))
    assert squared_error(w, scheme, weight_scales(w, scheme, "mse")) < 0.95 * squared_error(w, scheme, weight_scales(w, scheme))


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_of_rounding(name: str) -> None:
    rows = np.ascontiguousarray(weights((6, 5000)))
    fmt = get_format(name)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(fmt.max) * np.array([1.2, 1, 0.7, 0.3], np.float32)
    found = _squared_errors(rows, scales, fmt)
    for j in range(scales.shape[1]):
        rounded = dequantize(quantize(rows, fmt, axis=0, scale=scales[:, j]), dtype=np.float64)
        np.testing.assert_allclose(found[:, j], ((rounded - rows) ** 2).sum(axis=1), rtol=1e-4)


def test_errors_of_integers() -> None:
    rows = weights((6, 5000))
    _, scale = quantize_weight(rows, 0)
    np.testing.assert_array_equal(weight_scales(rows, Scheme(INT8, PerChannel(0))), scale)
    scales = scale * np.array([1.1, 1, 0.4], np.float32)
    found = _squared_errors(rows, scales, INT8)
    for j in range(scales.shape[1]):
        rounded = np.clip(np.rint(rows / scales[:, j : j + 1]), -127, 127) * scales[:, j : j + 1].astype(float)
        np.testing.assert_allclose(found[:, j], ((rounded - rows) ** 2).sum(axis=1), rtol=1e-4)
    assert (weight_scales(rows, Scheme(INT8, PerChannel(0)), "mse") < scale).sum() >= 5


def test_one_scale_for_many_elements_is_found_in_pieces() -> None:
    w = weights((1, 5 * _PIECE + 123))
    scales = np.abs(w).max() / np.float32(448) * np.array([[1.1, 1, 0.5]], np.float32)
    with threads(2):
        found = _squared_errors(w, scales, E4M3)
    parts = [_squared_errors(part, scales, E4M3) for part in np.array_split(w, 7, axis=1)]
    np.testing.assert_allclose(found, np.sum(parts, axis=0), rtol=1e-5)
    assert found.shape == (1, 3)


def test_the_kernel_means_what_it_says_uncompiled() -> None:
    x = np.array([[0.3, -1.7, 0.0, 5.0]], np.float32)
    out = np.empty((1, 2))
    plain = getattr(_rounding_errors, "py_func", _rounding_errors)
    # E2M1 without its binade of subnormals at most: 0, 0.5, 1, 1.5 around 1.
    plain(x, np.ones((1, 2), np.float32), np.float32(1).view(np.uint32), np.uint32(22 << 23), np.float32(1.5), 0, 1, out)
    np.testing.assert_allclose(out, [[0.2**2 + 0.2**2 + 3.5**2] * 2], rtol=1e-6)


@pytest.mark.parametrize("calibrator", ["max", "mse"])
@pytest.mark.parametrize("fmt", [get_format("e5m2"), E4M3, get_format("e3m4fn"), INT8], ids=str)
def test_weights_at_the_edges(calibrator: str, fmt: Any) -> None:
    largest = np.finfo(np.float32).max
    w = np.array([[0, 0, 0], [1e-45, -1e-45, 0], [largest, -largest, 1], [1, 1, 1]], np.float32)
    scales = weight_scales(w, Scheme(fmt, PerChannel(0)), calibrator)
    assert np.isfinite(scales).all()
    assert (scales >= np.finfo(np.float32).smallest_normal).all()
    assert scales[0, 0] == 1
    assert weight_scales(np.empty((0, 3), np.float32), Scheme(fmt, PerChannel(0)), calibrator).shape == (0, 1)
    assert weight_scales(np.empty((0, 3), np.float32), Scheme(fmt), calibrator) == 1
    assert weight_scales(np.float32(2), Scheme(fmt), calibrator).shape == ()


def test_a_cast_has_scale_one() -> None:
    assert weight_scales(weights((3, 4)), Scheme(get_format("e5m2"), direct=True), "mse") == 1


@pytest.mark.parametrize("calibrator", ["percentile 99", "kl", "moving_average", Calibrator("kl")])
def test_calibrators_that_are_for_activations(calibrator: Any) -> None:
    with pytest.raises(RecipeError, match="weights: expected calibrator max or mse, got"):
        weight_scales(weights((3, 4)), Scheme(E4M3), calibrator)
