"""batch_norm, as at inference: y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, per channel (axis 1).

x (B, C, ...), running_mean, running_var, weight, bias (C,), y like x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.layers._checks import require, require_floats, require_shape
from fp8np.layers._op import Foreign, Spec, op
from fp8np.scheme import PerTensor


def shape(x: Spec, running_mean: Spec, running_var: Spec, weight: Spec | None = None, bias: Spec | None = None, *, eps: float) -> Spec:
    """(B, C, ...), four times (C,) -> (B, C, ...)"""
    parameters = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    require_floats("batch_norm", x=x, **parameters)
    require(x.ndim >= 2, "batch_norm", "x (B, C, ...)", x=x)
    require_shape("batch_norm", x.shape[1:2], **parameters)
    return Spec(x.shape)


def batch_norm(x: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    """y = (x - running_mean) / sqrt(running_var + eps) * weight + bias"""
    factor = 1 / np.sqrt(running_var + eps)
    if weight is not None:
        factor = factor * weight
    offset = -running_mean * factor if bias is None else bias - running_mean * factor
    channels = (-1, *(1,) * (x.ndim - 2))
    return x * factor.reshape(channels) + offset.reshape(channels)


def _convert(args: dict[str, Any]) -> dict[str, Any]:
    args = dict(args)
    if args.pop("training"):
        raise ValueError("batch_norm is in training mode; call model.eval() before export")
    if args["running_mean"] is None:
        raise ValueError("batch_norm without running statistics uses those of the batch; there is no op for it")
    return args


op(
    "batch_norm",
    ("x", "running_mean", "running_var", "weight?", "bias?"),
    shape=shape,
    define=batch_norm,
    attrs={"eps": 1e-5},
    quantizable={"x": PerTensor()},
    torch=(
        Foreign(
            "aten.batch_norm.default",
            ("x", "weight", "bias", "running_mean", "running_var", "training", "", "eps"),
            convert=_convert,
        ),
        Foreign("aten._native_batch_norm_legit_no_training.default", ("x", "weight", "bias", "running_mean", "running_var", "", "eps")),
    ),
    onnx=("BatchNormalization",),
)
