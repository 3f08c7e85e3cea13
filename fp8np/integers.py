"""INT8 as the paper compares FP8 with: weights symmetric, a scale for each channel; activations with a zero point, one scale.

    weight      w ≈ code * scale                 code int8,  -127 .. 127
    activation  x ≈ (code - zero point) * scale  code uint8, 0 .. 255

Zero is exact in both, so the zeros that pad a picture cost nothing. Source: arXiv 2309.14592, section 4.1 (per-channel symmetric
weights, per-tensor asymmetric activations); the arithmetic is that of ONNX's QuantizeLinear, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.errors import DTypeError, ScaleError

__all__ = ["INT8", "IntegerFormat", "activation_parameters", "encode_activation", "measured_parameters", "quantize_weight"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

_SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)


@dataclass(frozen=True)
class IntegerFormat:
    """Integers of a width as a format of a `fp8np.scheme.Scheme`.

    Attributes:
        name: canonical name.
        bits: the width of a code.

    >>> str(INT8), INT8.weight_max, INT8.activation_max
    ('int8', 127, 255)
    """

    name: str
    bits: int

    def __str__(self) -> str:
        return self.name

    @property
    def short(self) -> str:
        """The name where it stands beside those of FP8 formats."""
        return self.name

    @property
    def weight_max(self) -> int:
        """Codes of weights are -weight_max .. weight_max: symmetric, the lowest integer is left out."""
        return (1 << self.bits - 1) - 1

    @property
    def activation_max(self) -> int:
        """Codes of activations are 0 .. activation_max."""
        return (1 << self.bits) - 1


INT8 = IntegerFormat("int8", 8)
"""The paper's baseline."""


def quantize_weight(array: Any, axis: int | None, *, scale: Any = None) -> tuple[Codes, Floats]:
    """A weight as integers: ``code = rint(w / scale)``, ties to even, clipped; ``scale = amax / 127`` where none is given.

    Args:
        array: float32, finite.
        axis: of the channels, each with its own scale; None: one scale.
        scale: float32, positive, as it is returned.

    Returns:
        Codes int8 of array's shape; scales float32 of as many axes, each of length 1 but `axis`, or () without one. The scale
        of zeros alone is 1; none is below 2**-126.

    Raises:
        DTypeError: not an array of floats. ScaleError: it holds NaN or infinity.

    >>> codes, scale = quantize_weight(np.array([[1.27, -0.4], [0.0, 0.0]], np.float32), axis=0)
    >>> codes.tolist(), scale.shape
    ([[127, -40], [0, 0]], (2, 1))
    """
    weight = np.asarray(array)
    if weight.dtype.kind != "f":
        raise DTypeError(f"quantize_weight: expected floats, got {weight.dtype}")
    if not np.isfinite(weight).all():
        raise ScaleError("quantize_weight: expected finite numbers, got NaN or infinity")
    weight = weight.astype(np.float32, copy=False)
    if scale is not None:
        return _codes(weight, scale), scale
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    amax = np.abs(weight).max(axis=others, keepdims=axis is not None, initial=0).astype(np.float64)
    scale = np.where(amax > 0, np.maximum(amax / INT8.weight_max, _SMALLEST_SCALE), 1.0).astype(np.float32)
    return _codes(weight, scale), scale


def _codes(weight: Floats, scale: Floats) -> Codes:
    return np.asarray(np.clip(np.rint(weight / scale), -INT8.weight_max, INT8.weight_max), np.int8)


def activation_parameters(minimum: float, maximum: float) -> tuple[float, int]:
    """The scale and zero point by which minimum .. maximum, widened to hold 0, become codes 0 .. 255.

    Returns:
        A scale that is exactly a float32, 1 for an empty range; and the code of zero.

    Raises:
        ScaleError: a bound is not finite, or the minimum is above the maximum.

    >>> activation_parameters(-1.0, 1.55)
    (0.009999999776482582, 100)
    >>> activation_parameters(2.0, 4.0)[1], activation_parameters(-4.0, -2.0)[1], activation_parameters(0.0, 0.0)
    (0, 255, (1.0, 0))
    """
    if not (np.isfinite(minimum) and np.isfinite(maximum) and minimum <= maximum):
        raise ScaleError(f"activation_parameters: expected a finite range, got {minimum}..{maximum}")
    low, high = min(float(minimum), 0.0), max(float(maximum), 0.0)
    if low == high:
        return 1.0, 0
    scale = float(np.float32(max((high - low) / INT8.activation_max, _SMALLEST_SCALE)))
    return scale, int(min(max(np.rint(-low / scale), 0), INT8.activation_max))


def measured_parameters(x: Array) -> tuple[float, int]:
    """`activation_parameters` of the finite elements of an array: of a dynamic activation."""
    finite = x[np.isfinite(x)]
    if not finite.size:
        return 1.0, 0
    return activation_parameters(float(finite.min()), float(finite.max()))


def encode_activation(x: Array, scale: float, zero_point: int) -> npt.NDArray[np.uint8]:
    """``clip(rint(x / scale) + zero point, 0, 255)``: the quotient in float32, ties to even.

    What is beyond the range saturates, infinities too. An integer cannot be NaN: NaN becomes the code of zero.

    >>> encode_activation(np.array([0, 0.26, -9, np.inf, np.nan], np.float32), 0.1, 100).tolist()
    [100, 103, 10, 255, 100]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        quotient = np.asarray(x, np.float32) / np.float32(scale)
    quotient = np.where(np.isnan(quotient), np.float32(0), quotient)
    steps = np.clip(np.rint(quotient), -zero_point, INT8.activation_max - zero_point)
    codes: npt.NDArray[np.uint8] = (steps + np.float32(zero_point)).astype(np.uint8)
    return codes
