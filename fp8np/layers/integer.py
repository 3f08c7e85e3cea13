"""quantize_integer, integer_linear, integer_matmul: INT8 as the paper's baseline, in integers (see `fp8np.integers`).

    y = (sum over k of (x[m, k] - x_zero) * weight[n, k]) * x_scale * weight_scale[n] + bias[n]

The sum is an exact integer, as 32 bits hold it; it is rounded to float32 once, then comes each operation of the scaling.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.errors import DTypeError, ScaleError
from fp8np.integers import INT8, encode_activation, measured_parameters
from fp8np.layers._checks import require, require_floats, require_shape
from fp8np.layers._integer import centered, require_activation, require_weight, scaled
from fp8np.layers._op import REQUIRED, Spec, op
from fp8np.layers._shapes import broadcast


def quantize_shape(x: Spec, *, scale: float | None, zero_point: int | None) -> tuple[Spec, Spec, Spec]:
    """Any shape -> codes of the same shape, a scale (), a zero point ()"""
    if x.dtype != "float32":
        raise DTypeError(f"quantize_integer: expected float32, got {x}")
    if (scale is None) != (zero_point is None):
        raise ScaleError(f"quantize_integer: expected both scale and zero_point, or None for both; got {scale!r} and {zero_point!r}")
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < float("inf")):
        raise ScaleError(f"quantize_integer: expected a finite and positive scale, or None; got {scale!r}")
    if zero_point is not None and not (isinstance(zero_point, int) and 0 <= zero_point <= INT8.activation_max):
        raise ScaleError(f"quantize_integer: expected a zero_point in 0..{INT8.activation_max}, or None; got {zero_point!r}")
    return Spec(x.shape, "uint8"), Spec(()), Spec((), "int32")


def quantize_integer(x: Any, *, scale: float | None, zero_point: int | None) -> tuple[Any, Any, Any]:
    """codes = clip(rint(x / scale) + zero_point, 0, 255); without a scale, from the finite range of x"""
    if scale is None or zero_point is None:
        scale, zero_point = measured_parameters(x.astype(np.float32, copy=False))
    return encode_activation(x, scale, zero_point), np.array(scale, np.float32), np.array(zero_point, np.int32)


def linear_shape(x: Spec, x_scale: Spec, x_zero: Spec, weight: Spec, weight_scale: Spec, bias: Spec | None = None) -> Spec:
    """(..., K), (), (), (N, K), (N, 1), (N,) -> (..., N)"""
    name = "integer_linear"
    require_activation(name, "x", x, x_scale, x_zero)
    require_weight(name, weight, weight_scale, 0)
    fits = x.ndim > 0 and weight.ndim == 2 and x.shape[-1] == weight.shape[1]
    require(fits, name, "x (..., K) and weight (N, K)", x=x, weight=weight)
    require_floats(name, bias=bias)
    require_shape(name, weight.shape[:1], bias=bias)
    return Spec((*x.shape[:-1], weight.shape[0]))


def integer_linear(x: Any, x_scale: Any, x_zero: Any, weight: Any, weight_scale: Any, bias: Any = None) -> Any:
    """y = ((x - x_zero) @ weight^T) * x_scale * weight_scale + bias"""
    return scaled(centered(x, x_zero) @ weight.astype(np.float64).T, x_scale, weight_scale.reshape(-1), bias)


def _operand(name: str, codes: Spec, scale: Spec, zero: Spec | None, axis: int | None) -> None:
    # Computed, or a weight, which has no zero point.
    if zero is not None or codes.dtype != "int8":
        require_activation("integer_matmul", name, codes, scale, zero)
    elif axis is None or codes.ndim < 2:
        require_weight("integer_matmul", codes, scale, 0)
        require_shape("integer_matmul", (), **{f"{name}_scale": scale})
    else:
        require_weight("integer_matmul", codes, scale, axis)


def matmul_shape(
    a: Spec,
    a_scale: Spec,
    a_zero: Spec | None,
    b: Spec,
    b_scale: Spec,
    b_zero: Spec | None = None,
    c: Spec | None = None,
    *,
    beta: float,
    alpha: float,
) -> Spec:
    """(..., M, K), (..., K, N) -> (..., M, N), each with its scale and zero point, and c that broadcasts to it"""
    name = "integer_matmul"
    _operand("a", a, a_scale, a_zero, None)
    _operand("b", b, b_scale, b_zero, -1)
    inner = b.shape[-2:][0] if b.ndim else None
    require(a.ndim > 0 and a.shape[-1] == inner, name, "a (..., M, K) and b (..., K, N)", a=a, b=b)
    y = Spec((*broadcast(name, a.shape[:-2], b.shape[:-2]), *a.shape[:-1][-1:], *b.shape[-1:][: b.ndim - 1]))
    require_floats(name, c=c)
    require(c is None or broadcast(name, c.shape, y.shape) == y.shape, name, f"c that broadcasts to {y}", c=c)
    return y


def integer_matmul(
    a: Any,
    a_scale: Any,
    a_zero: Any,
    b: Any,
    b_scale: Any,
    b_zero: Any = None,
    c: Any = None,
    *,
    beta: float,
    alpha: float,
) -> Any:
    """y = beta * c + alpha * ((a - a_zero) @ (b - b_zero)) * a_scale * b_scale; a weight int8 has no zero point"""
    y = scaled(centered(a, a_zero) @ centered(b, b_zero), a_scale, b_scale.reshape(-1) if b_scale.ndim else b_scale, None)
    y = y if alpha == 1 else y * alpha
    # With beta 0, c is not read: a NaN in it does not count.
    return y if c is None or beta == 0 else y + (c if beta == 1 else c * beta)


op(
    "quantize_integer",
    ("x",),
    shape=quantize_shape,
    define=quantize_integer,
    attrs={"scale": REQUIRED, "zero_point": REQUIRED},
)
op("integer_linear", ("x", "x_scale", "x_zero", "weight", "weight_scale", "bias?"), shape=linear_shape, define=integer_linear)
op(
    "integer_matmul",
    ("a", "a_scale", "a_zero?", "b", "b_scale", "b_zero?", "c?"),
    shape=matmul_shape,
    define=integer_matmul,
    attrs={"beta": 1.0, "alpha": 1.0},
)
