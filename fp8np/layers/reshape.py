"""Other shapes for the same elements in the same order: reshape, flatten, unflatten, squeeze, unsqueeze."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.errors import GraphError, ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Dims, Shape, axes, axis, product, ratio, text
from fp8np.layers._types import checked


def _resolved(name: str, sizes: Shape, target: Shape) -> Shape:
    """The target with its -1 (at most one) replaced, if it holds as many elements as `sizes`."""
    known = tuple(size for size in target if size != -1)
    missing = ratio(sizes, known)
    holes = len(target) - len(known)
    if holes == 0 and (missing == 1 or product(sizes) == product(known)):
        return target
    if holes == 1 and missing is not None:
        return tuple(missing if size == -1 else size for size in target)
    raise ShapeError(f"{name}: expected as many elements as {text(sizes)} has, got {text(target)}")


def reshape_shape(x: Spec, like: Spec | None = None, *, shape: Shape | None) -> Spec:
    """(...) -> shape, or the shape of like; one size may be -1"""
    checked("reshape", x)
    if (like is None) == (shape is None):
        raise GraphError(f"reshape: expected one of like and shape, got {like} and {shape}")
    return Spec(_resolved("reshape", x.shape, like.shape if like is not None else tuple(shape or ())), x.dtype)


def reshape(x: Any, like: Any = None, *, shape: tuple[int, ...] | None = None) -> Any:
    """y = the elements of x, in order, in another shape"""
    return x.reshape(like.shape if shape is None else shape)


op(
    "reshape",
    ("x", "like?"),
    shape=reshape_shape,
    define=reshape,
    attrs={"shape": None},
    torch=(
        *(Foreign(f"aten.{name}.default", ("x", "shape")) for name in ("reshape", "view", "_unsafe_view")),
        *(Foreign(f"aten.{name}.default", ("x", "like")) for name in ("reshape_as", "view_as")),
    ),
    onnx=("Reshape",),
)


def _flattened(sizes: Shape, start_dim: int, end_dim: int) -> Shape:
    if not sizes:
        return (1,)
    start, end = axis("flatten", start_dim, len(sizes)), axis("flatten", end_dim, len(sizes))
    if start > end:
        raise ShapeError(f"flatten: expected start_dim <= end_dim, got {start_dim} and {end_dim} for {text(sizes)}")
    return (*sizes[:start], product(sizes[start : end + 1]), *sizes[end + 1 :])


def flatten_shape(x: Spec, *, start_dim: int, end_dim: int) -> Spec:
    """(B, C, H, W) -> (B, C*H*W) for start_dim 1"""
    checked("flatten", x)
    return Spec(_flattened(x.shape, start_dim, end_dim), x.dtype)


def flatten(x: Any, *, start_dim: int, end_dim: int) -> Any:
    """y = x with the axes start_dim to end_dim made one"""
    return x.reshape(_flattened(x.shape, start_dim, end_dim))


op(
    "flatten",
    ("x",),
    shape=flatten_shape,
    define=flatten,
    attrs={"start_dim": 0, "end_dim": -1},
    torch=(Foreign("aten.flatten.using_ints", ("x", "start_dim", "end_dim")),),
)


def _unflattened(sizes: Shape, dim: int, parts: Shape) -> Shape:
    where = axis("unflatten", dim, len(sizes))
    return (*sizes[:where], *_resolved("unflatten", sizes[where : where + 1], tuple(parts)), *sizes[where + 1 :])


def unflatten_shape(x: Spec, *, dim: int, sizes: Shape) -> Spec:
    """(B, M*N) -> (B, M, N) for dim 1 and sizes (M, N); one of them may be -1"""
    checked("unflatten", x)
    return Spec(_unflattened(x.shape, dim, sizes), x.dtype)


def unflatten(x: Any, *, dim: int, sizes: tuple[int, ...]) -> Any:
    """y = x with the axis dim made several"""
    return x.reshape(_unflattened(x.shape, dim, sizes))


op(
    "unflatten",
    ("x",),
    shape=unflatten_shape,
    define=unflatten,
    attrs={"dim": REQUIRED, "sizes": REQUIRED},
    torch=(Foreign("aten.unflatten.int", ("x", "dim", "sizes")),),
)


def squeeze_shape(x: Spec, *, dim: Dims) -> Spec:
    """(B, 1, C) -> (B, C)"""
    checked("squeeze", x)
    chosen = () if dim == () else axes("squeeze", dim, x.ndim)
    for i in chosen:
        if not isinstance(x.shape[i], int):
            # Dropping it only in runs where it is 1 would give outputs of two kinds.
            raise ShapeError(f"squeeze: axis {i} of {x} may or may not be 1; name the axes to drop")
    return Spec(tuple(size for i, size in enumerate(x.shape) if i not in chosen or size != 1), x.dtype)


def squeeze(x: Any, *, dim: Dims) -> Any:
    """y = x without those axes of dim (None: of all) that have size 1"""
    chosen = () if dim == () else axes("squeeze", dim, x.ndim)
    return np.squeeze(x, tuple(i for i in chosen if x.shape[i] == 1))


op(
    "squeeze",
    ("x",),
    shape=squeeze_shape,
    define=squeeze,
    attrs={"dim": None},
    torch=(
        Foreign("aten.squeeze.default", ("x",)),
        Foreign("aten.squeeze.dim", ("x", "dim")),
        Foreign("aten.squeeze.dims", ("x", "dim")),
    ),
)


def unsqueeze_shape(x: Spec, *, dim: int) -> Spec:
    """(B, C) -> (B, 1, C) for dim 1"""
    checked("unsqueeze", x)
    where = axis("unsqueeze", dim, x.ndim + 1)
    return Spec((*x.shape[:where], 1, *x.shape[where:]), x.dtype)


def unsqueeze(x: Any, *, dim: int) -> Any:
    """y = x with a new axis of size 1 at dim"""
    return np.expand_dims(x, dim)


op(
    "unsqueeze",
    ("x",),
    shape=unsqueeze_shape,
    define=unsqueeze,
    attrs={"dim": REQUIRED},
    torch=(Foreign("aten.unsqueeze.default", ("x", "dim")),),
)
