"""What a report comes to, for the terminal and the page alike: totals, and rows that say the same, said once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fp8np.verify._result import Difference, Row

__all__ = ["Finding", "Total", "count", "known", "mismatches", "skipped", "totals"]

_Key = TypeVar("_Key", bound=Hashable)

_REASONS = 2
"""Reasons that are named of the checks that one method declined: an implementation of one format declines thousands."""


@dataclass(frozen=True)
class Total:
    """What checks of one kind against one reference come to; those that were skipped are not among them."""

    reference: str
    suite: str
    formats: tuple[str, ...]
    policies: tuple[str, ...]
    cases: int
    mismatches: int
    known: int


@dataclass(frozen=True)
class Finding:
    """Mismatches of which the rows say the same: where, the kind of bug, and the first differences."""

    title: str
    diagnosis: str
    first: tuple[Difference, ...]


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "check"), count(2000, "check")
    ('1 check', '2,000 checks')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def totals(rows: Iterable[Row], *, every_row: bool = False) -> list[Total]:
    """One for each reference and check, or for each format and policy too; in the order of the rows."""
    made = [row for row in rows if not row.skipped]
    groups = _grouped(((row.reference, row.suite, *((row.format, row.policy) if every_row else ())), row) for row in made)
    return [
        Total(
            group[0].reference,
            group[0].suite,
            tuple(dict.fromkeys(row.format for row in group)),
            tuple(dict.fromkeys(row.policy for row in group)),
            sum(row.cases for row in group),
            sum(row.mismatches for row in group),
            sum(row.known for row in group),
        )
        for group in groups
    ]


def mismatches(rows: Iterable[Row]) -> list[Finding]:
    """What differs without a documented reason: once for all formats and policies of which the same is said."""
    wrong = (row for row in rows if row.mismatches)
    groups = _grouped(((row.reference, row.suite, row.diagnosis or f"{row.format} {row.policy}"), row) for row in wrong)
    found = []
    for group in groups:
        first = group[0]
        where = (_named([row.format for row in group], "format"), _named([row.policy for row in group], "policy", "policies"))
        title = " | ".join(part for part in (first.reference, first.suite, *where) if part)
        of = f"{sum(row.mismatches for row in group):,} of {sum(row.cases for row in group):,}"
        found.append(Finding(f"{title}: {of}", first.diagnosis, first.first))
    return found


def known(rows: Iterable[Row]) -> list[str]:
    """What differs for a documented reason: a line for each reference and reason."""
    lines = []
    for group in _grouped(((row.reference, row.reason), row) for row in rows if row.known):
        where = _named([row.format for row in group], "format")
        number = count(sum(row.known for row in group), "result")
        lines.append(f"{group[0].reference}{f' ({where})' if where else ''}: {number}: {group[0].reason}")
    return lines


def skipped(rows: Iterable[Row]) -> list[str]:
    """What could not be checked: a line for each library that is missing, and for each method that is missing or declined.

    >>> rows = [Row("decode", "the law", f, "", reason=f"Mine.decode: {f}", skipped=True) for f in ("e5m2", "e4m3", "e3m4")]
    >>> skipped(rows)
    ['Mine.decode: 3 checks (e5m2; e4m3; e3m4): e5m2; e4m3; and 1 more reason']
    """
    lines = []
    for group in _grouped((row.reason.partition(": ")[0], row) for row in rows if row.skipped):
        where = _named([row.format for row in group], "format")
        reasons = list(dict.fromkeys(text for row in group if (text := row.reason.partition(": ")[2])))
        told = reasons[:_REASONS]
        if len(reasons) > _REASONS:
            told.append(f"and {count(len(reasons) - _REASONS, 'more reason')}")
        line = f"{group[0].reason.partition(': ')[0]}: {count(len(group), 'check')}{f' ({where})' if where else ''}"
        lines.append(f"{line}: {'; '.join(told)}" if told else line)
    return lines


def _grouped(rows: Iterable[tuple[_Key, Row]]) -> list[list[Row]]:
    groups: dict[_Key, list[Row]] = {}
    for key, row in rows:
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _named(names: Sequence[str], what: str, several: str = "") -> str:
    """A few names, or how many there are."""
    distinct = list(dict.fromkeys(name for name in names if name))
    return "; ".join(distinct) if len(distinct) <= 3 else f"{len(distinct)} {several or what + 's'}"
