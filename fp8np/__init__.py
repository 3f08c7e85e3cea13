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
    "fp8np.codec": ("decode", "encode"),
    "fp8np.kernels._threads": ("get_num_threads", "set_num_threads"),
    "fp8np.linalg": ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "matmul"),
    "fp8np.model": ("Model", "load", "run"),
    "fp8np.scaling": ("dequantize", "quantize"),
    "fp8np.tensor": ("QTensor",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Model",
    "QTensor",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "decode",
    "dequantize",
    "encode",
    "errors",
    "finfo",
    "formats",
    "get_format",
    "get_num_threads",
    "load",
    "matmul",
    "quantize",
    "run",
    "set_num_threads",
]

if TYPE_CHECKING:
    from fp8np import errors
    from fp8np.codec import decode, encode
    from fp8np.kernels._threads import get_num_threads, set_num_threads
    from fp8np.linalg import conv1d, conv2d, conv_transpose1d, conv_transpose2d, matmul
    from fp8np.model import Model, load, run
    from fp8np.scaling import dequantize, quantize
    from fp8np.tensor import QTensor


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("fp8np.errors")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fp8np' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
