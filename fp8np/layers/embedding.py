"""embedding: y = weight[indices]. indices (...) in 0..V-1, weight (V, D), y (..., D).

embedding_bag: y[b] = the sum, mean or maximum of weight[i] over the indices i of bag b. indices (B, L), a bag each row; or
indices (N,) and offsets (B,), where bag b begins. An empty bag gives zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.errors import InputError
from fp8np.layers._checks import require, require_floats, require_integers, require_shape
from fp8np.layers._op import Foreign, Spec, op
from fp8np.scheme import PerChannel

_MODES = ("sum", "mean", "max")


def shape(weight: Spec, indices: Spec) -> Spec:
    """(V, D), (...) -> (..., D)"""
    require_floats("embedding", weight=weight)
    require_integers("embedding", indices=indices)
    require(weight.ndim == 2, "embedding", "weight (V, D)", weight=weight)
    return Spec((*indices.shape, weight.shape[1]))


def embedding(weight: Any, indices: Any) -> Any:
    """y = weight[indices]"""
    return weight[checked_indices("embedding", indices, len(weight))]


def checked_indices(name: str, indices: Any, rows: int) -> Any:
    """The indices, unless one is not below `rows`. Raises InputError."""
    # NumPy would take -1 for the last row.
    if indices.size and not 0 <= indices.min() <= indices.max() < rows:
        raise InputError(f"{name}: expected indices in 0..{rows - 1}; got {indices.min()}..{indices.max()}")
    return indices


def bag_shape(
    weight: Spec,
    indices: Spec,
    offsets: Spec | None = None,
    per_sample_weights: Spec | None = None,
    *,
    mode: str,
    include_last_offset: bool,
    padding_idx: int | None,
) -> Spec:
    """(V, D), (B, L) -> (B, D); or (V, D), (N,), (B,) -> (B, D)"""
    name = "embedding_bag"
    require_floats(name, weight=weight, per_sample_weights=per_sample_weights)
    require_integers(name, indices=indices, offsets=offsets)
    require(mode in _MODES, name, f"mode among {', '.join(_MODES)}", mode=mode)
    fits = weight.ndim == 2 and (indices.ndim == 2 if offsets is None else indices.ndim == offsets.ndim == 1)
    require(
        fits, name, "weight (V, D), and indices (B, L) or indices (N,) and offsets (B,)", weight=weight, indices=indices, offsets=offsets
    )
    require(per_sample_weights is None or mode == "sum", name, "per_sample_weights only with mode sum", mode=mode)
    require_shape(name, indices.shape, per_sample_weights=per_sample_weights)
    if offsets is None:
        return Spec((indices.shape[0], weight.shape[1]))
    return Spec((offsets.shape[0] - int(include_last_offset), weight.shape[1]))


def embedding_bag(
    weight: Any,
    indices: Any,
    offsets: Any = None,
    per_sample_weights: Any = None,
    *,
    mode: str,
    include_last_offset: bool,
    padding_idx: int | None,
) -> Any:
    """y[b] = sum, mean or max of weight[i] over the indices i in bag b"""
    flat = checked_indices("embedding_bag", indices, len(weight)).reshape(-1)
    bag = _bag_of_each(indices, offsets, include_last_offset)
    bags = len(indices) if offsets is None else len(offsets) - include_last_offset
    keep = bag >= 0
    if padding_idx is not None:
        keep &= flat != padding_idx
    rows = weight[flat[keep]]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1)[keep, None]
    return _reduced(rows, bag[keep], bags, mode)


def _bag_of_each(indices: Any, offsets: Any, include_last_offset: bool) -> Any:
    """The bag of each index, in order; -1 for those after the last offset, where that one ends the last bag."""
    if offsets is None:
        return np.repeat(np.arange(len(indices)), indices.shape[1])
    n = len(indices)
    ends = offsets[1:] if include_last_offset else np.append(offsets[1:], n)
    starts = offsets[: len(ends)]
    if (len(starts) and starts[0] != 0) or (ends < starts).any() or (ends > n).any():
        raise InputError(f"embedding_bag: expected offsets from 0, not decreasing, at most {n}; got {offsets}")
    bag = np.full(n, -1)
    used = int(ends[-1]) if len(ends) else 0
    bag[:used] = np.repeat(np.arange(len(starts)), ends - starts)
    return bag


def _reduced(rows: Any, bag: Any, bags: int, mode: str) -> Any:
    """rows (n, D) with their bags in ascending order -> (bags, D)."""
    y = np.zeros((bags, rows.shape[1]), rows.dtype)
    count = np.bincount(bag, minlength=bags)
    filled = np.flatnonzero(count)
    if len(filled):
        reduce = np.maximum if mode == "max" else np.add
        y[filled] = reduce.reduceat(rows, (np.cumsum(count) - count)[filled], axis=0)
    if mode == "mean":
        y /= np.maximum(count, 1)[:, None].astype(rows.dtype)
    return y


def _convert_bag(args: dict[str, Any]) -> dict[str, Any]:
    padding = args.get("padding_idx")
    return {**args, "mode": _MODES[args.get("mode", 0)], "padding_idx": None if padding is None or padding < 0 else padding}


_BAG_ARGS = ("weight", "indices", "offsets", "", "mode", "", "per_sample_weights", "include_last_offset", "padding_idx")

op(
    "embedding",
    ("weight", "indices"),
    shape=shape,
    define=embedding,
    quantizable={"weight": PerChannel(0)},
    # padding_idx and what follows it matter in training alone.
    torch=(Foreign("aten.embedding.default", ("weight", "indices")),),
)

op(
    "embedding_bag",
    ("weight", "indices", "offsets?", "per_sample_weights?"),
    shape=bag_shape,
    define=embedding_bag,
    attrs={"mode": "mean", "include_last_offset": False, "padding_idx": None},
    quantizable={"weight": PerChannel(0)},
    torch=(
        Foreign("aten.embedding_bag.default", _BAG_ARGS[:-1], convert=_convert_bag),
        Foreign("aten.embedding_bag.padding_idx", _BAG_ARGS, convert=_convert_bag),
    ),
)
