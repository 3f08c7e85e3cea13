"""The table of float formats of up to 8 bits. A format is one row of primary facts; everything else is derived from it.

The bits of a code, for a signed format with ``e`` exponent and ``m`` mantissa bits (here 1 + e + m = 8)::

     7   6 .. m    m-1 .. 0
    [s] [exponent] [mantissa]      value = (-1)^s * 2^(exponent - bias) * 1.mantissa     exponent > 0
                                           (-1)^s * 2^(1 - bias)        * 0.mantissa     exponent = 0

A code of fewer than 8 bits lies in the low bits of a byte whose other bits are 0. Which of the topmost codes are infinity or
NaN is the format's `Specials`.

>>> get_format("e4m3fn").max
448.0
>>> [f.name for f in FORMATS.values() if f.max == 30]
['float8_e4m3b11fnuz', 'float8_e3m4fn']
>>> get_format("Binary8p4se").max
224.0
"""

from __future__ import annotations

import dataclasses
import enum
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

from fp8np.errors import FormatError

__all__ = ["FORMATS", "FloatFormat", "Specials", "formats", "get_format"]


class Specials(enum.Enum):
    """Where a format keeps infinity and NaN."""

    IEEE = "ieee"
    """The top exponent is reserved: mantissa 0 is infinity, every other mantissa is NaN. There is a negative zero."""
    NAN_AT_TOP = "nan_at_top"
    """Only the topmost magnitude is NaN (with either sign); no infinity. There is a negative zero where there is a sign."""
    NAN_AT_NEGATIVE_ZERO = "nan_at_negative_zero"
    """The code of negative zero, 0x80 in 8 bits, is the one NaN; no infinity, no negative zero."""
    EXTENDED = "extended"
    """One NaN: at the code of negative zero, or topmost where there is no sign; infinity is the topmost magnitude but for NaN
    (IEEE P3109, extended domain)."""
    NONE = "none"
    """Every code is a finite number. There is a negative zero."""


@dataclass(frozen=True)
class FloatFormat:
    """A float format of 8 bits or fewer: primary facts as fields, all else derived.

    Attributes:
        name: canonical name, spelled as ml_dtypes and torch do.
        exponent_bits: width of the exponent field.
        mantissa_bits: width of the mantissa field, the hidden bit not counted.
        bias: what is subtracted from the exponent field.
        specials: where infinity and NaN are.
        source: the text that defines the format.
        stored_as: element type used for it in a safetensors file.
        signed: whether the topmost bit is a sign.
        has_zero: whether code 0 is zero, and exponent field 0 means subnormal numbers. MX scales have neither.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials
    source: str
    stored_as: str = "U8"
    signed: bool = True
    has_zero: bool = True

    def __post_init__(self) -> None:
        if self.exponent_bits < 1 or self.mantissa_bits < 0:
            raise FormatError(f"{self.name}: expected at least one exponent bit and no negative width")
        if not 3 <= self.bits <= 8:
            raise FormatError(f"{self.name}: sign, exponent and mantissa must fill 3 to 8 bits, got {self.bits}")

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
        if not self.signed or self.bits != 8:
            raise FormatError(f"{self.name}: only signed formats of 8 bits take another bias")
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
    def bits(self) -> int:
        """The width of a code."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def sign_bit(self) -> int:
        """Mask of the sign bit; 0 where there is none."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def magnitude_mask(self) -> int:
        """Mask of the exponent and mantissa fields."""
        return (1 << (self.bits - self.signed)) - 1

    @cached_property
    def max_magnitude(self) -> int:
        """The magnitude of the largest finite value."""
        top = self.magnitude_mask
        match self.specials:
            case Specials.IEEE:
                return top - (1 << self.mantissa_bits)
            case Specials.NAN_AT_TOP:
                return top - 1
            case Specials.EXTENDED:
                return top - (1 if self.signed else 2)
        return top

    @cached_property
    def inf_magnitude(self) -> int | None:
        """The magnitude of infinity, or None."""
        return self.max_magnitude + 1 if self.has_inf else None

    # -- codes ----------------------------------------------------------------------------------------------------

    @property
    def has_inf(self) -> bool:
        """Whether infinity can be represented."""
        return self.specials in (Specials.IEEE, Specials.EXTENDED)

    @property
    def has_negative_zero(self) -> bool:
        """Whether there is a code for -0."""
        return self.signed and self.specials not in (Specials.NAN_AT_NEGATIVE_ZERO, Specials.EXTENDED)

    @cached_property
    def nan_codes(self) -> frozenset[int]:
        """Every code that is NaN."""
        if self.signed and not self.has_negative_zero:
            return frozenset({self.sign_bit})
        first = self.max_magnitude + 1 + self.has_inf
        positive = range(first, self.magnitude_mask + 1)
        return frozenset(c | s for c in positive for s in {0, self.sign_bit})

    @cached_property
    def inf_codes(self) -> frozenset[int]:
        """Every code that is an infinity."""
        return frozenset() if self.inf_magnitude is None else frozenset({self.inf_magnitude, self.inf_magnitude | self.sign_bit})

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
        """The lowest finite value: -max where there is a sign, else 0 or, without a zero, the smallest value."""
        if self.signed:
            return -self.max
        return 0.0 if self.has_zero else self.smallest_normal

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


def _p3109() -> Iterator[FloatFormat]:
    # Precision P counts the hidden bit. The bias is half of the exponent range: of 2^(8-P) fields with a sign, 2^(9-P) without.
    for signed in (True, False):
        for precision in range(1, 9 - signed):
            for extended in (True, False):
                finite = Specials.NAN_AT_NEGATIVE_ZERO if signed else Specials.NAN_AT_TOP
                exponent_bits = 9 - signed - precision
                yield FloatFormat(
                    f"binary8p{precision}{'s' if signed else 'u'}{'e' if extended else 'f'}",
                    exponent_bits,
                    precision - 1,
                    1 << (exponent_bits - 1),
                    Specials.EXTENDED if extended else finite,
                    "IEEE P3109 Interim Report v4.0, section 3",
                    signed=signed,
                )


_OCP = "OCP 8-bit Floating Point Specification (OFP8) 1.0, table 1"
_MX = "OCP Microscaling (MX) 1.0, section 5.3"
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
    FloatFormat(
        "float8_e8m0fnu",
        8,
        0,
        127,
        Specials.NAN_AT_TOP,
        "OCP Microscaling (MX) 1.0, section 5.4.1",
        "F8_E8M0",
        signed=False,
        has_zero=False,
    ),
    FloatFormat("float6_e3m2fn", 3, 2, 3, Specials.NONE, _MX),
    FloatFormat("float6_e2m3fn", 2, 3, 1, Specials.NONE, _MX),
    FloatFormat("float4_e2m1fn", 2, 1, 1, Specials.NONE, _MX),
    *_p3109(),
)
"""Every format by canonical name. The paper's E5M2, E4M3 and E3M4 are float8_e5m2, float8_e4m3fn and float8_e3m4fn."""

_PREFIX = re.compile(r"^float\d_")
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
    for candidate in (lowered, *(f"float{bits}_{lowered}" for bits in (8, 6, 4))):
        if candidate in FORMATS:
            return FORMATS[candidate]
    import difflib

    short = {_PREFIX.sub("", f): f for f in FORMATS}
    close = [short[s] for s in difflib.get_close_matches(_PREFIX.sub("", lowered), short, n=3)]
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(FORMATS)}"
    if lowered.startswith("mx"):
        hint = f"; MX formats are formats with scales: quantize(x, {lowered!r})"
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
