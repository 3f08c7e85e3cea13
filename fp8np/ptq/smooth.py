"""SmoothQuant (arXiv 2211.10438): the range of activations that are hard to quantize is moved into weights, which are easier.

    x @ w^T = (x / s) @ (w * s)^T,      s[k] = max|x[:, k]|^alpha / max|w[:, k]|^(1 - alpha)

for each input channel k, w being all weights that read x side by side. The division goes into what computes x: the weight and bias of a
norm, or the output channels of a linear layer, where nothing else reads it; otherwise it is a multiplication of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.calibrate import Need, Range
from fp8np.data import Batches, Progress, limited
from fp8np.graph import Constant, Graph, Names, Node, Value, leaves
from fp8np.layers._op import OPS
from fp8np.ptq._matrix import Layer, layer_of
from fp8np.ptq.assign import Decision, decide
from fp8np.ptq.codes import rounded_weight
from fp8np.ptq.insert import rounded_activation
from fp8np.ptq.recipe import Recipe
from fp8np.scheme import Scheme
from fp8np.watch import Watch

__all__ = ["smooth"]

Floats = npt.NDArray[np.float32]

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
"""What "auto" tries."""

_ROWS = 2048
_NORMS = frozenset({"layer_norm", "rms_norm"})


@dataclass
class _Group:
    """The linear layers that read one activation, and what is known of it."""

    x: str
    layers: list[Layer]
    amax: Any = 0.0
    rows: list[Floats] | None = None


def smooth(graph: Graph, recipe: Recipe, data: Batches, *, samples: int | None = None, progress: Progress | None = None) -> Graph:
    """A float32 graph that computes the same, with activations of linear layers that are easier to quantize.

    Args:
        graph: the float32 graph.
        recipe: which nodes will be quantized, and how; ``recipe.smooth`` is alpha, or "auto": the one of 0, 0.1, ... 1 with the least error
            at the output of the layers, and none where that is better.
        data: batches.
        samples: so many are used; None: all.
        progress: told about each batch.

    Raises:
        CalibrationError: there are no data. RecipeError: the recipe does not fit.
    """
    decisions = {d.node: d for d in decide(graph, recipe)}
    groups = _groups(graph, decisions)
    if not groups:
        return graph
    search = recipe.smooth == "auto"
    watch = Watch(graph, [group.x for group in groups])
    for batch in limited(data, samples, "smoothing", progress):
        found = watch(batch.inputs)
        for group in groups:
            x = found[group.x].reshape(-1, found[group.x].shape[-1])
            group.amax = np.maximum(group.amax, np.abs(x).max(axis=0, initial=0))
            if search and (group.rows is None or sum(map(len, group.rows)) < _ROWS):
                group.rows = [*(group.rows or []), x[:: max(1, len(x) // (_ROWS // 4))]]
    writer = _Writer(graph)
    for group in groups:
        weights = [np.asarray(graph.constants[layer.weight]) for layer in group.layers]
        columns = np.max([np.abs(layer.matrix(w)[0]).max(axis=0) for layer, w in zip(group.layers, weights, strict=True)], axis=0)
        alpha = 0.0 if search else float(recipe.smooth or 0)
        how = recipe.weight_calibrator
        factors = _best(group, weights, columns, decisions, how) if search else _factors(group.amax, columns, alpha)
        if factors is not None:
            writer.divide(group, factors)
    return writer.finished()


def _groups(graph: Graph, decisions: Mapping[str, Decision]) -> list[_Group]:
    """Activations that quantized linear layers read; a weight that is read elsewhere, too, stays."""
    readers = graph.consumers()
    kept = set(leaves(graph.outputs))
    groups: dict[str, _Group] = {}
    for node in graph.nodes:
        layer = layer_of(graph, node) if node.op in ("linear", "matmul", "addmm") else None
        schemes = decisions[node.name].schemes if node.name in decisions else {}
        if layer is None or layer.x_position not in schemes or layer.weight_position not in schemes:
            continue
        if layer.weight in kept or len(readers[layer.weight]) > 1:
            continue
        groups.setdefault(layer.x, _Group(layer.x, [])).layers.append(layer)
    return list(groups.values())


def _factors(activations: Any, weights: Any, alpha: float) -> Floats:
    """s for each channel, with a geometric mean of 1, which changes no scale; channels without weights or activations keep 1."""
    usable = (activations > 0) & (weights > 0)
    a, w = (np.where(usable, v, 1).astype(np.float64) for v in (activations, weights))
    logs = alpha * np.log(a) - (1 - alpha) * np.log(w)
    logs -= logs[usable].mean() if usable.any() else 0
    return np.exp(np.where(usable, np.clip(logs, -20, 20), 0)).astype(np.float32)


def _best(
    group: _Group, weights: Sequence[Floats], columns: Any, decisions: Mapping[str, Decision], weight_calibrator: str
) -> Floats | None:
    """The factors with the least error at the output of the group's layers; None where no alpha helps."""
    x = np.concatenate(group.rows or [])
    if not x.size:
        return None
    best, least = None, np.inf
    for factors in (None, *(_factors(group.amax, columns, alpha) for alpha in ALPHAS)):
        error = 0.0
        for layer, weight in zip(group.layers, weights, strict=True):
            schemes = decisions[layer.node.name].schemes
            pair = schemes[layer.x_position], schemes[layer.weight_position]
            error += _error(layer, x, weight, factors, pair, weight_calibrator)
        if error < least:
            best, least = factors, error
    return best


def _error(
    layer: Layer, x: Floats, weight: Floats, factors: Floats | None, schemes: tuple[Scheme, Scheme], weight_calibrator: str
) -> float:
    x_scheme, weight_scheme = schemes
    w = layer.matrix(weight)[0]
    scaled_x, scaled_w = (x, w) if factors is None else (x / factors, w * factors)
    amax = float(np.abs(scaled_x).max(initial=0))
    ranges: dict[Need, Range] = {(layer.x, x_scheme): Range(float(scaled_x.min()), float(scaled_x.max()), 1)}
    rounded = rounded_activation(scaled_x, layer.x, x_scheme, ranges) if amax else scaled_x
    got = rounded_weight(layer.weight_like(scaled_w[None], weight.shape), weight_scheme, weight_calibrator)
    difference = rounded @ layer.matrix(got)[0].T - x @ w.T
    return float(np.vdot(difference, difference))


class _Writer:
    """Divides activations of a graph by factors, and multiplies the weights that read them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = Names.beside(graph)
        self.readers = graph.consumers()
        self.kept = set(leaves(graph.outputs))
        self.producers = {name: node for node in graph.nodes for name in node.outputs}
        self.constants: dict[str, Constant] = dict(graph.constants)
        self.values = dict(graph.values)
        self.changed: dict[str, Node] = {}
        self.after: dict[str, list[Node]] = {}

    def divide(self, group: _Group, factors: Floats) -> None:
        for layer in group.layers:
            weight = np.asarray(self.constants[layer.weight])
            scaled = (layer.matrix(weight)[0].astype(np.float64) * factors).astype(np.float32)
            self.constants[layer.weight] = np.ascontiguousarray(layer.weight_like(scaled[None], weight.shape))
        only = {layer.node.name for layer in group.layers} == {node.name for node in self.readers[group.x]}
        producer = self.producers.get(group.x)
        if only and group.x not in self.kept and producer is not None and self._into(producer, 1 / factors):
            return
        self._multiplied(group, 1 / factors)

    def _into(self, producer: Node, factors: npt.NDArray[Any]) -> bool:
        """Multiplies the output channels of a norm or a linear layer; False where that cannot be."""
        row = OPS[producer.op]
        if producer.op not in _NORMS | {"linear"}:
            return False
        parameters = [producer.inputs[i] for i, name in enumerate(row.input_names) if name in ("weight", "bias")]
        own = [name for name in parameters if name is not None]
        fits = all(
            isinstance(self.constants.get(name), np.ndarray) and len(self.readers[name]) == 1 and name not in self.kept for name in own
        )
        if not own or parameters[0] is None or not fits or len(set(own)) < len(own):
            return False
        if producer.op in _NORMS and np.asarray(self.constants[own[0]]).shape != factors.shape:
            return False
        for name in own:
            array = np.asarray(self.constants[name])
            self.constants[name] = (array * factors.reshape(-1, *(1,) * (array.ndim - 1))).astype(np.float32)
        return True

    def _multiplied(self, group: _Group, factors: npt.NDArray[Any]) -> None:
        constant = self.names.fresh(f"{group.x}.smooth")
        self.constants[constant] = factors.astype(np.float32)
        made = self.names.fresh(f"{group.x}.smoothed")
        value = self.graph.facts(group.x)
        self.values[made] = Value(made, value.shape, value.dtype)
        node = Node(made, "mul", OPS["mul"].padded((group.x, constant)), (made,), MappingProxyType({}), group.layers[0].node.origin)
        self.after.setdefault(group.x, []).append(node)
        for layer in group.layers:
            before = self.changed.get(layer.node.name, layer.node)
            inputs = tuple(made if i == layer.x_position else name for i, name in enumerate(before.inputs))
            self.changed[layer.node.name] = before.replace(inputs=inputs)

    def finished(self) -> Graph:
        nodes = [node for value in self.graph.inputs for node in self.after.get(value.name, [])]
        for node in self.graph.nodes:
            nodes.append(self.changed.get(node.name, node))
            nodes += [added for name in node.outputs for added in self.after.get(name, [])]
        return self.graph.replace(nodes=tuple(nodes), constants=MappingProxyType(self.constants), values=MappingProxyType(self.values))
