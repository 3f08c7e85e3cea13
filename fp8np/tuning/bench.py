"""Models of one graph by many recipes, made and measured: what they share is kept.

The range of an activation for a scheme, and the codes of a weight, do not depend on how other nodes are quantized. Techniques that look
at the whole model (SmoothQuant, BatchNorm re-calibration, ...) do: recipes with these go through the whole workflow.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fp8np.calibrate import Need, Range, calibrate
from fp8np.check import check
from fp8np.data import Batch, Progress
from fp8np.errors import CalibrationWarning, InputError
from fp8np.evaluate import chosen_output, evaluate
from fp8np.formats import FloatFormat
from fp8np.graph import Graph
from fp8np.model import Model
from fp8np.observers import parse_calibrator
from fp8np.ptq.assign import Decision, decide, needs
from fp8np.ptq.codes import quantized_weight
from fp8np.ptq.fold import fold_batch_norm
from fp8np.ptq.insert import insert
from fp8np.ptq.recipe import Recipe
from fp8np.ptq.recipe_file import recipe_table
from fp8np.ptq.workflow import quantize_model
from fp8np.scheme import Scheme
from fp8np.study.calibration import Kept, drawn
from fp8np.study.store import digest
from fp8np.tensor import QTensor
from fp8np.tuning.target import Target

__all__ = ["FP32_KEY", "Bench", "graph_digest", "without_techniques"]

FP32_KEY = "fp32"

_SAMPLES, _FEWEST = 32, 4
_NUMBERS = 1 << 20
"""On so many samples nodes are measured: fewer, where they are large, since each node takes a run of the model; of pictures with 224
pixels a side seven, which differ in a thousand logits each."""


class Bench:
    """A model to be quantized, and what it is measured on.

    Args:
        graph: the float32 graph.
        recipe: the one that is tuned; only its overrides, ops and first and last layers may change.
        data: batches with labels.
        target: the metric.
        calibration: batches; None where there are none.
        recalibration: batches for BatchNorm; None: those for calibration.
        output: which output is measured, where there are several.
        progress: told about each batch.

    Attributes:
        prepared: the graph with BatchNorm folded: the FP32 model, whose nodes recipes name.
        ranges: of activations, as far as they are known.
        samples: how many are measured.

    Raises:
        InputError: a batch has no labels, or does not fit.
    """

    def __init__(
        self,
        graph: Graph,
        recipe: Recipe,
        data: Kept,
        target: Target,
        *,
        calibration: Kept | None = None,
        recalibration: Kept | None = None,
        output: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.graph = check(graph)
        self.recipe = recipe
        self.prepared = check(fold_batch_norm(self.graph))
        self.calibration = calibration
        self.ranges: dict[Need, Range] = {}
        self.progress = progress
        self.samples = self._batches = 0
        self._data = data
        self._target = target
        self._recalibration = recalibration
        self._output = output
        self._weights: dict[tuple[str, Scheme], QTensor] = {}
        for i, batch in enumerate(data):
            if batch.label is None:
                raise InputError(
                    f"{data.origin}: batch {i} has no labels, which the metric needs: give (inputs, labels), or an array 'labels'"
                )
            self.samples += batch.samples
            self._batches += 1

    def decisions(self, recipe: Recipe) -> tuple[Decision, ...]:
        """What a recipe does to each node."""
        return decide(self.prepared, recipe)

    def key(self, recipe: Recipe) -> str:
        """Equal for recipes that make the same model."""
        facts: Any
        if without_techniques(recipe) == recipe:
            made = [[d.node, [[i, _words(s)] for i, s in d.schemes.items()]] for d in self.decisions(recipe) if d.schemes]
            facts = [recipe.calibrator, recipe.weight_calibrator, recipe.samples, made]
        else:
            facts = {name: value for name, value in recipe_table(recipe).items() if name != "name"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def quantized(self, recipe: Recipe) -> Graph:
        """The model of a recipe: what `fp8np.ptq.workflow.quantize_model` makes.

        Raises:
            CalibrationError: data are needed and missing. RecipeError: the recipe does not fit.
        """
        if self.calibration is None or without_techniques(recipe) != recipe:
            data, again = (None if kept is None else kept.batches() for kept in (self.calibration, self._recalibration))
            with warnings.catch_warnings():
                # Said once, of the model that is kept in the end.
                warnings.simplefilter("ignore", CalibrationWarning)
                return quantize_model(self.graph, recipe, data, recalibration=again, report_batches=0, progress=self.progress).graph
        decisions = self.decisions(recipe)
        self.calibrate(needs(self.prepared, decisions))
        return self.inserted(decisions)

    def calibrate(self, wanted: Iterable[Need]) -> None:
        """Finds the ranges that are not known yet, all in one pass over the data."""
        missing = [need for need in dict.fromkeys(wanted) if need not in self.ranges]
        if missing and self.calibration is not None:
            calibrator = parse_calibrator(self.recipe.calibrator)
            batches = self.calibration.batches()
            self.ranges |= calibrate(
                self.prepared, batches, missing, calibrator=calibrator, samples=self.recipe.samples, progress=self.progress
            )

    def inserted(self, decisions: Iterable[Decision]) -> Graph:
        """The model of some decisions, whose ranges are known."""
        made = tuple(decisions)
        nodes = {node.name: node for node in self.prepared.nodes}
        how = self.recipe.weight_calibrator
        for decision in made:
            for i, scheme in decision.schemes.items():
                name = str(nodes[decision.node].inputs[i])
                if name in self.prepared.constants and isinstance(scheme.format, FloatFormat) and (name, scheme) not in self._weights:
                    self._weights[name, scheme] = quantized_weight(self.prepared.constants[name], scheme, how)
        return check(insert(self.prepared, made, self.ranges, weight_calibrator=how, weights=self._weights))

    def value(self, graph: Graph) -> float:
        """The metric of a model on all data.

        Raises:
            InputError: the metric fails, or gives no number.
        """

        def told(what: str, done: int, _: int | None) -> None:
            if self.progress is not None:
                self.progress(what, done, self._batches)

        labelled = ((batch.inputs, batch.label) for batch in self._data)
        model = Model(graph, checked=True)
        return evaluate(model, lambda: labelled, self._target.measure, output=self._output, progress=told).value

    def few(self) -> list[Batch]:
        """Batches on which nodes are measured: the first for calibration, or those of the data."""
        kept = self.calibration or self._data
        first = next(iter(kept))
        each = sum(array.size for array in first.inputs.values()) // max(first.samples, 1)
        return list(drawn(kept, self.graph.inputs, min(max(_NUMBERS // max(each, 1), _FEWEST), _SAMPLES), None))

    def measured_output(self, graph: Graph) -> Graph:
        """The graph with that output alone which the metric sees, where one was named."""
        return graph if self._output is None else graph.replace(outputs=chosen_output(graph.outputs, self._output))


def without_techniques(recipe: Recipe) -> Recipe:
    """The recipe without what looks at more than one node: formats, scales and ranges only."""
    return recipe.replace(equalize=False, smooth=None, batch_norm=0, rounding="nearest", correct_bias=False, candidates=())


def graph_digest(graph: Graph) -> str:
    """SHA-256 of what a graph computes: nodes, shapes and constants, not its texts about itself."""
    total = hashlib.sha256(str(graph).encode())
    for name in sorted(graph.constants):
        total.update(f"{name} {digest(*_arrays(graph.constants[name]))}".encode())
    return total.hexdigest()[:16]


def _arrays(constant: Any) -> Iterator[Any]:
    if isinstance(constant, QTensor):
        yield from (constant.codes, constant.scale)
    else:
        yield np.asarray(constant)


def _words(scheme: Scheme) -> str:
    return f"{scheme.format.name} {scheme.granularity} {scheme.dynamic:d}{scheme.direct:d}{scheme.power_of_two:d}"
