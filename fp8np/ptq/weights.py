"""The scales of weights: from the largest magnitude, or those with which rounding costs least.

AIMET, TensorRT Model Optimizer and others search the scales of weights in the same way; here every element is rounded at every
candidate, in one pass over the weight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fp8np.errors import RecipeError
from fp8np.formats import FloatFormat
from fp8np.integers import IntegerFormat
from fp8np.kernels._table import select
from fp8np.observers import Calibrator, parse_calibrator
from fp8np.scaling import rounded_up_to_power_of_two, scale_for
from fp8np.scheme import Granularity, PerBlock, PerChannel, PerTensor, Scheme
from fp8np.tensor import Floats, block_of, blocks_of

__all__ = ["weight_scales"]

_WAYS = ("max", "mse")

# What a candidate makes of the largest magnitude: from 1.19 times it down to 0.31, in sixteenths of an octave. Below, more is clipped
# than any 8-bit format gains elsewhere; the first one is `max`, so that it wins among equals.
_FACTORS = (1.0, *(2.0 ** (k / 16) for k in range(4, -28, -1) if k))
_OCTAVES = (1.0, 0.5, 0.25, 0.125)

_PIECE = 1 << 16
"""Elements of a row beyond which it is cut, so that several threads can share one scale."""


def weight_scales(weight: Any, scheme: Scheme, calibrator: Calibrator | str = "max") -> Floats:
    """The scales with which a weight is quantized.

    Args:
        weight: float32 of any shape, finite.
        scheme: which elements share a scale, and the format; whether scales are 1, or powers of two.
        calibrator: ``"max"``: the largest magnitude becomes the largest value of the format. ``"mse"``: the scale with the least sum of
            squared errors among 32 candidates, that of ``"max"`` and those that bring 0.31 to 1.19 times the largest magnitude there.

    Returns:
        float32, as `quantize` takes them: () for one, with as many axes as weight for one a channel, one for each block otherwise.

    Raises:
        RecipeError: another calibrator. ShapeError: the scheme does not fit the weight.

    >>> from fp8np.formats import get_format
    >>> w = np.array([[1.0, 0.5, 0.25, 0.0], [1.0, 0.62, -0.62, 0.62]], np.float32)
    >>> scheme = Scheme(get_format("e4m3fn"), PerChannel(0))
    >>> [[round(float(s) * 448, 2) for s in weight_scales(w, scheme, how).ravel()] for how in ("max", "mse")]
    [[1.0, 1.0], [1.0, 1.09]]
    """
    chosen = parse_calibrator(calibrator)
    if chosen.kind not in _WAYS:
        raise RecipeError(f"weights: expected calibrator {' or '.join(_WAYS)}, got {chosen}")
    if scheme.direct:
        return np.ones((), np.float32)
    values = np.asarray(weight, np.float32)
    block = _block(scheme.granularity, values.shape)
    shape = () if isinstance(scheme.granularity, PerTensor) else blocks_of(values.shape, block)
    rows = _rows(values, block)
    if not rows.size:
        return np.ones(shape, np.float32)
    amax = np.empty(len(rows), np.float32)
    select("amax")(rows.reshape(1, *rows.shape), amax)
    if chosen.kind == "max":
        return _scales(amax.astype(np.float64), scheme).reshape(shape)
    factors = _OCTAVES if scheme.power_of_two else _FACTORS
    candidates = _scales(np.multiply.outer(amax.astype(np.float64), factors), scheme)
    best = np.argmin(_squared_errors(rows, candidates, scheme.format), axis=1)
    return np.asarray(candidates[np.arange(len(rows)), best].reshape(shape))


def _block(granularity: Granularity, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths along each axis of what shares a scale."""
    match granularity:
        case PerTensor():
            return tuple(max(n, 1) for n in shape)
        case PerChannel(axis):
            return tuple(1 if i == axis % len(shape) else max(n, 1) for i, n in enumerate(shape))
        case PerBlock(lengths):
            return block_of("weights", lengths, shape)
    return (*(1 for _ in shape[1:]), *(max(n, 1) for n in shape[-1:]))


def _rows(values: Floats, block: tuple[int, ...]) -> Floats:
    """(scales, elements of one), the last blocks of an axis filled up with zeros, which cost nothing at any scale."""
    counts = blocks_of(values.shape, block)
    missing = [(0, c * b - n) for n, b, c in zip(values.shape, block, counts, strict=True)]
    whole = np.pad(values, missing) if any(after for _, after in missing) else values
    cut = whole.reshape([n for pair in zip(counts, block, strict=True) for n in pair])
    ordered = cut.transpose([*range(0, cut.ndim, 2), *range(1, cut.ndim, 2)])
    return np.ascontiguousarray(ordered).reshape(math.prod(counts), math.prod(block))


def _scales(amax: Any, scheme: Scheme) -> Floats:
    fmt, granularity = scheme.format, scheme.granularity
    if isinstance(fmt, FloatFormat):
        kept = granularity.scale_format if isinstance(granularity, PerBlock) else None
        scales = scale_for(amax, fmt, scale_format=kept)
    else:
        usable = np.where(amax > 0, amax, fmt.weight_max) / fmt.weight_max
        scales = np.maximum(usable, float(np.finfo(np.float32).smallest_normal)).astype(np.float32)
    return rounded_up_to_power_of_two(scales) if scheme.power_of_two else scales


def _squared_errors(rows: Floats, scales: Floats, fmt: FloatFormat | IntegerFormat) -> Any:
    """float64 (rows, candidates): what rounding costs at each scale."""
    if isinstance(fmt, FloatFormat):
        top, mantissa, span, largest = fmt.max_exponent, fmt.mantissa_bits, fmt.max_exponent - fmt.min_exponent, fmt.max
    else:
        # All integers lie as far apart as those of the topmost binade.
        top, mantissa, span, largest = fmt.bits - 2, fmt.bits - 2, 0, float(fmt.weight_max)
    # In units in which the format's values reach into [1, 2), squares neither overflow nor vanish.
    unit = scales.astype(np.float64) * 2.0**top
    inverse = np.minimum(1 / unit, float(np.finfo(np.float32).max)).astype(np.float32)
    call = select("rounding_errors")
    largest /= 2.0**top
    if len(rows) > 1 or rows.size < 2 * _PIECE:
        errors = np.empty(scales.shape)
        call(rows, inverse, span, mantissa, largest, errors)
    else:
        body = rows[0, : rows.size - rows.size % _PIECE].reshape(-1, _PIECE)
        pieces = np.empty((len(body) + 1, scales.shape[1]))
        call(body, np.repeat(inverse, len(body), axis=0), span, mantissa, largest, pieces[:-1])
        call(rows[:, body.size :], inverse, span, mantissa, largest, pieces[-1:])
        errors = pieces.sum(axis=0, keepdims=True)
    return errors * unit**2
