"""INT8: products of integers by the engine, each value widened as integers once for all who read it in the same way.

A node is native where its codes come from a quantize_integer node, its weight is a constant, and 32 bits hold its sums; elsewhere it
runs as defined, and gets its codes from the definition of quantize_integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fp8np._packing import Filters, Pads, Singles, filters, grouped_filters, kind_of, singles, spread_filters, taps_of
from fp8np.graph import Node
from fp8np.integers import INT8
from fp8np.kernels._ending import Ending, Left, View, per_column
from fp8np.kernels._engine import COLUMNS
from fp8np.kernels._functions import ACTIVATIONS
from fp8np.kernels._grid import Image
from fp8np.kernels.depthwise import depthwise_task
from fp8np.kernels.embedding import embedding_task
from fp8np.kernels.integer import EXACT, INT32_SUMS, integer_product_task
from fp8np.kernels.integer_widen import PARAMETERS, fixed_parameters, integers_task, parameters_parts, parameters_tasks
from fp8np.kernels.pack import pack_integers_task, packed_bytes
from fp8np.kernels.product import Placed
from fp8np.kernels.rearrange import permute_task
from fp8np.layers._op import OPS
from fp8np.layers.embedding import checked_indices
from fp8np.plan.builder import NO_PADS, Builder, Grid, word
from fp8np.plan.integers import Integers
from fp8np.plan.lowerings.integer_operands import (
    LARGEST,
    Weight,
    as_picture,
    bound_of,
    fits,
    made_here,
    pixels_of,
    prepared,
    rows_of,
    unfolded_of,
)
from fp8np.plan.lowerings.products import NARROW
from fp8np.plan.storage import At, Buffer, Stored, dense
from fp8np.tensor import QTensor

__all__ = ["LOWERINGS"]


def quantize_integer(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """Notes scale and zero point; the integers are made when a reader asks for them."""
    codes, scale, zero = node.outputs
    if 0 in b.shape(codes):
        return False
    if attrs["scale"] is None:
        at = At(Buffer(PARAMETERS))
        size = math.prod(b.shape(codes))
        parts = At(Buffer(parameters_parts(size)))
        # The order does not matter for a maximum, but gaps would.
        stored = b.value(node.inputs[0])
        stored = stored if stored.contiguous or stored.channels_last else b.plain(node.inputs[0])
        b.emit(*parameters_tasks(word(stored.at), size, word(parts), word(at)))
    else:
        at = At(fixed_parameters(attrs["scale"], attrs["zero_point"]))
    b.integers[codes] = Integers(str(node.inputs[0]), word(at))
    b.stored[scale] = Stored(at, (), ())
    b.stored[zero] = Stored(at.plus(12), (), (), np.dtype(np.int32))
    if codes in b.kept or not all(_native(b, reader) for reader in b.readers.get(codes, [])):
        define = OPS["quantize_integer"].define
        b.host(node, lambda x: define(x, **attrs)[0], [b.value(node.inputs[0])], [b.new(codes)])
    return True


def _native(b: Builder, node: Node) -> bool:
    """Whether a reader of codes is native."""
    check = {"fused_integer_linear": _linear_fits, "fused_integer_conv": _conv_fits, "integer_matmul": _matmul_fits}.get(node.op)
    return check is not None and check(b, node)


# -- the ending -------------------------------------------------------------------------------------------------------


def _ending(b: Builder, node: Node, attrs: Mapping[str, Any], blocks: int, *, picture: bool) -> Ending:
    """Of a fused product with a weight: scales, bias, residual, activation, and floats."""
    name = node.outputs[0]
    residual, n = node.inputs[6], b.shape(node.inputs[3])[0]
    scales, bias = (b.constant(name) for name in node.inputs[4:6])
    added = None
    if residual is not None:
        added = _view(_last(b, residual)) if picture else _matrix_view(b, residual)
    if picture:
        shape = as_picture(dense(b.shape(name))).shape
        last = dense(shape, channels_last=True)
        out = _view(last)
        s = last.strides
        b.stored[name] = last if len(b.shape(name)) == 4 else Stored(last.at, b.shape(name), (s[0], s[1], s[3]))
    else:
        b.new(name)
        out = _matrix_view(b, name)
    return Ending(
        per_column(blocks, np.broadcast_to(np.asarray(scales).reshape(-1), n)),
        per_column(blocks, () if bias is None else np.asarray(bias)),
        out=out,
        residual=added,
        kind=ACTIVATIONS[attrs["activation"]],
        lo=attrs["lo"],
        hi=attrs["hi"],
    )


def _view(stored: Stored) -> View:
    image, _, row, pixel = stored.strides
    return View(word(stored.at), image, row, pixel)


def _last(b: Builder, name: str) -> Stored:
    if len(b.shape(name)) == 4:
        return b.last(name)
    stored = as_picture(b.value(name))
    last = dense(stored.shape, channels_last=True)
    b.copy(stored, last)
    return last


def _matrix_view(b: Builder, name: str) -> View:
    stored, _, stride = b.matrix(name)
    return View(word(stored.at), 0, 0, stride)


# -- the ops ----------------------------------------------------------------------------------------------------------


def _linear_fits(b: Builder, node: Node) -> bool:
    return fits(b, node) and bound_of(b, node.inputs[3]) < INT32_SUMS


def fused_integer_linear(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """x (..., K), weight (N, K)."""
    if not _linear_fits(b, node):
        return False
    name = str(node.inputs[0])
    grid = rows_of(b, name)
    weight = prepared(b, str(node.inputs[3]), "rows", filters)
    _times_weight(b, grid, b.integers[name], weight, _ending(b, node, attrs, len(weight.made.scale) // COLUMNS, picture=False))
    return True


def _times_weight(b: Builder, grid: Grid, integers: Integers, weight: Weight, ending: Ending) -> None:
    made, image = weight.made, grid.image
    assert isinstance(made, Filters)
    left = Left(View(grid.view.address, 0, 0, image.pitch), 1, 1, image.width, image.width, integers.parameters)
    offsets = np.array([image.offset(s) for s in range(image.steps)], np.int64)
    product = LARGEST * INT8.weight_max
    b.emit(integer_product_task(left, made.packed, offsets, ending, product=product, bound=weight.bound, threads=b.threads))


def _conv_fits(b: Builder, node: Node) -> bool:
    kind = kind_of(OPS[node.op].filled(node.attrs)["groups"], b.shape(node.inputs[3]))
    # Sums of a depthwise convolution stay in float32.
    most = EXACT if kind == "depthwise" else INT32_SUMS
    return fits(b, node) and kind is not None and bound_of(b, node.inputs[3]) < most


def fused_integer_conv(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """x (B, C, H, W), weight (O, C/G, kh, kw); or lines, as pictures of one row."""
    if not _conv_fits(b, node):
        return False
    name, constant = str(node.inputs[0]), str(node.inputs[3])
    shape = b.shape(constant)
    lines = len(shape) == 3
    shape = (*shape[:2], 1, shape[2]) if lines else shape
    stride, dilation = ((1, attrs[a][0]) if lines else (attrs[a][0], attrs[a][1]) for a in ("stride", "dilation"))
    kernel, groups = (shape[2], shape[3]), attrs["groups"]
    pads: Pads = tuple(attrs["pads"])
    kind = kind_of(groups, shape)
    narrow = kind == "dense" and shape[1] <= NARROW and kernel[1] > 1 and dilation[1] == 1

    def lifted(make: Callable[[QTensor], Any]) -> Callable[[QTensor], Any]:
        return lambda w: make(w.expand_dims(2) if lines else w)

    if narrow:
        grid = unfolded_of(b, name, pads, kernel[1], stride[1])
        weight = prepared(b, constant, "unfolded", lifted(lambda w: filters(w, unfolded=True)))
        pads, stride, kernel = NO_PADS, (stride[0], 1), (kernel[0], 1)
    else:
        grid = pixels_of(b, name, pads)
        make: dict[str, Callable[[QTensor], Any]] = {
            "dense": filters,
            "depthwise": singles,
            "grouped": grouped_filters,
            "spread": lambda w: spread_filters(w, groups),
        }
        weight = prepared(b, constant, str(kind), lifted(make[str(kind)]))
    image = grid.image
    taps = taps_of(image, kernel, stride, dilation, pads)
    ending = _ending(b, node, attrs, len(weight.made.scale) // COLUMNS, picture=True)
    images, _, height, width = as_picture(b.stored[node.outputs[0]]).shape
    view = View(word(grid.at.plus(taps.first)), image.image, taps.row, taps.pixel)
    left = Left(view, images, height, width, taps.raster, b.integers[name].parameters)
    if isinstance(weight.made, Singles):
        offsets = np.array(taps.offsets, np.int64)
        b.emit(depthwise_task(left, weight.made.values, shape[0], image.panel, offsets, ending, threads=b.threads))
        return True
    steps = 1 if kind == "grouped" else image.steps
    offsets = np.array([t + image.offset(s) for t in taps.offsets for s in range(steps)], np.int64)
    panel = image.panel if kind == "grouped" else None
    product = LARGEST * INT8.weight_max
    packed = weight.made.packed
    b.emit(integer_product_task(left, packed, offsets, ending, product=product, bound=weight.bound, threads=b.threads, panel=panel))
    return True


def _matmul_fits(b: Builder, node: Node) -> bool:
    left, right, c = node.inputs[0], node.inputs[3], node.inputs[6]
    attrs = OPS[node.op].filled(node.attrs)
    shapes = b.shape(left), b.shape(right)
    if min(map(len, shapes)) < 2 or 0 in (*shapes[0], *shapes[1]) or not made_here(b, *node.inputs[:3]):
        return False
    if b.constant(right) is not None:
        bias = c is None or (b.constant(c) is not None and b.shape(c) == shapes[1][1:] and attrs["alpha"] == attrs["beta"] == 1)
        weight = len(shapes[1]) == 2 and b.constant(node.inputs[4]) is not None and node.inputs[5] is None
        return bias and weight and bound_of(b, right, "columns") < INT32_SUMS
    alone = c is None and attrs["alpha"] == 1
    leading = shapes[0][:-2] == shapes[1][:-2] or math.prod(shapes[1][:-2]) == 1
    return alone and leading and made_here(b, *node.inputs[3:6]) and shapes[0][-1] * LARGEST * LARGEST < INT32_SUMS


def integer_matmul(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """a (..., M, K) and b (..., K, N): a weight, or computed, with the same leading axes as a or none."""
    if not _matmul_fits(b, node):
        return False
    left, right = str(node.inputs[0]), str(node.inputs[3])
    if b.constant(right) is None:
        _times_computed(b, node, left, right)
        return True
    grid = rows_of(b, left)
    weight = prepared(b, right, "columns", filters)
    n, blocks = b.shape(right)[1], len(weight.made.scale) // COLUMNS
    scale = np.broadcast_to(np.asarray(b.constant(node.inputs[4])).reshape(-1), n)
    bias = () if node.inputs[6] is None else np.asarray(b.constant(node.inputs[6]))
    b.new(node.outputs[0])
    ending = Ending(per_column(blocks, scale), per_column(blocks, bias), out=_matrix_view(b, node.outputs[0]))
    _times_weight(b, grid, b.integers[left], weight, ending)
    return True


def _times_computed(b: Builder, node: Node, left: str, right: str) -> None:
    (m, k), n = b.shape(left)[-2:], b.shape(right)[-1]
    leading = [b.shape(name)[:-2] for name in (left, right)]
    z = math.prod(leading[0])
    if leading[0] != leading[1]:
        # All of the batch meets the same columns: one product with many rows.
        m, z = m * z, 1
    operands = [b.integers[name] for name in (left, right)]
    sources = [b.plain(operand.source) for operand in operands]
    image = Image(1, 1, m, k)
    grid = Grid(image, b.image_memory(image))
    blocks = -(-n // COLUMNS)
    packed = At(Buffer(packed_bytes(k, n)))
    placed = Placed(word(packed), blocks, image.steps, n)
    # Columns want a scale each.
    scale = At(Buffer(blocks * COLUMNS * 4))
    b.emit(permute_task(operands[1].parameters, word(scale), (1, 1, blocks * COLUMNS, 1), (0, 0, 0, 1)))
    offsets = np.array([image.offset(s) for s in range(image.steps)], np.int64)
    out = b.new(node.outputs[0])
    rows = Left(grid.view, 1, 1, m, m, operands[0].parameters)
    for i in range(z):
        b.emit(
            integers_task(
                View(word(sources[0].at.plus(i * m * k * 4)), 0, 0, k * 4), grid.view, image.panel, (1, 1, m, k), operands[0].parameters
            )
        )
        b.emit(pack_integers_task(word(sources[1].at.plus(i * k * n * 4)), (n * 4, 4), (k, n), word(packed), operands[1].parameters))
        ending = Ending(word(scale), per_column(blocks), out=View(word(out.at.plus(i * m * n * 4)), 0, 0, n * 4))
        bound = k * LARGEST * LARGEST
        b.emit(integer_product_task(rows, placed, offsets, ending, product=LARGEST * LARGEST, bound=bound, threads=b.threads))


def integer_embedding(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """weight (V, D), indices of any shape."""
    table, scale, indices = b.constant(node.inputs[0]), b.constant(node.inputs[1]), b.facts[str(node.inputs[2])]
    if table is None or scale is None or indices.dtype not in ("int64", "int32") or 0 in (*b.shape(node.outputs[0]), *table.shape):
        return False
    ids = b.plain(node.inputs[2])
    rows, n = table.shape
    b.host(node, lambda ids: checked_indices("integer_embedding", ids, rows) is None, [ids], [])
    out = b.new(node.outputs[0])
    codes = b.weights.prepare("integer", str(node.inputs[0]), "table", lambda w: np.ascontiguousarray(w).view(np.uint8))
    values = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    b.emit(
        embedding_task(
            codes,
            word(ids.at),
            word(out.at),
            (math.prod(b.shape(node.inputs[2])), n),
            id_bytes=ids.dtype.itemsize,
            values=values,
            scale=np.ascontiguousarray(np.asarray(scale).reshape(-1)),
            scale_per="row" if scale.shape else "tensor",
        )
    )
    return True


LOWERINGS = {
    "quantize_integer": quantize_integer,
    "fused_integer_linear": fused_integer_linear,
    "fused_integer_conv": fused_integer_conv,
    "integer_matmul": integer_matmul,
    "integer_embedding": integer_embedding,
}
