"""What each node costs: the model's output with it alone quantized; and, to choose among its formats, its own output alone.

Both are cheap beside the user's metric: a few batches, and no labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fp8np.build import GraphBuilder
from fp8np.data import Batch
from fp8np.graph import Graph, Node, leaves
from fp8np.inspection.outputs import Outputs
from fp8np.interpret import bind_sizes, evaluated
from fp8np.layers._op import OPS
from fp8np.metrics import decibels, energy, plain
from fp8np.model import Model
from fp8np.ptq.assign import Decision, needs
from fp8np.ptq.insert import insert
from fp8np.scheme import Scheme
from fp8np.tuning.bench import Bench
from fp8np.watch import Watch

__all__ = ["Damage", "Ranking"]

_NUMBERS = 1 << 20
"""Of an operand, on which a node's own output is measured."""


@dataclass(frozen=True)
class Damage:
    """What one node costs.

    Attributes:
        node, op: its name and op.
        sqnr: in dB, of the model's measured outputs with this node alone quantized; of the node's own output where those are not float.
    """

    node: str
    op: str
    sqnr: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"node": self.node, "op": self.op, "sqnr": plain(self.sqnr)}


class Ranking:
    """Measures nodes of a bench's model.

    Args:
        bench: whose ranges are known for what is measured.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._batches: Sequence[Batch] = bench.few()
        self._nodes = {node.name: node for node in bench.prepared.nodes}
        exact = bench.measured_output(bench.prepared)
        self._outputs = Outputs(exact, exact, self._batches)
        self._alone = _Alone()
        self._known: dict[tuple[str, tuple[tuple[int, Scheme], ...]], Damage] = {}

    def ranked(self, decisions: Sequence[Decision]) -> tuple[Damage, ...]:
        """The nodes that decisions quantize, those that cost most first."""
        quantized = tuple(decision for decision in decisions if decision.schemes)
        self._bench.calibrate(needs(self._bench.prepared, quantized))
        found = []
        for i, decision in enumerate(quantized, 1):
            key = decision.node, tuple(decision.schemes.items())
            if key not in self._known:
                self._known[key] = Damage(decision.node, self._nodes[decision.node].op, self._damage(decision))
            found.append(self._known[key])
            if self._bench.progress is not None:
                self._bench.progress("ranking nodes", i, len(quantized))
        return tuple(sorted(found, key=lambda damage: damage.sqnr))

    def _damage(self, decision: Decision) -> float:
        sqnr = self._outputs.sqnr(self._bench.inserted([decision]))
        return self.own(decision) if math.isnan(sqnr) else sqnr

    def own(self, decision: Decision) -> float:
        """SQNR in dB of a node's own output, with its operands quantized and those of the FP32 model."""
        if self._alone.name != decision.node:
            # Asked about one node after the other, with several choices each.
            self._alone = _Alone.of(self._bench.prepared, self._nodes[decision.node], self._batches[0])
        how = self._bench.recipe.weight_calibrator
        return self._alone.sqnr(decision, lambda graph, made: insert(graph, made, self._bench.ranges, weight_calibrator=how))


@dataclass(frozen=True)
class _Alone:
    """One node as a graph, at the sizes that its operands have on a batch, and what it gives in float32."""

    name: str = ""
    graph: Graph | None = None
    operands: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    exact: tuple[Any, ...] = ()
    signal: float = 0.0

    @classmethod
    def of(cls, graph: Graph, node: Node, batch: Batch) -> _Alone:
        """The node on what it reads in a graph."""
        read = [name for name in dict.fromkeys(node.inputs) if name is not None]
        operands = _fewer(Watch(graph, [name for name in read if name not in graph.constants])(batch.inputs))
        b = GraphBuilder()
        for name in read:
            if name in operands:
                b.input(name, operands[name].shape, operands[name].dtype.name)
            else:
                b.constant(name, graph.constants[name])
        attrs = evaluated(OPS[node.op].filled(node.attrs), bind_sizes(graph, batch.inputs))
        alone = b.finish(b.node(node.op, node.inputs, attrs, name=node.name, origin=node.origin))
        exact = tuple(leaves(Model(alone, checked=True).run(operands)))
        return cls(node.name, alone, operands, exact, sum(map(energy, exact)))

    def sqnr(self, decision: Decision, quantized: Callable[[Graph, tuple[Decision]], Graph]) -> float:
        assert self.graph is not None
        graph = quantized(self.graph, (Decision(self.graph.nodes[0].name, decision.schemes),))
        given = leaves(Model(graph).run(self.operands))
        noise = sum(energy(got - exact) for got, exact in zip(given, self.exact, strict=True))
        return -math.inf if math.isnan(noise) else decibels(self.signal, noise)


def _fewer(operands: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first of what axis 0 of all operands counts, where they are large: a million numbers tell as much."""
    counts = {array.shape[0] if array.ndim else 0 for array in operands.values()}
    largest = max((array.size for array in operands.values()), default=0)
    if len(counts) > 1 or largest <= _NUMBERS:
        return operands
    kept = max(1, counts.pop() * _NUMBERS // largest)
    return {name: array[:kept] for name, array in operands.items()}
