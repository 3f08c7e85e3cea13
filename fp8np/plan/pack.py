"""Weights as the products take them: packed once, when a model's first plan is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp8np.codec import decode
from fp8np.graph import Constant
from fp8np.kernels._engine import COLUMNS, STEP, decode_tables, pack_codes, pack_values, packed_steps
from fp8np.kernels._grid import PARTS, takes
from fp8np.kernels.product import Packed
from fp8np.tensor import QTensor

__all__ = ["Filters", "Singles", "filters", "grouped_filters", "packable", "singles"]


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


def _scales(weight: Constant, n: int) -> npt.NDArray[np.float32]:
    scale = np.zeros(-(-n // COLUMNS) * COLUMNS, np.float32)
    scale[:n] = weight.scale.reshape(-1) if isinstance(weight, QTensor) else 1
    return scale


def _taps_first(weight: Constant, dtype: type) -> npt.NDArray[np.generic]:
    """(O, C, kh, kw) or (N, K) -> (O, taps, C), codes or floats."""
    values = weight.codes if isinstance(weight, QTensor) else weight
    rows = values.reshape(*values.shape[:2], -1).transpose(0, 2, 1)
    return np.ascontiguousarray(rows, dtype)


def filters(weight: Constant, unfolded: bool = False) -> Filters:
    """A weight (O, C, kh, kw) or (N, K): each tap's channels in whole steps. `unfolded`: a row of taps counts as one, kw * C channels."""
    rows = _taps_first(weight, np.uint8 if isinstance(weight, QTensor) else np.float32)
    n, taps, c = rows.shape
    if unfolded:
        kw = weight.shape[3]
        rows = rows.reshape(n, taps // kw, kw * c)
        n, taps, c = rows.shape
    steps = packed_steps(c)
    full = np.zeros((n, taps, steps * STEP), rows.dtype)
    full[:, :, :c] = rows
    return Filters(_packed(weight, full.reshape(n, -1)), _scales(weight, n))


def grouped_filters(weight: Constant, groups: int) -> Filters:
    """A weight (O, c, kh, kw) of groups with c inputs and c outputs each, c a divisor of 32: a block of columns by its own step."""
    rows = _taps_first(weight, np.uint8 if isinstance(weight, QTensor) else np.float32)
    n, taps, c = rows.shape
    blocks = -(-n // COLUMNS)
    full = np.zeros((blocks * COLUMNS, taps, STEP), rows.dtype)
    for o in range(n):
        first = o % COLUMNS // c * c
        full[o, :, first : first + c] = rows[o]
    return Filters(_packed(weight, full.reshape(blocks * COLUMNS, -1), n), _scales(weight, n), grouped=True)


def _packed(weight: Constant, rows: npt.NDArray[np.generic], columns: int | None = None) -> Packed:
    n = len(rows) if columns is None else columns
    if isinstance(weight, QTensor):
        return Packed(pack_codes(rows), decode_tables(weight.format), n)  # type: ignore[arg-type]
    values = pack_values(rows)  # type: ignore[arg-type]
    return Packed(values, _NO_TABLES, n, widened=True, part=values.nbytes // PARTS if PARTS > 1 else 0)


_NO_TABLES = np.zeros(320, np.uint8)


@dataclass(frozen=True)
class Singles:
    """The filters of a depthwise convolution: f32 (blocks, taps, 32), and the scales of channels."""

    values: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]


def singles(weight: Constant) -> Singles:
    """A weight (C, 1, kh, kw), codes decoded: nine numbers a channel."""
    values = decode(weight.codes, weight.format) if isinstance(weight, QTensor) else np.asarray(weight)
    c, taps = len(values), values[0].size
    blocks = -(-c // COLUMNS)
    full = np.zeros((blocks * COLUMNS, taps), np.float32)
    full[:c] = values.reshape(c, taps)
    return Singles(np.ascontiguousarray(full.reshape(blocks, COLUMNS, taps).transpose(0, 2, 1)), _scales(weight, c))
