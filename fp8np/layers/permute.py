"""The same elements in another order of axes, or in another order along an axis: permute, transpose, movedim, flip, roll."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.errors import ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import axes, axis
from fp8np.layers._types import checked


def permute_shape(x: Spec, *, dims: tuple[int, ...]) -> Spec:
    """Axis i of y is axis dims[i] of x"""
    checked("permute", x)
    order = axes("permute", dims, x.ndim)
    if len(dims) != x.ndim:
        raise ShapeError(f"permute: expected each of {x.ndim} axes, got {dims}")
    return Spec(tuple(x.shape[i] for i in order), x.dtype)


def permute(x: Any, *, dims: tuple[int, ...]) -> Any:
    """y = x with its axes in the order dims"""
    return np.transpose(x, dims)


op(
    "permute",
    ("x",),
    shape=permute_shape,
    define=permute,
    attrs={"dims": REQUIRED},
    torch=(Foreign("aten.permute.default", ("x", "dims")),),
    onnx=("Transpose",),
)


def transpose_shape(x: Spec, *, dim0: int, dim1: int) -> Spec:
    """(..., M, N) -> (..., N, M) for -2 and -1"""
    checked("transpose", x)
    sizes, i, j = list(x.shape), axis("transpose", dim0, x.ndim), axis("transpose", dim1, x.ndim)
    sizes[i], sizes[j] = sizes[j], sizes[i]
    return Spec(tuple(sizes), x.dtype)


def transpose(x: Any, *, dim0: int, dim1: int) -> Any:
    """y = x with two axes exchanged"""
    return np.swapaxes(x, dim0, dim1)


op(
    "transpose",
    ("x",),
    shape=transpose_shape,
    define=transpose,
    attrs={"dim0": REQUIRED, "dim1": REQUIRED},
    torch=(
        *(Foreign(f"aten.{name}", ("x", "dim0", "dim1")) for name in ("transpose.int", "swapaxes.default", "swapdims.default")),
        *(Foreign(f"aten.{name}.default", ("x",), {"dim0": -2, "dim1": -1}) for name in ("t", "mT")),
    ),
)


def movedim_shape(x: Spec, *, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Spec:
    """(A, B, C) -> (B, C, A) for source 0 and destination -1"""
    checked("movedim", x)
    origin, target = axes("movedim", source, x.ndim), axes("movedim", destination, x.ndim)
    if len(origin) != len(target):
        raise ShapeError(f"movedim: expected as many sources as destinations, got {source} and {destination}")
    order = [i for i in range(x.ndim) if i not in origin]
    for to, i in sorted(zip(target, origin, strict=True)):
        order.insert(to, i)
    return Spec(tuple(x.shape[i] for i in order), x.dtype)


def movedim(x: Any, *, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Any:
    """y = x with the axes source moved to the places destination, the others in order"""
    return np.moveaxis(x, source, destination)


op(
    "movedim",
    ("x",),
    shape=movedim_shape,
    define=movedim,
    attrs={"source": REQUIRED, "destination": REQUIRED},
    torch=tuple(Foreign(f"aten.movedim.{form}", ("x", "source", "destination")) for form in ("int", "intlist")),
)


def flip_shape(x: Spec, *, dims: tuple[int, ...]) -> Spec:
    """Any shape -> the same"""
    checked("flip", x)
    axes("flip", dims, x.ndim)
    return x


def flip(x: Any, *, dims: tuple[int, ...]) -> Any:
    """y = x with the order along dims reversed"""
    return np.flip(x, dims)


op(
    "flip",
    ("x",),
    shape=flip_shape,
    define=flip,
    attrs={"dims": REQUIRED},
    torch=(Foreign("aten.flip.default", ("x", "dims")),),
)


def roll_shape(x: Spec, *, shifts: Size | tuple[Size, ...], dims: int | tuple[int, ...]) -> Spec:
    """Any shape -> the same"""
    checked("roll", x)
    if dims != ():
        axes("roll", dims, x.ndim)
    moves, along = (len(v) if isinstance(v, tuple) else 1 for v in (shifts, dims))
    if moves != along and not (along == 0 and moves == 1):
        raise ShapeError(f"roll: expected a shift for each of dims, got {shifts} and {dims}")
    return x


def roll(x: Any, *, shifts: int | tuple[int, ...], dims: int | tuple[int, ...]) -> Any:
    """y[i] = x[i - shift], around the ends; over the flattened x where dims is ()"""
    return np.roll(x, shifts, None if dims == () else dims)


op(
    "roll",
    ("x",),
    shape=roll_shape,
    define=roll,
    attrs={"shifts": REQUIRED, "dims": ()},
    torch=(Foreign("aten.roll.default", ("x", "shifts", "dims")),),
)
