"""Several tensors as one: concat along an axis, stack along a new one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.errors import ShapeError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import axis, text
from fp8np.layers._types import promoted, together


def concat_shape(*xs: Spec, dim: int) -> Spec:
    """(B, T1, C), (B, T2, C) -> (B, T1 + T2, C) for dim 1"""
    if not xs:
        raise ShapeError("concat: expected at least one tensor")
    where = axis("concat", dim, xs[0].ndim)
    length: Size = 0
    for x in xs:
        if x.ndim != xs[0].ndim or any(x.shape[i] != size for i, size in enumerate(xs[0].shape) if i != where):
            raise ShapeError(f"concat: expected the same sizes except on axis {where}, got {' and '.join(text(x.shape) for x in xs)}")
        length = length + x.shape[where]
    return Spec((*xs[0].shape[:where], length, *xs[0].shape[where + 1 :]), promoted("concat", *xs))


def concat(*xs: Any, dim: int) -> Any:
    """y = the tensors one after the other along dim"""
    return np.concatenate(together(*xs), dim)


op(
    "concat",
    ("xs*",),
    shape=concat_shape,
    define=concat,
    attrs={"dim": 0},
    torch=tuple(Foreign(f"aten.{name}.default", ("xs", "dim")) for name in ("cat", "concat", "concatenate")),
    onnx=("Concat",),
)


def stack_shape(*xs: Spec, dim: int) -> Spec:
    """n of (B, C) -> (B, n, C) for dim 1"""
    if not xs or any(x.shape != xs[0].shape for x in xs):
        raise ShapeError(f"stack: expected tensors of one shape, got {' and '.join(text(x.shape) for x in xs) or 'none'}")
    where = axis("stack", dim, xs[0].ndim + 1)
    return Spec((*xs[0].shape[:where], len(xs), *xs[0].shape[where:]), promoted("stack", *xs))


def stack(*xs: Any, dim: int) -> Any:
    """y[i] = the i-th tensor, along the new axis dim"""
    return np.stack(together(*xs), dim)


op(
    "stack",
    ("xs*",),
    shape=stack_shape,
    define=stack,
    attrs={"dim": 0},
    torch=(Foreign("aten.stack.default", ("xs", "dim")),),
)
