"""Measures an NVIDIA H100 (or any GPU since): conversions that the vectors of fp8np/verify/data lack, and mma.sync products.

    python benchmarks/vectors/hopper.py OUT

Needs nvcc and PyTorch with CUDA. Writes hopper_narrow.npz, hopper_narrow_f32.npz and hopper_mma.npz into OUT, as they are in
fp8np/verify/data, whose README.md describes them.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

KINDS = (
    "e8m0fnu_up_satfinite",
    "e8m0fnu_up_nosat",
    "e8m0fnu_zero_satfinite",
    "e8m0fnu_zero_nosat",
    "e3m2fn",
    "e2m3fn",
    "e2m1fn",
    "e4m3fn_satfinite",
    "e4m3fn_nosat",
    "e5m2_satfinite",
    "e5m2_nosat",
)
NARROW = 7  # the kinds before have no digests of all float32 inputs yet
PAIRS = (("e4m3fn", "e4m3fn"), ("e5m2", "e5m2"), ("e4m3fn", "e5m2"), ("e5m2", "e4m3fn"))
PRODUCTS = (
    (32, "any", 24),
    (32, "cancel", 12),
    (32, "normal", 12),
    (32, "special", 12),
    (32, "subnormal", 12),
    (256, "any", 6),
    (256, "normal", 6),
)
"""K, what the operands are like, and how many tiles."""
CHUNK = 1 << 24


def build(folder: Path) -> ctypes.CDLL:
    library = folder / "hopper.so"
    arch = "-gencode=arch=compute_90a,code=sm_90a"
    source = Path(__file__).with_suffix(".cu")
    subprocess.run(["nvcc", "-O2", "-std=c++17", arch, "-shared", "-Xcompiler", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def midpoints() -> np.ndarray:
    """float64 within a hair of what every kind's codes and midpoints can be: 2^-160 .. 2^132, up to six bits, times 1 +- 2^-k."""
    significands = np.arange(64, 128) / 64
    exact = np.concatenate([significands * 2.0**e for e in [*range(-22, 20), -129, -128, -127, -126, -125, 126, 127, 128]])
    near = [exact * (1 + s * 2.0**-k) for k in (26, 30, 40, 52) for s in (1, -1)]
    positive = np.unique(np.concatenate([exact, *near, [0.0, 2.0**-160, 5e-324, np.inf]]))
    return np.concatenate([positive, -positive, [np.nan, -np.nan]])


def digests(library: ctypes.CDLL, kind: int) -> np.ndarray:
    """u8 (256, 32): SHA-256 of each 2^24 consecutive codes, float32 inputs in order of their bits."""
    result = np.empty((256, 32), np.uint8)

    def hashed(chunk: int, codes: np.ndarray) -> None:
        result[chunk] = np.frombuffer(hashlib.sha256(codes.tobytes()).digest(), np.uint8)

    out = torch.empty(CHUNK, dtype=torch.uint8, device="cuda")
    with ThreadPoolExecutor(12) as pool:
        for chunk in range(256):
            if library.convert_range(kind, ctypes.c_uint32(chunk * CHUNK), CHUNK, pointer(out)):
                raise RuntimeError("the conversion failed")
            pool.submit(hashed, chunk, out.cpu().numpy())
    return result


def operands(rng: np.random.Generator, names: tuple[str, str], tiles: int, K: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes a (tiles, 16, K), b (tiles, 8, K) and the float32 accumulator (tiles, 16, 8)."""
    a, b = rng.integers(0, 256, (tiles, 16, K), np.uint8), rng.integers(0, 256, (tiles, 8, K), np.uint8)
    c = np.zeros((tiles, 16, 8), np.float32)
    for codes, name in ((a, names[0]), (b, names[1])):
        special = np.array([0x7F, 0xFF] if name == "e4m3fn" else [c | s for c in range(0x7C, 0x80) for s in (0, 0x80)], np.uint8)
        if kind != "special":
            codes[np.isin(codes, special)] = 0x01
        if kind == "normal":  # values around one, as trained weights have
            codes[:] = (codes & 0x80) | (0x28 + (codes & 0x1F))
    if kind == "subnormal":  # the largest product has one of them, and others are far below
        a &= 0x87 if names[0] == "e4m3fn" else 0x83
        c *= np.float32(2.0**-20)
    if kind == "special":  # few of them, so that most sums stay finite
        for codes in (a, b):
            codes[rng.random(codes.shape) > 0.004] &= 0xBB
    if kind != "normal":
        c = (rng.standard_normal(c.shape) * 2.0 ** rng.integers(-40, 40, c.shape)).astype(np.float32)
    if kind == "cancel":
        half = K // 2
        a[..., half:], b[..., half:] = a[..., :half] ^ 0x80, b[..., :half]
        c *= np.float32(2.0**-20)
    return a, b, c


def main() -> None:
    folder = Path(sys.argv[1])
    library = build(folder)
    rng = np.random.default_rng(20261123)

    arrays: dict[str, np.ndarray] = {"float64": midpoints()}
    doubles = torch.from_numpy(arrays["float64"]).cuda()
    for kind, name in enumerate(KINDS):
        out = torch.empty(1 << 16, dtype=torch.uint8, device="cuda")
        if kind < NARROW:
            library.convert_bf16(kind, pointer(out))
            arrays[f"bfloat16_to_{name}"] = out.cpu().numpy()
        codes = torch.empty(len(doubles), dtype=torch.uint8, device="cuda")
        library.convert_doubles(kind, pointer(doubles), len(doubles), pointer(codes))
        arrays[f"float64_to_{name}"] = codes.cpu().numpy()
    np.savez_compressed(folder / "hopper_narrow.npz", **arrays)

    np.savez_compressed(folder / "hopper_narrow_f32.npz", **{KINDS[kind]: digests(library, kind) for kind in range(NARROW)})

    arrays = {}
    for pair, names in enumerate(PAIRS):
        for K, kind, tiles in PRODUCTS:
            a, b, c = operands(rng, names, tiles, K, kind)
            tensors = [torch.from_numpy(t).cuda() for t in (a, b, c)]
            d = torch.empty(c.shape, dtype=torch.float32, device="cuda")
            if library.mma(pair, tiles, K, *map(pointer, tensors), pointer(d)):
                raise RuntimeError("the product failed")
            key = f"float8_{names[0]}_float8_{names[1]}_k{K}_{kind}"
            arrays |= {f"{key}_{n}": v for n, v in (("a", a), ("b", b), ("c", c), ("d", d.cpu().numpy()))}
    np.savez_compressed(folder / "hopper_mma.npz", **arrays)
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    (folder / "hopper_machine.txt").write_text(f"{torch.cuda.get_device_name()}, {version}, torch {torch.__version__}\n")
    print((folder / "hopper_machine.txt").read_text())


if __name__ == "__main__":
    main()
