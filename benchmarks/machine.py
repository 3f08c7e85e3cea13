"""The machine: what it is, how threads are made equal on it, and the ceilings that it itself was measured to have."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fp8np.kernels import _cpu, _peak
from fp8np.kernels._threads import threads as our_threads

__all__ = ["Ceiling", "ceilings", "copy_bandwidth", "facts", "limited", "peak", "roof", "tier", "usable_cores"]

MEMORY_COPY = 1 << 30
"""Bytes moved by the copy whose bandwidth is that of memory: more than caches hold."""

_LIBRARIES = ("numpy", "numba", "torch", "ml_dtypes", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Ceiling:
    """What the machine was measured to do at best: its name, and units of work a second."""

    name: str
    rate: float


def tier() -> str:
    """Of the kernels that run here."""
    return str(_cpu.describe().tier)


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """The same number of threads for fp8np, for the BLAS and OpenMP of NumPy, and for PyTorch.

    Sessions of onnxruntime and OpenVINO are told when they are made: see `fp8np_benchmarks.peers`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(our_threads(threads))
        with contextlib.suppress(ImportError):
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(threads))
        torch = sys.modules.get("torch")
        if torch is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        yield


@lru_cache
def copy_bandwidth(moved: int, threads: int) -> float:
    """Bytes read and written a second by a NumPy copy that moves so many in all, at best.

    A copy of 80 MB stays in a large cache where one of 1 GB does not: what is compared with it should move as many.
    """
    count = max(moved // 2, threads)
    source, target = np.ones(count, np.uint8), np.zeros(count, np.uint8)
    bounds = [count * i // threads for i in range(threads + 1)]
    parts = [(target[a:b], source[a:b]) for a, b in pairwise(bounds)]
    repeats = max(1, (1 << 24) // count)

    def work(part: tuple[Any, Any]) -> None:
        for _ in range(repeats):
            np.copyto(*part)

    with ThreadPoolExecutor(threads) as pool:
        copies: Callable[[], Any] = partial(work, parts[0]) if threads == 1 else lambda: list(pool.map(work, parts))
        return 2 * count * repeats / _fastest(copies)


def _fastest(call: Callable[[], Any], rounds: int = 7) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@lru_cache
def peak(threads: int) -> Ceiling | None:
    """What the arithmetic of the kernels' tier can do: products of AMX tiles, or else fused multiply-adds of float32."""
    kind = "tdpbf16ps" if tier() == "amx" else "fma"
    rate = _peak.measure(kind, threads)
    return None if rate is None else Ceiling(kind, rate)


def roof(work: float, traffic: float, threads: int) -> Ceiling | None:
    """The lower of the two roofs over `work` flop that move `traffic` bytes: arithmetic, or the copy of as many bytes."""
    moving = Ceiling("copy", work / traffic * copy_bandwidth(int(traffic), threads))
    arithmetic = peak(threads)
    return moving if arithmetic is None or moving.rate < arithmetic.rate else arithmetic


def ceilings(threads: int, *, quick: bool = False) -> dict[str, float]:
    """Every ceiling, on one thread and on `threads`: bytes or flop a second by name. `quick` copies what fits into caches."""
    moved = MEMORY_COPY >> 6 if quick else MEMORY_COPY
    found: dict[str, float] = {}
    for count in sorted({1, threads}):
        on = f"{count} thread{'s' * (count > 1)}"
        found[f"copy of {moved >> 20} MB, {on}"] = copy_bandwidth(moved, count)
        for kind in ("fma", "tdpbf16ps"):
            rate = _peak.measure(kind, count)
            if rate is not None:
                found[f"{kind}, {on}"] = rate
    return found


def usable_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(threads: int, *, quick: bool = False) -> dict[str, Any]:
    """What a reader of the figures has to know of the machine, its ceilings measured, as JSON has it."""
    machine = _cpu.describe()
    return {
        "cpu": _cpu_name(),
        "usable cores": usable_cores(),
        "threads": threads,
        "tier": machine.tier,
        "why": machine.reason,
        "features": {name: bool(has) for name, has in machine.features.items()},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": _blas(),
        "versions": {name: version for name in ("fp8np", *_LIBRARIES) if (version := _version(name))},
        # What else runs takes from everybody, but not alike.
        "load before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "unknown",
        "ceilings": ceilings(threads, quick=quick),
    }


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _blas() -> str:
    """NumPy's BLAS as it runs, with the kernels that it chose, where threadpoolctl can tell."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown: threadpoolctl is not installed"
    np.ones((2, 2)) @ np.ones((2, 2))
    for pool in threadpool_info():
        if pool["user_api"] == "blas" and "numpy" in pool["filepath"]:
            return " ".join(str(pool[key]) for key in ("internal_api", "version", "architecture") if pool.get(key))
    return "unknown"
