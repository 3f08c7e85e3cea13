"""Scaled FP8: `quantize` and `dequantize`, and the scales that they use.

Scales multiply on the way out: ``x ≈ decode(codes) * scale``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._sources import exact_floats, to_odd
from fp8np.codec import decode, delivered, encode_exact_floats, float_type
from fp8np.errors import DTypeError, FormatError, ShapeError
from fp8np.formats import get_format
from fp8np.kernels._rule import conversion_rule
from fp8np.kernels._table import select
from fp8np.policy import SATURATE
from fp8np.tensor import Floats, QTensor, float32_scale

__all__ = ["dequantize", "quantize", "scale_for"]

_Array = npt.NDArray[Any]

_SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)
_LARGEST_SCALE = float(np.finfo(np.float32).max)


def scale_for(amax: Any, fmt: Any) -> Floats:
    """The scales that bring magnitudes up to `amax` into the range of a format: amax / max, finite and positive.

    Args:
        amax: the largest magnitude of a tensor, or of each channel; any shape.
        fmt: the format.

    Returns:
        float32 of amax's shape. 1 where amax is 0, negative, NaN or infinite. Never below 2**-126, since a subnormal scale would
        lose bits, and never above the largest float32; what is beyond saturates.

    Raises:
        FormatError: the format is unknown.

    >>> scale_for([448.0, 0.0, np.nan, 1e-45], "e4m3fn").tolist() == [1, 1, 1, 2.0**-126]
    True
    """
    largest = np.asarray(amax, np.float64)
    top = get_format(fmt).max
    usable = (largest > 0) & (largest < np.inf)
    # float64 in between is harmless: a quotient of two float32 rounded to 53 and then to 24 bits is rounded correctly.
    with np.errstate(over="ignore"):
        ratio = np.where(usable, largest, top) / top
    return np.minimum(np.maximum(ratio, _SMALLEST_SCALE), _LARGEST_SCALE).astype(np.float32)


def quantize(x: Any, fmt: Any, *, axis: int | None = None, scale: Any = None) -> QTensor:
    """Scaled FP8: ``codes = encode(x / scale)``, saturating, so that ``x ≈ decode(codes) * scale``.

    Without a scale, the largest finite magnitude of x (of each channel, where `axis` is given) becomes the format's largest value.
    Zeros alone give scale 1. NaN stays NaN and infinity becomes the largest value; neither has a say in the scale.
    The division is in float32, in float64 for sources that float32 cannot hold.

    Args:
        x: what `encode` takes.
        fmt: a signed format.
        axis: the axis of the channels, each with its own scale; negative counts from the end. None: one scale.
        scale: finite and positive: a number; an array of one axis, along `axis`; or an array with as many axes as x, each of
            length 1 or x's.

    Returns:
        A `QTensor` of x's shape. Its scale has shape (), or as many axes as x.

    Raises:
        FormatError: the format is unknown or unsigned. DTypeError: x is not of real numbers. ScaleError: a scale is not
        finite and positive. ShapeError: the scale does not fit, or x has no such axis.

    >>> q = quantize([[1.0, -2.0], [0.0, 0.0]], "e4m3fn", axis=0)
    >>> q.codes.tolist(), (q.scale * 448).tolist()
    ([[118, 254], [0, 0]], [[2.0], [448.0]])
    """
    f = get_format(fmt)
    if not f.signed:
        raise FormatError(f"quantize: {f} has no sign and no zero; it is made for scales. Use encode()")
    values = exact_floats("quantize", x)
    if axis is not None:
        if not isinstance(axis, int | np.integer) or not -values.ndim <= axis < values.ndim:
            raise ShapeError(f"quantize: expected axis to be None or one axis of x of shape {values.shape}, got {axis!r}")
        axis = int(axis) % values.ndim
    if scale is None:
        scales = scale_for(_amax(values, axis), f)
    else:
        scales, axis = _checked_scales(scale, axis, values.shape)

    codes = np.empty(values.shape, np.uint8)
    quantized = QTensor(codes, f, scales)
    if values.dtype == np.float32 and (axis is not None or scales.size == 1):
        channels = _channels(values.shape, None if scales.size == 1 else axis)
        rule = conversion_rule(f, SATURATE)
        select("quantize_f32", f)(values.reshape(channels), scales.reshape(-1), rule, codes.reshape(channels))
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            quotient = np.asarray(values / scales.astype(values.dtype))
        encode_exact_floats(quotient, f, SATURATE, codes)
    return quantized


def dequantize(q: QTensor, *, dtype: Any = np.float32) -> _Array:
    """``decode(codes) * scale``, rounded once, to nearest even.

    Args:
        q: codes, scale and format.
        dtype: float32, float64 (exact), float16, or ml_dtypes.bfloat16.

    Raises:
        DTypeError: q is not a QTensor, or dtype is another one.

    >>> dequantize(quantize([1.0, 0.5, -0.25], "e4m3fn")).tolist()
    [1.0, 0.5, -0.25]
    """
    if not isinstance(q, QTensor):
        raise DTypeError(f"dequantize: expected a QTensor, got {type(q).__name__}; use decode() for bare codes")
    wanted = float_type("dequantize", dtype)
    with np.errstate(over="ignore", under="ignore"):
        if wanted == np.float32:
            values = np.asarray(decode(q.codes, q.format))
            return delivered(np.multiply(values, q.scale, out=values), None)
        # 8 bits times 24 bits are exact in float64. bfloat16 would be reached through float32: to odd, so that bits fall once.
        product = np.asarray(np.multiply(decode(q.codes, q.format, dtype=np.float64), q.scale, dtype=np.float64))
        if wanted.name == "bfloat16":
            return delivered(to_odd(product, np.dtype(np.float32)).astype(wanted), None)
        return delivered(product.astype(wanted, copy=False), None)


def _checked_scales(scale: Any, axis: int | None, shape: tuple[int, ...]) -> tuple[Floats, int | None]:
    # The scales with as many axes as x (or none), and the one axis along which they differ (None: there is none, or several).
    scales = float32_scale("quantize", scale)
    if scales.ndim == 1 and axis is not None and len(shape) > 1:
        scales = scales.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    if scales.ndim not in (0, len(shape)) or any(s not in (1, n) for s, n in zip(scales.shape, shape, strict=False)):
        hint = "" if axis is not None or scales.ndim != 1 else "; name the axis of the channels with axis="
        raise ShapeError(f"quantize: a scale of shape {np.shape(scale)} does not fit x of shape {shape}{hint}")
    varying = [i for i, n in enumerate(scales.shape) if n > 1]
    if axis is not None and varying not in ([], [axis]):
        raise ShapeError(f"quantize: the scale of shape {scales.shape} varies along other axes than axis={axis}")
    return scales, varying[0] if len(varying) == 1 else None


def _channels(shape: tuple[int, ...], axis: int | None) -> tuple[int, int, int]:
    # (outer, channels, inner) around the axis; no axis is one channel.
    if axis is None:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _amax(values: _Array, axis: int | None) -> _Array:
    # The largest finite magnitude: shape () for no axis, else with as many axes as values.
    shape = () if axis is None else tuple(n if i == axis else 1 for i, n in enumerate(values.shape))
    channels = values.reshape(_channels(values.shape, axis))
    if values.dtype == np.float32:
        largest = np.zeros(channels.shape[1], np.float32)
        select("amax")(channels, largest)
        return largest.reshape(shape)
    finite = np.where(np.isfinite(channels), np.abs(channels), 0)
    return np.asarray(finite.max(axis=(0, 2), initial=0)).reshape(shape)
