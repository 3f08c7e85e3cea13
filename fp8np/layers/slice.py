"""Parts of a tensor along one axis: slice, narrow, select, and split, chunk and unbind with several outputs.

Bounds that are symbolic, or numbers on a symbolic axis, are taken to lie within the axis: ``x[:, :5]`` of (B, T) is (B, 5).
A run in which they do not gives another shape than was declared.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from fp8np.dims import Dim, Size
from fp8np.errors import ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Shape, axis, text
from fp8np.layers._types import checked

_NO_END = 2**63 - 1  # what PyTorch writes for "to the end"
_MAX_PARTS = 1 << 16  # a graph read from a file may ask for more outputs than there is memory to list


def _with(x: Spec, where: int, *sizes: Size) -> Spec:
    return Spec((*x.shape[:where], *sizes, *x.shape[where + 1 :]), x.dtype)


def _limited(op: str, count: int) -> int:
    if count > _MAX_PARTS:
        raise ShapeError(f"{op}: expected at most {_MAX_PARTS} outputs, got {count}")
    return count


def _from_end(bound: Size) -> bool:
    """Whether a bound counts from the end: a negative number, or an expression of which nothing is positive."""
    return all(c < 0 for _, c in bound.terms) if isinstance(bound, Dim) else bound < 0


def _bound(bound: Size, size: Size) -> Size:
    if _from_end(bound):
        bound = size + bound
    if isinstance(bound, int) and isinstance(size, int):
        return min(max(bound, 0), size)
    return bound


def slice_shape(x: Spec, *, dim: int, start: Size | None, end: Size | None, step: Size) -> Spec:
    """(..., L, ...) -> (..., ceil((end - start) / step), ...)"""
    checked("slice", x)
    where = axis("slice", dim, x.ndim)
    if not isinstance(step, int) or step < 1:
        raise ShapeError(f"slice: expected a step > 0, got {step}")
    size = x.shape[where]
    first = _bound(0 if start is None else start, size)
    last = size if end is None or end == _NO_END else _bound(end, size)
    length = (last - first + step - 1) // step
    return _with(x, where, max(0, length) if isinstance(length, int) else length)


def slice_(x: Any, *, dim: int, start: int | None, end: int | None, step: int) -> Any:
    """y = x[start:end:step] along dim"""
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


op(
    "slice",
    ("x",),
    shape=slice_shape,
    define=slice_,
    attrs={"dim": 0, "start": None, "end": None, "step": 1},
    torch=(Foreign("aten.slice.Tensor", ("x", "dim", "start", "end", "step")),),
)


def narrow_shape(x: Spec, *, dim: int, start: Size, length: Size) -> Spec:
    """(..., L, ...) -> (..., length, ...)"""
    checked("narrow", x)
    where = axis("narrow", dim, x.ndim)
    size = x.shape[where]
    first = size + start if _from_end(start) else start
    if all(isinstance(n, int) for n in (size, first, length)) and not 0 <= first <= first + length <= size:  # type: ignore[operator]
        raise ShapeError(f"narrow: expected start and length within {size}, got {start} and {length}")
    return _with(x, where, length)


def narrow(x: Any, *, dim: int, start: int, length: int) -> Any:
    """y = x[start:start + length] along dim"""
    first = start % x.shape[dim] if start < 0 else start
    return slice_(x, dim=dim, start=first, end=first + length, step=1)


op(
    "narrow",
    ("x",),
    shape=narrow_shape,
    define=narrow,
    attrs={"dim": REQUIRED, "start": REQUIRED, "length": REQUIRED},
    torch=(Foreign("aten.narrow.default", ("x", "dim", "start", "length")),),
)


def select_shape(x: Spec, *, dim: int, index: Size) -> Spec:
    """(..., L, ...) -> (..., ...)"""
    checked("select", x)
    where = axis("select", dim, x.ndim)
    size = x.shape[where]
    if isinstance(size, int) and isinstance(index, int) and not -size <= index < size:
        raise ShapeError(f"select: expected an index of {size}, got {index}")
    return _with(x, where)


def select(x: Any, *, dim: int, index: int) -> Any:
    """y = x[index] along dim"""
    return np.asarray(x[(slice(None),) * (dim % x.ndim) + (index,)])


op(
    "select",
    ("x",),
    shape=select_shape,
    define=select,
    attrs={"dim": REQUIRED, "index": REQUIRED},
    torch=(Foreign("aten.select.int", ("x", "dim", "index")),),
)


def _part_sizes(size: Size, split_size: Size | Shape) -> Shape:
    """The sizes of the parts: given, or split_size each and what is left in the last."""
    if isinstance(split_size, tuple):
        total: Size = 0
        for part in split_size:
            total = total + part
        if total != size:
            raise ShapeError(f"split: expected parts that add up to {size}, got {text(split_size)}")
        return split_size
    if split_size == 0 or (isinstance(split_size, int) and split_size < 0):
        raise ShapeError(f"split: expected a positive split_size, got {split_size}")
    count = size // split_size
    rest = size - count * split_size
    if not isinstance(count, int) or not isinstance(rest, int):
        raise ShapeError(f"split: cannot tell how many parts of {split_size} an axis of {size} has")
    return (split_size,) * _limited("split", count) + ((rest,) if rest else ()) or (0,)


def _parts(x: Any, dim: int, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    edges = np.cumsum((0, *sizes)).tolist()
    return tuple(slice_(x, dim=dim, start=a, end=b, step=1) for a, b in itertools.pairwise(edges))


def split_shape(x: Spec, *, split_size: Size | Shape, dim: int) -> tuple[Spec, ...]:
    """(..., L, ...) -> parts of the sizes split_size, or of that size each and a smaller last one"""
    checked("split", x)
    where = axis("split", dim, x.ndim)
    return tuple(_with(x, where, size) for size in _part_sizes(x.shape[where], split_size))


def split(x: Any, *, split_size: int | tuple[int, ...], dim: int) -> tuple[Any, ...]:
    """y0, y1, ... = consecutive parts of x along dim"""
    sizes: Any = _part_sizes(x.shape[dim], split_size)
    return _parts(x, dim, sizes)


op(
    "split",
    ("x",),
    shape=split_shape,
    define=split,
    attrs={"split_size": REQUIRED, "dim": 0},
    torch=tuple(
        Foreign(f"aten.{name}", ("x", "split_size", "dim")) for name in ("split.Tensor", "split.sizes", "split_with_sizes.default")
    ),
)


def _chunk_sizes(size: Size, chunks: int) -> Shape:
    """`chunks` equal parts where that is known to be possible; else ceil(size / chunks) each, so there may be fewer."""
    if chunks < 1:
        raise ShapeError(f"chunk: expected at least one chunk, got {chunks}")
    _limited("chunk", chunks)
    if isinstance(size, int):
        return (0,) * chunks if size == 0 else _part_sizes(size, -(-size // chunks))
    if size // chunks * chunks != size:
        raise ShapeError(f"chunk: cannot tell how an axis of {size} falls into {chunks}")
    return (size // chunks,) * chunks


def chunk_shape(x: Spec, *, chunks: int, dim: int) -> tuple[Spec, ...]:
    """(..., 3*C, ...) -> three of (..., C, ...)"""
    checked("chunk", x)
    where = axis("chunk", dim, x.ndim)
    return tuple(_with(x, where, size) for size in _chunk_sizes(x.shape[where], chunks))


def chunk(x: Any, *, chunks: int, dim: int) -> tuple[Any, ...]:
    """y0, y1, ... = x cut along dim into as many parts, the last ones smaller or missing where it does not divide"""
    sizes: Any = _chunk_sizes(x.shape[dim], chunks)
    return _parts(x, dim, sizes)


op(
    "chunk",
    ("x",),
    shape=chunk_shape,
    define=chunk,
    attrs={"chunks": REQUIRED, "dim": 0},
    torch=(Foreign("aten.chunk.default", ("x", "chunks", "dim")),),
)


def unbind_shape(x: Spec, *, dim: int) -> tuple[Spec, ...]:
    """(..., 3, ...) -> three of (..., ...)"""
    checked("unbind", x)
    where = axis("unbind", dim, x.ndim)
    count = x.shape[where]
    if not isinstance(count, int):
        raise ShapeError(f"unbind: expected a fixed size on axis {where}, got {x}")
    return (_with(x, where),) * _limited("unbind", count)


def unbind(x: Any, *, dim: int) -> tuple[Any, ...]:
    """y0, y1, ... = x[0], x[1], ... along dim"""
    return tuple(np.asarray(part) for part in np.moveaxis(x, dim, 0))


op(
    "unbind",
    ("x",),
    shape=unbind_shape,
    define=unbind,
    attrs={"dim": 0},
    torch=(Foreign("aten.unbind.int", ("x", "dim")),),
)
