"""Fusion: passes over graphs, each named, pure and checkable. A fused graph means what it meant before; it has fewer nodes.

1. `pads_into_convolutions`: zeros that a pad node puts around a picture become the convolution's own padding.
2. `lines_as_pictures`: conv1d becomes conv2d on pictures of one row.
3. `products_as_fused`: conv2d and linear become fused_conv2d and fused_linear, and so do those of integers.
4. `residuals_into_products`, `activations_into_products`: what follows a product, and nothing else reads, becomes its ending.
5. `blocks_as_taken`: weights with a scale for each block become floats where no product takes their codes in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fp8np._packing import groupable
from fp8np.graph import Constant, Graph, Names, Node, Value, leaves, pruned
from fp8np.layers._op import OPS
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor

__all__ = ["PASSES", "fused"]

Pass = Callable[[Graph], Graph]

_PRODUCTS = ("fused_conv2d", "fused_linear", "fused_integer_conv", "fused_integer_linear")


def fused(graph: Graph) -> Graph:
    """The graph after all passes."""
    for _, apply in PASSES:
        graph = apply(graph)
    return graph


def pads_into_convolutions(graph: Graph) -> Graph:
    """pad -> conv2d, and pad -> quantize -> conv2d, where all readers are convolutions: what zero becomes is zero again; so of integers."""
    readers = graph.consumers()
    kept = set(leaves(graph.outputs))
    values = dict(graph.values)
    replaced: dict[str, tuple[str, tuple[int, int, int, int]]] = {}  # a padded value -> the value without, and its pads
    changed: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "pad" or node.outputs[0] in kept or len(graph.facts(node.outputs[0]).shape) != 4:
            continue
        pads = _zero_pads(node)
        users = readers.get(node.outputs[0], [])
        through = [u for u in users if u.op in _QUANTIZE]
        ends = [u for q in through for u in readers.get(q.outputs[0], [])] + [u for u in users if u.op not in _QUANTIZE]
        first = all(u.op in _CONVOLUTIONS and u.inputs[0] in {node.outputs[0], *(q.outputs[0] for q in through)} for u in ends)
        if pads is None or not ends or not first or any(q.outputs[0] in kept for q in through):
            continue
        source = node.inputs[0]
        assert source is not None
        replaced[node.outputs[0]] = source, pads
        for q in through:
            changed[q.name] = q.replace(inputs=(source,))
            values[q.outputs[0]] = Value(q.outputs[0], graph.facts(source).shape, graph.values[q.outputs[0]].dtype)
            replaced[q.outputs[0]] = q.outputs[0], pads
    if not replaced:
        return graph
    nodes = []
    for node in graph.nodes:
        node = changed.get(node.name, node)
        name = node.inputs[0] if node.inputs else None
        if node.op in _CONVOLUTIONS and name in replaced:
            source, around = replaced[name]
            node = _CONVOLUTIONS[node.op](graph, node.replace(inputs=(source, *node.inputs[1:])), around)
        nodes.append(node)
    return pruned(graph.replace(nodes=tuple(nodes), values=MappingProxyType(values)))


def _fused_conv2d(graph: Graph, node: Node, around: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Node:
    """A conv2d as fused_conv2d, with further zeros around its own padding."""
    attrs = OPS["conv2d"].filled(node.attrs)
    own = _pads(attrs.pop("padding"), graph.facts(str(node.inputs[1])).shape[2:], attrs["dilation"])
    pads = tuple(a + b for a, b in zip(own, around, strict=True))
    return node.replace(op="fused_conv2d", inputs=_four(node), attrs=MappingProxyType({**attrs, "pads": pads}))


def _fused_integer_conv(graph: Graph, node: Node, around: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Node:
    """An integer_conv2d or integer_conv1d as fused_integer_conv, with further zeros around its own padding."""
    attrs = OPS[node.op].filled(node.attrs)
    kernel, dilation, padding = graph.facts(str(node.inputs[3])).shape[2:], attrs["dilation"], attrs.pop("padding")
    if len(kernel) == 1:
        kernel, dilation, padding = (1, *kernel), (1, *dilation), padding if isinstance(padding, str) else (0, *padding)
    pads = tuple(a + b for a, b in zip(_pads(padding, kernel, dilation), around, strict=True))
    full = OPS["fused_integer_conv"]
    return node.replace(op=full.name, inputs=full.padded(node.inputs), attrs=MappingProxyType({**attrs, "pads": pads}))


_QUANTIZE = ("quantize", "quantize_integer")
_CONVOLUTIONS = {"conv2d": _fused_conv2d, "integer_conv2d": _fused_integer_conv}


def _four(node: Node) -> tuple[str | None, ...]:
    # x, weight, bias, residual.
    return (*node.inputs, *(None,) * (4 - len(node.inputs)))


def _zero_pads(node: Node) -> tuple[int, int, int, int] | None:
    attrs = OPS["pad"].filled(node.attrs)
    pad = tuple(attrs["pad"])
    if attrs["mode"] != "constant" or attrs["value"] not in (None, 0, 0.0) or any(not isinstance(p, int) or p < 0 for p in pad):
        return None
    if len(pad) == 2:
        return 0, pad[0], 0, pad[1]
    if len(pad) < 4 or any(pad[4:]):
        return None
    return pad[2], pad[0], pad[3], pad[1]


def _pads(padding: Any, kernel: tuple[Any, ...], dilation: tuple[int, ...]) -> tuple[int, int, int, int]:
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return totals[0] // 2, totals[1] // 2, totals[0] - totals[0] // 2, totals[1] - totals[1] // 2
    return padding[0], padding[1], padding[0], padding[1]


def lines_as_pictures(graph: Graph) -> Graph:
    """Every conv1d over (B, C, L) whose weight is a constant. A quantize node before it is made anew behind the axis."""
    if not any(node.op == "conv1d" for node in graph.nodes):
        return graph
    names = Names.beside(graph)
    made = {output: node for node in graph.nodes for output in node.outputs}
    constants, values = dict(graph.constants), dict(graph.values)
    nodes: list[Node] = []

    def add(node: Node, shape: Any, dtype: str) -> str:
        nodes.append(node)
        values[node.outputs[0]] = Value(node.outputs[0], shape, dtype)
        return node.outputs[0]

    def one(name: str, op: str, source: str, attrs: Mapping[str, Any], origin: str) -> Node:
        fresh = names.fresh(name)
        return Node(fresh, op, (source,), (fresh,), MappingProxyType(dict(attrs)), origin)

    for node in graph.nodes:
        x, weight = str(node.inputs[0]), graph.constants.get(str(node.inputs[1])) if len(node.inputs) > 1 else None
        if node.op != "conv1d" or weight is None or len(graph.facts(x).shape) != 3:
            nodes.append(node)
            continue
        before = made.get(x)
        quantize = before if before is not None and before.op == "quantize" else None
        source = x if quantize is None else str(quantize.inputs[0])
        b, c, n = graph.facts(x).shape
        picture = add(one(f"{source}.picture", "unsqueeze", source, {"dim": 2}, node.origin), (b, c, 1, n), "float32")
        if quantize is not None:
            picture = add(one(f"{x}.picture", "quantize", picture, quantize.attrs, node.origin), (b, c, 1, n), graph.facts(x).dtype)
        filters = names.fresh(f"{node.inputs[1]}.picture")
        constants[filters] = (
            weight.reshape(*weight.shape[:2], 1, weight.shape[2]) if not isinstance(weight, QTensor) else weight.expand_dims(2)
        )
        attrs = OPS["conv1d"].filled(node.attrs)
        padding = attrs["padding"]
        lifted = {
            "stride": (1, *attrs["stride"]),
            "padding": padding if isinstance(padding, str) else (0, *padding),
            "dilation": (1, *attrs["dilation"]),
            "groups": attrs["groups"],
        }
        b, o, n = graph.values[node.outputs[0]].shape
        fresh = names.fresh(f"{node.name}.picture")
        result = Node(fresh, "conv2d", (picture, filters, *node.inputs[2:]), (fresh,), MappingProxyType(lifted), node.origin)
        out = add(result, (b, o, 1, n), "float32")
        nodes.append(node.replace(op="squeeze", inputs=(out,), attrs=MappingProxyType({"dim": 2})))
    return pruned(graph.replace(nodes=tuple(nodes), constants=MappingProxyType(constants), values=MappingProxyType(values)))


def products_as_fused(graph: Graph) -> Graph:
    """Every conv2d and linear, by itself."""
    nodes = []
    for node in graph.nodes:
        if node.op == "linear":
            node = node.replace(op="fused_linear", inputs=_four(node))
        elif node.op == "conv2d" and len(graph.facts(str(node.inputs[0])).shape) == 4:
            node = _fused_conv2d(graph, node)
        elif node.op == "integer_linear":
            node = node.replace(op="fused_integer_linear", inputs=OPS["fused_integer_linear"].padded(node.inputs))
        elif node.op in ("integer_conv1d", "integer_conv2d"):
            x, weight = (graph.facts(str(node.inputs[i])).shape for i in (0, 3))
            if len(x) == len(weight):
                node = _fused_integer_conv(graph, node)
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes))


def residuals_into_products(graph: Graph) -> Graph:
    """product -> add, where the other operand has the same shape: the later of two products takes the other as its residual."""

    def joined(product: Node, add: Node) -> Node | None:
        attrs = OPS["add"].filled(add.attrs)
        others = [name for name in add.inputs if name != product.outputs[0]]
        if len(others) != 1 or others[0] is None or any(value != 1 for name, value in attrs.items() if name == "alpha"):
            return None
        place = OPS[product.op].input_names.index("residual")
        if product.inputs[place] is not None or _clamps(product):
            return None
        other, own = graph.facts(others[0]), graph.facts(product.outputs[0])
        if other.shape != own.shape or not other.dtype.startswith("float") or others[0] in graph.constants:
            return None
        return product.replace(inputs=(*product.inputs[:place], others[0]), outputs=add.outputs)

    return _absorbed(graph, lambda node: node.op == "add", joined)


def activations_into_products(graph: Graph) -> Graph:
    """product -> activation."""

    def joined(product: Node, activation: Node) -> Node | None:
        if _clamps(product):
            return None
        return product.replace(outputs=activation.outputs, attrs=MappingProxyType({**product.attrs, **_ENDINGS[activation.op](activation)}))

    return _absorbed(graph, lambda node: node.op in _ENDINGS and _ENDINGS[node.op](node) is not None, joined)


def _clamps(product: Node) -> bool:
    attrs = OPS[product.op].filled(product.attrs)
    return bool(attrs["activation"]) or attrs["lo"] != float("-inf") or attrs["hi"] != float("inf")


def _named(name: str) -> Callable[[Node], Mapping[str, Any]]:
    return lambda node: {"activation": name}


def _clip(node: Node) -> Mapping[str, Any] | None:
    attrs = OPS["clamp"].filled(node.attrs)
    bounds = attrs["min"], attrs["max"]
    if any(name is not None for name in node.inputs[1:]) or any(b is not None and not isinstance(b, int | float) for b in bounds):
        return None
    return {"lo": float("-inf") if bounds[0] is None else float(bounds[0]), "hi": float("inf") if bounds[1] is None else float(bounds[1])}


_ENDINGS: Mapping[str, Callable[[Node], Any]] = {
    "relu": lambda node: {"lo": 0.0},
    "relu6": lambda node: {"lo": 0.0, "hi": 6.0},
    "hardtanh": lambda node: (lambda a: {"lo": float(a["min_val"]), "hi": float(a["max_val"])})(OPS["hardtanh"].filled(node.attrs)),
    "clamp": _clip,
    "gelu": lambda node: {"activation": "gelu_tanh" if node.attrs.get("approximate") == "tanh" else "gelu"},
    **{name: _named(name) for name in ("silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish")},
}


def _absorbed(graph: Graph, fits: Callable[[Node], bool], join: Callable[[Node, Node], Node | None]) -> Graph:
    """Each product followed by one node alone that fits becomes one node, where the follower stood."""
    readers = graph.consumers()
    kept = set(leaves(graph.outputs))
    nodes: dict[str, Node] = {}
    made: dict[str, Node] = {}
    for node in graph.nodes:
        new = node
        if fits(node):
            for name in node.inputs:
                product = made.get(str(name))
                if product is None or product.op not in _PRODUCTS or name in kept or len(readers[str(name)]) != 1:
                    continue
                merged = join(product, node)
                if merged is not None:
                    new = merged
                    del nodes[product.outputs[0]]
                    break
        nodes[new.outputs[0]] = new
        for output in new.outputs:
            made[output] = new
    alive = {output for node in nodes.values() for output in node.outputs}
    values = {name: value for name, value in graph.values.items() if name in alive}
    return graph.replace(nodes=tuple(nodes.values()), values=MappingProxyType(values))


def blocks_as_taken(graph: Graph) -> Graph:
    """Every weight with a scale for each block: as it is, where all its readers take it so; with one for each output, where blocks are
    that; else as the floats that it stands for.
    """
    blocks = {name: c for name, c in graph.constants.items() if isinstance(c, QTensor) and c.block is not None}
    readers = graph.consumers()
    changed: dict[str, Constant] = {}
    for name, weight in blocks.items():
        users = readers.get(name, [])
        whole = weight.block is not None and weight.block[0] == 1 and all(map(int.__ge__, weight.block[1:], weight.shape[1:]))
        if whole and not any(node.op.startswith("conv_transpose") for node in users):
            changed[name] = QTensor(weight.codes, weight.format, weight.scale)
        elif not all(_takes_blocks(node, name, weight) for node in users):
            changed[name] = dequantize(weight)
    return graph.replace(constants=MappingProxyType({**graph.constants, **changed})) if changed else graph


def _takes_blocks(node: Node, name: str, weight: QTensor) -> bool:
    if node.op in ("embedding", "embedding_bag"):
        return True
    if node.inputs.count(name) > 1:
        return False
    if node.op in ("matmul", "addmm"):
        return node.inputs[-1] == name and weight.ndim == 2 and groupable(weight.T)
    return node.op in _PRODUCTS and node.inputs[1] == name and node.attrs.get("groups", 1) == 1 and groupable(weight)


PASSES: tuple[tuple[str, Pass], ...] = (
    ("pads into convolutions", pads_into_convolutions),
    ("lines as pictures", lines_as_pictures),
    ("products as fused", products_as_fused),
    ("residuals into products", residuals_into_products),
    ("activations into products", activations_into_products),
    ("blocks as taken", blocks_as_taken),
)
"""In the order in which they are applied."""
