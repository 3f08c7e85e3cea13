"""Pooling and means over pictures, channels last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fp8np.graph import Node
from fp8np.kernels.pooling import avg_pool_task, global_mean_task, max_pool_task
from fp8np.plan.builder import Builder, word

__all__ = ["LOWERINGS"]


def _pair(value: Any, other: Any = None) -> tuple[int, int]:
    value = other if value is None or value == () else value
    values = tuple(value) if isinstance(value, tuple) else (value, value)
    return (values[0], values[-1])


def _pool(largest: bool) -> Callable[[Builder, Node, Mapping[str, Any]], bool]:
    def lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
        shape, out = b.shape(node.inputs[0]), b.shape(node.outputs[0])
        if len(shape) != 4 or 0 in shape or 0 in out:
            return False
        x = b.last(node.inputs[0])
        y = b.new(node.outputs[0], channels_last=True)
        images, channels, height, width = shape
        source, target, sizes = word(x.at), word(y.at), (images, height, width, channels)
        size, kernel, padding = (out[2], out[3]), _pair(attrs["kernel_size"]), _pair(attrs["padding"])
        stride = _pair(attrs["stride"], kernel)
        if largest:
            dilation = _pair(attrs["dilation"])
            task = max_pool_task(source, target, sizes, size, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
        else:
            task = avg_pool_task(
                source,
                target,
                sizes,
                size,
                kernel=kernel,
                stride=stride,
                padding=padding,
                count_include_pad=attrs["count_include_pad"],
                divisor_override=attrs["divisor_override"],
            )
        b.emit(task)
        return True

    return lower


def _mean(b: Builder, node: Node) -> bool:
    images, channels, height, width = b.shape(node.inputs[0])
    if 0 in (images, channels, height, width):
        return False
    x = b.last(node.inputs[0])
    y = b.new(node.outputs[0])
    b.emit(global_mean_task(word(x.at), word(y.at), (images, height * width, channels)))
    return True


def mean(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """Over the last two axes of pictures."""
    shape = b.shape(node.inputs[0])
    dims = attrs["dim"]
    if (
        len(shape) != 4
        or not isinstance(dims, tuple)
        or attrs["dtype"] not in (None, "float32")
        or b.facts[str(node.inputs[0])].dtype != "float32"
    ):
        return False
    return {d % 4 for d in dims} == {2, 3} and _mean(b, node)


def adaptive_avg_pool2d(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """To one pixel."""
    return len(b.shape(node.inputs[0])) == 4 and b.shape(node.outputs[0])[2:] == (1, 1) and _mean(b, node)


LOWERINGS = {
    "max_pool2d": _pool(True),
    "avg_pool2d": _pool(False),
    "mean": mean,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
}
