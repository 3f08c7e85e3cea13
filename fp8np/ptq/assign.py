"""From a recipe to a decision for each node: which of its inputs become FP8 and how, or why none does. Changes nothing.

What comes between a recipe and a decision (mixed formats, a search for the nodes that suffer most) can change decisions
before `fp8np.ptq.insert` carries them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

import numpy as np

from fp8np.errors import RecipeError
from fp8np.graph import Graph, Node
from fp8np.layers._op import OPS, Op
from fp8np.ptq.recipe import Recipe
from fp8np.scheme import PerTensor, Scheme
from fp8np.tensor import QTensor

__all__ = ["Decision", "calibrated", "decide", "is_convolutional"]

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
        RecipeError: the recipe names ops that cannot be quantized, or nodes that the graph has not.
    """
    possible = sorted(name for name, row in OPS.items() if row.quantizable)
    unknown = sorted(recipe.ops.difference(possible))
    if unknown:
        raise RecipeError(f"recipe {recipe.name!r}: {unknown[0]!r} is not an op that can be quantized; these can: {', '.join(possible)}")
    nodes = [node for node in graph.nodes if OPS[node.op].quantizable]
    for pattern in recipe.skip:
        if not any(_matches(node, pattern) for node in nodes):
            raise RecipeError(f"recipe {recipe.name!r}: no quantizable node matches {pattern!r} (to be skipped)")
    kept = dict(_first_and_last(graph, recipe))
    return tuple(_decision(graph, node, recipe, kept.get(node.name, "")) for node in nodes)


def calibrated(graph: Graph, decisions: tuple[Decision, ...]) -> tuple[str, ...]:
    """The activations whose scale has to come from data, each once, in the order in which they are first read."""
    by_node = {decision.node: decision for decision in decisions}
    names: dict[str, None] = {}
    for node in graph.nodes:
        if node.name not in by_node:
            continue
        for i, scheme in by_node[node.name].schemes.items():
            name = node.inputs[i]
            if name is not None and name not in graph.constants and not (scheme.dynamic or scheme.direct):
                names[name] = None
    return tuple(names)


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
    return fnmatchcase(node.name, pattern) or fnmatchcase(node.origin, pattern)


def _decision(graph: Graph, node: Node, recipe: Recipe, kept: str) -> Decision:
    reason = _exemption(node, recipe) or kept
    schemes: dict[int, Scheme] = {}
    if not reason:
        for i in _quantizable(graph, OPS[node.op], node):
            reason = _obstacle(graph, node, i)
            if reason:
                break
            scheme = _scheme(graph, node, i, recipe)
            if scheme is not None:
                schemes[i] = scheme
        else:
            reason = "" if schemes else "none of its inputs is a weight"
    return Decision(node.name, MappingProxyType({} if reason else schemes), reason)


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


def _scheme(graph: Graph, node: Node, i: int, recipe: Recipe) -> Scheme | None:
    """How an input without obstacle becomes FP8; None for an activation where the recipe leaves those alone."""
    direct = recipe.approach == "direct"
    constant = node.inputs[i] in graph.constants
    fmt = recipe.weights if constant else recipe.activations
    if fmt is None:
        return None
    if not constant or direct:
        return Scheme(fmt, PerTensor(), dynamic=recipe.approach == "dynamic", direct=direct)
    row = OPS[node.op]
    return Scheme(fmt, row.quantizable[row.input_name(i)])
