"""`tune`: a graph, a recipe, the user's metric, and a tolerance; gives the recipe that keeps it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fp8np
from fp8np.data import Batches, Progress, load_batches
from fp8np.errors import InputError
from fp8np.evaluate import Metric
from fp8np.graph import Graph
from fp8np.metrics import plain
from fp8np.ptq.recipe import Recipe
from fp8np.ptq.recipe_file import find_recipe, recipe_table
from fp8np.ptq.report import Report
from fp8np.ptq.workflow import Result, quantize_model
from fp8np.study.calibration import Kept
from fp8np.tuning.bench import Bench, graph_digest
from fp8np.tuning.log import Log
from fp8np.tuning.ranking import Damage
from fp8np.tuning.search import Search
from fp8np.tuning.target import Target
from fp8np.tuning.trial import Trial

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True)
class Tuned:
    """What tuning found. It may miss the target: see `met`.

    Attributes:
        graph: the quantized model, by `recipe`.
        recipe: the best that was tried, as `fp8np.ptq.workflow.quantize_model` takes it.
        baseline: the metric of the FP32 model.
        value: of `graph`.
        loss: of it, in what the tolerance is given in.
        met: whether it is within the tolerance.
        spent: whether there were more recipes to try, but no trials left.
        target: what was to be reached.
        trials: all that were tried, in order.
        ranking: what each node costs, the worst first; empty where the target was met before that was asked.
        report: on each layer.
    """

    graph: Graph
    recipe: Recipe
    baseline: float
    value: float
    loss: float
    met: bool
    spent: bool
    target: Target
    trials: tuple[Trial, ...]
    ranking: tuple[Damage, ...]
    report: Report

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "metric": self.target.name,
            "tolerance": self.target.tolerance,
            "absolute": self.target.absolute,
            "lower_is_better": self.target.lower_is_better,
            "baseline": plain(self.baseline),
            "value": plain(self.value),
            "loss": plain(self.loss),
            "met": self.met,
            "spent": self.spent,
            "recipe": recipe_table(self.recipe),
            "trials": [trial.as_dict() for trial in self.trials],
            "ranking": [damage.as_dict() for damage in self.ranking],
            "report": self.report.as_dict(),
        }


def tune(
    graph: Graph,
    recipe: Recipe | str,
    data: Any,
    metric: str | Metric,
    *,
    calibration: Any = None,
    recalibration: Any = None,
    tolerance: float = 0.01,
    absolute: bool = False,
    lower_is_better: bool = False,
    output: str | None = None,
    trials: int = 60,
    log: str | os.PathLike[str] | None = None,
    told: Callable[[Trial], None] | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Changes a recipe until the user's metric loses no more than a tolerance: see `fp8np.tuning.search` for what is tried.

    The same graph, recipe, data and metric give the same result.

    Args:
        graph: a float32 graph.
        recipe: where to start from: a name, a file, or a recipe.
        data: with labels, anything that `fp8np.data.load_batches` takes.
        metric: a name of METRICS, ``pkg.mod:function``, or a function: takes all outputs and all labels, gives a number.
        calibration: as for `fp8np.ptq.workflow.quantize_model`. Without it, scales are found at each run where a recipe has none.
        recalibration: likewise.
        tolerance: the largest loss against FP32 that is accepted, as a part of FP32's figure.
        absolute: the tolerance is in the metric's own unit.
        lower_is_better: the metric counts errors.
        output: which output is measured, where the model has several: its key or position.
        trials: how many recipes may be measured at most.
        log: a file of JSON lines, where each trial is kept at once and from which trials are taken that it has.
        told: called after each trial, that of the FP32 model (number 0) first. On Ctrl-C, what was told last is what was found.
        progress: see `fp8np.data.Progress`.

    Raises:
        TuningError: the FP32 model's figure is 0 and the tolerance relative; or the log is of something else, or damaged.
        InputError: the data have no labels or do not fit, the metric is unknown, fails, or gives no number.
        CalibrationError: data are needed and missing. RecipeError: the recipe is unknown, or does not fit.
        OSError: the log cannot be written.

    Warns:
        CalibrationWarning: the range of an activation rests on one outlier.
    """
    if trials < 1:
        raise InputError(f"trials: expected a number from 1 on, got {trials!r}")
    target = Target(metric, tolerance, absolute, lower_is_better)
    start = find_recipe(recipe)
    labelled, samples, again = (
        None if source is None else Kept(_opened(source, graph), graph.inputs) for source in (data, calibration, recalibration)
    )
    if labelled is None:
        raise InputError("tune: expected data with labels, got None")

    def quantized(what: Recipe, batches: int) -> Result:
        return quantize_model(graph, what, _batches(samples), recalibration=_batches(again), report_batches=batches, progress=progress)

    if start.candidates:
        # The choice of formats is made once; nodes are changed from there.
        start = quantized(start, 0).recipe
    bench = Bench(graph, start, labelled, target, calibration=samples, recalibration=again, output=output, progress=progress)
    facts = {
        "version": fp8np.__version__,
        "model": graph_digest(bench.prepared),
        "data": _digest(labelled),
        "calibration": _digest(samples),
        "recalibration": _digest(again),
        "metric": target.identity,
        "output": output or "",
    }
    search = Search(bench, target, Log(log, facts), trials, told)
    search.run()
    best = search.best
    result = quantized(best.recipe, 4)
    # Plans add in their own order where they show other values: should a range have come out otherwise, the model is measured again.
    value = best.value if graph_digest(result.graph) == search.digest(best) else bench.value(result.graph)
    loss = target.loss(search.baseline.value, value)
    return Tuned(
        graph=result.graph,
        recipe=best.recipe,
        baseline=search.baseline.value,
        value=value,
        loss=loss,
        met=target.met(loss),
        spent=search.spent,
        target=target,
        trials=tuple(search.trials),
        ranking=search.ranking,
        report=result.report,
    )


def _opened(source: Any, graph: Graph) -> Batches:
    return source if isinstance(source, Batches) else load_batches(source, inputs=graph.inputs)


def _batches(kept: Kept | None) -> Batches | None:
    return None if kept is None else kept.batches()


def _digest(kept: Kept | None) -> str:
    if kept is None:
        return ""
    kept.load()
    return kept.digest[:16]
