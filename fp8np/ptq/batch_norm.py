"""BatchNorm re-calibration (arXiv 2309.14592, section 3.2): the statistics of the quantized model take the place of those of training.

Quantization shifts and stretches what a layer computes; a BatchNorm behind it still subtracts the mean and divides by the deviation of
the float32 model. So the quantized model runs in training mode, in which each BatchNorm uses the statistics of the batch,

    y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias      over all axes but the channels'

so that each layer sees what the corrected layers before it will give, and the mean over the batches is what is kept.

A few hundred samples estimate statistics worse than the training set did, and other pictures than it had shift them: both can cost more
than quantization. So by default the float32 model runs in training mode beside the quantized one, and only what differs counts,

    mean' = mean + (mean of quantized - mean of float32)      var' = var * (var of quantized / var of float32)

in which the samples' own chance cancels out. Measured on EfficientNet-Lite0 with 100 pictures: docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fp8np.calibrate import Need, Range
from fp8np.check import check
from fp8np.data import Batch, Batches, Progress, limited
from fp8np.graph import Constant, Graph, leaves
from fp8np.ptq._means import Extension
from fp8np.ptq.assign import decide
from fp8np.ptq.insert import NOTHING, insert
from fp8np.ptq.recipe import Recipe
from fp8np.scheme import Scheme
from fp8np.tensor import QTensor
from fp8np.watch import Watch

__all__ = ["recalibrate_batch_norm"]

_CHANNELS = 1


def recalibrate_batch_norm(
    graph: Graph,
    recipe: Recipe,
    ranges: Mapping[Need, Range],
    data: Batches,
    *,
    weights: Mapping[tuple[str, Scheme], QTensor] = NOTHING,
    samples: int,
    paired: bool = True,
    progress: Progress | None = None,
) -> Graph:
    """A float32 graph whose BatchNorms have the statistics of the quantized model.

    Args:
        graph: the float32 graph, BatchNorm not folded.
        recipe: by which it is quantized.
        ranges: of the activations, calibrated on the folded graph.
        data: batches; what is estimated from a batch is only as good as the batch is large.
        weights: those that are quantized already.
        samples: so many are used, or as many as there are; whole batches.
        paired: whether only differences from the float32 model count; otherwise the statistics are simply those of the data, as in the
            paper's tools.
        progress: told about each batch.

    Raises:
        CalibrationError: there are no data. RecipeError: the recipe does not fit.
    """
    norms = {node.name for node in graph.nodes if node.op == "batch_norm"}
    decisions = tuple(decision for decision in decide(graph, recipe) if decision.node not in norms)
    quantized = insert(graph, decisions, ranges, weight_calibrator=recipe.weight_calibrator, weights=weights)
    training, statistics = _in_training(quantized)
    if not statistics:
        return graph
    seen = _Seen(training, statistics)
    exact = _Seen(*_in_training(graph)) if paired else None
    for batch in limited(data, samples, "re-calibrating BatchNorm", progress):
        seen.run(batch)
        if exact is not None:
            exact.run(batch)
    constants: dict[str, Constant] = dict(graph.constants)
    for node in graph.nodes:
        if node.name not in statistics:
            continue
        mean, variance = seen.pooled(node.name)
        names = [str(name) for name in node.inputs[1:3]]
        if exact is not None:
            other, spread = exact.pooled(node.name)
            own_mean, own_variance = (np.asarray(constants[name], np.float64) for name in names)
            mean = own_mean + mean - other
            # A channel that is constant in either model says nothing about its spread.
            usable = (spread > 0) & (variance > 0)
            variance = own_variance * np.where(usable, variance / np.where(usable, spread, 1), 1)
        constants |= zip(names, (mean.astype(np.float32), variance.astype(np.float32)), strict=True)
    return check(graph.replace(constants=MappingProxyType(constants)))


class _Seen:
    """The statistics of a graph in training mode, over batches."""

    def __init__(self, training: Graph, statistics: Mapping[str, tuple[str, str]]) -> None:
        self._statistics = statistics
        self._watch = Watch(check(training), [name for pair in statistics.values() for name in pair])
        self._found: dict[str, list[tuple[Any, Any]]] = {name: [] for name in statistics}
        self._samples: list[int] = []

    def run(self, batch: Batch) -> None:
        values = self._watch(batch.inputs)
        self._samples.append(batch.samples)
        for name, (mean, variance) in self._statistics.items():
            self._found[name].append((values[mean], values[variance]))

    def pooled(self, name: str) -> tuple[Any, Any]:
        """Mean and variance of all batches together, float64: the variance within them and of their means."""
        weights = np.array(self._samples, np.float64) / sum(self._samples)
        means, variances = (np.array([part[i] for part in self._found[name]], np.float64) for i in (0, 1))
        mean = weights @ means
        return mean, weights @ (variances + (means - mean) ** 2)


def _in_training(graph: Graph) -> tuple[Graph, dict[str, tuple[str, str]]]:
    """The graph in training mode; and for each BatchNorm, the names of the mean and the variance of its batch."""
    extension = Extension(graph)
    statistics: dict[str, tuple[str, str]] = {}
    readers = graph.consumers()
    kept = set(leaves(graph.outputs))
    for node in graph.nodes:
        own = [str(name) for name in node.inputs[1:3]]
        # Statistics that are read elsewhere, too, cannot be what both saw.
        if node.op != "batch_norm" or any(
            name not in graph.constants or name in kept or len(readers[name]) > 1 or node.inputs.count(name) > 1 for name in own
        ):
            extension.nodes.append(node)
            continue
        x = str(node.inputs[0])
        pair = extension.channel_mean(x, _CHANNELS), extension.channel_variance(x, _CHANNELS)
        statistics[node.name] = pair
        extension.nodes.append(node.replace(inputs=(x, *pair, *node.inputs[3:])))
    return extension.finished(), statistics
