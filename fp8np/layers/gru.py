"""gru: for each step of time, with r, z, n the parts of x @ weight_ih^T + bias_ih, and r', z', n' those of h @ weight_hh^T + bias_hh:

    u = sigmoid(z + z'),    h' = (1 - u) * tanh(n + sigmoid(r + r') * n') + u * h

x (T, B, I), or with batch_first (B, T, I); h0 (cells, B, H), zeros if left out, a cell for each layer and direction;
y (T, B, H * directions), the h of the last layer at each step; h_n (cells, B, H). `_recurrent` has the order of weights.
gru_cell is one step: x (B, I), h (B, H) -> h'.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.layers._checks import require, require_floats, require_shape
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._recurrent import State, check_cell, check_weights, float_products, initial, one_step, parts, sigmoid, walk
from fp8np.scheme import PerChannel, PerTensor


def shape(
    x: Spec, h0: Spec | None, *weights: Spec, bias: bool, num_layers: int, bidirectional: bool, batch_first: bool
) -> tuple[Spec, Spec]:
    """(T, B, I), (cells, B, H), weights -> (T, B, H * directions), (cells, B, H)"""
    directions = 2 if bidirectional else 1
    hidden = check_weights("gru", 3, x, weights, bias, num_layers, directions)
    state = (num_layers * directions, x.shape[0 if batch_first else 1], hidden)
    require_floats("gru", h0=h0)
    require_shape("gru", state, h0=h0)
    return Spec((*x.shape[:2], hidden * directions)), Spec(state)


def _cell(x_gates: Any, h_gates: Any, state: State) -> State:
    (r, z, n), (r_h, z_h, n_h) = parts(x_gates, 3), parts(h_gates, 3)
    update = sigmoid(z + z_h)
    return ((1 - update) * np.tanh(n + sigmoid(r + r_h) * n_h) + update * state[0],)


def gru(x: Any, h0: Any, *weights: Any, bias: bool, num_layers: int, bidirectional: bool, batch_first: bool) -> tuple[Any, ...]:
    """u = sigmoid(z + z'), h = (1 - u) * tanh(n + sigmoid(r + r') * n') + u * h, over time and layers"""
    cells = num_layers * (2 if bidirectional else 1)
    state = (initial(h0, cells, x, weights[1].shape[1], batch_first),)
    return walk(_cell, x, state, weights, float_products(weights), bias=bias, bidirectional=bidirectional, batch_first=batch_first)


def cell_shape(x: Spec, h: Spec, weight_ih: Spec, weight_hh: Spec, bias_ih: Spec | None = None, bias_hh: Spec | None = None) -> Spec:
    """(B, I), (B, H), weights -> (B, H)"""
    require_floats("gru_cell", x=x, h=h)
    require(x.ndim == h.ndim == 2 and x.shape[0] == h.shape[0], "gru_cell", "x (B, I) and h (B, H)", x=x, h=h)
    check_cell("gru_cell", 3, x.shape[1], h.shape[1], 0, weight_ih, weight_hh, bias_ih, bias_hh)
    return Spec(h.shape)


def gru_cell(x: Any, h: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None) -> Any:
    """u = sigmoid(z + z'), h' = (1 - u) * tanh(n + sigmoid(r + r') * n') + u * h"""
    return one_step(_cell, x, (h,), bias_ih, bias_hh, float_products((weight_ih, weight_hh)))[0]


op(
    "gru",
    ("x", "h0?", "weights*"),
    shape=shape,
    define=gru,
    attrs={"bias": True, "num_layers": 1, "bidirectional": False, "batch_first": False},
    # Of the weights, the matrices; biases stay as they are.
    quantizable={"x": PerTensor(), "weights": PerChannel(0)},
    torch=(Foreign("aten.gru.input", ("x", "h0", "weights", "bias", "num_layers", "", "", "bidirectional", "batch_first")),),
    onnx=("GRU",),
)

op(
    "gru_cell",
    ("x", "h", "weight_ih", "weight_hh", "bias_ih?", "bias_hh?"),
    shape=cell_shape,
    define=gru_cell,
    quantizable={"x": PerTensor(), "weight_ih": PerChannel(0), "weight_hh": PerChannel(0)},
    torch=(Foreign("aten.gru_cell.default", ("x", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh")),),
)
