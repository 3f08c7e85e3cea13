"""Whole networks, quantized by the standard recipe, beside what PyTorch, onnxruntime and OpenVINO make of the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fp8np.artifact import save
from fp8np.interpret import interpret
from fp8np.model import Model
from fp8np.ptq.workflow import quantize_model
from fp8np_benchmarks import networks
from fp8np_benchmarks.case import OURS, Case, Ready, Setting, SkipCase
from fp8np_benchmarks.child import memory_supported
from fp8np_benchmarks.children import child, peer_files
from fp8np_benchmarks.networks import Network
from fp8np_benchmarks.peers import as_array, network_peers
from fp8np_benchmarks.suites._likeness import likeness

RECIPE = "e4m3"


def cases(setting: Setting) -> list[Case]:
    """Pictures with batches of 1 and 16, sentences of 128 tokens, STS-B, and the memory of one picture."""
    size, many = networks.size(setting), networks.sentences(setting)
    rows: tuple[tuple[str, Callable[[], Network], float, str], ...] = (
        (f"ResNet-50, {size} px, batch 1", partial(networks.resnet50, setting, 1), 1, "images"),
        (f"ResNet-50, {size} px, batch 16", partial(networks.resnet50, setting, 16), 16, "images"),
        (f"MobileNet-V2, {size} px, batch 1", partial(networks.mobilenet_v2, setting, 1), 1, "images"),
        (f"EfficientNet-Lite0, {size} px, batch 1", partial(networks.efficientnet_lite0, setting, 1), 1, "images"),
        (f"BERT-base, {networks.tokens(setting)} tokens, batch 1", partial(networks.bert_base, setting), 1, "sentences"),
        (f"MiniLM, STS-B, batch {networks.SENTENCES}", partial(networks.minilm, setting), many, "sentences"),
    )
    found = [Case("models", name, setting.threads, partial(whole, build, setting.threads), work, unit) for name, build, work, unit in rows]
    prepare = partial(memory, partial(networks.resnet50, setting, 1), setting.threads)
    name = f"ResNet-50, {size} px, batch 1: peak memory"
    return [*found, Case("models", name, setting.threads, prepare, measured="bytes", warm=False, rounds=3)]


def built(build: Callable[[], Any]) -> Any:
    """What `build` makes.

    Raises:
        SkipCase: a library that it needs is not installed.
    """
    try:
        return build()
    except ImportError as error:
        raise SkipCase(f"needs a library that is not installed: {error}") from error


def whole(build: Callable[[], Network], threads: int) -> Ready:
    """A network in memory, called again and again."""
    network: Network = built(build)
    quantized = quantize_model(network.graph, RECIPE, network.calibration, report_batches=1).graph
    model = Model(quantized)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        peers, absent = network_peers(
            network.module, network.batches, network.calibration, threads, pictures=network.pictures, folder=Path(folder)
        )
    expected = np.concatenate([network.output(interpret(quantized, batch)) for batch in network.batches])
    entries: dict[str, Any] = {OURS: lambda: [network.output(model.run(batch)) for batch in network.batches], **peers}
    return Ready(entries, likeness(expected, as_array(peers["torch f32"]())), absent)


def memory(build: Callable[[], Network], threads: int) -> Ready:
    """The most that a process holds while it loads a network from a file and runs it once, above what it holds after its imports."""
    if not memory_supported():
        raise SkipCase("this system does not say how large a process has been (/proc/self/status)")
    network: Network = built(build)
    import torch

    quantized = quantize_model(network.graph, RECIPE, network.calibration, report_batches=1).graph
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    folder = Path(scratch.name)
    (batch,) = network.batches
    np.savez(folder / "inputs.npz", **batch)
    save(quantized, folder / "ours.safetensors")
    torch.save(network.module.state_dict(), folder / "weights.pt")
    files, absent = peer_files(network, folder)
    runs = {OURS: ("fp8np", folder / "ours.safetensors"), "torch f32": ("torch", folder / "weights.pt"), **files}

    def call(kind: str, file: Path, _: Any = scratch) -> Any:  # the folder lives as long as the entries do
        return child(kind, file, folder, threads)

    with torch.inference_mode():
        theirs = network.module(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
    near = likeness(network.output(interpret(quantized, batch)), theirs)
    entries = {name: partial(call, kind, file) for name, (kind, file) in runs.items()}
    return Ready(entries, lambda entry, result: near(entry, result[1]), absent)
