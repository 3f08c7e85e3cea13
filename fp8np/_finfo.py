"""`finfo`: the limits of a format, as NumPy gives those of its own floats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fp8np.formats import FloatFormat, get_format

__all__ = ["FormatInfo", "finfo"]


@dataclass(frozen=True)
class FormatInfo:
    """Limits of a format, with the fields of `numpy.finfo`. Values are Python floats, all exact.

    Attributes:
        bits: width of a code. nexp, nmant: widths of the exponent and mantissa fields.
        iexp: as nexp. machep, negep: exponents of eps and epsneg. minexp, maxexp: of the smallest normal value, and the
            first power of two that overflows.
        eps, epsneg: distance from 1 to the next larger and to the next smaller value.
        max, min, tiny, smallest_normal, smallest_subnormal: see `FloatFormat`.
        precision: decimal digits that survive, for 8 bits at least 1, as in ml_dtypes. resolution: 10**-precision.
        dtype: canonical name of the format.
    """

    dtype: str
    bits: int
    nexp: int
    nmant: int
    iexp: int
    machep: int
    negep: int
    minexp: int
    maxexp: int
    eps: float
    epsneg: float
    max: float
    min: float
    tiny: float
    smallest_normal: float
    smallest_subnormal: float
    precision: int
    resolution: float


@lru_cache(maxsize=256)
def _finfo(fmt: FloatFormat) -> FormatInfo:
    m = fmt.mantissa_bits
    precision = max(int(fmt.bits == 8), int(m * math.log10(2)))
    below_one = m + (fmt.min_exponent < 0)  # 1 may be the smallest normal value, with the subnormals' spacing below it
    return FormatInfo(
        dtype=fmt.name,
        bits=fmt.bits,
        nexp=fmt.exponent_bits,
        nmant=m,
        iexp=fmt.exponent_bits,
        machep=-m,
        negep=-below_one,
        minexp=fmt.min_exponent,
        maxexp=fmt.max_exponent + 1,
        eps=fmt.eps,
        epsneg=2.0**-below_one,
        max=fmt.max,
        min=fmt.min,
        tiny=fmt.smallest_normal,
        smallest_normal=fmt.smallest_normal,
        smallest_subnormal=fmt.smallest_subnormal,
        precision=precision,
        resolution=10.0**-precision,
    )


def finfo(fmt: Any) -> FormatInfo:
    """Limits of a format, as `numpy.finfo` gives them for NumPy's floats; ``finfo(x) is finfo(x)``.

    Args:
        fmt: anything `get_format` takes, or an object with a ``format`` (a `QTensor`).

    Raises:
        FormatError: the format is unknown.

    >>> finfo("e5m2").max, finfo("e5m2").smallest_subnormal
    (57344.0, 1.52587890625e-05)
    """
    inner = getattr(fmt, "format", None)
    return _finfo(inner if isinstance(inner, FloatFormat) else get_format(fmt))
