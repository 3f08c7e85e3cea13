"""integer_conv1d, integer_conv2d: conv1d and conv2d of integers. Padding is with the zero point, which means zero.

x uint8 (..., C, H, W) with x_scale () and x_zero (), weight int8 (O, C/G, kh, kw) with weight_scale () or (O, 1, 1, 1), bias (O,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fp8np.layers._integer import centered, require_activation, require_weight, scaled
from fp8np.layers._op import OPS, Spec, op


def _shape(name: str) -> Callable[..., Spec]:
    def shape(x: Spec, x_scale: Spec, x_zero: Spec, weight: Spec, weight_scale: Spec, bias: Spec | None = None, **attrs: Any) -> Spec:
        """As that of the op on floats"""
        own = f"integer_{name}"
        require_activation(own, "x", x, x_scale, x_zero)
        require_weight(own, weight, weight_scale, 0)
        y = OPS[name].shape(Spec(x.shape), Spec(weight.shape), bias, **attrs)
        assert isinstance(y, Spec)
        return y

    return shape


def _define(name: str) -> Callable[..., Any]:
    def define(x: Any, x_scale: Any, x_zero: Any, weight: Any, weight_scale: Any, bias: Any = None, **attrs: Any) -> Any:
        """y[o] = (sum over c of weight[o, c] correlated with x[c] - x_zero) * x_scale * weight_scale[o] + bias[o]"""
        sums = OPS[name].define(centered(x, x_zero), weight.astype(np.float64), **attrs)
        channels = (-1, *(1,) * (weight.ndim - 2))
        return scaled(sums, x_scale, weight_scale.reshape(channels), None if bias is None else bias.reshape(channels))

    return define


for _name, _axes in (("conv1d", 1), ("conv2d", 2)):
    op(
        f"integer_{_name}",
        ("x", "x_scale", "x_zero", "weight", "weight_scale", "bias?"),
        shape=_shape(_name),
        define=_define(_name),
        attrs={"stride": (1,) * _axes, "padding": (0,) * _axes, "dilation": (1,) * _axes, "groups": 1},
    )
