"""INT8 in a graph: what takes the place of a node whose operands become integers.

The paper's baseline (arXiv 2309.14592, section 4.1): weights int8, symmetric, a scale for each channel; activations uint8 with a zero
point, one scale, found by calibration or by each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from fp8np.calibrate import Range
from fp8np.errors import CalibrationError, RecipeError
from fp8np.graph import Constant, Graph, Names, Node, Value
from fp8np.integers import activation_parameters
from fp8np.layers._op import OPS
from fp8np.ptq.codes import integer_codes
from fp8np.scheme import PerChannel, PerTensor, Scheme
from fp8np.tensor import QTensor

__all__ = ["INTEGER_OPS", "IntegerWriter", "Written", "integer_weight"]

_COUNTERPARTS: Mapping[str, str] = MappingProxyType(
    {
        "linear": "integer_linear",
        "conv1d": "integer_conv1d",
        "conv2d": "integer_conv2d",
        "matmul": "integer_matmul",
        "addmm": "integer_matmul",
        "embedding": "integer_embedding",
        "embedding_bag": "integer_embedding_bag",
    }
)

INTEGER_OPS = frozenset(_COUNTERPARTS)
"""Ops that run in integers. Others have no counterpart, and stay as they are in an INT8 model."""


def integer_weight(graph: Graph, node: Node, role: str) -> npt.NDArray[np.float32] | None:
    """What the codes of a weight of an integer node stand for, float32; None where the input of that name is computed.

    Args:
        graph: whose constants are meant.
        node: one that an `IntegerWriter` wrote.
        role: a name of an input of the op that it takes the place of.
    """
    names = OPS[node.op].input_names
    codes, scale = (graph.constants.get(str(node.inputs[names.index(name)])) for name in (role, f"{role}_scale"))
    if not isinstance(codes, np.ndarray) or not isinstance(scale, np.ndarray):
        return None
    return codes.astype(np.float32) * scale


@dataclass(frozen=True)
class Written:
    """What one node became.

    Attributes:
        constants: new ones.
        nodes: those that quantize its activations, unless that has been done already; the node itself, of the same name, origin
            and outputs, comes last.
        values: new ones; those of the node's outputs are as they were.
    """

    constants: Mapping[str, Constant]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]


@dataclass
class IntegerWriter:
    """Writes the nodes of a graph in integers, one after the other, in the order of the graph.

    A value that several nodes read is quantized once, before the first of them; a weight that several share is stored once.

    Attributes:
        graph: the float32 graph.
        names: new names come from here.
        ranges: of the activations with a fixed scale.
        weight_calibrator: how the scales of weights are found: "max" or "mse".
    """

    graph: Graph
    names: Names
    ranges: Mapping[tuple[str, Scheme], Range]
    weight_calibrator: str = "max"
    _activations: dict[tuple[str, Scheme], tuple[str, str, str]] = field(default_factory=dict)
    _weights: dict[tuple[str, int | None], tuple[str, str]] = field(default_factory=dict)

    def write(self, node: Node, schemes: Mapping[int, Scheme]) -> Written:
        """The counterpart of a node.

        Args:
            node: of an op in `INTEGER_OPS`.
            schemes: for the position of each input that its op calls quantizable and that is there, a scheme of INT8.

        Raises:
            RecipeError: the op has no counterpart; a scheme is of another kind than weights per tensor or per channel, activations per
                tensor. CalibrationError: the range of an activation is missing.
        """
        if node.op not in INTEGER_OPS:
            raise RecipeError(f"{node.place}: int8 does not cover {node.op}; it covers {', '.join(sorted(INTEGER_OPS))}")
        constants: dict[str, Constant] = {}
        nodes: list[Node] = []
        values: dict[str, Value] = {}
        inputs: dict[str, str | None] = {}
        row = OPS[node.op]
        for i, name in enumerate(node.inputs):
            role = row.input_name(i)
            if i not in schemes or name is None:
                inputs[role] = name
                continue
            scheme = _checked(node, role, schemes[i], name in self.graph.constants)
            if name in self.graph.constants:
                inputs[role], inputs[f"{role}_scale"] = self._weight(name, role, scheme, constants)
            else:
                inputs[role], inputs[f"{role}_scale"], inputs[f"{role}_zero"] = self._activation(name, scheme, nodes, values)
        op = OPS[_COUNTERPARTS[node.op]]
        attrs = MappingProxyType({name: value for name, value in node.attrs.items() if name in op.attrs})
        nodes.append(node.replace(op=op.name, inputs=tuple(inputs.get(name) for name in op.input_names), attrs=attrs))
        return Written(MappingProxyType(constants), tuple(nodes), MappingProxyType(values))

    def _weight(self, name: str, role: str, scheme: Scheme, constants: dict[str, Constant]) -> tuple[str, str]:
        weight = self.graph.constants[name]
        if isinstance(weight, QTensor):
            raise RecipeError(f"{name!r}: expected a float32 weight, got {weight.format}")
        axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
        # The elements of a vector are all summed up, so they share a scale; so do those of a left operand.
        axis = None if axis is None or role == "a" or weight.ndim < 2 else axis % weight.ndim
        if (name, axis) not in self._weights:
            new = self.names.fresh(f"{name}.{scheme.format.name}")
            self._weights[name, axis] = made = new, self.names.fresh(f"{new}.scale")
            cut = replace(scheme, granularity=PerTensor() if axis is None else PerChannel(axis))
            constants[made[0]], constants[made[1]] = integer_codes(weight, cut, self.weight_calibrator)
        return self._weights[name, axis]

    def _activation(self, name: str, scheme: Scheme, nodes: list[Node], values: dict[str, Value]) -> tuple[str, str, str]:
        if (name, scheme) not in self._activations:
            attrs: dict[str, float | int | None] = {"scale": None, "zero_point": None}
            if not scheme.dynamic:
                if (name, scheme) not in self.ranges:
                    raise CalibrationError(f"quantize: activation {name!r} has not been calibrated")
                span = self.ranges[name, scheme]
                attrs["scale"], attrs["zero_point"] = activation_parameters(span.minimum, span.maximum)
            new = self.names.fresh(f"{name}.{scheme.format.name}")
            outputs = new, self.names.fresh(f"{new}.scale"), self.names.fresh(f"{new}.zero")
            self._activations[name, scheme] = outputs
            nodes.append(Node(new, "quantize_integer", (name,), outputs, MappingProxyType(attrs)))
            shapes = self.graph.facts(name).shape, (), ()
            for output, shape, dtype in zip(outputs, shapes, ("uint8", "float32", "int32"), strict=True):
                values[output] = Value(output, shape, dtype)
        return self._activations[name, scheme]


def _checked(node: Node, role: str, scheme: Scheme, constant: bool) -> Scheme:
    kinds = (PerTensor, PerChannel) if constant else (PerTensor,)
    if scheme.direct or scheme.power_of_two or not isinstance(scheme.granularity, kinds):
        expected = "one scale for each tensor or channel" if constant else "one scale"
        how = "1" if scheme.direct else "powers of two" if scheme.power_of_two else f"one for each {scheme.granularity}"
        raise RecipeError(f"{node.place}: int8 has {expected} for {role}, of any size; got {how}")
    return scheme
