"""Products on one thread, on two, and so on: against ours on one, with the same bits."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import fp8np
from fp8np.kernels._threads import threads as limited
from fp8np_benchmarks.case import OURS, Case, CheckError, Ready, Setting, SkipCase
from fp8np_benchmarks.machine import roof
from fp8np_benchmarks.suites.gemm import close, operands


def cases(setting: Setting) -> list[Case]:
    """Two square products."""
    found = []
    for size in (2048, 4096):
        size //= 16 if setting.quick else 1
        work, traffic = 2.0 * size**3, 6.0 * size**2
        prepare, ceiling = partial(scaling, size, setting.threads), partial(roof, work, traffic, setting.threads)
        found.append(Case("scaling", f"matmul {size} x {size} x {size}", setting.threads, prepare, work, "flop", traffic, ceiling))
    return found


def scaling(size: int, threads: int) -> Ready:
    """On all threads, and on each power of two below."""
    if threads == 1:
        raise SkipCase("one thread cannot be more: --threads 2")
    a, w = operands(size, size, size)
    packed = fp8np.pack(w.T)

    def on(count: int) -> Any:
        with limited(count):
            return fp8np.matmul(a, packed)

    counts = [1 << i for i in range(threads.bit_length()) if 1 << i < threads]
    entries = {OURS: partial(on, threads)} | {f"fp8np, {n} thread{'s' * (n > 1)}": partial(on, n) for n in counts}
    near, first = close(fp8np.dequantize(a), fp8np.dequantize(w)), on(1)

    def check(entry: str, result: Any) -> str:
        said = near(entry, result)
        if not np.array_equal(result.view(np.uint32), first.view(np.uint32)):
            raise CheckError("the bits differ from those of one thread")
        return f"{said}; the bits of one thread"

    return Ready(entries, check)
