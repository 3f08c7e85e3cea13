"""The graph as JSON text, and back. What is written here is specified in ``docs/artifact.md``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from fp8np.artifact._container import ELEMENT_OF, Stored
from fp8np.artifact._json import fields, items, mapping, parse_json, short, text
from fp8np.check import DTYPES
from fp8np.dims import Dim, Size, parse
from fp8np.errors import ArtifactError, ArtifactVersionError, Fp8npError
from fp8np.formats import FloatFormat, get_format
from fp8np.graph import Attr, Constant, Graph, Node, Structure, Value, constant_value
from fp8np.tensor import QTensor

__all__ = ["VERSION", "decode_graph", "encode_graph", "scale_names"]

VERSION = 2
"""Of the text. A reader refuses a higher one; a change that an older reader would misread raises it. A graph is written down in the
lowest version that has all it needs, so that older readers read what they can: 2 has scales for blocks and for tokens.
"""

_MAX_RANK = 64
"""As in NumPy."""


def scale_names(constants: Mapping[str, Constant]) -> dict[str, str]:
    """For each FP8 constant, the name of the tensor that holds its scale: NAME_scale, or the first free NAME_scale_..."""
    taken, names = set(constants), {}
    for name in sorted(constants):
        if isinstance(constants[name], QTensor):
            scale = f"{name}_scale"
            while scale in taken:
                scale += "_"
            taken.add(scale)
            names[name] = scale
    return names


def encode_graph(graph: Graph, scales: Mapping[str, str]) -> str:
    """The text for a checked graph whose scales are stored under the names in `scales`."""
    content = {
        "version": _version(graph),
        "inputs": [_encode_value(value) for value in graph.inputs],
        "constants": {name: _encode_constant(name, c, scales.get(name)) for name, c in graph.constants.items()},
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "inputs": list(node.inputs),
                "outputs": [_encode_value(graph.values[name]) for name in node.outputs],
                "attrs": {name: _encode_attr(value) for name, value in node.attrs.items()},
                "origin": node.origin,
            }
            for node in graph.nodes
        ],
        "outputs": _encode_structure(graph.outputs),
        "meta": dict(graph.meta),
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _version(graph: Graph) -> int:
    blocks = any(isinstance(c, QTensor) and c.block is not None for c in graph.constants.values())
    finer = any(node.op == "quantize" and node.attrs.keys() & {"granularity", "power_of_two"} for node in graph.nodes)
    return 2 if blocks or finer else 1


def _encode_value(value: Value) -> dict[str, Any]:
    return {"name": value.name, "dtype": value.dtype, "shape": [_encode_size(size) for size in value.shape]}


def _encode_constant(name: str, constant: Constant, scale: str | None) -> dict[str, Any]:
    value = constant_value(name, constant)
    entry = {"dtype": value.dtype, "shape": list(value.shape), "scale": scale}
    if isinstance(constant, QTensor) and constant.block is not None:
        entry["block"] = list(constant.block)
    return entry


def _encode_size(size: Size) -> int | str:
    return str(size) if isinstance(size, Dim) else int(size)


def _encode_attr(value: Attr) -> Any:
    if isinstance(value, tuple):
        return [_encode_attr(part) for part in value]
    if isinstance(value, Dim):
        return {"size": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    return value


def _encode_structure(part: Structure) -> Any:
    if isinstance(part, dict):
        # Pairs, not an object: the order of the keys is what a caller of the model sees.
        return {"dict": [[key, _encode_structure(p)] for key, p in part.items()]}
    if isinstance(part, list | tuple):
        return {"list" if isinstance(part, list) else "tuple": [_encode_structure(p) for p in part]}
    return part


def decode_graph(content: str, tensors: Mapping[str, Stored]) -> Graph:
    """The graph that a text and the tensors of its file describe. Its parts fit each other; its meaning is not checked.

    Raises:
        ArtifactError: the text is not what `encode_graph` writes, or does not fit the tensors. ArtifactVersionError: it is
            of a later version.
    """
    whole = mapping(parse_json(content, "graph"), "graph")
    version = whole.get("version")
    if type(version) is not int or version < 1:
        raise ArtifactError(f"graph: expected a version, got {short(version)}")
    if version > VERSION:
        raise ArtifactVersionError(f"written by a newer fp8np (version {version} of the file, this one reads {VERSION}): upgrade fp8np")
    _, inputs, constants, nodes, outputs, meta = fields(whole, "graph", "version", "inputs", "constants", "nodes", "outputs", "meta")
    reader = _Reader()
    decoded = [reader.node(node, f"node {i}") for i, node in enumerate(items(nodes, "nodes"))]
    values: dict[str, Value] = {}
    for node, results in decoded:
        for value in results:
            if value.name in values:
                raise ArtifactError(f"node {node.name!r}: its output {value.name!r} is the output of a node before it")
            values[value.name] = value
    return Graph(
        inputs=tuple(reader.value(value, f"input {i}") for i, value in enumerate(items(inputs, "inputs"))),
        constants=MappingProxyType(_decode_constants(mapping(constants, "constants"), tensors, version)),
        nodes=tuple(node for node, _ in decoded),
        values=MappingProxyType(values),
        outputs=_decode_structure(outputs),
        meta=MappingProxyType({key: text(value, f"meta {short(key)}") for key, value in mapping(meta, "meta").items()}),
    )


def _decode_constants(constants: Mapping[str, Any], tensors: Mapping[str, Stored], version: int) -> dict[str, Constant]:
    unused = dict(tensors)

    def take(name: str, place: str, element: str) -> Any:
        if name not in unused:
            missing = "is used twice" if name in tensors else "is not in the file"
            raise ArtifactError(f"{place}: the tensor {short(name)} {missing}")
        stored = unused.pop(name)
        if stored.element != element:
            raise ArtifactError(f"{place}: expected a tensor of {element}, {short(name)} is stored as {stored.element}")
        return stored.array

    result: dict[str, Constant] = {}
    for name, entry in constants.items():
        place = f"constant {short(name)}"
        block = None
        if isinstance(entry, dict) and "block" in entry and version > 1:
            dtype, shape, scale, block = fields(entry, place, "dtype", "shape", "scale", "block")
        else:
            dtype, shape, scale = fields(entry, place, "dtype", "shape", "scale")
        if scale is None:
            if block is not None:
                raise ArtifactError(f"{place}: blocks are those of a scale, and it has none")
            if text(dtype, place) not in DTYPES:
                raise ArtifactError(f"{place}: expected one of {', '.join(sorted(DTYPES))}, or FP8 and a scale, got {short(dtype)}")
            result[name] = array = take(name, place, ELEMENT_OF[dtype])
        else:
            fmt = _decode_format(text(dtype, place), place)
            array = take(name, place, fmt.stored_as)
            factor = take(text(scale, f"{place}: scale"), f"{place}: scale", "F32")
            try:
                result[name] = QTensor(array, fmt, factor, block=None if block is None else _decode_block(block, array.shape, place))
            except Fp8npError as error:
                raise ArtifactError(f"{place}: {error}") from error
        if items(shape, place) != list(array.shape):
            raise ArtifactError(f"{place}: declared with the shape {short(shape)}, stored with {short(list(array.shape))}")
    if unused:
        raise ArtifactError(f"tensor {short(min(unused))}: no constant of the graph uses it")
    return result


def _decode_block(block: Any, shape: tuple[int, ...], place: str) -> tuple[int, ...]:
    lengths = items(block, f"{place}: block")
    if len(lengths) != len(shape) or not all(type(b) is int and 1 <= b < 2**63 for b in lengths):
        raise ArtifactError(f"{place}: expected a block of {len(shape)} lengths, each at least 1, got {short(block)}")
    return tuple(lengths)


def _decode_format(name: str, place: str) -> FloatFormat:
    # The length first: get_format looks for names that are close, which takes long for a long name.
    if len(name) <= 64:
        try:
            fmt = get_format(name)
        except Fp8npError as error:
            raise ArtifactError(f"{place}: {error}") from error
        if fmt.name == name:
            return fmt
    raise ArtifactError(f"{place}: expected the canonical name of a format, got {short(name)}")


def _decode_structure(part: Any) -> Structure:
    if part is None or isinstance(part, str):
        return part and text(part, "outputs")
    if isinstance(part, dict) and len(part) == 1:
        kind, parts = next(iter(part.items()))
        place = f"outputs: {short(kind)}"
        if kind == "dict":
            pairs = [items(pair, place) for pair in items(parts, place)]
            keys = [text(pair[0], place) for pair in pairs if len(pair) == 2]
            if len(set(keys)) == len(pairs):
                return {key: _decode_structure(pair[1]) for key, pair in zip(keys, pairs, strict=True)}
            raise ArtifactError(f"{place}: expected pairs with keys that differ, got {short(parts)}")
        if kind in ("list", "tuple"):
            decoded = [_decode_structure(p) for p in items(parts, place)]
            return decoded if kind == "list" else tuple(decoded)
    raise ArtifactError(f'outputs: expected a name, null, or an object with "tuple", "list" or "dict", got {short(part)}')


class _Reader:
    """Reads values and nodes. Models repeat few expressions of sizes many times; each is parsed once."""

    def __init__(self) -> None:
        self._parse: Callable[[str], Size] = lru_cache(maxsize=4096)(parse)

    def value(self, entry: Any, place: str) -> Value:
        name, dtype, shape = fields(entry, place, "name", "dtype", "shape")
        name = text(name, f"{place}: name")
        place = f"{place} ({short(name)})"
        if len(items(shape, f"{place}: shape")) > _MAX_RANK:
            raise ArtifactError(f"{place}: expected at most {_MAX_RANK} axes, got {len(shape)}")
        return Value(name, tuple(self._size(size, place) for size in shape), text(dtype, f"{place}: dtype"))

    def node(self, entry: Any, place: str) -> tuple[Node, list[Value]]:
        name, op, inputs, outputs, attrs, origin = fields(entry, place, "name", "op", "inputs", "outputs", "attrs", "origin")
        name = text(name, f"{place}: name")
        place = f"{place} ({short(name)})"
        results = [self.value(value, f"{place}: output {i}") for i, value in enumerate(items(outputs, f"{place}: outputs"))]
        node = Node(
            name=name,
            op=text(op, f"{place}: op"),
            inputs=tuple(None if i is None else text(i, f"{place}: inputs") for i in items(inputs, f"{place}: inputs")),
            outputs=tuple(value.name for value in results),
            attrs=MappingProxyType(
                {key: self._attr(value, f"{place}: attribute {short(key)}") for key, value in mapping(attrs, f"{place}: attrs").items()}
            ),
            origin=text(origin, f"{place}: origin"),
        )
        return node, results

    def _size(self, value: Any, place: str) -> Size:
        if type(value) is int and 0 <= value < 2**63:
            return value
        if isinstance(value, str):
            return self._expression(value, place)
        raise ArtifactError(f"{place}: expected a size from 0 to 2**63 - 1 or an expression, got {short(value)}")

    def _expression(self, value: str, place: str) -> Size:
        try:
            size = self._parse(value)
        except Fp8npError as error:
            raise ArtifactError(f"{place}: {error}") from error
        if not isinstance(size, Dim) or str(size) != value:
            raise ArtifactError(f"{place}: expected the size {str(size)!r} to be written so, got {short(value)}")
        return size

    def _attr(self, value: Any, place: str) -> Attr:
        if isinstance(value, list):
            return tuple(self._attr(part, place) for part in value)
        if isinstance(value, str):
            return text(value, place)
        if not isinstance(value, dict):
            return value
        if value.keys() == {"size"}:
            return self._expression(text(value["size"], place), place)
        if value.keys() == {"float"} and value["float"] in ("inf", "-inf", "nan"):
            return float(value["float"])
        raise ArtifactError(f'{place}: expected {{"size": ...}} or {{"float": "inf", "-inf" or "nan"}}, got {short(value)}')
