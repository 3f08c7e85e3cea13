"""Comparison of what an implementation gave with what was expected, as a row of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.formats import FloatFormat
from fp8np.verify._result import Difference, Row
from fp8np.verify.implementation import BadResult, NotOffered

__all__ = [
    "NOT_DIAGNOSED",
    "SHOWN",
    "Budget",
    "Failure",
    "attempt",
    "code_text",
    "compare",
    "diagnosed",
    "number_text",
    "skipped",
    "tell_floats",
]

SHOWN = 5
"""How many differences a row keeps."""


@dataclass(frozen=True)
class Failure:
    """Why there is no result: `skip` for what the implementation says it does not do, else a defect of it."""

    reason: str
    skip: bool


def attempt(call: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any] | Failure:
    """What a method of a `Checked` implementation gives, or why it gives nothing."""
    try:
        return call()
    except NotOffered as error:
        return Failure(str(error), skip=True)
    except BadResult as error:
        return Failure(str(error), skip=False)


def skipped(suite: str, versus: str, fmt: object, policy: str, reason: str) -> Row:
    """The row of a check that was not made."""
    return Row(suite, versus, str(fmt), policy, reason=reason, skipped=True)


def compare(
    row: Row,
    expected: npt.NDArray[Any],
    got: npt.NDArray[Any] | Failure,
    show: Callable[[int], Difference],
    same: npt.NDArray[np.bool_] | None = None,
    explained: npt.NDArray[np.bool_] | None = None,
    reason: str = "",
) -> Row:
    """`row` with its counts.

    Args:
        row: what is compared with what.
        expected: one axis.
        got: as many.
        show: the difference at an index.
        same: where both agree; by default where they are equal.
        explained: where a difference has the documented `reason`.
        reason: of the explained differences.
    """
    if isinstance(got, Failure):
        if got.skip:
            return replace(row, skipped=True, reason=got.reason)
        cases = row.cases + expected.size
        return replace(row, cases=cases, mismatches=row.mismatches + expected.size, diagnosis=got.reason)
    differs = expected != got if same is None else ~same
    known = differs & explained if explained is not None else np.zeros_like(differs)
    wrong = np.flatnonzero(differs & ~known)
    shown = wrong if wrong.size else np.flatnonzero(known)
    first = tuple(show(int(i)) for i in shown[:SHOWN])
    return replace(
        row,
        cases=row.cases + expected.size,
        mismatches=row.mismatches + wrong.size,
        known=row.known + int(np.count_nonzero(known)),
        reason=reason if known.any() else row.reason,
        # What is wrong is shown before what is known.
        first=(first + row.first if wrong.size else row.first + first)[:SHOWN],
    )


def diagnosed(kind: str, *args: Any) -> str:
    """What `fp8np.verify.diagnose` makes of a mismatch; its function `kind` is called."""
    try:
        from fp8np.verify import diagnose
    except ImportError:
        return ""
    return str(getattr(diagnose, kind)(*args))


class Budget:
    """How many rows of a reference and a format are diagnosed: what is wrong everywhere would take minutes to say everywhere."""

    LIMIT = 12

    def __init__(self) -> None:
        self._used: Counter[tuple[str, str]] = Counter()

    def allows(self, row: Row) -> bool:
        """Whether this row may be diagnosed too; it is counted."""
        key = row.reference, row.format
        self._used[key] += 1
        return self._used[key] <= self.LIMIT


NOT_DIAGNOSED = f"not looked into, as {Budget.LIMIT} other checks of this format were"


def number_text(x: Any) -> str:
    """A number of a NumPy float type: its bits and its value.

    >>> number_text(np.float32(0.1))
    '0x3dcccccd (0.1)'
    """
    scalar = np.asarray(x)
    bits = int(scalar.view(f"u{scalar.itemsize}"))
    return f"0x{bits:0{2 * scalar.itemsize}x} ({scalar.item() if scalar.itemsize == 8 else scalar[()]!s})"


def code_text(fmt: FloatFormat, code: int) -> str:
    """A code and its value.

    >>> from fp8np.formats import get_format
    >>> code_text(get_format("e4m3fn"), 0x39)
    '39 (1.125)'
    """
    if code >> fmt.bits:
        return f"{code:02X} (no code of {fmt.bits} bits)"
    return f"{code:02X} ({float(reference.decode(fmt, code)):.9g})"


def tell_floats(expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32], *, any_nan: bool) -> npt.NDArray[np.bool_]:
    """Where two float32 arrays have the same bits; with `any_nan`, one NaN is as good as another."""
    same = np.equal(expected.view(np.uint32), got.view(np.uint32))
    return np.logical_or(same, np.isnan(expected) & np.isnan(got)) if any_nan else same
