"""embedding and embedding_bag: rows of a table, decoded as they are looked up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fp8np.codec import decode_table
from fp8np.graph import Node
from fp8np.kernels.embedding import embedding_task
from fp8np.layers._op import OPS
from fp8np.layers.embedding import checked_indices
from fp8np.plan.builder import Builder, word
from fp8np.tensor import QTensor

__all__ = ["LOWERINGS"]


def embedding(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """weight (V, N), indices of any shape."""
    table, indices = b.constant(node.inputs[0]), b.facts[str(node.inputs[1])]
    if table is None or indices.dtype not in ("int64", "int32") or 0 in b.shape(node.outputs[0]) or 0 in table.shape:
        return False
    ids = b.plain(node.inputs[1])
    rows, n = table.shape
    b.host(node, lambda ids: checked_indices("embedding", ids, rows) is None, [ids], [])
    out = b.new(node.outputs[0])
    shape = (math.prod(b.shape(node.inputs[1])), n)
    size = ids.dtype.itemsize
    if not isinstance(table, QTensor):
        b.emit(embedding_task(word(b.value(node.inputs[0]).at), word(ids.at), word(out.at), shape, id_bytes=size))
        return True
    scale = np.ascontiguousarray(table.scale.reshape(-1))
    per = "block" if table.block else "tensor" if scale.size == 1 else "row" if table.scale.shape[0] == scale.size else "column"
    block: Any = table.block or (1, 1)
    codes = b.weights.prepare("embedding", str(node.inputs[0]), "codes", lambda _: np.ascontiguousarray(table.codes))
    values = decode_table(table.format)
    how: dict[str, Any] = {"values": values, "scale": scale, "scale_per": per, "block": block}
    b.emit(embedding_task(codes, word(ids.at), word(out.at), shape, id_bytes=size, **how))
    return True


def embedding_bag(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """In Python, but of an FP8 table only the rows that occur in a bag are decoded."""
    table = b.constant(node.inputs[0])
    if not isinstance(table, QTensor):
        return False
    values = decode_table(table.format)

    def bags(indices: Any, offsets: Any = None, per_sample_weights: Any = None) -> Any:
        used, place = np.unique(checked_indices("embedding_bag", indices, len(table.codes)), return_inverse=True)
        # Indices become places among the rows used; so does the one that is skipped, where it occurs.
        skipped = np.flatnonzero(used == attrs["padding_idx"])
        changed = {**attrs, "padding_idx": int(skipped[0]) if skipped.size else None}
        rows = values[table.codes[used]] * _scale_of_rows(table, used)
        return OPS["embedding_bag"].define(rows, place.reshape(indices.shape), offsets, per_sample_weights, **changed)

    b.host(node, bags, [None if name is None else b.value(name) for name in node.inputs[1:]], [b.new(node.outputs[0])])
    return True


def _scale_of_rows(table: QTensor, rows: Any) -> Any:
    """The scales of some rows of a table (V, N), such that they broadcast with them."""
    if table.block is None:
        return np.broadcast_to(table.scale, (len(table.codes), *table.scale.shape[1:]))[rows] if table.scale.ndim else table.scale
    return np.repeat(table.scale[rows // table.block[0]], min(table.block[1], table.shape[1]), axis=1)[:, : table.shape[1]]


LOWERINGS = {"embedding": embedding, "embedding_bag": embedding_bag}
