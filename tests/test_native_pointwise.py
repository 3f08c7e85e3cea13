"""Pointwise kernels and copies between orders of axes, against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from _native import EPS, SPECIAL, Guarded, check_threads, floats, run, sizes

from fp8np.kernels._jit import compiled
from fp8np.kernels.pointwise import BINARY, UNIT, binary_task, unary_task
from fp8np.kernels.rearrange import permute_task, transpose_task

INF = float("inf")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# In float64, and how many roundings the kernel makes.
DEFINITIONS = {
    "add": (np.add, 1),
    "sub": (np.subtract, 1),
    "rsub": (lambda a, b: b - a, 1),
    "mul": (np.multiply, 1),
    "div": (np.divide, 1),
    "rdiv": (lambda a, b: b / a, 1),
    "maximum": (np.maximum, 0),
    "minimum": (np.minimum, 0),
    "prelu": (lambda a, b: np.where(a > 0, a, a * b), 1),
    # 2.5 ulp of sigmoid and 3.5 of silu, each ulp up to two roundings, and the product.
    "glu": (lambda a, b: a * sigmoid(b), 6),
    "swiglu": (lambda a, b: a * sigmoid(a) * b, 8),
}
PATTERNS = [
    # Shape of x; of v, with 1 where it is repeated; strides.
    ((1, 1, 37), (1, 1, 37), (0, 0, 1)),
    ((1, 1, 5), (1, 1, 1), (0, 0, 0)),
    ((1, 7, 19), (1, 1, 19), (0, 0, 1)),
    ((1, 7, 19), (1, 7, 1), (0, 1, 0)),
    ((3, 5, 32), (3, 1, 32), (32, 0, 1)),
    ((2, 3, 16), (1, 3, 1), (0, 1, 0)),
    ((4, 1, 1), (4, 1, 1), (1, 0, 0)),
    ((0, 3, 4), (1, 1, 4), (0, 0, 1)),
    ((2, 3, 0), (2, 3, 1), (3, 1, 0)),
]


def test_all_operations_are_tested():
    assert set(BINARY) == set(DEFINITIONS)


def check(op, x, v, strides, lo=-INF, hi=INF):
    define, roundings = DEFINITIONS[op]
    out = Guarded(*x.shape)
    run(binary_task(x, v, out.array, op, x.shape, strides, lo=lo, hi=hi))
    with np.errstate(all="ignore"):
        exact = np.clip(define(x.astype(np.float64), v.astype(np.float64)), np.float32(lo), np.float32(hi))
        expected = exact.astype(np.float32)
    got = out.check()
    if roundings <= 1:
        # A normal result is rounded once; below the normal numbers a unit may have been lost before.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1.5e-45 * roundings)
    else:
        np.testing.assert_allclose(got, exact, rtol=roundings * EPS, atol=2.0**-125)


@pytest.mark.parametrize("op", DEFINITIONS)
@pytest.mark.parametrize(("shape", "v_shape", "strides"), PATTERNS)
def test_binary(op, shape, v_shape, strides):
    x, v = floats(*shape), floats(*v_shape, seed=1)
    check(op, x, v, strides)
    check(op, x, v, strides, -0.5, 0.25)


@pytest.mark.parametrize("op", DEFINITIONS)
def test_binary_of_special_values(op):
    if op in ("glu", "swiglu"):
        return
    x, v = (np.ascontiguousarray(a.reshape(1, 1, -1)) for a in np.meshgrid(SPECIAL, SPECIAL))
    check(op, x, v, (0, 0, 1))


def test_binary_takes_halves_of_a_row():
    x = floats(6, 2 * 21)
    out = Guarded(6, 21)
    run(binary_task(x, x.reshape(-1)[21:], out.array, "glu", (1, 6, 21), (0, 42, 1), x_row=42))
    np.testing.assert_allclose(out.check(), x[:, :21] * sigmoid(x[:, 21:].astype(np.float64)), rtol=6 * EPS)


def test_binary_in_place():
    x, v = floats(1, 1, 100), floats(1, 1, 100, seed=1)
    for target in (0, 1):
        operands = [x.copy(), v.copy()]
        run(binary_task(*operands, operands[target], "sub", (1, 1, 100), (0, 0, 1)))
        np.testing.assert_array_equal(operands[target], x - v)


@pytest.mark.skipif(not compiled(), reason="large")
@pytest.mark.parametrize("n", [UNIT - 1, UNIT, 2 * UNIT + 1, 100_003])
def test_units_cover_everything(n):
    x, v = floats(1, 1, n), floats(1, 1, n, seed=1)
    check("add", x, v, (0, 0, 1))
    out = Guarded(1, 1, n)
    run(unary_task(x, out.array, n, "", 0, 6))
    np.testing.assert_array_equal(out.check(), np.clip(x, 0, 6))
    check("mul", floats(1, 5, n), floats(1, 1, n), (0, 0, 1))


def test_unary_in_place_and_empty():
    x = floats(33)
    y = x.copy()
    run(unary_task(y, y, 33, "", 0, INF), unary_task(y, y, 0, "gelu"))
    np.testing.assert_array_equal(y, np.maximum(x, 0))


@pytest.mark.parametrize("kind", ["gelu", "silu", "", "mish"])
def test_threads(kind):
    n = 5 * UNIT + 7 if compiled() else 40
    x, y = floats(n), np.empty(n, np.float32)
    check_threads(unary_task(x, y, n, kind), y)
    check_threads(binary_task(x, x[::-1].copy(), y, "swiglu", (1, 1, n), (0, 0, 1)), y)


# -- copies -----------------------------------------------------------------------------------------------------------

DTYPES = [np.uint8, np.uint32]


def elements(dtype, *shape):
    # All bit patterns, NaN of any payload among them.
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 3, 15, 16, 17, 40])
@pytest.mark.parametrize("n", [1, 3, 16, 33])
def test_transpose(dtype, m, n):
    for b in sizes(1, 3):
        x = elements(dtype, b, m, n)
        out = Guarded(b, n, m, dtype=dtype)
        run(transpose_task(x, out.array, (b, m, n), x.itemsize))
        np.testing.assert_array_equal(out.check(), x.transpose(0, 2, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", sizes((2, 3, 4, 5), (2, 18, 3, 17), (1, 20, 1, 33), (3, 1, 1, 1), (2, 1, 16, 16)))
def test_permute(dtype, shape):
    x = elements(dtype, *shape)
    for order in itertools.permutations(range(4)):
        view = x.transpose(order)
        out = Guarded(*view.shape, dtype=dtype)
        run(permute_task(x, out.array, view.shape, [s // x.itemsize for s in view.strides], x.itemsize))
        np.testing.assert_array_equal(out.check(), view)


def test_permute_of_nothing():
    x = np.empty((2, 0, 3, 4), np.float32)
    run(permute_task(x, x, (0, 2, 3, 4), (12, 0, 4, 1)), transpose_task(x, x, (0, 4, 5)), transpose_task(x, x, (2, 0, 5)))


@pytest.mark.skipif(not compiled(), reason="large")
@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_of_many_units(dtype):
    x = elements(dtype, 3, 70, 1500)
    out = np.empty((3, 1500, 70), dtype)
    check_threads(transpose_task(x, out, x.shape, x.itemsize), out)
    np.testing.assert_array_equal(out, x.transpose(0, 2, 1))
    x = elements(dtype, 2, 300, 12, 64)
    out = np.empty((2, 12, 300, 64), dtype)
    strides = [s // x.itemsize for s in x.transpose(0, 2, 1, 3).strides]
    check_threads(permute_task(x, out, out.shape, strides, x.itemsize), out)
    np.testing.assert_array_equal(out, x.transpose(0, 2, 1, 3))
