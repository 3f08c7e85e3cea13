"""Tensors made from sizes and numbers alone: full (zeros, ones, ...), arange, fill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fp8np.dims import Dim
from fp8np.errors import GraphError, ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Shape, text
from fp8np.layers._types import Scalar, as_type, checked, number_type, typed


def full_shape(like: Spec | None = None, *, shape: Shape | None, fill_value: Scalar, dtype: str | None) -> Spec:
    """() -> shape, or the shape of like; the type is dtype, or that of like, or that of fill_value"""
    if shape is not None and any(isinstance(size, int) and size < 0 for size in shape):
        raise ShapeError(f"full: expected sizes >= 0, got {text(shape)}")
    if like is not None:
        checked("full", like)
    elif shape is None:
        raise GraphError("full: expected a shape or a tensor to be like, got neither")
    sizes = like.shape if like is not None and shape is None else shape or ()
    return Spec(sizes, dtype or (like.dtype if like is not None else number_type(fill_value)))


def full(like: Any = None, *, shape: tuple[int, ...] | None, fill_value: Any, dtype: str | None) -> Any:
    """y = fill_value everywhere"""
    floating = dtype == "float32" and like is not None and like.dtype.kind == "f"
    chosen = like.dtype if like is not None and (dtype is None or floating) else dtype or number_type(fill_value)
    with np.errstate(over="ignore"):
        return np.full(like.shape if shape is None else shape, np.asarray(fill_value).astype(chosen))


def _sized(fill: float | bool) -> Any:
    """The `convert` of zeros, ones and empty, which are float32 unless a type is asked for."""

    def convert(args: dict[str, Any]) -> dict[str, Any]:
        args = typed(args)
        return {**args, "dtype": args["dtype"] or "float32", "fill_value": fill}

    return convert


def _named(values: Mapping[str, float]) -> tuple[Foreign, ...]:
    found = []
    for name, value in values.items():
        overload = "memory_format" if name == "empty" else "default"
        found += [
            Foreign(f"aten.{name}.{overload}", ("shape", "dtype"), convert=_sized(value)),
            Foreign(f"aten.{name}_like.default", ("like", "dtype"), {"fill_value": value}, typed),
            Foreign(f"aten.new_{name}.default", ("like", "shape", "dtype"), {"fill_value": value}, typed),
        ]
    return tuple(found)


op(
    "full",
    ("like?",),
    shape=full_shape,
    define=full,
    attrs={"shape": None, "fill_value": REQUIRED, "dtype": None},
    torch=(
        # What empty holds is anything; zeros are as good.
        *_named({"zeros": 0, "ones": 1, "empty": 0}),
        Foreign("aten.full.default", ("shape", "fill_value", "dtype"), convert=typed),
        Foreign("aten.full_like.default", ("like", "fill_value", "dtype"), convert=typed),
        Foreign("aten.new_full.default", ("like", "shape", "fill_value", "dtype"), convert=typed),
        Foreign("aten.fill.Scalar", ("like", "fill_value")),
        Foreign("aten.zero.default", ("like",), {"fill_value": 0}),
        Foreign("aten.scalar_tensor.default", ("fill_value", "dtype"), {"shape": ()}, typed),
    ),
)


def fill_shape(x: Spec, value: Spec) -> Spec:
    """(...), () -> (...)"""
    checked("fill", x, value)
    if value.shape != ():
        raise ShapeError(f"fill: expected a value of shape (), got {value}")
    return x


def fill(x: Any, value: Any) -> Any:
    """y = value everywhere, in the shape and type of x"""
    return np.broadcast_to(as_type(value, x.dtype.name), x.shape)


op("fill", ("x", "value"), shape=fill_shape, define=fill, torch=(Foreign("aten.fill.Tensor", ("x", "value")),))


def _arange_type(start: Scalar, end: Scalar, step: Scalar, dtype: str | None) -> str:
    return dtype or ("float32" if any(isinstance(v, float) for v in (start, end, step)) else "int64")


def arange_shape(*, start: Scalar, end: Scalar, step: Scalar, dtype: str | None) -> Spec:
    """() -> (ceil((end - start) / step),)"""
    if step == 0:
        raise ShapeError("arange: expected a step other than 0")
    if isinstance(start, float) or isinstance(end, float) or isinstance(step, float):
        if any(isinstance(value, Dim) for value in (start, end, step)):
            raise ShapeError(f"arange: expected whole numbers with a symbolic size, got {start}, {end}, {step}")
        length: Any = math.ceil((end - start) / step)  # type: ignore[operator]
    else:
        length = -((start - end) // step)
    if isinstance(length, int) and length < 0:
        raise ShapeError(f"arange: expected to reach {end} from {start} in steps of {step}")
    return Spec((length,), _arange_type(start, end, step, dtype))


def arange(*, start: Any, end: Any, step: Any, dtype: str | None) -> Any:
    """y = start, start + step, ... as long as it is before end"""
    return np.arange(start, end, step).astype(_arange_type(start, end, step, dtype))


op(
    "arange",
    (),
    shape=arange_shape,
    define=arange,
    attrs={"start": 0, "end": REQUIRED, "step": 1, "dtype": None},
    torch=(
        Foreign("aten.arange.default", ("end", "dtype"), convert=typed),
        Foreign("aten.arange.start", ("start", "end", "dtype"), convert=typed),
        Foreign("aten.arange.start_step", ("start", "end", "step", "dtype"), convert=typed),
    ),
    onnx=("Range",),
)
