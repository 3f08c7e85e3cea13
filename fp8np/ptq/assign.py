"""From a recipe to a decision for each node: which of its inputs become FP8 and how, or why none does. Changes nothing.

What comes between a recipe and a decision (mixed formats, a search for the nodes that suffer most) can change decisions
before `fp8np.ptq.insert` carries them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import numpy as np

from fp8np.calibrate import Need
from fp8np.errors import RecipeError
from fp8np.graph import Graph, Node
from fp8np.integers import INT8
from fp8np.layers._op import OPS, Op
from fp8np.ptq.integers import INTEGER_OPS
from fp8np.ptq.recipe import Override, Recipe, check_op, format_named
from fp8np.scheme import Granularity, PerBlock, PerChannel, PerTensor, PerToken, Scheme
from fp8np.tensor import QTensor

__all__ = ["TOKEN_OPS", "Decision", "decide", "is_convolutional", "needs", "overridden"]

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"})
_PRODUCTS = frozenset({"matmul", "addmm", "einsum"})
_SEQUENCES = frozenset({"scaled_dot_product_attention", "lstm", "lstm_cell", "gru", "gru_cell"})


@dataclass(frozen=True)
class Decision:
    """What becomes of a node that could be quantized.

    Attributes:
        node: its name.
        schemes: for the position of each input that becomes FP8, how; empty where the node stays as it is.
        reason: why it stays as it is; empty otherwise.
    """

    node: str
    schemes: Mapping[int, Scheme]
    reason: str = ""


def decide(graph: Graph, recipe: Recipe) -> tuple[Decision, ...]:
    """A decision for each node whose op has quantizable inputs, in the order of the graph.

    Raises:
        RecipeError: the recipe names ops that cannot be quantized, or nodes that the graph has not; or two of its overrides contradict
            each other.
    """
    for op in sorted(recipe.ops):
        check_op(f"recipe {recipe.name!r}", op)
    for override in recipe.overrides:
        if override.op:
            check_op(override.place or f"recipe {recipe.name!r}", override.op)
    nodes = [node for node in graph.nodes if OPS[node.op].quantizable]
    patterns = [(f"recipe {recipe.name!r}", p, " (to be skipped)") for p in recipe.skip]
    patterns += [(o.place or f"recipe {recipe.name!r}", o.match, "") for o in recipe.overrides if o.match]
    for where, pattern, purpose in patterns:
        if not any(_matches(node, pattern) for node in nodes):
            raise RecipeError(f"{where}: no quantizable node matches {pattern!r}{purpose}; `fp8np inspect --graph` lists the names")
    first_last = dict(_first_and_last(graph, recipe))
    convolutional = is_convolutional(graph)
    return tuple(_decision(graph, node, recipe, first_last.get(node.name, ""), convolutional) for node in nodes)


def needs(graph: Graph, decisions: tuple[Decision, ...]) -> tuple[Need, ...]:
    """The activations whose scale has to come from data, each once, in the order in which they are first read."""
    by_node = {decision.node: decision for decision in decisions}
    found: dict[Need, None] = {}
    for node in graph.nodes:
        if node.name not in by_node:
            continue
        for i, scheme in by_node[node.name].schemes.items():
            name = node.inputs[i]
            if name is not None and name not in graph.constants and not (scheme.dynamic or scheme.direct):
                found[name, scheme] = None
    return tuple(found)


def is_convolutional(graph: Graph) -> bool:
    """Whether a model is what the paper calls a CNN: it has convolutions, and neither attention nor recurrence.

    A product of two computed matrices counts as attention, so vision transformers, whose patches a convolution embeds, are
    not convolutional; nor are the encoders of speech models.
    """
    if any(node.op in _SEQUENCES for node in graph.nodes):
        return False
    for node in graph.nodes:
        operands = node.inputs[-2:]
        if node.op in _PRODUCTS and len(operands) == 2 and not any(name in graph.constants for name in operands):
            return False
    return any(node.op in _CONVOLUTIONS for node in graph.nodes)


def _first_and_last(graph: Graph, recipe: Recipe) -> Iterator[tuple[str, str]]:
    keep = is_convolutional(graph) if recipe.keep_first_last == "auto" else recipe.keep_first_last
    if not keep:
        return
    convolutions = [node.name for node in graph.nodes if node.op in _CONVOLUTIONS]
    linears = [node.name for node in graph.nodes if node.op == "linear"]
    if convolutions:
        yield convolutions[0], "first convolution, kept in float32"
    if linears:
        yield linears[-1], "last linear, kept in float32"


def _matches(node: Node, pattern: str) -> bool:
    # Brackets are part of names, such as "layers[0]".
    literal = pattern.replace("[", "[[]")
    return fnmatchcase(node.name, literal) or fnmatchcase(node.origin, literal)


@dataclass(frozen=True)
class _Settings:
    """What a recipe and its overrides say of one node."""

    weights: Any
    activations: Any
    approach: str
    weight_granularity: str
    activation_granularity: str
    power_of_two: bool
    reason: str = ""


def _settings(graph: Graph, node: Node, recipe: Recipe, first_last: str, convolutional: bool) -> _Settings:
    said = overridden(node, recipe.overrides)
    covered = "weights" in said or "activations" in said
    kept = said.pop("keep", None)
    if kept:
        reason = "kept in float32 by an override"
    elif covered or kept is False:
        reason = ""
    else:
        reason = _exemption(node, recipe) or first_last
    chosen = {name: getattr(recipe, name) for name in _Settings.__dataclass_fields__ if name != "reason"} | said
    for role in ("weights", "activations"):
        chosen[role] = format_named(chosen[role])
    if chosen["approach"] == "auto":
        chosen["approach"] = "static" if convolutional else "dynamic"
    if chosen["activation_granularity"] == "token" and chosen["approach"] != "dynamic":
        raise RecipeError(
            f"{_place(node, recipe, 'activation_granularity', 'approach')}: {node.place}: a token's scale is found at each run: "
            f"activation_granularity = 'token' needs approach = 'dynamic', which is {chosen['approach']!r}"
        )
    if chosen["weights"] is None and not reason:
        if chosen["activations"] is not None and recipe.activations is None:
            raise RecipeError(
                f"{_place(node, recipe, 'activations')}: quantizes activations of {node.place}, whose weights have no format; "
                "give weights, too"
            )
        reason = "kept in float32 by an override" if "weights" in said else f"recipe {recipe.name} quantizes nothing"
    return _Settings(**chosen, reason=reason)


def _place(node: Node, recipe: Recipe, *settings: str) -> str:
    """Where something about a node's settings was said: by the override that counts most, or by the recipe."""
    said = [o for o in recipe.overrides if _rank(node, o) and any(name in o.settings for name in settings)]
    place = max(said, key=lambda o: _rank(node, o)).place if said else ""
    return place or f"recipe {recipe.name!r}"


def overridden(node: Node, overrides: tuple[Override, ...]) -> dict[str, Any]:
    """What overrides say of a node: its name counts before its origin, which other nodes may share, then patterns, then ops.

    Raises:
        RecipeError: two that count alike contradict each other.
    """
    found: dict[str, tuple[int, Any, Override]] = {}
    for override in overrides:
        rank = _rank(node, override)
        for name, value in override.settings.items() if rank else ():
            before = found.get(name)
            if before is not None and before[0] == rank and before[1] != value:
                other = f"{before[2].subject}{before[2].place and f' ({before[2].place})'}"
                raise RecipeError(
                    f"{override.place or 'override'}: {override.subject} says {name} = {value!r} of {node.place}, but {other} says "
                    f"{before[1]!r}; name the node in one of them, or drop one"
                )
            if before is None or rank > before[0]:
                found[name] = rank, value, override
    formats = [(found[role][0], found[role][2]) for role in ("weights", "activations") if role in found]
    if "keep" in found and found["keep"][1] and formats:
        kept, _, keeper = found["keep"]
        strongest = max(formats, key=lambda pair: pair[0])
        if strongest[0] == kept:
            raise RecipeError(
                f"{strongest[1].place or 'override'}: {strongest[1].subject} quantizes {node.place}, but "
                f"{keeper.subject}{keeper.place and f' ({keeper.place})'} keeps it in float32; drop one"
            )
        if strongest[0] > kept:
            del found["keep"]
    return {name: value for name, (_, value, _) in found.items()}


def _rank(node: Node, override: Override) -> int:
    if override.op:
        return 1 if override.op == node.op else 0
    if override.match == node.name:
        return 4
    if override.match == node.origin:
        return 3
    return 2 if _matches(node, override.match) else 0


def _decision(graph: Graph, node: Node, recipe: Recipe, first_last: str, convolutional: bool) -> Decision:
    settings = _settings(graph, node, recipe, first_last, convolutional)
    reason = settings.reason or _uncovered_by_integers(node, recipe, settings)
    schemes: dict[int, Scheme] = {}
    if not reason:
        for i in _quantizable(graph, OPS[node.op], node):
            reason = _obstacle(graph, node, i)
            if reason:
                break
            scheme = _scheme(graph, node, i, settings)
            if scheme is not None:
                schemes[i] = scheme
        else:
            reason = "" if schemes else "none of its inputs is a weight"
    return Decision(node.name, MappingProxyType({} if reason else schemes), reason)


def _uncovered_by_integers(node: Node, recipe: Recipe, settings: _Settings) -> str:
    # Tables of embeddings meet no activations.
    alone = set(OPS[node.op].quantizable) == {"weight"}
    formats = (settings.weights,) if alone else (settings.weights, settings.activations)
    if INT8 not in formats:
        return ""
    if set(formats) != {INT8}:
        raise RecipeError(
            f"{_place(node, recipe, 'weights', 'activations')}: {node.place}: integers meet integers only: expected weights and "
            f"activations to be int8, got {settings.weights or 'fp32'} and {settings.activations or 'fp32'}"
        )
    return "" if node.op in INTEGER_OPS else f"int8 does not cover {node.op}"


def _exemption(node: Node, recipe: Recipe) -> str:
    if recipe.weights is None:
        return f"recipe {recipe.name} quantizes nothing"
    if node.op not in recipe.ops:
        return f"recipe {recipe.name} does not cover {node.op}"
    pattern = next((p for p in recipe.skip if _matches(node, p)), None)
    return "" if pattern is None else f"skipped by {pattern!r}"


def _quantizable(graph: Graph, row: Op, node: Node) -> Iterator[int]:
    """The positions of the inputs that may be FP8. Of any number under one name, these are the matrices: biases are not."""
    for i, name in enumerate(node.inputs):
        if name is None or row.input_name(i) not in row.quantizable:
            continue
        if i >= len(row.inputs) - 1 and row.inputs[-1].endswith("*") and len(graph.facts(name).shape) < 2:
            continue
        yield i


def _obstacle(graph: Graph, node: Node, i: int) -> str:
    """Why an input cannot become FP8, or nothing."""
    name = node.inputs[i] or ""
    role = OPS[node.op].input_name(i)
    value = graph.facts(name)
    if value.dtype != "float32":
        return f"its {role} {name!r} is {value.dtype}, not float32"
    constant = graph.constants.get(name)
    if constant is None:
        # Kernels prepare weights when a model is loaded; the operands of a matmul, a and b, they take as they come.
        return f"its {role} {name!r} is computed at run time" if role.startswith("weight") else ""
    if not isinstance(constant, QTensor) and not np.isfinite(constant).all():
        return f"its {role} {name!r} holds NaN or infinity"
    return ""


def _scheme(graph: Graph, node: Node, i: int, settings: _Settings) -> Scheme | None:
    """How an input without obstacle becomes FP8; None for an activation where the recipe leaves those alone."""
    direct = settings.approach == "direct"
    powers = settings.power_of_two and not direct
    name = str(node.inputs[i])
    constant = name in graph.constants
    fmt = settings.weights if constant else settings.activations
    if fmt is None:
        return None
    row = OPS[node.op].quantizable[OPS[node.op].input_name(i)]
    if constant:
        cut = PerTensor() if direct else _cut(row, settings.weight_granularity, graph.facts(name).shape)
        return Scheme(fmt, cut, direct=direct, power_of_two=powers)
    tokens = settings.activation_granularity == "token" and node.op in TOKEN_OPS and len(graph.facts(name).shape) > 1
    # Of a product of two computed matrices, the right one has no rows of its own: its columns are summed over.
    cut = PerToken() if tokens and i == OPS[node.op].input_names.index(TOKEN_OPS[node.op]) else PerTensor()
    return Scheme(fmt, cut, dynamic=settings.approach == "dynamic", direct=direct, power_of_two=powers)


TOKEN_OPS = MappingProxyType({"linear": "x", "matmul": "a", "addmm": "a"})
"""Ops that can have a scale for each row of an input."""


def _cut(standard: Granularity, words: str, shape: tuple[Any, ...]) -> Granularity:
    """How a weight is cut, whose channels are those of the standard scheme.

    "group" counts along the axis that is summed over: the one after the channels (O, I, ...), (N, K), or before them (K, N).
    """
    if words == "tensor" or not isinstance(standard, PerChannel):
        return PerTensor()
    kind, _, lengths = words.partition(" ")
    channel = standard.axis % len(shape)
    inner = channel + 1 if channel == 0 else channel - 1
    if kind == "channel" or len(shape) < 2 or (kind == "block" and len(shape) != 2):
        return standard
    if kind == "group":
        group = int(lengths)
        block = [0] * len(shape)
        # A group as long as the axis is a channel.
        if shape[inner] <= group:
            return standard
        block[channel], block[inner] = 1, group
        return PerBlock(tuple(block))
    rows, columns = (int(n) for n in lengths.split("x"))
    return PerBlock((rows, columns) if inner else (columns, rows))
