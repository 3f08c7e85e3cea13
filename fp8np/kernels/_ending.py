"""How blocks of sums become results: scales, bias, residual, activation, rounding to the next format. And where pixels lie.

A block is 32 output pixels by 32 columns. Output pixels are counted along the padded picture ("raster"), so that neighbours in a
block are neighbours in memory across the ends of rows; what falls between rows is not stored::

    x x x x . .      width 6, valid 4: a block of 32 runs on through the dots
    x x x x . .      With a stride of two, blocks end with the row instead (width = valid): a row is a segment of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels import _words as W
from fp8np.kernels._engine import DEPTH, ELEMENT, STEP
from fp8np.kernels._functions import activate_block
from fp8np.kernels._grid import ROUND_WORDS, on_grid, rounding_of, store_widened
from fp8np.kernels._jit import native
from fp8np.kernels._native import float_at, word
from fp8np.kernels._program import Word, float_word
from fp8np.kernels._vector import floats, load, load_n, maximum, minimum, select, store, store_n

__all__ = ["Ending", "Left", "View", "finish", "geometry", "per_column", "pixel_blocks", "pixels", "share", "words"]


@dataclass(frozen=True)
class View:
    """Where the pixels of an image (B, H, W, N) lie: an address, and bytes from image to image, row to row, pixel to pixel."""

    address: Word
    image: int
    row: int
    pixel: int

    @property
    def words(self) -> tuple[Word, ...]:
        """As an entry reads it."""
        return self.address, self.image, self.row, self.pixel


_NOWHERE: tuple[Word, ...] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Left:
    """The left operand, and which of its pixels are read.

    Attributes:
        view: the tap (0, 0) of output pixel (0, 0) of the first image; distances between output pixels.
        images, height, width: of the output.
        raster: pixels from row to row of the output, in pixels of `view`, where blocks may run on across rows; 0 where not.
        scale: address of the float32 scale.
        row_scale: address of a float32 for each output pixel of an image, in place of `scale`; None where there is none.
        part: bytes from a part to the next, where a float32 is three parts; 0 where values are one.
    """

    view: View
    images: int
    height: int
    width: int
    raster: int
    scale: Word
    row_scale: Word | None = None
    part: int = 0


@dataclass(frozen=True)
class Ending:
    """What becomes of the sums: act(sum * scales + bias + residual), stored as float32, or on the grid of a format, or both.

    Attributes:
        scale: f32 (blocks * 32,), one for each column.
        bias: f32 (blocks * 32,), zeros where there is none.
        out: float32 (B, H, W, N) to be written; columns past N are not touched.
        grid: a widened image to be written, whole steps of channels.
        panel: bytes from a panel of it to the next.
        rounding: the words of `round_words`, for it.
        residual: float32 (B, H, W, N) added before the activation.
        kind, lo, hi: the activation, as `activate` takes it.
        one_nan: whether every NaN of `out` is 0x7FC00000.
    """

    scale: Word
    bias: npt.NDArray[np.float32]
    out: View | None = None
    grid: View | None = None
    panel: int = 0
    rounding: Sequence[Word] = ()
    residual: View | None = None
    kind: int = 0
    lo: float = -np.inf
    hi: float = np.inf
    one_nan: bool = False


def per_column(blocks: int, values: Any = ()) -> npt.NDArray[np.float32]:
    """A scale or bias as an ending takes it, f32 (blocks * 32,): the values of the first columns, zeros past them."""
    out = np.zeros(blocks * 32, np.float32)
    out[: len(values)] = values
    return out


def pixel_blocks(left: Left) -> int:
    """Blocks of 32 pixels of all images."""
    segments, count, _ = geometry(left)
    return left.images * segments * -(-count // 32)


def geometry(left: Left) -> tuple[int, int, int]:
    """Segments of an image, pixels of a segment, and from row to row."""
    if left.raster:
        return 1, (left.height - 1) * left.raster + left.width, left.raster
    return left.height, left.width, left.width


@native
def share(args: int, unit: int) -> Any:
    """What a unit does: blocks of columns, from and to, and blocks of pixels, from and to.

    A unit is CHUNK blocks of 32 pixels by GROUP blocks of 32 columns.
    """
    blocks, chunk, group = word(args, W.BLOCKS), word(args, W.CHUNK), word(args, W.GROUP)
    groups = (blocks + group - 1) // group
    first = (unit % groups) * group
    start = (unit // groups) * chunk
    total = word(args, W.IMAGES) * word(args, W.SEGMENTS) * ((word(args, W.COUNT) + 31) // 32)
    return first, min(first + group, blocks), start, min(start + chunk, total)


@native
def pixels(args: int, i: int) -> Any:
    """Block i of pixels: its image, the segment in it, its first pixel there, how many it has, and where they lie in a."""
    segments, count = word(args, W.SEGMENTS), word(args, W.COUNT)
    per_segment = (count + 31) // 32
    segment = i // per_segment
    p = (i - segment * per_segment) * 32
    image = segment // segments
    within = segment - image * segments
    a = word(args, W.A) + image * word(args, W.A + 1) + within * word(args, W.A + 2) + p * word(args, W.A + 3)
    return image, within, p, min(32, count - p), a


def words(
    left: Left,
    ending: Ending,
    columns: int,
    *,
    table: tuple[Word, ...],
    cut: tuple[int, int],
    widened: bool,
    depth: int,
    pairs: Any,
    panel: int | None = None,
    thin: bool = False,
) -> tuple[Word, ...]:
    """The words of a product, in the order of `fp8np.kernels._words`.

    table: offsets, steps, packed, tables, blocks; panel: of a, where columns are grouped.
    """
    segments, count, width = geometry(left)
    flags = (
        (ending.residual is not None) * W.HAS_RESIDUAL
        | (ending.out is not None) * W.HAS_OUT
        | (ending.grid is not None) * W.HAS_GRID
        | widened * W.WIDENED
        | ending.one_nan * W.ONE_NAN
        | (left.row_scale is not None) * W.HAS_ROW_SCALE
        | (panel is not None) * W.GROUPED
        | thin * W.THIN
    )
    return (
        *left.view.words,
        *table,
        columns,
        *cut,
        left.images,
        segments,
        count,
        width,
        left.width,
        left.scale,
        ending.scale,
        ending.bias,
        ending.kind,
        float_word(ending.lo),
        float_word(ending.hi),
        flags,
        depth,
        0 if left.row_scale is None else left.row_scale,
        pairs,
        len(pairs),
        *(ending.residual.words if ending.residual else _NOWHERE),
        *(ending.out.words if ending.out else _NOWHERE),
        *(ending.grid.words if ending.grid else _NOWHERE),
        ending.panel,
        panel or 0,
        *(ending.rounding if ending.grid else (0,) * ROUND_WORDS),
    )


@native
def _staged(args: int, c: int, image: int, y: int, x: int, rows: int, column: int) -> None:
    # Scales, bias and residual of the sums, in place; then the activation of all of them. An activation that is more than a clamp is
    # a call, around which every register would be saved if it stood in the loop that stores.
    left = word(args, W.N) - column
    width, valid, flags = word(args, W.WIDTH), word(args, W.VALID), word(args, W.FLAGS)
    a_scale = floats(float_at(word(args, W.A_SCALE)))
    w0, w1 = load(word(args, W.W_SCALE) + 4 * column), load(word(args, W.W_SCALE) + 4 * column + 64)
    b0, b1 = load(word(args, W.BIAS) + 4 * column), load(word(args, W.BIAS) + 4 * column + 64)
    residual = word(args, W.RESIDUAL) + image * word(args, W.RESIDUAL + 1) + 4 * column
    residual_row, residual_pixel = word(args, W.RESIDUAL + 2), word(args, W.RESIDUAL + 3)
    row_scale = word(args, W.ROW_SCALE)
    for r in range(rows):
        place = c + (r // 16) * 2048 + (r % 16) * 64
        own = a_scale
        if flags & W.HAS_ROW_SCALE:
            own = floats(float_at(row_scale + 4 * (y * valid + x)))
        v0 = load(place) * own * w0 + b0
        v1 = load(place + 1024) * own * w1 + b1
        if flags & W.HAS_RESIDUAL and x < valid:
            source = residual + y * residual_row + x * residual_pixel
            v0 = v0 + load_n(source, left)
            v1 = v1 + load_n(source + 64, left - 16)
        store(place, v0)
        store(place + 1024, v1)
        x += 1
        if x == width:
            x = 0
            y += 1
    lo, hi = float_at(args + 8 * W.LO), float_at(args + 8 * W.HI)
    activate_block(c, c, 512 if rows <= 16 else 1024, word(args, W.KIND), lo, hi)


@native
def finish(args: int, c: int, image: int, segment: int, p: int, rows: int, column: int) -> None:
    """The end of a block: `rows` pixels of a segment from raster position p on, columns column .. column + 31, sums at c."""
    # All words are read before the loop: the compiler cannot know that stores do not change them. (Announcing the lines of the results
    # before the products cost an eighth at 1024 cubed.)
    left = word(args, W.N) - column
    width, valid = word(args, W.WIDTH), word(args, W.VALID)
    flags, staged = word(args, W.FLAGS), word(args, W.KIND)
    y = p // width
    x = p - y * width
    y += segment
    if staged:
        _staged(args, c, image, y, x, rows, column)
    lo, hi = floats(float_at(args + 8 * W.LO)), floats(float_at(args + 8 * W.HI))
    a_scale = floats(float_at(word(args, W.A_SCALE)))
    w0, w1 = load(word(args, W.W_SCALE) + 4 * column), load(word(args, W.W_SCALE) + 4 * column + 64)
    b0, b1 = load(word(args, W.BIAS) + 4 * column), load(word(args, W.BIAS) + 4 * column + 64)
    residual = word(args, W.RESIDUAL) + image * word(args, W.RESIDUAL + 1) + 4 * column
    residual_row, residual_pixel = word(args, W.RESIDUAL + 2), word(args, W.RESIDUAL + 3)
    out = word(args, W.OUT) + image * word(args, W.OUT + 1) + 4 * column
    out_row, out_pixel = word(args, W.OUT + 2), word(args, W.OUT + 3)
    step = column // STEP
    grid = word(args, W.GRID) + image * word(args, W.GRID + 1) + step // DEPTH * word(args, W.PANEL) + step % DEPTH * STEP * ELEMENT
    grid_row, grid_pixel = word(args, W.GRID + 2), word(args, W.GRID + 3)
    row_scale = word(args, W.ROW_SCALE)
    has_residual, has_out, has_grid = flags & W.HAS_RESIDUAL, flags & W.HAS_OUT, flags & W.HAS_GRID
    one_nan, has_row_scale = flags & W.ONE_NAN, flags & W.HAS_ROW_SCALE
    inverse = floats(np.float32(1))
    if has_grid:
        inverse = floats(np.float32(1) / float_at(word(args, W.ROUND)))
    smallest, lift, bound, top = rounding_of(args + 8 * W.ROUND)
    nan = floats(np.float32(np.nan))
    for r in range(rows):
        if x < valid:
            source = c + (r // 16) * 2048 + (r % 16) * 64
            v0 = load(source)
            v1 = load(source + 1024)
            if not staged:
                own = a_scale
                if has_row_scale:
                    own = floats(float_at(row_scale + 4 * (y * valid + x)))
                v0 = v0 * own * w0 + b0
                v1 = v1 * own * w1 + b1
                if has_residual:
                    place = residual + y * residual_row + x * residual_pixel
                    if left >= 32:
                        v0 = v0 + load(place)
                        v1 = v1 + load(place + 64)
                    else:
                        v0 = v0 + load_n(place, left)
                        v1 = v1 + load_n(place + 64, left - 16)
                v0 = minimum(hi, maximum(lo, v0))
                v1 = minimum(hi, maximum(lo, v1))
            if has_out:
                place = out + y * out_row + x * out_pixel
                if one_nan:
                    v0 = select(v0 == v0, v0, nan)
                    v1 = select(v1 == v1, v1, nan)
                if left >= 32:
                    store(place, v0)
                    store(place + 64, v1)
                else:
                    store_n(place, v0, left)
                    store_n(place + 64, v1, left - 16)
            if has_grid:
                place = grid + y * grid_row + x * grid_pixel
                v0 = on_grid(v0 * inverse, smallest, lift, bound, top)
                v1 = on_grid(v1 * inverse, smallest, lift, bound, top)
                store_widened(place, v0)
                store_widened(place + 16 * ELEMENT, v1)
        x += 1
        if x == width:
            x = 0
            y += 1
