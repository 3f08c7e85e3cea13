"""What of a study is to be done, and in which order: shared by the threads that each look after one process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from fp8np.study.spec import Cell

__all__ = ["Board", "Group", "Job"]

CONVERT, REFERENCE, CELL = "convert", "reference", "cell"


@dataclass(eq=False)
class Group:
    """The cells of a workload on one tier, which one process after the other can carry out without reading the data again.

    Attributes:
        state: "new", "busy" while its FP32 is run, "ready", or "failed".
    """

    workload: str
    tier: str
    cells: deque[Cell] = field(default_factory=deque)
    state: str = "new"


@dataclass(frozen=True)
class Job:
    """A piece of work: `kind` is CONVERT, REFERENCE or CELL; `cell` is that of FP32 for the first two."""

    kind: str
    group: Group
    cell: Cell


class Board:
    """Gives out jobs. A workload is converted, then run in FP32 on each tier, then its cells are.

    Args:
        cells: to be carried out.
        converted: workloads whose model in FP32 is there.
        ready: workloads and tiers whose FP32 has been run.
    """

    def __init__(self, cells: Iterable[Cell], converted: Iterable[str], ready: Iterable[tuple[str, str]]) -> None:
        self._change = threading.Condition()
        self._groups: dict[tuple[str, str], Group] = {}
        for cell in cells:
            group = self._groups.setdefault((cell.workload, cell.tier), Group(cell.workload, cell.tier))
            if cell.entry is not None:
                group.cells.append(cell)
        for key in ready:
            if key in self._groups:
                self._groups[key].state = "ready"
        self._conversions = {group.workload: "new" for group in self._groups.values()}
        self._conversions.update((name, "ready") for name in converted if name in self._conversions)
        self._running = 0
        self._stopped = False

    def take(self, group: Group | None) -> Job | None:
        """The next job, one of `group` if possible; waits for what others have to do first. None: there is nothing left."""
        with self._change:
            while True:
                job = None if self._stopped else self._next(group)
                if job is not None:
                    self._running += 1
                    return job
                if self._stopped or not self._running:
                    return None
                self._change.wait()

    def finished(self, job: Job, *, good: bool) -> list[Cell]:
        """Takes note of a job's end. Where it was one that others need and failed, gives the cells that so cannot be carried out."""
        lost: list[Cell] = []
        with self._change:
            self._running -= 1
            state = "ready" if good else "failed"
            if job.kind == CONVERT:
                self._conversions[job.group.workload] = state
                failed = [g for g in self._groups.values() if g.workload == job.group.workload] if not good else []
            else:
                failed = [job.group] if job.kind == REFERENCE and not good else []
            if job.kind == REFERENCE:
                job.group.state = state
            for group in failed:
                group.state = "failed"
                if group is not job.group:
                    lost.append(Cell(group.workload, None, group.tier))
                lost.extend(group.cells)
                group.cells.clear()
            self._change.notify_all()
        return lost

    def stop(self) -> None:
        """Gives out nothing more."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def _next(self, group: Group | None) -> Job | None:
        if group is not None and group.state == "ready" and group.cells:
            return Job(CELL, group, group.cells.popleft())
        for other in [group, *self._groups.values()] if group is not None else self._groups.values():
            cell = Cell(other.workload, None, other.tier)
            if other.state != "new":
                continue
            if self._conversions[other.workload] == "ready":
                other.state = "busy"
                return Job(REFERENCE, other, cell)
            if self._conversions[other.workload] == "new":
                self._conversions[other.workload] = "busy"
                return Job(CONVERT, other, cell)
        # A second process for the workload that has most left to do.
        most = max(self._groups.values(), key=lambda g: len(g.cells) if g.state == "ready" else 0, default=None)
        if most is None or most.state != "ready" or not most.cells:
            return None
        return Job(CELL, most, most.cells.popleft())
