"""Threads for kernels: one pool a process. The bits depend neither on the thread count nor on how work is cut.

Numba's own threads are not used: its always-present layer (workqueue) aborts the process when two Python threads enter it
together (Numba issue 8563), and a `parallel=True` kernel compiles several times slower. Kernels are `nogil`, take a range
``start, stop`` of independent items, and are handed out here.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from numbers import Integral
from queue import SimpleQueue
from typing import Any

from fp8np._settings import default_threads
from fp8np.errors import PolicyError

__all__ = ["Offer", "get_num_threads", "offer", "parallel_for", "set_num_threads", "threads"]

# Handing a range to another thread costs tens of microseconds; below this much work per thread (in multiply-adds, or
# elements converted) a range stays with the caller.
MIN_WORK = 1 << 19

# Ranges a thread, taken as threads become free: on a shared machine one core may be much slower than the next (a product of
# 1024 cubed on two threads: 144 to 166 GFLOP/s, against 138 to 152 with one range each).
RANGES = 4

_default: int | None = None
_override: ContextVar[int | None] = ContextVar("fp8np_threads", default=None)


def get_num_threads() -> int:
    """The number of threads that kernels called from here may use."""
    global _default
    override = _override.get()
    if override is not None:
        return override
    if _default is None:
        _default = default_threads()
    return _default


def set_num_threads(n: int) -> None:
    """Sets the number of threads that kernels of this process may use (default: FP8NP_THREADS, else the usable CPUs).

    Raises:
        PolicyError: n is not a positive integer.
    """
    global _default
    _default = _checked(n)


@contextlib.contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Limits kernels called inside the block to `n` threads; None changes nothing."""
    if n is None:
        yield
        return
    token = _override.set(_checked(n))
    try:
        yield
    finally:
        _override.reset(token)


def _checked(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise PolicyError(f"threads: expected a positive integer, got {n!r}")
    return int(n)


class Offer:
    """Work that other threads may join until it is closed."""

    __slots__ = ("_closed", "_entered", "_left", "_lock", "work")

    def __init__(self, work: Callable[[int], None]) -> None:
        self.work = work
        self._lock = threading.Lock()
        self._closed = False
        self._entered = 0
        self._left: SimpleQueue[None] = SimpleQueue()

    def take(self, index: int) -> None:
        """Calls ``work(index)``, unless the offer is closed."""
        with self._lock:
            if self._closed:
                return
            self._entered += 1
        self.work(index)
        self._left.put(None)

    def close(self) -> int:
        """Lets nobody in any more; how many have entered."""
        with self._lock:
            self._closed = True
            return self._entered

    def join(self) -> None:
        """Closes, and waits until all who entered have left."""
        for _ in range(self.close()):
            self._left.get()


class _Pool:
    """Threads that take up offers: as many as were ever wanted at a time. They end with the process."""

    def __init__(self) -> None:
        self._offers: SimpleQueue[tuple[Offer, int]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0

    def put(self, offered: Offer, count: int) -> None:
        if self._threads < count:
            with self._lock:
                for i in range(self._threads, count):
                    threading.Thread(target=self._serve, name=f"fp8np-{i + 1}", daemon=True).start()
                self._threads = max(self._threads, count)
        for i in range(count):
            self._offers.put((offered, i + 1))

    def _serve(self) -> None:
        while True:
            offered, index = self._offers.get()
            offered.take(index)


_pool = _Pool()


def _forget() -> None:
    global _pool
    _pool = _Pool()


# A forked child has the object but not its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def offer(work: Callable[[int], None], helpers: int) -> Offer:
    """Invites `helpers` other threads to call ``work(i)``, i = 1 .. helpers. Who offers works too, as number 0, then closes."""
    offered = Offer(work)
    _pool.put(offered, helpers)
    return offered


def parallel_for(run: Callable[[int, int], None], items: int, work: int) -> None:
    """Calls ``run(start, stop)`` over ``0 .. items`` in as many contiguous ranges as pay.

    Args:
        run: computes the items of a range; items are independent and each is computed in the same way in any range.
        items: the number of items.
        work: multiply-adds, or elements, in all items together; decides how many threads pay.
    """
    count = max(1, min(get_num_threads(), items, work // MIN_WORK))
    if count == 1:
        if items:
            run(0, items)
        return
    parts = min(items, count * RANGES)
    waiting = [(items * i // parts, items * (i + 1) // parts) for i in reversed(range(parts))]

    def work_off(_: int = 0) -> None:
        while True:
            try:
                start, stop = waiting.pop()  # atomic
            except IndexError:
                return
            run(start, stop)

    # The caller works too: one hand-over less, and nested calls cannot starve each other.
    offered = offer(work_off, count - 1)
    try:
        work_off()
    finally:
        offered.join()
