"""The constants of a graph, and what kernels made of them."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.graph import Constant
from fp8np.kernels._arrays import read_only
from fp8np.kernels._program import Arenas
from fp8np.tensor import QTensor

__all__ = ["Weights"]


class Weights:
    """The constants of a graph, and what kernels made of them: computed once, shared by the plans of all sizes.

    Attributes:
        constants: by name.
        arenas: the memory that these plans work in, one after the other.
    """

    def __init__(self, constants: Mapping[str, Constant]) -> None:
        self.constants = {name: c if isinstance(c, QTensor) else read_only(c)[0] for name, c in constants.items()}
        self.arenas = Arenas()
        self._made: dict[tuple[str, str, str], Any] = {}
        self._lock = threading.RLock()

    def prepare(self, op: str, name: str, key: str, make: Callable[[Constant], Any]) -> Any:
        """``make(constant)``, remembered under the op's name, the constant's name and `key`."""
        with self._lock:
            if (op, name, key) not in self._made:
                constant = self.constants[name]
                self._made[op, name, key] = make(constant)
                _forget(constant.codes if isinstance(constant, QTensor) else constant)
            return self._made[op, name, key]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that was made."""
        with self._lock:
            return sum(_bytes(made) for made in self._made.values())


def _bytes(made: Any) -> int:
    if isinstance(made, np.ndarray):
        return int(made.nbytes)
    fields = made if isinstance(made, tuple) else vars(made).values() if hasattr(made, "__dict__") else ()
    return sum(_bytes(value) for value in fields)


def _forget(array: npt.NDArray[Any]) -> None:
    """Gives back the pages of a memory-mapped weight of which a packed copy has been made; who reads it again, reads the file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not array.flags.c_contiguous:
        return
    start = array.ctypes.data - np.frombuffer(base, np.uint8, 1).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)
