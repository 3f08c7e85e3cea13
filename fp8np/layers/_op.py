"""What an op is: one row that says all there is to know about it. Rows are collected from the modules of this package.

A row's `shape` and `define` take the same arguments: the op's inputs by position (None for an optional one left out), its
attributes by keyword.

- `shape` sees `Spec`s (shape and element type; sizes may be symbolic) and returns one, or a tuple of them. It is where a
  wrong argument is found, so it raises `ShapeError` and `DTypeError`.
- `define` is the meaning: NumPy arrays in, arrays out, in the precision of its arguments; its caller dequantizes. Given float64 it is
  the law that faster code is compared with; given float32 it is also how the op runs, unless `fp8np.plan.lowerings` has better.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import fp8np.layers
from fp8np.dims import Size
from fp8np.errors import GraphError
from fp8np.scheme import Granularity

__all__ = ["OPS", "REQUIRED", "Foreign", "Op", "Spec", "op", "ops"]


@dataclass(frozen=True)
class Spec:
    """Shape and element type, as a shape rule sees and returns them."""

    shape: tuple[Size, ...]
    dtype: str = "float32"

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()
"""Default of an attribute that must be given."""


@dataclass(frozen=True)
class Foreign:
    """An operator of another framework that means this op.

    Attributes:
        name: e.g. ``aten.conv2d.default``.
        args: for each positional parameter of the operator, the name of the input or attribute of ours that it becomes;
            "" drops it. Parameters beyond these are dropped.
        attrs: attributes of ours that it implies.
        convert: rewrites the named arguments (inputs are value names, or None) before they are used; may refuse by
            raising `ValueError` with the reason.
    """

    name: str
    args: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Op:
    """A row of OPS.

    Attributes:
        name: of the op.
        inputs: names; "bias?" may be left out, "xs*" (last) takes any number.
        attrs: names and defaults.
        shape, define: see the module's docstring.
        outputs: how many; None where the shape rule decides.
        quantizable: inputs that may be FP8, each with its granularity in the standard scheme.
        torch, onnx: its names elsewhere.
        doc: first line of the defining function's docstring.
    """

    name: str
    inputs: tuple[str, ...]
    shape: Callable[..., Spec | tuple[Spec, ...]]
    define: Callable[..., Any]
    attrs: Mapping[str, Any]
    quantizable: Mapping[str, Granularity]
    torch: tuple[Foreign, ...]
    onnx: tuple[str, ...]

    @property
    def doc(self) -> str:
        """What it computes, in a line."""
        return (self.define.__doc__ or "").strip().split("\n")[0]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Input names without their marks."""
        return tuple(name.rstrip("?*") for name in self.inputs)

    def padded(self, inputs: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """The inputs of a node in full: None for each of those left out at the end."""
        fixed = len(self.inputs) - any(name.endswith("*") for name in self.inputs)
        return inputs + (None,) * (fixed - len(inputs))

    def input_name(self, index: int) -> str:
        """The name of the input at a position; those of a variadic op share one."""
        return self.input_names[min(index, len(self.inputs) - 1)]

    def filled(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """All attributes, defaults filled in.

        Raises:
            GraphError: an attribute is unknown, or a required one is missing.
        """
        unknown = sorted(set(attrs) - set(self.attrs))
        if unknown:
            raise GraphError(f"{self.name}: unknown attribute {unknown[0]!r}; known: {', '.join(self.attrs) or 'none'}")
        full = {**self.attrs, **attrs}
        missing = [name for name, value in full.items() if value is REQUIRED]
        if missing:
            raise GraphError(f"{self.name}: attribute {missing[0]!r} is required")
        return full


_rows: dict[str, Op] = {}


def op(
    name: str,
    inputs: tuple[str, ...],
    *,
    shape: Callable[..., Spec | tuple[Spec, ...]],
    define: Callable[..., Any],
    attrs: Mapping[str, Any] | None = None,
    quantizable: Mapping[str, Granularity] | None = None,
    torch: tuple[Foreign, ...] = (),
    onnx: tuple[str, ...] = (),
) -> None:
    """Adds a row to OPS; called at the bottom of each layer module."""
    frozen = MappingProxyType
    _rows[name] = Op(name, inputs, shape, define, frozen(attrs or {}), frozen(quantizable or {}), torch, onnx)


@lru_cache(maxsize=1)
def ops() -> Mapping[str, Op]:
    """Every op by name."""
    for module in sorted(m.name for m in pkgutil.iter_modules(fp8np.layers.__path__) if not m.name.startswith("_")):
        importlib.import_module(f"fp8np.layers.{module}")
    return MappingProxyType(_rows)


class _Ops(Mapping[str, Op]):
    # Reading the table imports the layer modules; importing this module does not, so that layers can import it.
    def __getitem__(self, name: str) -> Op:
        return ops()[name]

    def __iter__(self) -> Any:
        return iter(ops())

    def __len__(self) -> int:
        return len(ops())


OPS: Mapping[str, Op] = _Ops()
"""Every op by name."""
