"""Functions of one element, and of two that meet by broadcasting.

An operand of a two-operand op may be a number instead of a tensor: then its input is left out and the number is the attribute
``scalar``. So ``2 - y`` is ``sub(None, y, scalar=2)`` and ``x**2`` is ``pow(x, None, scalar=2)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fp8np.errors import DTypeError, GraphError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import broadcast
from fp8np.layers._types import Scalar, as_float, checked, promoted, together
from fp8np.scheme import Granularity, PerTensor

_INTEGRAL = ("bool", "uint8", "int32", "int64")
_SIGNED = ("int32", "int64", "float32")
_NUMBERS = ("uint8", "int32", "int64", "float32")


def _erf(x: Any) -> Any:
    from scipy.special import erf

    return erf(x)


def _unary(
    name: str, function: Callable[[Any], Any], formula: str, *, result: str | None = None, takes: tuple[str, ...] = _NUMBERS
) -> None:
    """A row. `result` is the type of y; None: that of x. A float32 result means: computed in floating point."""

    def shape(x: Spec) -> Spec:
        checked(name, x, kinds=takes)
        return Spec(x.shape, result or x.dtype)

    @np.errstate(all="ignore")
    def define(x: Any) -> Any:
        return np.asarray(function(as_float(x) if result == "float32" else x))

    define.__doc__ = formula
    op(name, ("x",), shape=shape, define=define, torch=(Foreign(f"aten.{name}.default", ("x",)),))


_unary("neg", np.negative, "y = -x", takes=_SIGNED)
_unary("abs", np.abs, "y = |x|")
_unary("sign", lambda x: (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype), "y = -1, 0 or 1; 0 for NaN")
_unary("square", np.square, "y = x^2")
_unary("floor", np.floor, "y = the next integer <= x")
_unary("ceil", np.ceil, "y = the next integer >= x")
_unary("trunc", np.trunc, "y = the next integer towards zero")
_unary("round", np.round, "y = the nearest integer, ties to even")
_unary("exp", np.exp, "y = e^x", result="float32")
_unary("exp2", np.exp2, "y = 2^x", result="float32")
_unary("expm1", np.expm1, "y = e^x - 1", result="float32")
_unary("log", np.log, "y = ln x", result="float32")
_unary("log2", np.log2, "y = log2 x", result="float32")
_unary("log1p", np.log1p, "y = ln(1 + x)", result="float32")
_unary("sqrt", np.sqrt, "y = sqrt(x)", result="float32")
_unary("rsqrt", lambda x: 1 / np.sqrt(x), "y = 1 / sqrt(x)", result="float32")
_unary("reciprocal", lambda x: 1 / x, "y = 1 / x", result="float32")
_unary("sin", np.sin, "y = sin x", result="float32")
_unary("cos", np.cos, "y = cos x", result="float32")
_unary("tan", np.tan, "y = tan x", result="float32")
_unary("atan", np.arctan, "y = arctan x", result="float32")
_unary("erf", _erf, "y = 2/sqrt(pi) * integral of e^(-t^2) from 0 to x", result="float32")
_unary("isnan", np.isnan, "y = whether x is NaN", result="bool")
_unary("isinf", np.isinf, "y = whether x is infinite", result="bool")
_unary("logical_not", np.logical_not, "y = x is zero", result="bool", takes=("bool", *_NUMBERS))
_unary("bitwise_not", np.invert, "y = x with every bit flipped", takes=_INTEGRAL)


def _operands(name: str, x: Any, y: Any, scalar: Scalar | None) -> tuple[Any, Any]:
    """x and y, one of them replaced by the number that stands for it."""
    if [x is None, y is None, scalar is None].count(True) != 1:
        raise GraphError(f"{name}: expected two of x, y and scalar, got x {x}, y {y}, scalar {scalar}")
    return (scalar if x is None else x), (scalar if y is None else y)


def _shape_of(name: str, x: Spec | None, y: Spec | None) -> Any:
    return broadcast(name, *(spec.shape for spec in (x, y) if spec is not None))


def _decoded(name: str, x: Spec | None, y: Spec | None, scalar: Scalar | None) -> tuple[Any, Any]:
    """The operands of an op that takes FP8, which is read as float32."""
    operands = _operands(name, x, y, scalar)
    return tuple(Spec(v.shape) if isinstance(v, Spec) and v.dtype.startswith("float") else v for v in operands)  # type: ignore[return-value]


_EITHER = {"x": PerTensor(), "y": PerTensor()}
"""FP8 operands of the paper's extended scheme (arXiv 2309.14592)."""


def _binary(
    name: str,
    function: Callable[[Any, Any], Any],
    formula: str,
    *,
    result: str | None = None,
    takes: tuple[str, ...] = ("bool", *_NUMBERS),
    torch: tuple[Foreign, ...] = (),
    quantizable: Mapping[str, Granularity] | None = None,
) -> None:
    """A row. The operands meet in their common type; `result` is the type of z, None: that type."""
    operands = _decoded if quantizable else _operands

    def shape(x: Spec | None, y: Spec | None = None, *, scalar: Scalar | None) -> Spec:
        common = promoted(name, *operands(name, x, y, scalar))
        if common not in takes:
            raise DTypeError(f"{name}: expected {' or '.join(takes)}, got {x} and {y}, scalar {scalar}")
        return Spec(_shape_of(name, x, y), result or common)

    @np.errstate(all="ignore")
    def define(x: Any, y: Any = None, *, scalar: Any = None) -> Any:
        return np.asarray(function(*together(*_operands(name, x, y, scalar))))

    define.__doc__ = formula
    op(name, ("x?", "y?"), shape=shape, define=define, attrs={"scalar": None}, torch=torch, quantizable=quantizable)


def _number_aside(args: dict[str, Any]) -> dict[str, Any]:
    """The `convert` of all: traced models hold numbers in place of tensors too, as in ``add.Tensor(x, 2)``."""
    return {"scalar" if name in ("x", "y") and not isinstance(value, str) else name: value for name, value in args.items()}


def _foreign(name: str, *args: str, **attrs: Any) -> Foreign:
    return Foreign(f"aten.{name}", args, attrs, _number_aside)


def _named(*names: str) -> tuple[Foreign, ...]:
    """Operators of two operands; the overload says which of them is a number."""
    forms = {"Scalar": ("x", "scalar"), "Tensor_Scalar": ("x", "scalar"), "Scalar_Tensor": ("scalar", "y")}
    return tuple(_foreign(name, *forms.get(name.split(".")[1], ("x", "y"))) for name in names)


def _tensor_and_scalar(*names: str) -> tuple[Foreign, ...]:
    return _named(*(f"{name}.{overload}" for name in names for overload in ("Tensor", "Scalar")))


_binary("mul", np.multiply, "z = x * y", torch=_tensor_and_scalar("mul"), quantizable=_EITHER)
_binary(
    "remainder",
    np.remainder,
    "z = x - y * floor(x / y)",
    takes=_NUMBERS,
    torch=_named("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor"),
)
_binary("atan2", np.arctan2, "z = the angle of the point (y, x)", takes=("float32",), torch=_named("atan2.default"))
_binary("minimum", np.minimum, "z = the smaller, NaN if either is", torch=_named("minimum.default", "min.other", "clamp_max.Tensor"))
_binary("maximum", np.maximum, "z = the larger, NaN if either is", torch=_named("maximum.default", "max.other", "clamp_min.Tensor"))
_binary("eq", np.equal, "z = x == y", result="bool", torch=_tensor_and_scalar("eq"))
_binary("ne", np.not_equal, "z = x != y", result="bool", torch=_tensor_and_scalar("ne"))
_binary("lt", np.less, "z = x < y", result="bool", torch=_tensor_and_scalar("lt"))
_binary("le", np.less_equal, "z = x <= y", result="bool", torch=_tensor_and_scalar("le"))
_binary("gt", np.greater, "z = x > y", result="bool", torch=_tensor_and_scalar("gt"))
_binary("ge", np.greater_equal, "z = x >= y", result="bool", torch=_tensor_and_scalar("ge"))
for _word in ("and", "or", "xor"):
    _binary(
        f"logical_{_word}",
        getattr(np, f"logical_{_word}"),
        f"z = x is not zero {_word} y is not zero",
        result="bool",
        torch=_named(f"logical_{_word}.default"),
    )
    _binary(
        f"bitwise_{_word}",
        getattr(np, f"bitwise_{_word}"),
        f"z = x {_word} y, bit by bit",
        takes=_INTEGRAL,
        torch=(*_tensor_and_scalar(f"bitwise_{_word}", f"__{_word}__"), *_named(f"bitwise_{_word}.Scalar_Tensor")),
    )


def _sum_shape(name: str, takes: tuple[str, ...]) -> Callable[..., Spec]:
    def shape(x: Spec | None, y: Spec | None = None, *, scalar: Scalar | None, alpha: Scalar) -> Spec:
        dtype = promoted(name, *_decoded(name, x, y, scalar))
        if dtype not in takes or (dtype != "float32" and isinstance(alpha, float)):
            raise DTypeError(f"{name}: expected {' or '.join(takes)}, got {x} and {y}, scalar {scalar}, alpha {alpha}")
        return Spec(_shape_of(name, x, y), dtype)

    return shape


@np.errstate(all="ignore")
def add(x: Any, y: Any = None, *, scalar: Any = None, alpha: Any = 1) -> Any:
    """z = x + alpha * y"""
    x, y = together(*_operands("add", x, y, scalar))
    return np.asarray(x + (y if alpha == 1 else y * np.asarray(alpha).astype(y.dtype)))


@np.errstate(all="ignore")
def sub(x: Any, y: Any = None, *, scalar: Any = None, alpha: Any = 1) -> Any:
    """z = x - alpha * y"""
    x, y = together(*_operands("sub", x, y, scalar))
    return np.asarray(x - (y if alpha == 1 else y * np.asarray(alpha).astype(y.dtype)))


_SUM_ATTRS = {"scalar": None, "alpha": 1}

op(
    "add",
    ("x?", "y?"),
    shape=_sum_shape("add", ("bool", *_NUMBERS)),
    define=add,
    attrs=_SUM_ATTRS,
    quantizable=_EITHER,
    torch=(_foreign("add.Tensor", "x", "y", "alpha"), _foreign("add.Scalar", "x", "scalar", "alpha")),
    onnx=("Add",),
)
op(
    "sub",
    ("x?", "y?"),
    shape=_sum_shape("sub", _NUMBERS),
    define=sub,
    attrs=_SUM_ATTRS,
    quantizable=_EITHER,
    torch=(
        _foreign("sub.Tensor", "x", "y", "alpha"),
        _foreign("sub.Scalar", "x", "scalar", "alpha"),
        # rsub(a, b) = b - alpha * a: its operands are ours in the other order.
        _foreign("rsub.Tensor", "y", "x", "alpha"),
        _foreign("rsub.Scalar", "y", "scalar", "alpha"),
    ),
    onnx=("Sub",),
)


def pow_shape(x: Spec | None, y: Spec | None = None, *, scalar: Scalar | None) -> Spec:
    """Broadcasts; a negative power of an integer is refused"""
    dtype = promoted("pow", *_operands("pow", x, y, scalar))
    if dtype == "bool" or (dtype != "float32" and y is None and isinstance(scalar, int) and scalar < 0):
        raise DTypeError(f"pow: expected numbers, and powers >= 0 of integers, got {x} and {y}, scalar {scalar}")
    return Spec(_shape_of("pow", x, y), dtype)


@np.errstate(all="ignore")
def pow_(x: Any, y: Any = None, *, scalar: Any = None) -> Any:
    """z = x^y"""
    x, y = together(*_operands("pow", x, y, scalar))
    return np.asarray(x**y)


op(
    "pow",
    ("x?", "y?"),
    shape=pow_shape,
    define=pow_,
    attrs={"scalar": None},
    torch=(*_named("pow.Tensor_Tensor", "pow.Tensor_Scalar"), _foreign("pow.Scalar", "scalar", "y")),
    onnx=("Pow",),
)


def div_shape(x: Spec | None, y: Spec | None = None, *, scalar: Scalar | None, rounding_mode: str | None) -> Spec:
    """Broadcasts; without a rounding mode the quotient of integers is float32"""
    if rounding_mode not in (None, "floor", "trunc"):
        raise GraphError(f"div: expected rounding_mode None, 'floor' or 'trunc', got {rounding_mode!r}")
    dtype = promoted("div", *_decoded("div", x, y, scalar))
    if rounding_mode is not None and dtype == "bool":
        raise DTypeError(f"div: expected numbers to round, got {x} and {y}, scalar {scalar}")
    return Spec(_shape_of("div", x, y), "float32" if rounding_mode is None else dtype)


@np.errstate(all="ignore")
def div(x: Any, y: Any = None, *, scalar: Any = None, rounding_mode: str | None = None) -> Any:
    """z = x / y, rounded down or towards zero if so asked"""
    pair = _operands("div", x, y, scalar)
    if rounding_mode is None:
        x, y = together(*(as_float(v) if isinstance(v, np.ndarray) else float(v) for v in pair))
        return np.asarray(x / y)
    x, y = together(*pair)
    if rounding_mode == "floor":
        return np.asarray(np.floor_divide(x, y))
    if x.dtype.kind == "f":
        return np.asarray(np.trunc(x / y))
    down = np.floor_divide(x, y)
    return np.asarray(down + ((down < 0) & (down * y != x)).astype(x.dtype))


op(
    "div",
    ("x?", "y?"),
    shape=div_shape,
    define=div,
    attrs={"scalar": None, "rounding_mode": None},
    quantizable=_EITHER,
    torch=(
        *_tensor_and_scalar("div", "true_divide"),
        _foreign("div.Tensor_mode", "x", "y", "rounding_mode"),
        _foreign("div.Scalar_mode", "x", "scalar", "rounding_mode"),
        _foreign("floor_divide.default", "x", "y", rounding_mode="floor"),
        _foreign("floor_divide.Scalar", "x", "scalar", rounding_mode="floor"),
    ),
    onnx=("Div",),
)
