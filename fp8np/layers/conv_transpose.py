"""conv_transpose2d, conv_transpose1d: the transpose of a convolution; each x[c, i, j] adds weight[c, o, p, q] * x[c, i, j] to

y[o, i*stride + p*dilation - padding, j*stride + q*dilation - padding].

x (..., C, H, W), weight (C, O/G, kh, kw), bias (O,), y (..., O, Ho, Wo); the 1-d op is the same with one axis for two.
Ho = (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.layers._checks import require, require_floats, require_positive, require_shape
from fp8np.layers._op import Foreign, Spec, op
from fp8np.scheme import Granularity, PerChannel, PerTensor

Ints = tuple[int, ...]


def _shape(
    name: str,
    axes: int,
    x: Spec,
    weight: Spec,
    bias: Spec | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
) -> Spec:
    sizes = "H, W" if axes == 2 else "L"
    kernel_sizes = "kh, kw" if axes == 2 else "k"
    require_floats(name, x=x, weight=weight, bias=bias)
    require_positive(name, stride=stride, dilation=dilation, groups=(groups,))
    fits = (
        x.ndim > axes
        and weight.ndim == axes + 2
        and x.shape[-axes - 1] == weight.shape[0]
        and weight.shape[0] // groups * groups == weight.shape[0]
    )
    require(fits, name, f"x (..., C, {sizes}) and weight (C, O/{groups}, {kernel_sizes})", x=x, weight=weight)
    channels = weight.shape[1] * groups
    require_shape(name, (channels,), bias=bias)
    given = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    require(all(len(v) == axes for v in given.values()), name, f"{axes} of each", **given)
    require(all(p >= 0 for p in (*padding, *output_padding)), name, "non-negative padding and output_padding", **given)
    kernel = weight.shape[2:]
    out: tuple[Size, ...] = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for n, k, s, p, extra, d in zip(x.shape[-axes:], kernel, stride, padding, output_padding, dilation, strict=True)
    )
    require(all(not isinstance(n, int) or n > 0 for n in out), name, "padding that leaves a result", x=x, weight=weight, padding=padding)
    return Spec((*x.shape[: -axes - 1], channels, *out))


def shape2d(
    x: Spec, weight: Spec, bias: Spec | None = None, *, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints, groups: int
) -> Spec:
    """(..., C, H, W), (C, O/G, kh, kw), (O,) -> (..., O, Ho, Wo)"""
    return _shape("conv_transpose2d", 2, x, weight, bias, stride, padding, output_padding, dilation, groups)


def shape1d(
    x: Spec, weight: Spec, bias: Spec | None = None, *, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints, groups: int
) -> Spec:
    """(..., C, L), (C, O/G, k), (O,) -> (..., O, Lo)"""
    return _shape("conv_transpose1d", 1, x, weight, bias, stride, padding, output_padding, dilation, groups)


def conv_transpose2d(
    x: Any, weight: Any, bias: Any = None, *, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints, groups: int
) -> Any:
    """y = the sum over x of weight * x, each placed at its stride, + bias"""
    pixels = x.reshape(-1, groups, x.shape[-3] // groups, math.prod(x.shape[-2:]))
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    patches = np.matmul(rows.transpose(0, 2, 1), pixels)
    y = _overlap_add(patches.reshape(len(pixels), -1, *weight.shape[2:], *x.shape[-2:]), stride, padding, output_padding, dilation)
    if bias is not None:
        y += bias[:, None, None]
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _overlap_add(patches: Any, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints) -> Any:
    """patches (B, O, kh, kw, H, W): what each pixel adds to its kh x kw places -> their sum (B, O, Ho, Wo)."""
    b, o, kh, kw, h, w = patches.shape
    (sh, sw), (dh, dw) = stride, dilation
    full = [(n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip((h, w), stride, dilation, (kh, kw), output_padding, strict=True)]
    y = np.zeros((b, o, *full), patches.dtype)
    for i in range(kh):
        for j in range(kw):
            y[:, :, i * dh : i * dh + sh * (h - 1) + 1 : sh, j * dw : j * dw + sw * (w - 1) + 1 : sw] += patches[:, :, i, j]
    return y[:, :, padding[0] : full[0] - padding[0], padding[1] : full[1] - padding[1]]


def conv_transpose1d(
    x: Any, weight: Any, bias: Any = None, *, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints, groups: int
) -> Any:
    """y = the sum over x of weight * x, each placed at its stride, + bias"""
    lifted = {"stride": (1, *stride), "padding": (0, *padding), "output_padding": (0, *output_padding), "dilation": (1, *dilation)}
    y: Any = conv_transpose2d(x[..., None, :], weight[:, :, None], bias, groups=groups, **lifted)
    return y[..., 0, :]


_ARGS = ("x", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
# The second axis of the weight is the output channel within its group; groups share its scales.
_QUANTIZABLE: dict[str, Granularity] = {"x": PerTensor(), "weight": PerChannel(1)}

op(
    "conv_transpose2d",
    ("x", "weight", "bias?"),
    shape=shape2d,
    define=conv_transpose2d,
    attrs={"stride": (1, 1), "padding": (0, 0), "output_padding": (0, 0), "dilation": (1, 1), "groups": 1},
    quantizable=_QUANTIZABLE,
    torch=(Foreign("aten.conv_transpose2d.input", _ARGS),),
    onnx=("ConvTranspose",),
)

op(
    "conv_transpose1d",
    ("x", "weight", "bias?"),
    shape=shape1d,
    define=conv_transpose1d,
    attrs={"stride": (1,), "padding": (0,), "output_padding": (0,), "dilation": (1,), "groups": 1},
    quantizable=_QUANTIZABLE,
    torch=(Foreign("aten.conv_transpose1d.default", _ARGS),),
    onnx=("ConvTranspose",),
)
