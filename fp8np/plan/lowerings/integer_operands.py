"""Operands of integer products: weights packed, activations widened, and whether 32 bits hold the sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fp8np._packing import Filters, Pads, Singles
from fp8np.formats import FloatFormat, Specials
from fp8np.graph import Constant, Node
from fp8np.integers import INT8
from fp8np.kernels._ending import View
from fp8np.kernels._grid import Image
from fp8np.kernels.integer import INT32_SUMS
from fp8np.kernels.integer_widen import integers_task
from fp8np.plan.builder import Builder, Grid, word
from fp8np.plan.integers import Integers
from fp8np.plan.lowerings.products import overlapping
from fp8np.plan.storage import Stored, dense
from fp8np.tensor import QTensor

__all__ = ["LARGEST", "Weight", "as_picture", "bound_of", "fits", "made_here", "pixels_of", "prepared", "rows_of", "unfolded_of"]

LARGEST = INT8.activation_max
"""The largest magnitude of a code without its zero point."""


@lru_cache(maxsize=1)
def _magnitudes() -> FloatFormat:
    # With one exponent bit and a quantum of 1, the value of a magnitude is the magnitude: integers with a sign, which everything that
    # packs and widens FP8 weights takes as it is.
    return FloatFormat("sign and magnitude of int8", 1, 6, -5, Specials.NONE, "fp8np")


def _as_codes(weight: Constant) -> QTensor:
    assert isinstance(weight, np.ndarray)
    magnitude = np.abs(weight.astype(np.int16)).astype(np.uint8)
    return QTensor(magnitude | (weight < 0).astype(np.uint8) << 7, _magnitudes())


@dataclass(frozen=True)
class Weight:
    """A weight as kernels take it.

    Attributes:
        made: packed.
        bound: the magnitude that no sum exceeds, whatever the codes of the activation are.
    """

    made: Filters | Singles
    bound: int


def prepared(b: Builder, name: str, key: str, make: Callable[[QTensor], Filters | Singles]) -> Weight:
    """A weight packed by `make`, remembered under the key; "columns": (K, N), transposed before."""
    bound = bound_of(b, name, key)

    def prepare(weight: Constant) -> Weight:
        array = np.asarray(weight)
        return Weight(make(_as_codes(array.T if key == "columns" else array)), bound)

    made: Weight = b.weights.prepare("integer", name, key, prepare)
    return made


def bound_of(b: Builder, name: str | None, key: str = "") -> int:
    """The magnitude that no sum of products with a weight exceeds. INT32_SUMS for one with -128, which sign and magnitude cannot say."""

    def prepare(weight: Constant) -> int:
        rows = np.asarray(weight).astype(np.int64)
        if rows.min() < -INT8.weight_max:
            return INT32_SUMS
        rows = rows.T if key == "columns" else rows
        return int(np.abs(rows.reshape(len(rows), -1)).sum(axis=1).max()) * LARGEST

    bound: int = b.weights.prepare("integer", str(name), f"bound {key}" if key == "columns" else "bound", prepare)
    return bound


# -- activations ------------------------------------------------------------------------------------------------------


def fits(b: Builder, node: Node) -> bool:
    """Whether weight, scale and bias of a fused product are known beforehand, its codes made here, and something is summed."""
    x, x_scale, x_zero, weight, scale, bias = node.inputs[:6]
    known = all(b.constant(name) is not None for name in (weight, scale)) and (bias is None or b.constant(bias) is not None)
    return known and made_here(b, x, x_scale, x_zero) and 0 not in (*b.shape(weight), *b.shape(node.outputs[0]))


def made_here(b: Builder, codes: str | None, scale: str | None, zero: str | None) -> bool:
    """Whether these are the outputs of one quantize_integer node."""
    return any(node.outputs == (codes, scale, zero) for node in b.graph.nodes if node.op == "quantize_integer" and codes in node.outputs)


def _grid(b: Builder, name: str, key: str, make: Callable[[Integers], Grid]) -> Grid:
    # Laid out in one way for all who read it in that way.
    integers = b.integers[name]
    if key not in integers.grids:
        integers.grids[key] = make(integers)
    return integers.grids[key]


def _filled(b: Builder, image: Image, source: View, integers: Integers) -> Grid:
    grid = Grid(image, b.image_memory(image))
    sizes = image.images, image.height, image.width, image.channels
    b.emit(integers_task(source, grid.view, image.panel, sizes, integers.parameters))
    return grid


def rows_of(b: Builder, name: str) -> Grid:
    """The integers of a value (..., K): one row of pixels of K."""

    def make(integers: Integers) -> Grid:
        stored, rows, stride = b.matrix(integers.source)
        return _filled(b, Image(1, 1, rows, stored.shape[-1]), View(word(stored.at), 0, 0, stride), integers)

    return _grid(b, name, "rows", make)


def as_picture(stored: Stored) -> Stored:
    """Pictures (B, C, H, W) as they are, lines (B, C, L) as pictures of one row."""
    if len(stored.shape) == 4:
        return stored
    images, channels, length = stored.shape
    b, c, n = stored.strides
    return Stored(stored.at, (images, channels, 1, length), (b, c, length * n, n), stored.dtype)


def pixels_of(b: Builder, name: str, pads: Pads) -> Grid:
    """The integers of pictures or lines, zeros around them."""

    def make(integers: Integers) -> Grid:
        stored = as_picture(b.value(integers.source))
        images, channels, height, width = stored.shape
        if stored.strides[1] != 4 and channels > 1:
            last = dense(stored.shape, channels_last=True)
            b.copy(stored, last)
            stored = last
        image, _, row, pixel = stored.strides
        return _filled(b, Image(images, height, width, channels, *pads), View(word(stored.at), image, row, pixel), integers)

    return _grid(b, name, f"picture {pads}", make)


def unfolded_of(b: Builder, name: str, pads: Pads, kw: int, stride: int) -> Grid:
    """The integers of pictures or lines of few channels: a pixel holds all that a row of the filter reads."""

    def make(integers: Integers) -> Grid:
        view, (images, channels, height, _), wide = overlapping(b, as_picture(b.value(integers.source)), pads, kw, stride)
        return _filled(b, Image(images, height, wide, kw * channels), view, integers)

    return _grid(b, name, f"unfolded {pads} {kw} {stride}", make)
