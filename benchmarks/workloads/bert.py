"""BERT (arXiv 1810.04805) of any size with random weights, for timing; the base model if nothing else is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fp8np_benchmarks.peers import quiet

__all__ = ["HiddenStates", "random_module", "saved"]


class HiddenStates(nn.Module):
    """The last hidden state alone, of a BertModel."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        return self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state


def random_module(config: Mapping[str, Any]) -> HiddenStates:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return HiddenStates(BertModel(BertConfig(**config), add_pooling_layer=False)).eval()


def saved(module: HiddenStates, folder: Path) -> Path:
    """Writes the folder that a checkpoint is read from."""
    with quiet():
        module.bert.save_pretrained(folder)
    return folder
