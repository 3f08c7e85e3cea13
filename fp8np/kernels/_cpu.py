"""What this CPU has: the only place that asks. Rows of the kernel table name what they need; order in the table is priority."""

from __future__ import annotations

import enum

__all__ = ["Cpu", "cpu_has"]


class Cpu(enum.Enum):
    """What a kernel row needs."""

    ANY = "any"
    """Nothing: plain loops, on every CPU that Numba compiles for."""


def cpu_has(feature: Cpu) -> bool:
    """Whether this machine offers `feature`."""
    return feature is Cpu.ANY
