"""Between numbers and FP8 codes: `encode` and `decode`, `quantize` and `dequantize`.

Arguments are checked here and brought into the form that the kernels take (C-contiguous float32 or float64); the arithmetic is
theirs. The law that they follow is `fp8np.reference`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np._sources import exact_floats, to_odd
from fp8np.errors import DTypeError, FormatError, PolicyError, ShapeError
from fp8np.formats import FloatFormat, get_format
from fp8np.kernels._rule import conversion_rule
from fp8np.kernels._table import select
from fp8np.policy import IEEE, SATURATE, Policy, nan_code, resolve
from fp8np.tensor import Codes, Floats, QTensor, float32_scale

__all__ = ["decode", "decode_table", "dequantize", "encode", "quantize", "scale_for"]

_Array = npt.NDArray[Any]

_SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)
_LARGEST_SCALE = float(np.finfo(np.float32).max)
_NO_RANDOM_BITS = np.empty(0, np.uint32)


def encode(
    x: Any,
    fmt: Any,
    *,
    overflow: str | None = None,
    rounding: str | None = None,
    nan: str | None = None,
    preset: str | None = None,
    random_bits: Any = None,
    source: str | None = None,
    out: Any = None,
) -> Codes:
    """The codes of the nearest FP8 values: one exact rounding from any source.

    Args:
        x: float64, float32, float16, bfloat16 (an ml_dtypes array), longdouble, bool, any integers, Python numbers or nested lists;
            any shape, strides and byte order. Nothing is rounded on the way: float64, longdouble and 64-bit integers neither.
        fmt: the format: a name, a dtype, or a `FloatFormat`.
        overflow: "saturate", "ieee" or "propagate". None means "saturate", or what the preset says.
        rounding: "nearest_even", "nearest_away", "toward_zero", "up", "down" or "stochastic". None means "nearest_even".
        nan: "keep_sign", "all_ones" or "positive". None means "keep_sign", or what the preset says. See `fp8np.policy` for the three.
        preset: the conversion of another library or standard, by name (`fp8np.policy.PRESETS`), in place of the three above.
        random_bits: for stochastic rounding: uint8, uint16 or uint32, broadcastable to x; all bits of each are used.
        source: "bfloat16" says that x is uint16 and holds the bits of bfloat16 numbers.
        out: uint8 of x's shape, to be written and returned; it may overlap x.

    Returns:
        uint8 of x's shape; a NumPy scalar for a 0-d x, as NumPy's ufuncs give it.

    Raises:
        FormatError: the format is unknown. PolicyError: a policy is unknown, contradicts the preset, or does not fit the format.
        DTypeError: x is not of real numbers, or `out` or `random_bits` has another type. ShapeError: their shapes do not fit.

    Negative zero is kept where the format has it. `float8_e8m0fnu` has neither sign nor zero: see `fp8np.reference.encode`.

    >>> encode([1.0, -0.3, 1e9], "e4m3fn")
    array([ 56, 170, 126], dtype=uint8)
    >>> hex(encode(1e9, "e4m3fn", overflow="ieee"))
    '0x7f'
    >>> encode(np.full(4, 1.03), "e4m3fn", rounding="stochastic", random_bits=np.array([0, 100, 200, 255], np.uint8))
    array([56, 56, 57, 57], dtype=uint8)
    """
    f = get_format(fmt)
    policy = resolve(f, overflow=overflow, rounding=rounding, nan=nan, preset=preset)
    values = exact_floats("encode", x, source)
    random, width = _checked_random_bits(random_bits, policy, values.shape)
    _check_out("encode", out, values.shape, np.dtype(np.uint8))
    codes = _buffer(out, values, np.dtype(np.uint8))
    _encode(values, f, policy, random, width, codes)
    return _delivered(codes, out)


def decode(codes: Any, fmt: Any, *, dtype: Any = np.float32, out: Any = None) -> _Array:
    """The values of codes.

    Args:
        codes: uint8, or an ml_dtypes array of `fmt`; any shape and strides.
        fmt: the format: a name, a dtype, or a `FloatFormat`.
        dtype: float32, float64, float16, or ml_dtypes.bfloat16. Every FP8 value is exact in the first two and in bfloat16; float16
            rounds to nearest even what it cannot hold (under unusual biases and in `float8_e8m0fnu`).
        out: an array of codes' shape and of `dtype`, to be written and returned; it may overlap codes.

    Returns:
        An array of codes' shape; a NumPy scalar for 0-d codes, as NumPy's ufuncs give it. NaN keeps its sign.

    Raises:
        FormatError: the format is unknown, or is not that of an ml_dtypes array.
        DTypeError: codes are not 8-bit, or dtype is another one. ShapeError: `out` has another shape.

    >>> decode(np.array([0x38, 0xFF, 0x01], np.uint8), "e4m3fn")
    array([1.        ,        nan, 0.00195312], dtype=float32)
    """
    f = get_format(fmt)
    array = _checked_codes(codes, f)
    wanted = _float_type("decode", dtype)
    _check_out("decode", out, array.shape, wanted)
    values = _buffer(out, array, wanted)
    if wanted == np.float32 and f.signed:
        select("decode_f32", f)(array.reshape(-1), conversion_rule(f, IEEE), values.reshape(-1))
    else:
        # mode: indices are bytes, and "raise" would make NumPy go through a copy.
        np.take(_table(f, wanted), array, out=values, mode="clip")
    return _delivered(values, out)


def decode_table(fmt: Any) -> Floats:
    """The values of all 256 codes: float32[256], read-only, computed from the law and kept.

    >>> decode_table("e4m3fn")[[0x00, 0x38, 0x7E]]
    array([  0.,   1., 448.], dtype=float32)
    """
    return _table(get_format(fmt), np.dtype(np.float32))


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
        _encode(quotient, f, SATURATE, _NO_RANDOM_BITS, 0, codes)
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
    wanted = _float_type("dequantize", dtype)
    with np.errstate(over="ignore", under="ignore"):
        if wanted == np.float32:
            values = np.asarray(decode(q.codes, q.format))
            return _delivered(np.multiply(values, q.scale, out=values), None)
        # 8 bits times 24 bits are exact in float64. bfloat16 would be reached through float32: to odd, so that bits fall once.
        product = np.asarray(np.multiply(decode(q.codes, q.format, dtype=np.float64), q.scale, dtype=np.float64))
        if wanted.name == "bfloat16":
            return _delivered(to_odd(product, np.dtype(np.float32)).astype(wanted), None)
        return _delivered(product.astype(wanted, copy=False), None)


def _encode(values: _Array, fmt: FloatFormat, policy: Policy, random: npt.NDArray[np.uint32], width: int, codes: Codes) -> None:
    # values: f32 or f64, C-contiguous; codes: u8 of the same shape, C-contiguous.
    rule = conversion_rule(fmt, policy)
    if values.dtype == np.float32 and policy.rounding == "nearest_even" and fmt.signed:
        select("encode_f32", fmt)(values.reshape(-1), rule, codes.reshape(-1))
        return
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = values.astype(np.float64, copy=False)
    select("encode_f64", fmt)(wide.reshape(-1), rule, random, width, codes.reshape(-1))
    if not fmt.signed:
        codes[values < 0] = nan_code(fmt, policy.nan, negative=True)
        if policy.overflow == "ieee":
            codes[values == 0] = nan_code(fmt, policy.nan, negative=False)


# -- checks and shapes ------------------------------------------------------------------------------------------------


def _checked_random_bits(bits: Any, policy: Policy, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.uint32], int]:
    if policy.rounding != "stochastic":
        if bits is not None:
            raise PolicyError(f"encode: random_bits have no use with rounding={policy.rounding!r}; ask for rounding='stochastic'")
        return _NO_RANDOM_BITS, 0
    if bits is None:
        raise PolicyError("encode: rounding='stochastic' needs random_bits=, e.g. rng.integers(0, 256, x.shape, np.uint8)")
    array = np.asarray(bits)
    if array.dtype.kind != "u" or array.dtype.itemsize > 4:
        raise DTypeError(f"encode: expected random_bits of uint8, uint16 or uint32, got {array.dtype}")
    try:
        broadcast = np.broadcast_to(array, shape)
    except ValueError:
        raise ShapeError(f"encode: random_bits of shape {array.shape} do not broadcast to x of shape {shape}") from None
    return broadcast.astype(np.uint32).reshape(-1), 8 * array.dtype.itemsize


def _float_type(what: str, dtype: Any) -> np.dtype[Any]:
    try:
        wanted: np.dtype[Any] = np.dtype(dtype)
        # None is float64 to NumPy; here it is more likely a mistake.
        known = dtype is not None and (wanted in (np.float32, np.float64, np.float16) or wanted.name == "bfloat16")
    except TypeError:  # a name that NumPy does not know, a torch dtype
        known = False
    if not known:
        raise DTypeError(f"{what}: expected dtype to be float32, float64, float16 or ml_dtypes.bfloat16, got {dtype!r}")
    return wanted


def _checked_codes(codes: Any, fmt: FloatFormat) -> Codes:
    if isinstance(codes, QTensor):
        raise DTypeError("decode: got a QTensor; use dequantize(), or decode its .codes to leave the scale out")
    array = np.asarray(codes)
    if array.dtype != np.uint8:
        if array.dtype.itemsize != 1 or not array.dtype.name.startswith("float8"):
            raise DTypeError(f"decode: expected uint8 codes or an ml_dtypes array, got {array.dtype}")
        if get_format(array.dtype) != fmt:
            raise FormatError(f"decode: the codes are {array.dtype.name}, but the format given is {fmt}")
        array = array.view(np.uint8)
    return np.asarray(array, order="C")


def _check_out(what: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if out is None:
        return
    if not isinstance(out, np.ndarray) or out.dtype != dtype:
        raise DTypeError(f"{what}: expected out to be an array of {dtype}, got {getattr(out, 'dtype', type(out).__name__)}")
    if out.shape != shape:
        raise ShapeError(f"{what}: expected out of shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise DTypeError(f"{what}: out is read-only")


def _buffer(out: _Array | None, source: _Array, dtype: np.dtype[Any]) -> _Array:
    # Where the kernel writes: `out` itself, unless it has gaps or shares memory with what is read.
    if out is None or not out.flags.c_contiguous or np.may_share_memory(out, source):
        return np.empty(source.shape, dtype)
    return out


def _delivered(buffer: _Array, out: _Array | None) -> _Array:
    if out is None:
        return buffer[()]
    if buffer is not out:
        out[...] = buffer
    return out


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


@lru_cache(maxsize=256)
def _table(fmt: FloatFormat, dtype: np.dtype[Any]) -> _Array:
    values = np.array([float(reference.decode(fmt, code)) for code in range(256)])
    negative = np.arange(256) & fmt.sign_bit != 0
    values = np.where(np.isnan(values) & negative, -values, values)
    with np.errstate(over="ignore"):
        table = values.astype(dtype)
    table.setflags(write=False)
    return table
