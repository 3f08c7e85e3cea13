"""Exact sources: numbers of any type as float32 or float64 that FP8 rounding cannot tell from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.errors import DTypeError

__all__ = ["exact_floats", "float16_values", "to_odd"]


def exact_floats(what: str, x: Any, source: str | None = None) -> npt.NDArray[Any]:
    """C-contiguous float32 or float64 of x's shape that rounds to the same codes as x does, in every rounding mode.

    Args:
        what: the caller's name, for messages.
        x: real numbers, as `fp8np.codec.encode` takes them.
        source: None, or "bfloat16" if x is uint16 and holds the bits of bfloat16 numbers.

    Raises:
        DTypeError: x is not of real numbers, or not of the bits that `source` says.
    """
    array = _array(what, x)
    if source is not None:
        if source != "bfloat16" or array.dtype != np.uint16:
            raise DTypeError(f"{what}: expected source='bfloat16' with an x of uint16 bits, got source={source!r} with {array.dtype}")
        return np.asarray(np.left_shift(array, 16, dtype=np.uint32, order="C")).view(np.float32)
    dtype = array.dtype
    if dtype == np.float32:
        return np.asarray(array, np.float32, order="C")
    if dtype.kind in "biu":
        if dtype.itemsize == 8:
            return _integers_to_odd(array)
        return array.astype(np.float32 if dtype.itemsize <= 2 else np.float64, order="C")
    if dtype.kind == "f" and dtype.itemsize >= 8:
        wide = np.dtype(np.float64)
        return array.astype(wide, order="C", copy=False) if dtype.itemsize == 8 else to_odd(array, wide)
    # float16, and whatever ml_dtypes offers: none of it is wider than float32.
    if dtype.name.startswith(("float", "bfloat", "int", "uint")):
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return array.astype(np.float32, order="C")
    if dtype.kind == "O":
        raise DTypeError(
            f"{what}: expected real numbers, got Python objects ({type(x).__name__}): integers of more than 64 bits, fractions or "
            "others; fp8np.reference.encode takes an int or a Fraction, one at a time"
        )
    raise DTypeError(f"{what}: expected real numbers, got an array of {dtype}")


def _array(what: str, x: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:  # a ragged list; a torch tensor of a type that NumPy lacks
        bits = ". Its bits will do: encode(x.view(torch.uint16), ..., source='bfloat16')"
        hint = bits if str(getattr(x, "dtype", "")) == "torch.bfloat16" else ""
        raise DTypeError(f"{what}: cannot make an array of x: {error}{hint}") from None


def _integers_to_odd(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    # 64-bit integers have up to 11 bits more than float64. Their last 11 bits are or-ed into the one above where any has to go: "to odd"
    # keeps on which side of every FP8 value and midpoint the number lies, and more than 32 random bits can tell.
    negative = array < 0
    magnitude = np.where(negative, np.negative(array.astype(np.uint64)), array.astype(np.uint64))
    low = magnitude & np.uint64(0x7FF)
    odd = (magnitude - low) | np.where(low != 0, np.uint64(0x800), np.uint64(0))
    values = np.where(magnitude >> np.uint64(53) != 0, odd, magnitude).astype(np.float64)
    return np.where(negative, -values, values)


def to_odd(wide: npt.NDArray[Any], narrow: np.dtype[Any]) -> npt.NDArray[Any]:
    """Rounds to float64 or float32 to odd: an inexact result is the neighbour whose last bit is set.

    A second rounding, to a format narrower by two bits or more, then gives what one rounding would have given.

    >>> to_odd(np.array([1 + 2.0**-52]), np.dtype(np.float32)).item() == 1 + 2.0**-23
    True
    """
    with np.errstate(over="ignore", under="ignore"):
        values = np.asarray(wide.astype(narrow, order="C"))
    back = values.astype(wide.dtype)
    inexact = (back != wide) & ~np.isnan(wide)
    bits: npt.NDArray[Any] = values.view(np.int64 if narrow.itemsize == 8 else np.int32)
    bits -= inexact & (np.abs(back) > np.abs(wide))
    bits |= inexact
    return values


def float16_values(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """float32 or float64, rounded to what float16 holds, to nearest even, as float32. NaN keeps its leading payload.

    NumPy's own cast raises the CPU's flags for each number that float16 cannot hold well: half a microsecond each, against 10 ns.

    >>> float16_values(np.array([1.0004, 1e-9, -65520.0]))
    array([  1.,   0., -inf], dtype=float32)
    """
    kind, drop = (np.uint32, 13) if x.dtype == np.float32 else (np.uint64, 42)
    magnitude = np.abs(x)
    bits = magnitude.view(kind)
    bits = bits + ((bits >> drop & 1) + kind((1 << (drop - 1)) - 1))
    rounded = (bits >> drop << drop).view(x.dtype)
    # Subnormals are multiples of 2**-24: the sum has no room for less.
    high = x.dtype.type(2.0 ** (np.finfo(x.dtype).nmant - 24))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        rounded = np.where(magnitude < 2.0**-14, (magnitude + high) - high, rounded)
        rounded = np.where(rounded > 65504, x.dtype.type(np.inf), rounded)
        signed: npt.NDArray[Any] = np.copysign(np.where(np.isnan(x), x, rounded), x)
        return signed.astype(np.float32, copy=False)
