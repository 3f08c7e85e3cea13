"""Elements at computed places: gather, index_select and index. Indices count from 0; negative ones from the end."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.errors import ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Shape, axis, broadcast, product
from fp8np.layers._types import checked, checked_index


def gather_shape(x: Spec, index: Spec, *, dim: int) -> Spec:
    """(..., L, ...), (..., n, ...) -> (..., n, ...); index may be shorter than x on the other axes too"""
    checked("gather", x)
    checked_index("gather", index)
    where = axis("gather", dim, x.ndim)
    if index.ndim != x.ndim:
        raise ShapeError(f"gather: expected as many axes in index as in x, got {index} and {x}")
    for i, (n, size) in enumerate(zip(index.shape, x.shape, strict=True)):
        if i != where and n != size and not (isinstance(n, int) and isinstance(size, int) and n < size):
            raise ShapeError(f"gather: expected index to be no longer than x on axis {i}, got {index} and {x}")
    return Spec(index.shape, x.dtype)


def gather(x: Any, index: Any, *, dim: int) -> Any:
    """y[i, j, k] = x[i, index[i, j, k], k] for dim 1"""
    reach = tuple(slice(None) if i == dim % x.ndim else slice(n) for i, n in enumerate(index.shape))
    return np.take_along_axis(x[reach], index, dim)


op(
    "gather",
    ("x", "index"),
    shape=gather_shape,
    define=gather,
    attrs={"dim": REQUIRED},
    torch=(Foreign("aten.gather.default", ("x", "dim", "index")),),
    onnx=("GatherElements",),
)


def index_select_shape(x: Spec, index: Spec, *, dim: int) -> Spec:
    """(..., L, ...), (n,) -> (..., n, ...)"""
    checked("index_select", x)
    checked_index("index_select", index)
    where = axis("index_select", dim, x.ndim)
    if index.ndim > 1:
        raise ShapeError(f"index_select: expected an index with one axis, got {index}")
    return Spec((*x.shape[:where], product(index.shape), *x.shape[where + 1 :]), x.dtype)


def index_select(x: Any, index: Any, *, dim: int) -> Any:
    """y = x[index] along dim"""
    return np.take(x, index.reshape(-1), dim)


op(
    "index_select",
    ("x", "index"),
    shape=index_select_shape,
    define=index_select,
    attrs={"dim": REQUIRED},
    torch=(Foreign("aten.index_select.default", ("x", "dim", "index")),),
)


def _index_result(sizes: Shape, shapes: list[Shape | None]) -> Shape:
    """NumPy's rule: the broadcast indices stand where they stood if they are neighbours, else in front."""
    places = [i for i, shape in enumerate(shapes) if shape is not None]
    whole = [size for i, size in enumerate(sizes) if i not in places]
    if not places:
        return sizes
    common = broadcast("index", *(shape for shape in shapes if shape is not None))
    first = places[0] if places[-1] - places[0] == len(places) - 1 else 0
    return (*whole[:first], *common, *whole[first:])


def index_shape(x: Spec, *indices: Spec | None) -> Spec:
    """(A, B, C), None, (n, 1), (m,) -> (A, n, m)"""
    checked("index", x)
    if len(indices) > x.ndim:
        raise ShapeError(f"index: expected at most {x.ndim} indices, got {len(indices)}")
    for index in indices:
        # A mask selects as many elements as are true: a shape that depends on the data.
        if index is not None:
            checked_index("index", index)
    return Spec(_index_result(x.shape, [None if index is None else index.shape for index in indices]), x.dtype)


def index(x: Any, *indices: Any) -> Any:
    """y = x[i0, i1, ...], where None takes the whole axis"""
    return np.asarray(x[tuple(slice(None) if i is None else i for i in indices)])


op(
    "index",
    ("x", "indices*"),
    shape=index_shape,
    define=index,
    torch=(Foreign("aten.index.Tensor", ("x", "indices")),),
)
