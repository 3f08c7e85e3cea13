"""Recurrent layers stay one operator while PyTorch traces, whatever their length.

PyTorch finds the shape of an ``aten.lstm`` by unrolling it over its example, which fixes the number of steps. Only its shape is
wanted here, and that is known: so while a module is traced, the four recurrent operators are given a rule that says it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decomposition_table

_OPERATORS = (
    torch.ops.aten.lstm.input,
    torch.ops.aten.gru.input,
    torch.ops.aten.rnn_tanh.input,
    torch.ops.aten.rnn_relu.input,
)
# Where PyTorch looks for Python code of an operator: when it dispatches, and once more when a shape is symbolic.
_KEYS = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)


@contextmanager
def whole_recurrent_layers() -> Iterator[None]:
    """While this holds, no recurrent operator is unrolled, and none can be computed."""
    kernels = {operator: dict(operator.py_kernels) for operator in _OPERATORS}
    decompositions = {operator: decomposition_table[operator] for operator in _OPERATORS}
    try:
        for operator in _OPERATORS:
            for key in _KEYS:
                operator.py_kernels[key] = _result
            operator._dispatch_cache.clear()
            decomposition_table[operator] = _result
        yield
    finally:
        for operator in _OPERATORS:
            operator.py_kernels.clear()
            operator.py_kernels.update(kernels[operator])
            operator._dispatch_cache.clear()
            decomposition_table[operator] = decompositions[operator]


def _result(
    x: torch.Tensor,
    state: Any,
    weights: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """y (..., D*H) and the last states, of the shapes of the first: D directions, H the size of h (LSTM: after projection)."""
    states = state if isinstance(state, list | tuple) else (state,)
    y = x.new_empty([*x.shape[:-1], states[0].shape[-1] * (2 if bidirectional else 1)])
    return y, *(s.new_empty(s.shape) for s in states)
