"""The constants of a graph, and what kernels made of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from fp8np.graph import Constant
from fp8np.kernels._arrays import read_only
from fp8np.tensor import QTensor

__all__ = ["Weights"]


class Weights:
    """The constants of a graph, and what kernels made of them: computed once, shared by the plans of all sizes."""

    def __init__(self, constants: Mapping[str, Constant]) -> None:
        self.constants = {name: c if isinstance(c, QTensor) else read_only(c)[0] for name, c in constants.items()}
        self._made: dict[tuple[str, str, str], Any] = {}
        self._lock = threading.RLock()

    def prepare(self, op: str, name: str, key: str, make: Callable[[Constant], Any]) -> Any:
        """``make(constant)``, remembered under the op's name, the constant's name and `key`."""
        with self._lock:
            if (op, name, key) not in self._made:
                self._made[op, name, key] = make(self.constants[name])
            return self._made[op, name, key]
