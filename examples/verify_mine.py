"""An implementation to be verified: float8_e4m3fn as a table look-up, with a bug for the report to name.

    fp8np verify --implementation examples.verify_mine:Mine
    fp8np verify --implementation examples.verify_mine:Fixed

It needs nothing of fp8np: plain arrays go in and come out.
"""

from __future__ import annotations

import numpy as np

NAME = "float8_e4m3fn"
# 0x00 .. 0x7E: sign 0, four exponent bits, three mantissa bits, bias 7. Without a sign, codes count values in ascending order.
VALUES = np.array([(c & 7) * 2.0**-9 if c < 8 else (8 + c % 8) * 2.0 ** (c // 8 - 10) for c in range(0x7F)])


class Mine:
    """Saturating conversion, to nearest. What it does not do, it says."""

    def encode(self, x: np.ndarray, fmt: str, *, overflow: str, rounding: str, nan: str) -> np.ndarray:
        """u8 codes of x (n,)."""
        if fmt != NAME or (overflow, rounding, nan) != ("saturate", "nearest_even", "keep_sign"):
            raise NotImplementedError(f"{fmt}, {overflow}, {rounding}, nan={nan}")
        magnitude = np.abs(x.astype(np.float64))
        above = np.clip(np.searchsorted(VALUES, magnitude), 1, len(VALUES) - 1)
        middle = (VALUES[above] + VALUES[above - 1]) / 2
        codes = np.where(self.goes_up(magnitude, middle, above), above, above - 1)
        codes = np.where(np.isnan(x), 0x7F, codes)
        return (codes | np.signbit(x) * 0x80).astype(np.uint8)

    def goes_up(self, magnitude: np.ndarray, middle: np.ndarray, above: np.ndarray) -> np.ndarray:
        """The bug: a tie always goes up."""
        return magnitude >= middle

    def decode(self, codes: np.ndarray, fmt: str) -> np.ndarray:
        """f32 values of codes (n,)."""
        if fmt != NAME:
            raise NotImplementedError(fmt)
        values = np.append(VALUES, np.nan)[codes & 0x7F]
        return np.where(codes & 0x80, -values, values).astype(np.float32)


class Fixed(Mine):
    """A tie goes to the even code."""

    def goes_up(self, magnitude: np.ndarray, middle: np.ndarray, above: np.ndarray) -> np.ndarray:
        """Up if nearer; on a tie, if the code above is even."""
        return (magnitude > middle) | ((magnitude == middle) & (above % 2 == 0))
