"""What a run found, as plain data: rows, their statistics, the JSON file, and the guard that compares two files."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp8np.errors import InputError
from fp8np_benchmarks.case import OURS, is_ours

__all__ = ["Comparison", "Row", "Run", "compare", "read_run"]

VERSION = 1
"""Of the JSON file."""


@dataclass(frozen=True)
class Row:
    """One case, measured.

    Attributes:
        suite, name, threads, work, unit, traffic, measured: as in `Case`.
        tier: of our kernels.
        samples: what each entry took in each round, in seconds or bytes. Empty where our result was wrong.
        checked: how right the result of each entry was, in words.
        failed: entries whose result was wrong, and how; they are not timed.
        absent: peers that did not take part, and why.
        ceiling: its name and units of work a second; None where nothing says.
        skipped: why the case was not run.
    """

    suite: str
    name: str
    threads: int
    tier: str
    work: float = 0.0
    unit: str = ""
    traffic: float = 0.0
    measured: str = "seconds"
    samples: Mapping[str, list[float]] = field(default_factory=dict)
    checked: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    ceiling: tuple[str, float] | None = None
    skipped: str = ""

    def median(self, entry: str) -> float:
        """Of the samples of an entry."""
        return statistics.median(self.samples[entry])

    def spread(self, entry: str) -> tuple[float, float]:
        """The quartiles: half of the samples lie between them."""
        samples = self.samples[entry]
        if len(samples) < 2:
            return samples[0], samples[0]
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        return low, high

    def ratio(self, entry: str) -> float:
        """How many times as much an entry took as we did: above 1 we are ahead."""
        return self.median(entry) / self.median(OURS)

    def rate(self, entry: str) -> float | None:
        """Work a second, where it is counted."""
        return self.work / self.median(entry) if self.work else None

    def share(self, entry: str) -> float | None:
        """Of the ceiling."""
        rate = self.rate(entry)
        return None if rate is None or self.ceiling is None else rate / self.ceiling[1]

    @property
    def peers(self) -> list[str]:
        """Entries of others that were timed beside ours."""
        return [name for name in self.samples if not is_ours(name)] if OURS in self.samples else []


@dataclass(frozen=True)
class Run:
    """Everything one call of the command found.

    Attributes:
        machine: facts about it, by name.
        rows: in the order they were measured.
        planned: how many cases were asked for; more than there are rows where the run was interrupted.
    """

    machine: Mapping[str, Any]
    rows: tuple[Row, ...]
    planned: int

    @property
    def clean(self) -> bool:
        """Whether no result was wrong."""
        return not any(row.failed for row in self.rows)

    def write(self, path: Path) -> None:
        """Writes the JSON file."""
        record = {"version": VERSION, **dataclasses.asdict(self)}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_run(path: Path) -> Run:
    """Reads what `Run.write` wrote.

    Raises:
        InputError: the file is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] != VERSION:
            raise InputError(f"{path}: written by another fp8np (version {record['version']} of the file, this one reads {VERSION})")
        rows = [Row(**{**row, "ceiling": tuple(row["ceiling"]) if row["ceiling"] else None}) for row in record["rows"]]
        return Run(record["machine"], tuple(rows), record["planned"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a file written by fp8np bench --json ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Comparison:
    """Two runs, compared by their ratios against peers: seconds would compare machines.

    Attributes:
        ratios: (case, peer, old ratio, new ratio), in the order of the new run.
        regressions: in words, what became worse.
        remarks: in words, what could not be compared, and what else differs.
    """

    ratios: tuple[tuple[str, str, float, float], ...]
    regressions: tuple[str, ...]
    remarks: tuple[str, ...]


def compare(old: Run, new: Run, tolerance: float = 0.1) -> Comparison:
    """Finds where we fell behind: ratios lower by more than `tolerance` of the old one, and results that became wrong.

    Raises:
        InputError: the runs have no timed case with a peer in common.
    """
    ratios, regressions, remarks = [], [], []
    before = {_key(row): row for row in old.rows}
    for row in new.rows:
        regressions += [f"{_title(row)}: {entry}: {why}" for entry, why in row.failed.items() if is_ours(entry)]
        was = before.pop(_key(row), None)
        if was is None:
            remarks.append(f"{_title(row)}: only in the new file")
            continue
        if was.tier != row.tier:
            remarks.append(f"{_title(row)}: kernels of {was.tier} before, of {row.tier} now")
        ratios += [(_title(row), peer, was.ratio(peer), row.ratio(peer)) for peer in row.peers if peer in was.peers]
        missing = [peer for peer in was.peers if peer not in row.peers]
        if missing and OURS not in row.failed:
            why = row.skipped or ", ".join(row.absent.get(peer, row.failed.get(peer, peer)) for peer in missing)
            remarks.append(f"{_title(row)}: not compared with {', '.join(missing)} ({why})")
    remarks += [f"{_title(row)}: only in the old file" for row in before.values()]
    if not ratios and not regressions:
        raise InputError("the two files have no timed case with a peer in common")
    regressions += [
        f"{title}: {theirs:.2f} times {peer}, {was:.2f} before" for title, peer, was, theirs in ratios if theirs < was * (1 - tolerance)
    ]
    return Comparison(tuple(ratios), tuple(regressions), tuple(remarks))


def _key(row: Row) -> tuple[str, str, int]:
    return row.suite, row.name, row.threads


def _title(row: Row) -> str:
    return f"{row.name}, {row.threads} thread{'s' if row.threads > 1 else ''}"
