"""matmul and addmm: with a weight as a linear layer is; of two computed operands, one product for each matrix of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fp8np.graph import Node
from fp8np.kernels._ending import Ending, Left, View, per_column
from fp8np.kernels._engine import COLUMNS
from fp8np.kernels._grid import PARTS, Image
from fp8np.kernels._program import Word
from fp8np.kernels.pack import pack_floats_task, packed_bytes
from fp8np.kernels.pointwise import binary_task
from fp8np.kernels.product import Placed, product_task
from fp8np.kernels.widen import quantize_task, split_task
from fp8np.plan.builder import Builder, Grid, word
from fp8np.plan.lowerings.products import by_columns, part_of, scale_of, times_weight
from fp8np.plan.steps import token_task
from fp8np.plan.storage import At, Buffer

__all__ = ["LOWERINGS"]


def matmul(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """a (..., M, K) and b (..., K, N): a weight, or computed, with the same leading axes as a or none."""
    left, right = (str(name) for name in node.inputs[:2])
    if by_columns(b, node):
        times_weight(b, node, right, "columns", _ENDLESS)
        return True
    shapes = b.shape(left), b.shape(right)
    if b.constant(left) is not None or b.constant(right) is not None or min(map(len, shapes)) < 2 or 0 in (*shapes[0], *shapes[1]):
        return False
    return len(node.inputs) == 2 and _times_computed(b, node, left, right)


_ENDLESS = {"activation": "", "lo": float("-inf"), "hi": float("inf")}


def _columns(b: Builder, name: str, count: int) -> Word:
    """The scale of a right operand, once for each column. One that is found at run time is spread then."""
    q = b.quantized.get(name)
    if q is None or q.fixed is not None:
        return np.full(count, 1 if q is None else q.fixed, np.float32)
    at = word(At(Buffer(4 * count)))
    b.emit(binary_task(np.ones(count, np.float32), q.scale, at, "mul", (1, 1, count), (0, 0, 0)))
    return at


def _times_computed(b: Builder, node: Node, left: str, right: str) -> bool:
    (m, k), n = b.shape(left)[-2:], b.shape(right)[-1]
    leading = [b.shape(name)[:-2] for name in (left, right)]
    z = math.prod(leading[0])
    if leading[0] != leading[1] and math.prod(leading[1]) != 1:
        return False
    each = leading[0] == leading[1]
    if not each:
        # All of the batch meets the same columns: one product with many rows.
        m, z = m * z, 1
    own, other, rows = b.quantized.get(left), b.quantized.get(right), b.tokens.get(left)
    coded = own or rows
    sources = b.plain(left if coded is None else coded.source), b.plain(right if other is None else other.source)
    image = Image(1, 1, m, k, parts=PARTS if coded is None else 1)
    grid = Grid(image, b.image_memory(image))
    size, blocks = packed_bytes(k, n), -(-n // COLUMNS)
    packed = At(Buffer(size * (PARTS if other is None else 1)))
    placed = Placed(word(packed), blocks, image.steps, n, part=0 if other is not None or PARTS == 1 else size)
    scale = _columns(b, right, blocks * COLUMNS)
    offsets = np.array([image.offset(s) for s in range(image.steps)], np.int64)
    out = b.new(node.outputs[0])
    operand = Left(grid.view, 1, 1, m, m, scale_of(b, left), None if rows is None else rows.scale, part_of(image))
    for i in range(z):
        place = word(sources[0].at.plus(i * m * k * 4))
        view = View(place, 0, 0, k * 4)
        if own is not None:
            b.emit(quantize_task(view, grid.view, image.panel, (1, 1, m, k), b.rounding(left)))
        elif rows is not None:
            b.emit(token_task(place, k * 4, rows, grid))
        else:
            b.emit(split_task(view, grid.view, image.panel, image.part, (1, 1, m, k)))
        rounding = None if other is None else b.rounding(right)
        b.emit(pack_floats_task(word(sources[1].at.plus(i * k * n * 4)), (n * 4, 4), (k, n), word(packed), rounding))
        ending = Ending(scale, per_column(blocks), out=View(word(out.at.plus(i * m * n * 4)), 0, 0, n * 4))
        b.emit(product_task(operand, placed, offsets, ending, threads=b.threads))
    return True


def addmm(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """c + a @ b with constants c (N,) and b: c is the bias."""
    c, weight = b.constant(node.inputs[0]), b.constant(node.inputs[2])
    if c is None or weight is None or c.shape != weight.shape[1:] or attrs["alpha"] != 1 or attrs["beta"] != 1:
        return False
    return matmul(b, node.replace(inputs=(*node.inputs[1:], node.inputs[0])), attrs)


LOWERINGS = {"matmul": matmul, "addmm": addmm}
