"""`inspect_model`: all that a report says of a model, as plain data."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8np.data import Batch, Batches, Progress
from fp8np.graph import Constant, Graph, Node, named_leaves
from fp8np.inspection.advice import Advice, advised, shares
from fp8np.inspection.measure import Measured, measured, pieces
from fp8np.inspection.operands import Operand
from fp8np.inspection.pairs import Agreement, paired
from fp8np.metrics import plain
from fp8np.model import Model

__all__ = ["Inspection", "NodeFacts", "TensorFacts", "inspect_model"]

# Runs of a model whose time counts: the fastest, so that what else the machine does is left out.
_RUNS = 5


@dataclass(frozen=True)
class TensorFacts:
    """One operand of a node in fewer bits.

    Attributes:
        role: its name in the op's row.
        name: of the weight, or of the value before it is rounded.
        kind: "weight" or "activation".
        format: name of a format, "int8" or "uint8".
        scaling: "tensor", "channel 0", "static", "dynamic", "dynamic token", "direct", ...
        scales: how many there are; of an activation as last seen; None where nothing was run.
        scale_range: the smallest and the largest; None where nothing was run.
        sqnr: in dB; None where it is not known what was rounded.
        saturated: share of the numbers beyond what the format reaches at its scale.
        flushed: share of the numbers that are not zero, and become it.
        histogram: see `fp8np.inspection.losses.Histogram`; of magnitudes in scales. None where nothing was run.
    """

    role: str
    name: str
    kind: str
    format: str
    scaling: str
    scales: int | None
    scale_range: tuple[float, float] | None
    sqnr: float | None
    saturated: float | None
    flushed: float | None
    histogram: Mapping[str, Any] | None


@dataclass(frozen=True)
class NodeFacts:
    """One node, other than those that make codes.

    Attributes:
        name, op, origin: of the node.
        tensors: its operands in fewer bits; none where it runs in float32.
        own_sqnr: what rounding its operands adds to its output, in dB, given what reaches it.
        noise_share: its part of the sum of what all nodes add.
        output_sqnr: of its output against the FP32 artifact's, in dB: the noise of all nodes before it is in it.
        cosine: of the same two.
        rescaled: whether the output is that of the FP32 artifact times a factor for each channel; output_sqnr is then without these.
        matched: whether the FP32 artifact has the node; None without one.
        seconds: that its steps take, those that round its operands included; None where nothing was run, or where it is part of the
            steps of a node before it.
        bytes: of its constants.
        float32_bytes: of the same constants in the FP32 artifact; None without one.
    """

    name: str
    op: str
    origin: str
    tensors: tuple[TensorFacts, ...]
    own_sqnr: float | None
    noise_share: float | None
    output_sqnr: float | None
    cosine: float | None
    rescaled: bool
    matched: bool | None
    seconds: float | None
    bytes: int
    float32_bytes: int | None


@dataclass(frozen=True)
class Inspection:
    """What is known of a model.

    Attributes:
        meta: free text that the artifact has.
        nodes: in the order of the graph.
        outputs: for each float output: "sqnr" in dB, "cosine", "largest" difference, and the same "relative" to the largest magnitude.
        only_here, only_there: names of nodes that the FP32 artifact lacks, or has alone.
        advice: on the nodes that add most noise.
        trials: SQNR of the outputs, in dB: "as it is", and with the best choice in 8 bits for each node of the advice: "all of them".
        samples: of the data, on how many the model was run.
        compared: whether there was an FP32 artifact.
        seconds, float32_seconds: that a run of `timed_samples` takes.
        timed_samples: how many there are in the batch that was timed.
        bytes, float32_bytes: of all constants.
    """

    meta: Mapping[str, str]
    nodes: tuple[NodeFacts, ...]
    outputs: Mapping[str, Mapping[str, float]]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]
    advice: tuple[Advice, ...]
    trials: Mapping[str, float]
    samples: int
    compared: bool
    seconds: float | None
    float32_seconds: float | None
    timed_samples: int
    bytes: int
    float32_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON. What is not finite becomes "inf", "-inf" or "nan"."""
        document: dict[str, Any] = _plain(dataclasses.asdict(dataclasses.replace(self, meta=dict(self.meta))))
        return document


def inspect_model(
    model: Model, against: Model | None = None, data: Batches | None = None, *, samples: int = 64, progress: Progress | None = None
) -> Inspection:
    """Looks inside a model.

    Args:
        model: a converted model.
        against: the same model converted by the recipe ``fp32``. Without it, what weights lost and what reaches the outputs is not
            known.
        data: what it is run on. Without data nothing is run.
        samples: of the data, at least how many; whole batches.
        progress: told about each step.

    Raises:
        InputError, ExecutionError: a model refused the data. CalibrationError: the data are not readable.
    """
    batches = [] if data is None else pieces(data, samples)
    pairs = None if against is None else paired(model.graph, against.graph)
    reference = None if against is None else against.graph
    seen = measured(model.graph, reference, pairs, batches, progress)
    advice, trials = advised(seen, reference, batches, progress=progress)
    seconds, total = _times(model, batches)
    noise = shares(seen)
    others = {} if pairs is None else {a.name: b for a, b in pairs.same}
    nodes = tuple(
        _node(seen, node, others.get(node.name), None if pairs is None else reference, noise, seconds)
        for node in model.graph.nodes
        if node.name in seen.operands
    )
    return Inspection(
        meta=model.graph.meta,
        nodes=nodes,
        outputs=_outputs(model, against, batches),
        only_here=() if pairs is None else tuple(node.name for node in pairs.first),
        only_there=() if pairs is None else tuple(node.name for node in pairs.second),
        advice=advice,
        trials=trials,
        samples=seen.samples,
        compared=against is not None,
        seconds=total,
        float32_seconds=None if against is None else _times(against, batches)[1],
        timed_samples=batches[0].samples if batches else 0,
        bytes=_bytes(model.graph.constants, model.graph.constants),
        float32_bytes=None if reference is None else _bytes(reference.constants, reference.constants),
    )


def _node(
    seen: Measured, node: Node, other: Node | None, against: Graph | None, noise: Mapping[str, float], seconds: Mapping[str, float]
) -> NodeFacts:
    own, output = seen.own.get(node.name), seen.outputs.get(node.name)
    scaled = None if output is None else output.scaled_sqnr
    # Who reads codes first made them be made.
    spent = [seconds[name] for name in (node.name, *_made_for(seen, node)) if name in seconds]
    return NodeFacts(
        name=node.name,
        op=node.op,
        origin=node.origin,
        tensors=tuple(_tensor(seen, node, operand) for operand in seen.operands[node.name]),
        own_sqnr=None if own is None else own.sqnr,
        noise_share=noise.get(node.name),
        output_sqnr=None if output is None else output.sqnr if scaled is None else scaled,
        cosine=None if output is None else output.cosine,
        rescaled=scaled is not None,
        matched=None if against is None else other is not None,
        seconds=sum(spent) if spent else None,
        bytes=_bytes(seen.graph.constants, node.inputs),
        float32_bytes=None if against is None or other is None else _bytes(against.constants, other.inputs),
    )


def _made_for(seen: Measured, node: Node) -> list[str]:
    """The nodes that make the codes that this node is the first to read."""
    found = []
    for operand in seen.operands[node.name]:
        first = next(n for n in seen.graph.nodes if operand.name in n.inputs)
        if operand.source is not None and first.name == node.name:
            found.append(seen.made[operand.name].name)
    return found


def _tensor(seen: Measured, node: Node, operand: Operand) -> TensorFacts:
    losses = seen.losses.get((node.name, operand.position))
    known = losses if losses is not None and losses.elements else None
    return TensorFacts(
        role=operand.role,
        name=operand.name if operand.source is None else operand.source,
        kind="weight" if operand.constant else "activation",
        format=operand.format,
        scaling=operand.scaling,
        scales=None if known is None else known.scales,
        scale_range=_fixed_scale(seen, operand) if known is None else (known.low_scale, known.high_scale),
        sqnr=None if known is None else known.sqnr,
        saturated=None if known is None else known.saturated,
        flushed=None if known is None else known.flushed,
        histogram=None if known is None else known.histogram.as_dict(),
    )


def _fixed_scale(seen: Measured, operand: Operand) -> tuple[float, float] | None:
    scale = seen.made[operand.name].attrs.get("scale") if operand.name in seen.made else None
    return None if scale is None else (float(scale), float(scale))


def _bytes(constants: Mapping[str, Constant], names: Any) -> int:
    return sum(constants[name].nbytes for name in {n for n in names if n in constants})


def _times(model: Model, batches: Sequence[Batch]) -> tuple[dict[str, float], float | None]:
    """Seconds of each node, step by step, and of a run as a whole, on the first batch."""
    if not batches:
        return {}, None
    inputs = batches[0].inputs
    model.run(inputs)
    runs, nodes = [], []
    for _ in range(_RUNS):
        start = time.perf_counter()
        model.run(inputs)
        runs.append(time.perf_counter() - start)
        nodes.append(model.node_seconds(inputs))
    known = {node.name for node in model.graph.nodes}
    seconds: dict[str, float] = {}
    for name in nodes[0]:
        # A plan lifts some nodes to pictures, and names them after what they were.
        owner = name if name in known else name.rpartition(".picture")[0]
        seconds[owner] = seconds.get(owner, 0.0) + min(run[name] for run in nodes)
    return seconds, min(runs)


def _outputs(model: Model, against: Model | None, batches: Sequence[Batch]) -> dict[str, dict[str, float]]:
    if against is None:
        return {}
    agreements: dict[str, Agreement] = {}
    for batch in batches:
        theirs = dict(named_leaves(against.run(batch.inputs)))
        for path, array in named_leaves(model.run(batch.inputs)):
            if path in theirs and array.dtype == np.float32 and array.shape == theirs[path].shape:
                agreements.setdefault(path, Agreement()).add(array, theirs[path])
    return {path: {"sqnr": a.sqnr, "cosine": a.cosine, "largest": a.largest, "relative": a.relative} for path, a in agreements.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return plain(value) if isinstance(value, float) else value
