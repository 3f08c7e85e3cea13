"""What a process costs before its first answer: importing, compiling, loading; wall time of whole processes."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fp8np.artifact import save
from fp8np.interpret import interpret
from fp8np.ptq.workflow import quantize_model
from fp8np_benchmarks.case import OURS, Case, Ready, Setting
from fp8np_benchmarks.children import child, launched, peer_files
from fp8np_benchmarks.networks import Network, mini_sentence
from fp8np_benchmarks.peers import as_array, find
from fp8np_benchmarks.suites._likeness import likeness
from fp8np_benchmarks.suites.models import RECIPE, built

IMPORTS = {OURS: "fp8np", "NumPy": "numpy", "torch": "torch", "onnxruntime": "onnxruntime", "OpenVINO": "openvino"}


def cases(setting: Setting) -> list[Case]:
    """An import, and `fp8np run` with nothing compiled and after that."""
    made = partial(Case, "startup", threads=setting.threads, warm=False)
    return [
        made("import in a new process", prepare=importing),
        made("first fp8np run, nothing compiled yet", prepare=partial(running, setting, compiled=False), rounds=3),
        made("fp8np run in a new process, compiled before", prepare=partial(running, setting, compiled=True), rounds=7),
    ]


def importing() -> Ready:
    """A Python process that imports and ends."""
    absent: dict[str, str] = {}
    here = {entry: module for entry, module in IMPORTS.items() if find(module, absent, entry)}
    entries = {entry: partial(launched, ["-c", f"import {module}; print({module}.__name__)"]) for entry, module in here.items()}
    return Ready(entries, lambda entry, result: f"imported {result.strip()}", absent)


def running(setting: Setting, *, compiled: bool) -> Ready:
    """`fp8np run` of a converted sentence encoder on one sentence, the start of Python included."""
    name, network = built(lambda: mini_sentence(setting))
    quantized = quantize_model(network.graph, RECIPE, network.calibration, report_batches=1).graph
    (batch,) = network.batches
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    folder = Path(scratch.name)
    np.savez(folder / "inputs.npz", **batch)
    save(quantized, folder / "ours.safetensors")

    def ours() -> Any:
        with tempfile.TemporaryDirectory(dir=scratch.name) as empty:
            cache = folder / "cache" if compiled else empty
            command = ["-m", "fp8np", "run", str(folder / "ours.safetensors"), str(folder / "inputs.npz"), "-o", str(folder / "ours.npz")]
            launched([*command, "--threads", str(setting.threads)], {"FP8NP_CACHE": str(cache)})
        with np.load(folder / "ours.npz") as outputs:
            return outputs["last_hidden_state"]

    if compiled:
        ours()
    theirs = as_array(_torch(network))
    near = likeness(network.output(interpret(quantized, batch)), theirs)
    files, absent = peer_files(network, folder) if compiled else ({}, {})
    peers = {entry: partial(_answer, kind, file, folder, setting.threads) for entry, (kind, file) in files.items()}
    return Ready({OURS: ours, **peers}, lambda entry, result: f"{name}: {near(entry, result)}", absent)


def _answer(kind: str, file: Path, folder: Path, threads: int) -> Any:
    return child(kind, file, folder, threads)[1]


def _torch(network: Network) -> Any:
    import torch

    with torch.inference_mode():
        return network.module(**{name: torch.from_numpy(array) for name, array in network.batches[0].items()})
