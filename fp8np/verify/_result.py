"""What a check finds: rows of a table, with the differences that a person can look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Difference", "Report", "Row"]


@dataclass(frozen=True)
class Difference:
    """One case whose result is not what was expected, as text: ``0x3f7f0000 (0.99609375)``, ``38 (1.0)``, ``37 (0.9375)``."""

    input: str
    expected: str
    got: str


@dataclass(frozen=True)
class Row:
    """The outcome of one check.

    Attributes:
        suite: what was checked: ``decode``, ``16 bit``, ``float32``, ``float64``, ``digest``, ``exhaustive``, ``gemm``, ``conv``, ...
        reference: what it was compared with, with its version: ``the law``, ``ml_dtypes 0.6.0``, ``H100, CUDA 13.0``.
        format: canonical name of the format (or ``A x B`` for products).
        policy: preset, policy, or accumulation, in words.
        cases: how many results were compared.
        mismatches: how many of them differ without a documented reason.
        known: how many differ for the documented reason in `reason`.
        reason: why, for known differences; why not, for a check that was skipped.
        first: the first differences.
        diagnosis: the kind of bug that would explain the mismatches, if one does.
        skipped: the check could not be made; `reason` says why.
    """

    suite: str
    reference: str
    format: str
    policy: str
    cases: int = 0
    mismatches: int = 0
    known: int = 0
    reason: str = ""
    first: tuple[Difference, ...] = ()
    diagnosis: str = ""
    skipped: bool = False


@dataclass
class Report:
    """All rows of a run, and what it ran on.

    Attributes:
        implementation: what was tested: ``fp8np 0.1.0``, or the name given.
        facts: versions, CPU, threads, vectors with their SHA-256, date.
        rows: the outcomes, in the order of the checks.
    """

    implementation: str
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether anything was compared, and nothing differs without a documented reason."""
        return any(not row.skipped for row in self.rows) and all(row.mismatches == 0 for row in self.rows)
