"""The others: found where they are installed, given the same number of threads, and told to keep quiet."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["as_array", "compiled", "exported", "find", "network_peers", "numpy_peer", "quiet", "session"]

Call = Callable[[], Any]
Inputs = Mapping[str, Any]
"""An array for each input of a network."""


def find(module: str, absent: dict[str, str], *entries: str) -> Any:
    """The module, or None: then `absent` says why the entries do not take part."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        absent.update(dict.fromkeys(entries, f"{module} is not installed" if missing else f"{module} cannot be imported: {error}"))
        return None


def numpy_peer(absent: dict[str, str], entry: str) -> bool:
    """Whether NumPy can be given a number of threads."""
    return find("threadpoolctl", absent, entry) is not None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps exporters and quantizers from talking; their errors still come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def as_array(output: Any) -> Any:
    """What an entry returned as one float32 array: the batches that it ran, one after the other."""
    if isinstance(output, list | tuple):
        return np.concatenate([as_array(part) for part in output])
    if hasattr(output, "detach"):
        return output.detach().float().numpy()
    return np.asarray(output, np.float32)


def network_peers(
    module: Any, batches: Sequence[Inputs], calibration: Sequence[Inputs], threads: int, *, pictures: bool, folder: Path
) -> tuple[dict[str, Call], dict[str, str]]:
    """Every peer's way to run a network.

    Args:
        module: float32 nn.Module that returns one tensor.
        batches: arrays of one shape, by the module's names for them: a call runs all of them.
        calibration: batches for INT8.
        threads: of the sessions that are made.
        pictures: whether the layout of pictures is to be tried, too.
        folder: for the exported network.

    Returns:
        The entries, and why others are missing.
    """
    absent: dict[str, str] = {}
    entries = _torch_entries(module, batches, pictures)
    try:
        file = exported(module, batches[0], folder)
    except Exception as error:  # whatever exporters raise
        why = f"torch.onnx.export: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return entries, dict.fromkeys(("onnxruntime f32", "OpenVINO bf16", "OpenVINO int8"), why)
    if find("onnxruntime", absent, "onnxruntime f32"):
        run = session(file, threads)
        entries["onnxruntime f32"] = lambda: [run(batch) for batch in batches]
    if openvino := find("openvino", absent, "OpenVINO bf16", "OpenVINO int8"):
        half = compiled(openvino.Core().read_model(file), threads, "bf16")
        entries["OpenVINO bf16"] = lambda: [half(batch) for batch in batches]
        os.environ.setdefault("NNCF_CI", "1")  # or it reports every call to its makers
        with quiet():
            nncf = find("nncf", absent, "OpenVINO int8")
        if nncf:
            small = compiled(_int8(nncf, openvino.Core().read_model(file), calibration, pictures), threads, "")
            entries["OpenVINO int8"] = lambda: [small(batch) for batch in batches]
    return entries, absent


def _torch_entries(module: Any, batches: Sequence[Inputs], pictures: bool) -> dict[str, Call]:
    """In float32 and bfloat16. A network in bfloat16 gets its pictures as float32, as everybody else, and gives float32 back."""
    import torch

    tensors = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]

    def entry(network: Any, given: Any, dtype: Any = None) -> Call:
        def call() -> Any:
            with torch.inference_mode():
                results = []
                for batch in given:
                    ready = batch if dtype is None else {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
                    results.append(network(**ready).float())
                return results

        return call

    entries = {"torch f32": entry(module, tensors)}
    if pictures:
        tensors = [{k: v.to(memory_format=torch.channels_last) for k, v in batch.items()} for batch in tensors]
        module = copy.deepcopy(module).to(memory_format=torch.channels_last)
        entries["torch f32 channels_last"] = entry(module, tensors)
    half = copy.deepcopy(module).bfloat16()
    entries["torch bf16" + " channels_last" * pictures] = entry(half, tensors, torch.bfloat16)
    return entries


def exported(module: Any, inputs: Inputs, folder: Path) -> Path:
    """The network as an ONNX file, for inputs of these shapes."""
    import torch

    file = folder / "network.onnx"
    with quiet():
        torch.onnx.export(module, kwargs={k: torch.from_numpy(v) for k, v in inputs.items()}, f=str(file), dynamo=True, verbose=False)
    return file


def session(file: Path, threads: int) -> Callable[[Inputs], Any]:
    """An ONNX file, run by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    made = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in made.get_inputs()]
    return lambda inputs: made.run(None, {name: inputs[name] for name in names})[0]


def compiled(model: Any, threads: int, precision: str) -> Callable[[Inputs], Any]:
    """A network, run by OpenVINO in a precision, or in the one that it chooses itself."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        options["INFERENCE_PRECISION_HINT"] = precision
    made = openvino.Core().compile_model(model, "CPU", options)
    names = [value.any_name for value in made.inputs]
    # The result is a view of memory that the next call writes to.
    return lambda inputs: made([inputs[name] for name in names])[0].copy()


def _int8(nncf: Any, model: Any, calibration: Sequence[Inputs], pictures: bool) -> Any:
    names = [value.any_name for value in model.inputs]
    data = nncf.Dataset([[batch[name] for name in names] for batch in calibration])
    kind = None if pictures else nncf.ModelType.TRANSFORMER
    with quiet():
        return nncf.quantize(model, data, subset_size=len(calibration), model_type=kind)
