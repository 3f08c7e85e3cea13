"""Widened activations: values of an FP8 format, held in the type that this CPU's engine multiplies, channels last.

Between two products of a plan an activation is rounded to its format and never put into codes, since the next product would
widen them again. What it holds is what decoding would give: a bfloat16 or float32 holds every FP8 value.

An image's pixels lie in rows with the zeros of its padding around them, so that a convolution reads the taps of its filter at
fixed distances::

    0 0 0 0 0 0       pitch: bytes from pixel to pixel, whole steps of channels, the last filled up with zeros
    0 p p p p 0       row, image: bytes from row to row and image to image
    0 p p p p 0
    0 0 0 0 0 0       A matrix (M, K) is one image of one row: M pixels of K channels.

Many channels are cut into panels, each all of the picture for as many channels as a slab is deep. Otherwise every row of a block
would lie on a page of its own, and finding the pages takes as long as the product (2048 cubed: 1.3 to 1.6 times slower).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8np.formats import FloatFormat
from fp8np.kernels._engine import DEPTH, ELEMENT, STEP
from fp8np.kernels._jit import native
from fp8np.kernels._native import float_at, word
from fp8np.kernels._program import float_word, rounded_up
from fp8np.kernels._vector import as_float, as_int, floats, ints, maximum, minimum, select, select_int, store
from fp8np.kernels._x86 import store_brain

__all__ = [
    "PARTS",
    "ROUND_WORDS",
    "Image",
    "holds",
    "matrix",
    "on_grid",
    "on_integers",
    "round_words",
    "rounding_of",
    "store_widened",
    "takes",
]


@dataclass(frozen=True)
class Image:
    """Where the elements of a widened activation (B, H, W, C) lie.

    Attributes:
        images, height, width, channels: B, H, W, C.
        top, left, bottom, right: rows and columns of zeros around each image.
        parts: 3 where each float32 is held as the sum of three bfloat16, else 1.
    """

    images: int
    height: int
    width: int
    channels: int
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    parts: int = 1

    @property
    def steps(self) -> int:
        """Steps of 32 channels."""
        return max(1, -(-self.channels // STEP))

    @property
    def panels(self) -> int:
        """Into how many panels the channels are cut."""
        return -(-self.steps // DEPTH)

    @property
    def pitch(self) -> int:
        """Bytes from a pixel to the next."""
        size = min(self.steps, DEPTH) * STEP * ELEMENT
        # Rows of a block whose distance is a multiple of 512 bytes share few sets of the first-level cache.
        return size + 64 if size % 512 == 0 else size

    @property
    def row(self) -> int:
        """Bytes from a row to the next."""
        return (self.left + self.width + self.right) * self.pitch

    @property
    def image(self) -> int:
        """Bytes from an image to the next."""
        return (self.top + self.height + self.bottom) * self.row

    @property
    def origin(self) -> int:
        """Bytes before the first pixel."""
        return self.top * self.row + self.left * self.pitch

    @property
    def panel(self) -> int:
        """Bytes from a panel to the next; a block reads up to 32 pixels beyond the last."""
        return rounded_up(self.images * self.image + 32 * self.pitch)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.parts * self.part

    @property
    def part(self) -> int:
        """Bytes from a part to the next."""
        return self.panels * self.panel

    def offset(self, step: int) -> int:
        """Bytes from a pixel to its channels of a step."""
        return step // DEPTH * self.panel + step % DEPTH * STEP * ELEMENT

    @property
    def padded(self) -> bool:
        """Whether zeros surround it."""
        return any((self.top, self.left, self.bottom, self.right))


PARTS = 3 if ELEMENT == 2 else 1
"""How many values of the engine hold a float32: 24 bits are three times the 8 of a bfloat16."""


def matrix(rows: int, k: int, parts: int = 1) -> Image:
    """The layout of a matrix (M, K)."""
    return Image(1, 1, rows, k, parts=parts)


def holds(fmt: FloatFormat) -> bool:
    """Whether values of a format are multiplied as they are: 8 bits with a sign, and magnitudes such that neither they nor their products
    leave the normal numbers of bfloat16 and float32, whose smaller ones matrix units take for zero.
    """
    return fmt.signed and fmt.bits == 8 and 1 <= fmt.mantissa_bits <= 7 and fmt.quantum_exponent >= -63 and fmt.max < 2.0**63


def takes(*formats: FloatFormat) -> bool:
    """Whether codes of these formats are widened: those of values that it holds, one of which is a negative zero."""
    return all(holds(f) and f.has_negative_zero for f in formats)


# -- rounding to a format ---------------------------------------------------------------------------------------------
#
# As in `fp8np.kernels.codec`: adding G = 2^(E + 23 - m), E the exponent of |x| or that of the smallest normal value, leaves m
# fraction bits, rounded to nearest even; subtracting it again gives the rounded value. Its words:

ROUND_WORDS = 5
"""Words of a rounding: address of the scale, smallest normal (bits), lift (23 - m) << 23, a bound on |x|, the largest value."""


def round_words(fmt: FloatFormat, scale: Any) -> tuple[Any, ...]:
    """The words of rounding to a format, saturating; scale: a word, the address of its float32 scale."""
    smallest = (fmt.min_exponent + 127) << 23
    bound = float(np.ldexp(1.0, fmt.max_exponent + 1))
    return (scale, smallest, (23 - fmt.mantissa_bits) << 23, float_word(bound), float_word(fmt.max))


@native
def rounding_of(words: int) -> Any:
    """The words of a rounding as `on_grid` takes them: vectors, to be kept in registers."""
    return ints(word(words, 1)), ints(word(words, 2)), floats(float_at(words + 24)), floats(float_at(words + 32))


@native
def on_grid(v: Any, smallest: Any, lift: Any, bound: Any, top: Any) -> Any:
    """float32 vector, already divided by the scale -> the nearest values of the format; beyond the largest: the largest. NaN stays."""
    bits = as_int(v)
    a = minimum(bound, as_float(bits & ints(0x7FFFFFFF)))
    e = as_int(a)
    e = select_int(e > smallest, e, smallest)
    g = as_float((e & ints(0x7F800000)) + lift)
    r = minimum(top, (a + g) - g)
    return as_float(as_int(r) | (bits & ints(0x80000000)))


@native
def on_integers(v: Any, lo: Any, hi: Any) -> Any:
    """float32 vector, already divided by the scale -> the nearest integers, ties to even, within lo .. hi; NaN becomes 0.

    lo, hi: vectors of integers below 2^22 in magnitude.
    """
    v = minimum(hi, maximum(lo, select(v == v, v, floats(np.float32(0)))))
    # The sum has no bits after the point.
    point = floats(np.float32(1.5 * 2**23))
    return (v + point) - point


if ELEMENT == 2:

    @native
    def store_widened(address: int, v: Any) -> None:
        """Sixteen values on a grid, as the engine multiplies them."""
        store_brain(address, v)

else:

    @native
    def store_widened(address: int, v: Any) -> None:
        """Sixteen values on a grid, as the engine multiplies them."""
        store(address, v)
