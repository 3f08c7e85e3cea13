"""How nodes become native code: one function an op, found in `LOWERINGS`. A function that returns False leaves the node to NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fp8np.graph import Node
from fp8np.plan.builder import Builder
from fp8np.plan.lowerings import attention, images, integers, matrices, norms, pointwise, products, recurrent, tables, transposed

__all__ = ["LOWERINGS", "Lowering"]

Lowering = Callable[[Builder, Node, Mapping[str, Any]], bool]

LOWERINGS: Mapping[str, Lowering] = {
    **products.LOWERINGS,
    **matrices.LOWERINGS,
    **transposed.LOWERINGS,
    **pointwise.LOWERINGS,
    **norms.LOWERINGS,
    **images.LOWERINGS,
    **attention.LOWERINGS,
    **tables.LOWERINGS,
    **recurrent.LOWERINGS,
    **integers.LOWERINGS,
}
"""By the name of the op."""
