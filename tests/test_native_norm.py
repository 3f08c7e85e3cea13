"""Normalisations and softmax of the native kernels against their layers in float64, within bounds that are derived."""

from __future__ import annotations

import numpy as np
import pytest
from _native import EPS, SPECIAL, Guarded, check_threads, floats, run, sizes

from fp8np.kernels._jit import compiled
from fp8np.kernels.norm import batch_norm_task, group_norm_task, layer_norm_task, rms_norm_task
from fp8np.kernels.softmax import softmax_task
from fp8np.layers._op import OPS

SHAPES = sizes((3, 37), (2, 1), (5, 16), (1, 64), (2, 100), (0, 5), (4, 0), (7, 768), (2, 20_000))


def wide(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def check_normed(got, exact, t, weight, roundings, sigma, mean):
    """|y - exact| <= roundings 2^-24 (|y - bias| + |weight| |mean| / sigma + |y|), the bound of fp8np/kernels/norm.py."""
    size = np.abs(exact) + np.abs(weight) * (np.abs(mean) + np.abs(t)) / sigma
    assert (np.abs(got - exact) <= roundings * EPS * size).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm(shape, affine, added, offset):
    x, residual = floats(*shape) + np.float32(offset), floats(*shape, seed=1)
    weight, bias = (floats(shape[1], seed=2), floats(shape[1], seed=3)) if affine else (None, None)
    out, total = Guarded(*shape), Guarded(*shape)
    run(
        layer_norm_task(
            x,
            out.array,
            shape,
            eps=1e-5,
            weight=weight,
            bias=bias,
            residual=residual if added else None,
            total=total.array if added else None,
        )
    )
    t = x + residual if added else x
    if added:
        np.testing.assert_array_equal(total.check(), t)
    if not t.size:
        return
    exact = OPS["layer_norm"].define(*wide(t, weight, bias), normalized_shape=shape[1:], eps=float(np.float32(1e-5)))
    t = t.astype(np.float64)
    sigma = np.sqrt(t.var(1, keepdims=True) + 1e-5)
    w = 1 if weight is None else weight
    check_normed(out.check(), exact, t, w, shape[1] / 64 + 12, sigma, t.mean(1, keepdims=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("added", [True, False])
def test_rms_norm(shape, added):
    x, residual, weight = floats(*shape), floats(*shape, seed=1), floats(shape[1], seed=2)
    out = Guarded(*shape)
    run(rms_norm_task(x, out.array, shape, eps=1e-6, weight=weight, residual=residual if added else None))
    t = x + residual if added else x
    if t.size:
        exact = OPS["rms_norm"].define(*wide(t, weight), normalized_shape=shape[1:], eps=float(np.float32(1e-6)))
        np.testing.assert_allclose(out.check(), exact, rtol=(shape[1] / 64 + 12) * EPS)


def test_norms_in_place_and_without_a_place_for_the_sum():
    x, residual = floats(4, 50), floats(4, 50, seed=1)
    expected = np.empty_like(x)
    run(layer_norm_task(x + residual, expected, x.shape, eps=1e-5))
    for target in (0, 1):
        operands = [x.copy(), residual.copy()]
        run(layer_norm_task(operands[0], operands[target], x.shape, eps=1e-5, residual=operands[1]))
        np.testing.assert_array_equal(operands[target], expected)
    # The sum replaces the residual, as in a stack of blocks.
    y, stream = np.empty_like(x), residual.copy()
    run(layer_norm_task(x, y, x.shape, eps=1e-5, residual=stream, total=stream))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(stream, x + residual)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_of_special_values(name):
    x = np.ones((len(SPECIAL) + 2, 20), np.float32)
    x[: len(SPECIAL), 3] = SPECIAL
    x[-1] = 0
    out = np.empty_like(x)
    task = layer_norm_task if name == "layer_norm" else rms_norm_task
    # Rows of 3.4e38 have a mean square of infinity in float32, as has the definition.
    run(task(x, out, x.shape, eps=0.0))
    with np.errstate(all="ignore"):
        expected = OPS[name].define(x, normalized_shape=(20,), eps=0.0)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(out[finite], expected[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", sizes((2, 5, 7), (1, 1, 16), (3, 18, 1), (2, 3, 0), (2, 20, 70)))
def test_batch_norm(channels_last, shape):
    channels = shape[2] if channels_last else shape[1]
    x, scale, shift = floats(*shape), floats(channels, seed=1), floats(channels, seed=2)
    wide_scale, wide_shift = (a.astype(np.float64) if channels_last else a.astype(np.float64)[:, None] for a in (scale, shift))
    for lo, hi in ((-np.inf, np.inf), (0.0, 0.5)):
        out = Guarded(*shape)
        run(batch_norm_task(x, scale, shift, out.array, shape, channels_last=channels_last, lo=lo, hi=hi))
        # Two roundings, of the product and of the sum; one where they are fused.
        bound = 2 * EPS * (np.abs(x * wide_scale) + np.abs(wide_shift))
        assert (np.abs(out.check() - np.clip(x * wide_scale + wide_shift, lo, hi)) <= bound).all()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 9, 12), 3), ((1, 5, 6), 6), ((2, 7, 1), 1), ((1, 3, 80), 1), ((2, 100, 160), 32), ((1, 4, 70), 70), ((2, 0, 4), 2)],
)
def test_group_norm(shape, groups, affine):
    images, pixels, channels = shape
    x = floats(*shape) + np.float32(3)
    weight, bias = (floats(channels, seed=1), floats(channels, seed=2)) if affine else (None, None)
    out = Guarded(*shape)
    run(group_norm_task(x, out.array, shape, groups, eps=1e-5, weight=weight, bias=bias))
    if not x.size:
        return
    planes = x.transpose(0, 2, 1).astype(np.float64)
    exact = OPS["group_norm"].define(planes, *wide(weight, bias), num_groups=groups, eps=float(np.float32(1e-5)))
    members = planes.reshape(images, groups, -1)
    mean, sigma = (np.repeat(a, channels // groups, 1)[..., None] for a in (members.mean(2), np.sqrt(members.var(2) + 1e-5)))
    w = 1 if weight is None else weight[:, None]
    # A sum over pixels has passed through 64 + P / 64 roundings at most, one over the channels of a group through as many as there are.
    roundings = min(pixels, 64) + pixels / 64 + channels // groups + 12
    check_normed(out.check().transpose(0, 2, 1), exact, planes, w, roundings, sigma, mean)


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (20.0, 0.0), (1.0, -500.0)])
def test_softmax(shape, logarithm, scale, offset):
    x = floats(*shape, scale=scale) + np.float32(offset)
    out = Guarded(*shape)
    run(softmax_task(x, out.array, shape, logarithm=logarithm))
    got = out.check()
    if not x.size:
        return
    exact = OPS["log_softmax" if logarithm else "softmax"].define(x.astype(np.float64), dim=-1)
    depth = x.max(1, keepdims=True) - x
    roundings = shape[1] / 64 + 12
    if logarithm:
        assert (np.abs(got - exact) <= roundings * EPS * (1 + np.abs(exact) + depth)).all()
    else:
        # What is below 2^-125.5 of the largest is zero.
        np.testing.assert_array_less(np.abs(got - exact), (roundings + depth) * EPS * exact + 2.0**-125)


@pytest.mark.parametrize("logarithm", [False, True])
def test_softmax_of_special_values(logarithm):
    inf, nan = np.inf, np.nan
    rows = [[-inf] * 3, [inf, 0, 1], [nan, 0, 1], [-inf, 0, 1], [0, -0.0, 0], [3e38, -3e38, 0], [-inf, -inf, 5], [1e-45, 0, -1e-45]]
    for width in (3, 19, 70):
        x = np.full((len(rows), width), -inf, np.float32)
        x[:, -3:] = rows
        out = np.empty_like(x)
        run(softmax_task(x, out, x.shape, logarithm=logarithm))
        with np.errstate(over="ignore"):
            expected = OPS["log_softmax" if logarithm else "softmax"].define(x, dim=-1)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
        run(softmax_task(x, x, x.shape, logarithm=logarithm))
        np.testing.assert_array_equal(x, out)


def test_threads():
    shape = (200, 300) if compiled() else (3, 20)
    x, y = floats(*shape), np.empty(shape, np.float32)
    check_threads(layer_norm_task(x, y, shape, eps=1e-5, residual=x[::-1].copy()), y)
    check_threads(softmax_task(x, y, shape), y)
    check_threads(group_norm_task(x, y, (1, *shape), 5, eps=1e-5), y)
    check_threads(batch_norm_task(x, x[0], x[1], y, (1, *shape), channels_last=True), y)
