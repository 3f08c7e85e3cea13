"""im2col and col2im: sliding windows as columns, and their sum back; pixel_shuffle and pixel_unshuffle: channels as pixels.

Axes: (B, C, H, W) or (C, H, W). Columns hold C * kh * kw values for each of the L = Ho * Wo windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from fp8np.errors import ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import Shape, per_axis, spatial, text, windows
from fp8np.layers._types import checked

_WINDOW = {"kernel_size": REQUIRED, "dilation": 1, "padding": 0, "stride": 1}
_Pair = int | tuple[int, ...]


def _pairs(name: str, *values: _Pair) -> list[tuple[Any, ...]]:
    return [per_axis(name, "kernel_size, dilation, padding and stride", value, 2) for value in values]


def _counts(name: str, sizes: Shape, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Shape:
    return tuple(windows(name, *of) for of in zip(sizes, kernel, stride, padding, dilation, strict=True))


def _places(kernel: Any, dilation: Any, stride: Any, out: Any) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """For each place in the window its number, and where on the padded plane all windows have it."""
    for number, place in enumerate(itertools.product(*map(range, kernel))):
        row, col = (slice(i * d, i * d + s * (m - 1) + 1, s) for i, d, s, m in zip(place, dilation, stride, out, strict=True))
        yield number, (row, col)


def im2col_shape(x: Spec, *, kernel_size: _Pair, dilation: _Pair, padding: _Pair, stride: _Pair) -> Spec:
    """(B, C, H, W) -> (B, C*kh*kw, Ho*Wo)"""
    checked("im2col", x)
    front, sizes = spatial("im2col", x.shape, 2)
    kernel, *rest = _pairs("im2col", kernel_size, dilation, padding, stride)
    rows, cols = _counts("im2col", sizes, kernel, *rest)
    return Spec((*front[:-1], front[-1] * (kernel[0] * kernel[1]), rows * cols), x.dtype)


def im2col(x: Any, *, kernel_size: _Pair, dilation: _Pair, padding: _Pair, stride: _Pair) -> Any:
    """y[c*kh*kw + i*kw + j, window] = the element (i, j) of channel c of each window"""
    kernel, dilation, padding, stride = _pairs("im2col", kernel_size, dilation, padding, stride)
    out = _counts("im2col", x.shape[-2:], kernel, dilation, padding, stride)
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(p, p) for p in padding])
    y = np.empty((*x.shape[:-2], kernel[0] * kernel[1], *out), x.dtype)
    for number, place in _places(kernel, dilation, stride, out):
        y[..., number, :, :] = padded[(..., *place)]
    return y.reshape(*x.shape[:-3], -1 if y.size else x.shape[-3] * y.shape[-3], y.shape[-2] * y.shape[-1])


op(
    "im2col",
    ("x",),
    shape=im2col_shape,
    define=im2col,
    attrs=_WINDOW,
    torch=(Foreign("aten.im2col.default", ("x", *_WINDOW)),),
)


def col2im_shape(x: Spec, *, output_size: _Pair, kernel_size: _Pair, dilation: _Pair, padding: _Pair, stride: _Pair) -> Spec:
    """(B, C*kh*kw, Ho*Wo) -> (B, C, H, W), output_size (H, W)"""
    checked("col2im", x, kinds=("float32",))
    if x.ndim not in (2, 3):
        raise ShapeError(f"col2im: expected (B, C*kh*kw, L) or (C*kh*kw, L), got {x}")
    size, kernel, *rest = _pairs("col2im", output_size, kernel_size, dilation, padding, stride)
    rows, cols = _counts("col2im", size, kernel, *rest)
    channels = x.shape[-2] // (kernel[0] * kernel[1])
    if channels * (kernel[0] * kernel[1]) != x.shape[-2] or x.shape[-1] != rows * cols:
        raise ShapeError(f"col2im: expected (..., C*{kernel[0] * kernel[1]}, {rows * cols}) for an output of {text(size)}, got {x}")
    return Spec((*x.shape[:-2], channels, *size))


@np.errstate(all="ignore")
def col2im(x: Any, *, output_size: _Pair, kernel_size: _Pair, dilation: _Pair, padding: _Pair, stride: _Pair) -> Any:
    """y = the sum of all windows, each at its place"""
    size, kernel, dilation, padding, stride = _pairs("col2im", output_size, kernel_size, dilation, padding, stride)
    out = _counts("col2im", size, kernel, dilation, padding, stride)
    places = kernel[0] * kernel[1]
    x = x.reshape(*x.shape[:-2], x.shape[-2] // places, places, *out)
    (top, left), (height, width) = padding, size
    y = np.zeros((*x.shape[:-3], height + 2 * top, width + 2 * left), x.dtype)
    for number, place in _places(kernel, dilation, stride, out):
        y[(..., *place)] += x[..., number, :, :]
    return y[..., top : top + height, left : left + width]


op(
    "col2im",
    ("x",),
    shape=col2im_shape,
    define=col2im,
    attrs={"output_size": REQUIRED, **_WINDOW},
    torch=(Foreign("aten.col2im.default", ("x", "output_size", *_WINDOW)),),
)


def pixel_shuffle_shape(x: Spec, *, upscale_factor: int) -> Spec:
    """(..., C*r*r, H, W) -> (..., C, r*H, r*W)"""
    checked("pixel_shuffle", x)
    r = upscale_factor
    if x.ndim < 3 or r < 1 or x.shape[-3] // (r * r) * (r * r) != x.shape[-3]:
        raise ShapeError(f"pixel_shuffle: expected (..., C*{r * r}, H, W), got {x}")
    *front, channels, height, width = x.shape
    return Spec((*front, channels // (r * r), height * r, width * r), x.dtype)


def pixel_shuffle(x: Any, *, upscale_factor: int) -> Any:
    """y[c, h*r + i, w*r + j] = x[c*r*r + i*r + j, h, w]"""
    *front, channels, height, width = x.shape
    r, n = upscale_factor, len(front)
    blocks = x.reshape(*front, channels // (r * r), r, r, height, width)
    order = (*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return blocks.transpose(order).reshape(*front, channels // (r * r), height * r, width * r)


op(
    "pixel_shuffle",
    ("x",),
    shape=pixel_shuffle_shape,
    define=pixel_shuffle,
    attrs={"upscale_factor": REQUIRED},
    torch=(Foreign("aten.pixel_shuffle.default", ("x", "upscale_factor")),),
    onnx=("DepthToSpace",),
)


def pixel_unshuffle_shape(x: Spec, *, downscale_factor: int) -> Spec:
    """(..., C, r*H, r*W) -> (..., C*r*r, H, W)"""
    checked("pixel_unshuffle", x)
    r = downscale_factor
    if x.ndim < 3 or r < 1 or any(size // r * r != size for size in x.shape[-2:]):
        raise ShapeError(f"pixel_unshuffle: expected (..., C, {r}*H, {r}*W), got {x}")
    *front, channels, height, width = x.shape
    return Spec((*front, channels * (r * r), height // r, width // r), x.dtype)


def pixel_unshuffle(x: Any, *, downscale_factor: int) -> Any:
    """y[c*r*r + i*r + j, h, w] = x[c, h*r + i, w*r + j]"""
    *front, channels, height, width = x.shape
    r, n = downscale_factor, len(front)
    blocks = x.reshape(*front, channels, height // r, r, width // r, r)
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return blocks.transpose(order).reshape(*front, channels * r * r, height // r, width // r)


op(
    "pixel_unshuffle",
    ("x",),
    shape=pixel_unshuffle_shape,
    define=pixel_unshuffle,
    attrs={"downscale_factor": REQUIRED},
    torch=(Foreign("aten.pixel_unshuffle.default", ("x", "downscale_factor")),),
)
