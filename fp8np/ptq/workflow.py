"""The workflow: prepare, calibrate, quantize, correct, check, report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fp8np.calibrate import Need, Range, calibrate, warnings_of
from fp8np.check import check
from fp8np.data import Batches, Progress, load_batches
from fp8np.errors import CalibrationError, CalibrationWarning
from fp8np.graph import Graph
from fp8np.observers import parse_calibrator
from fp8np.ptq.assign import Decision, decide, needs
from fp8np.ptq.auto import choose_formats
from fp8np.ptq.batch_norm import recalibrate_batch_norm
from fp8np.ptq.bias import correct_bias
from fp8np.ptq.equalize import equalize
from fp8np.ptq.fold import fold_batch_norm
from fp8np.ptq.insert import insert, quantized_weights
from fp8np.ptq.recipe import Override, Recipe, get_recipe
from fp8np.ptq.report import NO_NOTES, Report, make_report
from fp8np.ptq.rounding import adapted_weights, carried_over
from fp8np.ptq.smooth import smooth
from fp8np.scheme import Scheme
from fp8np.tensor import QTensor

__all__ = ["Quantized", "Result", "quantize_graph", "quantize_model"]


@dataclass(frozen=True)
class Quantized:
    """A quantized graph, and what was decided about each node."""

    graph: Graph
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Result:
    """A quantized graph, and the report on it.

    Attributes:
        graph: of the quantized model.
        report: on each layer.
        recipe: the one that was carried out: where formats were chosen automatically, it names each choice.
    """

    graph: Graph
    report: Report
    recipe: Recipe


def quantize_graph(graph: Graph, recipe: Recipe | str, ranges: Mapping[Need, Range]) -> Quantized:
    """A graph, quantized by a recipe's formats and the ranges of its activations; nothing else is changed.

    Raises:
        RecipeError: the recipe does not fit. CalibrationError: the range of an activation is missing.
    """
    recipe = get_recipe(recipe)
    decisions = decide(graph, recipe)
    return Quantized(check(insert(graph, decisions, ranges, weight_calibrator=recipe.weight_calibrator)), decisions)


def quantize_model(
    graph: Graph,
    recipe: Recipe | str,
    calibration: Any = None,
    *,
    recalibration: Any = None,
    samples: int | None = None,
    report_batches: int = 4,
    progress: Progress | None = None,
) -> Result:
    """A model, quantized, with a report. The same graph, recipe and data give the same result.

    BatchNorm is folded by every recipe, "fp32" included, which does nothing else.

    Args:
        graph: a float32 graph.
        recipe: a row of RECIPES, its name, or a recipe of one's own.
        calibration: data that look like what the model will see: anything that `fp8np.data.load_batches` takes. Needed
            where scales are static, and by every technique that measures; otherwise only for the output figures of the report.
        recalibration: data for the re-calibration of BatchNorm; None: those for calibration.
        samples: calibrate on the first so many (rounded up to whole batches); None: as the recipe says.
        report_batches: on how many batches the quantized model is compared with the float32 one; 0: do not.
        progress: see `fp8np.data.Progress`.

    Raises:
        CalibrationError: data are needed and missing, or not fit for it. InputError: data do not fit the model's inputs.
        RecipeError: the recipe does not fit. GraphError: the graph breaks an invariant.

    Warns:
        CalibrationWarning: the range of an activation rests on one outlier.
    """
    recipe = get_recipe(recipe)
    data = None if calibration is None else _opened(calibration, graph)
    return _Workflow(check(graph), recipe, data, samples or recipe.samples, progress).result(recalibration, report_batches)


@dataclass
class _Workflow:
    graph: Graph
    recipe: Recipe
    data: Batches | None
    samples: int | None
    progress: Progress | None

    def result(self, recalibration: Any, report_batches: int) -> Result:
        recipe, reasons = self.recipe, NO_NOTES
        known: Mapping[Need, Range] = {}
        whole = self.graph
        if recipe.equalize:
            whole = check(equalize(whole))
        added: tuple[Override, ...] = ()
        if recipe.smooth is not None:
            old = {node.name for node in whole.nodes}
            whole = check(smooth(whole, recipe, self.needed("SmoothQuant"), samples=self.samples, progress=self.progress))
            # What makes an activation easier to round must see it before it is rounded.
            added = tuple(Override(match=d.node, keep=True) for d in decide(whole, recipe) if d.schemes and d.node not in old)
            recipe = recipe.replace(overrides=(*recipe.overrides, *added))
        prepared = reference = check(fold_batch_norm(whole))
        if recipe.candidates:
            choice = choose_formats(prepared, recipe, self.needed("choosing formats"), samples=self.samples, progress=self.progress)
            recipe, reasons, known = choice.recipe, choice.reasons, choice.ranges
        decisions = decide(prepared, recipe)
        ranges = self.ranges(prepared, decisions, known)
        weights: Mapping[tuple[str, Scheme], QTensor] = {}
        if recipe.rounding == "adaptive":
            data = self.needed("adaptive rounding")
            how = recipe.weight_calibrator
            weights = adapted_weights(
                prepared, decisions, ranges, data, weight_calibrator=how, samples=self.samples, progress=self.progress
            )
        if recipe.batch_norm:
            data = self.needed("BatchNorm re-calibration") if recalibration is None else _opened(recalibration, self.graph)
            # Statistics hold for the codes with which they were found: other factors must not lead to other codes.
            weights = {**quantized_weights(prepared, decisions, recipe.weight_calibrator), **weights}
            again = recalibrate_batch_norm(
                whole,
                recipe,
                ranges,
                data,
                weights=carried_over(weights, prepared, whole),
                samples=recipe.batch_norm,
                paired=recipe.batch_norm_paired,
                progress=self.progress,
            )
            folded = check(fold_batch_norm(again))
            carried = carried_over(weights, prepared, folded)
            prepared, weights = folded, {key: codes for key, codes in carried.items() if not key[1].power_of_two}
        result = check(insert(prepared, decisions, ranges, weight_calibrator=recipe.weight_calibrator, weights=weights))
        if recipe.correct_bias:
            result = check(
                correct_bias(reference, result, decisions, self.needed("bias correction"), samples=self.samples, progress=self.progress)
            )
        result = result.replace(meta=MappingProxyType({**self.graph.meta, **_meta(prepared, recipe, decisions, ranges)}))
        compared = self.data if recipe.weights is not None and report_batches else None
        report = make_report(
            prepared,
            result,
            recipe.name,
            decisions,
            compared,
            reference=reference,
            notes=reasons,
            batches=report_batches,
            progress=self.progress,
        )
        return Result(result, report, recipe.replace(overrides=tuple(o for o in recipe.overrides if o not in added)))

    def needed(self, purpose: str) -> Batches:
        if self.data is None:
            raise CalibrationError(
                f"recipe {self.recipe.name!r}: {purpose} needs calibration data, and there are none: give some (--calibration)"
            )
        return self.data

    def ranges(self, graph: Graph, decisions: tuple[Decision, ...], known: Mapping[Need, Range]) -> dict[Need, Range]:
        wanted = needs(graph, decisions)
        if not wanted:
            return {}
        if self.data is None:
            raise CalibrationError(
                f"recipe {self.recipe.name!r} finds the scales of activations ({len(wanted)} here) on calibration data, and there are "
                "none: give some (--calibration: npz, npy, a folder of them, or package.module:function), or choose --approach dynamic"
            )
        calibrator = parse_calibrator(self.recipe.calibrator)
        new = [need for need in wanted if need not in known]
        found = calibrate(graph, self.data, new, calibrator=calibrator, samples=self.samples, progress=self.progress) if new else {}
        found = {need: known[need] if need in known else found[need] for need in wanted}
        for text in warnings_of(graph, found):
            warnings.warn(text, CalibrationWarning, stacklevel=4)
        return found


def _opened(calibration: Any, graph: Graph) -> Batches:
    return calibration if isinstance(calibration, Batches) else load_batches(calibration, inputs=graph.inputs)


def _meta(graph: Graph, recipe: Recipe, decisions: tuple[Decision, ...], ranges: Mapping[Need, Range]) -> dict[str, str]:
    meta = {"recipe": recipe.name}
    if recipe.weights is not None:
        meta |= {"weights": recipe.weights.name, "activations": str(recipe.activations or "float32"), "approach": recipe.approach}
    if recipe.overrides:
        nodes = {node.name: node for node in graph.nodes}
        used = [(nodes[d.node].inputs[i] in graph.constants, s.format.name) for d in decisions for i, s in d.schemes.items()]
        for role, constant in (("weights", True), ("activations", False)):
            meta[role] = " ".join(sorted({name for own, name in used if own == constant})) or "float32"
    if ranges:
        meta["calibration_samples"] = str(max(r.samples for r in ranges.values()))
    return meta
