"""Sizes of axes: integers, or polynomials in named sizes, so that one graph serves every batch and every length.

A `Dim` is kept in one canonical form (integer coefficients over products of atoms), so equal expressions are equal
objects: ``B*T + T == T*(B + 1)``. What a polynomial cannot say, a rounded-down quotient, is an atom of its own.
An expression that is a constant is an ``int``, never a `Dim`.

>>> b, t = symbol("B"), symbol("T")
>>> (b * t) // t == b
True
>>> str((t + 2 - 3) // 2 + 1)
'(T - 1)//2 + 1'
>>> evaluate(parse("(T - 1)//2 + 1"), {"T": 7})
4
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from fp8np.errors import GraphError

__all__ = ["Dim", "Size", "evaluate", "parse", "symbol", "symbols"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TOKENS = re.compile(r"(?:[ ]|[A-Za-z_][A-Za-z0-9_]*+|[0-9]++(?![A-Za-z_])|//|[-+*()])*+")

# Expressions come from files too. These bounds, far above what models need, keep every operation on them cheap.
_MAX_TEXT = 1000
_MAX_TERMS = 256
_MAX_COEFFICIENT = 2**63


@dataclass(frozen=True)
class _Quotient:
    """The atom floor(numerator / denominator)."""

    numerator: Dim
    denominator: Size

    def __str__(self) -> str:
        return f"{_bracket(self.numerator)}//{_bracket(self.denominator)}"


_Monomial = tuple["str | _Quotient", ...]


@dataclass(frozen=True, eq=False)
class Dim:
    """A size that depends on named sizes: sum of coefficient * product of atoms, sorted. Build it with `symbol` and ``+ - * //``."""

    terms: tuple[tuple[_Monomial, int], ...]

    def __add__(self, other: Size) -> Size:
        total = dict(_terms(self))
        for monomial, coefficient in _terms(other):
            total[monomial] = total.get(monomial, 0) + coefficient
        return _make(total)

    def __mul__(self, other: Size) -> Size:
        if len(_terms(self)) * len(_terms(other)) > _MAX_TERMS:
            raise GraphError(f"size ({self})*({other}): expected a product of at most {_MAX_TERMS} terms")
        total: dict[_Monomial, int] = {}
        for m1, c1 in _terms(self):
            for m2, c2 in _terms(other):
                monomial = tuple(sorted(m1 + m2, key=str))
                total[monomial] = total.get(monomial, 0) + c1 * c2
        return _make(total)

    def __floordiv__(self, other: Size) -> Size:
        return _floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Size:
        return _floordiv(other, self)

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + -other

    def __rsub__(self, other: int) -> Size:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            alone = len(monomial) == 1 and coefficient == 1
            # 2*T//3 would read as (2*T)//3, so a quotient that is multiplied is bracketed: 2*(T//3).
            product = "*".join(str(atom) if alone or isinstance(atom, str) else f"({atom})" for atom in monomial)
            if not monomial:
                part = str(abs(coefficient))
            elif abs(coefficient) == 1:
                part = product
            else:
                part = f"{abs(coefficient)}*{product}"
            sign = "-" if coefficient < 0 else "+"
            text = f"{text} {sign} {part}" if text else (f"-{part}" if coefficient < 0 else part)
        return text

    def __repr__(self) -> str:
        return f"Dim({str(self)!r})"


Size = int | Dim


def symbol(name: str) -> Dim:
    """The named size `name` (letters, digits and underscores)."""
    if not _NAME.fullmatch(name):
        raise GraphError(f"size name: expected letters, digits and underscores, got {name!r}")
    return Dim((((name,), 1),))


def _terms(size: Size) -> tuple[tuple[_Monomial, int], ...]:
    if isinstance(size, Dim):
        return size.terms
    return (((), int(size)),) if size else ()


def _make(terms: Mapping[_Monomial, int]) -> Size:
    kept = {m: c for m, c in terms.items() if c}
    if not kept or set(kept) == {()}:
        return kept.get((), 0)
    # Constants last, otherwise by degree (high first) and name: the order in which people write them.
    dim = Dim(tuple(sorted(kept.items(), key=lambda t: (-len(t[0]), [str(a) for a in t[0]]))))
    if max(map(abs, kept.values())) >= _MAX_COEFFICIENT:
        raise GraphError(f"size {dim}: expected integers below 2**63")
    if len(str(dim)) > _MAX_TEXT:
        raise GraphError(f"size {str(dim)[:60]}...: expected an expression of at most {_MAX_TEXT} characters, got {len(str(dim))}")
    return dim


def _floordiv(a: Size, b: Size) -> Size:
    if b == 0:
        raise GraphError(f"size ({a})//0: division by zero")
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    exact = _divide_exactly(a, b)
    if exact is not None:
        return exact
    if isinstance(a, int):
        a = Dim((((), a),))
    return _make({(_Quotient(a, b),): 1})


def _divide_exactly(a: Size, b: Size) -> Size | None:
    divisor = _terms(b)
    if len(divisor) != 1:
        return 1 if a == b else None
    (monomial, coefficient) = divisor[0]
    quotient: dict[_Monomial, int] = {}
    for m, c in _terms(a):
        left = list(m)
        for atom in monomial:
            if atom not in left:
                return None
            left.remove(atom)
        if c % coefficient:
            return None
        quotient[tuple(left)] = c // coefficient
    return _make(quotient)


def _bracket(size: Size) -> str:
    text = str(size)
    return text if _NAME.fullmatch(text) or text.isdecimal() else f"({text})"


def symbols(size: Size) -> frozenset[str]:
    """The names that `size` depends on."""
    return frozenset(_symbols(size))


def _symbols(size: Size) -> Iterator[str]:
    for monomial, _ in _terms(size):
        for atom in monomial:
            if isinstance(atom, str):
                yield atom
            else:
                yield from _symbols(atom.numerator)
                yield from _symbols(atom.denominator)


def evaluate(size: Size, bindings: Mapping[str, int]) -> int:
    """The integer that `size` is when each name has its value in `bindings`.

    Raises:
        GraphError: a name has no value, or a divisor is zero.
    """
    if not isinstance(size, Dim):
        return size
    total = 0
    for monomial, coefficient in size.terms:
        product = coefficient
        for atom in monomial:
            product *= _evaluate_atom(atom, bindings)
        total += product
    return total


def _evaluate_atom(atom: str | _Quotient, bindings: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        if atom not in bindings:
            raise GraphError(f"size {atom!r} has no value; known: {', '.join(sorted(bindings)) or 'none'}")
        return bindings[atom]
    divisor = evaluate(atom.denominator, bindings)
    if divisor == 0:
        raise GraphError(f"size {atom}: division by zero")
    return evaluate(atom.numerator, bindings) // divisor


def parse(text: str | int) -> Size:
    """Reads what `str` of a size writes. Only names, integers and ``+ - * //`` are understood: nothing is executed.

    Raises:
        GraphError: the text is anything else.
    """
    if isinstance(text, int):
        return int(text)
    if len(text) > _MAX_TEXT:
        raise GraphError(f"size expression: expected at most {_MAX_TEXT} characters, got {len(text)}")
    # Also keeps Python's own parser from warning about text such as "1or 2".
    if not _TOKENS.fullmatch(text):
        raise GraphError(f"size expression {text!r}: expected names, integers and + - * //")
    try:
        tree = ast.parse(text, mode="eval")
        return _build(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise GraphError(f"size expression {text!r}: expected names, integers and + - * //, got {error}") from None


def _build(node: ast.expr) -> Size:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_build(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _build(node.left), _build(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.FloorDiv):
            return _floordiv(left, right)
    raise ValueError(type(node).__name__)
