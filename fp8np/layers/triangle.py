"""Triangles of matrices: tril and triu keep them, tril_indices and triu_indices say where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.errors import ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._types import checked, typed


def _row(name: str, keep: Callable[..., Any], formula: str) -> None:
    def shape(x: Spec, *, diagonal: Size) -> Spec:
        checked(name, x)
        if x.ndim < 2:
            raise ShapeError(f"{name}: expected (..., M, N), got {x}")
        return x

    def define(x: Any, *, diagonal: int) -> Any:
        return keep(x, diagonal)

    define.__doc__ = formula
    torch = (Foreign(f"aten.{name}.default", ("x", "diagonal")),)
    op(name, ("x",), shape=shape, define=define, attrs={"diagonal": 0}, torch=torch)


_row("tril", np.tril, "y = x where column - row <= diagonal, else 0")
_row("triu", np.triu, "y = x where column - row >= diagonal, else 0")


def _indices_row(name: str, find: Callable[..., Any], formula: str) -> None:
    def define(*, row: int, col: int, offset: int, dtype: str | None) -> Any:
        return np.stack(find(row, offset, col)).astype(dtype or "int64")

    def shape(*, row: int, col: int, offset: int, dtype: str | None) -> Spec:
        return Spec(define(row=row, col=col, offset=offset, dtype=None).shape, dtype or "int64")

    define.__doc__ = formula
    torch = (Foreign(f"aten.{name}.default", ("row", "col", "offset", "dtype"), convert=typed),)
    op(name, (), shape=shape, define=define, attrs={"row": REQUIRED, "col": REQUIRED, "offset": 0, "dtype": None}, torch=torch)


_indices_row("tril_indices", np.tril_indices, "y = rows and columns (2, n) where column - row <= offset")
_indices_row("triu_indices", np.triu_indices, "y = rows and columns (2, n) where column - row >= offset")
