"""Which nodes of two artifacts are the same, and how well values agree.

Passes that quantize keep the names of nodes and values, insert others, and may fold or rescale constants: nodes are the same if their
names are, or those of their first outputs, and the shapes of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.graph import Graph, Node
from fp8np.inspection.operands import is_quantizer
from fp8np.metrics import decibels

__all__ = ["Agreement", "Pairs", "paired"]

Array = npt.NDArray[Any]

# A gain for each channel that explains so much of a difference, in dB, is one that a pass put there: rounding makes none.
_EXPLAINED = 10.0
# What agrees better than that, in dB, has not been scaled.
_CLOSE = 20.0
# Fewer numbers than that for each channel can be explained by anything.
_NUMBERS = 8


@dataclass(frozen=True)
class Pairs:
    """The nodes of two graphs.

    Attributes:
        same: pairs, in the order of the first graph.
        first, second: nodes that only that graph has; those that make codes are left out, since quantizing inserts them.
    """

    same: tuple[tuple[Node, Node], ...]
    first: tuple[Node, ...]
    second: tuple[Node, ...]


def paired(a: Graph, b: Graph) -> Pairs:
    """The nodes that two graphs share.

    >>> from fp8np.build import GraphBuilder
    >>> def graph(op):
    ...     g = GraphBuilder()
    ...     x = g.node("relu", (g.input("x", ("B", 3), "float32"),), name="first")
    ...     return g.finish(g.node(op, (x,), name=f"a {op}"))
    >>> pairs = paired(graph("exp"), graph("neg"))
    >>> [(one.name, other.name) for one, other in pairs.same], [node.name for node in pairs.first + pairs.second]
    ([('first', 'first')], ['a exp', 'a neg'])
    """
    named = {node.name: node for node in b.nodes if not is_quantizer(b, node)}
    makers = {node.outputs[0]: node for node in named.values()}
    same: list[tuple[Node, Node]] = []
    alone: list[Node] = []
    taken: set[str] = set()
    for node in a.nodes:
        if is_quantizer(a, node):
            continue
        other = named.get(node.name) or makers.get(node.outputs[0])
        if other is None or other.name in taken or a.values[node.outputs[0]].shape != b.values[other.outputs[0]].shape:
            alone.append(node)
            continue
        taken.add(other.name)
        same.append((node, other))
    return Pairs(tuple(same), tuple(alone), tuple(node for name, node in named.items() if name not in taken))


@dataclass
class Agreement:
    """How well a value agrees with a reference, over any number of arrays.

    Attributes:
        largest: the largest difference.
        elements: how many were compared. Where either is not finite, they agree if they are equal.
    """

    largest: float = 0.0
    elements: int = 0
    _largest_reference: float = 0.0
    _signal: float = 0.0
    _noise: float = 0.0
    _own: float = 0.0
    _product: float = 0.0
    _channels: dict[int, Array] = field(default_factory=dict)
    # Once it agrees well as it is, no factors are looked for any more.
    _scaled: bool = True

    def add(self, value: Array, reference: Array) -> None:
        """Compares two arrays of one shape."""
        x, y = np.asarray(value, np.float64), np.asarray(reference, np.float64)
        self.elements += x.size
        with np.errstate(invalid="ignore"):
            difference = x - y
        if not np.isfinite(difference).all():
            finite = np.isfinite(x) & np.isfinite(y)
            if (~finite & (x != y) & ~(np.isnan(x) & np.isnan(y))).any():
                self.largest = self._noise = np.inf
            x, y, difference = (np.where(finite, z, 0.0) for z in (x, y, difference))
        self.largest = max(self.largest, _amax(difference))
        self._largest_reference = max(self._largest_reference, _amax(y))
        self._signal += float(np.vdot(y, y))
        self._own += float(np.vdot(x, x))
        self._product += float(np.vdot(x, y))
        self._noise += float(np.vdot(difference, difference))
        if self.sqnr < _CLOSE:
            self._by_channel(x, y)
        else:
            self._scaled = False

    def _by_channel(self, x: Array, y: Array) -> None:
        for axis in {1, x.ndim - 1} if x.ndim > 1 and self._scaled else ():
            others = tuple(i for i in range(x.ndim) if i != axis)
            sums = np.stack([np.sum(x * x, others), np.sum(x * y, others), np.sum(y * y, others)])
            known = self._channels.get(axis)
            if known is None or known.shape == sums.shape:
                self._channels[axis] = sums if known is None else known + sums

    @property
    def relative(self) -> float:
        """The largest difference, in parts of the largest magnitude of the reference; 0 where both are 0."""
        return self.largest / self._largest_reference if self._largest_reference else np.inf if self.largest else 0.0

    @property
    def sqnr(self) -> float:
        """In dB: 10 log10(sum reference² / sum difference²)."""
        return decibels(self._signal, self._noise)

    @property
    def cosine(self) -> float:
        """Of the angle between all numbers of both, as vectors."""
        norm = np.sqrt(self._signal * self._own)
        if not norm:
            return 1.0 if self._signal == self._own else 0.0
        return float(np.clip(self._product / norm, -1.0, 1.0))

    @property
    def scaled_sqnr(self) -> float | None:
        """The SQNR where each channel of the reference is first multiplied by whatever fits best; None unless that explains most of the
        difference. So it is where a pass has moved scales from layer to layer: then the plain figure says nothing.
        """
        best = self.sqnr
        if not (self._scaled and best < _CLOSE):
            return None
        for own, product, signal in self._channels.values():
            if self.elements < _NUMBERS * own.size:
                continue
            noise = float(np.sum(own - np.divide(product**2, signal, out=np.zeros_like(signal), where=signal > 0)))
            best = max(best, decibels(float(np.sum(own)), max(noise, 0.0)))
        return best if best >= self.sqnr + _EXPLAINED else None


def _amax(x: Array) -> float:
    return float(max(x.max(), -x.min())) if x.size else 0.0
