"""Real pretrained models on real data: what the accuracy and latency tables are made of. One file a workload."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8np.graph import Graph

__all__ = ["Workload", "need"]

# The networks and data loading that examples/ already shows are not written twice.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@dataclass(frozen=True)
class Workload:
    """One model with its data and its metric.

    Attributes:
        name: of the row.
        metric: what `score` returns, e.g. "accuracy".
        module: the pretrained nn.Module, in eval mode.
        graph: the FP32 graph converted from it.
        calibration: batches for the model, not among those that `batches` gives.
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


def need(path: Path, what: str) -> Path:
    """`path` if it exists.

    Raises:
        SystemExit: it does not; says what is missing.
    """
    if not path.exists():
        raise SystemExit(f"{what}: {path} does not exist")
    return path
