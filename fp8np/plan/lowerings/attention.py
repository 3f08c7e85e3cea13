"""scaled_dot_product_attention: queries, keys and values are read where they lie, heads and all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fp8np.graph import Node
from fp8np.kernels.attention import Heads, Mask, attention_task
from fp8np.plan.builder import Builder, word
from fp8np.plan.storage import Stored, dense

__all__ = ["LOWERINGS"]


def _heads(b: Builder, name: str | None) -> Stored:
    """(B, H, T, E) with E side by side."""
    stored = b.value(name)
    return stored if stored.strides[-1] == 4 else b.plain(name)


def _at(stored: Stored) -> Heads:
    batch, head, row, _ = stored.strides
    return Heads(word(stored.at), batch, head, row)


def lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """Pictures of four axes that need no broadcasting beyond that of the mask."""
    shapes = [b.shape(name) for name in node.inputs[:3]]
    out = b.shape(node.outputs[0])
    if any(len(s) != 4 or 0 in s for s in shapes) or 0 in out:
        return False
    (batch, heads, queries, width), (kv_batch, kv_heads, keys, _), (v_batch, v_heads, _, value_width) = shapes
    if {batch, kv_batch, v_batch} != {batch} or kv_heads != v_heads or (not attrs["enable_gqa"] and heads != kv_heads):
        return False
    mask = None
    name = node.inputs[3] if len(node.inputs) > 3 else None
    if name is not None:
        stored = b.value(name)
        shape = (*(1,) * (4 - len(stored.shape)), *stored.shape)
        strides = (*(0,) * (4 - len(stored.shape)), *stored.strides)
        b_, h_, r_, c_ = (0 if n == 1 else s for n, s in zip(shape, strides, strict=True))
        mask = Mask(word(stored.at), b_, h_, r_, c_, boolean=bool(stored.dtype == np.bool_))
    # Rows of all heads side by side, as the linear layer after it reads them.
    wide = dense((batch, queries, heads, value_width))
    s = wide.strides
    result = Stored(wide.at, out, (s[0], s[2], s[1], s[3]))
    b.stored[node.outputs[0]] = result
    q, k, v = (_at(_heads(b, n)) for n in node.inputs[:3])
    b.emit(
        attention_task(
            q,
            k,
            v,
            _at(result),
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            queries=queries,
            keys=keys,
            width=width,
            value_width=value_width,
            scale=1 / math.sqrt(width) if attrs["scale"] is None else attrs["scale"],
            is_causal=attrs["is_causal"],
            mask=mask,
        )
    )
    return True


LOWERINGS = {"scaled_dot_product_attention": lower}
