"""diff: differences of neighbours along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.errors import GraphError, ShapeError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import axis
from fp8np.layers._types import promoted, together


def shape(x: Spec, prepend: Spec | None = None, append: Spec | None = None, *, n: int, dim: int) -> Spec:
    """(..., L, ...) -> (..., L - n, ...), L including what is put before and after x"""
    parts = [part for part in (prepend, x, append) if part is not None]
    dtype = promoted("diff", *parts)
    where = axis("diff", dim, x.ndim)
    if n < 0:
        raise GraphError(f"diff: expected n >= 0, got {n}")
    length: Any = -n
    for part in parts:
        if part.ndim != x.ndim or any(part.shape[i] != size for i, size in enumerate(x.shape) if i != where):
            raise ShapeError(f"diff: expected the sizes of {x} except on axis {where}, got {part}")
        length = length + part.shape[where]
    return Spec((*x.shape[:where], max(0, length) if isinstance(length, int) else length, *x.shape[where + 1 :]), dtype)


@np.errstate(invalid="ignore", over="ignore")
def diff(x: Any, prepend: Any = None, append: Any = None, *, n: int, dim: int) -> Any:
    """y[i] = x[i + 1] - x[i] along dim, n times over; of bools: whether they differ"""
    parts = together(*(part for part in (prepend, x, append) if part is not None))
    return np.diff(np.concatenate(parts, dim), n, dim)


op(
    "diff",
    ("x", "prepend?", "append?"),
    shape=shape,
    define=diff,
    attrs={"n": 1, "dim": -1},
    torch=(Foreign("aten.diff.default", ("x", "n", "dim", "prepend", "append")),),
)
