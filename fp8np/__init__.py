"""FP8 on any CPU, in pure Python: bit-exact numerics, post-training quantization, and inference of converted models.

Names are loaded on first use: ``import fp8np`` imports neither Numba nor PyTorch and compiles nothing.

>>> import fp8np
>>> fp8np.encode([0.3, 448.0, 1e9], "e4m3fn")
array([ 42, 126, 126], dtype=uint8)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not lazy: importing the submodule `fp8np.formats` later would rebind the name to the module and hide the function.
from fp8np._finfo import finfo
from fp8np.formats import formats, get_format

__version__ = "0.1.0"

_HOMES = {
    "fp8np.accumulators": ("ACCUMULATORS", "Accumulator"),
    "fp8np.bounds": ("error_bound",),
    "fp8np.codec": ("decode", "encode"),
    "fp8np.kernels._threads": ("get_num_threads", "set_num_threads"),
    "fp8np.linalg": ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear", "matmul"),
    "fp8np.model": ("Model", "load", "run"),
    "fp8np.ordering": ("compare", "isfinite", "isinf", "isnan", "nextafter", "order_key", "signbit", "spacing", "total_order"),
    "fp8np.packed": ("PackedTensor", "pack"),
    "fp8np.scaling": ("dequantize", "quantize"),
    "fp8np.tensor": ("QTensor",),
    "fp8np.tensors": ("load_tensors", "save_tensors"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = ("emulation", "errors", "plot")

__all__ = [
    "ACCUMULATORS",
    "Accumulator",
    "Model",
    "PackedTensor",
    "QTensor",
    "compare",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "decode",
    "dequantize",
    "emulation",
    "encode",
    "error_bound",
    "errors",
    "finfo",
    "formats",
    "get_format",
    "get_num_threads",
    "isfinite",
    "isinf",
    "isnan",
    "linear",
    "load",
    "load_tensors",
    "matmul",
    "nextafter",
    "order_key",
    "pack",
    "plot",
    "quantize",
    "run",
    "save_tensors",
    "set_num_threads",
    "signbit",
    "spacing",
    "total_order",
]

if TYPE_CHECKING:
    from fp8np import emulation, errors, plot
    from fp8np.accumulators import ACCUMULATORS, Accumulator
    from fp8np.bounds import error_bound
    from fp8np.codec import decode, encode
    from fp8np.kernels._threads import get_num_threads, set_num_threads
    from fp8np.linalg import conv1d, conv2d, conv_transpose1d, conv_transpose2d, linear, matmul
    from fp8np.model import Model, load, run
    from fp8np.ordering import compare, isfinite, isinf, isnan, nextafter, order_key, signbit, spacing, total_order
    from fp8np.packed import PackedTensor, pack
    from fp8np.scaling import dequantize, quantize
    from fp8np.tensor import QTensor
    from fp8np.tensors import load_tensors, save_tensors


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"fp8np.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fp8np' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
