"""What lstm and gru share: weights in PyTorch's order, the walk over layers, directions and time, and FP8 products.

Weights of a layer and direction, in order: weight_ih (g*H, I), weight_hh (g*H, H), and with biases bias_ih, bias_hh (g*H,); for
layer 0 forward, layer 0 backward, layer 1 forward, ... g is the number of gates. I is the size of the input, or in later
layers H times the number of directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fp8np.codec import decode_table, quantize, scale_for
from fp8np.dims import Size
from fp8np.formats import FloatFormat
from fp8np.layers._checks import require, require_floats, require_positive, require_shape
from fp8np.layers._op import Call, Select, Spec, is_fp8
from fp8np.tensor import QTensor

State = tuple[Any, ...]
"""(h,) or (h, c), each (B, H)."""

Cell = Callable[[Any, Any, State], State]
"""cell(x @ weight_ih^T + bias_ih, h @ weight_hh^T + bias_hh, state) -> the next state; products are (B, g*H)."""

Multiply = Callable[[Any, int], Any]
"""multiply(x, i): x (..., K) @ weights[i]^T -> (..., g*H), a new array."""


def check_weights(
    name: str, gates: int, x: Spec, weights: tuple[Spec, ...], bias: bool, num_layers: int, directions: int
) -> Size:
    """Raises unless the weights are those of the module's docstring; returns H."""
    per_cell = 4 if bias else 2
    require_floats(name, x=x, **{f"weight {i}": w for i, w in enumerate(weights)})
    require_positive(name, num_layers=(num_layers,))
    require(x.ndim == 3, name, "x (T, B, I), or with batch_first (B, T, I)", x=x)
    expected = num_layers * directions * per_cell
    require(len(weights) == expected, name, f"{expected} weights, {per_cell} for each layer and direction", weights=len(weights))
    require(weights[1].ndim == 2, name, f"weight_hh ({gates}*H, H)", weight_hh=weights[1])
    hidden = weights[1].shape[1]
    for cell in range(num_layers * directions):
        inputs = x.shape[2] if cell < directions else hidden * directions
        check_cell(name, gates, inputs, hidden, cell, *weights[cell * per_cell : (cell + 1) * per_cell])
    return hidden


def check_cell(
    name: str, gates: int, inputs: Size, hidden: Size, cell: int, ih: Spec, hh: Spec, b_ih: Spec | None = None, b_hh: Spec | None = None
) -> None:
    """Raises unless the weights of one cell fit each other."""
    where = f"{name}, cell {cell}"
    require_shape(where, (hidden * gates, inputs), weight_ih=ih)
    require_shape(where, (hidden * gates, hidden), weight_hh=hh)
    require_shape(where, (hidden * gates,), bias_ih=b_ih, bias_hh=b_hh)


def float_products(weights: tuple[Any, ...]) -> Multiply:
    """Products of float arrays."""
    return lambda x, i: x @ weights[i].T


def fp8_products(call: Call, select: Select, first: int) -> Callable[[Any], Multiply] | None:
    """Products of FP8 codes, given the initial h; None where x or a matrix among inputs `first`, ... is not FP8.

    The codes of h have a fixed scale. After the first step |h| <= max(1, |initial h|): o * tanh(c) and a mean of tanh(...) and h
    stay within 1 and within h. What calibration could find is known beforehand.
    """
    matrices = [i for i in range(first, len(call.specs)) if (spec := call.specs[i]) is not None and spec.ndim == 2]
    if not is_fp8(call.specs[0]) or not all(isinstance(call.constants[i], QTensor) for i in matrices):
        return None
    codes = {i - first: call.prepare(i, "codes", lambda w: np.ascontiguousarray(w.codes)[None]) for i in matrices}
    scales = {i - first: call.prepare(i, "scale", lambda w: np.ascontiguousarray(w.scale.reshape(-1))) for i in matrices}
    formats: dict[int, FloatFormat] = {i - first: call.constants[i].format for i in matrices}  # type: ignore[union-attr]
    return lambda h: _Fp8Products(select, codes, scales, formats, h)


class _Fp8Products:
    def __init__(self, select: Select, codes: Any, scales: Any, formats: dict[int, FloatFormat], h: Any) -> None:
        self.select, self.codes, self.scales, self.formats = select, codes, scales, formats
        self.largest = max(1.0, float(np.abs(h).max(initial=0)))

    def __call__(self, x: Any, i: int) -> Any:
        ...
