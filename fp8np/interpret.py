"""What a graph means: each node by its op's NumPy definition, one after the other. Slow, and the law for `fp8np.plan`.

Calibration and reports use it too, since it shows every value on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fp8np.dims import Dim, evaluate
from fp8np.errors import ExecutionError, Fp8npError, InputError
from fp8np.graph import Graph, Node, map_structure
from fp8np.layers._op import OPS
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor

__all__ = ["bind_sizes", "evaluated", "failure", "interpret"]

Observer = Callable[[str, Any], None]


def interpret(graph: Graph, inputs: Mapping[str, Any], *, observe: Observer | None = None, dtype: Any = np.float32) -> Any:
    """Runs a graph by the definitions of its ops.

    Args:
        graph: a checked graph.
        inputs: an array for each input, by name, of the declared shape and type.
        observe: called with the name and the array (or QTensor) of each value as it is computed.
        dtype: float32, or float64 for a result to compare others with; applies to inputs and constants alike.

    Returns:
        The outputs, in the graph's own structure.

    Raises:
        InputError, ExecutionError: a node refused the values it got, or failed; the message names it.
    """
    sizes = bind_sizes(graph, inputs)
    env: dict[str, Any] = {name: _cast(array, dtype) for name, array in inputs.items()}
    if observe is not None:
        for name, value in env.items():
            observe(name, value)
    for node in graph.nodes:
        row = OPS[node.op]
        args = [None if n is None else _cast(env[n] if n in env else graph.constants[n], dtype) for n in node.inputs]
        try:
            with np.errstate(all="ignore"):
                result = row.define(*args, **evaluated(row.filled(node.attrs), sizes))
        except Exception as error:
            raise failure(node, error) from error
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(node.outputs, results, strict=True):
            env[name] = value
            if observe is not None:
                observe(name, value)
    return map_structure(lambda n: env[n] if n in env else graph.constants[n], graph.outputs)


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, QTensor):
        return dequantize(value).astype(dtype, copy=False)
    return value.astype(dtype, copy=False) if value.dtype.kind == "f" else value


def failure(node: Node, error: Exception) -> Fp8npError:
    """What to raise where a node raised `error` while it ran: an error of ours keeps its class."""
    kind = type(error) if isinstance(error, Fp8npError) else ExecutionError
    return kind(f"{node.place} failed: {error}")


def bind_sizes(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, int]:
    """The value of each named size, read off the shapes of the inputs.

    Raises:
        InputError: two inputs disagree about a size.
    """
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        for axis, (size, n) in enumerate(zip(value.shape, inputs[value.name].shape, strict=True)):
            if isinstance(size, Dim) and sizes.setdefault(str(size), n) != n:
                raise InputError(f"input {value.name!r}: {size} is {sizes[str(size)]} elsewhere, but axis {axis} has {n}")
    return sizes


def evaluated(attrs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Attributes with symbolic sizes replaced by their values."""
    return {name: _evaluated(value, sizes) for name, value in attrs.items()}


def _evaluated(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, Dim):
        return evaluate(value, sizes)
    return tuple(_evaluated(v, sizes) for v in value) if isinstance(value, tuple) else value
