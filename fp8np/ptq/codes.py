"""Weights as codes, by their schemes."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fp8np.graph import Constant
from fp8np.integers import IntegerFormat, quantize_weight
from fp8np.ptq.weights import weight_scales
from fp8np.scaling import dequantize, quantize
from fp8np.scheme import PerBlock, PerChannel, Scheme
from fp8np.tensor import Floats, QTensor

__all__ = ["integer_codes", "quantized_weight", "rounded_weight"]


def quantized_weight(constant: Constant, scheme: Scheme, calibrator: str = "max") -> QTensor:
    """A float32 weight as FP8.

    Args:
        constant: of any shape, finite.
        scheme: its format and which elements share a scale.
        calibrator: how scales are found: "max" or "mse"; see `fp8np.ptq.weights.weight_scales`.

    >>> import numpy as np
    >>> from fp8np.formats import FORMATS
    >>> q = quantized_weight(np.ones((2, 3), np.float32), Scheme(FORMATS["float8_e5m2"], PerChannel(0)))
    >>> q.scale.shape, int(q.codes[0, 0])
    ((2, 1), 123)
    """
    weight = cast(Floats, constant)
    if scheme.direct:
        return quantize(weight, scheme.format, scale=1.0)
    scales = weight_scales(weight, scheme, calibrator)
    if isinstance(scheme.granularity, PerBlock):
        return quantize(weight, scheme.format, block=scheme.granularity.shape, scale=scales)
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    return quantize(weight, scheme.format, axis=axis, scale=scales)


def integer_codes(weight: Floats, scheme: Scheme, calibrator: str = "max") -> tuple[npt.NDArray[np.int8], Floats]:
    """A float32 weight as integers, and their scales: one, or one for each channel.

    Args:
        weight: of any shape, finite.
        scheme: of the format INT8, per tensor or per channel.
        calibrator: as for `quantized_weight`.
    """
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    # What `quantize_weight` finds by itself is what "max" means.
    return quantize_weight(weight, axis, scale=None if calibrator == "max" else weight_scales(weight, scheme, calibrator))


def rounded_weight(weight: Any, scheme: Scheme, calibrator: str = "max") -> Floats:
    """What a quantized weight stands for, float32, whether its codes are floats or integers.

    >>> import numpy as np
    >>> from fp8np.integers import INT8
    >>> rounded_weight(np.array([1.27, 0.016], np.float32), Scheme(INT8)).tolist()
    [1.2699999809265137, 0.019999999552965164]
    """
    if isinstance(scheme.format, IntegerFormat):
        codes, scale = integer_codes(weight, scheme, calibrator)
        return codes.astype(np.float32) * scale
    return dequantize(quantized_weight(weight, scheme, calibrator))
