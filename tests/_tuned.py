"""Networks for tuning, of which it is known what hurts: branches side by side, some of which no format, or only one, can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fp8np.build import GraphBuilder
from fp8np.graph import Graph
from fp8np.model import Model

RNG = np.random.default_rng(7)
WIDTH = 16
X = RNG.standard_normal((48, WIDTH)).astype(np.float32)

LOST = 1e12
"""The largest of a row's numbers, in parts of the others: more than any 8-bit float spans, so that all the others vanish."""
WIDE = 3e6
"""More than E4M3 and E3M4 span; E5M2 holds both ends."""


def branches(*spans: float) -> Graph:
    """A linear layer "branch.i" for each span, its first input so much larger than the others, its weights so much smaller."""
    b = GraphBuilder()
    x = b.input("x", ("B", WIDTH), "float32")
    outputs = []
    for i, span in enumerate(spans):
        scale = np.ones(WIDTH, np.float32)
        scale[0] = span
        weight = np.random.default_rng(i).standard_normal((8, WIDTH)).astype(np.float32) / scale
        scaled = b.node("mul", (x, b.constant(f"scale.{i}", scale)), name=f"scaled.{i}")
        outputs.append(b.node("linear", (scaled, b.constant(f"w.{i}", weight)), name=f"branch.{i}"))
    return b.finish(b.node("concat", tuple(outputs), {"dim": 1}) if len(outputs) > 1 else outputs[0])


def labelled(graph: Graph, size: int = 24) -> list[tuple[Any, Any]]:
    """Inputs, and what the float32 model says of them."""
    model = Model(graph)
    return [(X[i : i + size], model.run(X[i : i + size])) for i in range(0, len(X), size)]


def likeness(outputs: Any, labels: Any) -> float:
    """1 where outputs are as they should be, less the norm of the difference in parts of the labels' norm."""
    return float(1 - np.linalg.norm(np.float64(outputs) - labels) / np.linalg.norm(labels))


def kept(overrides: Sequence[Any]) -> set[str]:
    """Names of the nodes that overrides keep in float32."""
    return {override.match for override in overrides if override.keep}
