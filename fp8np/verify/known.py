"""Differences of other libraries that are documented: each with what exactly it explains.

Most entries have a model that says which code the library gives instead, and explain a difference only where it gave that very code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.formats import FloatFormat
from fp8np.policy import Policy
from fp8np.verify.law import law

__all__ = ["KNOWN", "Known", "explain"]

Codes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Known:
    """A documented departure of libraries from the rule that their preset stands for.

    Attributes:
        references: the libraries, or the device.
        suites: the checks in which it shows.
        explains: (format, policy, numbers, the codes given) -> which of them the departure explains.
        reason: in words, with where it is reported or documented.
    """

    references: tuple[str, ...]
    suites: tuple[str, ...]
    explains: Callable[[FloatFormat, Policy, Array, Codes], Mask]
    reason: str


def _through_float32(fmt: FloatFormat, policy: Policy, x: Array, codes: Codes) -> Mask:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.equal(law(fmt, x.astype(np.float32), policy), codes)


def _last_nan(fmt: FloatFormat, policy: Policy, x: Array, codes: Codes) -> Mask:
    nan = np.isin(law(fmt, x, policy), list(fmt.nan_codes))
    return np.asarray(nan & (codes == max(fmt.nan_codes, default=0)))


def _out_of_contract(fmt: FloatFormat, policy: Policy, x: Array, codes: Codes) -> Mask:
    # There is no model: what comes out are the low bits of an integer that no value has.
    if fmt.signed:
        return np.zeros(x.shape, bool)
    return np.less(x, 0 if fmt.has_zero else fmt.smallest_normal)


def _signed_nan(fmt: FloatFormat, policy: Policy, x: Array, codes: Codes) -> Mask:
    return np.asarray(np.isnan(x) & (law(fmt, x, replace(policy, nan="payload")) == codes))


CONVERSIONS = ("16 bit", "float32", "float64")

KNOWN: tuple[Known, ...] = (
    Known(
        ("ml_dtypes", "torch", "onnx"),
        ("float64",),
        _through_float32,
        "arrays of float64 are rounded to float32 first, and then again (ml_dtypes#401)",
    ),
    Known(
        ("gfloat",),
        CONVERSIONS,
        _last_nan,
        "every NaN is the last code, also one that comes of overflow",
    ),
    Known(
        ("gfloat",),
        CONVERSIONS,
        _out_of_contract,
        "numbers below the range of a format without a sign pass its rounding unchanged, and have no code",
    ),
    Known(
        ("NVIDIA H100",),
        ("float64",),
        _signed_nan,
        "conversions from float64 are code of cuda_fp8.hpp, not an instruction: there a NaN keeps its sign and payload",
    ),
)
"""The table of documented departures."""


def explain(reference: str, suite: str, fmt: FloatFormat, policy: Policy, x: Array, theirs: Codes, got: Array) -> tuple[Mask, str]:
    """Where differences have a documented reason, and the reasons.

    A difference from the library has none where what was got is not the law either: that is a bug beside the library's.

    Args:
        reference: the library or device.
        suite: the check.
        fmt: the format.
        policy: the rule that the library is expected to follow.
        x: the numbers.
        theirs: the codes that the library gave.
        got: the codes that the implementation gave.
    """
    explained = np.zeros(x.shape, bool)
    reasons = []
    at = np.flatnonzero(theirs != got)
    at = at[law(fmt, x[at], policy) == got[at]]
    for entry in KNOWN:
        if at.size and reference in entry.references and suite in entry.suites:
            fits = entry.explains(fmt, policy, x[at], theirs[at])
            if (fits & ~explained[at]).any():
                explained[at[fits]] = True
                reasons.append(entry.reason)
    return explained, "; ".join(reasons)
