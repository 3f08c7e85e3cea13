"""layer_norm, rms_norm, batch_norm, group_norm, softmax and log_softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fp8np.graph import Node
from fp8np.kernels._program import Word
from fp8np.kernels.norm import batch_norm_task, layer_norm_task, rms_norm_task
from fp8np.kernels.softmax import softmax_task
from fp8np.plan.builder import Builder, word

__all__ = ["LOWERINGS"]


def _weight(b: Builder, node: Node, i: int) -> Word | None:
    name = node.inputs[i] if i < len(node.inputs) else None
    return None if name is None else word(b.plain(name).at)


def layer_norm(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """Over the last axes."""
    shape = b.shape(node.inputs[0])
    n = math.prod(attrs["normalized_shape"])
    if 0 in shape:
        return False
    x = b.plain(node.inputs[0])
    y = b.new(node.outputs[0])
    sizes = (x.size // n, n)
    b.emit(layer_norm_task(word(x.at), word(y.at), sizes, eps=attrs["eps"], weight=_weight(b, node, 1), bias=_weight(b, node, 2)))
    return True


def rms_norm(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """Over the last axes."""
    shape = b.shape(node.inputs[0])
    n = math.prod(attrs["normalized_shape"])
    if 0 in shape:
        return False
    eps = float(np.finfo(np.float32).eps) if attrs["eps"] is None else attrs["eps"]
    x = b.plain(node.inputs[0])
    y = b.new(node.outputs[0])
    b.emit(rms_norm_task(word(x.at), word(y.at), (x.size // n, n), eps=eps, weight=_weight(b, node, 1)))
    return True


def batch_norm(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """As a factor and a shift of each channel, where its parameters are constants."""
    shape = b.shape(node.inputs[0])
    values = [None if name is None else b.constant(name) for name in node.inputs[1:]]
    if 0 in shape or any(v is None for v, name in zip(values, node.inputs[1:], strict=True) if name is not None):
        return False
    mean, var, weight, bias = (None if v is None else np.asarray(v) for v in (*values, *(None,) * (4 - len(values))))
    factor = 1 / np.sqrt(var + attrs["eps"]) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * factor
    x = b.value(node.inputs[0])
    last = x.channels_last
    x = x if last else b.plain(node.inputs[0])
    y = b.new(node.outputs[0], channels_last=last)
    sizes = (shape[0], math.prod(shape[2:]), shape[1]) if last else (shape[0], shape[1], math.prod(shape[2:]))
    scale, offset = np.ascontiguousarray(factor, np.float32), np.ascontiguousarray(shift, np.float32)
    b.emit(batch_norm_task(word(x.at), scale, offset, word(y.at), sizes, channels_last=last))
    return True


def _softmax(logarithm: bool) -> Callable[[Builder, Node, Mapping[str, Any]], bool]:
    def lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
        shape = b.shape(node.inputs[0])
        if not shape or 0 in shape or attrs["dim"] % len(shape) != len(shape) - 1:
            return False
        x = b.plain(node.inputs[0])
        y = b.new(node.outputs[0])
        b.emit(softmax_task(word(x.at), word(y.at), (x.size // shape[-1], shape[-1]), logarithm=logarithm))
        return True

    return lower


LOWERINGS = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "batch_norm": batch_norm,
    "softmax": _softmax(False),
    "log_softmax": _softmax(True),
}
