"""Products with what follows them: fused_conv2d and fused_linear, which the passes of `fp8np.plan` make of several nodes.

    y = activation(product(x, weight) + bias + residual)

x, weight and bias as in conv2d and linear; residual of y's shape. pads are zeros (top, left, bottom, right). The activation "" is
a clamp to lo .. hi, which is none, relu, relu6 or hardtanh; the others are ops of that name, "gelu_tanh" gelu with approximate
"tanh".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.layers._checks import require, require_floats, require_shape
from fp8np.layers._op import OPS, Spec, op
from fp8np.scheme import PerChannel, PerTensor

ACTIVATIONS = ("", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish")


def activated(y: Any, activation: str, lo: float, hi: float) -> Any:
    """The activation of a name."""
    if activation == "":
        return np.clip(y, lo, hi)
    if activation == "gelu_tanh":
        return OPS["gelu"].define(y, approximate="tanh")
    return OPS[activation].define(y, **dict(OPS[activation].attrs))


def check_ending(name: str, activation: Any, lo: Any, hi: Any) -> None:
    """Raises ShapeError unless there is such an activation, with bounds that are numbers."""
    require(activation in ACTIVATIONS, name, f"an activation among {', '.join(map(repr, ACTIVATIONS))}", activation=activation)
    require(all(isinstance(v, int | float) for v in (lo, hi)), name, "numbers for lo and hi", lo=lo, hi=hi)


def check_pads(name: str, pads: Any, fits: bool, expected: str, **given: Any) -> None:
    """Raises ShapeError unless pads are four numbers of zeros, and what else is expected of them fits."""
    four = isinstance(pads, tuple) and len(pads) == 4 and all(isinstance(p, int) and p >= 0 for p in pads)
    require(four and fits, name, expected, **given, pads=pads)


def fused_shape(
    name: str, product: str, inputs: tuple[Spec | None, ...], residual: Spec | None, ending: tuple[Any, ...], attrs: Any
) -> Spec:
    """The shape of a product with its ending: that of the product, which is the residual's, too."""
    check_ending(name, *ending)
    y = OPS[product].shape(*inputs, **attrs)
    assert isinstance(y, Spec)
    require_floats(name, residual=residual)
    require_shape(name, y.shape, residual=residual)
    return y


def conv_shape(
    x: Spec,
    weight: Spec,
    bias: Spec | None = None,
    residual: Spec | None = None,
    *,
    pads: Any,
    activation: Any,
    lo: Any,
    hi: Any,
    **attrs: Any,
) -> Spec:
    """(B, C, H, W), (O, C/G, kh, kw), (O,) -> (B, O, Ho, Wo)"""
    name = "fused_conv2d"
    check_pads(name, pads, x.ndim == 4, "x (B, C, H, W) and four numbers of zeros", x=x)
    top, left, bottom, right = pads
    padded = Spec((*x.shape[:-2], x.shape[-2] + top + bottom, x.shape[-1] + left + right), x.dtype)
    return fused_shape(name, "conv2d", (padded, weight, bias), residual, (activation, lo, hi), {**attrs, "padding": (0, 0)})


def fused_conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str,
    lo: float,
    hi: float,
) -> Any:
    """y = activation(conv2d(x, weight) + bias + residual)"""
    top, left, bottom, right = pads
    padded = np.pad(x, (*((0, 0),) * (x.ndim - 2), (top, bottom), (left, right)))
    y = OPS["conv2d"].define(padded, weight, bias, stride=stride, padding=(0, 0), dilation=dilation, groups=groups)
    return activated(y if residual is None else y + residual, activation, lo, hi)


def linear_shape(
    x: Spec, weight: Spec, bias: Spec | None = None, residual: Spec | None = None, *, activation: Any, lo: Any, hi: Any
) -> Spec:
    """(..., K), (N, K), (N,) -> (..., N)"""
    return fused_shape("fused_linear", "linear", (x, weight, bias), residual, (activation, lo, hi), {})


def fused_linear(x: Any, weight: Any, bias: Any = None, residual: Any = None, *, activation: str, lo: float, hi: float) -> Any:
    """y = activation(x @ weight^T + bias + residual)"""
    y = OPS["linear"].define(x, weight, bias)
    return activated(y if residual is None else y + residual, activation, lo, hi)


_INPUTS = ("x", "weight", "bias?", "residual?")
_ENDING = {"activation": "", "lo": float("-inf"), "hi": float("inf")}

op(
    "fused_conv2d",
    _INPUTS,
    shape=conv_shape,
    define=fused_conv2d,
    attrs={"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, **_ENDING},
    quantizable={"x": PerTensor(), "weight": PerChannel(0), "residual": PerTensor()},
)
op(
    "fused_linear",
    _INPUTS,
    shape=linear_shape,
    define=fused_linear,
    attrs=_ENDING,
    quantizable={"x": PerTensor(), "weight": PerChannel(0), "residual": PerTensor()},
)
