"""Measuring a model: outputs on data, against labels or against another model's outputs, in one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8np.data import Progress, imported, load_batches, user_code
from fp8np.errors import InputError
from fp8np.graph import named_leaves
from fp8np.metrics import METRICS
from fp8np.model import Model

__all__ = ["Evaluation", "Metric", "chosen_output", "evaluate", "metric_function"]

Metric = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Evaluation:
    """A metric's value, and on how many samples."""

    value: float
    samples: int


def evaluate(
    model: Model,
    data: Any,
    metric: str | Metric,
    *,
    reference: Model | None = None,
    output: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """A metric of a model's outputs on data.

    Args:
        model: what is measured.
        data: anything `fp8np.data.load_batches` takes; with labels, unless there is a reference.
        metric: a name of METRICS, ``pkg.mod:function``, or a function: takes all outputs and all labels, each joined along
            axis 0, gives a number.
        reference: a model whose outputs on the same inputs stand in for labels.
        output: which output counts, where the model has several: its key or position, "logits", "0", "states.0".
        threads: see `Model.run`.
        progress: called after each batch.

    Raises:
        InputError: data have no labels, an output is unknown, or the metric does not fit. CalibrationError: data unreadable.

    >>> from fp8np.build import GraphBuilder
    >>> b = GraphBuilder()
    >>> model = Model(b.finish(b.node("relu", (b.input("x", ("B", 2), "float32"),))))
    >>> x = np.array([[-1, 2], [3, 1]], np.float32)
    >>> evaluate(model, [(x, np.array([1, 0]))], "accuracy")
    Evaluation(value=1.0, samples=2)
    """
    function = metric_function(metric)
    batches = load_batches(data, inputs=model.inputs)
    outputs: list[Any] = []
    targets: list[Any] = []
    samples = 0
    for i, batch in enumerate(batches):
        outputs.append(chosen_output(model.run(batch.inputs, threads=threads), output))
        if reference is not None:
            targets.append(chosen_output(reference.run(batch.inputs, threads=threads), output))
        elif batch.label is None:
            raise InputError(f"{batches.origin}: batch {i} has no labels; give (inputs, labels), an array 'labels', or a reference model")
        else:
            targets.append(np.asarray(batch.label))
        samples += batch.samples
        if progress is not None:
            progress("evaluating", i + 1, batches.count)
    return Evaluation(float(function(_joined(outputs), _joined(targets))), samples)


def metric_function(metric: str | Metric) -> Metric:
    """What `evaluate` takes as a metric, as a function of all outputs and all labels.

    Raises:
        InputError: there is none of that name; and, from the function, where a user's own fails.
    """
    if callable(metric):
        return metric
    if metric in METRICS:
        return METRICS[metric]
    if ":" in metric:
        function = imported(metric)

        def measure(outputs: Any, labels: Any) -> float:
            with user_code(metric):
                return float(function(outputs, labels))

        return measure
    raise InputError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}, or pkg.mod:function")


def chosen_output(outputs: Any, name: str | None) -> Any:
    """One of a model's outputs: by its key or position, or the only one.

    Raises:
        InputError: there is none of that name, or there are several and none is named.
    """
    named = dict(named_leaves(outputs))
    if name is None and len(named) == 1:
        return next(iter(named.values()))
    if name not in named:
        asked = "name the one to measure" if name is None else f"got {name!r}"
        raise InputError(f"output: expected one of {', '.join(named)}; {asked}")
    return named[name]


def _joined(arrays: list[Any]) -> Any:
    return np.concatenate([np.atleast_1d(a) for a in arrays])
