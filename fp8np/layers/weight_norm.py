"""weight_norm: a weight as a direction v and a length g for each index along one axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.errors import ShapeError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import axis, text
from fp8np.layers._types import checked


def shape(v: Spec, g: Spec, *, dim: int) -> Spec:
    """v (N, ...), g (N, 1, ...) -> (N, ...) for dim 0; g (1, ...) or () for dim -1, which is one length for all"""
    checked("weight_norm", v, g, kinds=("float32",))
    kept = None if dim == -1 else axis("weight_norm", dim, v.ndim)
    expected = tuple(size if i == kept else 1 for i, size in enumerate(v.shape))
    if g.shape != expected and not (kept is None and g.shape == ()):
        raise ShapeError(f"weight_norm: expected g {text(expected)}, got {g}")
    return v


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def weight_norm(v: Any, g: Any, *, dim: int) -> Any:
    """y = g * v / ||v||, the norm over all axes but dim (over all where dim is -1)"""
    over = tuple(i for i in range(v.ndim) if i != dim)
    return v * (g / np.sqrt(np.sum(np.square(v), axis=over, keepdims=True)))


op(
    "weight_norm",
    ("v", "g"),
    shape=shape,
    define=weight_norm,
    attrs={"dim": 0},
    torch=(Foreign("aten._weight_norm.default", ("v", "g", "dim")),),
)
