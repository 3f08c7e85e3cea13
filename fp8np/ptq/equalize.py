"""Cross-layer equalization (arXiv 1906.04721, section 4.1): the channels between two convolutions get ranges alike.

Between layers without anything or with a ReLU, f(s y) = s f(y) for s > 0, so a channel may leave the first 1/s as large and be multiplied
by s in the second. With r1[i] the range of the weights that make channel i and r2[i] of those that read it,

    s[i] = sqrt(r1[i] / r2[i])      makes both sqrt(r1[i] r2[i]).

Depthwise networks need it: their filters differ by orders of magnitude, and one scale for all activations cannot. A ReLU6 between the
layers becomes a clamp of each channel at its own 6/s, which the plan runs in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.graph import Constant, Graph, Names, Node, leaves
from fp8np.layers._op import OPS

__all__ = ["equalize"]

Arrays = dict[str, npt.NDArray[Any]]

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "linear"})
_HOMOGENEOUS = frozenset({"relu", "leaky_relu"})
_PASSES = 20
"""A layer stands in two pairs, so one pass disturbs what the one before it evened out. Factors change by less than a percent after ten."""

_LARGEST = 64.0
"""No factor is above it, or below its inverse: a channel of next to no weight must not be blown up."""


@dataclass
class _Pair:
    """Two layers and what stands between them: a BatchNorm, an activation, both or nothing."""

    first: Node
    norm: Node | None
    activation: Node | None
    second: Node


def equalize(graph: Graph) -> Graph:
    """A float32 graph that computes the same, up to rounding, with evened-out channels wherever one layer alone reads another.

    >>> from fp8np.build import GraphBuilder
    >>> b = GraphBuilder()
    >>> x = b.input("x", ("B", 1), "float32")
    >>> h = b.node("relu", (b.node("linear", (x, b.constant("w", np.array([[8.0], [0.5]])))),))
    >>> graph = b.finish(b.node("linear", (h, b.constant("v", np.array([[2.0, 0.5]])))))
    >>> [np.abs(np.asarray(equalize(graph).constants[name])).ravel().tolist() for name in "wv"]
    [[4.0, 0.5], [4.0, 0.5]]
    """
    pairs = list(_pairs(graph))
    parameters = {name for pair in pairs for node in (pair.first, pair.norm, pair.second) if node is not None for name in node.inputs[1:]}
    # In float64 until the end: parameters are rounded once.
    exact = {name: np.asarray(graph.constants[name], np.float64) for name in parameters if name is not None}
    factors = {id(pair): np.ones(_rows(graph, pair.first), np.float64) for pair in pairs}
    for _ in range(_PASSES):
        for pair in pairs:
            s = _step(exact, pair, factors[id(pair)])
            _scale(exact, pair, s)
            factors[id(pair)] *= s
    constants = {**graph.constants, **{name: array.astype(np.float32) for name, array in exact.items()}}
    return _capped(graph.replace(constants=MappingProxyType(constants)), pairs, factors)


def _pairs(graph: Graph) -> Iterator[_Pair]:
    readers = graph.consumers()
    kept = set(leaves(graph.outputs))

    def follower(node: Node) -> Node | None:
        name = node.outputs[0]
        return readers[name][0] if name not in kept and len(readers.get(name, [])) == 1 else None

    def own(node: Node) -> bool:
        # Parameters that nothing else reads.
        names = [name for name in node.inputs[1:] if name is not None]
        alone = all(len(readers[name]) == 1 and name not in kept for name in names) and len(set(names)) == len(names)
        return alone and all(isinstance(graph.constants.get(name), np.ndarray) for name in names)

    for first in graph.nodes:
        if first.op not in _CONVOLUTIONS or not own(first):
            continue
        norm = activation = None
        node = follower(first)
        if node is not None and node.op == "batch_norm" and node.inputs[3] is not None and own(node):
            # Its channels are the layer's where one batch axis comes before them.
            if len(graph.facts(first.outputs[0]).shape) != len(graph.facts(str(first.inputs[1])).shape):
                continue
            norm, node = node, follower(node)
        if node is not None and (node.op in _HOMOGENEOUS or node.op == "relu6"):
            activation, node = node, follower(node)
        # A pad of zeros between two convolutions changes no channel.
        while node is not None and node.op == "pad" and OPS["pad"].filled(node.attrs)["value"] in (None, 0, 0.0):
            node = follower(node)
        if node is None or node.op not in _CONVOLUTIONS or (node.op == "linear") != (first.op == "linear"):
            continue
        if own(node) and _columns(graph, node) == _rows(graph, first):
            yield _Pair(first, norm, activation, node)


def _rows(graph: Graph, node: Node) -> int:
    return int(graph.facts(str(node.inputs[1])).shape[0])  # type: ignore[arg-type]


def _groups(node: Node) -> int:
    return int(OPS[node.op].filled(node.attrs).get("groups", 1))


def _columns(graph: Graph, node: Node) -> int:
    return int(graph.facts(str(node.inputs[1])).shape[1]) * _groups(node)  # type: ignore[arg-type]


def _step(exact: Arrays, pair: _Pair, so_far: npt.NDArray[Any]) -> npt.NDArray[Any]:
    first = np.abs(exact[str(pair.first.inputs[1])])
    made = first.reshape(len(first), -1).max(axis=1)
    if pair.norm is not None:
        variance, weight = (exact[str(name)] for name in pair.norm.inputs[2:4])
        made = made * np.abs(weight) / np.sqrt(variance + OPS["batch_norm"].filled(pair.norm.attrs)["eps"])
    read = _read(pair.second, np.abs(exact[str(pair.second.inputs[1])]))
    usable = (made > 0) & (read > 0)
    s = np.where(usable, np.sqrt(np.where(usable, made, 1) / np.where(usable, read, 1)), 1)
    return np.asarray(np.clip(so_far * s, 1 / _LARGEST, _LARGEST) / so_far)


def _read(second: Node, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The range of the weights that read each channel."""
    groups = _groups(second)
    cut = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return np.asarray(cut.max(axis=(1, 3)).reshape(-1))


def _scale(exact: Arrays, pair: _Pair, s: npt.NDArray[Any]) -> None:
    """Channels leave the first layer 1/s as large, and are multiplied by s in the second."""

    def scaled(name: str | None, factor: npt.NDArray[Any]) -> None:
        if name is not None:
            exact[name] = exact[name] * factor.reshape(-1, *(1,) * (exact[name].ndim - 1))

    scaled(pair.first.inputs[1], 1 / s)
    scaled(pair.first.inputs[2], 1 / s)
    if pair.norm is not None:
        # The statistics shrink with what they are of, but eps does not: what it is short of goes into the factor.
        mean, variance, weight, bias = pair.norm.inputs[1:]
        eps = OPS["batch_norm"].filled(pair.norm.attrs)["eps"]
        before = exact[str(variance)]
        scaled(mean, 1 / s)
        scaled(variance, 1 / s**2)
        scaled(weight, np.sqrt((exact[str(variance)] + eps) / (before + eps)))
        scaled(bias, 1 / s)
    name = str(pair.second.inputs[1])
    array, groups = exact[name], _groups(pair.second)
    cut = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
    exact[name] = (cut * s.reshape(groups, 1, -1, 1)).reshape(array.shape)


def _capped(graph: Graph, pairs: list[_Pair], factors: dict[int, npt.NDArray[Any]]) -> Graph:
    """Each ReLU6 between evened-out layers as a clamp of each channel."""
    names = Names.beside(graph)
    constants: dict[str, Constant] = dict(graph.constants)
    changed: dict[str, Node] = {}
    for pair in pairs:
        node = pair.activation
        if node is None or node.op != "relu6":
            continue
        after = graph.constants[str(pair.first.inputs[1])].ndim - 2
        cap = names.fresh(f"{node.name}.cap")
        constants[cap] = (6 / factors[id(pair)]).astype(np.float32).reshape(-1, *(1,) * after)
        changed[node.name] = node.replace(op="clamp", inputs=(node.inputs[0], None, cap), attrs=MappingProxyType({"min": 0.0}))
    nodes = tuple(changed.get(node.name, node) for node in graph.nodes)
    return graph.replace(nodes=nodes, constants=MappingProxyType(constants))
