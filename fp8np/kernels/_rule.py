"""A format and a policy as the numbers that the conversion kernels read: one layout for all formats, so one compiled kernel.

A rule is int64[13], indexed by the constants below. "Magnitude" is a code without its sign bit (see `fp8np.reference`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.formats import FloatFormat
from fp8np.policy import ROUNDING, Policy, infinity_magnitude, nan_code, points_inward

__all__ = ["Rule", "conversion_rule"]

Rule = npt.NDArray[np.int64]

MANTISSA_BITS = 0
MIN_EXPONENT = 1  # log2 of the smallest normal value
MAX_EXPONENT = 2  # floor(log2(largest value))
BASE = 3  # quanta in the smallest value that magnitude 0 stands for: 0, or 2**mantissa_bits where there is no zero
TOP = 4  # magnitude of the largest value
OVERFLOW = 5  # magnitude for a positive finite value beyond it
OVERFLOW_NEGATIVE = 6  # the same for a negative one
INFINITY = 7  # magnitude for an infinity
NAN = 8  # code for a NaN
NAN_NEGATIVE = 9  # code for a NaN with its sign set
SIGN = 10  # the sign bit: 0 where there is none
ZERO_SIGN = 11  # sign bit of a negative zero: 0 where there is none
ROUNDING_MODE = 12  # index into fp8np.policy.ROUNDING

NEAREST_EVEN, NEAREST_AWAY, TOWARD_ZERO, UP, DOWN, ODD, STOCHASTIC_A, STOCHASTIC_B, STOCHASTIC_C = range(len(ROUNDING))


@lru_cache(maxsize=1024)
def conversion_rule(fmt: FloatFormat, policy: Policy) -> Rule:
    """The rule of `fmt` under `policy`, read-only. Decoding reads the same rule and ignores the policy in it."""
    infinity = infinity_magnitude(fmt)
    beyond = infinity if policy.overflow in ("ieee", "ieee_early") else fmt.max_magnitude
    values: dict[int, Any] = {
        MANTISSA_BITS: fmt.mantissa_bits,
        MIN_EXPONENT: fmt.min_exponent,
        MAX_EXPONENT: fmt.max_exponent,
        BASE: 0 if fmt.has_zero else 1 << fmt.mantissa_bits,
        TOP: fmt.max_magnitude,
        OVERFLOW: fmt.max_magnitude if points_inward(policy.rounding, negative=False) else beyond,
        OVERFLOW_NEGATIVE: fmt.max_magnitude if points_inward(policy.rounding, negative=True) else beyond,
        INFINITY: fmt.max_magnitude if policy.overflow == "saturate" else infinity,
        NAN: nan_code(fmt, policy.nan, negative=False),
        NAN_NEGATIVE: nan_code(fmt, policy.nan, negative=True),
        SIGN: fmt.sign_bit,
        ZERO_SIGN: fmt.sign_bit if fmt.has_negative_zero else 0,
        ROUNDING_MODE: ROUNDING.index(policy.rounding),
    }
    rule = np.array([values[i] for i in range(len(values))], np.int64)
    rule.setflags(write=False)
    return rule
