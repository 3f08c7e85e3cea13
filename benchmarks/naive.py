"""Naive fake quantization in PyTorch: the yardstick that a conversion should at least equal.

Weights of every Linear, Conv1d and Conv2d per output channel, their inputs per tensor, both scaled by the largest magnitude found at run
time, rounded to FP8 and back; products in float32; nothing is folded, calibrated or left out.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import fp8np


def fake_quantized(module: nn.Module, fmt: str) -> nn.Module:
    """A copy of `module` that computes with rounded weights and activations."""
    rounded = copy.deepcopy(module)

    def round_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (there_and_back(args[0], fmt, None), *args[1:])

    for layer in rounded.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            with torch.no_grad():
                layer.weight.copy_(there_and_back(layer.weight, fmt, 0))
            layer.register_forward_pre_hook(round_input)
    return rounded


def there_and_back(x: torch.Tensor, fmt: str, axis: int | None) -> torch.Tensor:
    """`x` rounded to a format, scaled per tensor or along an axis."""
    return torch.from_numpy(fp8np.dequantize(fp8np.quantize(x.detach().numpy(), fmt, axis=axis)))
