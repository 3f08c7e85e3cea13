"""Pooling over the last 1, 2 or 3 axes: x (B, C, L...) or (C, L...), y of the same axes, L replaced by the number of windows.

Kernel size, stride, padding, dilation and output size hold one value for all spatial axes or one for each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8np.errors import ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Shape, per_axis, spatial, windows
from fp8np.layers._types import checked


@dataclass(frozen=True)
class _Geometry:
    """Sizes of a sliding window, one value for each spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[Any, ...]

    def views(self, x: Any, fill: float) -> Iterator[Any]:
        """For each place in the window, the elements of x that stand there: an array of y's shape."""
        n = len(self.kernel)
        sides = [
            (p, max(0, (m - 1) * s + d * (k - 1) + 1 - size - p))
            for k, s, p, d, m, size in zip(self.kernel, self.stride, self.padding, self.dilation, self.out, x.shape[-n:], strict=True)
        ]
        padded: Any = np.pad(x, [(0, 0)] * (x.ndim - n) + sides, constant_values=fill)
        for place in itertools.product(*map(range, self.kernel)):
            steps = zip(place, self.dilation, self.stride, self.out, strict=True)
            yield padded[(..., *(slice(i * d, i * d + s * (m - 1) + 1, s) for i, d, s, m in steps))]


def _geometry(name: str, n: int, sizes: Shape, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> _Geometry:
    kernel = per_axis(name, "kernel_size", kernel_size, n)
    stride = kernel if stride is None or stride == () else per_axis(name, "stride", stride, n)
    padding, dilation = per_axis(name, "padding", padding, n), per_axis(name, "dilation", dilation, n)
    for k, p, d in zip(kernel, padding, dilation, strict=True):
        # PyTorch's rule: no window consists of padding alone.
        if p > (d * (k - 1) + 1) // 2:
            raise ShapeError(f"{name}: expected padding of at most half the window, got {padding} for kernel_size {kernel}")
    out = tuple(windows(name, *of, ceil_mode) for of in zip(sizes, kernel, stride, padding, dilation, strict=True))
    return _Geometry(kernel, stride, padding, dilation, out)


def _max_pool(n: int) -> None:
    name = f"max_pool{n}d"

    def shape(x: Spec, *, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Spec:
        checked(name, x, kinds=("float32",))
        front, sizes = spatial(name, x.shape, n)
        return Spec((*front, *_geometry(name, n, sizes, kernel_size, stride, padding, dilation, ceil_mode).out))

    def define(x: Any, *, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
        """y = the largest element of each window"""
        geometry = _geometry(name, n, x.shape[-n:], kernel_size, stride, padding, dilation, ceil_mode)
        views = geometry.views(x, -np.inf)
        y = next(views).copy()
        for view in views:
            np.maximum(y, view, out=y)
        return y

    op(
        name,
        ("x",),
        shape=shape,
        define=define,
        attrs={"kernel_size": REQUIRED, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False},
        torch=(Foreign(f"aten.{name}.default", ("x", "kernel_size", "stride", "padding", "dilation", "ceil_mode")),),
    )


def _avg_pool(n: int) -> None:
    name = f"avg_pool{n}d"

    def shape(
        x: Spec,
        *,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Spec:
        checked(name, x, kinds=("float32",))
        front, sizes = spatial(name, x.shape, n)
        if divisor_override == 0:
            raise ShapeError(f"{name}: expected divisor_override other than 0")
        return Spec((*front, *_geometry(name, n, sizes, kernel_size, stride, padding, 1, ceil_mode).out))

    @np.errstate(invalid="ignore", over="ignore")
    def define(
        x: Any,
        *,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Any:
        """y = the sum of each window / the number of its elements, padding counted or not"""
        geometry = _geometry(name, n, x.shape[-n:], kernel_size, stride, padding, 1, ceil_mode)
        views = geometry.views(x, 0.0)
        y = next(views).copy()
        for view in views:
            y += view
        if divisor_override is not None:
            return y / divisor_override
        counts = np.ones((), x.dtype)
        for k, s, p, m, size in zip(geometry.kernel, geometry.stride, geometry.padding, geometry.out, x.shape[-n:], strict=True):
            start = np.arange(m) * s - p
            # What hangs over because of ceil_mode is never counted; padding is, if so asked.
            end = np.minimum(start + k, size + p)
            counted = end - start if count_include_pad else np.minimum(end, size) - np.maximum(start, 0)
            counts = np.multiply.outer(counts, counted.astype(x.dtype))
        return y / counts

    parameters = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    op(
        name,
        ("x",),
        shape=shape,
        define=define,
        attrs=dict(zip(parameters, (REQUIRED, None, 0, False, True, None), strict=True)),
        # avg_pool1d alone has no divisor_override.
        torch=(Foreign(f"aten.{name}.default", ("x", *(parameters if n > 1 else parameters[:-1]))),),
    )


def _adaptive_shape(name: str, n: int) -> Callable[..., Spec]:
    def shape(x: Spec, *, output_size: Any) -> Spec:
        checked(name, x, kinds=("float32",))
        front, sizes = spatial(name, x.shape, n)
        outs = per_axis(name, "output_size", output_size, n)
        for size, m in zip(sizes, outs, strict=True):
            if size == 0 or (isinstance(m, int) and m < 0):
                raise ShapeError(f"{name}: expected sizes > 0 and output sizes >= 0, got {x} and {output_size}")
        return Spec((*front, *(size if m is None else m for size, m in zip(sizes, outs, strict=True))))

    return shape


def _adaptive_bounds(size: int, m: int | None) -> list[slice]:
    """m windows that cover an axis as evenly as whole elements allow; they overlap where m does not divide the size."""
    m = size if m is None else m
    return [slice(i * size // m, math.ceil((i + 1) * size / m)) for i in range(m)]


def _adaptive_avg_pool(n: int) -> None:
    name = f"adaptive_avg_pool{n}d"

    @np.errstate(invalid="ignore", over="ignore")
    def define(x: Any, *, output_size: Any) -> Any:
        """y = the mean of each of output_size windows that cover x"""
        for axis, m in enumerate(per_axis(name, "output_size", output_size, n), x.ndim - n):
            # A mean over a box is the mean along one axis after the other.
            ahead = (slice(None),) * axis
            means = [x[(*ahead, window)].mean(axis) for window in _adaptive_bounds(x.shape[axis], m)]
            x = np.stack(means, axis) if means else x[(*ahead, slice(0))]
        return x

    op(
        name,
        ("x",),
        shape=_adaptive_shape(name, n),
        define=define,
        attrs={"output_size": REQUIRED},
        torch=(Foreign(f"aten.{name}.default", ("x", "output_size")),),
    )


def _adaptive_max_pool(n: int) -> None:
    name = f"adaptive_max_pool{n}d"
    values_shape = _adaptive_shape(name, n)

    def shape(x: Spec, *, output_size: Any) -> tuple[Spec, Spec]:
        values = values_shape(x, output_size=output_size)
        return values, Spec(values.shape, "int64")

    def define(x: Any, *, output_size: Any) -> tuple[Any, Any]:
        """y = the largest element of each of output_size windows that cover x, and its flat index in its plane"""
        sizes = x.shape[-n:]
        bounds = [_adaptive_bounds(*of) for of in zip(sizes, per_axis(name, "output_size", output_size, n), strict=True)]
        shape = (*x.shape[:-n], *map(len, bounds))
        values, indices = np.empty(shape, x.dtype), np.empty(shape, np.int64)
        plane = np.arange(math.prod(sizes)).reshape(sizes)
        for place in np.ndindex(*shape[-n:]):
            box = tuple(windows[i] for windows, i in zip(bounds, place, strict=True))
            window = x[(..., *box)].reshape(*x.shape[:-n], plane[box].size)
            best = window.argmax(-1)
            indices[(..., *place)] = plane[box].ravel()[best]
            values[(..., *place)] = np.take_along_axis(window, best[..., None], -1)[..., 0]
        return values, indices

    op(
        name,
        ("x",),
        shape=shape,
        define=define,
        attrs={"output_size": REQUIRED},
        torch=(Foreign(f"aten.{name}.default", ("x", "output_size")),),
    )


for _n in (1, 2, 3):
    for _row in (_max_pool, _avg_pool, _adaptive_avg_pool, _adaptive_max_pool):
        _row(_n)
