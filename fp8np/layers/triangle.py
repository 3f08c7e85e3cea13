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


def _below(row: int, col: int, offset: int) -> int:
    """How many (i, j) of a (row, col) matrix have j - i <= offset: the sum of min(max(i + offset + 1, 0), col) over i."""

    def ramp(first: int) -> int:  # sum of max(i + first, 0) over i < row
        top, under = max(first + row - 1, 0), max(first - 1, 0)
        return (top * (top + 1) - under * (under + 1)) // 2

    return ramp(offset + 1) - ramp(offset + 1 - col)


def _indices_row(name: str, find: Callable[..., Any], formula: str) -> None:
    def define(*, row: int, col: int, offset: int, dtype: str | None) -> Any:
        return np.stack(find(row, offset, col)).astype(dtype or "int64")

    def shape(*, row: int, col: int, offset: int, dtype: str | None) -> Spec:
        if not all(isinstance(n, int) for n in (row, col, offset)) or row < 0 or col < 0:
            raise ShapeError(f"{name}: expected integers row, col >= 0 and offset, got {row}, {col}, {offset}")
        n = _below(row, col, offset) if find is np.tril_indices else row * col - _below(row, col, offset - 1)
        return Spec((2, n), dtype or "int64")

    define.__doc__ = formula
    torch = (Foreign(f"aten.{name}.default", ("row", "col", "offset", "dtype"), convert=typed),)
    op(name, (), shape=shape, define=define, attrs={"row": REQUIRED, "col": REQUIRED, "offset": 0, "dtype": None}, torch=torch)


_indices_row("tril_indices", np.tril_indices, "y = rows and columns (2, n) where column - row <= offset")
_indices_row("triu_indices", np.triu_indices, "y = rows and columns (2, n) where column - row >= offset")
