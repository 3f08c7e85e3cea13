"""Sizes of the axes that a model leaves open: as people write them, and examples where nobody has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fp8np.dims import Dim
from fp8np.errors import InputError
from fp8np.graph import Value

__all__ = ["dynamic_axes", "examples", "named", "open_sizes"]

_LENGTHS = (128, 16, 1)


def named(text: str) -> dict[str, int]:
    """Sizes by name.

    Raises:
        InputError: the text is not such a list.

    >>> named("B=1, T=128")
    {'B': 1, 'T': 128}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if not name.isidentifier() or not number.isdecimal() or int(number) < 1 or name in sizes:
            raise InputError(f"sizes: expected names and positive numbers, such as B=1,T=128, got {text!r}")
        sizes[name] = int(number)
    return sizes


def dynamic_axes(texts: Iterable[str]) -> dict[str, dict[int, str]] | None:
    """The names of axes whose size may vary, by input and axis; None where none is named.

    Raises:
        InputError: a text is not INPUT:AXIS=NAME.

    >>> dynamic_axes(["ids:0=B", "ids:1=T"])
    {'ids': {0: 'B', 1: 'T'}}
    """
    axes: dict[str, dict[int, str]] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        axis, _, size = rest.partition("=")
        if not (name and axis.isdecimal() and size.isidentifier()):
            raise InputError(f"expected INPUT:AXIS=NAME, e.g. input_ids:1=T, got {text!r}")
        axes.setdefault(name, {})[int(axis)] = size
    return axes or None


def open_sizes(inputs: Sequence[Value]) -> dict[str, int]:
    """The names of the sizes that inputs leave open, with the first axis that has each."""
    found: dict[str, int] = {}
    for value in inputs:
        for axis, size in enumerate(value.shape):
            if isinstance(size, Dim):
                found.setdefault(str(size), axis)
    return found


def examples(inputs: Sequence[Value], given: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Sizes to plan a model at: those given; for others 1 where it is a first axis, elsewhere 128, or the less that models may ask for.

    Raises:
        InputError: a name that no input has.

    >>> from fp8np.dims import symbol
    >>> next(examples([Value("ids", (symbol("B"), symbol("T")), "int64")], {"B": 4}))
    {'B': 4, 'T': 128}
    """
    axes = open_sizes(inputs)
    unknown = sorted(given.keys() - axes.keys())
    if unknown:
        raise InputError(f"sizes: the model has no {', '.join(unknown)}; open are {', '.join(axes) or 'none'}")
    seen = None
    for length in _LENGTHS:
        sizes = {name: given.get(name, length if axis else 1) for name, axis in axes.items()}
        if sizes != seen:
            yield sizes
        seen = sizes
