"""`rehearse`: what a plan would take, without packing a weight or compiling a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fp8np.graph import Graph
from fp8np.kernels._jit import Entry
from fp8np.kernels._program import rehearsing
from fp8np.plan.make import make_plan
from fp8np.plan.run import Plan
from fp8np.plan.weights import Weights

__all__ = ["Rehearsal", "rehearse"]


@dataclass(frozen=True)
class Rehearsal:
    """A plan to be looked at, not to be run.

    Attributes:
        plan: its weights have places and sizes, but no values.
        weights: what would be made of the constants.
        entries: all that packing the weights and running the plan calls, each once.
    """

    plan: Plan
    weights: Weights
    entries: tuple[Entry, ...]


def rehearse(graph: Graph, sizes: Mapping[str, int]) -> Rehearsal:
    """Plans a checked and fused graph at the given sizes.

    Raises:
        InputError: the model cannot run at these sizes; the message names the node that cannot.
    """
    weights = Weights(graph.constants)
    with rehearsing() as entries:
        plan = make_plan(graph, sizes, weights)
    return Rehearsal(plan, weights, tuple(dict.fromkeys((*entries, *plan.program.entries))))
