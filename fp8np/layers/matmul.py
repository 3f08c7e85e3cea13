"""matmul: y = a @ b, with NumPy's broadcasting of the leading axes. a (..., M, K), b (..., K, N), y (..., M, N).

addmm: y = beta * c + alpha * (a @ b), c broadcast to y. A vector a (K,) or b (K,) loses its axis in y, as in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp8np.formats import get_format
from fp8np.graph import Constant
from fp8np.layers._checks import require, require_floats
from fp8np.layers._op import Call, Foreign, Select, Spec, Step, is_fp8, op
from fp8np.layers._product import multiply, right_operand
from fp8np.layers._shapes import broadcast
from fp8np.scheme import PerChannel, PerTensor
from fp8np.tensor import QTensor


def _product_shape(name: str, a: Spec, b: Spec) -> Spec:
    require_floats(name, a=a, b=b)
    inner = b.shape[-2:][0] if b.ndim else None
    require(a.ndim > 0 and a.shape[-1] == inner, name, "a (..., M, K) and b (..., K, N)", a=a, b=b)
    leading = broadcast(name, a.shape[:-2], b.shape[:-2])
    return Spec((*leading, *a.shape[:-1][-1:], *b.shape[-1:][: b.ndim - 1]))


def shape(a: Spec, b: Spec) -> Spec:
    """(..., M, K), (..., K, N) -> (..., M, N)"""
    return _product_shape("matmul", a, b)


def addmm_shape(c: Spec, a: Spec, b: Spec, *, beta: float, alpha: float) -> Spec:
    """(..., N), (..., M, K), (..., K, N) -> (..., M, N)"""
    y = _product_shape("addmm", a, b)
    require_floats("addmm", c=c)
    require(broadcast("addmm", c.shape, y.shape) == y.shape, "addmm", f"c that broadcasts to {y}", c=c)
    return y


def matmul(a: Any, b: Any) -> Any:
    """y = a @ b"""
    return a @ b


def addmm(c: Any, a: Any, b: Any, *, beta: float, alpha: float) -> Any:
    """y = beta * c + alpha * (a @ b)"""
    return _added(c, a @ b, beta, alpha)


def _added(c: Any, product: Any, beta: float, alpha: float) -> Any:
    # With beta 0, c is not read: a NaN in it does not count.
    y = product if alpha == 1 else product * alpha
    return y if beta == 0 else y + (c if beta == 1 else c * beta)


def _one_scale(constant: Constant | None, *, or_columns: bool) -> bool:
    """Whether a weight's scales are such as the kernel applies; what is computed at run time has one scale."""
    if not isinstance(constant, QTensor):
        return True
    scale = constant.scale
    return scale.size == 1 or (or_columns and scale.shape[-1] == scale.size)


def _kernel(call: Call, select: Select, i: int) -> Callable[..., None] | None:
    """The kernel for the operands i and i + 1; None where it cannot take them."""
    a, b = call.specs[i], call.specs[i + 1]
    if a is None or b is None or not (is_fp8(a) and is_fp8(b) and a.ndim > 1 and b.ndim > 1):
        return None
    if not (_one_scale(call.constants[i], or_columns=False) and _one_scale(call.constants[i + 1], or_columns=True)):
        return None
    return select("gemm", get_format(a.dtype), get_format(b.dtype))


def bind(call: Call, select: Select) -> Step | None:
    """FP8 x FP8 goes to the gemm kernel; vectors and anything else run as defined."""
    kernel = _kernel(call, select, 0)
    if kernel is None:
        return None
    weight = None if call.constants[1] is None else call.prepare(1, "right", right_operand)
    return lambda a, b: multiply(kernel, a, right_operand(b) if weight is None else weight)


def bind_addmm(call: Call, select: Select) -> Step | None:
    """FP8 x FP8 goes to the gemm kernel; c stays in float32."""
    kernel = _kernel(call, select, 1)
    if kernel is None:
        return None
    weight = None if call.constants[2] is None else call.prepare(2, "right", right_operand)
    beta, alpha = call.attrs["beta"], call.attrs["alpha"]

    def step(c: Any, a: QTensor, b: QTensor) -> Any:
        right = right_operand(b) if weight is None else weight
        if c.shape == b.shape[-1:] and beta == alpha == 1:
            return multiply(kernel, a, right, c)
        return _added(c, multiply(kernel, a, right), beta, alpha)

    return step


op(
    "matmul",
    ("a", "b"),
    shape=shape,
    define=matmul,
    bind=bind,
    # A constant b has a scale for each column, as a linear layer's weight would.
    quantizable={"a": PerTensor(), "b": PerChannel(-1)},
    torch=tuple(Foreign(f"aten.{name}.default", ("a", "b")) for name in ("matmul", "mm", "bmm", "mv", "dot", "linalg_matmul")),
    onnx=("MatMul",),
)

op(
    "addmm",
    ("c", "a", "b"),
    shape=addmm_shape,
    define=addmm,
    attrs={"beta": 1.0, "alpha": 1.0},
    bind=bind_addmm,
    quantizable={"a": PerTensor(), "b": PerChannel(-1)},
    torch=tuple(Foreign(f"aten.{name}.default", ("c", "a", "b", "beta", "alpha")) for name in ("addmm", "baddbmm", "addmv")),
)
