"""Other people's emulations of FP8, reproduced with their errors: for repeating published results, not for FP8.

Nothing in fp8np uses this module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._sources import exact_floats
from fp8np.errors import DTypeError, FormatError, PolicyError, ScaleError, ShapeError
from fp8np.formats import FORMATS, FloatFormat, Specials, get_format
from fp8np.tensor import Floats

__all__ = ["intel_toolkit"]

_Bits = npt.NDArray[np.uint16]

# Elements that the toolkit's AVX-512 code takes at a time; what is left over goes through its scalar code.
_VECTOR = 32


def intel_toolkit(x: Any, fmt: Any, *, rounding: str = "nearest_even", random_bits: Any = None, scale: float = 1.0) -> Floats:
    """Numbers as Intel's FP8-Emulation-Toolkit rounds them on a CPU. **The result is not FP8**: use `fp8np.encode` for that.

    The results published with E4M3 and E3M4 of the toolkit (arXiv 2309.14592) were computed on a grid that is finer than that of
    the formats below their smallest normal value. This function repeats those conditions, bit for bit. What it does unlike FP8:

    - Every number is rounded to float16 first, then again: ``1 + 2**-4 + 2**-12`` becomes 1 in E4M3, not 1.125.
    - Subnormal numbers keep all mantissa bits. Some discarded bits are cleared before rounding, so that what lies
      above a tie counts as one. In E4M3 4,304 of the 63,488 finite float16 become a number that is no E4M3 value, and 6,350 another
      one than the nearest; in E3M4 6,144 and 8,190. Normal values of float16 are rounded correctly.
    - In E4M3 and E3M4 numbers below the smallest subnormal become 0, also those nearer to it than to 0.
    - NaN becomes the largest value (448 in E4M3, 30 in E3M4), as infinities do, with its sign.
    - In E5M2 numbers overflow to infinity, and NaN stays NaN: apart from the first point it is right.

    Stochastic rounding adds 8 random bits to the 8 discarded ones (E5M2), or 7 to 7 (E4M3). In E3M4 it adds 7 bits to the 6
    discarded: numbers move away from zero, by half a step on average, and may become 31. Subnormal numbers are rounded to nearest. The last
    ``x.size % 32`` numbers go through scalar code, which takes as many random bits as are discarded and spares no subnormals.

    Args:
        x: as for `fp8np.encode`; rounded to float32 first.
        fmt: float8_e5m2, float8_e4m3fn or float8_e3m4fn, the toolkit's E5M2, E4M3 and E3M4.
        rounding: ``"nearest_even"`` or ``"stochastic"``.
        random_bits: for stochastic rounding: uint8, broadcastable to x (the first 7 of its 8 bits are taken where 7 are added, the
            last where the scalar code takes fewer); or a `numpy.random.Generator`. The toolkit's own generator is not reproduced.
        scale: multiplies x on the way in, and its reciprocal the result, both in float32.

    Returns:
        float32 of x's shape; a NumPy scalar for a 0-d x.

    Raises:
        FormatError: the toolkit has no such format. PolicyError: the rounding is unknown, or random bits are missing or have no use.
        DTypeError: x is not of real numbers, or random_bits of another type. ShapeError: random_bits do not broadcast to x.
        ScaleError: scale is not finite and positive.

    Source: github.com/IntelLabs/FP8-Emulation-Toolkit, mpemu/pytquant/cpp/fpemu_impl.cpp.

    >>> intel_toolkit([0.3, 1e9, 0.0033, np.nan], "e4m3fn").tolist()  # next to 0.0033, E4M3 has 2**-9 and 2**-8
    [0.3125, 448.0, 0.00341796875, 448.0]
    """
    f = _supported(fmt)
    if not np.isfinite(scale) or not np.float32(scale) > 0:
        raise ScaleError(f"intel_toolkit: expected a finite, positive scale, got {scale!r}")
    factor = np.float32(scale)
    values = exact_floats("intel_toolkit", x)
    noise = _checked_noise(rounding, random_bits, values.shape)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled = values.astype(np.float32) * factor
        half = np.asarray(scaled.astype(np.float16)).view(np.uint16).reshape(-1)
        # Hardware quiets a signalling NaN on its way to float16; NumPy's software conversion may not, and bits are cut below.
        half = np.where((half & 0x7FFF) > 0x7C00, half | 0x0200, half)
        rounded = _rounded(half, f, noise).view(np.float16).astype(np.float32)
        result: Floats = rounded.reshape(values.shape) * np.float32(1 / np.float64(factor))
    return result[()]


def _rounded(half: _Bits, fmt: FloatFormat, noise: _Bits | None) -> _Bits:
    # half: u16 (n,) bits of float16; noise: u16 (n,), 8 random bits, or None for nearest even -> bits of float16
    #
    #     s eeeee mmmmmm|mmmm      cut bits to the right of |, at the same place in subnormal numbers
    cut = 10 - fmt.mantissa_bits
    saturating = fmt.specials is not Specials.IEEE
    smallest_normal, top = (int(np.float16(v).view(np.uint16)) for v in (fmt.smallest_normal, fmt.max))
    magnitude = half & np.uint16(0x7FFF)
    subnormal = magnitude < smallest_normal
    kept = magnitude
    if saturating:
        shift = np.where(subnormal, (smallest_normal >> 10) - (magnitude >> 10).astype(np.int16), 0).astype(np.uint16)
        kept = magnitude >> shift << shift
    addend = (1 << (cut - 1)) - 1 + (magnitude >> cut & 1)
    if noise is not None:
        vector = np.arange(half.size) < half.size // _VECTOR * _VECTOR
        bits = np.where(vector, noise >> saturating, noise & ((1 << cut) - 1))
        spared = np.where(vector, subnormal, magnitude < 0x0400)
        addend = np.where(spared, addend, bits)
    rounded = (kept + np.where(magnitude < 0x7C00, addend, 0)) >> cut << cut
    if saturating:
        rounded = np.where(magnitude >= top, top, rounded)
        rounded = np.where(magnitude < int(np.float16(fmt.smallest_subnormal).view(np.uint16)), 0, rounded)
    return (rounded | (half & 0x8000)).astype(np.uint16)


def _supported(fmt: Any) -> FloatFormat:
    f = get_format(fmt)
    names = [known.name for known in FORMATS.values() if _in_toolkit(known)]
    if f.name not in names:
        raise FormatError(f"intel_toolkit: expected one of {', '.join(names)}, got {f}")
    return f


def _in_toolkit(fmt: FloatFormat) -> bool:
    # Its E4M3 and E3M4 have no infinity and no -0 in the place of NaN; its E5M2 is that of IEEE.
    if not fmt.signed or fmt.bits != 8 or fmt.bias != (1 << (fmt.exponent_bits - 1)) - 1:
        return False
    return fmt.specials is (Specials.IEEE if fmt.exponent_bits == 5 else Specials.NAN_AT_TOP) and 3 <= fmt.exponent_bits <= 5


def _checked_noise(rounding: str, bits: Any, shape: tuple[int, ...]) -> _Bits | None:
    if rounding not in ("nearest_even", "stochastic"):
        raise PolicyError(f"intel_toolkit: expected rounding to be 'nearest_even' or 'stochastic', got {rounding!r}")
    if rounding == "nearest_even":
        if bits is not None:
            raise PolicyError("intel_toolkit: random_bits have no use with rounding='nearest_even'; ask for rounding='stochastic'")
        return None
    if bits is None:
        raise PolicyError("intel_toolkit: rounding='stochastic' needs random_bits=, e.g. np.random.default_rng()")
    if isinstance(bits, np.random.Generator):
        bits = bits.integers(0, 256, shape, np.uint8)
    array = np.asarray(bits)
    if array.dtype != np.uint8:
        raise DTypeError(f"intel_toolkit: expected random_bits of uint8, got {array.dtype}")
    try:
        return np.broadcast_to(array, shape).astype(np.uint16).reshape(-1)
    except ValueError:
        raise ShapeError(f"intel_toolkit: random_bits of shape {array.shape} do not broadcast to x of shape {shape}") from None
