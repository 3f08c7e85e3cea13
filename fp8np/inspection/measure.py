"""Runs a model, and its FP32 artifact beside it, on data, and adds up what each layer loses.

A layer's own noise is what rounding its operands adds to its output, given what reaches it in the quantized model: its op by definition
on those numbers and on what the codes stand for. So it says the same however scales were moved between layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.data import Batch, Batches, Progress
from fp8np.dims import Dim, evaluate
from fp8np.graph import Graph, Node
from fp8np.inspection.alternatives import sample_rows
from fp8np.inspection.losses import Losses
from fp8np.inspection.operands import Coded, Operand, coded_constant, coded_value, defined, operands, quantizers
from fp8np.inspection.originals import original_weight
from fp8np.inspection.pairs import Agreement, Pairs
from fp8np.interpret import bind_sizes
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor
from fp8np.watch import Watch

__all__ = ["Measured", "cut", "measured", "pieces"]

Array = npt.NDArray[Any]

# Values watched at a time: batches are cut so that they take no more memory, in bytes, than this.
_BUDGET = 1 << 28
_LARGEST_PIECE = 16
# Definitions are slow: the noise of a layer alone is measured on so many pieces.
_OWN_PIECES = 2


@dataclass
class Measured:
    """What was seen of a model.

    Attributes:
        graph: the model.
        made: its `quantizers`.
        operands: what each node reads in fewer bits, by node.
        losses: by node and position of the operand.
        originals: the float32 weights that codes were made of, where they are known, by node and position.
        rescaled: nodes whose weights had been multiplied by factors before they were rounded.
        samples_of: rows of each activation that is quantized, by name of its float32 value.
        own: what rounding its operands adds to the output of a node alone, by node.
        outputs: how the output of each node agrees with that of the FP32 artifact, by node.
        samples: on how many of the data.
    """

    graph: Graph
    made: Mapping[str, Node]
    operands: dict[str, tuple[Operand, ...]]
    losses: dict[tuple[str, int], Losses] = field(default_factory=dict)
    originals: dict[tuple[str, int], Array] = field(default_factory=dict)
    rescaled: set[str] = field(default_factory=set)
    samples_of: dict[str, Array] = field(default_factory=dict)
    own: dict[str, Agreement] = field(default_factory=dict)
    outputs: dict[str, Agreement] = field(default_factory=dict)
    samples: int = 0
    _weights: dict[tuple[str, int], Coded] = field(default_factory=dict)


def measured(graph: Graph, against: Graph | None, pairs: Pairs | None, batches: list[Batch], progress: Progress | None = None) -> Measured:
    """Looks at the weights, and runs the batches.

    Args:
        graph: the model.
        against: the FP32 artifact.
        pairs: the nodes of both.
        batches: what they are run on; may be none.
        progress: told about each piece.
    """
    made = quantizers(graph)
    seen = Measured(graph, made, {n.name: operands(graph, n, made) for n in graph.nodes if n.outputs[0] not in made})
    others = {} if pairs is None else {node.name: other for node, other in pairs.same}
    for node in graph.nodes:
        for operand in seen.operands.get(node.name, ()):
            if operand.constant:
                _weight(seen, node, operand, against, others.get(node.name))
    if batches:
        _run(seen, against, pairs, batches, progress)
    return seen


def pieces(batches: Batches, samples: int) -> list[Batch]:
    """The first batches, until they hold so many samples."""
    kept: list[Batch] = []
    for batch in batches:
        kept.append(batch)
        if sum(b.samples for b in kept) >= samples:
            break
    return kept


def _weight(seen: Measured, node: Node, operand: Operand, against: Graph | None, other: Node | None) -> None:
    key = node.name, operand.position
    coded = coded_constant(seen.graph, node, operand)
    original = None
    if against is not None and other is not None:
        original, changed = original_weight(against, other, operand, coded.values)
        if changed:
            seen.rescaled.add(node.name)
    losses = seen.losses[key] = Losses(operand.format)
    losses.add(coded, original)
    seen._weights[key] = coded
    if original is not None:
        seen.originals[key] = original


def _run(seen: Measured, against: Graph | None, pairs: Pairs | None, batches: list[Batch], progress: Progress | None) -> None:
    compared = [] if pairs is None else [(a, b) for a, b in pairs.same if _floats(seen.graph, a)]
    watch = Watch(seen.graph, [*_read(seen), *(a.outputs[0] for a, _ in compared)])
    other = None if against is None else Watch(against, [b.outputs[0] for _, b in compared])
    parts = [part for batch in batches for part in cut(seen.graph, batch)]
    for i, piece in enumerate(parts):
        values = watch(piece.inputs)
        sizes = bind_sizes(seen.graph, piece.inputs)
        _operands(seen, values, sizes, own=i < _OWN_PIECES)
        if other is not None:
            exact = other(piece.inputs)
            for a, b in compared:
                seen.outputs.setdefault(a.name, Agreement()).add(values[a.outputs[0]], exact[b.outputs[0]])
        seen.samples += piece.samples
        if progress is not None:
            progress("looking inside", i + 1, len(parts))


def _floats(graph: Graph, node: Node) -> bool:
    return graph.values[node.outputs[0]].dtype == "float32"


def _read(seen: Measured) -> Iterator[str]:
    """The values that nodes with operands in fewer bits read, before these are rounded."""
    beside = {name for node in seen.made.values() for name in node.outputs}
    for node in seen.graph.nodes:
        found = seen.operands.get(node.name, ())
        if found:
            yield from (operand.source for operand in found if operand.source is not None)
            yield from (n for n in node.inputs if n is not None and n not in seen.graph.constants and n not in beside)


def _operands(seen: Measured, values: Mapping[str, Array], sizes: Mapping[str, int], *, own: bool) -> None:
    codes: dict[str, tuple[Coded, dict[str, Any]]] = {}
    for node in seen.graph.nodes:
        found = seen.operands.get(node.name, ())
        for operand in found:
            if operand.source is None:
                continue
            source = values[operand.source]
            if operand.name not in codes:
                codes[operand.name] = coded_value(seen.made[operand.name], source, sizes)
            seen.losses.setdefault((node.name, operand.position), Losses(operand.format)).add(codes[operand.name][0], source)
            seen.samples_of.setdefault(operand.source, sample_rows(source))
        if own and found and _floats(seen.graph, node):
            _own(seen, node, found, values, codes, sizes)


def _own(
    seen: Measured,
    node: Node,
    found: tuple[Operand, ...],
    values: Mapping[str, Array],
    codes: Mapping[str, tuple[Coded, dict[str, Any]]],
    sizes: Mapping[str, int],
) -> None:
    beside = {name: value for _, others in codes.values() for name, value in others.items()}
    plain = [_plain(name, seen.graph, values, beside) for name in node.inputs]
    exact = list(plain)
    for operand in found:
        if operand.source is None:
            coded = seen._weights[node.name, operand.position]
            reference = seen.originals.get((node.name, operand.position), coded.values)
        else:
            coded, reference = codes[operand.name][0], values[operand.source]
        plain[operand.position] = coded.as_read(coded.values)
        exact[operand.position] = coded.as_read(reference)
    results = (defined(node, tuple(args), sizes) for args in (plain, exact))
    first, second = (r[0] if isinstance(r, tuple) else r for r in results)
    seen.own.setdefault(node.name, Agreement()).add(first, second)


def _plain(name: str | None, graph: Graph, values: Mapping[str, Array], beside: Mapping[str, Any]) -> Any:
    if name is None:
        return None
    constant = graph.constants.get(name)
    if constant is not None:
        return dequantize(constant) if isinstance(constant, QTensor) else constant
    return values.get(name, beside.get(name))


def cut(graph: Graph, batch: Batch) -> Iterator[Batch]:
    """A batch in pieces along axis 0, where all inputs count samples by it: small enough for all values of the graph at a time."""
    first = {value.shape[0] if value.shape else None for value in graph.inputs}
    if len(first) != 1 or not isinstance(next(iter(first)), Dim):
        yield batch
        return
    sizes = bind_sizes(graph, batch.inputs)
    total = sum(4 * int(np.prod([evaluate(n, sizes) for n in value.shape])) for value in graph.values.values())
    step = int(np.clip(_BUDGET * batch.samples // max(total, 1), 1, _LARGEST_PIECE))
    for start in itertools.count(0, step):
        if start >= batch.samples:
            return
        yield Batch({name: array[start : start + step] for name, array in batch.inputs.items()})
