"""Silero VAD at 16 kHz, of any number of frames one after the other.

The network as it was published takes one frame and the state of its LSTM cell. Everything before the cell looks at one frame alone,
so that all frames of a recording go through it together, and an LSTM layer with the weights of the cell goes along them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["SileroVAD"]

BINS = 129


class SileroVAD(nn.Module):
    """frames (B, T, 576): the 64 samples before and the 512 of each -> probability of speech (B, T)"""

    example_inputs = (torch.zeros(2, 3, 576),)

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * BINS, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(BINS, 128, 3, 1, 1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, 1)
        self.conv4 = nn.Conv1d(64, 128, 3, 1, 1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        waves = frames.flatten(0, 1).unsqueeze(1)
        parts = self.stft_conv(F.pad(waves, (0, 64), mode="reflect"))
        x = (parts[:, :BINS] ** 2 + parts[:, BINS:] ** 2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        states, _ = self.lstm(x.squeeze(2).unflatten(0, frames.shape[:2]))
        return torch.sigmoid(self.final_conv(F.relu(states).transpose(1, 2))).squeeze(1)
