"""What an artifact holds, in numbers: inputs, outputs, sizes, and the format of every weight and activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fp8np.graph import Graph, Node, Value, named_leaves
from fp8np.layers._op import OPS
from fp8np.tensor import QTensor

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["describe", "described_table"]


def describe(graph: Graph, file_bytes: int | None = None, memory: dict[str, Any] | None = None) -> dict[str, Any]:
    """Facts about a model as plain data, ready for JSON.

    Args:
        graph: the model.
        file_bytes: size of the file it is in.
        memory: what a run takes, see `fp8np.memory`.

    Returns:
        "inputs", "outputs", "meta", "nodes" (count by op), "weights" (parameters, bytes, bytes as float32, count and bytes
        by format), "file_bytes", "memory", and "layers": for each node with weights its name, op, origin, and the format, scale and
        shape of its weights and the attributes of its quantized activations.
    """
    constants = graph.constants.values()
    by_format: dict[str, dict[str, int]] = {}
    for constant in constants:
        entry = by_format.setdefault(_format(constant), {"tensors": 0, "elements": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["elements"] += constant.size
        entry["bytes"] += constant.nbytes
    return {
        "inputs": [str(value) for value in graph.inputs],
        "outputs": [str(_renamed(graph.facts(name), path)) for path, name in named_leaves(graph.outputs)],
        "meta": dict(graph.meta),
        "nodes": dict(Counter(node.op for node in graph.nodes).most_common()),
        "weights": {
            "elements": sum(c.size for c in constants),
            "bytes": sum(c.nbytes for c in constants),
            "float32_bytes": sum(c.size * (4 if isinstance(c, QTensor) else c.dtype.itemsize) for c in constants),
            "by_format": by_format,
        },
        "file_bytes": file_bytes,
        "memory": memory,
        "layers": list(_layers(graph)),
    }


def _renamed(value: Value, name: str) -> Value:
    return Value(name, value.shape, value.dtype)


def _layers(graph: Graph) -> Iterator[dict[str, Any]]:
    producers = {name: node for node in graph.nodes for name in node.outputs}
    for node in graph.nodes:
        weights = [n for n in node.inputs if n is not None and n in graph.constants and graph.constants[n].ndim > 1]
        if not weights:
            continue
        yield {
            "name": node.name,
            "op": node.op,
            "origin": node.origin,
            "weights": [_weight(name, graph) for name in weights],
            "activations": [a for a in (_activation(n, producers) for n in node.inputs) if a is not None],
        }


def _format(constant: Any) -> str:
    return constant.format.name if isinstance(constant, QTensor) else constant.dtype.name


def _weight(name: str, graph: Graph) -> dict[str, Any]:
    constant = graph.constants[name]
    facts: dict[str, Any] = {"name": name, "format": _format(constant), "shape": list(constant.shape)}
    if isinstance(constant, QTensor):
        facts["scale_shape"] = list(constant.scale.shape)
        facts["block"] = None if constant.block is None else list(constant.block)
        facts["scale_range"] = [float(constant.scale.min()), float(constant.scale.max())]
    return facts


def _activation(name: str | None, producers: dict[str, Node]) -> dict[str, Any] | None:
    node = producers.get(name or "")
    if node is None or node.op != "quantize":
        return None
    attrs = OPS[node.op].filled(node.attrs)
    return {"name": node.inputs[0], **attrs}


def described_table(facts: dict[str, Any]) -> RenderableType:
    """The facts of `describe`, to be printed by rich."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    weights = facts["weights"]
    summary = Table.grid(padding=(0, 2))
    summary.add_row("inputs", escape("\n".join(facts["inputs"])))
    summary.add_row("outputs", escape("\n".join(facts["outputs"])))
    summary.add_row("parameters", _weights_line(weights))
    if facts["file_bytes"] is not None:
        summary.add_row("file", f"{facts['file_bytes']:,} bytes")
    if facts["memory"] is not None:
        summary.add_row("memory", _memory_line(facts["memory"]))
    summary.add_row("nodes", ", ".join(f"{op} {n}" for op, n in facts["nodes"].items()))
    for key, value in facts["meta"].items():
        summary.add_row(escape(key), escape(value))
    table = Table(title="Layers with weights", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold", min_width=12)
    for heading in ("op", "shape", "weight"):
        table.add_column(heading, no_wrap=True)
    for heading in ("weight scales", "activation, scale"):
        table.add_column(heading)
    for layer in facts["layers"]:
        main = layer["weights"][0]
        table.add_row(
            escape(layer["name"]),
            layer["op"],
            " x ".join(map(str, main["shape"])),
            main["format"].removeprefix("float8_"),
            _scale(main),
            _activation_line(layer["activations"]),
        )
    return Group(summary, "", table)


def _activation_line(activations: list[dict[str, Any]]) -> str:
    if not activations:
        return ""
    first = activations[0]
    scale = "at run time" if first["scale"] is None else f"{first['scale']:.4g}"
    scale += ", for each token" if first["granularity"] == "token" else ""
    scale += ", a power of two" if first["power_of_two"] else ""
    return f"{first['format'].removeprefix('float8_')} {scale}"


def _weights_line(weights: dict[str, Any]) -> str:
    ratio = weights["float32_bytes"] / max(weights["bytes"], 1)
    parts = ", ".join(f"{name} {entry['bytes']:,}" for name, entry in weights["by_format"].items())
    return f"{weights['elements']:,} numbers in {weights['bytes']:,} bytes ({ratio:.2f}x less than in float32): {parts}"


def _memory_line(memory: dict[str, Any]) -> str:
    sizes = ", ".join(f"{name}={n}" for name, n in memory["sizes"].items())
    return (
        f"weights {memory['packed']:,} bytes, packed; {memory['arena']:,} for each run at a time{f' at {sizes}' if sizes else ''}, "
        f"{memory['thread']:,} for each thread of it"
    )


def _scale(weight: dict[str, Any]) -> str:
    if "scale_shape" not in weight:
        return ""
    low, high = weight["scale_range"]
    count = int(np.prod(weight["scale_shape"]))
    blocks = f", blocks of {'x'.join(map(str, weight['block']))}" if weight["block"] else ""
    return f"{low:.3g}" if count == 1 else f"{count} of {low:.3g} to {high:.3g}{blocks}"
