"""group_norm: y = (x - mean) / sqrt(var + eps) * weight + bias; mean and var of each sample and group of channels.

x (B, C, ...), weight and bias (C,), y like x. instance_norm is the same with a group for each channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.layers._checks import require, require_floats, require_positive, require_shape
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.scheme import PerTensor


def _shape(name: str, x: Spec, weight: Spec | None, bias: Spec | None, num_groups: int) -> Spec:
    require_floats(name, x=x, weight=weight, bias=bias)
    require_positive(name, num_groups=(num_groups,))
    divides = x.ndim >= 2 and x.shape[1] // num_groups * num_groups == x.shape[1]
    require(divides, name, f"x (B, C, ...) with C a multiple of {num_groups}", x=x)
    require_shape(name, x.shape[1:2], weight=weight, bias=bias)
    return Spec(x.shape)


def shape(x: Spec, weight: Spec | None = None, bias: Spec | None = None, *, num_groups: int, eps: float) -> Spec:
    """(B, C, ...), (C,), (C,) -> (B, C, ...)"""
    return _shape("group_norm", x, weight, bias, num_groups)


def instance_shape(x: Spec, weight: Spec | None = None, bias: Spec | None = None, *, eps: float) -> Spec:
    """(B, C, ...), (C,), (C,) -> (B, C, ...)"""
    return _shape("instance_norm", x, weight, bias, 1)


def group_norm(x: Any, weight: Any = None, bias: Any = None, *, num_groups: int, eps: float) -> Any:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over each group of channels"""
    y = x.reshape(len(x), num_groups, -1)
    y = y - y.mean(2, keepdims=True)
    y /= np.sqrt(np.square(y).mean(2, keepdims=True) + eps)
    y = y.reshape(x.shape)
    channels = (-1, *(1,) * (x.ndim - 2))
    if weight is not None:
        y *= weight.reshape(channels)
    if bias is not None:
        y += bias.reshape(channels)
    return y


def instance_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over each channel of each sample"""
    return group_norm(x, weight, bias, num_groups=x.shape[1], eps=eps)


def _convert_instance(args: dict[str, Any]) -> dict[str, Any]:
    args = dict(args)
    if not args.pop("use_input_stats"):
        raise ValueError("instance_norm with running statistics is not supported; build it with track_running_stats=False")
    return args


op(
    "group_norm",
    ("x", "weight?", "bias?"),
    shape=shape,
    define=group_norm,
    attrs={"num_groups": REQUIRED, "eps": 1e-5},
    quantizable={"x": PerTensor()},
    torch=(Foreign("aten.group_norm.default", ("x", "num_groups", "weight", "bias", "eps")),),
    onnx=("GroupNormalization",),
)

op(
    "instance_norm",
    ("x", "weight?", "bias?"),
    shape=instance_shape,
    define=instance_norm,
    attrs={"eps": 1e-5},
    quantizable={"x": PerTensor()},
    torch=(
        Foreign("aten.instance_norm.default", ("x", "weight", "bias", "", "", "use_input_stats", "", "eps"), convert=_convert_instance),
    ),
    onnx=("InstanceNormalization",),
)
