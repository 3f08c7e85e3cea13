"""A BERT of transformers with what turns its hidden states into the embedding of a sentence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["SentenceEncoder"]


class SentenceEncoder(nn.Module):
    """What `fp8np_converters.bert.from_folder` reads with ``pooling="mean"``, for PyTorch."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """int64 (B, T) -> the hidden states (B, T, C), and their mean over the tokens that are seen, of length 1: (B, C)"""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        seen = attention_mask[..., None].to(hidden.dtype)
        mean = (hidden * seen).sum(1) / seen.sum(1)
        return {"last_hidden_state": hidden, "sentence_embedding": F.normalize(mean, dim=1)}
