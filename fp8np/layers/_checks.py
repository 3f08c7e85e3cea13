"""How a shape rule refuses arguments: one line for each thing that it expects."""

from __future__ import annotations

from typing import Any

from fp8np.dims import Size
from fp8np.errors import DTypeError, ShapeError
from fp8np.layers._op import Spec
from fp8np.layers._shapes import text

__all__ = ["require", "require_floats", "require_integers", "require_positive", "require_shape"]


def require(ok: bool, op: str, expected: str, **got: Any) -> None:
    """Raises ShapeError ("op: expected ..., got x ..., weight ...") unless `ok`."""
    if not ok:
        raise ShapeError(f"{op}: expected {expected}; got {', '.join(f'{name} {value}' for name, value in got.items())}")


def require_floats(op: str, **specs: Spec | None) -> None:
    """Raises DTypeError unless each input is float32 or FP8 (or left out)."""
    for name, spec in specs.items():
        if spec is not None and not spec.dtype.startswith("float"):
            raise DTypeError(f"{op}: expected {name} in float32 or FP8; got {spec}")


def require_integers(op: str, **specs: Spec | None) -> None:
    """Raises DTypeError unless each input is of an integer type (or left out)."""
    for name, spec in specs.items():
        if spec is not None and not spec.dtype.startswith(("int", "uint")):
            raise DTypeError(f"{op}: expected {name} of an integer type; got {spec}")


def require_positive(op: str, **values: tuple[int, ...]) -> None:
    """Raises ShapeError unless each attribute holds positive integers."""
    for name, value in values.items():
        require(all(isinstance(v, int) and v > 0 for v in value), op, f"positive {name}", **{name: value})


def require_shape(op: str, shape: tuple[Size, ...], **specs: Spec | None) -> None:
    """Raises ShapeError unless each input has this shape (or is left out)."""
    for name, spec in specs.items():
        if spec is not None:
            require(spec.shape == shape, op, f"{name} {text(shape)}", **{name: spec})
