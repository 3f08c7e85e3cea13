"""Products: codes in and float32 out, weights packed beforehand; every element within a derived bound of the product in float64."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fp8np
from fp8np_benchmarks.case import OURS, Case, Check, CheckError, Ready, Setting, SkipCase, is_ours
from fp8np_benchmarks.machine import roof
from fp8np_benchmarks.peers import as_array, find, numpy_peer
from fp8np_benchmarks.results import Row, read_run

FORMAT = "e4m3fn"
WIDE = 4096
"""N and K of the linear layers."""
LEAST_SIGNAL = 35.0
"""dB; asked of peers that round to bfloat16."""
_U = 2.0**-24

PINNED = {
    "FP8NP_CPU": "avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
"""An environment in which everybody uses AVX2 and no more."""


def cases(setting: Setting) -> list[Case]:
    """Square products, linear layers of few and many rows, a batch of products, and one pinned to AVX2."""
    part = 16 if setting.quick else 1
    threads = setting.threads
    found = [_square(size // part, threads) for size in (1024, 2048, 4096)]
    found += [_square(4096 // part, 1)] * (threads > 1)
    found.append(_square(2048 // part, threads, accumulate="exact"))
    n = WIDE // part
    for rows in (1, 2, 8, 16, 64, 128, 512):
        work, traffic = 2.0 * rows * n * n, float(n * n + 8 * rows * n)
        name = f"linear {rows} x {n} x {n}, float32 activations in"
        found.append(_case(name, threads, partial(linear, rows, n, n), work, traffic))
    batch, rows, inner = 96, 128, 64
    work, traffic = 2.0 * batch * rows * rows * inner, float(batch * (2 * rows * inner + 4 * rows * rows))
    name = f"batched matmul {batch} of {rows} x {rows} x {inner}"
    found.append(_case(name, threads, partial(batched, batch, rows, inner), work, traffic))
    pinned = 1024 // part
    found.append(Case("gemm", f"{_name(pinned)}, everybody on AVX2", threads, partial(elsewhere, setting, _name(pinned)), unit="flop"))
    return found


def _name(size: int) -> str:
    return f"matmul {size} x {size} x {size}"


def _square(size: int, threads: int, accumulate: str = "fp32") -> Case:
    name = _name(size) + ("" if accumulate == "fp32" else f", accumulate={accumulate}")
    return _case(name, threads, partial(square, size, accumulate), 2.0 * size**3, 6.0 * size**2)


def _case(name: str, threads: int, prepare: Any, work: float, traffic: float) -> Case:
    return Case("gemm", name, threads, prepare, work, "flop", traffic, partial(roof, work, traffic, threads))


def square(size: int, accumulate: str) -> Ready:
    """Codes of both operands are given; the right one is a weight, packed once."""
    a, w = operands(size, size, size)
    x, y = fp8np.dequantize(a), fp8np.dequantize(w)
    # Only sums in float32 have a packed operand.
    right = fp8np.pack(w.T) if accumulate == "fp32" else w.T
    ours = partial(fp8np.matmul, a, right, accumulate=accumulate)
    entries, absent = _peers(x, y)
    check = close(x, y) if accumulate == "fp32" else _mine(close(x, y, roundings=1), close(x, y))
    if torch := find("torch", absent, "torch._scaled_mm"):
        codes = [torch.from_numpy(q.codes).view(torch.float8_e4m3fn) for q in (a, w)]
        scales = torch.full((size, 1), float(a.scale)), torch.from_numpy(w.scale.T.copy())

        def scaled_mm() -> Any:
            return torch._scaled_mm(codes[0], codes[1].t(), *scales, out_dtype=torch.float32)

        entries["torch._scaled_mm"] = scaled_mm
    return Ready({OURS: ours, **entries}, check, absent)


def linear(rows: int, n: int, k: int) -> Ready:
    """Activations come as float32 and are quantized inside, with a scale found beforehand, as in a converted model."""
    x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    scale = fp8np.quantize(x, FORMAT).scale
    _, w = operands(1, n, k)
    packed = fp8np.pack(w.T)
    y = fp8np.dequantize(w)
    entries, absent = _peers(x, y)
    rounded = fp8np.dequantize(fp8np.quantize(x, FORMAT, scale=scale))

    def ours() -> Any:
        return fp8np.matmul(fp8np.quantize(x, FORMAT, scale=scale), packed)

    return Ready({OURS: ours, **entries}, _mine(close(rounded, y), close(x, y)), absent)


def _mine(ours: Check, theirs: Check) -> Check:
    """A check of ours that is not that of the peers."""
    return lambda entry, result: (ours if is_ours(entry) else theirs)(entry, result)


def batched(batch: int, rows: int, inner: int) -> Ready:
    """Products as attention has them: both operands are new at each call, so nothing is packed."""
    rng = np.random.default_rng(0)
    a, b = (fp8np.quantize(rng.standard_normal((batch, rows, inner)).astype(np.float32), FORMAT) for _ in range(2))
    x, y = fp8np.dequantize(a), fp8np.dequantize(b)
    entries, absent = _peers(x, y)
    return Ready({OURS: partial(fp8np.matmul, a, b.transpose(0, 2, 1)), **entries}, close(x, y), absent)


def elsewhere(setting: Setting, name: str) -> Row:
    """One case in a process of its own, where nobody has more than AVX2."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        command = [sys.executable, "-m", "fp8np", "bench", "--suite", "gemm", "--case", name]
        command += ["--threads", str(setting.threads), "--json", str(file), *["--quick"] * setting.quick]
        done = subprocess.run(command, env={**os.environ, **PINNED}, capture_output=True, text=True, check=False)
        if not file.exists():
            said = (done.stderr.strip().splitlines() or ["the other process gave no result"])[-1]
            raise SkipCase(said) if "FP8NP_CPU" in said else RuntimeError(said)
        (row,) = read_run(file).rows
    return row


def operands(m: int, n: int, k: int) -> tuple[fp8np.QTensor, fp8np.QTensor]:
    """Activations (M, K) with one scale, and weights (N, K) with one for each output."""
    rng = np.random.default_rng(0)
    a = fp8np.quantize(rng.standard_normal((m, k)).astype(np.float32), FORMAT)
    return a, fp8np.quantize(rng.standard_normal((n, k)).astype(np.float32), FORMAT, axis=0)


def _peers(x: Any, y: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Products of x (..., M, K) and y (..., N, K) in the types that others have."""
    entries: dict[str, Any] = {}
    absent: dict[str, str] = {}
    if numpy_peer(absent, "NumPy f32"):
        entries["NumPy f32"] = lambda: x @ y.swapaxes(-1, -2)
    if torch := find("torch", absent, "torch f32", "torch bf16"):
        left, right = torch.from_numpy(x), torch.from_numpy(y).mT
        half = left.bfloat16(), torch.from_numpy(y).bfloat16().mT
        entries["torch f32"] = lambda: left @ right
        entries["torch bf16"] = lambda: half[0] @ half[1]
    return entries, absent


def close(x: Any, y: Any, roundings: int | None = None) -> Check:
    """Checks products against x y^T in float64: of sums of K terms, or of sums that round so many times.

    A float32 sum of K terms in any order is within ``gamma(K) = K u / (1 - K u)`` of the sum of magnitudes (Higham, Accuracy and
    Stability of Numerical Algorithms, section 4.2); four more roundings are those of the scales, here and in x and y. Of
    bfloat16, whose result alone is rounded to 8 bits, a signal 35 dB above the noise is asked.
    """
    truth = x.astype(np.float64) @ y.astype(np.float64).swapaxes(-1, -2)
    count = (x.shape[-1] if roundings is None else roundings) + 4
    allowed = (np.abs(x) @ np.abs(y).swapaxes(-1, -2)).astype(np.float64)
    allowed *= count * _U / (1 - count * _U)

    def check(entry: str, result: Any) -> str:
        got = as_array(result).astype(np.float64)
        if got.shape != truth.shape:
            raise CheckError(f"the shape is {got.shape}, expected {truth.shape}")
        off = np.abs(got - truth)
        if "bf16" in entry:
            signal = 10 * np.log10((truth**2).sum() / (off**2).sum())
            if not signal >= LEAST_SIGNAL:
                raise CheckError(f"{signal:.1f} dB above its error, expected at least {LEAST_SIGNAL:.0f}")
            return f"{signal:.0f} dB above its error"
        worst = float((off / allowed).max())
        if not worst <= 1:
            raise CheckError(f"an element is off by {worst:.3g} times what float32 sums may be")
        return f"all elements within {worst:.2g} of the bound for float32 sums"

    return check
