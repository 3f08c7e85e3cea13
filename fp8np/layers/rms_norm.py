"""rms_norm: y = x / sqrt(mean(x²) + eps) * weight, over the last len(normalized_shape) axes.

x (..., *normalized_shape), weight of normalized_shape, y like x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.layers._checks import require, require_floats, require_shape
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.scheme import PerTensor

_EPS = float(np.finfo(np.float32).eps)


def shape(x: Spec, weight: Spec | None = None, *, normalized_shape: tuple[Size, ...], eps: float) -> Spec:
    """(..., *normalized_shape) -> the same"""
    require_floats("rms_norm", x=x, weight=weight)
    n = len(normalized_shape)
    require(
        n > 0 and x.shape[-n:] == normalized_shape, "rms_norm", "x that ends in normalized_shape", x=x, normalized_shape=normalized_shape
    )
    require_shape("rms_norm", normalized_shape, weight=weight)
    return Spec(x.shape)


def rms_norm(x: Any, weight: Any = None, *, normalized_shape: tuple[int, ...], eps: float) -> Any:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axes"""
    axes = tuple(range(-len(normalized_shape), 0))
    y = x / np.sqrt(np.square(x).mean(axes, keepdims=True) + eps)
    return y if weight is None else y * weight


def _convert(args: dict[str, Any]) -> dict[str, Any]:
    # PyTorch takes the eps of x's type where none is given.
    return {**args, "eps": _EPS if args.get("eps") is None else args["eps"]}


op(
    "rms_norm",
    ("x", "weight?"),
    shape=shape,
    define=rms_norm,
    attrs={"normalized_shape": REQUIRED, "eps": _EPS},
    quantizable={"x": PerTensor()},
    torch=(Foreign("aten.rms_norm.default", ("x", "normalized_shape", "weight", "eps"), convert=_convert),),
    onnx=("RMSNormalization",),
)
