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
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from numbers import Integral
from typing import Any

from fp8np._settings import default_threads
from fp8np.errors import PolicyError

__all__ = ["get_num_threads", "parallel_for", "set_num_threads", "threads"]

# Handing a range to another thread costs tens of microseconds; below this much work per thread (in multiply-adds, or
# elements converted) a range stays with the caller.
MIN_WORK = 1 << 19

# Ranges a thread, taken as threads become free: on a shared machine one core may be much slower than the next (a product of
# 1024 cubed on two threads: 144 to 166 GFLOP/s, against 138 to 152 with one range each).
RANGES = 4

_default: int | None = None
_override: ContextVar[int | None] = ContextVar("fp8np_threads", default=None)
_lock = threading.Lock()
_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # (process id, workers, pool)


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


def _executor(workers: int) -> ThreadPoolExecutor:
    # A forked child inherits the object but not its threads, hence the process id. A smaller pool is left to drain: the
    # interpreter joins its idle threads at exit.
    global _pool
    with _lock:
        if _pool is None or _pool[0] != os.getpid() or _pool[1] < workers:
            _pool = (os.getpid(), workers, ThreadPoolExecutor(workers, thread_name_prefix="fp8np"))
        return _pool[2]


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

    def work_off() -> None:
        while True:
            try:
                start, stop = waiting.pop()  # atomic
            except IndexError:
                return
            run(start, stop)

    # The caller works too: one hand-over less, and nested calls cannot starve each other.
    pool = _executor(count - 1)
    futures = [pool.submit(work_off) for _ in range(count - 1)]
    work_off()
    for future in futures:
        future.result()
