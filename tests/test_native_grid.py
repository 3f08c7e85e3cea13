"""What goes into products: floats rounded to a format, or split without rounding, as images and as right operands; dynamic scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from _images import around, empty, pixels, same_bits, view, widened
from _native import check_threads, floats, run

from fp8np.codec import decode_table
from fp8np.formats import FORMATS, get_format
from fp8np.kernels._ending import View
from fp8np.kernels._engine import ELEMENT, pack_values, packed_steps
from fp8np.kernels._grid import PARTS, Image, holds, matrix, round_words
from fp8np.kernels._jit import compiled
from fp8np.kernels._program import aligned
from fp8np.kernels.pack import pack_floats_task, packed_bytes
from fp8np.kernels.widen import place_task, quantize_planes_task, quantize_task, scale_tasks, split_task
from fp8np.scaling import dequantize, quantize, scale_for

BIASED = [get_format(name) for name in ("e4m3@0", "e4m3@50", "e5m2@30", "e3m4@62", "e3m4@0")]
HELD = [fmt for fmt in (*FORMATS.values(), *BIASED) if holds(fmt)]
ONE = np.ones(1, np.float32)

IMAGES = [
    Image(1, 1, 7, 5),
    Image(2, 3, 4, 33, 1, 2, 0, 3),
    Image(1, 2, 3, 70, 0, 0, 1, 0),
    Image(2, 1, 20, 64),
    Image(1, 2, 18, 600, 1, 1, 1, 1),
    Image(3, 2, 1, 1, 0, 1, 0, 0),
]
SMALL = [image for image in IMAGES if compiled() or image.channels < 100]


def every_exponent(fmt: Any) -> Any:
    """float32 of every exponent and both signs: values of the format, halfway between them, and a little beside; NaN and infinity."""
    bits = np.arange(1 << (fmt.mantissa_bits + 2), dtype=np.uint32) << (21 - fmt.mantissa_bits)
    low = np.array([0, 1, (1 << (21 - fmt.mantissa_bits)) - 1], np.uint32)
    exponents = np.arange(256, dtype=np.uint32)[:: 1 if compiled() else 17] << 23
    x = (exponents[:, None, None] | bits[:, None] | low).reshape(-1)
    return np.concatenate([x, x | np.uint32(1 << 31)]).view(np.float32)


def halfway(fmt: Any) -> Any:
    """float32 between each two neighbours of a format."""
    values = np.sort(decode_table(fmt)[: fmt.max_magnitude + 1])
    return (values[1:] + values[:-1]) / np.float32(2)


def on_grid(x: Any, fmt: Any, scale: Any = ONE) -> Any:
    """x (n,) after `quantize_task`."""
    image = matrix(1, len(x))
    raw = empty(image)
    run(quantize_task(View(x, 0, 0, 4 * len(x)), view(image, raw), image.panel, (1, 1, 1, len(x)), round_words(fmt, scale)))
    return pixels(image, raw).reshape(-1)[: len(x)]


def rounded(x: Any, fmt: Any, scale: Any = 1.0) -> Any:
    """What the codes of x mean, before the scale."""
    with np.errstate(all="ignore"):
        q = quantize(x, fmt, scale=scale)
    return dequantize(type(q)(q.codes, q.format))


@pytest.mark.parametrize("fmt", HELD, ids=str)
def test_rounding_to_a_format(fmt: Any) -> None:
    """Bit for bit what `quantize` gives, whose ties go to even, with the largest value beyond the range."""
    x = every_exponent(fmt)
    got, want = on_grid(x, fmt), rounded(x, fmt)
    if not fmt.has_negative_zero:
        # A format without a negative zero gives zero; in a product that is the same.
        got = got + np.float32(0)
    same_bits(got, want)


@pytest.mark.parametrize("scale", [0.75, 3e-5, 1e30, 2.0**-126, 7.1, 0.3, 0.01])
def test_rounding_with_a_scale(scale: float) -> None:
    """x / scale, rounded once to float32."""
    fmt, word = get_format("e4m3fn"), np.array([scale], np.float32)
    for x in (floats(5000 if compiled() else 300) * np.float32(scale * 50), halfway(fmt) * word):
        same_bits(on_grid(x, fmt, word), rounded(x, fmt, word[0]))


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", SMALL, ids=str)
def test_images_of_rounded_floats(image: Image) -> None:
    """Whole steps of channels are written, zeros after the last; nothing around the pixels. From channels last, and from planes."""
    fmt, scale = get_format("e5m2"), np.array([0.5], np.float32)
    shape = image.images, image.height, image.width, image.channels
    last = floats(*shape)
    planes = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    b, y, x = last.strides[:3]
    pb, plane, py, px = planes.strides
    words, target = round_words(fmt, scale), lambda raw: view(image, raw)
    tasks = [
        lambda raw: quantize_task(View(last, b, y, x), target(raw), image.panel, shape, words),
        lambda raw: quantize_planes_task(View(planes, pb, py, px), plane, target(raw), image.panel, shape, words),
    ]
    want = rounded(last, fmt, np.float32(0.5))
    for task in tasks:
        raw = empty(image)
        run(task(raw))
        got = pixels(image, raw)[0]
        same_bits(np.ascontiguousarray(got[..., : image.channels]), want)
        assert not got[..., image.channels :].view(np.uint32).any()
        assert (around(image, raw) == 0x55).all()
        check_threads(task(raw), raw)


@pytest.mark.parametrize("image", SMALL, ids=str)
def test_images_of_split_floats(image: Image) -> None:
    """The parts of a float32 sum to it exactly."""
    image = Image(**{**vars(image), "parts": PARTS})
    shape = image.images, image.height, image.width, image.channels
    x = floats(*shape) * np.ldexp(np.float32(1), np.random.default_rng(0).integers(-90, 90, shape)).astype(np.float32)
    raw = empty(image)
    task = split_task(View(x, *x.strides[:3]), view(image, raw), image.panel, image.part, shape)
    run(task)
    got = pixels(image, raw)
    np.testing.assert_array_equal(got.astype(np.float64).sum(0)[..., : image.channels], x)
    assert not got[..., image.channels :].any()
    assert (around(image, raw) == 0x55).all()
    check_threads(task, raw)


def test_what_is_not_finite_is_in_the_first_part() -> None:
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 1.0], np.float32)
    image = Image(1, 1, 1, len(x), parts=PARTS)
    raw = empty(image)
    run(split_task(View(x, 0, 0, 0), view(image, raw), image.panel, image.part, (1, 1, 1, len(x))))
    got = pixels(image, raw)[:, 0, 0, 0, : len(x)]
    np.testing.assert_array_equal(got[0], x)
    assert not got[1:, [0, 1, 4, 5, 6]].any()
    np.testing.assert_array_equal(got.sum(0), x)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pictures_of_few_channels_are_placed(channels: int) -> None:
    x = floats(2, channels, 4, 5)
    for source in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), x[:, :, ::2], x.transpose(0, 1, 3, 2)):
        b, c, h, w = source.shape
        out = np.full((b, h + 2, w + 3, c), 77, np.float32)
        inner = out[:, 1 : 1 + h, 2 : 2 + w]
        run(place_task(source, source.strides, View(inner, *inner.strides[:3]), source.shape))
        np.testing.assert_array_equal(inner, source.transpose(0, 2, 3, 1))
        inner[...] = 77
        assert (out == 77).all()


# -- right operands ---------------------------------------------------------------------------------------------------

RIGHT = [(32, 32), (1, 1), (33, 40), (70, 100), (64, 31), (100, 3)]


def packed(x: Any, rounding: Any, parts: int) -> Any:
    """f32 (K, N) -> what `pack_floats_task` makes of it: bytes of each part."""
    k, n = x.shape
    out = aligned(parts * packed_bytes(k, n))
    out[:] = 0x55
    task = pack_floats_task(x, x.strides, (k, n), out, rounding)
    check_threads(task, out[: parts * packed_bytes(k, n)])
    return out[: parts * packed_bytes(k, n)].reshape(parts, -1)


def slab_of(x: Any) -> Any:
    """`pack_values` of f32 (K, N), with K filled up."""
    k, n = x.shape
    full = np.zeros((n, packed_steps(k) * 32), np.float32)
    full[:, :k] = x.T
    parts = pack_values(full)
    return parts.reshape(len(parts), -1)


def values_of(part: Any) -> Any:
    return widened(part.view(np.uint16 if ELEMENT == 2 else np.float32))


@pytest.mark.parametrize(("k", "n"), RIGHT)
def test_floats_are_packed(k: int, n: int) -> None:
    """As `pack_values`, whose parts sum to each float exactly; from rows, columns and with gaps."""
    x = floats(k, n) * np.ldexp(np.float32(1), np.random.default_rng(0).integers(-90, 90, (k, n))).astype(np.float32)
    want = slab_of(x)
    assert len(want) == PARTS
    total = sum(values_of(part).astype(np.float64) for part in want)
    np.testing.assert_array_equal(np.sort(total[total != 0]), np.sort(x[x != 0], axis=None))
    for source in (x, np.asfortranarray(x), np.repeat(x, 3, 1)[:, ::3]):
        for got, part in zip(packed(source, None, PARTS), want, strict=True):
            same_bits(values_of(got), values_of(part))


def test_nan_and_infinity_are_packed() -> None:
    bits = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x3F800000], np.uint32)
    x = bits.view(np.float32).reshape(2, 4)
    first, *rest = (values_of(part) for part in packed(x, None, PARTS))
    same_bits(first, values_of(slab_of(x)[0]))
    assert np.isnan(first).sum() == 5
    assert all(not part[~np.isnan(part)].any() for part in rest)


@pytest.mark.parametrize(("k", "n"), RIGHT)
@pytest.mark.parametrize("scale", [0.5, 0.3, 0.01])
def test_rounded_floats_are_packed(k: int, n: int, scale: float) -> None:
    """The values that `quantize` gives, in the order of `pack_values`; also halfway between two values."""
    fmt, word = get_format("e4m3fn"), np.array([scale], np.float32)
    x = floats(k, n)
    x[::2] = np.resize(halfway(fmt), x[::2].shape) * word
    want = slab_of(rounded(x, fmt, word[0]))
    for source in (x, np.asfortranarray(x)):
        (got,) = packed(source, round_words(fmt, word), 1)
        np.testing.assert_array_equal(values_of(got), values_of(want[0]))


# -- scales -----------------------------------------------------------------------------------------------------------

TOP = np.float32(3.4028235e38)


@pytest.mark.parametrize(
    "x",
    [
        floats(5),
        floats(40_000 if compiled() else 400) * 1e-3,
        np.zeros(7, np.float32),
        np.array([np.nan, -3, np.inf, 2], np.float32),
        np.array([np.nan, np.inf, -np.inf], np.float32),
        np.array([1e-45, -2e-42], np.float32),
        np.array([1e-38, 0], np.float32),
        np.array([-TOP, 1], np.float32),
        np.concatenate([np.zeros(16), floats(1)]).astype(np.float32),
    ],
)
@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e3m4fn"])
def test_dynamic_scales(x: Any, name: str) -> None:
    """Bit for bit those of `scale_for`, whatever is not finite left out."""
    fmt = get_format(name)
    around_it = np.concatenate([x, np.full(17, 1e30, np.float32)])
    parts, scale = np.zeros(4, np.float32), np.zeros(1, np.float32)
    run(*scale_tasks(around_it, len(x), fmt.max, parts, scale))
    finite = np.abs(x[np.isfinite(x)])
    np.testing.assert_array_equal(scale[0], scale_for(finite.max(initial=0), fmt))
    assert scale[0] == quantize(x, fmt).scale
