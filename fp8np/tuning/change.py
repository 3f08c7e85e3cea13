"""What tuning changes of a recipe: ops and nodes that stay in float32, nodes in other formats. A change is written as a recipe again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fp8np.graph import Graph, Node
from fp8np.layers._op import OPS
from fp8np.ptq.assign import decide, overridden
from fp8np.ptq.recipe import STANDARD_OPS, Override, Recipe, paper_name

__all__ = ["PRODUCTS", "Change", "changed"]

PRODUCTS = frozenset(op for op in STANDARD_OPS if "embedding" not in op)
"""Convolutions and linear layers: what the paper's tool falls back to."""

_SUFFIX = "-tuned"
_ROLES = ("weights", "activations", "approach", "weight_granularity", "activation_granularity")


@dataclass(frozen=True)
class Change:
    """What is changed of the recipe to be tuned.

    Attributes:
        without: ops that stay in float32.
        first_last: the first convolution and the last linear stay in float32.
        formats: for nodes by name, what an `Override` says of their formats and scales.
        keep: names of nodes that stay in float32.
    """

    without: frozenset[str] = frozenset()
    first_last: bool = False
    formats: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    keep: tuple[str, ...] = ()


def changed(graph: Graph, base: Recipe, change: Change) -> Recipe:
    """The recipe with a change.

    Ops and the first and last layers are left out by the recipe's own keys, and nodes by name where overrides cover them all the same.

    Args:
        graph: whose nodes are meant, BatchNorm folded.
        base: without candidates.
        change: what to change.
    """
    if change == Change():
        return base
    recipe = base.replace(name=base.name.removesuffix(_SUFFIX) + _SUFFIX, ops=base.ops - change.without)
    if change.first_last:
        recipe = recipe.replace(keep_first_last=True)
    said: dict[str, Mapping[str, Any]] = {**change.formats, **{name: {"keep": True} for name in change.keep}}
    left = {node.name for node in graph.nodes if node.op in change.without}
    left |= set(first_and_last(graph)) if change.first_last else set()
    if left:
        said |= {d.node: {"keep": True} for d in decide(graph, recipe) if d.schemes and d.node in left}
    return recipe.replace(overrides=tuple(_overrides(graph, recipe, said))) if said else recipe


def first_and_last(graph: Graph) -> Iterator[str]:
    """Names of the first convolution and of the last linear, where the graph has both."""
    convolutions = [node.name for node in graph.nodes if node.op in PRODUCTS and node.op != "linear"]
    linears = [node.name for node in graph.nodes if node.op == "linear"]
    if convolutions and linears:
        yield convolutions[0]
        yield linears[-1]


def _overrides(graph: Graph, recipe: Recipe, said: Mapping[str, Mapping[str, Any]]) -> Iterator[Override]:
    """The recipe's overrides and what is said of some nodes by name, so that it holds for these and for no others."""
    nodes = {node.name: node for node in graph.nodes if OPS[node.op].quantizable}
    own = dict(said)
    # The name of a node may be the origin of others: what holds for these is then said by their names.
    while shared := [node for node in nodes.values() if node.name not in own and node.origin in own]:
        quantized = {d.node for d in decide(graph, recipe) if d.schemes}
        own |= {node.name: _all_said(node, recipe) if node.name in quantized else {"keep": True} for node in shared}
    yield from (override for override in recipe.overrides if override.match not in own)
    for name, settings in own.items():
        before = overridden(nodes[name], recipe.overrides)
        yield Override(match=name, **(settings if settings.get("keep") else {**before, "keep": None, **settings}))


def _all_said(node: Node, recipe: Recipe) -> dict[str, Any]:
    settings = {role: getattr(recipe, role) for role in _ROLES} | overridden(node, recipe.overrides)
    return {role: settings[role] if isinstance(settings[role], str) else paper_name(settings[role]) for role in _ROLES}
