"""conv_transpose2d, conv_transpose1d: the transpose of a convolution; each x[c, i, j] adds weight[c, o, p, q] * x[c, i, j] to

y[o, i*stride + p*dilation - padding, j*stride + q*dilation - padding].

x (..., C, H, W), weight (C, O/G, kh, kw), bias (O,), y (..., O, Ho, Wo); the 1-d op is the same with one axis for two.
Ho = (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fp8np.codec import decode_table
from fp8np.dims import Size
from fp8np.formats import get_format
from fp8np.layers._checks import require, require_floats, require_positive, require_shape
from fp8np.layers._op import Call, Foreign, Select, Spec, Step, is_fp8, op
from fp8np.scheme import Granularity, PerChannel, PerTensor
from fp8np.tensor import QTensor

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


def bind(call: Call, select: Select) -> Step | None:
    """FP8 x FP8: the patches come from the gemm kernel, one product a group, and are added up in float32. Else as defined.

    A conv2d over x with zeros put between its pixels would give the same, with stride² times as many products.
    """
    x_spec, weight = call.specs[0], call.constants[1]
    if x_spec is None or not is_fp8(x_spec) or not isinstance(weight, QTensor):
        return None
    x_format = get_format(x_spec.dtype)
    gemm = select("gemm", weight.format, x_format)
    flat = weight.ndim == 3
    groups = call.attrs["groups"]
    kernel = (1, *weight.shape[2:]) if flat else weight.shape[2:]
    one, zero = ((1,), (0,)) if flat else ((), ())
    stride, dilation = (*one, *call.attrs["stride"]), (*one, *call.attrs["dilation"])
    padding, output_padding = (*zero, *call.attrs["padding"]), (*zero, *call.attrs["output_padding"])
    # rows: (G, O/G*kh*kw, C/G), the transpose of the weight; every group has the same scales, one for each of O/G.
    rows = call.prepare(1, "rows", lambda w: np.ascontiguousarray(w.codes.reshape(groups, w.shape[0] // groups, -1).transpose(0, 2, 1)))
    row_scale = call.prepare(1, "scale", lambda w: np.broadcast_to(w.scale.reshape(-1, 1), (w.shape[1], math.prod(kernel))).reshape(-1))
    x_table, weight_table = decode_table(x_format), decode_table(weight.format)

    def step(x: QTensor, _weight: QTensor, bias: Any = None) -> Any:
        height_width = (1, x.shape[-1]) if flat else x.shape[-2:]
        leading = x.shape[:-2] if flat else x.shape[:-3]
        # pixels: (G, B, H*W, C/G); patches: (G, B, O/G*kh*kw, H*W)
        images = x.codes.reshape(-1, groups, rows.shape[2], math.prod(height_width))
        pixels = np.ascontiguousarray(images.transpose(1, 0, 3, 2))
        patches = np.zeros((groups, len(images), rows.shape[1], images.shape[3]), np.float32)
        for group in range(groups):
            gemm(
                rows[group : group + 1],
                weight_table,
                pixels[group],
                x_table,
                row_scale,
                x.scale.reshape(1),
                np.empty(0, np.float32),
                patches[group],
            )
        by_image = patches.transpose(1, 0, 2, 3).reshape(len(images), -1, *kernel, *height_width)
        y = _overlap_add(by_image, stride, padding, output_padding, dilation)
        if bias is not None:
            y += bias[:, None, None]
        return y.reshape(*leading, y.shape[1], *(y.shape[3:] if flat else y.shape[2:]))

    return step


_ARGS = ("x", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
# The second axis of the weight is the output channel within its group; groups share its scales.
_QUANTIZABLE: dict[str, Granularity] = {"x": PerTensor(), "weight": PerChannel(1)}

op(
    "conv_transpose2d",
    ("x", "weight", "bias?"),
    shape=shape2d,
    define=conv_transpose2d,
    attrs={"stride": (1, 1), "padding": (0, 0), "output_padding": (0, 0), "dilation": (1, 1), "groups": 1},
    bind=bind,
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
    bind=bind,
    quantizable=_QUANTIZABLE,
    torch=(Foreign("aten.conv_transpose1d.default", _ARGS),),
    onnx=("ConvTranspose",),
)
