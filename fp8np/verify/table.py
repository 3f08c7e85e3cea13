"""A report for the terminal: totals by reference and check, then everything that is not plainly equal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fp8np.verify._result import Report, Row
from fp8np.verify._summary import Finding, count, known, mismatches, skipped, totals

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["report_table", "summary"]

SHOWN = 20
"""Kinds of mismatch that are shown."""

_ROOMY = 100
"""Columns from which on every line of the table repeats its reference; below, a name that is broken into lines stands once."""


def summary(report: Report) -> str:
    """One line: what was compared, and what differs.

    >>> summary(Report("mine", rows=[Row("decode", "the law", "e4m3fn", "", cases=256, mismatches=2)]))
    'mine: 2 of 256 results differ without a documented reason, in 1 of 1 check'
    """
    made = [row for row in report.rows if not row.skipped]
    cases, wrong = sum(row.cases for row in made), sum(row.mismatches for row in made)
    explained, left_out = sum(row.known for row in made), len(report.rows) - len(made)
    checks = count(len(made), "check")
    if wrong:
        differing = sum(row.mismatches > 0 for row in made)
        text = f"{wrong:,} of {cases:,} results differ without a documented reason, in {differing:,} of {checks}"
    elif made:
        text = f"{count(cases, 'result')} in {checks}: no difference without a documented reason"
    else:
        text = "nothing was checked"
    text += f"; {explained:,} differ from other software for a documented reason" if explained else ""
    text += f"; {count(left_out, 'check')} skipped" if left_out else ""
    return f"{report.implementation}: {text}"


def report_table(report: Report, *, every_row: bool = False, width: int = _ROOMY) -> RenderableType:
    """The report, to be printed by rich.

    Args:
        report: of `verify`.
        every_row: a line for each format and policy too; by default one for each reference and check.
        width: columns that there are.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if any(not row.skipped for row in report.rows):
        parts.append(_totals(report.rows, every_row=every_row, repeat=width >= _ROOMY))
    wrong = mismatches(report.rows)
    if wrong:
        parts += ["", Text("Mismatches", style="bold red"), *_findings(wrong)]
    for title, lines in (("Differences with a documented reason", known(report.rows)), ("Skipped", skipped(report.rows))):
        if lines:
            parts += ["", Text(title, style="bold"), *map(Text, lines)]
    seconds = report.facts.get("exhaustive", {}).get("seconds", {})
    if seconds:
        parts += ["", Text("Seconds", style="bold"), Text(", ".join(f"{name} {spent:,.1f}" for name, spent in seconds.items()))]
    return Group(*parts, "", Text(summary(report), style="bold green" if report.clean else "bold red"))


def _totals(rows: list[Row], *, every_row: bool, repeat: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # What does not fit is broken into lines: of what is cut off nobody would know what it was.
    table.add_column("reference", overflow="fold")
    table.add_column("check", no_wrap=True)
    for heading in ("format", "policy") if every_row else ("formats", "policies"):
        table.add_column(heading, justify="left" if every_row else "right", overflow="fold")
    for heading in ("results", "mismatches", "known"):
        table.add_column(heading, justify="right", no_wrap=True)
    above = ""
    for total in totals(rows, every_row=every_row):
        table.add_row(
            Text(total.reference if repeat or total.reference != above else ""),
            total.suite,
            *(Text(of[0]) if every_row else str(len(of)) for of in (total.formats, total.policies)),
            f"{total.cases:,}",
            Text(f"{total.mismatches:,}", style="bold red") if total.mismatches else "0",
            f"{total.known:,}" if total.known else "",
        )
        above = total.reference
    return table


def _findings(findings: list[Finding]) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    for finding in findings[:SHOWN]:
        yield Text(finding.title)
        lines = [Text(finding.diagnosis, style="yellow")] if finding.diagnosis else []
        lines += [Text(f"{difference.input}: expected {difference.expected}, got {difference.got}") for difference in finding.first[:3]]
        for line in lines:
            yield Padding(line, (0, 0, 0, 4), expand=False)
    if len(findings) > SHOWN:
        yield Text(f"... and {len(findings) - SHOWN:,} more; --json and --html have all")
