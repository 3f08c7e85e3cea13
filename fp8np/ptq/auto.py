"""Automatic choice of formats and granularities, which the paper leaves open: what costs the layers of each tensor least, measured.

Of each product with a weight a few thousand rows of its operands are looked at. Rounding one operand and not the other costs

    weights       |x (w - ŵ)^T|²        activations      |(x - x̂) w^T|²

relative to |x w^T|²; the two are independent enough to be chosen apart (section 3.2 of the paper mixes them in the same way). An
activation that several layers read is rounded once, so their costs are added up. A weight gets one scale where one for each channel is
hardly better; an activation one for each token, found at each run, where that is much better and all its readers can. In the end the
whole model with what was chosen is compared with the models in one format each, and the best of all is taken: errors of layers do not
add up as if they knew nothing of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.calibrate import Need, Range, calibrate
from fp8np.data import Batches, Progress, limited
from fp8np.graph import Graph, Node, leaves
from fp8np.metrics import decibels
from fp8np.observers import parse_calibrator
from fp8np.ptq._matrix import Layer, layer_of
from fp8np.ptq.assign import TOKEN_OPS, Decision, decide, needs, overridden
from fp8np.ptq.codes import rounded_weight
from fp8np.ptq.insert import insert, rounded_activation
from fp8np.ptq.recipe import Format, Override, Recipe, paper_name
from fp8np.scheme import PerTensor, PerToken
from fp8np.watch import Watch

__all__ = ["Choice", "choose_formats"]

Floats = npt.NDArray[np.float32]

_ROWS = 1024
"""Of a layer's inputs, in all."""

_SAMPLES = 64
"""Of the data, in whole batches: layers are measured, and whole models compared, on the first."""

_TENSOR_ENOUGH = 0.1
"""Decibels by which a scale for each channel must be better than one scale to be worth having."""

_TOKENS_WORTH = 1.0
"""Decibels by which scales for each token, found at each run, must be better than one scale."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        recipe: with an override for each node, and without candidates.
        reasons: for each node, the decibels of each candidate.
        ranges: of all activations that the recipe needs, and of those that were not chosen.
    """

    recipe: Recipe
    reasons: Mapping[str, str]
    ranges: Mapping[Need, Range]


@dataclass
class _Costs:
    """Squared errors of one layer's output, by candidate, and its energy; of a weight itself where it is no product's."""

    node: Node
    x: str = ""
    signal: float = 0.0
    weights: dict[Format, float] = field(default_factory=dict)
    tensor: dict[Format, float] = field(default_factory=dict)
    activations: dict[Format, float] = field(default_factory=dict)
    tokens: dict[Format, float] = field(default_factory=dict)


def choose_formats(graph: Graph, recipe: Recipe, data: Batches, *, samples: int | None = None, progress: Progress | None = None) -> Choice:
    """A recipe with a format for each tensor.

    Args:
        graph: the float32 graph.
        recipe: ``recipe.candidates`` are the formats to choose from; all else is kept.
        data: batches.
        samples: for calibration.
        progress: told about each batch.

    Raises:
        CalibrationError: there are no data. RecipeError: the recipe does not fit.
    """
    plain = recipe.replace(candidates=())
    uniform = [plain.replace(weights=w, activations=a) for w, a in _pairs(recipe)]
    decisions = {(r.weights, r.activations): decide(graph, r) for r in uniform}
    wanted = tuple(dict.fromkeys(need for made in decisions.values() for need in needs(graph, made)))
    ranges: dict[Need, Range] = {}
    if wanted:
        calibrator = parse_calibrator(recipe.calibrator)
        ranges = calibrate(graph, data, wanted, calibrator=calibrator, samples=samples, progress=progress)
    measured = _measured(graph, recipe, decisions, ranges, data, progress)
    chosen = plain.replace(overrides=(*plain.overrides, *_overrides(recipe, measured)))
    models = {"chosen for each tensor": chosen, **{_name(r): r for r in uniform}}
    noise = _noise(graph, models, ranges, data, progress)
    best = max(noise, key=lambda name: noise[name])
    reasons = {name: _reason(costs) for name, costs in measured.items()}
    told = ", ".join(f"{name} {db:.1f}" for name, db in noise.items())
    reasons[""] = f"{best}: SQNR of the outputs in dB: {told}"
    return Choice(models[best].replace(name=recipe.name), reasons, ranges)


def _pairs(recipe: Recipe) -> list[tuple[Format, Format | None]]:
    """Formats of whole models: each alone; and each for activations, with those of more mantissa bits for weights."""
    both = recipe.activations is not None
    pairs: list[tuple[Format, Format | None]] = [(f, f if both else None) for f in recipe.candidates]
    if both:
        pairs += [(w, a) for w in recipe.candidates for a in recipe.candidates if w != a and w.mantissa_bits > a.mantissa_bits]
    return pairs


def _name(recipe: Recipe) -> str:
    names = dict.fromkeys((paper_name(recipe.weights), paper_name(recipe.activations)))
    return " x ".join(names)


def _measured(
    graph: Graph,
    recipe: Recipe,
    decisions: Mapping[tuple[Format | None, Format | None], tuple[Decision, ...]],
    ranges: Mapping[Need, Range],
    data: Batches,
    progress: Progress | None,
) -> dict[str, _Costs]:
    by_format = {w: {d.node: d.schemes for d in made} for (w, a), made in decisions.items() if a in (w, None)}
    first = next(iter(by_format.values()))
    layers = [layer for node in graph.nodes if (layer := layer_of(graph, node)) is not None and first.get(node.name)]
    others = [node for node in graph.nodes if first.get(node.name) and layer_of(graph, node) is None]
    measured = {node.name: _weight_costs(graph, recipe, node, by_format) for node in others}
    if not layers:
        return measured
    watch = Watch(graph, dict.fromkeys(layer.x for layer in layers))
    gathered: dict[str, list[Floats]] = {layer.node.name: [] for layer in layers}
    for batch in limited(data, _SAMPLES, "measuring layers", progress):
        found = watch(batch.inputs)
        limit = max(1, _ROWS * batch.samples // max(_SAMPLES, batch.samples))
        for layer in layers:
            gathered[layer.node.name].append(layer.rows(found[layer.x], graph.constants[layer.weight].shape, limit))
    rows = {name: np.concatenate(parts, axis=1) for name, parts in gathered.items()}
    return measured | {layer.node.name: _costs(graph, recipe, layer, rows[layer.node.name], by_format, ranges) for layer in layers}


def _weight_costs(graph: Graph, recipe: Recipe, node: Node, by_format: Mapping[Any, Mapping[str, Any]]) -> _Costs:
    """Of a node that is no product with one weight, such as an embedding: what rounding costs its weights."""
    costs = _Costs(node)
    for fmt, nodes in by_format.items():
        for i, scheme in nodes.get(node.name, {}).items():
            constant = graph.constants.get(str(node.inputs[i]))
            if isinstance(constant, np.ndarray):
                rounded = rounded_weight(constant, scheme, recipe.weight_calibrator)
                costs.weights[fmt] = costs.weights.get(fmt, 0.0) + _energy(np.atleast_1d(rounded - constant))
    weights = {name for name in map(str, node.inputs) if name in graph.constants and graph.constants[name].ndim > 1}
    costs.signal = sum(_energy(np.asarray(graph.constants[name])) for name in weights)
    return costs


def _costs(
    graph: Graph,
    recipe: Recipe,
    layer: Layer,
    x: Floats,
    by_format: Mapping[Any, Mapping[str, Any]],
    ranges: Mapping[Need, Range],
) -> _Costs:
    constant = np.asarray(graph.constants[layer.weight])
    w = layer.matrix(constant).transpose(0, 2, 1)
    costs = _Costs(layer.node, layer.x, _energy(x @ w))
    for fmt, nodes in by_format.items():
        schemes = nodes.get(layer.node.name, {})
        scheme = schemes.get(layer.weight_position)
        if scheme is not None:
            rounded = rounded_weight(constant, scheme, recipe.weight_calibrator)
            costs.weights[fmt] = _energy(x @ (layer.matrix(rounded).transpose(0, 2, 1) - w))
            one = rounded_weight(constant, replace(scheme, granularity=PerTensor()), recipe.weight_calibrator)
            costs.tensor[fmt] = _energy(x @ (layer.matrix(one).transpose(0, 2, 1) - w))
        read = schemes.get(layer.x_position)
        if read is not None:
            costs.activations[fmt] = _energy((x - rounded_activation(x, layer.x, read, ranges)) @ w)
            if layer.node.op in TOKEN_OPS and not read.direct:
                by_token = replace(read, granularity=PerToken(), dynamic=True)
                costs.tokens[fmt] = _energy((x - rounded_activation(x, layer.x, by_token, ranges)) @ w)
    return costs


def _energy(array: Any) -> float:
    # A row of products at a time in float32, which is exact enough for decibels; rows in float64.
    return float(np.einsum("...i,...i->...", array, array).sum(dtype=np.float64))


def _overrides(recipe: Recipe, measured: Mapping[str, _Costs]) -> list[Override]:
    together: dict[str, dict[Format, float]] = {}
    tokens: dict[str, dict[Format, float]] = {}
    for costs in measured.values():
        for found, shared in ((costs.activations, together), (costs.tokens, tokens)):
            sums = shared.setdefault(costs.x, {})
            for fmt in costs.activations:
                sums[fmt] = sums.get(fmt, 0.0) + found.get(fmt, np.inf) / max(costs.signal, 1e-300)
    overrides = []
    for name, costs in measured.items():
        weights = min(costs.weights, key=costs.weights.__getitem__) if costs.weights else None
        activations, by_token = _best_activations(together[costs.x], tokens[costs.x])
        settings = {
            "weights": None if weights is None else paper_name(weights),
            "activations": None if activations is None else paper_name(activations),
            "approach": "dynamic" if by_token else None,
            "weight_granularity": "tensor" if weights is not None and _one_is_enough(costs, weights) else None,
            "activation_granularity": "token" if by_token else None,
        }
        # What the recipe says of a node was meant.
        given = overridden(costs.node, recipe.overrides)
        settings = {key: value for key, value in settings.items() if value is not None and key not in given}
        if by_token and not {"approach", "activation_granularity"} <= settings.keys():
            settings = {key: value for key, value in settings.items() if key not in ("approach", "activation_granularity")}
        if settings:
            overrides.append(Override(match=name, **settings))  # type: ignore[arg-type]
    return overrides


def _best_activations(one: Mapping[Format, float], tokens: Mapping[Format, float]) -> tuple[Format | None, bool]:
    """The best format of an activation, and whether with scales for tokens."""
    if not one:
        return None, False
    best, finer = (min(costs, key=costs.__getitem__) for costs in (one, tokens))
    return (finer, True) if tokens[finer] * 10 ** (_TOKENS_WORTH / 10) < one[best] else (best, False)


def _one_is_enough(costs: _Costs, weights: Format) -> bool:
    return costs.tensor.get(weights, np.inf) <= costs.weights[weights] * 10 ** (_TENSOR_ENOUGH / 10)


def _reason(costs: _Costs) -> str:
    parts = []
    for role, found in (
        ("weights", costs.weights),
        ("with one scale", costs.tensor),
        ("activations", costs.activations),
        ("with one for each token", costs.tokens),
    ):
        if found:
            shown = ", ".join(f"{paper_name(fmt)} {decibels(costs.signal, cost):.1f}" for fmt, cost in found.items())
            parts.append(f"{role} {shown} dB")
    return "; ".join(parts)


def _noise(
    graph: Graph, models: Mapping[str, Recipe], ranges: Mapping[Need, Range], data: Batches, progress: Progress | None
) -> dict[str, float]:
    """For each recipe, the SQNR of the model's float outputs: the mean of their decibels."""
    names = [name for name in dict.fromkeys(leaves(graph.outputs)) if name in graph.values and graph.values[name].dtype == "float32"]
    exact = Watch(graph, names)
    right = [exact(batch.inputs) for batch in limited(data, _SAMPLES, "comparing models", progress)]
    found = {}
    for title, recipe in models.items():
        quantized = insert(graph, decide(graph, recipe), ranges, weight_calibrator=recipe.weight_calibrator)
        watch = Watch(quantized, names)
        noise = dict.fromkeys(names, 0.0)
        for batch, values in zip(limited(data, _SAMPLES, f"comparing models: {title}", progress), right, strict=True):
            got = watch(batch.inputs)
            for name in names:
                noise[name] += _energy(got[name] - values[name])
        signal = {name: sum(_energy(values[name]) for values in right) for name in names}
        found[title] = float(np.mean([decibels(signal[name], noise[name]) for name in names])) if names else 0.0
    return found
