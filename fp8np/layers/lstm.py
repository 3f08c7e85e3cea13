"""lstm: for each step of time, with the gates i, f, g, o = x @ weight_ih^T + bias_ih + h @ weight_hh^T + bias_hh:

    c' = sigmoid(f) * c + sigmoid(i) * tanh(g),    h' = sigmoid(o) * tanh(c')

x (T, B, I), or with batch_first (B, T, I); h0 and c0 (cells, B, H), zeros if left out, a cell for each layer and direction;
y (T, B, H * directions), the h of the last layer at each step; h_n and c_n (cells, B, H). `_recurrent` has the order of weights.
lstm_cell is one step: x (B, I), h and c (B, H) -> h', c'.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.layers._checks import require, require_floats, require_shape
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._recurrent import State, check_cell, check_weights, float_products, initial, one_step, parts, sigmoid, walk
from fp8np.scheme import PerChannel, PerTensor


def shape(
    x: Spec, h0: Spec | None, c0: Spec | None, *weights: Spec, bias: bool, num_layers: int, bidirectional: bool, batch_first: bool
) -> tuple[Spec, Spec, Spec]:
    """(T, B, I), (cells, B, H), (cells, B, H), weights -> (T, B, H * directions), (cells, B, H), (cells, B, H)"""
    directions = 2 if bidirectional else 1
    hidden = check_weights("lstm", 4, x, weights, bias, num_layers, directions)
    batch = x.shape[0 if batch_first else 1]
    state = (num_layers * directions, batch, hidden)
    require_floats("lstm", h0=h0, c0=c0)
    require_shape("lstm", state, h0=h0, c0=c0)
    return Spec((*x.shape[:2], hidden * directions)), Spec(state), Spec(state)


def _cell(x_gates: Any, h_gates: Any, state: State) -> State:
    i, f, g, o = parts(x_gates + h_gates, 4)
    c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def lstm(x: Any, h0: Any, c0: Any, *weights: Any, bias: bool, num_layers: int, bidirectional: bool, batch_first: bool) -> tuple[Any, ...]:
    """c = sigmoid(f) * c + sigmoid(i) * tanh(g), h = sigmoid(o) * tanh(c), over time and layers"""
    cells, hidden = num_layers * (2 if bidirectional else 1), weights[1].shape[1]
    state = tuple(initial(s, cells, x, hidden, batch_first) for s in (h0, c0))
    return walk(_cell, x, state, weights, float_products(weights), bias=bias, bidirectional=bidirectional, batch_first=batch_first)


def cell_shape(
    x: Spec, h: Spec, c: Spec, weight_ih: Spec, weight_hh: Spec, bias_ih: Spec | None = None, bias_hh: Spec | None = None
) -> tuple[Spec, Spec]:
    """(B, I), (B, H), (B, H), weights -> (B, H), (B, H)"""
    require_floats("lstm_cell", x=x, h=h, c=c)
    require(x.ndim == h.ndim == 2, "lstm_cell", "x (B, I) and h (B, H)", x=x, h=h)
    state = (x.shape[0], h.shape[1])
    require_shape("lstm_cell", state, h=h, c=c)
    check_cell("lstm_cell", 4, x.shape[1], state[1], 0, weight_ih, weight_hh, bias_ih, bias_hh)
    return Spec(state), Spec(state)


def lstm_cell(x: Any, h: Any, c: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None) -> Any:
    """c' = sigmoid(f) * c + sigmoid(i) * tanh(g), h' = sigmoid(o) * tanh(c')"""
    return one_step(_cell, x, (h, c), bias_ih, bias_hh, float_products((weight_ih, weight_hh)))


def _convert(args: dict[str, Any]) -> dict[str, Any]:
    h0, c0 = args["hx"]
    if len(args["weights"]) != args["num_layers"] * (2 if args["bidirectional"] else 1) * (4 if args["bias"] else 2):
        raise ValueError("an LSTM with projections (proj_size) is not supported")
    return {**{k: v for k, v in args.items() if k != "hx"}, "h0": h0, "c0": c0}


def _convert_cell(args: dict[str, Any]) -> dict[str, Any]:
    h, c = args["hx"]
    return {**{k: v for k, v in args.items() if k != "hx"}, "h": h, "c": c}


op(
    "lstm",
    ("x", "h0?", "c0?", "weights*"),
    shape=shape,
    define=lstm,
    attrs={"bias": True, "num_layers": 1, "bidirectional": False, "batch_first": False},
    # Of the weights, the matrices; biases stay as they are.
    quantizable={"x": PerTensor(), "weights": PerChannel(0)},
    torch=(
        Foreign(
            "aten.lstm.input",
            ("x", "hx", "weights", "bias", "num_layers", "", "", "bidirectional", "batch_first"),
            convert=_convert,
        ),
    ),
    onnx=("LSTM",),
)

op(
    "lstm_cell",
    ("x", "h", "c", "weight_ih", "weight_hh", "bias_ih?", "bias_hh?"),
    shape=cell_shape,
    define=lstm_cell,
    quantizable={"x": PerTensor(), "weight_ih": PerChannel(0), "weight_hh": PerChannel(0)},
    torch=(Foreign("aten.lstm_cell.default", ("x", "hx", "weight_ih", "weight_hh", "bias_ih", "bias_hh"), convert=_convert_cell),),
)
