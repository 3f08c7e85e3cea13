"""conv2d, conv1d: y[o, i, j] = sum over c, p, q of w[o, c, p, q] * x[c, i*stride + p*dilation - pad, j*... ] + bias[o].

x (..., C, H, W), weight (O, C/G, kh, kw), bias (O,), y (..., O, Ho, Wo); conv1d is the same with one axis for two.
Ho = (H + padding - dilation*(kh - 1) - 1)//stride + 1, padding above and below together. Padding is with zeros.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fp8np.layers._checks import require, require_floats, require_positive, require_shape
from fp8np.layers._op import Foreign, Spec, op
from fp8np.scheme import Granularity, PerChannel, PerTensor

Padding = tuple[int, ...] | str
"""Zeros on both sides of each axis; or "valid" (none), or "same" (as many as keep the size; the odd one comes last)."""


def pads_around(padding: Padding, kernel: tuple[Any, ...], dilation: tuple[int, ...]) -> tuple[tuple[Any, Any], ...]:
    """Zeros before and after each axis."""
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((n // 2, n - n // 2) for n in totals)
    return tuple((int(p), int(p)) for p in ((0,) * len(kernel) if padding == "valid" else padding))


def _shape(
    name: str,
    axes: int,
    x: Spec,
    weight: Spec,
    bias: Spec | None,
    stride: tuple[int, ...],
    padding: Padding,
    dilation: tuple[int, ...],
    groups: int,
) -> Spec:
    sizes = "H, W" if axes == 2 else "L"
    kernel_sizes = "kh, kw" if axes == 2 else "k"
    require_floats(name, x=x, weight=weight, bias=bias)
    require_positive(name, stride=stride, dilation=dilation, groups=(groups,))
    fits = x.ndim > axes and weight.ndim == axes + 2 and x.shape[-axes - 1] == weight.shape[1] * groups
    expected = f"x (..., C, {sizes}) and weight (O, C/{groups}, {kernel_sizes})"
    require(fits and weight.shape[0] // groups * groups == weight.shape[0], name, expected, x=x, weight=weight)
    require_shape(name, weight.shape[:1], bias=bias)
    require(len(stride) == len(dilation) == axes, name, f"{axes} strides and dilations", stride=stride, dilation=dilation)
    if isinstance(padding, str):
        fits = padding == "valid" or (padding == "same" and set(stride) == {1})
    else:
        fits = len(padding) == axes and all(p >= 0 for p in padding)
    require(fits, name, f'{axes} non-negative paddings, "valid", or, with stride 1, "same"', padding=padding, stride=stride)
    kernel = weight.shape[2:]
    out = tuple(
        (n + before + after - d * (k - 1) - 1) // s + 1
        for n, k, s, d, (before, after) in zip(
            x.shape[-axes:], kernel, stride, dilation, pads_around(padding, kernel, dilation), strict=True
        )
    )
    require(all(not isinstance(n, int) or n > 0 for n in out), name, "a padded x at least as large as the kernel", x=x, weight=weight)
    return Spec((*x.shape[: -axes - 1], weight.shape[0], *out))


def shape2d(x: Spec, weight: Spec, bias: Spec | None = None, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Spec:
    """(..., C, H, W), (O, C/G, kh, kw), (O,) -> (..., O, Ho, Wo)"""
    return _shape("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def shape1d(x: Spec, weight: Spec, bias: Spec | None = None, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Spec:
    """(..., C, L), (O, C/G, k), (O,) -> (..., O, Lo)"""
    return _shape("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: tuple[int, ...],
    padding: Padding,
    dilation: tuple[int, ...],
    groups: int,
) -> Any:
    """y[o] = sum over c of weight[o, c] correlated with x[c], + bias[o]"""
    o, _, kh, kw = weight.shape
    (sh, sw), (dh, dw) = stride, dilation
    images = x.reshape(-1, *x.shape[-3:])
    pads = pads_around(padding, (kh, kw), dilation)
    if any(map(any, pads)):
        images = np.pad(images, ((0, 0), (0, 0), *pads))
    # windows: (B, C, Ho, Wo, kh, kw), a view; as a matrix, each is a column.
    windows = sliding_window_view(images, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
    out = windows.shape[2:4]
    rows = weight.reshape(groups, o // groups, -1)
    y = np.empty((len(images), o, *out), np.result_type(x, weight))
    # An image at a time: the columns are kh*kw times as large as the image, and a whole batch of them would leave the cache.
    # Depthwise too: adding up kh*kw shifted images, each times its weight, took up to twice as long.
    for image, result in zip(windows, y, strict=True):
        columns = image.transpose(0, 3, 4, 1, 2).reshape(groups, rows.shape[2], math.prod(out))
        np.matmul(rows, columns, out=result.reshape(groups, o // groups, math.prod(out)))
    if bias is not None:
        y += bias[:, None, None]
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: tuple[int, ...],
    padding: Padding,
    dilation: tuple[int, ...],
    groups: int,
) -> Any:
    """y[o] = sum over c of weight[o, c] correlated with x[c], + bias[o]"""
    lifted = {"stride": (1, *stride), "dilation": (1, *dilation)}
    y = conv2d(x[..., None, :], weight[:, :, None], bias, padding=_lift(padding), groups=groups, **lifted)
    return y[..., 0, :]


def _lift(padding: Padding) -> Padding:
    return padding if isinstance(padding, str) else (0, *padding)


_ARGS = ("x", "weight", "bias", "stride", "padding", "dilation", "groups")
_QUANTIZABLE: dict[str, Granularity] = {"x": PerTensor(), "weight": PerChannel(0)}

op(
    "conv2d",
    ("x", "weight", "bias?"),
    shape=shape2d,
    define=conv2d,
    attrs={"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1},
    quantizable=_QUANTIZABLE,
    torch=(Foreign("aten.conv2d.default", _ARGS), Foreign("aten.conv2d.padding", _ARGS)),
    onnx=("Conv",),
)

op(
    "conv1d",
    ("x", "weight", "bias?"),
    shape=shape1d,
    define=conv1d,
    attrs={"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1},
    quantizable=_QUANTIZABLE,
    torch=(Foreign("aten.conv1d.default", _ARGS), Foreign("aten.conv1d.padding", _ARGS)),
    onnx=("Conv",),
)
