"""conv_transpose2d and conv_transpose1d: the convolution of a picture with zeros between its pixels, filters turned round.

The zeros cost memory, not time to write: pixels are widened to places `stride` apart in an image that is zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fp8np._packing import Filters, filters, taps_of
from fp8np.graph import Constant, Node
from fp8np.kernels._ending import Ending, Left, View, per_column
from fp8np.kernels._grid import PARTS, Image, takes
from fp8np.kernels._program import Word
from fp8np.kernels.product import product_task
from fp8np.kernels.widen import quantize_task, split_task
from fp8np.plan.builder import Builder, word
from fp8np.plan.storage import At, Buffer, Stored, dense, last_strides
from fp8np.tensor import QTensor

__all__ = ["LOWERINGS"]


def _turned(weight: Constant) -> Filters:
    """(C, O, kh, kw) -> filters (O, C, kh, kw), turned round."""
    values = weight.codes if isinstance(weight, QTensor) else weight
    turned = np.ascontiguousarray(values.swapaxes(0, 1)[:, :, ::-1, ::-1])
    if not isinstance(weight, QTensor):
        return filters(turned)
    scale = weight.scale if weight.scale.size == 1 else weight.scale.reshape(-1, 1, 1, 1)
    return filters(QTensor(turned, weight.format, scale.reshape(()) if scale.size == 1 else scale))


def _lower(lines: bool) -> Callable[[Builder, Node, Mapping[str, Any]], bool]:
    def lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
        name, weight = str(node.inputs[0]), b.constant(node.inputs[1])
        biased = len(node.inputs) > 2 and node.inputs[2] is not None
        bias = b.constant(node.inputs[2]) if biased else None
        shape, out_shape = b.shape(name), b.shape(node.outputs[0])
        fits = len(shape) == (3 if lines else 4) and attrs["groups"] == 1 and 0 not in (*shape, *out_shape)
        if not fits or weight is None or (biased and bias is None):
            return False
        if lines:
            weight = _picture(weight)
            shape, out_shape = (*shape[:2], 1, shape[2]), (*out_shape[:2], 1, out_shape[2])
        one = ((1,), (0,)) if lines else ((), ())
        stride, dilation = (*one[0], *attrs["stride"]), (*one[0], *attrs["dilation"])
        padding, extra = (*one[1], *attrs["padding"]), (*one[1], *attrs["output_padding"])
        turned_scale = isinstance(weight, QTensor) and weight.scale.size > 1 and weight.scale.shape[1] != weight.scale.size
        q = b.quantized.get(name)
        fits = takes(weight.format) if isinstance(weight, QTensor) else weight.dtype == np.float32
        if turned_scale or not fits or (q is not None and not takes(q.format)):
            return False
        kernel = weight.shape[2], weight.shape[3]
        full = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = (full[0] - padding[0], full[1] - padding[1], full[0] - padding[0] + extra[0], full[1] - padding[1] + extra[1])
        if min(pads) < 0:
            return False
        made = b.weights.prepare("product", str(node.inputs[1]), "turned", lambda w: _turned(w if not lines else _picture(w)))
        images, channels, height, width = shape
        image = Image(images, (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1, channels, *pads, parts=1 if q else PARTS)
        memory = At(Buffer(image.size, zero=f"{image!r} {stride}"))
        source = _channels_last(b, name if q is None else q.source, shape)
        target = View(word(memory.plus(image.origin)), image.image, stride[0] * image.row, stride[1] * image.pitch)
        view = View(word(source.at), source.strides[0], source.strides[2], source.strides[3])
        sizes = images, height, width, channels
        if q is None:
            b.emit(split_task(view, target, image.panel, image.part, sizes))
        else:
            b.emit(quantize_task(view, target, image.panel, sizes, b.rounding(name)))
        taps = taps_of(image, kernel, (1, 1), dilation, pads)
        scale: Word = np.ones(1, np.float32) if q is None else q.scale
        start = View(word(memory.plus(taps.first)), image.image, taps.row, taps.pixel)
        part = image.part if image.parts > 1 else 0
        left = Left(start, images, out_shape[2], out_shape[3], taps.raster, scale, part=part)
        offsets = np.array([t + image.offset(s) for t in taps.offsets for s in range(image.steps)], np.int64)
        shift = per_column(made.packed.blocks, () if bias is None else np.asarray(bias))
        out = dense(out_shape, channels_last=True)
        strides = last_strides(out_shape, 4)
        b.stored[node.outputs[0]] = Stored(out.at, b.shape(node.outputs[0]), (*strides[:2], strides[3]) if lines else strides)
        ending = Ending(made.scale, shift, out=View(word(out.at), strides[0], strides[2], strides[3]))
        b.emit(product_task(left, made.packed, offsets, ending, threads=b.threads))
        return True

    return lower


def _picture(weight: Constant) -> Constant:
    return weight.expand_dims(2) if isinstance(weight, QTensor) else weight[:, :, None]


def _channels_last(b: Builder, name: str, shape: tuple[int, ...]) -> Stored:
    """Floats (B, C, H, W), or (B, C, L) as pictures of one row, channels last."""
    if len(b.shape(name)) == 4:
        return b.last(name)
    stored = b.value(name)
    lifted = Stored(stored.at, shape, (*stored.strides[:2], stored.strides[0], stored.strides[2]))
    if lifted.channels_last:
        return lifted
    out = dense(shape, channels_last=True)
    b.copy(lifted, out)
    return out


LOWERINGS = {"conv_transpose2d": _lower(False), "conv_transpose1d": _lower(True)}
