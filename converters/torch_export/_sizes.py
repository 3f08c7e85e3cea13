"""Sizes in a traced graph: PyTorch's symbolic integers as our own, by the same arithmetic on both sides."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from fp8np.dims import Dim, Size
from fp8np.errors import UnsupportedOperatorError

__all__ = ["ARITHMETIC", "SHAPE_OPERATORS", "computed", "fixed", "hint", "is_size"]

SHAPE_OPERATORS = frozenset({"aten.sym_size.int", "aten.sym_numel.default"})
"""Operators that read a size off a tensor."""

ARITHMETIC: Mapping[Any, Callable[..., Size]] = {
    operator.add: operator.add,
    operator.sub: operator.sub,
    operator.mul: operator.mul,
    operator.neg: operator.neg,
    operator.floordiv: operator.floordiv,
    operator.mod: lambda a, b: a - a // b * b,
    torch.sym_max: max,
    torch.sym_min: min,
}
"""What may be done with sizes; maximum and minimum only with known ones."""


def is_size(value: Any) -> bool:
    """Whether what a node computes is a size, not a tensor."""
    return isinstance(value, int | torch.SymInt)


def computed(node: fx.Node, arguments: tuple[Any, ...], place: str) -> Size:
    """The size that a node of ARITHMETIC computes.

    Raises:
        UnsupportedOperatorError: no polynomial with rounded-down quotients says it.
    """
    try:
        return ARITHMETIC[node.target](*arguments)
    except TypeError:
        names = ", ".join(str(a) for a in arguments if isinstance(a, Dim))
        raise UnsupportedOperatorError(
            f"{place}: {getattr(node.target, '__name__', node.target)} of the size {names} depends on its value; "
            "leave the axes it comes from out of `dynamic`, so that their sizes are fixed"
        ) from None


def fixed(size: int | torch.SymInt) -> int | None:
    """The value of a size that is one number whatever the inputs are, also where PyTorch keeps it as an expression."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else None


def hint(size: int | torch.SymInt) -> int | None:
    """The value of a size for the example inputs; None where PyTorch has forgotten it."""
    return size if isinstance(size, int) else size.node.hint
