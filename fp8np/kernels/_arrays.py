"""Arrays as kernels take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Codes", "Doubles", "Floats", "read_only"]

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def read_only(*arrays: npt.NDArray[Any]) -> Any:
    """Read-only views. Memory-mapped weights are read-only, and a second kind of argument would be compiled a second time."""
    views = tuple(array.view() for array in arrays)
    for view in views:
        view.flags.writeable = False
    return views
