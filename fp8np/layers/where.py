"""Choices between elements: where, masked_fill and clamp."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.errors import GraphError, ShapeError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import broadcast
from fp8np.layers._types import Scalar, checked, promoted, together


def where_shape(condition: Spec, x: Spec | None = None, y: Spec | None = None, *, x_scalar: Scalar | None, y_scalar: Scalar | None) -> Spec:
    """Broadcasts all three"""
    checked("where", condition, kinds=("bool",))
    for name, tensor, number in (("x", x, x_scalar), ("y", y, y_scalar)):
        if (tensor is None) == (number is None):
            raise GraphError(f"where: expected one of {name} and {name}_scalar, got {tensor} and {number}")
    shape = broadcast("where", *(spec.shape for spec in (condition, x, y) if spec is not None))
    return Spec(shape, promoted("where", *(v for v in (x, x_scalar, y, y_scalar) if v is not None)))


@np.errstate(over="ignore")
def where(condition: Any, x: Any = None, y: Any = None, *, x_scalar: Any = None, y_scalar: Any = None) -> Any:
    """z = x where condition holds, else y; x_scalar and y_scalar are numbers in place of x and y"""
    x, y = together(x_scalar if x is None else x, y_scalar if y is None else y)
    return np.where(condition, x, y)


op(
    "where",
    ("condition", "x?", "y?"),
    shape=where_shape,
    define=where,
    attrs={"x_scalar": None, "y_scalar": None},
    torch=(
        Foreign("aten.where.self", ("condition", "x", "y")),
        Foreign("aten.where.ScalarOther", ("condition", "x", "y_scalar")),
        Foreign("aten.where.ScalarSelf", ("condition", "x_scalar", "y")),
        Foreign("aten.where.Scalar", ("condition", "x_scalar", "y_scalar")),
    ),
    onnx=("Where",),
)


def masked_fill_shape(x: Spec, mask: Spec, value: Spec | None = None, *, scalar: Scalar | None) -> Spec:
    """Broadcasts x and mask; the type is that of x"""
    checked("masked_fill", mask, kinds=("bool",))
    checked("masked_fill", x)
    if (value is None) == (scalar is None):
        raise GraphError(f"masked_fill: expected one of value and scalar, got {value} and {scalar}")
    if value is not None and value.shape != ():
        raise ShapeError(f"masked_fill: expected a value of shape (), got {value}")
    return Spec(broadcast("masked_fill", x.shape, mask.shape), x.dtype)


@np.errstate(over="ignore")
def masked_fill(x: Any, mask: Any, value: Any = None, *, scalar: Any = None) -> Any:
    """y = value (or the number scalar) where mask holds, else x"""
    fill = np.asarray(scalar if value is None else value)
    return np.where(mask, fill.astype(x.dtype), x)


op(
    "masked_fill",
    ("x", "mask", "value?"),
    shape=masked_fill_shape,
    define=masked_fill,
    attrs={"scalar": None},
    torch=(
        Foreign("aten.masked_fill.Scalar", ("x", "mask", "scalar")),
        Foreign("aten.masked_fill.Tensor", ("x", "mask", "value")),
    ),
)


def _bounds(*candidates: Any) -> list[Any]:
    return [value for value in candidates if value is not None]


def clamp_shape(x: Spec, lower: Spec | None = None, upper: Spec | None = None, *, min: Scalar | None, max: Scalar | None) -> Spec:
    """Broadcasts x with the bounds that are tensors"""
    if not _bounds(lower, min, upper, max) or None not in (lower, min) or None not in (upper, max):
        raise GraphError(f"clamp: expected a tensor or a number as bound, got {lower}, {min} and {upper}, {max}")
    shape = broadcast("clamp", x.shape, *(spec.shape for spec in (lower, upper) if spec is not None))
    return Spec(shape, promoted("clamp", x, *_bounds(lower, min, upper, max)))


@np.errstate(over="ignore")
def clamp(x: Any, lower: Any = None, upper: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """y = x, but at least lower (or the number min) and at most upper (or max); NaN stays"""
    low, high = (lower if min is None else min), (upper if max is None else max)
    x, *bounds = together(x, *_bounds(low, high))
    if low is not None:
        x = np.maximum(x, bounds[0])
    if high is not None:
        x = np.minimum(x, bounds[-1])
    return np.asarray(x)


op(
    "clamp",
    ("x", "lower?", "upper?"),
    shape=clamp_shape,
    define=clamp,
    attrs={"min": None, "max": None},
    torch=(
        *(Foreign(f"aten.{name}.default", ("x", "min", "max")) for name in ("clamp", "clip")),
        *(Foreign(f"aten.{name}.Tensor", ("x", "lower", "upper")) for name in ("clamp", "clip")),
        Foreign("aten.clamp_min.default", ("x", "min")),
        Foreign("aten.clamp_max.default", ("x", "max")),
    ),
    onnx=("Clip",),
)
