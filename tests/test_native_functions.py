"""Functions of vectors against their definitions: error in units in the last place, special values."""

from __future__ import annotations

import numpy as np
import pytest
from _native import SPECIAL, run

from fp8np.kernels._functions import ACTIVATIONS
from fp8np.kernels._jit import compiled
from fp8np.kernels.pointwise import unary_task
from fp8np.layers._op import OPS

INF = float("inf")
# Of each kind: the op, its attributes, lo, hi, and the largest error in ulp that the comment in _functions.py states.
KINDS = {
    "gelu": ("gelu", {"approximate": "none"}, -INF, INF, 6.5),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}, -INF, INF, 202),
    "silu": ("silu", {}, -INF, INF, 3.5),
    "sigmoid": ("sigmoid", {}, -INF, INF, 2.5),
    "tanh": ("tanh", {}, -INF, INF, 2.5),
    "hardswish": ("hardswish", {}, -INF, INF, 2.5),
    "hardsigmoid": ("hardsigmoid", {}, -INF, INF, 1.5),
    "softplus": ("softplus", {"beta": 1.0, "threshold": 20.0}, 1.0, 20.0, 3.0),
    "mish": ("mish", {}, -INF, INF, 4.5),
    "elu": ("elu", {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0}, 1.0, 1.0, 1.0),
    "selu": ("elu", {"alpha": 1.6732632423543772, "scale": 1.0507009873554805, "input_scale": 1.0}, -INF, INF, 2.0),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.25}, 0.25, INF, 0.5),
    "log_sigmoid": ("log_sigmoid", {}, -INF, INF, 3.0),
    # 0.9 where multiply-adds are fused.
    "exp": ("exp", {}, -INF, INF, 1.2),
    "log": ("log", {}, -INF, INF, 1.0),
    "sqrt": ("sqrt", {}, -INF, INF, 0.5),
    "rsqrt": ("rsqrt", {}, -INF, INF, 1.5),
    "reciprocal": ("reciprocal", {}, -INF, INF, 0.5),
    "square": ("square", {}, -INF, INF, 0.5),
    "abs": ("abs", {}, -INF, INF, 0),
    "neg": ("neg", {}, -INF, INF, 0),
}
# Below these a result may be zero: of an exponential, and of it times x.
TINY = {"gelu": 2.2e-37, "gelu_tanh": 1.7e-37, "silu": 1.5e-36, "mish": 1.5e-36}
SMALLEST = 2.0**-125.5


def applied(kind, x, lo=-INF, hi=INF):
    y = np.empty_like(x)
    run(unary_task(x, y, x.size, kind, lo, hi))
    return y


def sample():
    """Float32 of all magnitudes: every so many bit patterns, and denser where functions bend."""
    if not compiled():
        return np.concatenate([SPECIAL, np.linspace(-20, 20, 150).astype(np.float32), np.geomspace(1e-30, 90, 31).astype(np.float32)])
    bits = np.arange(0, 1 << 32, 7919, dtype=np.uint64).astype(np.uint32)
    return np.concatenate([SPECIAL, bits.view(np.float32), np.linspace(-90, 90, 400_001).astype(np.float32)])


def test_all_kinds_are_tested():
    assert set(KINDS) | {""} == set(ACTIVATIONS)
    assert sorted(ACTIVATIONS.values()) == list(range(len(ACTIVATIONS)))


@pytest.mark.parametrize("kind", KINDS)
def test_error(kind):
    name, attrs, lo, hi, bound = KINDS[kind]
    x = sample()
    got = applied(kind, x, lo, hi)
    with np.errstate(invalid="ignore", over="ignore"):
        exact = OPS[name].define(x.astype(np.float64), **attrs)
        rounded = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(rounded))
    finite = np.isfinite(rounded)
    x, got, exact = x[finite], got[finite].astype(np.float64), exact[finite]
    size = np.abs(exact)
    # The distance of float32 in the binade of the exact value.
    unit = np.ldexp(1.0, np.maximum(np.frexp(size)[1] - 24, -149))
    off = np.abs(got - exact) / unit
    off[(got == 0) & (size < TINY.get(kind, SMALLEST))] = 0
    # What is below the normal numbers has fewer digits on the way, and is not promised.
    off[(size < 2.0**-126) & (np.abs(got) < 2.0**-125)] = 0
    worst = off.argmax()
    assert off[worst] <= bound, f"{off[worst]} ulp at {x[worst]}: {got[worst]}, not {exact[worst]}"


@pytest.mark.parametrize(
    ("attrs", "lo", "hi"),
    [
        ({"alpha": 0.5, "scale": 1.0, "input_scale": 2.0}, 0.5, 2.0),
        ({"alpha": 3.0, "scale": 1.0, "input_scale": 1 / 3}, 3.0, 1 / 3),
    ],
)
def test_parameters_of_elu(attrs, lo, hi):
    x = np.linspace(-8, 8, 100).astype(np.float32)
    exact = OPS["elu"].define(x.astype(np.float64), **attrs)
    np.testing.assert_allclose(applied("elu", x, lo, hi), exact, rtol=4e-7, atol=0)


@pytest.mark.parametrize(("beta", "threshold"), [(1.0, 20.0), (2.0, 5.0), (0.25, 1.0)])
def test_parameters_of_softplus(beta, threshold):
    x = np.linspace(-30, 30, 200).astype(np.float32)
    exact = OPS["softplus"].define(x.astype(np.float64), beta=beta, threshold=threshold)
    np.testing.assert_allclose(applied("softplus", x, beta, threshold), exact, rtol=4e-7)


@pytest.mark.parametrize(("lo", "hi"), [(-INF, INF), (0, INF), (0, 6), (-1, 1), (-2.5, 0.75)])
def test_clamps(lo, hi):
    x = np.concatenate([SPECIAL, np.linspace(-8, 8, 77).astype(np.float32)])
    np.testing.assert_array_equal(applied("", x, lo, hi), np.clip(x, np.float32(lo), np.float32(hi)))
