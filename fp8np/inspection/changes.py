"""A model with some operands held otherwise: what a suggestion would do, to be run and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fp8np.graph import Constant, Graph, Names, Node, Value, pruned
from fp8np.inspection.alternatives import Alternative, float_op
from fp8np.inspection.measure import Measured
from fp8np.inspection.operands import Operand, coded_constant
from fp8np.layers._op import OPS
from fp8np.ptq.codes import quantized_weight

__all__ = ["Change", "changed"]


@dataclass(frozen=True)
class Change:
    """What becomes of operands of a node.

    Attributes:
        node: its name.
        operands: for the position of each operand that changes, how it is held; None: in float32.
    """

    node: str
    operands: Mapping[int, Alternative | None]


def changed(seen: Measured, changes: list[Change]) -> Graph:
    """The graph of a model after some changes. Weights are rounded anew from their originals, where those are known.

    A node on integers can change as a whole only: its other operands become float32.
    """
    graph = seen.graph
    names = Names.beside(graph)
    constants: dict[str, Constant] = dict(graph.constants)
    values = dict(graph.values)
    by_node = {change.node: change for change in changes}
    nodes: list[Node] = []
    for node in graph.nodes:
        change = by_node.get(node.name)
        if change is None:
            nodes.append(node)
            continue
        inputs = {node_input_key(node, i): name for i, name in enumerate(node.inputs)}
        integers = float_op(node.op) != node.op
        for operand in seen.operands[node.name]:
            if integers or operand.position in change.operands:
                how = change.operands.get(operand.position)
                held = _weight if operand.constant else _activation
                inputs[node_input_key(node, operand.position)] = held(seen, node, operand, how, names, constants, values, nodes)
        nodes.append(_on_floats(node, inputs) if integers else node.replace(inputs=tuple(inputs.values())))
    return pruned(graph.replace(nodes=tuple(nodes), constants=MappingProxyType(constants), values=MappingProxyType(values)))


def node_input_key(node: Node, position: int) -> Any:
    """The role of an input, or its position where several share a role."""
    row = OPS[node.op]
    return position if row.inputs[-1].endswith("*") else row.input_name(position)


def _weight(
    seen: Measured, node: Node, operand: Operand, how: Alternative | None, names: Names, constants: dict[str, Constant], *_: Any
) -> str:
    weight = seen.originals.get((node.name, operand.position))
    if weight is None:
        weight = coded_constant(seen.graph, node, operand).values
    name = names.fresh(f"{operand.name}.{'float32' if how is None else how.scheme.format.name}")
    constants[name] = weight if how is None else quantized_weight(weight, how.scheme, how.calibrator)
    return name


def _activation(
    seen: Measured,
    node: Node,
    operand: Operand,
    how: Alternative | None,
    names: Names,
    constants: dict[str, Constant],
    values: dict[str, Value],
    nodes: list[Node],
) -> str:
    source = str(operand.source)
    if how is None:
        return source
    name = names.fresh(f"{source}.{how.scheme.format.name}")
    attrs: dict[str, Any] = {"format": how.scheme.format.name, "scale": how.scale}
    if how.scheme.dynamic:
        attrs["granularity"] = "token"
    nodes.append(Node(name, "quantize", (source,), (name,), MappingProxyType(attrs), node.origin))
    values[name] = Value(name, seen.graph.facts(source).shape, how.scheme.format.name)
    return name


def _on_floats(node: Node, inputs: Mapping[Any, str | None]) -> Node:
    """The node on floats that one on integers stands for."""
    name = float_op(node.op)
    if name == "matmul" and inputs.get("c") is not None:
        name = "addmm"
    row = OPS[name]
    attrs = {key: value for key, value in node.attrs.items() if key in row.attrs}
    return node.replace(op=name, inputs=tuple(inputs.get(key) for key in row.input_names), attrs=MappingProxyType(attrs))
