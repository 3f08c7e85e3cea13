"""quantize: codes = encode(x / scale), the border between float32 and FP8 inside a model.

Static: ``scale`` is an attribute, found by calibration. Dynamic: ``scale`` is None and is found from x at each run, so that
the largest magnitude of x becomes the largest value of the format.
"""

from __future__ import annotations

from typing import Any

from fp8np.errors import DTypeError, ScaleError
from fp8np.formats import get_format
from fp8np.layers._op import REQUIRED, Spec, op
from fp8np.scaling import quantize
from fp8np.tensor import QTensor


def shape(x: Spec, *, format: str, scale: float | None) -> Spec:
    """Any shape -> the same shape, as codes of the format"""
    if x.dtype != "float32":
        raise DTypeError(f"quantize: expected float32, got {x}")
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < float("inf")):
        raise ScaleError(f"quantize: expected a finite and positive scale, or None; got {scale!r}")
    return Spec(x.shape, get_format(format).name)


def define(x: Any, *, format: str, scale: float | None) -> QTensor:
    """codes = encode(x / scale)"""
    return quantize(x, format, scale=scale)


op("quantize", ("x",), shape=shape, define=define, attrs={"format": REQUIRED, "scale": None})
