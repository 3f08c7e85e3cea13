"""VDSR: arXiv 1511.04587."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["VDSR"]


class VDSR(nn.Module):
    """x (B, 1, 128, 128), luminance in [0, 1], interpolated -> sharpened; other sizes if traced so"""

    example_inputs = (torch.zeros(2, 1, 128, 128),)

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.hidden = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(18))
        self.output = nn.Conv2d(64, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.input(x))
        for layer in self.hidden:
            y = F.relu(layer(y))
        return x + self.output(y)
