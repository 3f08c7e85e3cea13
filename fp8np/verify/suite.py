"""`verify`: all checks that take seconds, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fp8np
from fp8np.accumulators import ACCUMULATORS
from fp8np.errors import PolicyError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.verify import conversions, convolutions, products, stochastic
from fp8np.verify._judge import Budget
from fp8np.verify._result import Report, Row
from fp8np.verify.facts import facts
from fp8np.verify.implementation import Checked, Ours, load

__all__ = ["SUITES", "checked", "verify"]

SUITES = ("decode", "16 bit", "float32", "float64", "stochastic", "digest", "gemm", "conv")
"""The checks, as rows name them."""

Progress = Callable[[str, int, int | None], None]

_CONVERSIONS = frozenset(SUITES[:4])


def verify(
    implementation: Any = None,
    *,
    formats: Iterable[Any] | None = None,
    suites: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compares an implementation with the law, with other libraries, and with what hardware gave.

    Args:
        implementation: an object with the methods of `Implementation`, or ``"pkg.mod:object"``. None stands for fp8np itself.
        formats: names or formats to check. None means all of the table.
        suites: names of `SUITES`. None means all.
        progress: called with (what, done, total) as checks are done.

    Returns:
        The report: a row for each reference, format and policy. A difference counts as a mismatch unless it is documented
        (`fp8np.verify.known`). `Report.clean` says whether there is none among results that were compared.

    Raises:
        FormatError: a format is unknown. PolicyError: a suite is unknown. InputError: there is no such implementation.

    Checks whose library is not installed, and what the implementation says it does not do, are rows marked as skipped.

    >>> report = verify(formats=["float4_e2m1fn"], suites=["decode"])
    >>> report.clean, report.rows[0].cases
    (True, 16)
    """
    fmts = tuple(FORMATS.values()) if formats is None else tuple(get_format(f) for f in formats)
    wanted = frozenset(SUITES if suites is None else suites)
    if not wanted <= frozenset(SUITES):
        raise PolicyError(f"verify: unknown suites {sorted(wanted - frozenset(SUITES))}; known: {', '.join(SUITES)}")
    under_test = checked(implementation)
    report = Report(under_test.name, facts())
    for rows in _checks(under_test, fmts, wanted, progress or (lambda what, done, total: None)):
        report.rows.extend(row for row in rows if row.suite in wanted)
    return report


def checked(implementation: Any) -> Checked:
    """What is meant by the argument of `verify`.

    Raises:
        InputError: there is no such object.
    """
    if implementation is None:
        return Checked(Ours(), f"fp8np {fp8np.__version__}")
    if isinstance(implementation, str):
        return Checked(load(implementation), implementation)
    return implementation if isinstance(implementation, Checked) else Checked(implementation)


def _checks(implementation: Checked, fmts: tuple[FloatFormat, ...], wanted: frozenset[str], progress: Progress) -> Iterator[Iterator[Row]]:
    budget = Budget()
    if wanted & _CONVERSIONS:
        for i, fmt in enumerate(fmts):
            progress("conversions against the law", i, len(fmts))
            yield conversions.against_law(implementation, fmt, wanted, budget)
        progress("conversions against the law", len(fmts), len(fmts))
        yield conversions.against_libraries(implementation, fmts, wanted, budget, progress)
    if "stochastic" in wanted:
        for i, fmt in enumerate(fmts):
            progress("stochastic rounding", i, len(fmts))
            yield stochastic.against_law(implementation, fmt)
        progress("stochastic rounding", len(fmts), len(fmts))
    if wanted & (_CONVERSIONS | {"digest"}):
        yield conversions.against_records(implementation, fmts, wanted, budget)
    if "gemm" in wanted:
        total = len(ACCUMULATORS) + 1
        for i, accumulator in enumerate(ACCUMULATORS.values()):
            progress("products", i, total)
            yield products.against_law(implementation, fmts, accumulator)
        progress("products", total - 1, total)
        yield products.against_hardware(implementation, fmts)
        progress("products", total, total)
    if "conv" in wanted:
        yield convolutions.against_exact(implementation, fmts)
