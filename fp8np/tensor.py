"""`QTensor`: 8-bit codes with the scale and the format that give them meaning. No arithmetic lives here."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fp8np.errors import DTypeError, FormatError, ScaleError, ShapeError
from fp8np.formats import FloatFormat, get_format

__all__ = ["Codes", "Floats", "QTensor", "float32_scale"]

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class QTensor:
    """FP8 codes, a scale and a format: ``value ≈ decode(codes) * scale``.

    Args:
        codes: uint8, any shape; kept as given, without a copy. An ml_dtypes array of `fmt` is viewed as its codes.
        fmt: the format of the codes. May be left out for an ml_dtypes array, which names its own.
        scale: finite and positive; a number, or an array with as many axes as `codes`, each of length 1 or of the length
            of that axis of `codes` (per channel along axis 0 of a matrix: shape (N, 1)). Kept as float32.

    Raises:
        DTypeError: codes are not 8-bit. FormatError: the format is unknown or contradicts the codes' own.
        ShapeError: the scale's shape does not fit. ScaleError: a scale is not finite and positive.

    >>> q = QTensor(np.array([[0x38, 0xB8]], np.uint8), "e4m3fn", scale=0.5)
    >>> q.shape, q.format.name, float(q.scale)
    ((1, 2), 'float8_e4m3fn', 0.5)
    >>> q.T.shape
    (2, 1)
    """

    __slots__ = ("_codes", "_format", "_scale")

    def __init__(self, codes: Any, fmt: Any = None, scale: Any = 1.0) -> None:
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
        self._codes: Codes = array
        self._scale: Floats = _checked_scale(scale, array.shape)

    @property
    def codes(self) -> Codes:
        """uint8 codes, as given."""
        return self._codes

    @property
    def scale(self) -> Floats:
        """float32, of shape () or with as many axes as the codes; multiplies on the way out."""
        return self._scale

    @property
    def format(self) -> FloatFormat:
        """The format of the codes."""
        return self._format

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
        return self._codes.nbytes + self._scale.nbytes

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
        return QTensor(codes, self._format, scale)

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
        scale = f"{float(self._scale):.9g}" if self._scale.ndim == 0 else f"float32{list(self._scale.shape)}"
        return f"QTensor({self._format}, shape={self.shape}, scale={scale})"


def _format_of_dtype(dtype: np.dtype[Any]) -> FloatFormat | None:
    # ml_dtypes registers its types as user-defined ("V" kind, or "f" for some) one-byte dtypes under their own name.
    if dtype == np.uint8 or dtype.itemsize != 1 or not dtype.name.startswith("float"):
        return None
    return get_format(dtype.name)


def float32_scale(what: str, scale: Any) -> Floats:
    """A number or an array as float32.

    Raises:
        ScaleError: it is not of numbers, or one of them is not finite and positive as float32.
    """
    try:
        array = np.asarray(scale)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values = None if array.dtype.kind in "OSUcmM" else np.asarray(array, np.float32)
    except (TypeError, ValueError):
        values = None
    if values is None or not (np.isfinite(values).all() and (values > 0).all()):
        raise ScaleError(f"{what}: expected a scale of finite, positive numbers (as float32), got {scale!r:.80}")
    return values


def _checked_scale(scale: Any, shape: tuple[int, ...]) -> Floats:
    array = float32_scale("QTensor", scale)
    if array.ndim not in (0, len(shape)) or any(s not in (1, n) for s, n in zip(array.shape, shape, strict=False)):
        raise ShapeError(
            f"QTensor: expected a scale of shape () or with {len(shape)} axes, each of length 1 or that of codes {shape}; got {array.shape}"
        )
    return array
