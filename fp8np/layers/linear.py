"""linear: y = x @ weight^T + bias, over the last axis.

x (..., K), weight (N, K), bias (N,), y (..., N).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.codec import decode_table
from fp8np.errors import ShapeError
from fp8np.layers._op import Call, Foreign, Select, Spec, Step, is_fp8, op
from fp8np.scheme import PerChannel, PerTensor
from fp8np.tensor import QTensor


def shape(x: Spec, weight: Spec, bias: Spec | None = None) -> Spec:
    """(..., K), (N, K), (N,) -> (..., N)"""
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"linear: expected x (..., K) and weight (N, K), got {x} and {weight}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"linear: expected bias ({weight.shape[0]},), got {bias}")
    return Spec((*x.shape[:-1], weight.shape[0]))


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = x @ weight^T + bias"""
    y = x @ weight.T
    return y if bias is None else y + bias


def bind(call: Call, select: Select) -> Step | None:
    """FP8 x FP8 goes to the gemm kernel; anything else runs as defined."""
    weight = call.constants[1]
    if not isinstance(weight, QTensor) or not is_fp8(call.specs[0]):
        return None
    codes = call.prepare(1, "codes", lambda w: np.ascontiguousarray(w.codes))
    column_scale = call.prepare(1, "scale", lambda w: np.ascontiguousarray(w.scale.reshape(-1)))
    weight_table = decode_table(weight.format)

    def step(x: QTensor, _weight: QTensor, bias: Any = None) -> Any:
        rows = np.ascontiguousarray(x.codes).reshape(1, -1, x.shape[-1])
        out = np.zeros((1, rows.shape[1], codes.shape[0]), np.float32)
        select("gemm", x.format, weight.format)(
            rows,
            decode_table(x.format),
            codes[None],
            weight_table,
            x.scale.reshape(1),
            column_scale,
            np.empty(0, np.float32) if bias is None else bias,
            out,
        )
        return out.reshape(*x.shape[:-1], codes.shape[0])

    return step


op(
    "linear",
    ("x", "weight", "bias?"),
    shape=shape,
    define=linear,
    bind=bind,
    quantizable={"x": PerTensor(), "weight": PerChannel(0)},
    torch=(Foreign("aten.linear.default", ("x", "weight", "bias")),),
    onnx=("Gemm",),
)
