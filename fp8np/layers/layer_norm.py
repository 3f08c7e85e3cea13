"""layer_norm: y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last len(normalized_shape) axes.

x (..., *normalized_shape), weight and bias of normalized_shape, y like x; var divides by the number of elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.layers._checks import require, require_floats, require_shape
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.scheme import PerTensor


def shape(x: Spec, weight: Spec | None = None, bias: Spec | None = None, *, normalized_shape: tuple[Size, ...], eps: float) -> Spec:
    """(..., *normalized_shape) -> the same"""
    require_floats("layer_norm", x=x, weight=weight, bias=bias)
    n = len(normalized_shape)
    require(
        n > 0 and x.shape[-n:] == normalized_shape, "layer_norm", "x that ends in normalized_shape", x=x, normalized_shape=normalized_shape
    )
    require_shape("layer_norm", normalized_shape, weight=weight, bias=bias)
    return Spec(x.shape)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, normalized_shape: tuple[int, ...], eps: float) -> Any:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last axes"""
    axes = tuple(range(-len(normalized_shape), 0))
    y = x - x.mean(axes, keepdims=True)
    y /= np.sqrt(np.square(y).mean(axes, keepdims=True) + eps)
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y


op(
    "layer_norm",
    ("x", "weight?", "bias?"),
    shape=shape,
    define=layer_norm,
    attrs={"normalized_shape": REQUIRED, "eps": 1e-5},
    quantizable={"x": PerTensor()},
    torch=(Foreign("aten.layer_norm.default", ("x", "normalized_shape", "weight", "bias", "eps")),),
    onnx=("LayerNormalization",),
)
