"""matmul: y = a @ b, with NumPy's broadcasting of the leading axes. a (..., M, K), b (..., K, N), y (..., M, N).

addmm: y = beta * c + alpha * (a @ b), c broadcast to y. A vector a (K,) or b (K,) loses its axis in y, as in NumPy.
"""

from __future__ import annotations

from typing import Any

from fp8np.layers._checks import require, require_floats
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import broadcast
from fp8np.scheme import PerChannel, PerTensor


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
    y = a @ b if alpha == 1 else a @ b * alpha
    # With beta 0, c is not read: a NaN in it does not count.
    return y if beta == 0 else y + (c if beta == 1 else c * beta)


op(
    "matmul",
    ("a", "b"),
    shape=shape,
    define=matmul,
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
    quantizable={"a": PerTensor(), "b": PerChannel(-1)},
    torch=tuple(Foreign(f"aten.{name}.default", ("c", "a", "b", "beta", "alpha")) for name in ("addmm", "baddbmm", "addmv")),
)
