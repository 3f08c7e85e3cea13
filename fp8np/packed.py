"""`pack`: a right operand in the order in which this CPU multiplies it, for products outside a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._packing import filters, packable
from fp8np.errors import DTypeError, FormatError, PolicyError, ScaleError, ShapeError
from fp8np.formats import FloatFormat
from fp8np.kernels._engine import ELEMENT, widened_task
from fp8np.kernels._program import Arenas, aligned, run_tasks
from fp8np.kernels.product import Packed
from fp8np.tensor import QTensor

__all__ = ["PACKS", "PackedTensor", "pack"]

PACKS = ("fp8", "bf16")
"""What a packed operand holds: the codes; or what the CPU multiplies, bfloat16 (float32 where it has no units for that)."""


class PackedTensor:
    """A matrix (K, N) of FP8 codes in the order in which this CPU multiplies it. Made by `pack`; `matmul` takes it on the right.

    Attributes:
        shape: (K, N).
        format: of the codes.
        nbytes: that it holds.
    """

    def __init__(self, packed: Packed, scale: npt.NDArray[np.float32], fmt: FloatFormat, shape: tuple[int, int]) -> None:
        self.packed = packed
        self.scale = scale
        self.format = fmt
        self.shape = shape
        # Programs by what they are called with: making one takes as long as a small product. They work in the same memory.
        self.programs: dict[Any, Any] = {}
        self.arenas = Arenas()

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix and its scales."""
        return int(self.packed.codes.nbytes + self.scale.nbytes)

    def __repr__(self) -> str:
        kind = "widened" if self.packed.widened else "codes"
        return f"PackedTensor({self.shape[0]} x {self.shape[1]} {self.format.name}, {kind}, {self.nbytes:,} bytes)"


def pack(w: QTensor, *, pack: str = "fp8") -> PackedTensor:
    """Packs the right operand of `matmul` once, for many products.

    Args:
        w: (K, N), scaled per tensor or per column (1, N).
        pack: "fp8" keeps the codes, which are widened a little at a time as they are needed; "bf16" keeps what the CPU multiplies,
            bfloat16, twice the memory (float32, four times, where it has no units for bfloat16): faster for 5 to 100 rows.

    Returns:
        A `PackedTensor`; it takes at most 1.1 times the memory of w where K and N are multiples of 32.

    Raises:
        DTypeError: w is not a QTensor. ShapeError: it is not a matrix. ScaleError: it is scaled along K or in blocks.
        FormatError: its format is not one that the engine multiplies. PolicyError: `pack` is unknown.

    >>> import numpy as np
    >>> from fp8np import matmul, quantize
    >>> w = quantize(np.eye(64, dtype=np.float32), "e4m3fn")
    >>> pack(w).shape
    (64, 64)
    >>> bool((matmul(w, pack(w)) == matmul(w, w)).all())
    True
    """
    if not isinstance(w, QTensor):
        raise DTypeError(f"pack: expected a QTensor for w, got {type(w).__name__}; make one with quantize()")
    if w.ndim != 2:
        raise ShapeError(f"pack: expected w (K, N), got shape {w.shape}")
    if pack not in PACKS:
        raise PolicyError(f"pack: expected pack to be one of {', '.join(PACKS)}, got {pack!r}")
    if w.block is not None or (w.scale.ndim and w.scale.shape[0] != 1):
        raise ScaleError(
            f"pack: expected one scale, or one for each of N (1, N); got {w.scale.shape}: quantize w per tensor or with axis=-1"
        )
    right = w.T
    if not w.shape[0]:
        raise ShapeError(f"pack: expected K >= 1, got shape {w.shape}")
    if not packable(right):
        raise FormatError(f"pack: {w.format} is not multiplied by packed kernels; give matmul the QTensor itself")
    made = filters(right)
    packed = made.packed
    if pack == "bf16":
        packed = widened(packed)
    return PackedTensor(packed, made.scale, w.format, (w.shape[0], w.shape[1]))


def widened(packed: Packed) -> Packed:
    """The same operand, widened."""
    blocks, steps, size = packed.codes.shape
    out = aligned(packed.codes.nbytes * ELEMENT)[: packed.codes.nbytes * ELEMENT]
    if out.size:
        run_tasks(widened_task(packed.codes, packed.tables, out, blocks, steps))
    return Packed(out.reshape(blocks, steps, size * ELEMENT), packed.tables, packed.columns, widened=True)
