"""The ALBERT of rxnmapper (doi 10.1126/sciadv.abe4166; wheel rxnmapper 0.4.3, MIT) on chemical reactions: which token was masked?

``models`` holds the unpacked wheel. The reactions are those of ``reactions.txt`` beside this file. Of each, every seventh token is
masked, seven times, until each was masked once; the model is asked for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fp8np.errors import InputError
from fp8np_studies._folders import Folders, find

__all__ = ["calibration", "data", "network", "token_accuracy", "units"]

STRIDE = 7
"""One token in so many is masked: about as many as in training."""
NOT_ASKED = -1
"""The label of a token that is not masked."""
FOLDER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
# Whatever is in brackets is one token, and so are elements of two letters, arrows and the rings from 10 on.
TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.")

_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0."
_NAMES = {
    "albert.embeddings.word_embeddings": "words",
    "albert.embeddings.position_embeddings": "positions",
    "albert.embeddings.token_type_embeddings": "types",
    "albert.embeddings.LayerNorm": "norm",
    "albert.encoder.embedding_hidden_mapping_in": "widen",
    f"{_LAYER}attention.query": "layer.query",
    f"{_LAYER}attention.key": "layer.key",
    f"{_LAYER}attention.value": "layer.value",
    f"{_LAYER}attention.dense": "layer.out",
    f"{_LAYER}attention.LayerNorm": "layer.attention_norm",
    f"{_LAYER}ffn": "layer.up",
    f"{_LAYER}ffn_output": "layer.down",
    f"{_LAYER}full_layer_layer_norm": "layer.norm",
    "predictions.dense": "narrow",
    "predictions.LayerNorm": "head_norm",
    "predictions.decoder": "scores",
}


def network(folders: Folders) -> Any:
    """An nn.Module of input_ids and attention_mask, int64 (B, T), that returns the scores of each token, float32 (B, T, 591).

    Raises:
        InputError, CheckpointError: the weights are not there, or are others.
    """
    from fp8np_studies._weights import pretrained
    from fp8np_studies.networks.albert import Albert

    module = Albert(591, positions=512, embedding=128, width=256, inner=512, heads=8, layers=12)
    pretrained(module, find(folders, "models", f"{FOLDER}/pytorch_model.bin", "the weights of rxnmapper"), name=_own_name)
    module.example_inputs = {"input_ids": np.full((2, 8), 11), "attention_mask": np.ones((2, 8), np.int64)}
    return module


def _own_name(stored: str) -> str | None:
    """The pooler, which the head does not use, has none."""
    path, _, kind = stored.rpartition(".")
    return f"{_NAMES[path]}.{kind}" if path in _NAMES else None


def data(folders: Folders) -> Iterator[tuple[Any, Any]]:
    """A reaction a batch: STRIDE rows; and int64 (STRIDE, T), the tokens that were masked, else NOT_ASKED.

    Raises:
        InputError: the vocabulary is not there, or a reaction has a token that is not in it.
    """
    vocabulary = _vocabulary(folders)
    return (masked(reaction, vocabulary) for i, reaction in enumerate(_reactions()) if i % 4)


def calibration(folders: Folders) -> Iterator[Any]:
    """The other reactions, masked in the same way."""
    vocabulary = _vocabulary(folders)
    return (masked(reaction, vocabulary)[0] for i, reaction in enumerate(_reactions()) if not i % 4)


def _reactions() -> list[str]:
    lines = Path(__file__).with_name("reactions.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def _vocabulary(folders: Folders) -> dict[str, int]:
    path = find(folders, "models", f"{FOLDER}/vocab.txt", "the vocabulary of rxnmapper")
    return {token: i for i, token in enumerate(path.read_text(encoding="utf-8").splitlines())}


def masked(reaction: str, vocabulary: dict[str, int]) -> tuple[dict[str, Any], Any]:
    """A reaction, masked STRIDE times, and what was masked.

    >>> inputs, label = masked("C.O>>CO", {"C": 0, "O": 1, ".": 2, ">>": 3, "[CLS]": 7, "[SEP]": 8, "[MASK]": 9})
    >>> inputs["input_ids"][3], label[3]
    (array([7, 0, 2, 1, 9, 0, 1, 8]), array([-1, -1, -1, -1,  3, -1, -1, -1]))
    """
    tokens = TOKEN.findall(reaction)
    unknown = [token for token in tokens if token not in vocabulary]
    if unknown:
        raise InputError(f"reaction {reaction}: expected tokens of the model's vocabulary, got {unknown[0]!r}")
    ids = np.array([vocabulary[token] for token in ["[CLS]", *tokens, "[SEP]"]], np.int64)
    # The first and the last say where the reaction starts and ends: no question.
    asked = (np.arange(len(ids)) - 1) % STRIDE == np.arange(STRIDE)[:, None]
    asked[:, [0, -1]] = False
    masks = np.where(asked, vocabulary["[MASK]"], ids)
    return {"input_ids": masks, "attention_mask": np.ones_like(masks)}, np.where(asked, ids, NOT_ASKED)


def units(outputs: Sequence[Any], labels: Sequence[Any]) -> tuple[Any, Any]:
    """A masked token each: the one with the largest score (n,), and the right one (n,)."""
    said = [scores[label != NOT_ASKED].argmax(-1) for scores, label in zip(outputs, labels, strict=True)]
    return np.concatenate(said), np.concatenate([label[label != NOT_ASKED] for label in labels])


def token_accuracy(said: Any, right: Any) -> float:
    """The share of masked tokens that the model names.

    >>> token_accuracy([4, 5], [4, 6])
    0.5
    """
    return float(np.mean(np.asarray(said) == np.asarray(right)))
