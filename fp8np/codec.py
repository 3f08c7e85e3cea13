"""Between numbers and FP8 codes: `encode` and `decode`.

Arguments are checked here and brought into the form that the kernels take (C-contiguous float32 or float64); the arithmetic is
theirs. The law that they follow is `fp8np.reference`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np._sources import exact_floats, float16_values
from fp8np.errors import DTypeError, FormatError, PolicyError, ShapeError
from fp8np.formats import FloatFormat, get_format
from fp8np.kernels._rule import conversion_rule
from fp8np.kernels._table import select
from fp8np.policy import IEEE, STOCHASTIC, Policy, infinity_magnitude, nan_code, points_inward, resolve
from fp8np.tensor import Codes, Floats, QTensor, code_values

__all__ = ["checked_codes", "decode", "decode_table", "delivered", "encode", "encode_exact_floats", "float_type"]

_Array = npt.NDArray[Any]

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
        x: float64, float32, float16, bfloat16 (an ml_dtypes array), longdouble, bool, integers of up to 64 bits, or nested lists of them;
            any shape, strides and byte order. Nothing is rounded on the way: float64, longdouble and 64-bit integers neither.
        fmt: the format: a name, a dtype, or a `FloatFormat`.
        overflow: "saturate", "ieee", "propagate" or "ieee_early". None means "saturate", or what the preset says.
        rounding: "nearest_even", "nearest_away", "toward_zero", "up", "down", "odd", "stochastic_a", "stochastic_b" or "stochastic_c".
            None means "nearest_even", or what the preset says.
        nan: "keep_sign", "all_ones", "positive", ... None means "keep_sign", or what the preset says. See `fp8np.policy` for the three.
        preset: the conversion of another library or standard, by name (`fp8np.policy.PRESETS`), in place of the three above.
        random_bits: for stochastic rounding: uint8, uint16 or uint32, broadcastable to x, all bits of each used; or a
            `numpy.random.Generator`, from which 16 bits are drawn for each element (8 under AVX10.2's presets, as its instructions take).
        source: "bfloat16" says that x is uint16 and holds the bits of bfloat16 numbers.
        out: uint8 of x's shape, to be written and returned; it may overlap x.

    Returns:
        uint8 of x's shape; a NumPy scalar for a 0-d x, as NumPy's ufuncs give it.

    Raises:
        FormatError: the format is unknown. PolicyError: a policy is unknown, contradicts the preset, or does not fit the format.
        DTypeError: x is not of real numbers, or `out` or `random_bits` has another type. ShapeError: their shapes do not fit.

    Negative zero is kept where the format has it. Formats without a sign, or without a zero: see `fp8np.policy`.

    >>> encode([1.0, -0.3, 1e9], "e4m3fn")
    array([ 56, 170, 126], dtype=uint8)
    >>> hex(encode(1e9, "e4m3fn", overflow="ieee"))
    '0x7f'
    >>> encode(np.full(4, 1.03), "e4m3fn", rounding="stochastic_a", random_bits=np.array([0, 100, 200, 255], np.uint8))
    array([56, 56, 57, 57], dtype=uint8)
    """
    f = get_format(fmt)
    policy = resolve(f, overflow=overflow, rounding=rounding, nan=nan, preset=preset)
    values = exact_floats("encode", x, source)
    if policy.via == "float16":
        values = float16_values(values)
    random, width = _checked_random_bits(random_bits, policy, values.shape)
    _check_out("encode", out, values.shape, np.dtype(np.uint8))
    codes = _buffer(out, values, np.dtype(np.uint8))
    encode_exact_floats(values, f, policy, codes, random, width)
    return delivered(codes, out)


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
    array = checked_codes("decode", codes, f)
    wanted = float_type("decode", dtype)
    _check_out("decode", out, array.shape, wanted)
    values = _buffer(out, array, wanted)
    if wanted == np.float32 and f.signed and f.bits == 8:
        select("decode_f32", f)(array.reshape(-1), conversion_rule(f, IEEE), values.reshape(-1))
    else:
        # mode: indices are bytes, and "raise" would make NumPy go through a copy.
        np.take(_table(f, wanted), array, out=values, mode="clip")
    return delivered(values, out)


def decode_table(fmt: Any) -> Floats:
    """The values of all codes: float32[256], read-only, computed from the law and kept; NaN for bytes beyond a narrow format.

    >>> decode_table("e4m3fn")[[0x00, 0x38, 0x7E]]
    array([  0.,   1., 448.], dtype=float32)
    """
    return _table(get_format(fmt), np.dtype(np.float32))


def encode_exact_floats(
    values: _Array, fmt: FloatFormat, policy: Policy, codes: Codes, random: npt.NDArray[np.uint32] = _NO_RANDOM_BITS, width: int = 0
) -> None:
    """Writes the codes of float32 or float64 values to u8 of the same shape; all C-contiguous and checked."""
    if not fmt.signed and policy.negative == "magnitude":
        values = np.abs(values)
    rule = conversion_rule(fmt, policy)
    flat = codes.reshape(-1)
    if values.dtype == np.float32 and policy.rounding == "nearest_even":
        select("encode_f32", fmt)(values.reshape(-1), rule, flat)
    elif values.dtype == np.float32 and 0 < width <= 16:
        select("encode_f32_stochastic", fmt)(values.reshape(-1), rule, random, width, flat)
    else:
        with np.errstate(invalid="ignore"):  # a signalling NaN
            wide = values.astype(np.float64, copy=False)
        select("encode_f64", fmt)(wide.reshape(-1), rule, random, width, flat)
    _correct(values, fmt, policy, codes)


def _correct(values: _Array, fmt: FloatFormat, policy: Policy, codes: Codes) -> None:
    # What the kernels do not know, since few formats and policies need it.
    if not fmt.signed:
        below, nan = values < 0, nan_code(fmt, "keep_sign", negative=True)
        if policy.negative == "zero" or (policy.negative == "range" and fmt.has_zero and policy.overflow in ("saturate", "propagate")):
            codes[below] = 0
        elif fmt.has_zero:
            inward = points_inward(policy.rounding, negative=True) & np.isfinite(values)
            codes[below] = np.where(inward | (codes == 0), 0, nan)[below]
        else:
            codes[below] = nan
    if not fmt.has_zero:
        if policy.zero == "nan":
            codes[values == 0] = nan_code(fmt, "keep_sign", negative=False)
        if policy.lowest == "zero":
            second = float(reference.magnitude_value(fmt, 1))
            near = (values > 0) & (values < second)
            codes[near] = (policy.rounding == "up") | ((policy.rounding != "toward_zero") & (values[near] > second / 2))
    if policy.overflow == "ieee_early" and fmt.nan_codes:
        for negative in {False, fmt.signed}:
            if not points_inward(policy.rounding, negative):
                beyond = np.isfinite(values) & ((values < fmt.min) if negative else (values > fmt.max))
                codes[beyond] = infinity_magnitude(fmt) | (fmt.sign_bit if negative else 0)
    if policy.nan == "payload" and len(fmt.nan_codes) > 2:
        nans = np.isnan(values)
        bits, width = (np.uint32, 23) if values.dtype == np.float32 else (np.uint64, 52)
        kept: npt.NDArray[Any] = values[nans].view(bits)
        codes[nans] |= (kept >> (width - fmt.mantissa_bits) & ((1 << fmt.mantissa_bits) - 1)).astype(np.uint8)


# -- checks and shapes ------------------------------------------------------------------------------------------------


def _checked_random_bits(bits: Any, policy: Policy, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.uint32], int]:
    if policy.rounding not in STOCHASTIC:
        if bits is not None:
            raise PolicyError(f"encode: random_bits have no use with rounding={policy.rounding!r}; ask for rounding='stochastic_a'")
        return _NO_RANDOM_BITS, 0
    if bits is None:
        raise PolicyError(
            f"encode: rounding={policy.rounding!r} needs random_bits=, e.g. np.random.default_rng(), or bits of your own: "
            "rng.integers(0, 256, x.shape, np.uint8)"
        )
    if isinstance(bits, np.random.Generator):
        kind = np.uint16 if policy.via is None else np.uint8
        bits = bits.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    array = np.asarray(bits)
    if array.dtype.kind != "u" or array.dtype.itemsize > 4:
        raise DTypeError(f"encode: expected random_bits of uint8, uint16 or uint32, got {array.dtype}")
    try:
        broadcast = np.broadcast_to(array, shape)
    except ValueError:
        raise ShapeError(f"encode: random_bits of shape {array.shape} do not broadcast to x of shape {shape}") from None
    return broadcast.astype(np.uint32).reshape(-1), 8 * array.dtype.itemsize


def float_type(what: str, dtype: Any) -> np.dtype[Any]:
    """The dtype of decoded values.

    Raises:
        DTypeError: it is not one of the four.
    """
    try:
        wanted: np.dtype[Any] = np.dtype(dtype)
        # None is float64 to NumPy; here it is more likely a mistake.
        known = dtype is not None and (wanted in (np.float32, np.float64, np.float16) or wanted.name == "bfloat16")
    except TypeError:  # a name that NumPy does not know, a torch dtype
        known = False
    if not known:
        raise DTypeError(f"{what}: expected dtype to be float32, float64, float16 or ml_dtypes.bfloat16, got {dtype!r}")
    return wanted


def checked_codes(what: str, codes: Any, fmt: FloatFormat) -> Codes:
    """Codes of a format as C-contiguous uint8.

    Raises:
        DTypeError: they are not 8-bit, or a QTensor. FormatError: they are of another format, or wider than it.
    """
    if isinstance(codes, QTensor):
        raise DTypeError(f"{what}: got a QTensor; use dequantize(), or decode its .codes to leave the scale out")
    array = np.asarray(codes)
    if array.dtype != np.uint8:
        if array.dtype.itemsize != 1 or not array.dtype.name.startswith("float"):
            raise DTypeError(f"{what}: expected uint8 codes or an ml_dtypes array, got {array.dtype}")
        if get_format(array.dtype) != fmt:
            raise FormatError(f"{what}: the codes are {array.dtype.name}, but the format given is {fmt}")
        array = array.view(np.uint8)
    if fmt.bits < 8 and array.size and array.max() >> fmt.bits:
        raise FormatError(f"{what}: {fmt} has codes of {fmt.bits} bits, one in each byte, got 0x{array.max():02X}; unpack them first")
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


def delivered(buffer: _Array, out: _Array | None) -> _Array:
    """The result as NumPy's ufuncs give it: `out` if there is one, a scalar for 0-d."""
    if out is None:
        return buffer[()]
    if buffer is not out:
        out[...] = buffer
    return out


@lru_cache(maxsize=256)
def _table(fmt: FloatFormat, dtype: np.dtype[Any]) -> _Array:
    values = code_values(fmt)
    negative = np.arange(256) & fmt.sign_bit != 0
    values = np.where(np.isnan(values) & negative, -values, values)
    with np.errstate(over="ignore"):
        table = values.astype(dtype)
    table.setflags(write=False)
    return table
