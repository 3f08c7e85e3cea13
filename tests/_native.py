"""How native kernels are tested: run on one thread and on two, compiled and, on small sizes, as the twins in NumPy.

`tests/test_native_twins.py` runs all of these tests once more with ``NUMBA_DISABLE_JIT=1``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._jit import compiled
from fp8np.kernels._program import Task, run_tasks

EPS = 2.0**-24
"""The largest relative error of one rounding."""

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0], np.float32)


def run(*tasks: Task) -> None:
    """Runs tasks on two threads, or, uncompiled, on one."""
    if any(task.units for task in tasks):
        with np.errstate(all="ignore"):
            run_tasks(*tasks, threads=2 if compiled() else 1)


def run_again(*files: str, keyword: str = "", **variables: str) -> None:
    """Runs test files in a process of its own, in another environment; of their tests those that `keyword` selects."""
    few = ["-k", keyword] if keyword else []
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, *few]
    done = subprocess.run(command, cwd=Path(__file__).parent, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def check_tier(file: str, tier: str, keyword: str) -> None:
    """Runs a test file on a lower tier, or as plain Python: there all of it."""
    if tier in [cpu.tier for cpu in Cpu if cpu > describe().cpu]:
        pytest.skip(f"{describe().tier} is less than {tier}")
    if tier == "uncompiled":
        run_again(Path(file).name, NUMBA_DISABLE_JIT="1")
    else:
        run_again(Path(file).name, keyword=keyword, FP8NP_CPU=tier)


def check_threads(task: Task, *written: Any) -> None:
    """The task gives the same bits in `written` on one thread, on two and on three."""
    results = []
    for threads in (1, 2, 3) if compiled() else (1,):
        for array in written:
            array.view(np.uint8)[:] = 0xA5
        with np.errstate(all="ignore"):
            run_tasks(task, threads=threads)
        results.append([array.tobytes() for array in written])
    assert all(r == results[0] for r in results)


def sizes(*cases: Any, elements: int = 1200) -> list[Any]:
    """All cases, shapes or numbers; uncompiled those that have few elements."""
    return list(cases) if compiled() else [c for c in cases if np.prod(c) <= elements]


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    """Normal random float32."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * scale).astype(np.float32)


class Guarded:
    """An output array inside a larger one; `check` sees whether something outside of it was written."""

    def __init__(self, *shape: int, dtype: Any = np.float32) -> None:
        size = int(np.prod(shape))
        self._around = np.full(size + 128, 77, dtype)
        self.array = self._around[64 : 64 + size].reshape(shape)

    def check(self) -> Any:
        assert (self._around[:64] == 77).all()
        assert (self._around[64 + self.array.size :] == 77).all()
        return self.array
