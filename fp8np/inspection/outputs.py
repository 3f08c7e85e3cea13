"""The outputs of a model on a few batches, and how well those of others agree with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fp8np.data import Batch
from fp8np.graph import Graph, named_leaves
from fp8np.inspection.pairs import Agreement
from fp8np.metrics import decibels
from fp8np.watch import Watch

__all__ = ["Outputs"]


class Outputs:
    """The float outputs of the FP32 artifact on data, to compare models with."""

    def __init__(self, graph: Graph, against: Graph, batches: Sequence[Batch]) -> None:
        theirs = dict(named_leaves(against.outputs))
        ours = dict(named_leaves(graph.outputs))
        self._pairs = [(ours[path], name) for path, name in theirs.items() if path in ours and _float(graph, ours[path])]
        watch = Watch(against, [name for _, name in self._pairs])
        self._batches = [(batch, watch(batch.inputs)) for batch in batches]

    def sqnr(self, graph: Graph) -> float:
        """Of a graph's outputs, in dB: the noise of each is relative to its own energy, and the mean of these counts."""
        watch = Watch(graph, [name for name, _ in self._pairs])
        agreements = [Agreement() for _ in self._pairs]
        for batch, exact in self._batches:
            got = watch(batch.inputs)
            for agreement, (ours, theirs) in zip(agreements, self._pairs, strict=True):
                agreement.add(got[ours], exact[theirs])
        noises = [10 ** (-agreement.sqnr / 10) for agreement in agreements]
        return decibels(1.0, sum(noises) / len(noises)) if noises else math.nan


def _float(graph: Graph, name: str) -> bool:
    return graph.facts(name).dtype == "float32" and name not in graph.constants
