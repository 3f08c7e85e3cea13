"""The standard workflow: fold, calibrate, quantize, check, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fp8np.calibrate import Range, calibrate
from fp8np.check import check
from fp8np.data import Batches, Progress, load_batches
from fp8np.errors import CalibrationError
from fp8np.graph import Graph
from fp8np.ptq.assign import Decision, calibrated, decide
from fp8np.ptq.fold import fold_batch_norm
from fp8np.ptq.insert import insert
from fp8np.ptq.recipe import Recipe, get_recipe
from fp8np.ptq.report import Report, make_report

__all__ = ["Quantized", "Result", "quantize_graph", "quantize_model"]


@dataclass(frozen=True)
class Quantized:
    """A quantized graph, and what was decided about each node."""

    graph: Graph
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Result:
    """A quantized graph, and the report on it."""

    graph: Graph
    report: Report


def quantize_graph(graph: Graph, recipe: Recipe | str, ranges: Mapping[str, Range]) -> Quantized:
    """A graph, quantized by a recipe and the ranges of its activations; nothing else is changed.

    Raises:
        RecipeError: the recipe does not fit. CalibrationError: the range of an activation is missing.
    """
    decisions = decide(graph, get_recipe(recipe))
    return Quantized(check(insert(graph, decisions, ranges)), decisions)


def quantize_model(
    graph: Graph,
    recipe: Recipe | str,
    calibration: Any = None,
    *,
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
            where scales are static; otherwise only for the output figures of the report.
        samples: calibrate on the first so many (rounded up to whole batches); None: on all.
        report_batches: on how many batches the quantized model is compared with the float32 one.
        progress: see `fp8np.data.Progress`.

    Raises:
        CalibrationError: data are needed and missing, or not fit for it. InputError: data do not fit the model's inputs.
        RecipeError: the recipe does not fit. GraphError: the graph breaks an invariant.
    """
    recipe = get_recipe(recipe)
    folded = check(fold_batch_norm(check(graph)))
    names = calibrated(folded, decide(folded, recipe))
    batches = None if calibration is None else _opened(calibration, folded)
    ranges: dict[str, Range] = {}
    if names:
        if batches is None:
            raise CalibrationError(
                f"recipe {recipe.name!r} finds the scales of activations ({len(names)} here) on calibration data, and there are none: give "
                "some (--calibration: npz, npy, a folder of them, or package.module:function), or choose --approach dynamic"
            )
        ranges = calibrate(folded, batches, names, samples=samples, progress=progress)
    quantized = quantize_graph(folded, recipe, ranges)
    result = quantized.graph.replace(meta=MappingProxyType({**graph.meta, **_meta(recipe, ranges)}))
    compared = batches if recipe.weights is not None else None
    report = make_report(folded, result, recipe.name, quantized.decisions, compared, batches=report_batches, progress=progress)
    return Result(result, report)


def _opened(calibration: Any, graph: Graph) -> Batches:
    return calibration if isinstance(calibration, Batches) else load_batches(calibration, inputs=graph.inputs)


def _meta(recipe: Recipe, ranges: Mapping[str, Range]) -> dict[str, str]:
    meta = {"recipe": recipe.name}
    if recipe.weights is not None:
        meta |= {"weights": recipe.weights.name, "activations": str(recipe.activations or "float32"), "approach": recipe.approach}
    if ranges:
        meta["calibration_samples"] = str(max(r.samples for r in ranges.values()))
    return meta
