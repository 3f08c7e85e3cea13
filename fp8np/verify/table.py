"""A report for the terminal: totals by reference and check, then everything that is not plainly equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fp8np.verify._result import Report, Row

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["report_table", "summary"]

SHOWN = 20
"""Kinds of mismatch that are shown."""


def summary(report: Report) -> str:
    """One line: what was compared, and what differs.

    >>> summary(Report("mine", rows=[Row("decode", "the law", "e4m3fn", "", cases=256, mismatches=2)]))
    'mine: 2 of 256 results differ without a documented reason, in 1 of 1 checks'
    """
    made = [row for row in report.rows if not row.skipped]
    cases, wrong = sum(row.cases for row in made), sum(row.mismatches for row in made)
    known, left_out = sum(row.known for row in made), len(report.rows) - len(made)
    if wrong:
        text = f"{wrong:,} of {cases:,} results differ without a documented reason, in {_differing(made):,} of {len(made):,} checks"
    else:
        text = f"{cases:,} results in {len(made):,} checks: no difference without a documented reason"
    text += f"; {known:,} differ from other software for a documented reason" if known else ""
    text += f"; {left_out:,} checks skipped" if left_out else ""
    return f"{report.implementation}: {text}"


def report_table(report: Report, *, every_row: bool = False) -> RenderableType:
    """The report, to be printed by rich.

    Args:
        report: of `verify`.
        every_row: a line for each format and policy too; by default one for each reference and check.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_totals(report.rows, every_row=every_row)]
    wrong = [row for row in report.rows if row.mismatches]
    if wrong:
        parts += ["", Text("Mismatches", style="bold red"), *_mismatches(wrong)]
    known = _by_reason(row for row in report.rows if row.known)
    if known:
        parts += ["", Text("Differences with a documented reason", style="bold"), *known]
    skipped = _by_reason(row for row in report.rows if row.skipped)
    if skipped:
        parts += ["", Text("Skipped", style="bold"), *skipped]
    return Group(*parts, "", Text(summary(report), style="bold red" if wrong else "bold green"))


def _differing(rows: Iterable[Row]) -> int:
    return sum(row.mismatches > 0 for row in rows)


def _totals(rows: list[Row], *, every_row: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if not row.skipped:
            key = (row.reference, row.suite, row.format, row.policy) if every_row else (row.reference, row.suite)
            groups.setdefault(key, []).append(row)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("reference", "check"):
        table.add_column(heading)
    for heading in ("format", "policy") if every_row else ("formats", "policies"):
        table.add_column(heading, justify="left" if every_row else "right")
    for heading in ("results", "mismatches", "known"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (reference, suite, *_), group in groups.items():
        names = [row.format for row in group], [row.policy for row in group]
        wrong, known = sum(row.mismatches for row in group), sum(row.known for row in group)
        table.add_row(
            Text(reference),
            suite,
            *(Text(of[0]) if every_row else str(len(set(of))) for of in names),
            f"{sum(row.cases for row in group):,}",
            Text(f"{wrong:,}", style="bold red") if wrong else "0",
            f"{known:,}" if known else "",
        )
    return table


def _mismatches(rows: list[Row]) -> Iterator[RenderableType]:
    """One paragraph for rows that say the same of several formats or policies."""
    from rich.text import Text

    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.reference, row.suite, row.diagnosis or f"{row.format} {row.policy}"), []).append(row)
    for group in list(groups.values())[:SHOWN]:
        first = group[0]
        where = [_named([row.format for row in group], "formats"), _named([row.policy for row in group], "policies")]
        title = " | ".join(part for part in (first.reference, first.suite, *where) if part)
        yield Text(f"{title}: {sum(row.mismatches for row in group):,} of {sum(row.cases for row in group):,}")
        if first.diagnosis:
            yield Text(f"    {first.diagnosis}", style="yellow")
        for difference in first.first[:3]:
            yield Text(f"    {difference.input}: expected {difference.expected}, got {difference.got}")
    if len(groups) > SHOWN:
        yield Text(f"... and {len(groups) - SHOWN:,} more; --json and --html have all")


def _named(names: list[str], what: str) -> str:
    """A few names, or how many there are."""
    distinct = list(dict.fromkeys(name for name in names if name))
    return "; ".join(distinct) if len(distinct) <= 3 else f"{len(distinct)} {what}"


def _by_reason(rows: Iterable[Row]) -> list[RenderableType]:
    from rich.text import Text

    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.reference, row.reason), []).append(row)
    lines: list[RenderableType] = []
    for (reference, reason), group in groups.items():
        known = sum(row.known for row in group)
        where = _named([row.format for row in group], "formats")
        count = f"{known:,} results" if known else f"{len(group):,} checks"
        lines.append(Text(f"{reference}{f' ({where})' if where else ''}: {count}: {reason}"))
    return lines
