"""linear: y = x @ weight^T + bias, over the last axis.

x (..., K), weight (N, K), bias (N,), y (..., N).
"""

from __future__ import annotations

from typing import Any

from fp8np.errors import ShapeError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.scheme import PerChannel, PerTensor


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


op(
    "linear",
    ("x", "weight", "bias?"),
    shape=shape,
    define=linear,
    quantizable={"x": PerTensor(), "weight": PerChannel(0)},
    torch=(Foreign("aten.linear.default", ("x", "weight", "bias")),),
    onnx=("Gemm",),
)
