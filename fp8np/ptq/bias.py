"""Bias correction (arXiv 1906.04721, section 4.2): rounding shifts the mean of each output channel, and the bias takes it back.

Layers are corrected in one pass: while the quantized model runs, the mean error of a layer is subtracted from its output, batch by
batch, so that the next layer's error is its own. What was subtracted, averaged over the batches, goes into the biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from fp8np.check import check
from fp8np.data import Batches, Progress, limited
from fp8np.graph import Constant, Graph, Names, Node, leaves
from fp8np.layers._op import OPS
from fp8np.ptq._means import Extension
from fp8np.ptq.assign import Decision
from fp8np.watch import Watch

__all__ = ["correct_bias"]


def correct_bias(
    reference: Graph,
    quantized: Graph,
    decisions: Sequence[Decision],
    data: Batches,
    *,
    samples: int | None = None,
    progress: Progress | None = None,
) -> Graph:
    """The quantized graph with biases by which, on the data, each channel of each quantized layer has the mean of the reference.

    Args:
        reference: the float32 graph; nodes and values have the same names in both.
        quantized: what `fp8np.ptq.insert` gave.
        decisions: those carried out: which nodes are quantized.
        data: batches.
        samples: so many are used; None: all.
        progress: told about each batch.

    Raises:
        CalibrationError: there are no data.
    """
    done = {decision.node for decision in decisions if decision.schemes}
    known = {name for node in reference.nodes for name in node.outputs}
    layers = {
        node.name: axis
        for node in quantized.nodes
        if node.name in done and node.outputs[0] in known and (axis := _channels(quantized, node)) is not None
    }
    if not layers:
        return quantized
    exact, errors = Extension(reference), Extension(quantized)
    means: dict[str, str] = {}
    for node in reference.nodes:
        exact.nodes.append(node)
        if node.name in layers:
            means[node.name] = exact.channel_mean(node.outputs[0], layers[node.name])
    wanted: dict[str, str] = {}
    shifts: dict[str, str] = {}
    for node in quantized.nodes:
        if node.name not in layers:
            errors.nodes.append(node)
            continue
        axis = layers[node.name]
        raw = errors.renamed(node)
        wanted[node.name] = errors.input(f"{node.name}.wanted", int(errors.values[raw].shape[axis]))  # type: ignore[arg-type]
        shifts[node.name] = errors.add("sub", f"{node.name}.shift", wanted[node.name], errors.channel_mean(raw, axis))
        errors.add("add", f"{node.name}.corrected", raw, errors.along(shifts[node.name], raw, axis), output=node.outputs[0])
    sees_exact = Watch(check(exact.finished()), means.values())
    sees_errors = Watch(check(errors.finished()), shifts.values())
    total = {name: np.zeros(1) for name in layers}
    count = 0
    for batch in limited(data, samples, "correcting biases", progress):
        right = sees_exact(batch.inputs)
        found = sees_errors({**batch.inputs, **{wanted[name]: right[means[name]] for name in layers}})
        for name in layers:
            total[name] = total[name] + batch.samples * found[shifts[name]].astype(np.float64)
        count += batch.samples
    return _shifted(quantized, {name: sum_ / count for name, sum_ in total.items()})


def _channels(graph: Graph, node: Node) -> int | None:
    """The axis of the output channels of a layer with a bias that is a vector for each of them; None for other nodes."""
    row = OPS[node.op]
    if "bias?" not in row.inputs or "weight" not in row.input_names or "conv_transpose" in node.op:
        return None
    weight = graph.facts(str(node.inputs[row.input_names.index("weight")]))
    shape = graph.facts(node.outputs[0]).shape
    axis = len(shape) - 1 if len(weight.shape) == 2 else len(shape) - len(weight.shape) + 1
    bias = node.inputs[row.inputs.index("bias?")]
    fits = len(weight.shape) > 1 and axis > 0 and shape[axis] == weight.shape[0]
    return axis if fits and (bias is None or isinstance(graph.constants.get(bias), np.ndarray)) else None


def _shifted(graph: Graph, shifts: dict[str, Any]) -> Graph:
    names = Names.beside(graph)
    constants: dict[str, Constant] = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        if node.name in shifts:
            position = OPS[node.op].inputs.index("bias?")
            old = node.inputs[position]
            before = 0.0 if old is None else np.asarray(graph.constants[old], np.float64)
            new = names.fresh(f"{old or f'{node.name}.bias'}.corrected")
            constants[new] = (before + shifts[node.name]).astype(np.float32)
            node = node.replace(inputs=(*node.inputs[:position], new, *node.inputs[position + 1 :]))
        nodes.append(node)
    read = {name for node in nodes for name in node.inputs} | set(leaves(graph.outputs))
    kept = {name: constant for name, constant in constants.items() if name in read}
    return graph.replace(nodes=tuple(nodes), constants=MappingProxyType(kept))
