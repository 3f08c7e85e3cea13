"""Widened images, read back: what the tests of products and of what goes into them share."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._ending import View
from fp8np.kernels._engine import ELEMENT
from fp8np.kernels._grid import Image
from fp8np.kernels._program import aligned


def same_bits(got: Any, want: Any) -> None:
    """Equal bits; one NaN is as good as another."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.where(np.isnan(got), 0, got.view(np.uint32)), np.where(np.isnan(want), 0, want.view(np.uint32)))


def brain(x: Any) -> Any:
    """float32 that bfloat16 holds -> uint16."""
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widened(x: Any) -> Any:
    """bfloat16 as uint16, or float32 -> float32."""
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def empty(image: Image) -> Any:
    """Memory for an image: bytes that mean small numbers."""
    raw = aligned(image.size)
    raw[:] = 0x55
    return raw


def view(image: Image, raw: Any) -> View:
    """Its pixels, for a task that writes them."""
    return View(raw[image.origin :], image.image, image.row, image.pitch)


def pixels(image: Image, raw: Any) -> Any:
    """What an image holds: float32 (parts, B, H, W, whole steps of C)."""
    kind = np.uint16 if ELEMENT == 2 else np.float32
    shape = image.parts, image.images, image.height, image.width, 32
    strides = image.part, image.image, image.row, image.pitch, ELEMENT
    steps = [np.ndarray(shape, kind, raw, image.origin + image.offset(s), strides) for s in range(image.steps)]
    return widened(np.concatenate(steps, -1))


def around(image: Image, raw: Any) -> Any:
    """All bytes of an image that no pixel lies in."""
    left = raw.copy()
    shape = image.parts, image.images, image.height, image.width, 32 * ELEMENT
    for s in range(image.steps):
        strides = image.part, image.image, image.row, image.pitch, 1
        np.ndarray(shape, np.uint8, left, image.origin + image.offset(s), strides)[...] = 0x55
    return left
