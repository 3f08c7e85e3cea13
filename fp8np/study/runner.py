"""Runs a study: hands its cells to processes, and goes on where it was stopped.

A process that dies costs the cell it was at. So does this one: each cell is a file as soon as it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8np._settings import default_threads, environment
from fp8np.study.board import CELL, CONVERT, Board, Group, Job
from fp8np.study.keys import Keys, measure_key
from fp8np.study.spec import Cell, Study
from fp8np.study.store import Store

__all__ = ["Event", "Outcome", "run_study"]

_PATIENCE = 0.2
"""Seconds after which a wait looks around: some systems deliver Ctrl-C only then."""


@dataclass(frozen=True)
class Event:
    """Something that happened while a study ran.

    Attributes:
        kind: "begin", "progress" or "end" of a job; "lost": a cell that cannot be carried out since its FP32 failed.
        cell: which one.
        what, done, total: of progress; see `fp8np.data.Progress`.
        record: of a job's end: see `fp8np.study.cell`.
        finished, planned: cells done so far, and of how many, those done before included.
    """

    kind: str
    cell: Cell
    what: str = ""
    done: int = 0
    total: int | None = None
    record: Mapping[str, Any] | None = None
    finished: int = 0
    planned: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: cells that were done before, those done now, and those that failed or were lost."""

    before: int
    done: int
    failed: int


def run_study(
    study: Study, directory: Path, *, converter: str, jobs: int = 1, keep: bool = False, told: Callable[[Event], None] = lambda _: None
) -> Outcome:
    """Carries out what is not done yet; afterwards `fp8np.study.results.read_results` has everything.

    Args:
        study: what to run.
        directory: where it is kept; made if it is not there.
        converter: ``pkg.mod:function`` that reads a source as `fp8np convert` does, for processes to import.
        jobs: processes at a time; the usable cores are shared among them.
        keep: leave the quantized models in the directory.
        told: called for each event, from this thread.

    Raises:
        StudyError: another study is at work in the directory. OSError: it cannot be written. KeyboardInterrupt: after all processes
            are ended; what is done is kept.
    """
    store = Store(directory)
    with store.locked():
        store.clean()
        run = _Run(study, store, converter, jobs, keep)
        return run.run(told)


class _Run:
    def __init__(self, study: Study, store: Store, converter: str, jobs: int, keep: bool) -> None:
        self.study, self.store, self.keep, self.jobs, self.converter = study, store, keep, jobs, converter
        self.threads = max(1, default_threads() // jobs)
        self.keys = Keys(study)
        self.workloads = {workload.name: workload for workload in study.workloads}
        tiers = _available(study.tiers)
        references = [Cell(w.name, None, tier) for w in study.workloads for tier in tiers]
        run = {(cell.workload, cell.tier) for cell in references if self._is_done(cell, "")}
        cells = [cell for cell in study.cells if cell.tier in tiers]
        left = [cell for cell in cells if not self._is_done_beside(cell, run)]
        converted = [name for name in self.workloads if store.converted(name, self.keys.conversion(name))]
        ready = [key for key in run if key[0] in converted]
        # What was run in FP32 is of no use to further cells without the model.
        needed = {(cell.workload, cell.tier) for cell in left}
        again = [c for c in references if (c.workload, c.tier) not in (ready if (c.workload, c.tier) in needed else run)]
        self.planned = len(references) + len(cells)
        self.before = self.planned - len(left) - len(again)
        self.board = Board([*again, *left], converted, ready)
        self.events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self.processes: set[_Process] = set()
        self.stopping = False
        self.done = self.failed = 0

    def _is_done(self, cell: Cell, reference: str) -> bool:
        record = self.store.read(cell)
        if record is None or record["status"] != "done" or record["key"] != self.keys.cell(cell):
            return False
        return bool(record["measure"] == measure_key(self.workloads[cell.workload], self.study.seed, self.study.resamples, reference))

    def _is_done_beside(self, cell: Cell, ready: set[tuple[str, str]]) -> bool:
        if (cell.workload, cell.tier) not in ready:
            return False
        reference = self.store.read(Cell(cell.workload, None, cell.tier)) or {}
        return self._is_done(cell, reference.get("sha256", ""))

    def run(self, told: Callable[[Event], None]) -> Outcome:
        threads = [threading.Thread(target=self._look_after, daemon=True) for _ in range(self.jobs)]
        for thread in threads:
            thread.start()
        try:
            left = len(threads)
            while left:
                with contextlib.suppress(queue.Empty):
                    event = self.events.get(timeout=_PATIENCE)
                    if isinstance(event, BaseException):
                        raise event
                    if event is None:
                        left -= 1
                    else:
                        told(self._counted(event))
        finally:
            self.stopping = True
            self.board.stop()
            for process in tuple(self.processes):
                process.kill()
            for thread in threads:
                thread.join()
        return Outcome(self.before, self.done, self.failed)

    def _counted(self, event: Event) -> Event:
        if event.kind == "lost" or (event.kind == "end" and event.record is not None):
            good = event.record is not None and event.record["status"] == "done"
            self.done += good
            self.failed += not good
        return dataclasses.replace(event, finished=self.before + self.done + self.failed, planned=self.planned)

    def _look_after(self) -> None:
        """A thread's work: one process at a time, a new one for each group, and after a conversion by PyTorch."""
        group: Group | None = None
        process: _Process | None = None
        try:
            while job := self.board.take(group):
                if process is not None and job.group is not group:
                    process.stop()
                    process = None
                group = job.group
                if process is None:
                    process = self._started(job)
                self.events.put(Event("begin", job.cell))
                result = self._asked(process, job)
                if process.ended or result.get("heavy"):
                    process.stop()
                    process = None
                if not self.stopping:
                    self._note(job, result)
        except BaseException as error:
            self.events.put(error)
        finally:
            if process is not None:
                process.stop()
            self.events.put(None)

    def _note(self, job: Job, result: dict[str, Any]) -> None:
        good = result["status"] == "done"
        if not good and "key" not in result:
            # A conversion that failed, or a process that died: nobody has written it down.
            cells = [job.cell]
            if job.kind == CONVERT:
                cells = [dataclasses.replace(job.cell, tier=tier) for tier in _available(self.study.tiers)]
            for cell in cells:
                facts = {"workload": cell.workload, "recipe": cell.recipe, "tier": cell.tier, "key": self.keys.cell(cell)}
                self.store.write(cell, {**facts, **result})
        lost = self.board.finished(job, good=good)
        counts = job.kind != CONVERT or not good
        self.events.put(Event("end", job.cell, record=result if counts else None))
        for cell in lost:
            self.events.put(Event("lost", cell))

    def _started(self, job: Job) -> _Process:
        start = {
            "path": sys.path,
            "workload": dataclasses.asdict(self.workloads[job.group.workload]),
            "tier": job.group.tier,
            "folders": {name: str(folder.resolve()) for name, folder in self.study.folders.items()},
            "directory": str(self.store.folder.resolve()),
            "seed": self.study.seed,
            "resamples": self.study.resamples,
            "converter": self.converter,
            "keep": self.keep,
            "threads": self.threads,
            "jobs": self.jobs,
        }
        log = self.store.log(job.group.workload)
        process = _Process(start, environment(threads=self.threads, tier=job.group.tier), log)
        self.processes.add(process)
        if self.stopping:
            process.kill()
        return process

    def _asked(self, process: _Process, job: Job) -> dict[str, Any]:
        order: dict[str, Any] = {"do": CONVERT, "key": self.keys.conversion(job.cell.workload)}
        if job.kind != CONVERT:
            entry = None if job.cell.entry is None else job.cell.entry.as_table()
            order = {"do": CELL, "entry": entry, "key": self.keys.cell(job.cell)}
        for message in process.ask(order):
            if "result" in message:
                return dict(message["result"])
            what, done, total = message["told"]
            self.events.put(Event("progress", job.cell, what, done, total))
        self.processes.discard(process)
        return {"status": "failed", "reason": process.death}


class _Process:
    """A `fp8np.study.worker`."""

    def __init__(self, start: dict[str, Any], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "fp8np.study.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=env,
                encoding="utf-8",
            )
        self.ended = False
        self._send(start)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._popen.stdin is not None
        # If it has died, what it does not say tells.
        with contextlib.suppress(OSError):
            self._popen.stdin.write(json.dumps(message) + "\n")
            self._popen.stdin.flush()

    def ask(self, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What it says to an order; ends without a result if it dies."""
        assert self._popen.stdout is not None
        self._send(order)
        for line in self._popen.stdout:
            message = json.loads(line)
            yield message
            if "result" in message:
                return
        self.ended = True

    @property
    def death(self) -> str:
        """How it died, in words."""
        code = self._popen.wait()
        said = f"what it printed is in {self.log}"
        if code >= 0:
            return f"its process ended with exit code {code}; {said}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            more = ", which is how systems end what takes too much memory" if name == "SIGKILL" else ""
            return f"its process was ended by signal {-code} ({name}{more}); {said}"
        return f"its process was ended by signal {-code}; {said}"

    def stop(self) -> None:
        """Lets it end: it has nothing to do."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        self._popen.stdout.close()
        self._popen.wait()

    def kill(self) -> None:
        """Ends it, whatever it is at."""
        self._popen.kill()


def _available(tiers: tuple[str, ...]) -> tuple[str, ...]:
    """Those that this CPU has."""
    if tiers == ("",):
        return tiers
    from fp8np.kernels._cpu import Cpu, describe

    return tuple(tier for tier in tiers if tier in [cpu.tier for cpu in Cpu if cpu <= describe().cpu])
