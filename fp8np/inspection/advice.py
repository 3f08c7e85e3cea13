"""The nodes that hurt most, and what would help: choices measured on their tensors, the best of them on the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fp8np.data import Batch, Progress
from fp8np.graph import Graph
from fp8np.inspection.alternatives import Alternative, activation_alternatives, weight_alternatives
from fp8np.inspection.changes import Change, changed
from fp8np.inspection.measure import Measured
from fp8np.inspection.operands import Operand
from fp8np.inspection.outputs import Outputs
from fp8np.metrics import decibels

__all__ = ["Advice", "Option", "advised", "shares"]

# How much better, in dB, a choice has to be than a simpler one: scales of least squared error take a search, scales of tokens a pass
# over the activation at each run.
_SEARCH, _TOKENS = 0.3, 1.0
# Less than this, in dB of the layer's own noise, is no help.
_HELP = 0.5


@dataclass(frozen=True)
class Option:
    """Something that would help a node.

    Attributes:
        text: what to change.
        own_sqnr: what the node alone would then add, in dB, from what its tensors lose; None where it would add nothing.
        output_sqnr: of the model's outputs, measured with this change alone; None where that was not measured.
    """

    text: str
    own_sqnr: float | None
    output_sqnr: float | None


@dataclass(frozen=True)
class Advice:
    """On one node.

    Attributes:
        node: its name.
        share: of the noise that all nodes add, by their own SQNR.
        options: what would help, the best choice in 8 bits first, float32 last.
    """

    node: str
    share: float
    options: tuple[Option, ...]


def shares(seen: Measured) -> dict[str, float]:
    """For each node, its part of the sum of what nodes add on their own, relative to their outputs; largest first."""
    noise = {name: 10 ** (-agreement.sqnr / 10) for name, agreement in seen.own.items() if agreement.sqnr > -math.inf}
    total = sum(noise.values())
    return {name: n / total for name, n in sorted(noise.items(), key=lambda item: -item[1]) if n} if total else {}


def advised(
    seen: Measured, against: Graph | None, batches: Sequence[Batch], *, most: int = 6, progress: Progress | None = None
) -> tuple[tuple[Advice, ...], dict[str, float]]:
    """Advice on the nodes that add most, those first that cost the outputs most, and the SQNR of the model's outputs, in dB.

    The second part has "as it is", and "all of them" with the best choice in 8 bits for each of these nodes; it is empty without an
    FP32 artifact.

    Args:
        seen: what was measured.
        against: the graph of the FP32 artifact.
        batches: on which outputs are compared.
        most: on how many nodes.
        progress: told about each model that is run.
    """
    ranked = list(shares(seen).items())[:most]
    plans = {name: _best(seen, name) for name, _ in ranked}
    keep = {name: Change(name, {o.position: None for o in seen.operands[name]}) for name, _ in ranked}
    trials: dict[str, list[Change]] = {}
    if against is not None and ranked:
        better = {name: change for name, (change, _) in plans.items() if change.operands}
        trials = {"as it is": []} | {f"8 {n}": [c] for n, c in better.items()} | {f"32 {n}": [c] for n, c in keep.items()}
        if len(better) > 1:
            trials["all of them"] = list(better.values())
    figures: dict[str, float] = {}
    outputs = Outputs(seen.graph, against, batches) if against is not None and trials else None
    for i, (name, changes) in enumerate(trials.items()):
        assert outputs is not None
        figures[name] = outputs.sqnr(changed(seen, changes))
        if progress is not None:
            progress("trying changes", i + 1, len(trials))
    advice = tuple(_advice(seen, name, share, *plans[name], figures) for name, share in ranked)
    # What its noise does to the outputs is known better than how much of it there is.
    ordered = sorted(advice, key=lambda a: -(figures.get(f"32 {a.node}") or 0.0))
    return tuple(ordered), {name: figures[name] for name in ("as it is", "all of them") if name in figures}


def _advice(seen: Measured, name: str, share: float, change: Change, gains: Mapping[int, float], figures: Mapping[str, float]) -> Advice:
    texts = list(_texts(seen, name, change, gains))
    options = [Option(text, own, figures.get(f"8 {name}") if i == 0 else None) for i, (text, own) in enumerate(texts)]
    return Advice(name, share, (*options, Option("keep it in float32", None, figures.get(f"32 {name}"))))


def _best(seen: Measured, name: str) -> tuple[Change, Mapping[int, float]]:
    """The best choice for each operand that it helps to change, and by how many dB the node's own SQNR would rise with that alone."""
    node = next(node for node in seen.graph.nodes if node.name == name)
    now: dict[int, float] = {}
    best: dict[int, Alternative] = {}
    for operand in seen.operands[name]:
        losses = seen.losses[name, operand.position]
        if losses.sqnr is None:
            continue
        now[operand.position] = losses.sqnr
        if operand.source is None:
            found = weight_alternatives(node.op, operand.role, seen.originals[name, operand.position])
        else:
            found = activation_alternatives(node.op, seen.samples_of[operand.source], losses.amax)
        best[operand.position] = max(found, key=_worth)
    helping = {position: alternative for position, alternative in best.items() if alternative.sqnr > now[position]}
    while helping:
        # What others leave little to do for goes: first what matters least.
        total = _gain(now, {p: a.sqnr for p, a in helping.items()})
        cost = {dropped: total - _gain(now, {p: a.sqnr for p, a in helping.items() if p != dropped}) for dropped in helping}
        least = min(cost, key=cost.__getitem__)
        if cost[least] >= _HELP:
            break
        del helping[least]
    return Change(name, helping), {position: _gain(now, {position: alternative.sqnr}) for position, alternative in helping.items()}


def _worth(alternative: Alternative) -> float:
    return alternative.sqnr - _SEARCH * (alternative.calibrator == "mse") - _TOKENS * alternative.scheme.dynamic


def _gain(now: Mapping[int, float], then: Mapping[int, float]) -> float:
    """By how many dB the sum of noises falls where some become others."""
    before = sum(10 ** (-sqnr / 10) for sqnr in now.values())
    after = sum(10 ** (-then.get(position, sqnr) / 10) for position, sqnr in now.items())
    return decibels(before, after)


def _texts(seen: Measured, name: str, change: Change, gains: Mapping[int, float]) -> Iterator[tuple[str, float | None]]:
    own = seen.own[name].sqnr
    operands = {operand.position: operand for operand in seen.operands[name]}
    parts = {p: _text(seen, name, operands[p], a) for p, a in change.operands.items() if a is not None}
    if len(parts) > 1:
        now = {p: losses.sqnr for (n, p), losses in seen.losses.items() if n == name and losses.sqnr is not None}
        yield "; ".join(parts.values()), own + _gain(now, {p: a.sqnr for p, a in change.operands.items() if a is not None})
    for position, text in sorted(parts.items(), key=lambda part: -gains[part[0]]):
        if gains[position] >= _HELP:
            yield text, own + gains[position]


def _text(seen: Measured, name: str, operand: Operand, alternative: Alternative) -> str:
    now = seen.losses[name, operand.position].sqnr
    return f"{operand.role} in {alternative.text} ({now:.1f} → {alternative.sqnr:.1f} dB)"
