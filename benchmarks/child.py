"""A network run once in a process of its own, as `python -m fp8np_benchmarks.child KIND MODEL INPUTS OUTPUT THREADS`.

KIND is a key of `KINDS`, MODEL its file, INPUTS an npz file with an array for each input, OUTPUT the npy file to write. Prints by how
many bytes the process was at its largest above what it was after its imports.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["memory_supported"]

_STATUS = Path("/proc/self/status")

Run = Callable[[Path, Mapping[str, Any], int], Any]


def ours() -> Run:
    import fp8np.model
    from fp8np.kernels._table import kernels

    kernels()  # imports their modules, which is not work of the run either

    def run(file: Path, inputs: Mapping[str, Any], threads: int) -> Any:
        output = fp8np.load(file).run(inputs, threads=threads)
        return output["last_hidden_state"] if isinstance(output, dict) else output

    return run


def pytorch() -> Run:
    import torch

    from fp8np_benchmarks.workloads.resnet50 import ResNet50

    def run(file: Path, inputs: Mapping[str, Any], threads: int) -> Any:
        torch.set_num_threads(threads)
        with torch.device("meta"):
            module = ResNet50().eval()
        module.load_state_dict(torch.load(file, mmap=True, weights_only=True), assign=True)
        with torch.inference_mode():
            return module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()

    return run


def onnxruntime() -> Run:
    import onnxruntime  # noqa: F401 - not work of the run

    from fp8np_benchmarks.peers import session

    return lambda file, inputs, threads: session(file, threads)(inputs)


def openvino() -> Run:
    import openvino

    from fp8np_benchmarks.peers import compiled

    return lambda file, inputs, threads: compiled(openvino.Core().read_model(file), threads, "bf16")(inputs)


KINDS = {"fp8np": ours, "torch": pytorch, "onnxruntime": onnxruntime, "openvino": openvino}


def memory_supported() -> bool:
    """Whether the system says how large a process has been."""
    return _STATUS.exists()


def _status(field: str) -> int:
    """Bytes."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def main(kind: str, file: str, inputs: str, output: str, threads: str) -> None:
    import numpy as np

    run = KINDS[kind]()
    with np.load(inputs) as data:
        arrays = dict(data)
    before = 0
    if memory_supported():
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the largest so far is forgotten
        before = _status("VmRSS")
    np.save(output, run(Path(file), arrays, int(threads)))
    print(_status("VmHWM") - before if memory_supported() else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
