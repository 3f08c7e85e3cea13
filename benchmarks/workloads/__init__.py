"""What the tables of accuracy and latency are made of: workloads of `fp8np_studies`, and networks with random weights, one file each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fp8np.graph import Graph

__all__ = ["Score", "Workload", "from_study"]

Score = Callable[[list[Any], list[Any]], float]
"""Of the outputs and the labels of all batches."""


@dataclass(frozen=True)
class Workload:
    """One model with its data and its metric.

    Attributes:
        name: of the row.
        metric: what `score` returns, e.g. "accuracy".
        module: the pretrained nn.Module, in eval mode.
        graph: the FP32 graph converted from it.
        calibration: batches for the model.
        batches: test batches, each what `Model.run` takes.
        score: the metric of the outputs, one for each batch.
        logits: the array of an output by which fp8np and PyTorch are compared.
    """

    name: str
    metric: str
    module: Callable[[], Any]
    graph: Callable[[], Graph]
    calibration: Callable[[], Iterable[Any]]
    batches: Callable[[], Iterable[Any]]
    score: Callable[[list[Any]], float]
    logits: Callable[[Any], Any]


def from_study(
    name: str,
    metric: str,
    module: ModuleType,
    score: Score,
    folders: Mapping[str, Path],
    *,
    part: str = "",
    graph: Callable[[], Graph] | None = None,
    logits: Callable[[Any], Any] = lambda output: output,
) -> Workload:
    """All of the data of a workload of `fp8np_studies`.

    Args:
        name, metric, logits: as in `Workload`.
        module: of the study.
        score: see `Score`.
        folders: where weights and data are.
        part: which of its data, where it has several: its functions are `part` and `part`_calibration.
        graph: another way to it than tracing the network with a batch of any size.
    """
    labelled = list(getattr(module, part or "data")(folders))

    def traced() -> Graph:
        from fp8np_converters.torch_export import from_module

        network = module.network(folders)
        return from_module(network, network.example_inputs)

    return Workload(
        name=name,
        metric=metric,
        module=lambda: module.network(folders),
        graph=graph or traced,
        calibration=lambda: getattr(module, f"{part}_calibration" if part else "calibration")(folders),
        batches=lambda: (batch for batch, _ in labelled),
        score=lambda outputs: score(outputs, [label for _, label in labelled]),
        logits=logits,
    )
