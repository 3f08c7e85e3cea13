"""Resemblyzer's speaker encoder: arXiv 1710.10467."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["SpeakerEncoder"]


class SpeakerEncoder(nn.Module):
    """mels (B, 160, 40), energies of 1.6 s -> embeddings (B, 256) of length 1"""

    example_inputs = (torch.zeros(2, 160, 40),)

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)
