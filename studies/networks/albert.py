"""ALBERT (arXiv 1909.11942) with the head that it is trained with: one layer, applied again and again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Albert"]


class Albert(nn.Module):
    """Masked language model. Tied weights: the embeddings of words are also what scores them."""

    def __init__(
        self, vocabulary: int, *, positions: int, embedding: int, width: int, inner: int, heads: int, layers: int, eps: float = 1e-12
    ) -> None:
        """
        Args:
            vocabulary, positions: rows of the embeddings.
            embedding: their size, E.
            width: of the hidden states, C.
            inner: the width inside of the feed-forward part.
            heads: of the attention.
            layers: how often the layer is applied.
            eps: of the layer norms.
        """
        super().__init__()
        self.words = nn.Embedding(vocabulary, embedding)
        self.positions = nn.Embedding(positions, embedding)
        self.types = nn.Embedding(2, embedding)
        self.norm = nn.LayerNorm(embedding, eps)
        self.widen = nn.Linear(embedding, width)
        self.layer = Layer(width, inner, heads, eps)
        self.layers = layers
        self.narrow = nn.Linear(width, embedding)
        self.head_norm = nn.LayerNorm(embedding, eps)
        self.scores = nn.Linear(embedding, vocabulary)
        self.scores.weight = self.words.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """int64 (B, T), and 1 where there is a token -> scores (B, T, vocabulary)"""
        places = torch.arange(input_ids.shape[1])
        x = self.words(input_ids) + self.positions(places) + self.types(torch.zeros_like(input_ids))
        x = self.widen(self.norm(x))
        seen = attention_mask.bool()[:, None, None]
        for _ in range(self.layers):
            x = self.layer(x, seen)
        return self.scores(self.head_norm(F.gelu(self.narrow(x))))


class Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width, eps)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """(B, T, C), (B, 1, 1, T) -> (B, T, C)"""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.out(attended))
        return self.norm(x + self.down(F.gelu(self.up(x))))
