"""The implementation under test: fp8np's own functions, or anybody's, behind one small protocol."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fp8np import codec, linalg
from fp8np.tensor import QTensor

__all__ = ["Implementation", "Ours"]

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@runtime_checkable
class Implementation(Protocol):
    """What `fp8np verify --implementation` calls. A method may be absent, or raise NotImplementedError for what it does not do."""

    def encode(self, x: npt.NDArray[Any], fmt: str, *, overflow: str, rounding: str, nan: str) -> Codes:
        """u8 codes of x, float16, float32 or float64 of one axis. Names as in `fp8np.encode`."""

    def decode(self, codes: Codes, fmt: str) -> Floats:
        """f32 values of codes (n,)."""

    def matmul(
        self, a: Codes, a_format: str, b: Codes, b_format: str, *, accumulate: str, promote_every: int | None, init: Floats | None
    ) -> Floats:
        """f32 (M, N): init (M, N) + a (M, K) @ b (K, N), summed as `accumulate` says. Names as in `fp8np.matmul`."""


class Ours:
    """fp8np itself."""

    def encode(self, x: npt.NDArray[Any], fmt: str, *, overflow: str, rounding: str, nan: str) -> Codes:
        """As `fp8np.encode`."""
        return codec.encode(x, fmt, overflow=overflow, rounding=rounding, nan=nan)

    def decode(self, codes: Codes, fmt: str) -> Floats:
        """As `fp8np.decode`."""
        return codec.decode(codes, fmt)

    def matmul(
        self, a: Codes, a_format: str, b: Codes, b_format: str, *, accumulate: str, promote_every: int | None, init: Floats | None
    ) -> Floats:
        """As `fp8np.matmul`."""
        left, right = QTensor(a, a_format), QTensor(b, b_format)
        return linalg.matmul(left, right, accumulate=accumulate, promote_every=promote_every, init=init)
