"""The pass `fold_batch_norm`: a batch_norm that follows a convolution or a linear layer becomes part of its weights.

With f[o] = gamma[o] / sqrt(variance[o] + eps)::

    batch_norm(conv(x, w) + b) = conv(x, f * w) + f * (b - mean) + beta

computed in float64 and rounded to float32 once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.graph import Constant, Graph, Names, Node, leaves, pruned
from fp8np.layers._op import OPS

__all__ = ["fold_batch_norm"]

Array = npt.NDArray[Any]


def _rows(weight: Array, factor: Array, _groups: int) -> Array:
    """weight (O, ...) times factor (O,)"""
    return weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))


def _transposed(weight: Array, factor: Array, groups: int) -> Array:
    """weight (C, O/G, ...) times factor (O,): channel o of group g meets the rows of group g only."""
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)


_SCALE: Mapping[str, Callable[[Array, Array, int], Array]] = MappingProxyType(
    {"conv1d": _rows, "conv2d": _rows, "linear": _rows, "conv_transpose1d": _transposed, "conv_transpose2d": _transposed}
)
"""Ops that take a batch_norm in: how a factor for each output channel goes into their weight."""


def fold_batch_norm(graph: Graph) -> Graph:
    """The graph with each batch_norm folded that is the only reader of the layer before it.

    A batch_norm stays where the layer's output is read elsewhere too or is an output of the model, where its channels are
    not the layer's, or where a parameter is not a constant. The merged node keeps the layer's name and place, and computes
    the batch_norm's value. Outputs change by float32 rounding only.
    """
    layers = {node.outputs[0]: node for node in graph.nodes if node.op in _SCALE}
    readers = graph.consumers()
    kept = set(leaves(graph.outputs))
    names = Names.beside(graph)
    constants: dict[str, Constant] = dict(graph.constants)
    merged: dict[str, Node] = {}
    gone: set[str] = set()
    for norm in graph.nodes:
        layer = layers.get(str(norm.inputs[0])) if norm.op == "batch_norm" else None
        if layer is None or len(readers[layer.outputs[0]]) > 1 or layer.outputs[0] in kept:
            continue
        folded = _folded(graph, layer, norm)
        if folded is None:
            continue
        inputs = [layer.inputs[0]]
        old = (layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None)
        for role, name, array in zip(("weight", "bias"), old, folded, strict=True):
            if name is None or name in kept or len(readers[name]) > 1:
                name = names.fresh(name or f"{layer.name}.{role}")
            constants[name] = array
            inputs.append(name)
        merged[layer.name] = layer.replace(inputs=tuple(inputs), outputs=norm.outputs)
        gone.add(norm.name)
    nodes = tuple(merged.get(node.name, node) for node in graph.nodes if node.name not in gone)
    return pruned(graph.replace(nodes=nodes, constants=constants))


def _folded(graph: Graph, layer: Node, norm: Node) -> tuple[Array, Array] | None:
    """Weight and bias of the merged layer, float32; None where they cannot be merged."""
    own, statistics = _constants(graph, layer), _constants(graph, norm)
    # Axis 1 of the layer's output is its channels where one batch axis comes before them: (B, O), (B, O, H, W).
    if own is None or statistics is None or len(graph.values[layer.outputs[0]].shape) != own["weight"].ndim:
        return None
    with np.errstate(all="ignore"):
        eps = OPS["batch_norm"].filled(norm.attrs)["eps"]
        factor = statistics.get("weight", 1.0) / np.sqrt(statistics["running_var"] + eps)
        bias = (own.get("bias", 0.0) - statistics["running_mean"]) * factor + statistics.get("bias", 0.0)
        weight = _SCALE[layer.op](own["weight"], factor, layer.attrs.get("groups", 1))
        merged = weight.astype(np.float32), bias.astype(np.float32)
    return merged if all(np.isfinite(array).all() for array in merged) else None


def _constants(graph: Graph, node: Node) -> dict[str, Any] | None:
    """The inputs of a node but the first, by the op's names, in float64; None where one is not a constant array."""
    found = {}
    for i, name in enumerate(node.inputs[1:], 1):
        if name is None:
            continue
        constant = graph.constants.get(name)
        if not isinstance(constant, np.ndarray):
            return None
        found[OPS[node.op].input_name(i)] = constant.astype(np.float64)
    return found
