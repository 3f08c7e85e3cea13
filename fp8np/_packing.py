"""Operands as the engine takes them: weights packed, and where the taps of a convolution lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.codec import decode_table
from fp8np.graph import Constant
from fp8np.kernels._ending import per_column
from fp8np.kernels._engine import COLUMNS, ELEMENT, STEP, decode_tables, packed_steps
from fp8np.kernels._grid import PARTS, Image, takes
from fp8np.kernels._program import aligned_array, run_tasks
from fp8np.kernels.pack import pack_floats_task, packed_codes
from fp8np.kernels.product import Packed
from fp8np.tensor import QTensor

__all__ = [
    "Filters",
    "Pads",
    "Singles",
    "Taps",
    "filters",
    "groupable",
    "grouped_filters",
    "groups",
    "kind_of",
    "packable",
    "singles",
    "spread_filters",
    "taps_of",
]


@dataclass(frozen=True)
class Filters:
    """A packed weight with its scales.

    Attributes:
        packed: as `product_task` takes it.
        scale: f32 (blocks * 32,), zeros past the last column.
        grouped: whether each block of columns reads its own step of channels alone.
    """

    packed: Packed
    scale: npt.NDArray[np.float32]
    grouped: bool = False


def packable(weight: Constant | None) -> bool:
    """Whether the engine multiplies it: floats, or codes of a format that it holds, with one scale or one for each output."""
    if isinstance(weight, QTensor):
        scale = weight.scale
        return weight.block is None and takes(weight.format) and (scale.size == 1 or scale.shape[0] == scale.size)
    return weight is not None and weight.dtype == np.float32


def groupable(weight: Constant | None) -> bool:
    """Whether the engine multiplies codes with a scale for each block as `groups`: cut along the input channels alone, in whole steps."""
    if not isinstance(weight, QTensor) or weight.block is None or weight.ndim < 2 or not takes(weight.format):
        return False
    whole = all(b >= n for b, n in zip(weight.block[2:], weight.shape[2:], strict=True))
    return whole and (weight.block[1] % STEP == 0 or weight.block[1] >= weight.shape[1])


def groups(weight: Constant) -> tuple[Constant, ...]:
    """A weight (O, C, ...) as weights (O, c, ...) with a scale for each output at most, side by side; itself, where it is one already."""
    if not isinstance(weight, QTensor) or weight.block is None:
        return (weight,)
    high, wide = weight.block[:2]
    scales = np.repeat(weight.scale, high, axis=0)[: len(weight.codes)]
    return tuple(
        QTensor(weight.codes[:, i * wide : (i + 1) * wide], weight.format, scales[:, i : i + 1]) for i in range(weight.scale.shape[1])
    )


def _scales(weight: Constant, n: int) -> npt.NDArray[np.float32]:
    values = np.broadcast_to(weight.scale.reshape(-1), n) if isinstance(weight, QTensor) else np.ones(n)
    return per_column(-(-n // COLUMNS), values)


def _taps_first(weight: Constant) -> npt.NDArray[Any]:
    """(O, C, kh, kw) or (N, K) -> (O, taps, C), codes or floats; a view."""
    values: npt.NDArray[Any] = weight.codes if isinstance(weight, QTensor) else weight
    return values.reshape(*values.shape[:2], math.prod(values.shape[2:])).transpose(0, 2, 1)


def filters(weight: Constant, unfolded: bool = False) -> Filters:
    """A weight (O, C, kh, kw) or (N, K): each tap's channels in whole steps. `unfolded`: a row of taps counts as one, kw * C channels."""
    rows = _taps_first(weight)
    n, taps, c = rows.shape
    if unfolded:
        kw = weight.shape[3]
        rows = np.ascontiguousarray(rows).reshape(n, taps // kw, kw * c)
    return Filters(_packed(weight, rows), _scales(weight, n))


def grouped_filters(weight: Constant) -> Filters:
    """A weight (O, c, kh, kw) of groups with c inputs and c outputs each, c a divisor of 32: a block of columns by its own step."""
    c = weight.shape[1]
    return _among_zeros(weight, STEP, lambda o: o % COLUMNS // c * c, grouped=True)


def spread_filters(weight: Constant, groups: int) -> Filters:
    """A weight (O, C/G, kh, kw) as one group: (O, C, kh, kw), zero where a filter reads nothing."""
    n, c = weight.shape[:2]
    return _among_zeros(weight, groups * c, lambda o: o * groups // n * c)


def _among_zeros(weight: Constant, width: int, first: Callable[[int], int], grouped: bool = False) -> Filters:
    # The c channels of filter o from first(o) on, of `width`.
    rows = np.ascontiguousarray(_taps_first(weight))
    n, taps, c = rows.shape
    full = np.zeros((n, taps, width), rows.dtype)
    for o in range(n):
        full[o, :, first(o) : first(o) + c] = rows[o]
    return Filters(_packed(weight, full), _scales(weight, n), grouped)


def _packed(weight: Constant, rows: npt.NDArray[Any]) -> Packed:
    n, taps, c = rows.shape
    if isinstance(weight, QTensor):
        return Packed(packed_codes(rows), decode_tables(weight.format), n)
    blocks, steps = -(-n // COLUMNS), packed_steps(c)
    values = aligned_array((PARTS, blocks, taps * steps, 1024 * ELEMENT), np.uint8)
    # One tap after the other: a block's taps follow each other, its columns are those of rows.
    for tap in range(taps):
        slabs = aligned_array((PARTS, blocks, steps, 1024 * ELEMENT), np.uint8)
        if rows.size:
            at, (column, _, term) = rows[:, tap], rows.strides
            run_tasks(pack_floats_task(at, (term, column), (c, n), slabs, None))
        values[:, :, tap * steps : (tap + 1) * steps] = slabs
    return Packed(values, _NO_TABLES, n, widened=True, part=values.nbytes // PARTS if PARTS > 1 else 0)


_NO_TABLES = np.zeros(320, np.uint8)


@dataclass(frozen=True)
class Singles:
    """The filters of a depthwise convolution: f32 (blocks, taps, 32), and the scales of channels."""

    values: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]


def singles(weight: Constant) -> Singles:
    """A weight (C, 1, kh, kw), codes decoded: nine numbers a channel."""
    values = decode_table(weight.format)[weight.codes] if isinstance(weight, QTensor) else np.asarray(weight)
    c, taps = len(values), values[0].size
    blocks = -(-c // COLUMNS)
    full = np.zeros((blocks * COLUMNS, taps), np.float32)
    full[:c] = values.reshape(c, taps)
    return Singles(np.ascontiguousarray(full.reshape(blocks, COLUMNS, taps).transpose(0, 2, 1)), _scales(weight, c))


def kind_of(groups: int, weight: tuple[int, ...]) -> str | None:
    """How a convolution in groups is computed: "dense" (one), "depthwise", "grouped" (`grouped_filters`), "spread" (as one group, with
    zeros where a filter reads nothing), or None: not by the engine.
    """
    o, c = weight[:2]
    if groups == 1:
        return "dense"
    if c == 1 and o == groups:
        return "depthwise"
    if o == groups * c and COLUMNS % c == 0:
        return "grouped"
    # As many times the work as there are groups, which is still less than leaving the engine.
    return "spread" if groups <= 8 else None


Pads = tuple[int, int, int, int]
"""Zeros above, on the left, below, on the right."""


@dataclass(frozen=True)
class Taps:
    """What the pixels of a convolution's output read of a widened image.

    Attributes:
        first: bytes from the image's start to the tap (0, 0) of the first output pixel.
        row, pixel: bytes from that of an output pixel to that of the next below, and beside.
        raster: as `fp8np.kernels._ending.Left` has it.
        offsets: bytes from the tap (0, 0) to each.
    """

    first: int
    row: int
    pixel: int
    raster: int
    offsets: tuple[int, ...]


def taps_of(image: Image, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], pads: Pads) -> Taps:
    """The taps of a filter, row by row. The image may have more zeros around it than `pads`."""
    (sy, sx), (dy, dx) = stride, dilation
    first = (image.top - pads[0]) * image.row + (image.left - pads[1]) * image.pitch
    across = image.left + image.width + image.right
    offsets = tuple(i * dy * image.row + j * dx * image.pitch for i in range(kernel[0]) for j in range(kernel[1]))
    return Taps(first, sy * image.row, sx * image.pitch, across if (sy, sx) == (1, 1) else 0, offsets)
