"""Activations: functions of one floating-point element, and the two that are almost that (prelu, glu)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fp8np.errors import GraphError, ShapeError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import axis
from fp8np.layers._types import checked

_FLOAT = ("float32",)


def _same(name: str) -> Callable[..., Spec]:
    def shape(x: Spec, **attrs: Any) -> Spec:
        checked(name, x, kinds=_FLOAT)
        return x

    return shape


def _row(define: Callable[..., Any], torch: tuple[Foreign, ...], attrs: dict[str, Any] | None = None, onnx: tuple[str, ...] = ()) -> None:
    # Inf - Inf and 0 * Inf are NaN by the formula, and the tails may overflow or underflow on the way to the right value.
    quiet = np.errstate(all="ignore")(define)
    name = define.__name__
    op(name, ("x",), shape=_same(name), define=quiet, attrs=attrs, torch=torch, onnx=onnx)


def _expit(x: Any) -> Any:
    from scipy.special import expit

    return np.asarray(expit(x))


def _softplus(x: Any) -> Any:
    """ln(1 + e^x) without overflow; np.logaddexp(0, x) is the same at a seventh of the speed."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def relu(x: Any) -> Any:
    """y = max(x, 0)"""
    return np.asarray(np.maximum(x, 0))


def relu6(x: Any) -> Any:
    """y = min(max(x, 0), 6)"""
    return np.asarray(np.clip(x, 0, 6))


def leaky_relu(x: Any, *, negative_slope: float) -> Any:
    """y = x, times negative_slope where x < 0"""
    return np.where(x > 0, x, x * negative_slope)


def hardtanh(x: Any, *, min_val: float, max_val: float) -> Any:
    """y = min(max(x, min_val), max_val)"""
    return np.asarray(np.clip(x, min_val, max_val))


def hardsigmoid(x: Any) -> Any:
    """y = min(max(x + 3, 0), 6) / 6"""
    return np.asarray(np.clip(x + 3, 0, 6) / 6)


def hardswish(x: Any) -> Any:
    """y = x * min(max(x + 3, 0), 6) / 6"""
    return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


def sigmoid(x: Any) -> Any:
    """y = 1 / (1 + e^-x)"""
    return _expit(x)


def log_sigmoid(x: Any) -> Any:
    """y = -ln(1 + e^-x)"""
    return np.asarray(-_softplus(-x))


def tanh(x: Any) -> Any:
    """y = (e^x - e^-x) / (e^x + e^-x)"""
    return np.asarray(np.tanh(x))


def silu(x: Any) -> Any:
    """y = x / (1 + e^-x)"""
    return np.asarray(x * _expit(x))


def gelu(x: Any, *, approximate: str) -> Any:
    """y = x * Phi(x), Phi the normal distribution function, or its approximation by tanh"""
    if approximate == "tanh":
        # 0.5 * (1 + tanh(u)), which has no correct digit left below x = -5 in float32, is sigmoid(2 u).
        return np.asarray(x * _expit(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x)))
    from scipy.special import ndtr

    # Likewise not 0.5 * (1 + erf(x / sqrt(2))).
    return np.asarray(x * ndtr(x))


def elu(x: Any, *, alpha: float, scale: float, input_scale: float) -> Any:
    """y = scale * x where x > 0, else scale * alpha * (e^(input_scale * x) - 1)"""
    return np.where(x > 0, scale * x, scale * alpha * np.expm1(input_scale * x))


def softplus(x: Any, *, beta: float, threshold: float) -> Any:
    """y = ln(1 + e^(beta * x)) / beta, and x where beta * x > threshold"""
    return np.where(beta * x > threshold, x, _softplus(beta * x) / beta)


def mish(x: Any) -> Any:
    """y = x * tanh(ln(1 + e^x))"""
    return np.asarray(x * np.tanh(_softplus(x)))


def _plain(define: Callable[..., Any], onnx: tuple[str, ...] = ()) -> None:
    _row(define, (Foreign(f"aten.{define.__name__}.default", ("x",)),), onnx=onnx)


_plain(relu, ("Relu",))
_plain(relu6)
_plain(hardsigmoid)
_plain(hardswish, ("HardSwish",))
_plain(sigmoid, ("Sigmoid",))
_plain(log_sigmoid)
_plain(tanh, ("Tanh",))
_plain(silu)
_plain(mish, ("Mish",))
_row(leaky_relu, (Foreign("aten.leaky_relu.default", ("x", "negative_slope")),), {"negative_slope": 0.01}, ("LeakyRelu",))
_row(hardtanh, (Foreign("aten.hardtanh.default", ("x", "min_val", "max_val")),), {"min_val": -1.0, "max_val": 1.0})
_row(softplus, (Foreign("aten.softplus.default", ("x", "beta", "threshold")),), {"beta": 1.0, "threshold": 20.0})


def gelu_shape(x: Spec, *, approximate: str) -> Spec:
    """Any shape -> the same"""
    checked("gelu", x, kinds=_FLOAT)
    if approximate not in ("none", "tanh"):
        raise GraphError(f"gelu: expected approximate 'none' or 'tanh', got {approximate!r}")
    return x


op(
    "gelu",
    ("x",),
    shape=gelu_shape,
    define=np.errstate(all="ignore")(gelu),
    attrs={"approximate": "none"},
    torch=(Foreign("aten.gelu.default", ("x", "approximate")),),
    onnx=("Gelu",),
)


def _celu(args: dict[str, Any]) -> dict[str, Any]:
    """celu(x) = max(x, 0) + min(alpha * (e^(x / alpha) - 1), 0)"""
    return {**args, "input_scale": 1 / args.get("alpha", 1.0)}


# The constants of arXiv 1706.02515, section 2: they keep mean 0 and variance 1 fixed.
_SELU = {"alpha": 1.6732632423543772848170429916717, "scale": 1.0507009873554804934193349852946}

_row(
    elu,
    (
        Foreign("aten.elu.default", ("x", "alpha", "scale", "input_scale")),
        Foreign("aten.selu.default", ("x",), _SELU),
        Foreign("aten.celu.default", ("x", "alpha"), convert=_celu),
    ),
    {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0},
    ("Elu",),
)


def prelu_shape(x: Spec, weight: Spec) -> Spec:
    """(B, C, ...), (C,) or (1,) -> (B, C, ...)"""
    checked("prelu", x, weight, kinds=_FLOAT)
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.shape not in ((), (1,), (channels,)):
        raise ShapeError(f"prelu: expected weight (1,) or ({channels},), got {weight} for x {x}")
    return x


@np.errstate(invalid="ignore", over="ignore")
def prelu(x: Any, weight: Any) -> Any:
    """y = x, times weight where x < 0; weight per channel (axis 1) or one for all"""
    slope = weight.reshape(-1, *(1,) * (x.ndim - 2)) if weight.size > 1 else weight.reshape(())
    return np.where(x > 0, x, x * slope)


op(
    "prelu",
    ("x", "weight"),
    shape=prelu_shape,
    define=prelu,
    torch=(Foreign("aten.prelu.default", ("x", "weight")),),
    onnx=("PRelu",),
)


def glu_shape(x: Spec, *, dim: int) -> Spec:
    """(..., 2 C, ...) -> (..., C, ...)"""
    checked("glu", x, kinds=_FLOAT)
    where = axis("glu", dim, x.ndim)
    half = x.shape[where] // 2
    if half * 2 != x.shape[where]:
        raise ShapeError(f"glu: expected an even size on axis {where}, got {x}")
    return Spec((*x.shape[:where], half, *x.shape[where + 1 :]))


@np.errstate(invalid="ignore")
def glu(x: Any, *, dim: int) -> Any:
    """y = a * sigmoid(b), a and b the halves of x along dim"""
    a, b = np.split(x, 2, axis=dim)
    return a * _expit(b)


op("glu", ("x",), shape=glu_shape, define=glu, attrs={"dim": -1}, torch=(Foreign("aten.glu.default", ("x", "dim")),))
