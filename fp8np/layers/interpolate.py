"""interpolate: another size for the spatial axes of x (B, C, L...), by nearest, linear or cubic interpolation.

All modes are separable: one axis after the other becomes a weighted sum of a few of its elements. Coordinates are PyTorch's:
out element i stands at (i + 1/2) * ratio - 1/2 of x, or with align_corners at i * (size - 1) / (out - 1).
"""

from __future__ import annotations

import math
from reprlib import repr as short
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.dims import Size
from fp8np.errors import GraphError, ShapeError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._shapes import per_axis
from fp8np.layers._types import checked

_MODES = ("nearest", "nearest-exact", "linear", "cubic")
_CUBIC = -0.75  # the free coefficient of cubic convolution (Keys 1981), as PyTorch sets it

Array = npt.NDArray[Any]


def _scaled(size: Size, factor: float) -> Size:
    """floor(size * factor); for a symbolic size only where the factor is a small fraction, hence exact."""
    if isinstance(size, int):
        return math.floor(size * factor)
    numerator, denominator = float(factor).as_integer_ratio()
    if denominator > 64:
        raise ShapeError(f"interpolate: expected a fixed size or a simple scale factor, got {size} and {factor}")
    return size * numerator // denominator


def _targets(x_shape: tuple[Size, ...], size: Any, scale_factor: Any) -> tuple[tuple[Size, ...], tuple[float | None, ...]]:
    """The size of each spatial axis of y, and its factor where that is what was asked for."""
    sizes = x_shape[2:]
    if not sizes or (size is None) == (scale_factor is None):
        raise ShapeError(f"interpolate: expected (B, C, L...) and one of size and scale_factor, got {x_shape}, {size}, {scale_factor}")
    n = len(sizes)
    if size is not None:
        return per_axis("interpolate", "size", size, n), (None,) * n
    factors = per_axis("interpolate", "scale_factor", scale_factor, n)
    if not all(isinstance(factor, int | float) for factor in factors):
        raise GraphError(f"interpolate: expected numbers as scale_factor, got {short(scale_factor)}")
    return tuple(_scaled(s, f) for s, f in zip(sizes, factors, strict=True)), factors


def shape(x: Spec, *, size: Any, scale_factor: Any, mode: str, align_corners: bool) -> Spec:
    """(B, C, H, W) -> (B, C, *size), or (B, C, floor(H * scale_factor), ...)"""
    checked("interpolate", x, kinds=("float32",))
    if mode not in _MODES:
        raise GraphError(f"interpolate: expected mode {', '.join(_MODES)}, got {mode!r}")
    sizes, _ = _targets(x.shape, size, scale_factor)
    if any(isinstance(n, int) and n < 1 for n in (*sizes, *x.shape[2:])):
        raise ShapeError(f"interpolate: expected sizes > 0, got {x} and {size or scale_factor}")
    return Spec((*x.shape[:2], *sizes))


def _nearest(size: int, out: int, ratio: float, exact: bool) -> Array:
    # In float32, as PyTorch counts (in 2-d and 3-d; in 1-d it does so for float32 only): at whole coordinates rounding decides.
    place = (np.arange(out, dtype=np.float32) + np.float32(0.5 if exact else 0)) * np.float32(ratio)
    return np.asarray(np.minimum(np.floor(place).astype(np.int64), size - 1))


def _cubic_weights(t: Array) -> list[Array]:
    """Keys' cubic convolution at distances 1 + t, t, 1 - t, 2 - t."""
    a = _CUBIC

    def near(d: Array) -> Array:
        return np.asarray(((a + 2) * d - (a + 3)) * d * d + 1)

    def far(d: Array) -> Array:
        return np.asarray(((a * d - 5 * a) * d + 8 * a) * d - 4 * a)

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def _taps(size: int, out: int, factor: float | None, mode: str, align_corners: bool, dtype: Any) -> list[tuple[Array, Any]]:
    """(indices, weights) of the elements that make up each of the `out` elements of an axis."""
    ratio = 1 / factor if factor is not None else size / out
    if mode == "nearest" and out in (size, 2 * size):
        ratio = size / out  # PyTorch's, even where the factor was a little more
    if mode.startswith("nearest"):
        return [(_nearest(size, out, ratio, mode == "nearest-exact"), None)]
    steps = np.arange(out, dtype=dtype)
    if align_corners:
        place = steps * dtype.type((size - 1) / (out - 1) if out > 1 else 0)
    else:
        place = (steps + dtype.type(0.5)) * dtype.type(ratio) - dtype.type(0.5)
    left = np.floor(place)
    t, first = place - left, left.astype(np.int64)
    offsets, weights = ((0, 1), [1 - t, t]) if mode == "linear" else ((-1, 0, 1, 2), _cubic_weights(t))
    return [(np.clip(first + o, 0, size - 1), w) for o, w in zip(offsets, weights, strict=True)]


@np.errstate(invalid="ignore", over="ignore")
def interpolate(x: Any, *, size: Any, scale_factor: Any, mode: str, align_corners: bool) -> Any:
    """y = x at out evenly spaced places of each spatial axis"""
    sizes, factors = _targets(x.shape, size, scale_factor)
    for axis, (out, factor) in enumerate(zip(sizes, factors, strict=True), 2):
        terms = []
        for indices, weights in _taps(x.shape[axis], int(out), factor, mode, align_corners, x.dtype):  # type: ignore[arg-type]
            part = np.take(x, indices, axis)
            terms.append(part if weights is None else part * weights.reshape(-1, *(1,) * (x.ndim - 1 - axis)))
        x = sum(terms[1:], terms[0])
    return x


def _vec(name: str, mode: str, aligned: bool) -> Foreign:
    parameters = ("x", "size", "align_corners", "scale_factor") if aligned else ("x", "size", "scale_factor")
    return Foreign(f"aten.{name}.vec", parameters, {"mode": mode})


op(
    "interpolate",
    ("x",),
    shape=shape,
    define=interpolate,
    attrs={"size": None, "scale_factor": None, "mode": "nearest", "align_corners": False},
    torch=(
        *(_vec(f"upsample_nearest{n}d", "nearest", False) for n in (1, 2, 3)),
        *(_vec(f"_upsample_nearest_exact{n}d", "nearest-exact", False) for n in (1, 2, 3)),
        *(_vec(name, "linear", True) for name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")),
        _vec("upsample_bicubic2d", "cubic", True),
    ),
    onnx=("Resize",),
)
