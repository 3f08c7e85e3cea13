"""What lstm and gru share: weights in PyTorch's order, the walk over layers, directions and time.

Weights of a layer and direction, in order: weight_ih (g*H, I), weight_hh (g*H, H), and with biases bias_ih, bias_hh (g*H,); for
layer 0 forward, layer 0 backward, layer 1 forward, ... g is the number of gates. I is the size of the input, or in later
layers H times the number of directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.layers._checks import require, require_floats, require_positive, require_shape
from fp8np.layers._op import Spec

State = tuple[Any, ...]
"""(h,) or (h, c), each (B, H)."""

Cell = Callable[[Any, Any, State], State]
"""cell(x @ weight_ih^T + bias_ih, h @ weight_hh^T + bias_hh, state) -> the next state; products are (B, g*H)."""

Multiply = Callable[[Any, int], Any]
"""multiply(x, i): x (..., K) @ weights[i]^T -> (..., g*H), a new array."""


def check_weights(name: str, gates: int, x: Spec, weights: tuple[Spec, ...], bias: bool, num_layers: int, directions: int) -> Size:
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


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x); the caller silences the overflow of e^-x, which gives 0 as it should."""
    return 1 / (1 + np.exp(-x))


def parts(products: Any, gates: int) -> Any:
    """(B, g*H) -> (g, B, H), a view."""
    return products.reshape(len(products), gates, -1).transpose(1, 0, 2)


def initial(h: Any, cells: int, x: Any, hidden: int, batch_first: bool) -> Any:
    """h (cells, B, H), or zeros where it is left out."""
    return np.zeros((cells, x.shape[0 if batch_first else 1], hidden), x.dtype) if h is None else h


@np.errstate(over="ignore")
def walk(
    cell: Cell, x: Any, state: State, weights: tuple[Any, ...], multiply: Multiply, *, bias: bool, bidirectional: bool, batch_first: bool
) -> tuple[Any, ...]:
    """All layers over all of time.

    x (T, B, I), or with batch_first (B, T, I); state holds arrays (cells, B, H), a cell for each layer and direction. Returns
    y (T, B, H * directions), or (B, T, ...), and the final state, shaped like `state`.
    """
    per_cell = 4 if bias else 2
    directions = 2 if bidirectional else 1
    y = x.transpose(1, 0, 2) if batch_first else x
    finals: list[State] = []
    while len(finals) < len(state[0]):
        sides = []
        for backward in range(directions):
            place = len(finals) * per_cell
            b_ih, b_hh = weights[place + 2 : place + 4] if bias else (0, 0)
            # The products of the input are one product over all of time: (T, B, g*H).
            gates = multiply(y, place) + b_ih
            now = tuple(s[len(finals)] for s in state)
            hidden = np.empty((*gates.shape[:2], now[0].shape[1]), gates.dtype)
            for t in reversed(range(len(gates))) if backward else range(len(gates)):
                now = cell(gates[t], multiply(now[0], place + 1) + b_hh, now)
                hidden[t] = now[0]
            finals.append(now)
            sides.append(hidden)
        y = np.concatenate(sides, axis=2) if bidirectional else sides[0]
    return (np.ascontiguousarray(y.transpose(1, 0, 2)) if batch_first else y, *(np.stack(s) for s in zip(*finals, strict=True)))


@np.errstate(over="ignore")
def one_step(cell: Cell, x: Any, state: State, bias_ih: Any, bias_hh: Any, multiply: Multiply) -> State:
    """The state (B, H) after x (B, I); ``multiply(., 0)`` and ``multiply(., 1)`` are the products with weight_ih and weight_hh."""
    x_gates, h_gates = multiply(x, 0), multiply(state[0], 1)
    return cell(x_gates if bias_ih is None else x_gates + bias_ih, h_gates if bias_hh is None else h_gates + bias_hh, state)
