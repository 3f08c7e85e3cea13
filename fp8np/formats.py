"""The table of 8-bit float formats. A format is one row of primary facts; everything else is derived from it.

The bits of a code, for a signed format with ``e`` exponent and ``m`` mantissa bits (1 + e + m = 8)::

     7   6 .. m    m-1 .. 0
    [s] [exponent] [mantissa]      value = (-1)^s * 2^(exponent - bias) * 1.mantissa     exponent > 0
                                           (-1)^s * 2^(1 - bias)        * 0.mantissa     exponent = 0

Which of the topmost codes are infinity or NaN is the format's `Specials`.

>>> get_format("e4m3fn").max
448.0
>>> [f.name for f in FORMATS.values() if f.max == 30]
['float8_e4m3b11fnuz', 'float8_e3m4fn']
"""

from __future__ import annotations

import dataclasses
import enum
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

from fp8np.errors import FormatError

__all__ = ["FORMATS", "FloatFormat", "FormatInfo", "Specials", "finfo", "formats", "get_format"]


class Specials(enum.Enum):
    """Where a format keeps infinity and NaN."""

    IEEE = "ieee"
    """The top exponent is reserved: mantissa 0 is infinity, every other mantissa is NaN. There is a negative zero."""
    NAN_AT_TOP = "nan_at_top"
    """Only the topmost magnitude is NaN (with either sign); no infinity. There is a negative zero where there is a sign."""
    NAN_AT_NEGATIVE_ZERO = "nan_at_negative_zero"
    """Code 0x80 is the one NaN; no infinity, no negative zero."""


@dataclass(frozen=True)
class FloatFormat:
    """An 8-bit float format: primary facts as fields, all else derived.

    Attributes:
        name: canonical name, spelled as ml_dtypes and torch do.
        exponent_bits: width of the exponent field.
        mantissa_bits: width of the mantissa field, the hidden bit not counted.
        bias: what is subtracted from the exponent field.
        specials: where infinity and NaN are.
        source: the text that defines the format.
        stored_as: element type used for it in a safetensors file.
        signed: whether bit 7 is a sign. An unsigned format here has neither zero nor subnormals (MX scales).
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials
    source: str
    stored_as: str = "U8"
    signed: bool = True

    def __post_init__(self) -> None:
        if self.exponent_bits < 1 or self.mantissa_bits < 0:
            raise FormatError(f"{self.name}: expected at least one exponent bit and no negative width")
        if self.signed + self.exponent_bits + self.mantissa_bits != 8:
            raise FormatError(f"{self.name}: sign, exponent and mantissa must fill 8 bits")

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return get_format, (self.name,)

    def with_bias(self, bias: int) -> FloatFormat:
        """The same layout with another exponent bias, as Intel Gaudi has it (Gaudi 2: E4M3 at 3, 7, 11, 15; Gaudi 3: 0 to 62).

        Raises:
            FormatError: the format has no sign, or bias is not in 0..127. TypeError: bias is not an integer.

        >>> get_format("float8_e4m3").with_bias(11).max
        15.0
        """
        if not self.signed:
            raise FormatError(f"{self.name}: only signed formats take another bias")
        bias = operator.index(bias)
        if not 0 <= bias <= 127:
            raise FormatError(f"{self.name}: bias must be in 0..127, got {bias}")
        base = FORMATS.get(self.name.split("@")[0], self)
        if bias == base.bias:
            return base
        # Another bias is another value set, which no element type of safetensors names.
        return dataclasses.replace(base, name=f"{base.name}@{bias}", bias=bias, stored_as="U8")

    # -- magnitudes: the code without its sign bit ----------------------------------------------------------------

    @property
    def sign_bit(self) -> int:
        """Mask of the sign bit; 0 where there is none."""
        return 0x80 if self.signed else 0

    @property
    def magnitude_mask(self) -> int:
        """Mask of the exponent and mantissa fields."""
        return 0xFF >> self.signed

    @cached_property
    def max_magnitude(self) -> int:
        """The magnitude of the largest finite value."""
        top = self.magnitude_mask
        if self.specials is Specials.IEEE:
            return top - (1 << self.mantissa_bits)
        return top - 1 if self.specials is Specials.NAN_AT_TOP else top

    @cached_property
    def inf_magnitude(self) -> int | None:
        """The magnitude of infinity, or None."""
        return self.max_magnitude + 1 if self.specials is Specials.IEEE else None

    # -- codes ----------------------------------------------------------------------------------------------------

    @property
    def has_inf(self) -> bool:
        """Whether infinity can be represented."""
        return self.specials is Specials.IEEE

    @property
    def has_negative_zero(self) -> bool:
        """Whether there is a code for -0."""
        return self.signed and self.specials is not Specials.NAN_AT_NEGATIVE_ZERO

    @property
    def has_zero(self) -> bool:
        """Whether there is a code for 0 (all but MX scales)."""
        return self.signed

    @cached_property
    def nan_codes(self) -> frozenset[int]:
        """Every code that is NaN."""
        if self.specials is Specials.NAN_AT_NEGATIVE_ZERO:
            return frozenset({0x80})
        first = self.max_magnitude + 1 + self.has_inf
        positive = range(first, self.magnitude_mask + 1)
        return frozenset(c | s for c in positive for s in {0, self.sign_bit})

    @cached_property
    def inf_codes(self) -> frozenset[int]:
        """Every code that is an infinity."""
        return frozenset() if self.inf_magnitude is None else frozenset({self.inf_magnitude, self.inf_magnitude | 0x80})

    # -- exponents: of the value, not of the field ----------------------------------------------------------------

    @property
    def min_exponent(self) -> int:
        """log2 of the smallest normal value."""
        return (1 if self.has_zero else 0) - self.bias

    @property
    def max_exponent(self) -> int:
        """floor(log2(max))."""
        return (self.max_magnitude >> self.mantissa_bits) - self.bias

    @property
    def quantum_exponent(self) -> int:
        """log2 of the spacing of subnormals: every value is a whole multiple of 2**quantum_exponent."""
        return self.min_exponent - self.mantissa_bits

    # -- values (all exact in float64) ----------------------------------------------------------------------------

    @property
    def max(self) -> float:
        """The largest finite value."""
        fraction = self.max_magnitude & ((1 << self.mantissa_bits) - 1)
        return float((1 << self.mantissa_bits) + fraction) * 2.0 ** (self.max_exponent - self.mantissa_bits)

    @property
    def min(self) -> float:
        """The lowest finite value: -max where there is a sign, else the smallest positive value."""
        return -self.max if self.signed else self.smallest_normal

    @property
    def smallest_normal(self) -> float:
        """The smallest positive value with a full mantissa."""
        return float(2.0**self.min_exponent)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive value."""
        return float(2.0**self.quantum_exponent)

    @property
    def eps(self) -> float:
        """The distance from 1 to the next larger value of a format with this mantissa."""
        return float(2.0**-self.mantissa_bits)


def _rows(*rows: FloatFormat) -> Mapping[str, FloatFormat]:
    return MappingProxyType({row.name: row for row in rows})


_OCP = "OCP 8-bit Floating Point Specification (OFP8) 1.0, table 1"
_FNUZ = "arXiv 2206.02915, section 2; LLVM APFloat"
_IEEE = "IEEE 754-2019 section 3.4 with an 8-bit width; LLVM APFloat"

FORMATS: Mapping[str, FloatFormat] = _rows(
    FloatFormat("float8_e5m2", 5, 2, 15, Specials.IEEE, _OCP, "F8_E5M2"),
    FloatFormat("float8_e5m2fnuz", 5, 2, 16, Specials.NAN_AT_NEGATIVE_ZERO, _FNUZ),
    FloatFormat("float8_e4m3", 4, 3, 7, Specials.IEEE, _IEEE),
    FloatFormat("float8_e4m3fn", 4, 3, 7, Specials.NAN_AT_TOP, _OCP, "F8_E4M3"),
    FloatFormat("float8_e4m3fnuz", 4, 3, 8, Specials.NAN_AT_NEGATIVE_ZERO, _FNUZ),
    FloatFormat("float8_e4m3b11fnuz", 4, 3, 11, Specials.NAN_AT_NEGATIVE_ZERO, "XLA; ml_dtypes README"),
    FloatFormat("float8_e3m4", 3, 4, 3, Specials.IEEE, _IEEE),
    FloatFormat("float8_e3m4fn", 3, 4, 3, Specials.NAN_AT_TOP, "arXiv 2309.14592, table 1"),
    FloatFormat("float8_e8m0fnu", 8, 0, 127, Specials.NAN_AT_TOP, "OCP Microscaling (MX) 1.0, section 5.4.1", "F8_E8M0", signed=False),
)
"""Every format by canonical name. The paper's E5M2, E4M3 and E3M4 are float8_e5m2, float8_e4m3fn and float8_e3m4fn."""

_WITH_BIAS = re.compile(r"(?P<base>[a-z0-9_]+)@(?P<bias>\d+)")


def formats() -> tuple[str, ...]:
    """The canonical names of all formats, in the order of the table.

    >>> "float8_e3m4fn" in formats()
    True
    """
    return tuple(FORMATS)


@lru_cache(maxsize=256)
def _by_name(name: str) -> FloatFormat:
    lowered = name.lower()
    match = _WITH_BIAS.fullmatch(lowered)
    if match:
        return _by_name(match["base"]).with_bias(int(match["bias"]))
    for candidate in (lowered, f"float8_{lowered}"):
        if candidate in FORMATS:
            return FORMATS[candidate]
    import difflib

    short = {f.removeprefix("float8_"): f for f in FORMATS}
    close = [short[s] for s in difflib.get_close_matches(lowered.removeprefix("float8_"), short, n=3)]
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(FORMATS)}"
    raise FormatError(f"unknown format {name!r}{hint}")


def get_format(fmt: Any) -> FloatFormat:
    """The format meant by a name, a short name, a NumPy or torch dtype, or a `FloatFormat`.

    A bias after ``@`` gives the same layout with another exponent bias.

    Raises:
        FormatError: the format is unknown; the message lists close names.

    >>> get_format("e4m3@11").name
    'float8_e4m3@11'
    """
    if isinstance(fmt, FloatFormat):
        return fmt
    if isinstance(fmt, str):
        return _by_name(fmt)
    # An ml_dtypes scalar type or dtype, or a torch dtype: all carry the canonical name.
    name = getattr(fmt, "name", None) or getattr(fmt, "__name__", None) or str(fmt)
    return _by_name(str(name).removeprefix("torch."))


@dataclass(frozen=True)
class FormatInfo:
    """Limits of a format, with the fields of `numpy.finfo`. Values are Python floats, all exact.

    Attributes:
        bits: width of a code. nexp, nmant: widths of the exponent and mantissa fields.
        iexp: as nexp. machep, negep: exponents of eps and epsneg. minexp, maxexp: of the smallest normal value, and the
            first power of two that overflows.
        eps, epsneg: distance from 1 to the next larger and to the next smaller value.
        max, min, tiny, smallest_normal, smallest_subnormal: see `FloatFormat`.
        precision: decimal digits that survive, at least 1 as in ml_dtypes. resolution: 10**-precision.
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
    precision = max(1, int(m * math.log10(2)))
    return FormatInfo(
        dtype=fmt.name,
        bits=8,
        nexp=fmt.exponent_bits,
        nmant=m,
        iexp=fmt.exponent_bits,
        machep=-m,
        negep=-m - 1,
        minexp=fmt.min_exponent,
        maxexp=fmt.max_exponent + 1,
        eps=fmt.eps,
        epsneg=fmt.eps / 2,
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
