"""softmax: y = e^x / sum(e^x) along an axis; log_softmax: its logarithm. x and y of any one shape.

A row of -inf alone gives NaN, as 0/0 does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.layers._checks import require_floats
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import axis


def shape(x: Spec, *, dim: int) -> Spec:
    """Any shape -> the same"""
    require_floats("softmax", x=x)
    axis("softmax", dim, max(x.ndim, 1))
    return Spec(x.shape)


def log_shape(x: Spec, *, dim: int) -> Spec:
    """Any shape -> the same"""
    require_floats("log_softmax", x=x)
    axis("log_softmax", dim, max(x.ndim, 1))
    return Spec(x.shape)


def _shifted(x: Any, dim: int) -> Any:
    """x - max(x): the shift cancels out, and no exponential overflows."""
    x = np.atleast_1d(x)
    return x - x.max(dim, keepdims=True, initial=-np.inf)


@np.errstate(invalid="ignore")
def softmax(x: Any, *, dim: int) -> Any:
    """y = e^x / sum(e^x) along dim"""
    y = _shifted(x, dim)
    np.exp(y, out=y)
    y /= y.sum(dim, keepdims=True)
    return y.reshape(x.shape)


@np.errstate(invalid="ignore", divide="ignore")
def log_softmax(x: Any, *, dim: int) -> Any:
    """y = x - ln(sum(e^x)) along dim"""
    y = _shifted(x, dim)
    return (y - np.log(np.exp(y).sum(dim, keepdims=True))).reshape(x.shape)


op(
    "softmax",
    ("x",),
    shape=shape,
    define=softmax,
    attrs={"dim": REQUIRED},
    torch=(Foreign("aten.softmax.int", ("x", "dim")), Foreign("aten._softmax.default", ("x", "dim"))),
    onnx=("Softmax",),
)

op(
    "log_softmax",
    ("x",),
    shape=log_shape,
    define=log_softmax,
    attrs={"dim": REQUIRED},
    torch=(Foreign("aten.log_softmax.int", ("x", "dim")), Foreign("aten._log_softmax.default", ("x", "dim"))),
    onnx=("LogSoftmax",),
)
