"""Reductions: many elements to one, over the axes ``dim`` (an axis, several, or None or () for all).

A reduced axis disappears, or with keepdim stays with size 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fp8np.errors import DTypeError, ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Dims, Shape, axes, axis
from fp8np.layers._types import as_float, as_type, checked, typed

_FLOAT = ("float32",)


def _reduced(name: str, x: Spec, dim: Dims, keepdim: bool) -> Shape:
    gone = axes(name, dim, x.ndim)
    if keepdim:
        return tuple(1 if i in gone else size for i, size in enumerate(x.shape))
    return tuple(size for i, size in enumerate(x.shape) if i not in gone)


def _nonempty(name: str, x: Spec, dim: Dims) -> None:
    if any(x.shape[i] == 0 for i in axes(name, dim, x.ndim)):
        raise ShapeError(f"{name}: expected at least one element to choose from, got {x}")


def _axis_of(dim: Dims) -> Dims:
    return None if dim == () else dim


def _row(
    name: str,
    function: Callable[..., Any],
    formula: str,
    *,
    result: str | None,
    torch: tuple[Foreign, ...],
    takes: tuple[str, ...] = ("bool", "uint8", "int32", "int64", "float32"),
    nonempty: bool = False,
) -> None:
    """A row without further attributes. `result` is the type of y; None: that of x."""

    def shape(x: Spec, *, dim: Dims, keepdim: bool) -> Spec:
        checked(name, x, kinds=takes)
        if nonempty:
            _nonempty(name, x, dim)
        return Spec(_reduced(name, x, dim, keepdim), result or x.dtype)

    @np.errstate(all="ignore")
    def define(x: Any, *, dim: Dims, keepdim: bool) -> Any:
        return np.asarray(function(x, axis=_axis_of(dim), keepdims=keepdim))

    define.__doc__ = formula
    op(name, ("x",), shape=shape, define=define, attrs={"dim": None, "keepdim": False}, torch=torch)


def _overloads(name: str) -> tuple[Foreign, ...]:
    return (
        Foreign(f"aten.{name}.default", ("x",)),
        Foreign(f"aten.{name}.dim", ("x", "dim", "keepdim")),
        Foreign(f"aten.{name}.dims", ("x", "dim", "keepdim")),
    )


def _logsumexp(x: Any, **over: Any) -> Any:
    # Shifted by the largest element, so that no exponential overflows; an infinite shift would make Inf - Inf.
    top = np.max(x, initial=-np.inf, **{**over, "keepdims": True})
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    total = np.log(np.sum(np.exp(x - top), **over))
    return total + top.reshape(total.shape)


for _word, _function, _formula in (("max", np.max, "y = the largest"), ("min", np.min, "y = the smallest")):
    _row(
        f"a{_word}",
        _function,
        _formula,
        result=None,
        nonempty=True,
        torch=(Foreign(f"aten.a{_word}.default", ("x", "dim", "keepdim")), Foreign(f"aten.{_word}.default", ("x",))),
    )
_row("any", np.any, "y = whether one is not zero", result="bool", torch=_overloads("any"))
_row("all", np.all, "y = whether none is zero", result="bool", torch=_overloads("all"))
_row(
    "logsumexp",
    _logsumexp,
    "y = ln(sum of e^x)",
    result=None,
    takes=_FLOAT,
    torch=(Foreign("aten.logsumexp.default", ("x", "dim", "keepdim")),),
)


def _sum_type(name: str, x: Spec, dtype: str | None) -> str:
    """Sums and products of integers are int64 unless a type is asked for."""
    checked(name, x)
    return dtype or ("float32" if x.dtype == "float32" else "int64")


def _sum(name: str, function: Callable[..., Any], formula: str, torch: tuple[Foreign, ...]) -> None:
    def shape(x: Spec, *, dim: Dims, keepdim: bool, dtype: str | None) -> Spec:
        return Spec(_reduced(name, x, dim, keepdim), _sum_type(name, x, dtype))

    @np.errstate(all="ignore")
    def define(x: Any, *, dim: Dims, keepdim: bool, dtype: str | None) -> Any:
        x = as_type(x, dtype or ("float32" if x.dtype.kind == "f" else "int64"))
        return np.asarray(function(x, axis=_axis_of(dim), keepdims=keepdim, dtype=x.dtype))

    define.__doc__ = formula
    op(name, ("x",), shape=shape, define=define, attrs={"dim": None, "keepdim": False, "dtype": None}, torch=torch)


_BY_DIM = ("x", "dim", "keepdim", "dtype")

_sum(
    "sum",
    np.sum,
    "y = the sum",
    (Foreign("aten.sum.default", ("x", "dtype"), convert=typed), Foreign("aten.sum.dim_IntList", _BY_DIM, convert=typed)),
)
_sum(
    "prod",
    np.prod,
    "y = the product",
    (Foreign("aten.prod.default", ("x", "dtype"), convert=typed), Foreign("aten.prod.dim_int", _BY_DIM, convert=typed)),
)


def mean_shape(x: Spec, *, dim: Dims, keepdim: bool, dtype: str | None) -> Spec:
    """The reduced shape, float32"""
    checked("mean", x)
    if (dtype or x.dtype) != "float32":
        raise DTypeError(f"mean: expected float32, or dtype='float32', got {x} and dtype {dtype}")
    return Spec(_reduced("mean", x, dim, keepdim))


def _mean(x: Any, dim: Dims, keepdim: bool) -> Any:
    # Not np.mean, which warns where there is nothing to average; 0 / 0 = NaN says the same.
    total = np.asarray(np.sum(x, axis=_axis_of(dim), keepdims=keepdim))
    return total / np.asarray(_count(x, dim), x.dtype)


def _count(x: Any, dim: Dims) -> int:
    return math.prod(x.shape[i] for i in axes("", dim, x.ndim))


@np.errstate(all="ignore")
def mean(x: Any, *, dim: Dims, keepdim: bool, dtype: str | None) -> Any:
    """y = the sum / the number of elements"""
    return np.asarray(_mean(as_float(x), dim, keepdim))


op(
    "mean",
    ("x",),
    shape=mean_shape,
    define=mean,
    attrs={"dim": None, "keepdim": False, "dtype": None},
    torch=(Foreign("aten.mean.default", ("x", "dtype"), convert=typed), Foreign("aten.mean.dim", _BY_DIM, convert=typed)),
    onnx=("ReduceMean",),
)


def _spread(name: str, formula: str, root: bool, with_mean: bool) -> None:
    def shape(x: Spec, *, dim: Dims, correction: float, keepdim: bool) -> Spec | tuple[Spec, Spec]:
        checked(name, x, kinds=_FLOAT)
        y = Spec(_reduced(name, x, dim, keepdim))
        return (y, y) if with_mean else y

    @np.errstate(all="ignore")
    def define(x: Any, *, dim: Dims, correction: float, keepdim: bool) -> Any:
        centre = _mean(x, dim, True)
        squares = np.asarray(np.sum(np.square(x - centre), axis=_axis_of(dim), keepdims=keepdim))
        y = squares / np.asarray(max(0, _count(x, dim) - correction), x.dtype)
        y = np.asarray(np.sqrt(y) if root else y)
        return (y, centre.reshape(y.shape)) if with_mean else y

    define.__doc__ = formula

    def unbiased(args: dict[str, Any]) -> dict[str, Any]:
        return {**args, "correction": int(args.get("correction", True))}

    def default(args: dict[str, Any]) -> dict[str, Any]:
        return {**args, "correction": 1 if args.get("correction") is None else args["correction"]}

    op(
        name,
        ("x",),
        shape=shape,
        define=define,
        attrs={"dim": None, "correction": 1, "keepdim": False},
        torch=(
            Foreign(f"aten.{name}.default", ("x", "correction"), convert=unbiased),
            Foreign(f"aten.{name}.dim", ("x", "dim", "correction", "keepdim"), convert=unbiased),
            Foreign(f"aten.{name}.correction", ("x", "dim", "correction", "keepdim"), convert=default),
        ),
    )


_spread("var", "y = sum of (x - mean)^2 / (N - correction)", False, False)
_spread("std", "y = sqrt(sum of (x - mean)^2 / (N - correction))", True, False)
_spread("var_mean", "y = sum of (x - mean)^2 / (N - correction), and the mean", False, True)
_spread("std_mean", "y = sqrt(sum of (x - mean)^2 / (N - correction)), and the mean", True, True)


def norm_shape(x: Spec, *, ord: float, dim: Dims, keepdim: bool) -> Spec:
    """The reduced shape"""
    checked("linalg_vector_norm", x, kinds=_FLOAT)
    if ord < 0 or math.isinf(ord):
        _nonempty("linalg_vector_norm", x, dim)
    return Spec(_reduced("linalg_vector_norm", x, dim, keepdim))


@np.errstate(all="ignore")
def linalg_vector_norm(x: Any, *, ord: float, dim: Dims, keepdim: bool) -> Any:
    """y = (sum of |x|^ord)^(1/ord); the largest for Inf, the smallest for -Inf, the number of non-zeros for 0"""
    size = np.abs(x)
    over: dict[str, Any] = {"axis": _axis_of(dim), "keepdims": keepdim}
    if math.isinf(ord):
        return np.asarray((np.max if ord > 0 else np.min)(size, **over))
    if ord == 0:
        return np.asarray(np.sum((size != 0).astype(x.dtype), **over))
    if ord == 2:
        return np.asarray(np.sqrt(np.sum(np.square(size), **over)))
    return np.asarray(np.sum(size**ord, **over) ** (1 / ord))


def _no_dtype(args: dict[str, Any]) -> dict[str, Any]:
    args = typed(args)
    if args.pop("dtype") not in (None, "float32"):
        raise ValueError("a norm in another type than float32")
    return {**args, "ord": 2.0 if args.get("ord") is None else args["ord"]}


op(
    "linalg_vector_norm",
    ("x",),
    shape=norm_shape,
    define=linalg_vector_norm,
    attrs={"ord": 2.0, "dim": None, "keepdim": False},
    torch=(
        Foreign("aten.linalg_vector_norm.default", ("x", "ord", "dim", "keepdim", "dtype"), convert=_no_dtype),
        Foreign("aten.norm.Scalar", ("x", "ord")),
        Foreign("aten.norm.ScalarOpt_dim", ("x", "ord", "dim", "keepdim"), convert=_no_dtype),
    ),
)


def _extreme(word: str, choose: Callable[..., Any], formula: str) -> None:
    name = f"{word}_dim"

    def shape(x: Spec, *, dim: int, keepdim: bool) -> tuple[Spec, Spec]:
        checked(name, x)
        _nonempty(name, x, dim)
        y = _reduced(name, x, dim, keepdim)
        return Spec(y, x.dtype), Spec(y, "int64")

    def define(x: Any, *, dim: int, keepdim: bool) -> tuple[Any, Any]:
        where = choose(x, axis=dim, keepdims=True)
        values = np.take_along_axis(x, where, dim)
        return (values, where) if keepdim else (values.squeeze(dim), where.squeeze(dim))

    define.__doc__ = formula
    torch = (Foreign(f"aten.{word}.dim", ("x", "dim", "keepdim")),)
    op(name, ("x",), shape=shape, define=define, attrs={"dim": REQUIRED, "keepdim": False}, torch=torch)


_extreme("max", np.argmax, "y = the largest along dim, and its first index")
_extreme("min", np.argmin, "y = the smallest along dim, and its first index")


def _position(name: str, choose: Callable[..., Any], formula: str) -> None:
    def shape(x: Spec, *, dim: int | None, keepdim: bool) -> Spec:
        checked(name, x)
        _nonempty(name, x, dim)
        return Spec(_reduced(name, x, dim, keepdim), "int64")

    def define(x: Any, *, dim: int | None, keepdim: bool) -> Any:
        return np.asarray(choose(x, axis=dim, keepdims=keepdim))

    define.__doc__ = formula
    torch = (Foreign(f"aten.{name}.default", ("x", "dim", "keepdim")),)
    op(name, ("x",), shape=shape, define=define, attrs={"dim": None, "keepdim": False}, torch=torch)


_position("argmax", np.argmax, "y = the first index of the largest, in the flattened x where dim is None")
_position("argmin", np.argmin, "y = the first index of the smallest, in the flattened x where dim is None")


def _running(name: str, function: Callable[..., Any], formula: str) -> None:
    def shape(x: Spec, *, dim: int, dtype: str | None) -> Spec:
        axis(name, dim, x.ndim)
        return Spec(x.shape, _sum_type(name, x, dtype))

    @np.errstate(all="ignore")
    def define(x: Any, *, dim: int, dtype: str | None) -> Any:
        x = as_type(x, dtype or ("float32" if x.dtype.kind == "f" else "int64"))
        return function(x, axis=dim, dtype=x.dtype)

    define.__doc__ = formula
    torch = (Foreign(f"aten.{name}.default", ("x", "dim", "dtype"), convert=typed),)
    op(name, ("x",), shape=shape, define=define, attrs={"dim": REQUIRED, "dtype": None}, torch=torch)


_running("cumsum", np.cumsum, "y[i] = x[0] + ... + x[i] along dim")
_running("cumprod", np.cumprod, "y[i] = x[0] * ... * x[i] along dim")
