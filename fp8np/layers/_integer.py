"""What the ops on integers share: operands without their zero point, exact sums, and the one rounding on the way out."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.errors import DTypeError
from fp8np.layers._checks import require, require_shape
from fp8np.layers._op import Spec

__all__ = ["centered", "require_activation", "require_weight", "scaled"]


def require_activation(op: str, name: str, codes: Spec, scale: Spec, zero: Spec | None) -> None:
    """Raises DTypeError or ShapeError unless these are what `quantize_integer` gives."""
    if codes.dtype != "uint8" or scale.dtype != "float32" or zero is None or zero.dtype != "int32":
        raise DTypeError(f"{op}: expected {name} uint8 with a scale float32 and a zero point int32; got {codes}, {scale} and {zero}")
    require_shape(op, (), **{f"{name}_scale": scale, f"{name}_zero": zero})


def require_weight(op: str, weight: Spec, scale: Spec, axis: int) -> None:
    """Raises DTypeError or ShapeError unless a weight is int8, with one scale () or one for each index of an axis, other axes 1."""
    if weight.dtype != "int8" or scale.dtype != "float32":
        raise DTypeError(f"{op}: expected a weight int8 with scales float32; got {weight} and {scale}")
    each = tuple(n if i == axis % weight.ndim else 1 for i, n in enumerate(weight.shape)) if weight.ndim else ()
    require(scale.shape in ((), each), op, f"one scale, or scales {each}", weight=weight, scale=scale)


def centered(codes: Any, zero: Any) -> Any:
    """code - zero point, as float64: sums of products of such integers are exact below 2^53, which no memory holds enough of."""
    return codes.astype(np.float64) if zero is None else codes.astype(np.float64) - np.float64(zero)


def scaled(sums: Any, x_scale: Any, weight_scale: Any, bias: Any) -> Any:
    """(sums * x_scale) * weight_scale + bias in the precision of x_scale, to which the integers are rounded first."""
    y = sums.astype(x_scale.dtype) * x_scale * weight_scale
    return y if bias is None else y + bias
