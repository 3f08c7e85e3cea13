"""The same elements more than once: expand, repeat, repeat_interleave, meshgrid."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.dims import Dim, Size
from fp8np.errors import GraphError, ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Shape, axis, broadcast, product, text
from fp8np.layers._types import checked


def _expanded(sizes: Shape, target: Shape) -> Shape:
    new = len(target) - len(sizes)
    if new < 0 or -1 in target[:new]:
        raise ShapeError(f"expand: expected a size for each new axis of {text(sizes)}, got {text(target)}")
    wanted = (*target[:new], *(old if size == -1 else size for size, old in zip(target[new:], sizes, strict=True)))
    if broadcast("expand", sizes, wanted) != wanted:
        raise ShapeError(f"expand: {text(sizes)} does not expand to {text(target)}")
    return wanted


def expand_shape(x: Spec, like: Spec | None = None, *, size: Shape | None) -> Spec:
    """(T, 1) -> (B, T, C) for size (B, -1, C), where -1 keeps; or the shape of like"""
    checked("expand", x)
    if (like is None) == (size is None):
        raise GraphError(f"expand: expected one of like and size, got {like} and {size}")
    return Spec(_expanded(x.shape, like.shape if like is not None else tuple(size or ())), x.dtype)


def expand(x: Any, like: Any = None, *, size: tuple[int, ...] | None = None) -> Any:
    """y = x repeated along its axes of size 1 and along new leading axes"""
    shape: Any = _expanded(x.shape, like.shape if size is None else size)
    return np.broadcast_to(x, shape)


op(
    "expand",
    ("x", "like?"),
    shape=expand_shape,
    define=expand,
    attrs={"size": None},
    torch=(
        *(Foreign(f"aten.{name}.default", ("x", "size")) for name in ("expand", "broadcast_to")),
        Foreign("aten.expand_as.default", ("x", "like")),
    ),
    onnx=("Expand",),
)


def repeat_shape(x: Spec, *, repeats: Shape) -> Spec:
    """(T, C) -> (B, 2*T, C) for repeats (B, 2, 1)"""
    checked("repeat", x)
    if not all(isinstance(n, Dim) or (isinstance(n, int) and n >= 0) for n in repeats):
        raise ShapeError(f"repeat: expected numbers >= 0, got {text(repeats)}")
    ndim = max(x.ndim, len(repeats))
    sizes = (1,) * (ndim - x.ndim) + x.shape
    times = (1,) * (ndim - len(repeats)) + tuple(repeats)
    return Spec(tuple(size * n for size, n in zip(sizes, times, strict=True)), x.dtype)


def repeat(x: Any, *, repeats: tuple[int, ...]) -> Any:
    """y = repeats[i] copies of x one after the other along each axis i, counted from the last"""
    return np.tile(x, repeats)


op(
    "repeat",
    ("x",),
    shape=repeat_shape,
    define=repeat,
    attrs={"repeats": REQUIRED},
    torch=tuple(Foreign(f"aten.{name}.default", ("x", "repeats")) for name in ("repeat", "tile")),
    onnx=("Tile",),
)


def repeat_interleave_shape(x: Spec, *, repeats: Size, dim: int | None) -> Spec:
    """(B, T) -> (B, 2*T) for repeats 2 and dim 1; dim None flattens first"""
    checked("repeat_interleave", x)
    if not (isinstance(repeats, Dim) or (isinstance(repeats, int) and repeats >= 0)):
        raise ShapeError(f"repeat_interleave: expected repeats >= 0, got {repeats}")
    if dim is None:
        return Spec((product(x.shape) * repeats,), x.dtype)
    where = axis("repeat_interleave", dim, x.ndim)
    return Spec((*x.shape[:where], x.shape[where] * repeats, *x.shape[where + 1 :]), x.dtype)


def repeat_interleave(x: Any, *, repeats: int, dim: int | None) -> Any:
    """y = each element of x repeats times in a row along dim"""
    return np.repeat(x, repeats, dim)


op(
    "repeat_interleave",
    ("x",),
    shape=repeat_interleave_shape,
    define=repeat_interleave,
    attrs={"repeats": REQUIRED, "dim": None},
    torch=(Foreign("aten.repeat_interleave.self_int", ("x", "repeats", "dim")),),
)


def meshgrid_shape(*xs: Spec, indexing: str) -> tuple[Spec, ...]:
    """(M,), (N,) -> twice (M, N), or (N, M) for indexing 'xy'"""
    checked("meshgrid", *xs)
    if not xs or any(x.ndim > 1 for x in xs):
        raise ShapeError(f"meshgrid: expected tensors with one axis, got {' and '.join(map(str, xs)) or 'none'}")
    if indexing not in ("ij", "xy"):
        raise GraphError(f"meshgrid: expected indexing 'ij' or 'xy', got {indexing!r}")
    sizes = [product(x.shape) for x in xs]
    if indexing == "xy":
        sizes[:2] = sizes[1::-1]
    return tuple(Spec(tuple(sizes), x.dtype) for x in xs)


def meshgrid(*xs: Any, indexing: str) -> tuple[Any, ...]:
    """y0, y1, ... = the coordinates of a grid: x0 along the first axis, x1 along the second, ...; 'xy' exchanges these two"""
    return tuple(np.meshgrid(*xs, indexing=indexing))  # type: ignore[call-overload]


op(
    "meshgrid",
    ("xs*",),
    shape=meshgrid_shape,
    define=meshgrid,
    attrs={"indexing": "ij"},
    torch=(Foreign("aten.meshgrid.default", ("xs",)), Foreign("aten.meshgrid.indexing", ("xs", "indexing"))),
)
