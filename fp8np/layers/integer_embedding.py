"""integer_embedding, integer_embedding_bag: embedding and embedding_bag of a table int8 (V, D), its scale () or (V, 1).

A row's numbers are ``code * scale``, as float32; only rows that are read are converted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.layers._integer import require_weight
from fp8np.layers._op import OPS, Spec, op
from fp8np.layers.embedding import checked_indices


def shape(weight: Spec, weight_scale: Spec, indices: Spec) -> Spec:
    """(V, D), (V, 1), (...) -> (..., D)"""
    require_weight("integer_embedding", weight, weight_scale, 0)
    y = OPS["embedding"].shape(Spec(weight.shape), indices)
    assert isinstance(y, Spec)
    return y


def integer_embedding(weight: Any, weight_scale: Any, indices: Any) -> Any:
    """y = weight[indices] * weight_scale[indices]"""
    rows = checked_indices("integer_embedding", indices, len(weight))
    return weight[rows].astype(weight_scale.dtype) * (weight_scale[rows] if weight_scale.ndim else weight_scale)


def bag_shape(
    weight: Spec, weight_scale: Spec, indices: Spec, offsets: Spec | None = None, per_sample_weights: Spec | None = None, **attrs: Any
) -> Spec:
    """As that of embedding_bag"""
    require_weight("integer_embedding_bag", weight, weight_scale, 0)
    y = OPS["embedding_bag"].shape(Spec(weight.shape), indices, offsets, per_sample_weights, **attrs)
    assert isinstance(y, Spec)
    return y


def integer_embedding_bag(
    weight: Any, weight_scale: Any, indices: Any, offsets: Any = None, per_sample_weights: Any = None, *, padding_idx: Any, **attrs: Any
) -> Any:
    """y[b] = sum, mean or max of weight[i] * weight_scale[i] over the indices i in bag b"""
    used, place = np.unique(checked_indices("integer_embedding_bag", indices, len(weight)), return_inverse=True)
    # Indices become places among the rows used; so does the one that is skipped, where it occurs.
    skipped = np.flatnonzero(used == padding_idx)
    padding = int(skipped[0]) if skipped.size else None
    rows = integer_embedding(weight, weight_scale, used)
    return OPS["embedding_bag"].define(rows, place.reshape(indices.shape), offsets, per_sample_weights, padding_idx=padding, **attrs)


op("integer_embedding", ("weight", "weight_scale", "indices"), shape=shape, define=integer_embedding)
op(
    "integer_embedding_bag",
    ("weight", "weight_scale", "indices", "offsets?", "per_sample_weights?"),
    shape=bag_shape,
    define=integer_embedding_bag,
    attrs={"mode": "mean", "include_last_offset": False, "padding_idx": None},
)
