"""einsum: sums of products by index letters. "bij,bjk->bik" is y[b, i, k] = sum over j of a[b, i, j] * b[b, j, k].

As in NumPy and PyTorch: "..." stands for leading axes, which broadcast; without "->" the result has the letters that occur
once, in alphabetical order, after the axes of "...". A repeated letter within one operand takes the diagonal.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.layers._checks import require, require_floats
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import broadcast

_TERM = r"[A-Za-z]*(?:\.\.\.)?[A-Za-z]*"
_EQUATION = re.compile(rf"{_TERM}(?:,{_TERM})*(?:->{_TERM})?")


def _parsed(equation: str, operands: int) -> tuple[list[str], str]:
    """The terms of the operands and of the result."""
    compact = equation.replace(" ", "")
    require(_EQUATION.fullmatch(compact) is not None, "einsum", 'an equation such as "bij,bjk->bik"', equation=repr(equation))
    left, arrow, result = compact.partition("->")
    terms = left.split(",")
    require(len(terms) == operands, "einsum", f"{operands} terms for {operands} operands", equation=repr(equation))
    letters = left.replace(",", "").replace(".", "")
    if not arrow:
        once = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        result = ("..." if "..." in left else "") + once
    names = result.replace(".", "")
    fits = set(names) <= set(letters) and len(set(names)) == len(names) and ("..." in left or "..." not in result)
    require(fits, "einsum", "a result of letters that operands have, each once", equation=repr(equation))
    return terms, result


def shape(*xs: Spec, equation: str) -> Spec:
    """Operands as the equation names their axes -> the axes of its result"""
    require_floats("einsum", **{f"operand {i}": x for i, x in enumerate(xs)})
    terms, result = _parsed(equation, len(xs))
    sizes: dict[str, Size] = {}
    ellipsis: tuple[Size, ...] = ()
    for term, x in zip(terms, xs, strict=True):
        front, dots, back = term.partition("...")
        fits = x.ndim >= len(front + back) if dots else x.ndim == len(front)
        require(fits, "einsum", f"an operand with axes {term!r}", operand=x)
        end = x.ndim - len(back)
        ellipsis = broadcast("einsum", ellipsis, x.shape[len(front) : end])
        for letter, size in zip(front + back, x.shape[: len(front)] + x.shape[end:], strict=True):
            (sizes[letter],) = broadcast(f"einsum {equation!r}, axis {letter!r}", (sizes.get(letter, 1),), (size,))
    front, dots, back = result.partition("...")
    return Spec((*(sizes[c] for c in front), *(ellipsis if dots else ()), *(sizes[c] for c in back)))


def einsum(*xs: Any, equation: str) -> Any:
    """The sum of products that the equation spells out"""
    terms, result = _parsed(equation, len(xs))
    if "..." not in result and any("..." in term for term in terms):
        # NumPy refuses what PyTorch takes: leading axes that the result does not name are summed.
        y = np.einsum(f"{','.join(terms)}->...{result}", *xs, optimize=True)
        return np.asarray(y.sum(tuple(range(y.ndim - len(result)))))
    return np.asarray(np.einsum(f"{','.join(terms)}->{result}", *xs, optimize=True))


op(
    "einsum",
    ("xs*",),
    shape=shape,
    define=einsum,
    attrs={"equation": REQUIRED},
    torch=(Foreign("aten.einsum.default", ("equation", "xs")),),
    onnx=("Einsum",),
)
