"""What a node reads in fewer bits: FP8 codes or integers, computed or constant, with the numbers that they stand for.

Nodes are read by their rows of OPS. An operand in integers is three inputs, ``x``, ``x_scale`` and ``x_zero``; one in FP8 is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.check import DTYPES
from fp8np.formats import FloatFormat, get_format
from fp8np.graph import Graph, Node
from fp8np.interpret import evaluated
from fp8np.layers._op import OPS
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor, code_values

__all__ = ["Coded", "Operand", "coded_constant", "coded_value", "defined", "grid", "is_quantizer", "operands", "quantizers"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Coded:
    """A tensor in fewer bits.

    Attributes:
        values: float32, what the codes stand for.
        steps: float32, broadcasts to values: the scale of each.
        low, high: bounds of what is represented, in scales; beyond them numbers saturate.
        scales: the different scales, as stored.
        zero: the code of zero where codes are integers.
    """

    values: Array
    steps: Array
    low: float
    high: float
    scales: Array
    zero: float | None = None

    def as_read(self, x: Array) -> Array:
        """Numbers in the form in which ops read this operand: as they are, or as integers would be if they were not rounded."""
        return x if self.zero is None else x.astype(np.float64) / self.steps + self.zero


@dataclass(frozen=True)
class Operand:
    """One input of a node that is in fewer bits.

    Attributes:
        position: of its codes among the node's inputs.
        role: the name of that input in the op's row: "weight", "x", "a".
        name: of the codes.
        source: the float32 value that they are made of while the model runs; None where they are a constant.
        format: name of a format; "int8" or "uint8".
        scaling: how many scales there are and where they come from: "channel 0", "static", "dynamic token", "direct".
    """

    position: int
    role: str
    name: str
    source: str | None
    format: str
    scaling: str

    @property
    def constant(self) -> bool:
        """Whether it is a weight."""
        return self.source is None


def is_quantizer(graph: Graph, node: Node) -> bool:
    """Whether a node turns a float32 value into codes.

    >>> from fp8np.build import GraphBuilder
    >>> b = GraphBuilder()
    >>> q = b.node("quantize", (b.input("x", (2,), "float32"),), {"format": "e4m3fn", "scale": 1.0})
    >>> graph = b.finish(b.node("linear", (q, b.constant("w", np.ones((3, 2), np.float32)))))
    >>> [is_quantizer(graph, node) for node in graph.nodes]
    [True, False]
    """
    dtype = graph.facts(node.outputs[0]).dtype
    return node.op.startswith("quantize") and (dtype not in DTYPES or dtype in ("uint8", "int8"))


def quantizers(graph: Graph) -> dict[str, Node]:
    """The nodes that make codes, by the name of these."""
    return {node.outputs[0]: node for node in graph.nodes if is_quantizer(graph, node)}


def operands(graph: Graph, node: Node, made: Mapping[str, Node]) -> tuple[Operand, ...]:
    """What a node reads in fewer bits, in the order of its inputs.

    Args:
        graph: the model.
        node: one of its nodes.
        made: `quantizers` of the graph.
    """
    found = []
    row = OPS[node.op]
    for i, name in enumerate(node.inputs):
        if name is None:
            continue
        role = row.input_name(i)
        if name in made:
            found.append(Operand(i, role, name, str(made[name].inputs[0]), graph.facts(name).dtype, _found_when(made[name])))
        elif isinstance(constant := graph.constants.get(name), QTensor):
            found.append(Operand(i, role, name, None, constant.format.name, _granularity(constant.scale, constant.block)))
        elif constant is not None and constant.dtype == np.int8 and f"{role}_scale" in row.input_names:
            found.append(Operand(i, role, name, None, "int8", _granularity(np.asarray(graph.constants[_scale_of(node, role)]), None)))
    return tuple(found)


def _scale_of(node: Node, role: str) -> str:
    return str(node.inputs[OPS[node.op].input_names.index(f"{role}_scale")])


def _found_when(node: Node) -> str:
    attrs = OPS[node.op].filled(node.attrs)
    each = attrs.get("granularity", "tensor")
    if attrs.get("scale") is None:
        return "dynamic" if each == "tensor" else f"dynamic {each}"
    return "direct" if attrs["scale"] == 1.0 and attrs.get("zero_point") is None else "static"


def _granularity(scale: Array, block: tuple[int, ...] | None) -> str:
    if block is not None:
        return f"block {'x'.join(map(str, block))}"
    if scale.size == 1:
        return "direct" if float(scale.reshape(())) == 1.0 else "tensor"
    return f"channel {next(i for i, n in enumerate(scale.shape) if n > 1)}"


def coded_constant(graph: Graph, node: Node, operand: Operand) -> Coded:
    """A weight in fewer bits."""
    constant = graph.constants[operand.name]
    if isinstance(constant, QTensor):
        return _coded(constant)
    scale = np.asarray(graph.constants[_scale_of(node, operand.role)], np.float32)
    return Coded(constant * scale, scale, -127.0, 127.0, scale, 0.0)


def coded_value(node: Node, source: Array, sizes: Mapping[str, int]) -> tuple[Coded, dict[str, Any]]:
    """What a quantizer makes of an array, and its outputs beside the codes, by name: scale and zero point of integers."""
    result = defined(node, (source,), sizes)
    if isinstance(result, QTensor):
        return _coded(result), {}
    codes, scale, zero = result
    values = (codes.astype(np.float32) - np.float32(zero)) * scale
    coded = Coded(values, scale, -float(zero), 255.0 - float(zero), np.asarray(scale), float(zero))
    return coded, dict(zip(node.outputs[1:], (scale, zero), strict=True))


def defined(node: Node, args: tuple[Any, ...], sizes: Mapping[str, int]) -> Any:
    """A node's op by its definition."""
    row = OPS[node.op]
    with np.errstate(all="ignore"):
        return row.define(*args, **evaluated(row.filled(node.attrs), sizes))


def _coded(q: QTensor) -> Coded:
    steps = q.scale
    if q.block is not None:
        one = int(np.argmax(code_values(q.format) == 1.0))
        steps = dequantize(QTensor(np.full(q.shape, one, np.uint8), q.format, q.scale, block=q.block, scale_format=q.scale_format))
    return Coded(dequantize(q), steps, -q.format.max, q.format.max, q.scale)


@lru_cache(maxsize=64)
def grid(name: str) -> tuple[float, ...]:
    """The positive magnitudes that a format represents, ascending, without a scale.

    >>> grid("e2m1fn"), len(grid("int8")), grid("uint8")[-1]
    ((0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), 127, 255.0)
    """
    if name in ("int8", "uint8"):
        return tuple(float(n) for n in range(1, 128 if name == "int8" else 256))
    fmt: FloatFormat = get_format(name)
    values = code_values(fmt)
    return tuple(sorted({float(v) for v in values[np.isfinite(values) & (values > 0)]}))
