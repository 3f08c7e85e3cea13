"""g2p-en (wheel g2p-en, Apache-2.0): a GRU reads the letters of a word, another one says its phonemes."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["GRAPHEMES", "PHONEMES", "START", "STEPS", "G2pEn"]

GRAPHEMES, PHONEMES, WIDTH = 29, 74, 256
START = 2
"""The phoneme that stands before the first."""
STEPS = 20
"""Phonemes that are said at most, the end among them."""


class G2pEn(nn.Module):
    """Greedy decoding as the wheel does it, but for a fixed number of steps: what follows the end means nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_emb = nn.Embedding(GRAPHEMES, WIDTH)
        self.enc = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.dec_emb = nn.Embedding(PHONEMES, WIDTH)
        self.dec = nn.GRUCell(WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, PHONEMES)

    def forward(self, graphemes: torch.Tensor) -> torch.Tensor:
        """(B, T) int64, without padding -> (B, STEPS, PHONEMES): the scores of each phoneme, the largest of which is said."""
        hidden = self.enc(self.enc_emb(graphemes))[1][0]
        said = torch.full_like(graphemes[:, 0], START)
        steps = []
        for _ in range(STEPS):
            hidden = self.dec(self.dec_emb(said), hidden)
            scores = self.fc(hidden)
            said = scores.argmax(1)
            steps.append(scores)
        return torch.stack(steps, 1)
