"""Other processes: what a network costs one that has just been started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fp8np_benchmarks.networks import Network
from fp8np_benchmarks.peers import exported, find

__all__ = ["child", "launched", "peer_files"]


def launched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a Python process prints.

    Raises:
        RuntimeError: it failed; says the last line of what it complained about.
    """
    # Modules are compiled to bytecode once, as pip does with what it installs.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, *command], env={**inherited, **(environment or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return done.stdout


def child(kind: str, file: Path, folder: Path, threads: int) -> tuple[int, Any]:
    """Runs a file on `inputs.npz` of `folder` in `fp8np_benchmarks.child`: bytes, and the output."""
    output = folder / f"{kind}.npy"
    command = ["-m", "fp8np_benchmarks.child", kind, str(file), str(folder / "inputs.npz"), str(output), str(threads)]
    size = int(launched(command).split()[-1])
    return size, np.load(output)


def peer_files(network: Network, folder: Path) -> tuple[dict[str, tuple[str, Path]], dict[str, str]]:
    """The network in a file for each peer that runs files: entry to kind and file; and why others are missing."""
    absent: dict[str, str] = {}
    entries = {"onnxruntime f32": "onnxruntime", "OpenVINO bf16": "openvino"}
    here = {entry: kind for entry, kind in entries.items() if find(kind, absent, entry)}
    if not here:
        return {}, absent
    try:
        file = exported(network.module, network.batches[0], folder)
    except Exception as error:  # whatever exporters raise
        return {}, absent | dict.fromkeys(here, f"torch.onnx.export: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return {entry: (kind, file) for entry, kind in here.items()}, absent
