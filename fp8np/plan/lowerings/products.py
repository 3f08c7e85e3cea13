"""fused_conv2d and fused_linear: one task each, whatever their operands are.

The left operand is a widened image: of an FP8 value, made by whoever computes it; or of floats, made here, each held exactly. Where
a float activation meets codes, or codes meet a float weight, the one is exact and the other is too, so nothing is rounded but sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fp8np._packing import (
    Filters,
    Pads,
    filters,
    groupable,
    grouped_filters,
    groups,
    kind_of,
    packable,
    singles,
    spread_filters,
    taps_of,
)
from fp8np.formats import get_format
from fp8np.graph import Constant, Node
from fp8np.kernels._ending import Ending, Left, View, per_column
from fp8np.kernels._engine import COLUMNS, STEP
from fp8np.kernels._functions import ACTIVATIONS
from fp8np.kernels._grid import PARTS, Image, holds
from fp8np.kernels._program import Word
from fp8np.kernels.depthwise import depthwise_task
from fp8np.kernels.floats import float_product_task, packed_floats
from fp8np.kernels.product import product_task
from fp8np.kernels.widen import place_task, quantize_task, split_task
from fp8np.layers._op import OPS
from fp8np.plan.builder import NO_PADS, Builder, Grid, floats_of, word
from fp8np.plan.storage import At, Buffer, Stored, dense, last_strides
from fp8np.tensor import QTensor

__all__ = ["LOWERINGS", "by_columns", "overlapping", "part_of", "scale_of", "times_weight", "wanted_pads"]

_ONE = np.ones(1, np.float32)

NARROW = 8
"""Up to so many channels, a row of a filter's taps is one step instead of a step each: 7 steps instead of 49 for a picture's first
convolution."""


# -- which nodes are the engine's, and what readers of an FP8 value want ----------------------------------------------


def wanted_pads(b: Builder, node: Node, name: str) -> Pads | None:
    """The zeros that a reader wants around an FP8 value; None where it reads floats."""
    if node.inputs[0] != name or name in node.inputs[1:] or not holds(get_format(b.facts[name].dtype)):
        return None
    if node.op == "fused_conv2d":
        return tuple(node.attrs["pads"]) if _kind(b, node) not in (None, "unfolded") else None
    by_rows = (node.op == "fused_linear" and _by_rows(b, node)) or (node.op == "matmul" and by_columns(b, node))
    return NO_PADS if by_rows and not b.picture(name) else None


def _fits(b: Builder, node: Node, weight: Constant | None) -> bool:
    """Whether the engine takes the weight, the bias is known beforehand, and something is summed."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    known = bias is None or b.constant(bias) is not None
    taken = packable(weight) or groupable(weight)
    return weight is not None and taken and known and 0 not in (*weight.shape, *b.shape(node.outputs[0]))


def _by_rows(b: Builder, node: Node) -> bool:
    """Whether a fused_linear is the engine's."""
    return _fits(b, node, b.constant(node.inputs[1]))


def by_columns(b: Builder, node: Node) -> bool:
    """Whether a matmul is the engine's, of what is computed with one weight."""
    weight = b.constant(node.inputs[1])
    return weight is not None and weight.ndim == 2 and b.constant(node.inputs[0]) is None and _fits(b, node, weight.T)


def _kind(b: Builder, node: Node) -> str | None:
    """How a fused_conv2d is computed: as `kind_of` says, or "unfolded" (`_unfolded`); None: not by the engine."""
    weight, attrs = b.constant(node.inputs[1]), OPS[node.op].filled(node.attrs)
    if weight is None or not _fits(b, node, weight):
        return None
    kind = kind_of(attrs["groups"], weight.shape)
    narrow = weight.shape[1] <= NARROW and weight.shape[3] > 1 and attrs["dilation"][1] == 1
    return "unfolded" if kind == "dense" and narrow else kind


# -- the ending -------------------------------------------------------------------------------------------------------


def _view(stored: Stored) -> View:
    # Of (B, N, H, W) channels last.
    image, _, row, pixel = stored.strides
    return View(word(stored.at), image, row, pixel)


def _rows(stored: Stored, stride: int) -> View:
    return View(word(stored.at), 0, 0, stride)


def _ending(b: Builder, node: Node, attrs: Mapping[str, Any], scale: Any, picture: bool) -> Ending:
    """Scales, bias, residual and activation; and results: on the grid of the first FP8 reader that allows it, as floats for others."""
    name = node.outputs[0]
    known = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = per_column(len(scale) // COLUMNS, np.asarray(b.constant(node.inputs[2])) if known else ())
    residual = None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        if picture:
            residual = _view(b.last(node.inputs[3]))
        else:
            stored, _, stride = b.matrix(node.inputs[3])
            residual = _rows(stored, stride)
    grid, panel, through = None, 0, None
    rounding: tuple[Word, ...] = ()
    for reader in b.readers.get(name, []):
        q = reader.outputs[0]
        if reader.op == "quantize" and reader.attrs.get("scale") is not None and b.pads_of(q) is not None and b.picture(q) == picture:
            b.quantize(reader)
            made = b.new_grid(q)
            b.quantized[q].grid = made
            grid, panel, rounding, through = made.view, made.image.panel, b.rounding(q), reader
            break
    out = None
    others = [r for r in b.readers.get(name, []) if r is not through]
    if others or name in b.kept or through is None or b.floats_wanted(through.outputs[0]):
        stored = b.new(name, channels_last=picture)
        out = _view(stored) if picture else _rows(stored, stored.shape[-1] * 4)
    return Ending(
        scale,
        bias,
        out=out,
        grid=grid,
        panel=panel,
        rounding=rounding,
        residual=residual,
        kind=ACTIVATIONS[attrs["activation"]],
        lo=attrs["lo"],
        hi=attrs["hi"],
    )


# -- the left operand -------------------------------------------------------------------------------------------------


def scale_of(b: Builder, name: str) -> Word:
    """Where the scale of a value is; that of floats is 1."""
    return b.quantized[name].scale if name in b.quantized else _ONE


def _split(b: Builder, source: View, image: Image) -> Grid:
    """A widened image of floats."""
    grid = Grid(image, b.image_memory(image))
    sizes = image.images, image.height, image.width, image.channels
    b.emit(split_task(source, grid.view, image.panel, image.part, sizes))
    return grid


def _operand(b: Builder, name: str, pads: Pads) -> Grid:
    """The widened image of pictures (B, C, H, W)."""
    if name in b.quantized:
        return b.grid(name)
    images, channels, height, width = b.shape(name)
    return _split(b, _view(b.last(name)), Image(images, height, width, channels, *pads, parts=PARTS))


def overlapping(b: Builder, source: Stored, pads: Pads, kw: int, stride: int) -> tuple[View, tuple[int, ...], int]:
    """Pictures of few channels, padded and channels last, as pixels that overlap: each holds all that a row of the filter reads, kw * C
    numbers. Returns the pixels, the shape of the padded pictures, and how many pixels a row has.
    """
    images, channels, height, width = source.shape
    top, left, bottom, right = pads
    padded = (images, channels, height + top + bottom, width + left + right)
    strides = last_strides(padded, 4)
    memory = At(Buffer(4 * math.prod(padded) + 128 * stride * channels, zero=f"picture {padded} {pads}" if any(pads) else ""))
    inner = View(word(memory.plus(top * strides[2] + left * strides[3])), strides[0], strides[2], strides[3])
    b.emit(place_task(word(source.at), source.strides, inner, source.shape))  # type: ignore[arg-type]
    view = View(word(memory), strides[0], strides[2], stride * strides[3])
    return view, padded, (padded[3] - kw) // stride + 1


def _unfolded(b: Builder, name: str, pads: Pads, kw: int, stride: int) -> Grid:
    """The widened image of an FP8 value of few channels in which a pixel holds all that a row of the filter reads."""
    view, (images, channels, height, _), wide = overlapping(b, b.value(b.quantized[name].source), pads, kw, stride)
    image = Image(images, height, wide, kw * channels)
    grid = Grid(image, b.image_memory(image))
    b.emit(quantize_task(view, grid.view, image.panel, (images, height, wide, kw * channels), b.rounding(name)))
    return grid


def part_of(image: Image) -> int:
    """Bytes from a part to the next, where a float32 is several; 0 where it is one."""
    return image.part if image.parts > 1 else 0


# -- the ops ----------------------------------------------------------------------------------------------------------


def fused_linear(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """x (..., K), weight (N, K)."""
    if not _by_rows(b, node):
        return False
    name, constant = str(node.inputs[0]), str(node.inputs[1])
    floats = name not in b.quantized and name not in b.tokens and not isinstance(b.constant(constant), QTensor)
    if floats and math.prod(b.shape(name)[:-1]) <= FEW:
        return _few_floats(b, node, attrs)
    times_weight(b, node, constant, "rows", attrs)
    return True


def times_weight(b: Builder, node: Node, constant: str, order: str, attrs: Mapping[str, Any]) -> None:
    """A value (..., K) times a weight in "rows" (N, K) or "columns" (K, N)."""
    name = str(node.inputs[0])
    row_scale = None
    if name in b.quantized:
        grid = b.rows(name)
    elif name in b.tokens:
        grid, row_scale = b.token_rows(name), b.tokens[name].scale
    else:
        stored, rows, stride = b.matrix(name)
        grid = _split(b, _rows(stored, stride), Image(1, 1, rows, stored.shape[-1], parts=PARTS))
    image = grid.image
    pixels = image.images * image.height * image.width
    left = Left(View(grid.view.address, 0, 0, image.pitch), 1, 1, pixels, pixels, scale_of(b, name), row_scale, part_of(image))

    def make(w: Constant) -> tuple[Filters, ...]:
        return tuple(filters(part) for part in groups(w if order == "rows" else w.T))

    _emit(b, node, attrs, left, b.weights.prepare("product", constant, order, make), image, (0,), False)


def _emit(
    b: Builder,
    node: Node,
    attrs: Mapping[str, Any],
    left: Left,
    made: tuple[Filters, ...],
    image: Image,
    taps: Sequence[int],
    picture: bool,
) -> None:
    """A product; of a weight in groups one for each, that adds to what those before it left."""
    ending = _ending(b, node, attrs, made[-1].scale, picture)
    first = 0
    for i, part in enumerate(made):
        steps = range(first, first + part.packed.steps // len(taps))
        offsets = np.array([t + image.offset(s) for t in taps for s in steps], np.int64)
        first = steps.stop
        if i == len(made) - 1:
            b.emit(product_task(left, part.packed, offsets, ending, threads=b.threads))
            return
        if i == 0:
            sums = ending.out or _sums(b, node, picture)
        so_far = Ending(part.scale, per_column(part.packed.blocks), out=sums, residual=ending.residual)
        b.emit(product_task(left, part.packed, offsets, so_far, threads=b.threads))
        ending = dataclasses.replace(ending, residual=sums)


def _sums(b: Builder, node: Node, picture: bool) -> View:
    stored = dense(b.shape(node.outputs[0]), channels_last=picture)
    return _view(stored) if picture else _rows(stored, stored.shape[-1] * 4)


def fused_conv2d(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """x (B, C, H, W), weight (O, C/G, kh, kw)."""
    name, constant, weight = str(node.inputs[0]), str(node.inputs[1]), b.constant(node.inputs[1])
    pads: Pads = tuple(attrs["pads"])
    kind = _kind(b, node)
    if kind is None or weight is None:
        return False
    (sy, sx), (dy, dx), (kh, kw) = attrs["stride"], attrs["dilation"], weight.shape[2:]
    images, _, ho, wo = b.shape(node.outputs[0])
    if kind == "unfolded" and name not in b.quantized:
        return _narrow_floats(b, node, attrs)
    if kind == "unfolded":
        grid = _unfolded(b, name, pads, kw, sx)
        pads, sx, kw = NO_PADS, 1, 1
    else:
        grid = _operand(b, name, pads)
    image = grid.image
    taps = taps_of(image, (kh, kw), (sy, sx), (dy, dx), pads)
    view = View(word(grid.at.plus(taps.first)), image.image, taps.row, taps.pixel)
    left = Left(view, images, ho, wo, taps.raster, scale_of(b, name), part=part_of(image))
    if kind == "depthwise":
        single = b.weights.prepare("depthwise", constant, "", singles)
        parts = [p * image.part for p in range(image.parts)]
        offsets = np.array([p + t for p in parts for t in taps.offsets], np.int64)
        values = np.tile(single.values, (1, image.parts, 1)) if image.parts > 1 else single.values
        ending = _ending(b, node, attrs, single.scale, True)
        b.emit(depthwise_task(left, values, weight.shape[0], image.panel, offsets, ending, threads=b.threads))
    elif kind == "grouped":
        made = b.weights.prepare("product", constant, kind, grouped_filters)
        offsets = np.array([t + image.offset(0) for t in taps.offsets], np.int64)
        ending = _ending(b, node, attrs, made.scale, True)
        b.emit(product_task(left, made.packed, offsets, ending, threads=b.threads, panel=image.panel))
    else:
        made = b.weights.prepare("product", constant, kind, lambda w: _pictures(w, kind, attrs["groups"]))
        _emit(b, node, attrs, left, made, image, taps.offsets, True)
    return True


def _pictures(weight: Constant, kind: str, channel_groups: int) -> tuple[Filters, ...]:
    if kind == "spread":
        return (spread_filters(weight, channel_groups),)
    return tuple(filters(part, unfolded=kind == "unfolded") for part in groups(weight))


def _narrow_floats(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """A convolution of floats of few channels: a picture's first."""
    o, c, kh, kw = b.shape(node.inputs[1])
    images, _, ho, wo = b.shape(node.outputs[0])
    view, padded, _ = overlapping(b, b.value(node.inputs[0]), tuple(attrs["pads"]), kw, attrs["stride"][1])
    row = last_strides(padded, 4)[2]
    # A step is as many taps side by side as it holds, none of which belongs to another pixel: that might be NaN.
    side = max(n for n in range(1, kw + 1) if kw % n == 0 and n * c <= STEP)

    def make(w: Constant) -> Any:
        return packed_floats(floats_of(w).transpose(0, 2, 3, 1).reshape(o, -1, side * c))

    packed = b.weights.prepare("floats", str(node.inputs[1]), "", make)
    left = Left(View(view.address, view.image, attrs["stride"][0] * row, view.pixel), images, ho, wo, 0, _ONE)
    offsets = np.array([i * attrs["dilation"][0] * row + j * c * 4 for i in range(kh) for j in range(0, kw, side)], np.int64)
    scale = per_column(len(packed), np.ones(o))
    b.emit(float_product_task(left, packed, side * c, o, offsets, _ending(b, node, attrs, scale, True), threads=b.threads))
    return True


FEW = 8
"""Up to so many rows of floats meet float weights in float32 units."""


def _few_floats(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """A linear layer of floats over few rows."""
    n, k = b.shape(node.inputs[1])
    stored, rows, stride = b.matrix(node.inputs[0])

    def make(w: Constant) -> Any:
        full = np.zeros((n, -(-k // STEP) * STEP), np.float32)
        full[:, :k] = floats_of(w)
        return packed_floats(full.reshape(n, -1, STEP))

    packed = b.weights.prepare("floats", str(node.inputs[1]), "", make)
    if k % STEP or rows > 1:
        # The last step reads past a row, a block past the last row: into zeros.
        whole = At(Buffer((rows + 16) * packed.shape[1] * STEP * 4, zero=f"rows {rows} {k}"))
        inner = View(word(whole), 0, 0, packed.shape[1] * STEP * 4)
        b.emit(place_task(word(stored.at), (0, 4, 0, stride), inner, (1, k, 1, rows)))
        stored, stride = Stored(whole, (rows, k), (packed.shape[1] * STEP * 4, 4)), packed.shape[1] * STEP * 4
    left = Left(_rows(stored, stride), 1, 1, rows, rows, _ONE)
    offsets = np.arange(packed.shape[1], dtype=np.int64) * STEP * 4
    scale = per_column(len(packed), np.ones(n))
    b.emit(float_product_task(left, packed, STEP, n, offsets, _ending(b, node, attrs, scale, False), threads=b.threads))
    return True


LOWERINGS = {"fused_linear": fused_linear, "fused_conv2d": fused_conv2d}

assert STEP == COLUMNS
