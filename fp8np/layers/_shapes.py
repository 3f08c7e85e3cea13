"""Arithmetic on shapes that the shape rules share. Sizes may be symbolic: equal is known, different is not.

Two sizes are taken as different unless they are the same expression, so a rule can say only what holds for every value of the
named sizes. Each helper takes the name of the op for its messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fp8np.dims import Size
from fp8np.errors import ShapeError

Shape = tuple[Size, ...]

Dims = int | tuple[int, ...] | None
"""Axes to reduce over; None or () means all."""


def text(shape: Iterable[Size]) -> str:
    """A shape as messages print it."""
    return f"({', '.join(map(str, shape))})"


def axis(op: str, dim: int, ndim: int) -> int:
    """The axis that `dim` names, counted from the front."""
    if not -ndim <= dim < ndim:
        raise ShapeError(f"{op}: expected an axis of {ndim}, got {dim}")
    return dim % ndim


def axes(op: str, dims: Dims, ndim: int) -> tuple[int, ...]:
    """The axes that `dims` names, counted from the front; all where it is None or ()."""
    if dims is None or dims == ():
        return tuple(range(ndim))
    found = tuple(axis(op, dim, ndim) for dim in ((dims,) if isinstance(dims, int) else dims))
    if len(set(found)) != len(found):
        raise ShapeError(f"{op}: expected each axis once, got {text(found)}")
    return found


def broadcast(op: str, *shapes: Shape) -> Shape:
    """The shape that all broadcast to."""
    ndim = max(map(len, shapes))
    result: list[Size] = []
    for sizes in zip(*((1,) * (ndim - len(shape)) + shape for shape in shapes), strict=True):
        wide = [size for size in sizes if size != 1]
        if any(size != wide[0] for size in wide):
            raise ShapeError(f"{op}: shapes do not broadcast: {' and '.join(map(text, shapes))}")
        result.append(wide[0] if wide else 1)
    return tuple(result)


def product(sizes: Iterable[Size]) -> Size:
    """The number of elements."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def ratio(sizes: Shape, divisors: Shape) -> Size | None:
    """product(sizes) / product(divisors) where it can be known to be whole, else None.

    Factors are divided one by one before they are multiplied out: ``B*T + B`` over ``T + 1`` is B, but a polynomial can no
    longer be divided by ``T + 1``.
    """
    left, rest = list(sizes), []
    for divisor in divisors:
        for i, size in enumerate(left):
            if divisor != 0 and (quotient := size // divisor) * divisor == size:
                left[i] = quotient
                break
        else:
            rest.append(divisor)
    total, divisor = product(left), product(rest)
    if divisor == 0:
        return None
    quotient = total // divisor
    return quotient if quotient * divisor == total else None


def per_axis(op: str, name: str, value: Any, n: int) -> tuple[Any, ...]:
    """A value for each of n spatial axes, from one for all or from n of them."""
    values = value if isinstance(value, tuple) else (value,)
    if len(values) == 1:
        return values * n
    if len(values) != n:
        raise ShapeError(f"{op}: expected {name} to hold 1 or {n} values, got {value}")
    return values


def spatial(op: str, shape: Shape, n: int) -> tuple[Shape, Shape]:
    """The leading axes (B, C) or (C,), and the n spatial ones."""
    if len(shape) not in (n + 1, n + 2):
        raise ShapeError(f"{op}: expected ({'B, C' + ', L' * n}) or ({'C' + ', L' * n}), got {text(shape)}")
    return shape[:-n], shape[-n:]


def windows(op: str, size: Size, kernel: int, stride: int, padding: int, dilation: int = 1, ceil_mode: bool = False) -> Size:
    """How many windows fit on an axis: floor((size + 2 padding - span) / stride) + 1, or with ceil.

    With ceil the last window may hang over the end, but one that would start behind the data is dropped.
    """
    span = dilation * (kernel - 1) + 1
    if kernel < 1 or stride < 1 or dilation < 1 or padding < 0:
        raise ShapeError(
            f"{op}: expected positive kernel, stride and dilation and padding >= 0, got {text((kernel, stride, dilation, padding))}"
        )
    count = (size + 2 * padding - span + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and stride + padding > span:
        if not isinstance(size, int) or not isinstance(count, int):
            raise ShapeError(f"{op}: ceil_mode with stride + padding > {span} (the window) needs a fixed size, got {size}")
        if (count - 1) * stride >= size + padding:
            count -= 1
    if isinstance(count, int) and count < 1:
        raise ShapeError(f"{op}: expected at least {span - 2 * padding} elements on an axis for a window of {span}, got {size}")
    return count
