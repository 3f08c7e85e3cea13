"""Products of integers with what follows them, as `fp8np.layers.fused` has it: fused_integer_linear and fused_integer_conv.

    y = activation(integer product + bias + residual)

fused_integer_conv serves pictures (B, C, H, W) and lines (B, C, L); its weight says which. pads are zero points (top, left, bottom,
right); lines have none above and below.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.layers._checks import require
from fp8np.layers._op import OPS, Spec, op
from fp8np.layers.fused import activated, check_pads, fused_shape


def linear_shape(
    x: Spec,
    x_scale: Spec,
    x_zero: Spec,
    weight: Spec,
    weight_scale: Spec,
    bias: Spec | None = None,
    residual: Spec | None = None,
    *,
    activation: Any,
    lo: Any,
    hi: Any,
) -> Spec:
    """As that of integer_linear"""
    inputs = x, x_scale, x_zero, weight, weight_scale, bias
    return fused_shape("fused_integer_linear", "integer_linear", inputs, residual, (activation, lo, hi), {})


def fused_integer_linear(
    x: Any,
    x_scale: Any,
    x_zero: Any,
    weight: Any,
    weight_scale: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    activation: str,
    lo: float,
    hi: float,
) -> Any:
    """y = activation(integer_linear(x, weight) + bias + residual)"""
    y = OPS["integer_linear"].define(x, x_scale, x_zero, weight, weight_scale, bias)
    return activated(y if residual is None else y + residual, activation, lo, hi)


def _product(weight: Any) -> str:
    return "integer_conv1d" if weight.ndim == 3 else "integer_conv2d"


def conv_shape(
    x: Spec,
    x_scale: Spec,
    x_zero: Spec,
    weight: Spec,
    weight_scale: Spec,
    bias: Spec | None = None,
    residual: Spec | None = None,
    *,
    pads: Any,
    activation: Any,
    lo: Any,
    hi: Any,
    **attrs: Any,
) -> Spec:
    """As that of integer_conv1d or integer_conv2d"""
    name = "fused_integer_conv"
    require(x.ndim == weight.ndim and x.ndim in (3, 4), name, "x (B, C, H, W) or (B, C, L) and as many axes of weight", x=x, weight=weight)
    lines = x.ndim == 4 or not isinstance(pads, tuple) or pads[::2] == (0, 0)
    check_pads(name, pads, lines, "four numbers of zeros, for lines none above and below")
    sizes = (*x.shape[:2], *(n + before + after for n, (before, after) in zip(x.shape[2:], _around(pads, x.ndim), strict=True)))
    inputs = Spec(sizes, x.dtype), x_scale, x_zero, weight, weight_scale, bias
    return fused_shape(name, _product(weight), inputs, residual, (activation, lo, hi), {**attrs, "padding": "valid"})


def _around(pads: tuple[int, int, int, int], ndim: int) -> tuple[tuple[int, int], ...]:
    top, left, bottom, right = pads
    return ((top, bottom), (left, right))[4 - ndim :]


def fused_integer_conv(
    x: Any,
    x_scale: Any,
    x_zero: Any,
    weight: Any,
    weight_scale: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    pads: tuple[int, int, int, int],
    activation: str,
    lo: float,
    hi: float,
    **attrs: Any,
) -> Any:
    """y = activation(integer convolution of x + bias + residual)"""
    padded = np.pad(x, ((0, 0), (0, 0), *_around(pads, x.ndim)), constant_values=x_zero)
    y = OPS[_product(weight)].define(padded, x_scale, x_zero, weight, weight_scale, bias, padding="valid", **attrs)
    return activated(y if residual is None else y + residual, activation, lo, hi)


_INPUTS = ("x", "x_scale", "x_zero", "weight", "weight_scale", "bias?", "residual?")
_ENDING = {"activation": "", "lo": float("-inf"), "hi": float("inf")}

op("fused_integer_linear", _INPUTS, shape=linear_shape, define=fused_integer_linear, attrs=_ENDING)
op(
    "fused_integer_conv",
    _INPUTS,
    shape=conv_shape,
    define=fused_integer_conv,
    attrs={"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, **_ENDING},
)
