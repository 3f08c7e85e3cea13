"""`QTensor`: 8-bit codes with the scales and the format that give them meaning. No arithmetic lives here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import starmap
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.errors import DTypeError, FormatError, ScaleError, ShapeError
from fp8np.formats import FloatFormat, get_format

__all__ = ["Codes", "Floats", "QTensor", "block_of", "blocks_of", "code_values", "float32_scale"]

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_EDGE = 3
"""Indices shown at either end of a long axis, as NumPy does."""
_THRESHOLD = 1000
"""Elements from which on only the edges are shown, as NumPy does."""


class QTensor:
    """FP8 codes, scales and a format: ``value ≈ decode(codes) * scale``.

    Args:
        codes: uint8, any shape; kept as given, without a copy. An ml_dtypes array of `fmt` is viewed as its codes.
        fmt: the format of the codes. May be left out for an ml_dtypes array, which names its own.
        scale: finite and positive; a number, or an array with as many axes as `codes`, each of length 1 or of the length
            of that axis of `codes` (per channel along axis 0 of a matrix: shape (N, 1)). With `block`, one number for each block:
            each axis of length n has ``ceil(n / block length)`` of them. Kept as float32.
        block: None, or the lengths of a block along each axis. 1 gives each index a scale of its own, 0 stands for the whole axis;
            missing leading axes count as 1. The last block of an axis may be shorter.
        scale_format: None for float32 scales, or the format that the scales are of, such as the E8M0 of MX. The scale may
            then be given as uint8 codes, or as an ml_dtypes array, which names its own format. A NaN scale is allowed where
            the format has one: all values of the block are NaN.

    Raises:
        DTypeError: codes are not 8-bit. FormatError: a format is unknown or contradicts the codes' own, or a code has bits above
        the format's width. ShapeError: the scale's or the block's shape does not fit. ScaleError: a scale is not finite and
        positive, or not a value of its format.

    >>> q = QTensor(np.array([[0x38, 0xB8]], np.uint8), "e4m3fn", scale=0.5)
    >>> q
    QTensor([[ 0.5, -0.5]], float8_e4m3fn, shape=(1, 2), scale=0.5)
    >>> q.T.shape
    (2, 1)
    >>> QTensor(np.zeros((4, 64), np.uint8), "e2m1fn", np.full((4, 2), 130, np.uint8), block=(1, 32), scale_format="e8m0fnu").scale[0]
    array([8., 8.], dtype=float32)
    """

    __slots__ = ("_block", "_codes", "_format", "_scale", "_scale_format")

    def __init__(
        self, codes: Any, fmt: Any = None, scale: Any = 1.0, *, block: Sequence[int] | None = None, scale_format: Any = None
    ) -> None:
        array = np.asarray(codes)
        own = _format_of_dtype(array.dtype)
        if fmt is None and own is None:
            raise FormatError("QTensor: the format is needed, e.g. QTensor(codes, 'e4m3fn')")
        self._format: FloatFormat = cast(FloatFormat, own) if fmt is None else get_format(fmt)
        if own is not None:
            if own != self._format:
                raise FormatError(f"QTensor: the codes are {own}, but the format given is {self._format}")
            array = array.view(np.uint8)
        if array.dtype != np.uint8:
            raise DTypeError(f"QTensor: expected uint8 codes or an ml_dtypes array, got {array.dtype}; use quantize() for values")
        bits = self._format.bits
        if bits < 8 and array.size and array.max() >> bits:
            raise FormatError(
                f"QTensor: {self._format} has codes of {bits} bits, one in each byte, got 0x{array.max():02X}; unpack them first"
            )
        self._codes: Codes = array
        self._block: tuple[int, ...] | None = None if block is None else block_of("QTensor", block, array.shape)
        self._scale_format: FloatFormat | None = None if scale_format is None else get_format(scale_format)
        self._scale: Floats = self._checked_scale(scale)

    def _checked_scale(self, scale: Any) -> Floats:
        try:
            array = np.asarray(scale)
        except ValueError:  # a ragged list
            array = np.asarray(None)
        own = _format_of_dtype(array.dtype)
        if own is not None:
            if self._scale_format not in (None, own):
                raise FormatError(f"QTensor: the scales are {own}, but the scale format given is {self._scale_format}")
            self._scale_format, array = own, array.view(np.uint8)
        if self._scale_format is not None and array.dtype == np.uint8:
            array = code_values(self._scale_format)[array].astype(np.float32)
            scale = array
        values = float32_scale("QTensor", scale, self._scale_format)
        if self._block is not None:
            wanted = blocks_of(self.shape, self._block)
            if values.shape != wanted:
                raise ShapeError(
                    f"QTensor: expected a scale of shape {wanted}, one for each block of {self._block} in codes {self.shape}; "
                    f"got {values.shape}"
                )
        elif values.ndim not in (0, self.ndim) or any(s not in (1, n) for s, n in zip(values.shape, self.shape, strict=False)):
            raise ShapeError(
                f"QTensor: expected a scale of shape () or with {self.ndim} axes, each of length 1 or that of codes {self.shape}; "
                f"got {values.shape}. A scale for each block of codes takes block="
            )
        return values

    def _like(self, codes: Codes, scale: Floats, block: tuple[int, ...] | None) -> QTensor:
        # The same codes and scales seen otherwise: nothing to check again.
        view = QTensor.__new__(QTensor)
        view._codes, view._format, view._scale = codes, self._format, scale
        view._block, view._scale_format = block, self._scale_format
        return view

    @property
    def codes(self) -> Codes:
        """uint8 codes, as given."""
        return self._codes

    @property
    def scale(self) -> Floats:
        """float32, of shape (), or with as many axes as the codes; multiplies on the way out."""
        return self._scale

    @property
    def format(self) -> FloatFormat:
        """The format of the codes."""
        return self._format

    @property
    def block(self) -> tuple[int, ...] | None:
        """None, or the length of a block along each axis; one scale for each block."""
        return self._block

    @property
    def scale_format(self) -> FloatFormat | None:
        """The format that every scale is a value of, or None: any float32."""
        return self._scale_format

    @property
    def scale_codes(self) -> Codes:
        """The scales as uint8 codes of `scale_format`, of the scale's shape.

        Raises:
            ScaleError: the scales are float32, without a format.
        """
        if self._scale_format is None:
            raise ScaleError("QTensor: the scales are float32 and have no codes; use .scale")
        return _codes_of(self._scale, self._scale_format)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the codes."""
        return self._codes.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._codes.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._codes.size

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together."""
        return self._codes.nbytes + self._scale.size * (4 if self._scale_format is None else 1)

    @property
    def T(self) -> QTensor:  # noqa: N802 - NumPy's name
        """The transposed tensor, a view."""
        return self.transpose()

    def transpose(self, *axes: int) -> QTensor:
        """Axes in another order (reversed by default), a view.

        Raises:
            ShapeError: axes are not the tensor's, each once.
        """
        order = axes or tuple(range(self.ndim))[::-1]
        try:
            codes = self._codes.transpose(order)
        except (TypeError, ValueError):
            raise ShapeError(f"QTensor: expected the axes of shape {self.shape}, each once, got {order}") from None
        scale = self._scale.transpose(order) if self._scale.ndim else self._scale
        return self._like(codes, scale, None if self._block is None else tuple(self._block[i] for i in order))

    def expand_dims(self, axis: int) -> QTensor:
        """With one more axis, of length 1, at `axis` of the result, a view.

        Raises:
            ShapeError: the result has no such axis.
        """
        if not isinstance(axis, int | np.integer) or not -self.ndim - 1 <= axis <= self.ndim:
            raise ShapeError(f"QTensor: expected an axis from {-self.ndim - 1} to {self.ndim}, got {axis!r}")
        place = int(axis) % (self.ndim + 1)
        scale = self._scale if self._scale.ndim == 0 and self._block is None else np.expand_dims(self._scale, place)
        block = None if self._block is None else (*self._block[:place], 1, *self._block[place:])
        return self._like(np.expand_dims(self._codes, place), scale, block)

    def view_ml_dtypes(self) -> npt.NDArray[Any]:
        """The codes as an ml_dtypes array, without a copy; the scale is not applied.

        Raises:
            FormatError: ml_dtypes is not installed or has no such format.
        """
        try:
            import ml_dtypes

            dtype = getattr(ml_dtypes, self._format.name)
        except (ImportError, AttributeError):
            raise FormatError(f"ml_dtypes has no {self._format} here; use .codes") from None
        return self._codes.view(dtype)

    def __len__(self) -> int:
        return len(self._codes)

    def __repr__(self) -> str:
        facts = [str(self._format), f"shape={self.shape}", f"scale={self._scale_facts()}"]
        if self._block is not None:
            facts.append(f"block={self._block}")
        shown = self._shown()
        gap = "\n        " if "\n" in shown else " "
        return f"QTensor({shown},{gap}{', '.join(facts)})"

    def _shown(self) -> str:
        # Values of the edges only: a large tensor costs no more than a small one.
        threshold = _THRESHOLD
        index = [np.arange(n) for n in self.shape]
        if self.size > threshold:
            # One index more than is shown, for NumPy to see that something is left out.
            index = [np.r_[: _EDGE + 1, n - _EDGE : n] if n > 2 * _EDGE else np.arange(n) for n in self.shape]
            threshold = 0
        corner = np.ix_(*index)
        scale = self._scale
        if scale.ndim:
            block = self._block or tuple(1 if s > 1 else n for s, n in zip(scale.shape, self.shape, strict=True))
            scale = scale[np.ix_(*(i // b if b else i for i, b in zip(index, block, strict=True)))]
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values = (code_values(self._format)[self._codes[corner]] * scale).astype(np.float32)
        return np.array2string(values, threshold=threshold, edgeitems=_EDGE, separator=", ", prefix="QTensor(", max_line_width=100)

    def _scale_facts(self) -> str:
        kind = "float32" if self._scale_format is None else str(self._scale_format)
        if self._scale.ndim == 0:
            return f"{float(self._scale):.9g}" + ("" if self._scale_format is None else f" ({kind})")
        facts = f"{kind}{list(self._scale.shape)}"
        numbers = self._scale[~np.isnan(self._scale)]
        if not numbers.size:
            return facts
        low, high = float(numbers.min()), float(numbers.max())
        return f"{facts} {low:.4g}" + (f"..{high:.4g}" if low < high else "")


def block_of(what: str, block: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths of a block along every axis of `shape`: leading axes that `block` lacks get 1, an axis with 0 its own length.

    Raises:
        ShapeError: block is not a sequence of whole numbers, or has more axes than shape.

    >>> block_of("doctest", (0, 32), (8, 16, 100))
    (1, 16, 32)
    """
    lengths = tuple(block) if isinstance(block, Sequence) and not isinstance(block, str) else None
    good = lengths is not None and all(isinstance(b, int | np.integer) and not isinstance(b, bool) and b >= 0 for b in lengths)
    if lengths is None or not good or len(lengths) > len(shape):
        raise ShapeError(
            f"{what}: expected block to be at most {len(shape)} whole numbers, the lengths along axes of {shape}; got {block!r}"
        )
    lengths = (1,) * (len(shape) - len(lengths)) + lengths
    return tuple(int(b) or max(n, 1) for b, n in zip(lengths, shape, strict=True))


def blocks_of(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """The number of blocks along each axis.

    >>> blocks_of((8, 100), (1, 32))
    (8, 4)
    """
    return tuple(starmap(lambda n, b: -(-n // b), zip(shape, block, strict=True)))


def _format_of_dtype(dtype: np.dtype[Any]) -> FloatFormat | None:
    # ml_dtypes registers its types as user-defined ("V" kind, or "f" for some) one-byte dtypes under their own name.
    if dtype == np.uint8 or dtype.itemsize != 1 or not dtype.name.startswith("float"):
        return None
    return get_format(dtype.name)


def float32_scale(what: str, scale: Any, fmt: FloatFormat | None = None) -> Floats:
    """A number or an array as float32.

    Raises:
        ScaleError: it is not of numbers, or one of them is not finite and positive as float32, or not a value of `fmt`, NaN
            included, if that is given.
    """
    try:
        array = np.asarray(scale)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values = None if array.dtype.kind in "OSUcmM" else np.asarray(array, np.float32)
    except (TypeError, ValueError):
        values = None
    nan = np.False_ if values is None or fmt is None or not fmt.nan_codes else np.isnan(values)
    if values is None or not (np.isfinite(values) & (values > 0) | nan).all():
        raise ScaleError(f"{what}: expected a scale of finite, positive numbers (as float32), got {scale!r:.80}")
    if fmt is not None:
        _codes_of(values, fmt, what)
    return values


@lru_cache(maxsize=64)
def code_values(fmt: FloatFormat) -> npt.NDArray[np.float64]:
    """float64 (256,): the values of all codes; NaN for bytes beyond a narrow format."""
    count = 1 << fmt.bits
    values = np.array([float(reference.decode(fmt, code)) for code in range(count)] + [np.nan] * (256 - count))
    values.setflags(write=False)
    return values


def _codes_of(scales: Floats, fmt: FloatFormat, what: str = "QTensor") -> Codes:
    """The codes of positive scales, each of which must be a value of the format, or NaN."""
    values, by_bits = code_values(fmt), _by_bits(fmt)
    found = by_bits[scales.view(np.uint32) >> 16]
    nan = np.isnan(scales)
    wrong = (values[found] != scales) & ~nan
    if wrong.any():
        raise ScaleError(f"{what}: {float(scales[wrong].flat[0])!r} is not a value of the scale format {fmt}; round scales to it first")
    return np.where(nan, np.uint8(max(fmt.nan_codes)), found) if nan.any() else np.asarray(found)


@lru_cache(maxsize=64)
def _by_bits(fmt: FloatFormat) -> Codes:
    """u8 (65536,): the code of the positive value whose float32 has these upper 16 bits; its other bits are all 0."""
    values = code_values(fmt)
    codes = np.flatnonzero((values > 0) & np.isfinite(values)).astype(np.uint8)
    table = np.zeros(1 << 16, np.uint8)
    table[values[codes].astype(np.float32).view(np.uint32) >> 16] = codes
    table.setflags(write=False)
    return table
