"""The law of `fp8np.reference` for many inputs at once (`fp8np.verify.law`), and the formats that tests run over."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.formats import FORMATS
from fp8np.policy import Policy
from fp8np.verify import cases
from fp8np.verify import law as table
from fp8np.verify.cases import edges
from fp8np.verify.law import breakpoints

__all__ = ["ALL_FORMATS", "BIASED", "DETERMINISTIC", "EXTREME", "SIGNED_FORMATS", "all_16_bit", "breakpoints", "edges", "law"]

BIASED = tuple(FORMATS[name].with_bias(bias) for name, bias in (("float8_e4m3", 3), ("float8_e4m3", 15), ("float8_e5m2", 62)))
ALL_FORMATS = (*FORMATS.values(), *BIASED)
SIGNED_FORMATS = tuple(f for f in ALL_FORMATS if f.signed)
DETERMINISTIC = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "odd")
# The biases at the ends, where float32 has no exponent to spare.
EXTREME = tuple(FORMATS[name].with_bias(bias) for name in ("float8_e5m2", "float8_e3m4", "float8_e4m3fnuz") for bias in (0, 127))


def law(fmt: Any, x: Any, overflow: str = "saturate", rounding: str = "nearest_even", nan: str = "keep_sign") -> Any:
    """uint8 codes of x, float64 of any shape."""
    return table.law(fmt, x, Policy(overflow, rounding, nan))


def all_16_bit(kind: str) -> Any:
    """Every float16 or bfloat16 as float64 (which holds both exactly), index = bits."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        return cases.all_16_bit(kind).astype(np.float64)
