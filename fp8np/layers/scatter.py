"""A tensor with some of its elements replaced: what ``x[:, 1:3] = y`` in a model becomes once nothing is changed in place.

slice_scatter and select_scatter replace a part along one axis, index_put elements at computed places, copy all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.errors import ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Shape, broadcast
from fp8np.layers._types import checked
from fp8np.layers.slice import select_shape, slice_shape


def _fits(name: str, src: Spec, part: Shape, x: Spec) -> Spec:
    checked(name, x, src)
    if broadcast(name, src.shape, part) != part:
        raise ShapeError(f"{name}: expected a source for {Spec(part, x.dtype)}, got {src}")
    return x


@np.errstate(invalid="ignore")
def _replaced(x: Any, where: Any, src: Any) -> Any:
    y = x.copy()
    y[where] = src.astype(x.dtype)
    return y


def slice_scatter_shape(x: Spec, src: Spec, *, dim: int, start: Size | None, end: Size | None, step: Size) -> Spec:
    """(..., L, ...), its part (..., n, ...) -> (..., L, ...)"""
    return _fits("slice_scatter", src, slice_shape(x, dim=dim, start=start, end=end, step=step).shape, x)


def slice_scatter(x: Any, src: Any, *, dim: int, start: int | None, end: int | None, step: int) -> Any:
    """y = x, but src in y[start:end:step] along dim"""
    return _replaced(x, (slice(None),) * (dim % x.ndim) + (slice(start, end, step),), src)


op(
    "slice_scatter",
    ("x", "src"),
    shape=slice_scatter_shape,
    define=slice_scatter,
    attrs={"dim": 0, "start": None, "end": None, "step": 1},
    torch=(Foreign("aten.slice_scatter.default", ("x", "src", "dim", "start", "end", "step")),),
)


def select_scatter_shape(x: Spec, src: Spec, *, dim: int, index: Size) -> Spec:
    """(..., L, ...), its part (..., ...) -> (..., L, ...)"""
    return _fits("select_scatter", src, select_shape(x, dim=dim, index=index).shape, x)


def select_scatter(x: Any, src: Any, *, dim: int, index: int) -> Any:
    """y = x, but src in y[index] along dim"""
    return _replaced(x, (slice(None),) * (dim % x.ndim) + (index,), src)


op(
    "select_scatter",
    ("x", "src"),
    shape=select_scatter_shape,
    define=select_scatter,
    attrs={"dim": REQUIRED, "index": REQUIRED},
    torch=(Foreign("aten.select_scatter.default", ("x", "src", "dim", "index")),),
)


def copy_shape(x: Spec, src: Spec) -> Spec:
    """(B, C), something that expands to it -> (B, C)"""
    return _fits("copy", src, x.shape, x)


def copy(x: Any, src: Any) -> Any:
    """y = src, in the shape and type of x"""
    return _replaced(x, ..., src)


op("copy", ("x", "src"), shape=copy_shape, define=copy, torch=(Foreign("aten.copy.default", ("x", "src")),))


def index_put_shape(x: Spec, values: Spec, *indices: Spec | None, accumulate: bool) -> Spec:
    """Any shape -> the same; values expand to what the indices select, for a mask to one value"""
    checked("index_put", x, values)
    given = [index for index in indices if index is not None]
    checked("index_put", *given, kinds=("bool", "int32", "int64"))
    masks = [index for index in given if index.dtype == "bool"]
    if masks and (len(indices) > 1 or values.shape != ()):
        raise ShapeError(f"index_put: expected one mask and a value of shape (), got {len(indices)} indices and {values}")
    if sum(index.ndim if index in masks else 1 for index in given) > x.ndim:
        raise ShapeError(f"index_put: expected at most {x.ndim} indices, got {', '.join(map(str, given))}")
    return x


def index_put(x: Any, values: Any, *indices: Any, accumulate: bool) -> Any:
    """y = x, but values in (or with accumulate: added to) y[i0, i1, ...], where None takes the whole axis"""
    where: Any = tuple(slice(None) if index is None else index for index in indices)
    if not accumulate:
        return _replaced(x, where, values)
    y = x.copy()
    np.add.at(y, where, values.astype(x.dtype))
    return y


op(
    "index_put",
    ("x", "values", "indices*"),
    shape=index_put_shape,
    define=index_put,
    attrs={"accumulate": False},
    torch=tuple(Foreign(f"aten.{name}.default", ("x", "indices", "values", "accumulate")) for name in ("index_put", "_unsafe_index_put")),
)
