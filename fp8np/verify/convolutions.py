"""Convolutions against exact sums: each output is the exact sum of the products under its window, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp8np.accumulators import ACCUMULATORS
from fp8np.formats import FORMATS, FloatFormat
from fp8np.policy import PRESETS
from fp8np.reference_sum import dot
from fp8np.verify._judge import Failure, attempt, compare, number_text, tell_floats
from fp8np.verify._result import Difference, Row
from fp8np.verify.cases import drawn
from fp8np.verify.implementation import Checked, Codes

__all__ = ["against_exact"]


@dataclass(frozen=True)
class _Geometry:
    """A convolution: x (B, C, H, W) and w (O, C / groups, kh, kw)."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def windows(self) -> Iterator[tuple[tuple[int, int, int, int], tuple[slice, slice, slice]]]:
        """(index of an output, its window in a padded picture: channels, rows, columns)."""
        kh, kw = self.w[2:]
        spans = [(k - 1) * d + 1 for k, d in zip((kh, kw), self.dilation, strict=True)]
        sizes = [n + sum(p) - s for n, p, s in zip(self.x[2:], self.padding, spans, strict=True)]
        per_group, channels = self.w[0] // self.groups, self.w[1]
        for b, o in np.ndindex(self.x[0], self.w[0]):
            first = o // per_group * channels
            for i, y in enumerate(range(0, sizes[0] + 1, self.stride[0])):
                for j, x in enumerate(range(0, sizes[1] + 1, self.stride[1])):
                    rows = slice(y, y + spans[0], self.dilation[0])
                    columns = slice(x, x + spans[1], self.dilation[1])
                    yield (b, o, i, j), (slice(first, first + channels), rows, columns)


GEOMETRIES = (
    _Geometry((2, 3, 4, 5), (2, 3, 3, 3), padding=((1, 1), (1, 1))),
    _Geometry((1, 4, 6, 5), (4, 2, 2, 3), stride=(2, 1), padding=((0, 1), (2, 0)), groups=2),
    _Geometry((1, 2, 6, 6), (3, 2, 2, 2), dilation=(2, 3)),
    _Geometry((1, 4, 3, 3), (4, 1, 3, 3), padding=((1, 1), (1, 1)), groups=4),
    _Geometry((1, 16, 2, 3), (3, 16, 1, 1)),
)
"""Padding on all and on single sides, strides, dilation, groups, one filter for each channel, and single points."""


def against_exact(implementation: Checked, fmts: tuple[FloatFormat, ...]) -> Iterator[Row]:
    """Convolutions of formats with themselves, and of the pair that hardware mixes."""
    hardware = [FORMATS[name] for name in PRESETS["ocp_sat"]]
    pairs = [(f, f) for f in FORMATS.values() if f.signed and f.has_negative_zero] + [(hardware[0], hardware[1])]
    for x_format, w_format in pairs:
        if x_format in fmts and w_format in fmts:
            row = Row("conv", "the law", f"{x_format} x {w_format}", "conv2d, exact")
            rng = np.random.default_rng([x_format.mantissa_bits, w_format.bias])
            for geometry in GEOMETRIES:
                row = _grown(row, implementation, geometry, rng, x_format, w_format)
            yield row


def _grown(
    row: Row, implementation: Checked, geometry: _Geometry, rng: np.random.Generator, x_format: FloatFormat, w_format: FloatFormat
) -> Row:
    x, w = drawn(rng, x_format, geometry.x, "wide"), drawn(rng, w_format, geometry.w, "narrow")
    expected = _law(geometry, x, x_format, w, w_format)
    got = attempt(
        lambda: implementation.conv2d(
            x,
            x_format.name,
            w,
            w_format.name,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            groups=geometry.groups,
        )
    )

    def show(i: int) -> Difference:
        place = tuple(int(k) for k in np.unravel_index(i, expected.shape))
        return Difference(f"{geometry}, output {place}", number_text(expected[place]), number_text(got[place]))  # type: ignore[index]

    if isinstance(got, Failure):
        return compare(row, expected.reshape(-1), got, show)
    same = tell_floats(expected, got, any_nan=True)
    return compare(row, expected.reshape(-1), got.reshape(-1), show, same=same.reshape(-1))


def _law(geometry: _Geometry, x: Codes, x_format: FloatFormat, w: Codes, w_format: FloatFormat) -> npt.NDArray[np.float32]:
    padded = np.pad(x, ((0, 0), (0, 0), *geometry.padding))  # code 0 is zero
    windows = list(geometry.windows())
    bits = [
        dot(ACCUMULATORS["exact"], padded[index[0]][window].reshape(-1).tolist(), x_format, w[index[1]].reshape(-1).tolist(), w_format)
        for index, window in windows
    ]
    shape = tuple(1 + max(index[axis] for index, _ in windows) for axis in range(4))
    return np.array(bits, np.uint32).view(np.float32).reshape(shape)
