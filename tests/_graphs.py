"""Small graphs, run as plans: what the tests of plans share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fp8np.build import GraphBuilder
from fp8np.graph import Graph
from fp8np.layers._op import OPS
from fp8np.model import Model
from fp8np.plan.builder import Host
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor


def gamma(n: int) -> float:
    """The relative error of n roundings to float32 (Higham, Accuracy and Stability, lemma 3.1)."""
    return n * 2.0**-24 / (1 - n * 2.0**-24)


def exact(x: Any) -> Any:
    """What an operand means, in float64; integers as they are."""
    if isinstance(x, QTensor):
        return dequantize(x, dtype=np.float64)
    return x if x is None or x.dtype.kind != "f" else x.astype(np.float64)


def one_node(
    name: str, operands: tuple[Any, ...], constants: Collection[int], attrs: Mapping[str, Any] | None = None
) -> tuple[Graph, dict[str, Any]]:
    """A graph of one node, and its inputs. Operands at `constants` are weights; other QTensors are quantized on the way in."""
    b = GraphBuilder()
    names: list[str | None] = []
    given = {}
    for i, x in enumerate(operands):
        if x is None or i in constants:
            names.append(None if x is None else b.constant(f"w{i}", x))
            continue
        array = dequantize(x) if isinstance(x, QTensor) else x
        source = b.input(f"x{i}", array.shape, array.dtype.name)
        given[source] = array
        if isinstance(x, QTensor):
            source = b.node("quantize", (source,), {"format": x.format.name, "scale": float(x.scale)})
        names.append(source)
    return b.finish(b.node(name, tuple(names), attrs or {})), given


def native(model: Model) -> bool:
    """Whether nothing of the plan made last ran in Python."""
    *_, plan = model._plans.values()
    return not any(isinstance(segment, Host) for segment in plan.segments)


def run_one(name: str, operands: tuple[Any, ...], constants: Collection[int], attrs: Mapping[str, Any] | None = None) -> tuple[Any, bool]:
    """What a plan of the node gives, and whether all of it ran natively."""
    graph, given = one_node(name, operands, constants, attrs)
    model = Model(graph)
    return model.run(given), native(model)


def defined(name: str, operands: tuple[Any, ...], attrs: Mapping[str, Any] | None = None) -> Any:
    """The node's definition in float64 on what the operands mean."""
    row = OPS[name]
    return row.define(*map(exact, operands), **row.filled(attrs or {}))
