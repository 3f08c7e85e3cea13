"""Pooling and embedding of the native kernels, against their layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from _native import EPS, Guarded, check_threads, floats, run

from fp8np.codec import decode_table
from fp8np.kernels._jit import compiled
from fp8np.kernels.embedding import embedding_task
from fp8np.kernels.pooling import avg_pool_task, global_mean_task, max_pool_task
from fp8np.layers._op import OPS

# B, H, W, C; kernel, stride, padding, dilation.
WINDOWS = [
    ((1, 5, 6, 3), (2, 2), (2, 2), (0, 0), (1, 1)),
    ((2, 7, 5, 16), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((1, 9, 8, 1), (3, 2), (1, 3), (1, 0), (2, 3)),
    ((1, 6, 6, 5), (1, 1), (2, 1), (0, 0), (1, 1)),
    ((1, 4, 4, 2), (4, 4), (4, 4), (2, 2), (1, 1)),
    ((1, 3, 10, 2), (2, 5), (3, 4), (1, 2), (1, 1)),
    ((2, 9, 9, 83), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((1, 12, 12, 64), (5, 5), (3, 3), (2, 2), (2, 2)),
    ((0, 4, 4, 3), (2, 2), (2, 2), (0, 0), (1, 1)),
]


def pooled(name, x, **attrs):
    """The layer, of channels-last images."""
    return np.ascontiguousarray(OPS[name].define(x.transpose(0, 3, 1, 2), **OPS[name].filled(attrs)).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), WINDOWS)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool(shape, kernel, stride, padding, dilation, ceil_mode):
    x = floats(*shape)
    if x.size:
        flat = x.reshape(-1)
        flat[:: max(flat.size // 5, 1)] = np.nan
        flat[1 :: max(flat.size // 3, 1)] = -np.inf
        flat[2 :: max(flat.size // 3, 1)] = np.inf
    for images in (x, np.full_like(x, -np.inf)):
        expected = pooled("max_pool2d", images, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)
        out = Guarded(*expected.shape)
        run(max_pool_task(images, out.array, shape, expected.shape[1:3], kernel=kernel, stride=stride, padding=padding, dilation=dilation))
        np.testing.assert_array_equal(out.check(), expected)


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), WINDOWS)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("count_include_pad", "divisor"), [(True, None), (False, None), (True, 7), (False, -2)])
def test_avg_pool(shape, kernel, stride, padding, dilation, ceil_mode, count_include_pad, divisor):
    x = floats(*shape)
    attrs = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
        "divisor_override": divisor,
    }
    exact = pooled("avg_pool2d", x.astype(np.float64), **attrs)
    size = pooled("avg_pool2d", np.abs(x).astype(np.float64), **attrs)
    out = Guarded(*exact.shape)
    run(
        avg_pool_task(
            x,
            out.array,
            shape,
            exact.shape[1:3],
            kernel=kernel,
            stride=stride,
            padding=padding,
            count_include_pad=count_include_pad,
            divisor_override=divisor,
        )
    )
    assert (np.abs(out.check() - exact) <= (kernel[0] * kernel[1] + 1) * EPS * np.abs(size)).all()


def test_avg_pool_of_special_values():
    x = floats(1, 6, 6, 3)
    x[0, 1, 1] = [np.nan, np.inf, -np.inf]
    x[0, 2, 2] = [0, -np.inf, -np.inf]
    expected = pooled("avg_pool2d", x, kernel_size=3, stride=1, padding=1)
    out = np.empty_like(expected)
    run(avg_pool_task(x, out, x.shape, (6, 6), kernel=(3, 3), stride=(1, 1), padding=(1, 1)))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 1, 64), (3, 49, 1), (1, 6, 70), (2, 200, 130), (0, 4, 4), (2, 3, 0)])
def test_global_mean(shape):
    images, pixels, channels = shape
    x = floats(*shape)
    out = Guarded(images, channels)
    run(global_mean_task(x, out.array, shape))
    wide = x.astype(np.float64)
    roundings = min(pixels, 64) + pixels / 64 + 1
    assert (np.abs(out.check() - wide.mean(1)) <= roundings * EPS * np.abs(wide).mean(1)).all()


def test_threads():
    shape = (2, 40, 33, 70) if compiled() else (1, 6, 6, 3)
    out = (shape[1] // 2, shape[2] // 2)
    x, y, means = floats(*shape), np.empty((shape[0], *out, shape[3]), np.float32), np.empty((shape[0], shape[3]), np.float32)
    for task in (max_pool_task, avg_pool_task):
        check_threads(task(x, y, shape, out, kernel=(3, 3), stride=(2, 2), padding=(1, 1)), y)
    check_threads(global_mean_task(x, means, (shape[0], shape[1] * shape[2], shape[3])), means)


# -- embedding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids_dtype", [np.int64, np.int32])
@pytest.mark.parametrize("width", [1, 15, 16, 50])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_embedding(ids_dtype, width, rows):
    rng = np.random.default_rng(4)
    ids = rng.integers(0, 30, rows).astype(ids_dtype)
    codes, table = rng.integers(0, 256, (30, width)).astype(np.uint8), floats(30, width)
    out = Guarded(rows, width)
    run(embedding_task(table, ids, out.array, (rows, width), id_bytes=ids.itemsize))
    np.testing.assert_array_equal(out.check(), table[ids])
    scales = {"tensor": floats(1), "row": floats(30), "column": floats(width)}
    for name, (per, scale) in itertools.product(("e4m3fn", "e5m2"), scales.items()):
        values = decode_table(name)
        out = Guarded(rows, width)
        run(embedding_task(codes, ids, out.array, (rows, width), id_bytes=ids.itemsize, values=values, scale=scale, scale_per=per))
        with np.errstate(invalid="ignore"):
            expected = values[codes[ids]] * (scale[ids][:, None] if per == "row" else scale)
        np.testing.assert_array_equal(out.check(), expected)


def test_embedding_of_many_rows():
    rows = 3000 if compiled() else 5
    ids = np.random.default_rng(5).integers(0, 100, rows)
    codes = np.random.default_rng(6).integers(0, 256, (100, 24)).astype(np.uint8)
    out = np.empty((rows, 24), np.float32)
    values = decode_table("e4m3fn")
    check_threads(embedding_task(codes, ids, out, out.shape, id_bytes=8, values=values), out)
    np.testing.assert_array_equal(out, values[codes[ids]])
