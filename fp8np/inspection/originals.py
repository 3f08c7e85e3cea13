"""The float32 weights that a model's codes were made of, as far as its FP32 artifact tells.

Smoothing and equalization multiply the rows and columns of weights before they are rounded (what is taken from one layer is given to
another); such factors are found again by least squares, so that what is left is rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.graph import Graph, Node
from fp8np.inspection.operands import Operand
from fp8np.layers._op import OPS
from fp8np.metrics import decibels, energy
from fp8np.tensor import QTensor

__all__ = ["original_weight", "rescaled_like"]

Array = npt.NDArray[Any]

# Factors that explain so much, in dB, were put there on purpose: rounding, however it chooses, makes none.
_EXPLAINED = 6.0
# Fewer numbers than that for each factor can be explained by anything.
_NUMBERS = 4
_ROUNDS = 20


def original_weight(graph: Graph, node: Node, operand: Operand, values: Array) -> tuple[Array | None, bool]:
    """What a weight was before it was rounded, float32, and whether factors had to be found.

    Args:
        graph: of the FP32 artifact.
        node: the same node in it.
        operand: the weight, as the quantized node reads it.
        values: what its codes stand for.
    """
    names = OPS[node.op].input_names
    # Integer ops have other inputs between; those of a variadic op share one name.
    variadic = OPS[node.op].inputs[-1].endswith("*")
    place = operand.position if variadic or operand.role not in names else names.index(operand.role)
    name = node.inputs[place] if place < len(node.inputs) else None
    constant = graph.constants.get(str(name))
    if constant is None or isinstance(constant, QTensor) or constant.dtype != np.float32 or constant.shape != values.shape:
        return None, False
    return rescaled_like(constant, values)


def rescaled_like(original: Array, values: Array) -> tuple[Array, bool]:
    """The original, its rows (axis 0) and columns (axis 1) multiplied by what brings it closest to `values` if that explains much.

    >>> rng = np.random.default_rng(0)
    >>> w = rng.standard_normal((32, 5)).astype(np.float32)
    >>> moved = w * np.linspace(1, 9, 5, dtype=np.float32)
    >>> found, changed = rescaled_like(w, moved)
    >>> changed, bool(np.allclose(found, moved, rtol=1e-4))
    (True, True)
    >>> rescaled_like(w, (w + rng.standard_normal(w.shape) / 100).astype(np.float32))[1]
    False
    """
    plain = sqnr_of(values, original)
    few = original.ndim < 2 or original.size < _NUMBERS * sum(original.shape[:2])
    if few or not np.isfinite(plain) or not np.isfinite(original).all():
        return original, False
    w, v = (x.astype(np.float64).reshape(*x.shape[:2], -1) for x in (original, values))
    product, square = (w * v).sum(2), (w * w).sum(2)
    rows, columns = np.ones(w.shape[0]), np.ones(w.shape[1])
    for _ in range(_ROUNDS):
        rows = _fit(product @ columns, square @ columns**2)
        columns = _fit(product.T @ rows, square.T @ rows**2)
    fitted = (w * (rows[:, None, None] * columns[:, None])).reshape(original.shape).astype(np.float32)
    return (fitted, True) if sqnr_of(values, fitted) >= plain + _EXPLAINED else (original, False)


def _fit(product: Array, square: Array) -> Array:
    return np.divide(product, square, out=np.ones_like(product), where=square > 0)


def sqnr_of(values: Array, reference: Array) -> float:
    """In dB, of arrays of one shape, which may be empty."""
    exact = reference.astype(np.float64)
    return decibels(energy(exact), energy(values - exact))
