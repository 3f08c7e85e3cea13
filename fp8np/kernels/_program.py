"""Programs: steps of native code that threads work off together, without returning to Python in between.

A step is an `Entry`, the words that it reads, and a number of units, independent pieces of work. All steps of a program are rows
of one table, and one compiled loop runs them, on every thread that takes part::

    for each step:
        while a unit is unclaimed: claim it (one atomic addition), run it
        wait until all units of the step are done

Nothing is handed out beforehand: a thread that comes late, or that the operating system stops for a while, takes fewer units, and
the thread that started the program can finish it alone. So programs of several callers never wait for each other. Which
thread runs a unit changes no bit, since units write to different places.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels._jit import Entry, entry, prepare
from fp8np.kernels._native import call, call_plain, fetch_and_add, pause, shared_word, word
from fp8np.kernels._threads import Offer, get_num_threads, offer

__all__ = [
    "ALIGNMENT",
    "Arena",
    "Arenas",
    "External",
    "Program",
    "Task",
    "Word",
    "aligned",
    "aligned_array",
    "aligned_copy",
    "float_word",
    "rounded_up",
    "run_tasks",
]

ALIGNMENT = 64
"""Buffers start on a cache line: vectors that cross one cost up to four times (AMX), 1.4 times (AVX-512)."""

SLACK = 4096
"""Bytes after a buffer that kernels may read, never use: blocks are whole, sizes are not."""

_STEP = 4  # words of a step: entry, words, units, and one unused
_LINE = 16  # counters of a step are two cache lines, in words

# How often a waiting thread looks before it lets others run: about 20 microseconds.
_SPINS = 1000


@dataclass(frozen=True)
class Arena:
    """A word: an address in the memory of a run, `offset` bytes from its start."""

    offset: int


@dataclass(frozen=True)
class External:
    """A word: the address of an array that each run brings, plus `offset` bytes."""

    name: str
    offset: int = 0


Word = int | Arena | External | npt.NDArray[Any]
"""A number; an address in the arena or of what the caller brings; or that of an array, which is kept alive and must not move."""


def float_word(x: float) -> int:
    """A word whose low half holds a float32."""
    return int(np.float32(x).view(np.uint32))


@dataclass(frozen=True)
class Task:
    """A step of a program.

    Attributes:
        entry: what runs.
        words: what it reads, in its own order.
        units: how many pieces of work it has; an entry is called with numbers 0 .. units - 1, in any order, by any thread.
        scratch: bytes of memory that a unit needs for itself.
    """

    entry: Entry
    words: tuple[Word, ...]
    units: int
    scratch: int = 0


@entry
def _work(steps: int, count: int, counters: int, scratch: int, rest: int, left: int) -> None:
    # steps: address of int64 (count, 4); counters: address of int64 (count, 16), zero: claimed, and a line further done.
    # rest: address of a C function that lets other threads run, or 0; left: address of the counter of threads that are through.
    for s in range(count):
        step = steps + s * 32
        entry = word(step, 0)
        words = word(step, 1)
        units = word(step, 2)
        claimed = counters + s * 128
        done = claimed + 64
        mine = 0
        unit = fetch_and_add(claimed, 1)
        while unit < units:
            call(entry, words, unit, scratch)
            mine += 1
            unit = fetch_and_add(claimed, 1)
        if mine:
            fetch_and_add(done, mine)
        spins = 0
        while shared_word(done) < units:
            pause()
            spins += 1
            if spins == _SPINS and rest != 0:
                spins = 0
                call_plain(rest)
    fetch_and_add(left, 1)


@entry
def _wait(counter: int, value: int, rest: int) -> None:
    # Until the int64 at `counter` is `value`.
    spins = 0
    while shared_word(counter) < value:
        pause()
        spins += 1
        if spins == _SPINS and rest != 0:
            spins = 0
            call_plain(rest)


@lru_cache(maxsize=1)
def _rest() -> int:
    """The address of the operating system's function that lets other threads run; 0 where there is none."""
    try:
        if sys.platform == "win32":
            function: Any = ctypes.windll.kernel32.SwitchToThread
        else:
            function = ctypes.CDLL(None).sched_yield
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def rounded_up(size: int) -> int:
    """Bytes up to where the next buffer may start."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def aligned(size: int) -> npt.NDArray[np.uint8]:
    """`size` bytes, uninitialised, from a cache line on, with SLACK bytes after them."""
    raw = np.empty(size + SLACK + ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + size + SLACK]


def aligned_array(shape: tuple[int, ...], dtype: Any = np.float32) -> npt.NDArray[Any]:
    """An uninitialised array that starts on a cache line: NumPy's do not, and every vector written to them crosses two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    array: npt.NDArray[Any] = aligned(size)[:size].view(dtype).reshape(shape)
    return array


def aligned_copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, from a cache line on."""
    copy = aligned_array(array.shape, array.dtype)
    copy[...] = array
    return copy


class Arenas:
    """Memory that programs borrow, one after the other: the plans of a model for many sizes do not each keep their own."""

    def __init__(self) -> None:
        self._free: list[tuple[npt.NDArray[np.uint8], object]] = []
        self._lock = threading.Lock()

    def take(self, size: int, zeroed: int, owner: object) -> npt.NDArray[np.uint8]:
        """At least `size` bytes from a cache line on; the first `zeroed` are zero, unless `owner` had them last."""
        with self._lock:
            fitting = [i for i, (memory, _) in enumerate(self._free) if len(memory) >= size + SLACK]
            own = [i for i in fitting if self._free[i][1] is owner]
            if fitting:
                memory, last = self._free.pop((own or fitting)[0])
            else:
                # Instead of one that is too small, not beside it.
                if self._free:
                    self._free.pop()
                memory, last = aligned(size), None
        if last is not owner:
            memory[:zeroed] = 0
        return memory

    def give(self, memory: npt.NDArray[np.uint8], owner: object) -> None:
        """Returns memory; whoever takes it may count on what `owner` left zero only if it is the same."""
        with self._lock:
            self._free.append((memory, owner))


class Program:
    """Tasks in order, with the memory that their results share. Any number of threads may run one at a time.

    Args:
        tasks: the steps.
        arena: bytes of memory that a run needs.
        zeroed: of these, from the start, how many must be zero when a memory is first used.
        arenas: where the memory comes from; by default it is the program's own.
    """

    def __init__(self, tasks: Sequence[Task], arena: int = 0, zeroed: int = 0, arenas: Arenas | None = None) -> None:
        self.tasks = tuple(tasks)
        self.arena = arena
        self._zeroed = zeroed
        self._arenas = arenas or Arenas()
        self._scratch = -(-(max((t.scratch for t in tasks), default=0) + SLACK) // 4096) * 4096
        starts = np.cumsum([0, *(len(t.words) for t in tasks)])
        self._words = np.zeros(int(starts[-1]), np.int64)
        relative: list[int] = []
        external: dict[str, list[tuple[int, int]]] = {}
        self._kept: list[Any] = []
        for start, task in zip(starts, tasks, strict=False):
            for i, value in enumerate(task.words, int(start)):
                if isinstance(value, Arena):
                    relative.append(i)
                    self._words[i] = value.offset
                elif isinstance(value, External):
                    external.setdefault(value.name, []).append((i, value.offset))
                elif isinstance(value, np.ndarray):
                    self._kept.append(value)
                    self._words[i] = value.ctypes.data
                else:
                    self._words[i] = value
        self._relative = np.array(relative, np.int64)
        self.externals = {n: (np.array([p for p, _ in ps]), np.array([o for _, o in ps])) for n, ps in external.items()}
        self._starts = starts[:-1] * 8
        self._steps = np.zeros((len(tasks), _STEP), np.int64)
        self._steps[:, 2] = [t.units for t in tasks]
        self._most = max((t.units for t in tasks), default=0)
        self._free: list[_Memory] = []
        self._addressed = False

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All that is compiled code when it runs, each once."""
        return tuple(dict.fromkeys((_work, _wait, *(t.entry for t in self.tasks))))

    @property
    def scratch(self) -> int:
        """Bytes that each thread needs for itself."""
        return self._scratch

    def _find(self) -> None:
        # Not when it is made: what a model needs can be said without compiling anything.
        prepare(self.entries)
        self._steps[:, 0] = [t.entry.address for t in self.tasks]
        self._addressed = True

    def memory(self) -> _Memory:
        """A memory for one run at a time: to be given back by `release`. The first compiles what is not compiled yet."""
        if not self._addressed:
            self._find()
        try:
            memory = self._free.pop()  # atomic
        except IndexError:
            memory = _Memory(self)
        memory.move(self._arenas.take(self.arena, self._zeroed, self))
        return memory

    def release(self, memory: _Memory) -> None:
        """Keeps a memory for the next run."""
        self._arenas.give(memory.leave(), self)
        self._free.append(memory)


_NOWHERE = np.empty(0, np.uint8)


class _Memory:
    """What one run at a time of a program works in."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.arena = _NOWHERE
        self._start = 0
        self._words = program._words.copy()
        self._steps = program._steps.copy()
        self._steps[:, 1] = self._words.ctypes.data + program._starts
        self._counters = aligned(len(self._steps) * _LINE * 8 + 64)[: len(self._steps) * _LINE * 8 + 64].view(np.int64)
        self._scratch: list[Any] = []
        self._ends = (self._steps.ctypes.data, self._counters.ctypes.data, self._counters.ctypes.data + len(self._steps) * _LINE * 8)

    def move(self, arena: npt.NDArray[np.uint8]) -> None:
        """Works in `arena` from now on."""
        self.arena, start = arena, arena.ctypes.data
        if start != self._start:
            self._start = start
            program = self.program
            self._words[program._relative] = program._words[program._relative] + start

    def leave(self) -> npt.NDArray[np.uint8]:
        """Its arena, which it knows no more: others may keep it, or let it go."""
        arena, self.arena = self.arena, _NOWHERE
        return arena

    def bind(self, name: str, address: int) -> None:
        """Says where an external array lies."""
        places, offsets = self.program.externals[name]
        self._words[places] = offsets + address

    def run(self, first: int = 0, stop: int | None = None, threads: int | None = None) -> None:
        """Runs the steps first .. stop, on as many threads as have units to do."""
        program = self.program
        count = (len(self._steps) if stop is None else stop) - first
        if count <= 0:
            return
        threads = max(1, min(get_num_threads() if threads is None else threads, program._most))
        while len(self._scratch) < threads:
            self._scratch.append(aligned(program._scratch))
        self._counters[:] = 0
        steps, counters, left = self._ends
        arguments = steps + first * _STEP * 8, count, counters + first * _LINE * 8
        rest = _rest()
        offered: Offer | None = None
        if threads > 1:
            scratch = self._scratch

            def join(i: int) -> None:
                _work(*arguments, scratch[i].ctypes.data, rest, left)

            offered = offer(join, threads - 1)
        _work(*arguments, self._scratch[0].ctypes.data, rest, left)
        if offered is not None and (entered := offered.close()):
            # A thread that entered has seen the table, and leaves it as soon as it has looked at every step.
            _wait(left, entered + 1, rest)


_rehearsed: ContextVar[list[Entry] | None] = ContextVar("fp8np_rehearsed", default=None)


@contextmanager
def rehearsing() -> Iterator[list[Entry]]:
    """Inside the block `run_tasks` runs nothing: it notes what it would run, in the list that this gives."""
    noted: list[Entry] = []
    token = _rehearsed.set(noted)
    try:
        yield noted
    finally:
        _rehearsed.reset(token)


def cold() -> bool:
    """Whether nothing has been compiled yet that any program runs."""
    return not _work.known()


def run_tasks(*tasks: Task, arena: int = 0, threads: int | None = None) -> None:
    """Runs tasks once."""
    program = Program(tasks, arena)
    noted = _rehearsed.get()
    if noted is not None:
        noted += program.entries
    else:
        program.memory().run(threads=threads)
