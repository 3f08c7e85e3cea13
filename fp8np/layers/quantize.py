"""quantize: codes = encode(x / scale), the border between float32 and FP8 inside a model.

| scale | granularity | what x is divided by |
|---|---|---|
| a number | tensor | that number, found by calibration |
| None | tensor | amax / max: x's largest finite magnitude becomes the format's largest value |
| None | token | the same for each index of all axes but the last: x (B, T, K) has a scale (B, T, 1) |

amax / max as `fp8np.scaling.scale_for` has it. With power_of_two it is rounded up to a power of two, so that nothing saturates and
the division is exact; a number has been rounded by whoever wrote it down.
"""

from __future__ import annotations

import math
from typing import Any

from fp8np.errors import GraphError, ScaleError
from fp8np.formats import get_format
from fp8np.layers._checks import require
from fp8np.layers._op import REQUIRED, Spec, op
from fp8np.layers._types import checked
from fp8np.scaling import quantize, rounded_up_to_power_of_two
from fp8np.tensor import QTensor

_GRANULARITIES = ("tensor", "token")


def shape(x: Spec, *, format: str, scale: float | None, granularity: str, power_of_two: bool) -> Spec:
    """Any shape -> the same shape, as codes of the format"""
    checked("quantize", x, kinds=("float32",))
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < float("inf")):
        raise ScaleError(f"quantize: expected a finite and positive scale, or None; got {scale!r}")
    if granularity not in _GRANULARITIES or not isinstance(power_of_two, bool):
        raise GraphError(
            f"quantize: expected granularity to be one of {', '.join(_GRANULARITIES)}, and power_of_two True or False; "
            f"got {granularity!r} and {power_of_two!r}"
        )
    if granularity == "token":
        require(x.ndim > 0, "quantize", "x with at least one axis for a scale per token", x=x)
        if scale is not None:
            raise ScaleError(f"quantize: scales of tokens are found at each run; expected scale None, got {scale!r}")
    if power_of_two and scale is not None and math.frexp(scale)[0] != 0.5:
        raise ScaleError(f"quantize: expected a scale that is a power of two, or power_of_two False; got {scale!r}")
    return Spec(x.shape, get_format(format).name)


def define(x: Any, *, format: str, scale: float | None, granularity: str, power_of_two: bool) -> QTensor:
    """codes = encode(x / scale)"""
    if granularity == "token":
        rows = _dynamic(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), format, 0, power_of_two)
        return QTensor(rows.codes.reshape(x.shape), rows.format, rows.scale.reshape(*x.shape[:-1], 1))
    return _dynamic(x, format, None, power_of_two) if scale is None else quantize(x, format, scale=scale)


def _dynamic(x: Any, format: str, axis: int | None, power_of_two: bool) -> QTensor:
    q = quantize(x, format, axis=axis)
    return quantize(x, format, axis=axis, scale=rounded_up_to_power_of_two(q.scale)) if power_of_two else q


op(
    "quantize",
    ("x",),
    shape=shape,
    define=define,
    attrs={"format": REQUIRED, "scale": None, "granularity": "tensor", "power_of_two": False},
)
