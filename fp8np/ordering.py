"""Codes compared as the numbers they stand for: which is next, how far it is, which is larger, which is not a number.

Nothing is decoded. A code is a sign and a magnitude that counts the values upwards, so its place among all values is an integer,
and every question here is one about places (e4m3fn)::

    code     FF ... FE    81   80   00   01 ... 7E    7F
    value   -nan  -448  -2^-9  -0    0  2^-9   448   nan
    place          -126   -1    0    0    1    126
    key     -128   -127   -2   -1    0    1    126   127     all of them in order, zeros and NaNs too (IEEE 754-2019, 5.10)

Codes are uint8 of any shape, or an ml_dtypes array. Where there are two operands, they broadcast and share a format.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.codec import checked_codes
from fp8np.errors import DTypeError, FormatError, ShapeError
from fp8np.formats import FloatFormat, get_format
from fp8np.scaling import dequantize
from fp8np.tensor import Codes, Floats, QTensor

__all__ = ["UNORDERED", "compare", "isfinite", "isinf", "isnan", "nextafter", "order_key", "signbit", "spacing", "total_order"]

_Bools = npt.NDArray[np.bool_]
_Table = TypeVar("_Table", bound=npt.NDArray[Any])

UNORDERED = 2
"""What `compare` gives where an operand is NaN."""


# -- what a code is ---------------------------------------------------------------------------------------------------


def isnan(codes: Any, fmt: Any = None) -> _Bools:
    """Whether each code is NaN.

    Args:
        codes: uint8 or an ml_dtypes array, any shape; or a `QTensor`.
        fmt: the format; None for an ml_dtypes array or a QTensor, which have their own.

    Returns:
        bool of codes' shape; a NumPy scalar for 0-d codes.

    Raises:
        FormatError: the format is unknown, missing, or not that of the codes; or a code has more bits than it. DTypeError: codes are
        not 8-bit.

    >>> isnan(np.array([0x7E, 0x7F, 0xFF], np.uint8), "e4m3fn")
    array([False,  True,  True])
    """
    return _classified("isnan", codes, fmt)[0]


def isinf(codes: Any, fmt: Any = None) -> _Bools:
    """Whether each code is an infinity of either sign; see `isnan`.

    >>> isinf(np.array([0x7B, 0x7C, 0xFC], np.uint8), "e5m2")
    array([False,  True,  True])
    """
    nan, infinite = _classified("isinf", codes, fmt)
    return np.logical_and(infinite, ~nan)


def isfinite(codes: Any, fmt: Any = None) -> _Bools:
    """Whether each code is neither NaN nor an infinity; see `isnan`.

    >>> isfinite(np.array([0x7B, 0x7C, 0x7F], np.uint8), "e5m2")
    array([ True, False, False])
    """
    nan, infinite = _classified("isfinite", codes, fmt)
    return np.logical_not(np.logical_or(nan, infinite))


def signbit(codes: Any, fmt: Any = None) -> _Bools:
    """Whether each code has its sign bit set, as -0, negative NaN and the NaN of the fnuz formats have; see `isnan`.

    >>> signbit(np.array([0x00, 0x80, 0xB8], np.uint8), "e4m3fn")
    array([False,  True,  True])
    """
    array, f = _operand("signbit", codes, fmt, tensors=True)
    result: _Bools = np.not_equal(np.bitwise_and(array, f.sign_bit), 0)
    return result


# -- neighbours -------------------------------------------------------------------------------------------------------


def nextafter(codes: Any, toward: Any, fmt: Any = None) -> Codes:
    """The codes of the next values in the direction of others, as `numpy.nextafter`.

    Beyond the largest value comes infinity, where the format has it. Where both operands are equal the result is `toward`, zeros
    included. A step to zero keeps the sign, where the format has a negative zero. A NaN is passed on as it is, the first before the
    second.

    Args:
        codes: uint8 or an ml_dtypes array, any shape.
        toward: the same, of a shape that broadcasts with codes.
        fmt: the format of both; None for ml_dtypes arrays.

    Returns:
        uint8 of the common shape; a NumPy scalar if it is 0-d.

    Raises:
        As `isnan`. ShapeError: the shapes do not broadcast.

    >>> [f"{c:02X}" for c in nextafter(np.array([0x00, 0x38, 0x7E], np.uint8), np.uint8(0xFE), "e4m3fn")]
    ['81', '37', '7D']
    """
    (x, y), f = _operands("nextafter", codes, toward, fmt)
    here, there = _look_up(_places(f), x), _look_up(_places(f), y)
    step = np.where(here < there, 1, -1).astype(np.int16)
    place = here + step
    magnitude = np.abs(place)
    negative = np.where(place == 0, f.has_negative_zero & (here < 0), place < 0)
    moved = np.where(negative, magnitude | f.sign_bit, magnitude).astype(np.uint8)
    nan = _is_nan(f)
    result = np.where(here == there, y, moved)
    result = np.where(_look_up(nan, y), y, result)
    return np.where(_look_up(nan, x), x, result)[()]


def spacing(codes: Any, fmt: Any = None) -> Floats:
    """The distance from each value to the next one away from zero, negative for negative values, as `numpy.spacing`.

    Of the largest value it is the step of its binade, as if the exponent were unbounded (NumPy: infinity): an ulp. Of both zeros it is
    the smallest positive value, of infinities NaN, of NaN NaN. The unit is that of the codes: multiply by a scale where there is one.

    Args:
        codes: uint8 or an ml_dtypes array, any shape.
        fmt: the format; None for an ml_dtypes array.

    Returns:
        float32 of codes' shape, exact; a NumPy scalar for 0-d codes.

    Raises:
        As `isnan`.

    >>> spacing(np.array([0x00, 0x38, 0x7E, 0xB8], np.uint8), "e4m3fn").tolist()
    [0.001953125, 0.125, 32.0, -0.125]
    """
    array, f = _operand("spacing", codes, fmt)
    result: Floats = _look_up(_spacings(f), array)
    return result


# -- order ------------------------------------------------------------------------------------------------------------


def compare(a: Any, b: Any, fmt: Any = None) -> npt.NDArray[np.int8]:
    """-1 where a < b, 0 where they are equal (zeros of both signs are), 1 where a > b, and `UNORDERED` where one is NaN.

    Args:
        a: uint8 or an ml_dtypes array, any shape.
        b: the same, of a shape that broadcasts with a.
        fmt: the format of both; None for ml_dtypes arrays.

    Returns:
        int8 of the common shape; a NumPy scalar if it is 0-d.

    Raises:
        As `nextafter`.

    >>> compare(np.array([0x80, 0x38, 0xB8, 0x7F], np.uint8), np.uint8(0x00), "e4m3fn").tolist() == [0, 1, -1, UNORDERED]
    True
    """
    (x, y), f = _operands("compare", a, b, fmt)
    nan = _is_nan(f)
    sign = np.sign(_look_up(_places(f), x) - _look_up(_places(f), y))
    return np.where(np.logical_or(_look_up(nan, x), _look_up(nan, y)), UNORDERED, sign).astype(np.int8)[()]


def total_order(a: Any, b: Any, fmt: Any = None) -> _Bools:
    """Whether a comes before b, or is the same code, in the total order of IEEE 754-2019, section 5.10.

    -NaN < -infinity < ... < -0 < +0 < ... < infinity < NaN; of two NaNs with the same sign, the one with the larger payload (the
    quiet one) is further from zero. A NaN without a sign of its own is where its code is: first of all where it takes the place of
    negative zero (fnuz, signed P3109 formats), last where the format has no sign.

    Args, Returns, Raises: as `compare`, but bool.

    >>> total_order(np.uint8(0x80), np.array([0x00, 0xFF, 0x7F], np.uint8), "e4m3fn")
    array([ True, False,  True])
    """
    (x, y), f = _operands("total_order", a, b, fmt)
    result: _Bools = np.less_equal(_look_up(_keys(f), x), _look_up(_keys(f), y))
    return result


def order_key(codes: Any, fmt: Any = None) -> npt.NDArray[np.int16]:
    """Integers that sort as the codes do in `total_order`: for `numpy.argsort`, `numpy.searchsorted`, `numpy.maximum`, ...

    Args:
        codes: uint8 or an ml_dtypes array, any shape.
        fmt: the format; None for an ml_dtypes array.

    Returns:
        int16 of codes' shape; a NumPy scalar for 0-d codes. Every code has a key of its own.

    Raises:
        As `isnan`.

    >>> codes = np.array([0x38, 0xB8, 0x00, 0x7F, 0x80], np.uint8)  # 1, -1, 0, nan, -0
    >>> [f"{c:02X}" for c in codes[np.argsort(order_key(codes, "e4m3fn"))]]
    ['B8', '80', '00', '38', '7F']
    """
    array, f = _operand("order_key", codes, fmt)
    result: npt.NDArray[np.int16] = _look_up(_keys(f), array)
    return result


# -- tables and checks ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _keys(fmt: FloatFormat) -> npt.NDArray[np.int16]:
    # The order of sign and magnitude, -0 before 0; a NaN in the place of -0 before everything.
    code = np.arange(256, dtype=np.int16)
    keys = np.where(code & fmt.sign_bit, -1 - (code & fmt.magnitude_mask), code).astype(np.int16)
    if fmt.signed and not fmt.has_negative_zero:
        keys[fmt.sign_bit] = -2 - fmt.magnitude_mask
    return _frozen(keys)


@lru_cache(maxsize=256)
def _places(fmt: FloatFormat) -> npt.NDArray[np.int16]:
    # As `_keys`, but both zeros at 0. Of a NaN it means nothing.
    key = _keys(fmt)
    return _frozen(np.where(key < 0, key + 1, key).astype(np.int16))


@lru_cache(maxsize=256)
def _is_nan(fmt: FloatFormat) -> _Bools:
    table = np.zeros(256, np.bool_)
    table[list(fmt.nan_codes)] = True
    return _frozen(table)


@lru_cache(maxsize=256)
def _is_infinite(fmt: FloatFormat) -> _Bools:
    table = np.zeros(256, np.bool_)
    table[list(fmt.inf_codes)] = True
    return _frozen(table)


@lru_cache(maxsize=256)
def _spacings(fmt: FloatFormat) -> Floats:
    table = np.full(256, np.nan)
    for magnitude in range(fmt.max_magnitude + 1):
        step = float(reference.magnitude_value(fmt, magnitude + 1) - reference.magnitude_value(fmt, magnitude))
        if fmt.signed and (magnitude or fmt.has_negative_zero):
            table[magnitude | fmt.sign_bit] = -step if magnitude else step
        table[magnitude] = step
    return _frozen(table.astype(np.float32))


def _frozen(table: _Table) -> _Table:
    table.setflags(write=False)
    return table


def _look_up(table: Any, codes: Codes) -> Any:
    # mode: codes are bytes, and "raise" would make NumPy check each of them.
    return np.take(table, codes, mode="clip")


def _classified(what: str, codes: Any, fmt: Any) -> tuple[_Bools, _Bools]:
    # Which elements are NaN, and which codes are infinities.
    array, f = _operand(what, codes, fmt, tensors=True)
    nan, infinite = _look_up(_is_nan(f), array), _look_up(_is_infinite(f), array)
    if isinstance(codes, QTensor) and np.isnan(codes.scale).any():
        nan = np.isnan(dequantize(codes, dtype=np.float64))  # blocks whose scale is NaN
    return nan, infinite


def _operand(what: str, codes: Any, fmt: Any, *, tensors: bool = False) -> tuple[Codes, FloatFormat]:
    if isinstance(codes, QTensor):
        if not tensors:
            raise DTypeError(f"{what}: got a QTensor; give its .codes and .format, since its scale has no part in this")
        if fmt is not None and get_format(fmt) != codes.format:
            raise FormatError(f"{what}: the QTensor is {codes.format}, but the format given is {get_format(fmt)}")
        return codes.codes, codes.format
    if fmt is None:
        dtype = np.asarray(codes).dtype
        if dtype == np.uint8:
            raise FormatError(f"{what}: the format of the codes is needed, e.g. {what}(codes, fmt='e4m3fn')")
        if dtype.itemsize != 1 or not dtype.name.startswith("float"):
            raise DTypeError(f"{what}: expected uint8 codes or an ml_dtypes array, got {dtype}")
        fmt = dtype
    f = get_format(fmt)
    return checked_codes(what, codes, f), f


def _operands(what: str, a: Any, b: Any, fmt: Any) -> tuple[tuple[Codes, Codes], FloatFormat]:
    x, f = _operand(what, a, fmt)
    y, g = _operand(what, b, f if fmt is not None or np.asarray(b).dtype == np.uint8 else None)
    if f != g:
        raise FormatError(f"{what}: the operands are of different formats, {f} and {g}")
    try:
        np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        raise ShapeError(f"{what}: shapes {x.shape} and {y.shape} do not broadcast") from None
    return (x, y), f
