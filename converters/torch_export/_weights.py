"""Weights read without PyTorch, put into a module that is about to be traced."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fp8np.errors import CheckpointError
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor

__all__ = ["load_weights"]


def load_weights(module: nn.Module, weights: Mapping[str, Any], *, origin: str = "the checkpoint") -> None:
    """Puts a state dict of arrays into a module.

    A tensor that the module needs may be missing if it is tied to one that is there, or counts batches. Tensors that the module
    does not have are left out, with a warning that names them: trainers keep more than the model in a checkpoint.

    Args:
        module: keeps its types and devices.
        weights: arrays (or QTensors) by name, as `fp8np_converters.checkpoint.read_state_dict` returns them.
        origin: where they come from, for messages.

    Raises:
        CheckpointError: tensors are missing or of another shape; all are listed.

    >>> layer = torch.nn.Linear(2, 1)
    >>> load_weights(layer, {"weight": np.ones((1, 2)), "bias": np.zeros(1)})
    >>> layer.weight.tolist()
    [[1.0, 1.0]]
    """
    targets = {name: target for name, target in module.state_dict().items() if isinstance(target, torch.Tensor)}
    given = {target.data_ptr() for name, target in targets.items() if name in weights}
    problems = []
    for name, target in targets.items():
        if name in weights:
            if weights[name].shape != tuple(target.shape):
                problems.append(f"{name}: expected {tuple(target.shape)}, got {weights[name].shape}")
        elif target.data_ptr() not in given and not name.endswith("num_batches_tracked"):
            problems.append(f"{name}: missing, expected {tuple(target.shape)}")
    unknown = [name for name in weights if name not in targets]
    if problems:
        problems += [f"{name}: not in the module, {weights[name].shape}" for name in unknown]
        raise CheckpointError(f"{origin}: the weights do not fit {type(module).__name__}:\n  " + "\n  ".join(problems))
    if unknown:
        warnings.warn(f"{origin}: left out, since {type(module).__name__} has no such tensors: {', '.join(unknown)}", stacklevel=2)
    with torch.no_grad():
        for name, target in targets.items():
            if name in weights:
                value = weights[name]
                target.copy_(torch.from_numpy(np.array(dequantize(value) if isinstance(value, QTensor) else value)))
