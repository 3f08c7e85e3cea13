"""Bit casts between a float and the integer that holds the same bits. Inside a compiled loop they cost nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._jit import exact

__all__ = ["float32_bits", "float32_of", "float64_bits", "float64_of"]


@exact
def float32_bits(x: Any) -> Any:
    """uint32 with the bits of a float32."""
    return np.float32(x).view(np.uint32)


@exact
def float32_of(bits: Any) -> Any:
    """float32 with the bits of a uint32."""
    return np.uint32(bits).view(np.float32)


@exact
def float64_bits(x: Any) -> Any:
    """int64 with the bits of a float64."""
    return np.float64(x).view(np.int64)


@exact
def float64_of(bits: Any) -> Any:
    """float64 with the bits of an int64."""
    return np.int64(bits).view(np.float64)
