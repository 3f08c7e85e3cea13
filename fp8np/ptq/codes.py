"""Weights as codes, by their schemes."""

from __future__ import annotations

from typing import cast

from fp8np.graph import Constant
from fp8np.ptq.weights import weight_scales
from fp8np.scaling import quantize
from fp8np.scheme import PerBlock, PerChannel, Scheme
from fp8np.tensor import Floats, QTensor

__all__ = ["quantized_weight"]


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
