"""scaled_dot_product_attention: y = softmax(query @ key^T * scale + mask) @ value.

query (..., Hq, L, E), key (..., H, S, E), value (..., H, S, Ev), y (..., Hq, L, Ev); Hq is H, or with enable_gqa a multiple of
it: query head h reads key head h // (Hq/H). attn_mask (..., L, S) is added, or if bool says who is seen. is_causal: query i
sees keys 0..i. scale is 1/sqrt(E) unless given. A query that sees nothing gets zeros.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fp8np.layers._checks import require, require_floats
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import broadcast
from fp8np.scheme import PerTensor

_NAME = "scaled_dot_product_attention"


def shape(
    query: Spec,
    key: Spec,
    value: Spec,
    attn_mask: Spec | None = None,
    *,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Spec:
    """(..., Hq, L, E), (..., H, S, E), (..., H, S, Ev), (..., L, S) -> (..., Hq, L, Ev)"""
    require_floats(_NAME, query=query, key=key, value=value)
    given = {"query": query, "key": key, "value": value}
    expected = "query (..., L, E), key (..., S, E) and value (..., S, Ev)"
    require(all(s.ndim >= 2 for s in given.values()), _NAME, expected, **given)
    require(query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2], _NAME, expected, **given)
    if enable_gqa:
        heads = query.shape[-3:-2] + key.shape[-3:-2]
        divides = len(heads) == 2 and heads[0] // heads[1] * heads[1] == heads[0] and key.shape[-3] == value.shape[-3:][0]
        require(divides, _NAME, "a number of query heads that is a multiple of the key and value heads", **given)
        # Key and value heads are repeated to as many as query has.
        leading = broadcast(_NAME, query.shape[:-2], (*key.shape[:-3], 1), (*value.shape[:-3], 1))
    else:
        leading = broadcast(_NAME, query.shape[:-2], key.shape[:-2], value.shape[:-2])
    if attn_mask is not None:
        require(attn_mask.dtype in ("bool", "float32"), _NAME, "attn_mask of bool or float32", attn_mask=attn_mask)
        scores = (*leading, query.shape[-2], key.shape[-2])
        require(broadcast(_NAME, attn_mask.shape, scores) == scores, _NAME, "attn_mask that broadcasts to (..., L, S)", attn_mask=attn_mask)
    return Spec((*leading, query.shape[-2], value.shape[-1]))


@np.errstate(invalid="ignore")
def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    *,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Any:
    """y = softmax(query @ key^T * scale + mask) @ value"""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = np.repeat(key, repeats, axis=-3), np.repeat(value, repeats, axis=-3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.swapaxes(-1, -2)
    if is_causal:
        scores[..., np.tri(*scores.shape[-2:]) == 0] = -np.inf
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == bool else scores + attn_mask
    # A row of -inf keeps 0 as its maximum, so that its exponentials are 0 and not NaN; its sum is then 0, and divides as 1.
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    scores -= np.where(top == -np.inf, 0, top)
    np.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True)
    # Dividing the result, (L, Ev), is less work than dividing the scores, (L, S).
    return (scores @ value) / np.where(total == 0, 1, total)


op(
    _NAME,
    ("query", "key", "value", "attn_mask?"),
    shape=shape,
    define=attention,
    attrs={"is_causal": False, "scale": None, "enable_gqa": False},
    # The operands of its two products; the weights between them stay float32.
    quantizable={"query": PerTensor(), "key": PerTensor(), "value": PerTensor()},
    # dropout_p is dropped: there is none at inference.
    torch=(
        Foreign(
            f"aten.{_NAME}.default",
            ("query", "key", "value", "attn_mask", "", "is_causal", "scale", "enable_gqa"),
        ),
    ),
)
