"""Throughput of each way to sum beside NumPy's float32 product, in one process, interleaved; results are checked before.

    python benchmarks/accumulate.py [--threads N] [--sizes 1024 2048] [--modes exact hopper ...] [--pairs e4m3fn:e5m2 ...]

Prints a markdown table: medians, and ours as a multiple of NumPy's float32 in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import fp8np
from fp8np.accumulators import ACCUMULATORS
from fp8np.reference_sum import dot
from fp8np_benchmarks.machine import limited
from fp8np_benchmarks.runner import Pace, measured

PAIRS = ["e4m3fn:e4m3fn", "e3m4:e3m4", "e4m3fn:e3m4", "e5m2:e5m2"]
CHECKED = 20
"""Elements that are compared with the law; it takes milliseconds for each."""
SLOW = 1.0
"""Seconds for a product, from which on three rounds replace nine."""


def check(mode: str, a: fp8np.QTensor, b: fp8np.QTensor) -> float:
    """Compares elements from all over a @ b^T, before the scales, with the law; gives the seconds that a product takes."""
    plain = fp8np.QTensor(a.codes, a.format), fp8np.QTensor(b.codes, b.format)
    fp8np.matmul(*(fp8np.QTensor(q.codes[:8, :8], q.format) for q in plain), accumulate=mode)  # compiles
    start = time.perf_counter()
    got = fp8np.matmul(plain[0], plain[1].T, accumulate=mode)
    seconds = time.perf_counter() - start
    rng = np.random.default_rng(1)
    for m, n in zip(rng.integers(0, len(a.codes), CHECKED).tolist(), rng.integers(0, len(b.codes), CHECKED).tolist(), strict=True):
        expected = dot(ACCUMULATORS[mode], a.codes[m].tolist(), a.format, b.codes[n].tolist(), b.format)
        assert got[m, n].view(np.uint32) == expected, (mode, m, n, got[m, n], hex(expected))
    return seconds


def measure(mode: str, pair: str, size: int) -> None:
    """One line of the table."""
    rng = np.random.default_rng(0)
    left, right = pair.split(":")
    a = fp8np.quantize(rng.standard_normal((size, size)).astype(np.float32), left)
    b = fp8np.quantize(rng.standard_normal((size, size)).astype(np.float32), right)
    seconds = check(mode, a, b)
    x, y = fp8np.dequantize(a), fp8np.dequantize(b)
    entries = {"fp8np": lambda: fp8np.matmul(a, b.T, accumulate=mode), "numpy float32": lambda: x @ y.T}
    samples = measured(entries, Pace(rounds=9 if seconds < SLOW else 3))
    ours, peer = (1e-9 * size**3 / statistics.median(samples[name]) for name in entries)
    print(f"| {mode} | {pair.replace(':', ' x ')} | {size} | {ours:.3g} | {peer:.3g} | {ours / peer:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=fp8np.get_num_threads())
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048], help="M = N = K")
    parser.add_argument("--modes", nargs="+", choices=list(ACCUMULATORS), default=list(ACCUMULATORS), metavar="MODE")
    parser.add_argument("--pairs", nargs="+", help="formats of both operands; default: four for exact, the first of them for others")
    args = parser.parse_args()
    print(f"{args.threads} thread(s), medians of interleaved rounds\n")
    print("| accumulate | operands | M = N = K | GMAC/s | NumPy float32 | ratio |\n|---|---|---|---|---|---|")
    with limited(args.threads):
        for size in args.sizes:
            for mode in args.modes:
                for pair in args.pairs or (PAIRS if ACCUMULATORS[mode].kind == "exact" else PAIRS[:1]):
                    measure(mode, pair, size)


if __name__ == "__main__":
    main()
