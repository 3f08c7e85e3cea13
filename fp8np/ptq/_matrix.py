"""Layers as matrix products, so that what a weight or an activation costs can be measured where it is multiplied.

    y[g] = x[g] @ w[g]^T      for each group g, x (rows, K), w (O/G, K)

A row of a convolution is one place of its filters on a picture. Of many rows a few thousand tell as much, and are taken evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from fp8np.graph import Graph, Node
from fp8np.layers._op import OPS
from fp8np.layers.conv import pads_around
from fp8np.tensor import QTensor

__all__ = ["Layer", "layer_of"]

Floats = npt.NDArray[np.float32]

_INPUTS = {"linear": ("x", "weight"), "conv2d": ("x", "weight"), "conv1d": ("x", "weight"), "matmul": ("a", "b"), "addmm": ("a", "b")}


@dataclass(frozen=True)
class Layer:
    """A node that multiplies what is computed with one weight.

    Attributes:
        node: of an op that `layer_of` knows.
        x, weight: names of the two operands.
        x_position, weight_position: where the node reads them.
        groups: how many products it is.
    """

    node: Node
    x: str
    weight: str
    x_position: int
    weight_position: int
    groups: int

    def matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The weight, or anything of its shape, as (G, O/G, K); a view where possible."""
        if self.node.op in ("matmul", "addmm"):
            return weight.T[None]
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight_like(self, matrix: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The inverse of `matrix`."""
        return matrix[0].T if self.node.op in ("matmul", "addmm") else matrix.reshape(shape)

    def rows(self, x: Floats, kernel: tuple[int, ...], limit: int) -> Floats:
        """At most about `limit` rows of the left operand: (G, rows, K).

        Args:
            x: the node's input.
            kernel: the weight's shape.
            limit: how many.
        """
        if self.node.op in ("linear", "matmul", "addmm"):
            flat = x.reshape(-1, x.shape[-1])
            return np.ascontiguousarray(flat[:: max(1, len(flat) // limit)])[None]
        attrs = OPS[self.node.op].filled(self.node.attrs)
        stride, dilation, window = attrs["stride"], attrs["dilation"], kernel[2:]
        axes = len(window)
        pads = pads_around(attrs["padding"], window, dilation)
        images = x.reshape(-1, *x.shape[-axes - 1 :])
        padded = np.pad(images, ((0, 0), (0, 0), *pads)) if any(map(any, pads)) else images
        spans = tuple(d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True))
        cut: Any = (slice(None), slice(None), *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))
        windows = sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes)))[cut]
        places = (windows.shape[0], *windows.shape[2 : 2 + axes])
        count = int(np.prod(places))
        # A step that shares no factor with the width would be best; one that is odd does not keep to a column.
        step = max(1, count // limit) | 1 if count > limit else 1
        chosen = np.unravel_index(np.arange(0, count, step), places)
        index: Any = (chosen[0], slice(None), *chosen[1:])
        taken = windows[index]
        return np.ascontiguousarray(taken.reshape(len(taken), self.groups, -1).transpose(1, 0, 2))

    def scales(self, weight: QTensor) -> npt.NDArray[Any]:
        """The scale of each element, (G, O/G, K)."""
        scale = weight.scale
        if weight.block is not None:
            for axis, (length, n) in enumerate(zip(weight.block, weight.shape, strict=True)):
                scale = np.repeat(scale, length, axis=axis).take(np.arange(n), axis=axis)
        return self.matrix(np.broadcast_to(scale, weight.shape))


def layer_of(graph: Graph, node: Node) -> Layer | None:
    """A node as a product with a constant weight; None where it is none."""
    if node.op not in _INPUTS:
        return None
    names = OPS[node.op].input_names
    x, weight = (names.index(role) for role in _INPUTS[node.op])
    constant = graph.constants.get(str(node.inputs[weight]))
    if constant is None or constant.ndim < 2 or str(node.inputs[x]) in graph.constants:
        return None
    if constant.ndim != 2 and node.op in ("matmul", "addmm"):
        return None
    return Layer(node, str(node.inputs[x]), str(node.inputs[weight]), x, weight, OPS[node.op].filled(node.attrs).get("groups", 1))
