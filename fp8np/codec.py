"""Between numbers and FP8 codes: `encode`, `decode`, `quantize`, `dequantize`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.errors import ScaleError, ShapeError
from fp8np.formats import FloatFormat, get_format
from fp8np.tensor import Codes, Floats, QTensor

__all__ = ["decode", "decode_table", "dequantize", "encode", "quantize", "scale_for"]


@lru_cache(maxsize=256)
def _decode_table(fmt: FloatFormat) -> Floats:
    c = np.arange(256)
    mag = c & fmt.magnitude_mask
    m = fmt.mantissa_bits
    e = mag >> m
    f = (mag & ((1 << m) - 1)).astype(np.float64)
    if fmt.has_zero:
        v = np.where(e > 0, (f + (1 << m)) * 2.0 ** (e - fmt.bias - m), f * 2.0 ** (1 - fmt.bias - m))
    else:
        v = 2.0 ** (e - float(fmt.bias))
    if fmt.signed:
        v = np.where(c & 0x80, -v, v)
    for code in fmt.inf_codes:
        v[code] = -np.inf if code & 0x80 else np.inf
    for code in fmt.nan_codes:
        v[code] = np.nan
    table = v.astype(np.float32)
    table.setflags(write=False)
    return table


def decode_table(fmt: Any) -> Floats:
    return _decode_table(get_format(fmt))


def encode(x: Any, fmt: Any, *, overflow: str = "saturate", rounding: str = "nearest_even", nan: str = "keep_sign", preset: str | None = None, random_bits: Any = None, out: Any = None) -> Codes:
    f = get_format(fmt)
    v = np.asarray(x).astype(np.float64)
    mags = np.arange(f.max_magnitude + 1)
    values = decode_table(f)[mags].astype(np.float64)
    mid = (values[1:] + values[:-1]) / 2
    a = np.abs(v)
    low = np.searchsorted(mid, a, side="left")
    high = np.searchsorted(mid, a, side="right")
    mag = np.where(low & 1, high, low)
    code = mag | np.where(np.signbit(v), f.sign_bit, 0)
    if f.signed and not f.has_negative_zero:
        code = np.where(mag == 0, 0, code)
    top = f.max_magnitude + 1 if not f.has_inf else f.max_magnitude + 1 + (1 << max(f.mantissa_bits - 1, 0))
    nan_code = (np.where(np.signbit(v), f.sign_bit, 0) | (top & 0xFF)) if f.has_negative_zero else (0x80 if f.signed else 0xFF)
    code = np.where(np.isnan(v), nan_code, code)
    result = code.astype(np.uint8)
    if out is not None:
        out[...] = result
        return out
    return result


def decode(codes: Any, fmt: Any, *, dtype: Any = np.float32, out: Any = None) -> npt.NDArray[Any]:
    result = decode_table(fmt)[np.asarray(codes).view(np.uint8)].astype(dtype)
    if out is not None:
        out[...] = result
        return out
    return result


def scale_for(amax: Any, fmt: Any) -> Floats:
    a = np.asarray(amax, np.float64)
    with np.errstate(invalid="ignore"):
        s = (a / get_format(fmt).max).astype(np.float32)
    tiny = np.float32(2.0**-126)
    return np.where(np.isfinite(s) & (s > 0), np.maximum(s, tiny), np.float32(1)).astype(np.float32)


def quantize(x: Any, fmt: Any, *, axis: int | None = None, scale: Any = None) -> QTensor:
    f = get_format(fmt)
    v = np.asarray(x)
    v = v if v.dtype == np.float64 else v.astype(np.float32)
    keep = None
    if axis is not None:
        keep = tuple(i for i in range(v.ndim) if i != axis % v.ndim)
    if scale is None:
        finite = np.where(np.isfinite(v), np.abs(v), 0)
        amax = finite.max(axis=keep, keepdims=axis is not None, initial=0)
        scale = scale_for(amax, f)
    s = np.asarray(scale, np.float32)
    if not (np.isfinite(s).all() and (s > 0).all()):
        raise ScaleError("quantize: expected finite and positive scales")
    if axis is not None and s.ndim == 1 and v.ndim != 1:
        s = s.reshape([-1 if i == axis % v.ndim else 1 for i in range(v.ndim)])
    if s.ndim not in (0, v.ndim):
        raise ShapeError(f"quantize: scale of shape {s.shape} does not fit {v.shape}")
    return QTensor(encode(v / s.astype(v.dtype), f), f, s)


def dequantize(q: QTensor, *, dtype: Any = np.float32) -> npt.NDArray[Any]:
    return (decode(q.codes, q.format) * q.scale).astype(dtype)
