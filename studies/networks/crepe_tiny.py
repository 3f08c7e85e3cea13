"""CREPE, the tiny one: arXiv 1802.06182. Convolutions along time, which its checkpoint has as pictures one pixel wide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CrepeTiny"]

CHANNELS = (1, 128, 16, 16, 16, 32, 64)
# "Same" padding of kernels of 512 (stride 4) and 64 samples.
PADDING = ((254, 254), *((31, 32),) * 5)


class CrepeTiny(nn.Module):
    """frames (B, 1024), of mean 0 and deviation 1 -> how likely each of 360 pitches is (B, 360)"""

    example_inputs = (torch.zeros(2, 1024),)

    def __init__(self) -> None:
        super().__init__()
        for i in range(6):
            kernel, stride = (512, 4) if i == 0 else (64, 1)
            setattr(self, f"conv{i + 1}", nn.Conv1d(CHANNELS[i], CHANNELS[i + 1], kernel, stride))
            setattr(self, f"conv{i + 1}_BN", nn.BatchNorm1d(CHANNELS[i + 1], eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames.unsqueeze(1)
        for i, padding in enumerate(PADDING, 1):
            x = F.relu(getattr(self, f"conv{i}")(F.pad(x, padding)))
            x = F.max_pool1d(getattr(self, f"conv{i}_BN")(x), 2)
        return torch.sigmoid(self.classifier(x.transpose(1, 2).flatten(1)))
