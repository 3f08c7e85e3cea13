"""Accuracy of real pretrained models at FP32 and FP8, and agreement of our FP32 graph with PyTorch: the table of docs/accuracy.md.

    python benchmarks/accuracy.py --shared DIR --models DIR [--only NAME] [--lstm]

--shared holds the data and the small checkpoints, --models the unpacked wheels (docs/accuracy.md says which).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fp8np.errors import InputError
from fp8np.graph import Graph
from fp8np.metrics import accuracy, eer, spearman
from fp8np.model import Model
from fp8np.ptq.recipe import get_recipe
from fp8np.ptq.workflow import quantize_model
from fp8np_benchmarks.naive import fake_quantized
from fp8np_benchmarks.workloads import Score, Workload, from_study
from fp8np_converters.bert import from_folder
from fp8np_converters.torch_export import from_module
from fp8np_studies import efficientnet_lite0, minilm, resnet20, speaker


def classified(outputs: list[Any], labels: list[Any]) -> float:
    return accuracy(np.concatenate(outputs), np.concatenate(labels))


def verified(outputs: list[Any], labels: list[Any]) -> float:
    return eer(*speaker.pairs(*speaker.recordings(outputs, labels)))


def study(name: str, metric: str, module: ModuleType, score: Score) -> Callable[[Path, Path], Workload]:
    return lambda shared, models: from_study(name, metric, module, score, {"shared": shared, "models": models})


def alike(outputs: list[Any], labels: list[Any]) -> float:
    return spearman(*minilm.pairs([output["sentence_embedding"] for output in outputs], labels))


def sentences(part: str, export: bool = False) -> Callable[[Path, Path], Workload]:
    """A part of STS-B, by the native reader or by torch.export of the class in transformers."""

    def workload(shared: Path, models: Path) -> Workload:
        folders = {"shared": shared, "models": models}

        def graph() -> Graph:
            if not export:
                return from_folder(minilm.folder(folders), pooling="mean")
            network = minilm.network(folders)
            axes = {name: {0: "B", 1: "T"} for name in network.example_inputs}
            return from_module(network, network.example_inputs, dynamic=axes, name="minilm")

        name = f"MiniLM, STS-B {part}" + (", torch.export" if export else "")
        return from_study(
            name, "Spearman", minilm, alike, folders, part=f"sts_{part}", graph=graph, logits=lambda output: output["last_hidden_state"]
        )

    return workload


MAKERS: dict[str, Callable[[Path, Path], Workload]] = {
    "resnet20": study("ResNet-20, CIFAR-10", "accuracy", resnet20, classified),
    "efficientnet": study("EfficientNet-Lite0, ImageNet", "top-1", efficientnet_lite0, classified),
    "minilm-dev": sentences("dev"),
    "minilm-test": sentences("test"),
    "minilm-test-export": sentences("test", export=True),
    "speaker": study("Resemblyzer, LibriSpeech", "EER", speaker, verified),
}
RECIPES = {"E4M3": ("e4m3", None), "E3M4": ("e3m4", None), "E5M2": ("e5m2", None), "E5M2 scaled": ("e5m2", "static")}
NAIVE = {"naive E4M3": "e4m3fn", "naive E5M2": "e5m2"}


def torch_outputs(workload: Workload, module: Any) -> Iterator[Any]:
    for batch in workload.batches():
        with torch.no_grad():
            if isinstance(batch, dict):
                yield {k: v.numpy() for k, v in module(**{k: torch.from_numpy(v) for k, v in batch.items()}).items()}
            else:
                yield module(torch.from_numpy(batch)).numpy()


def relative_error(workload: Workload, ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference on any sample, relative to the largest output of PyTorch."""
    pairs = [(workload.logits(a), workload.logits(b)) for a, b in zip(ours, theirs, strict=True)]
    return float(max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(b).max() for _, b in pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=MAKERS)
    parser.add_argument("--ops", help="operator coverage for all recipes, as in fp8np convert")
    args = parser.parse_args()
    columns = ["model", "metric", "PyTorch FP32", "our FP32 (largest difference)", *RECIPES, *NAIVE]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for name in args.only or MAKERS:
        workload = MAKERS[name](args.shared, args.models)
        graph = workload.graph()
        start = time.perf_counter()
        theirs = list(torch_outputs(workload, workload.module()))
        model = Model(graph)
        ours = [model.run(batch) for batch in workload.batches()]
        row = f"| {workload.name} | {workload.metric} | {workload.score(theirs):.4f} | "
        row += f"{workload.score(ours):.4f} ({relative_error(workload, ours, theirs):.1e}) |"
        for recipe, approach in RECIPES.values():
            chosen = get_recipe(recipe).adjusted(approach=approach, ops=args.ops)
            quantized = Model(quantize_model(graph, chosen, workload.calibration()).graph)
            row += f" {workload.score([quantized.run(batch) for batch in workload.batches()]):.4f} |"
        for fmt in NAIVE.values():
            row += f" {workload.score(list(torch_outputs(workload, fake_quantized(workload.module(), fmt)))):.4f} |"
        print(row, flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:  # weights or data are not where they should be
        sys.exit(f"error: {error}")
