"""What a run was made with: versions, CPU, threads, and the recorded vectors with their digests."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import fp8np
from fp8np.kernels._threads import get_num_threads
from fp8np.verify.conversions import data_file
from fp8np.verify.references import REFERENCES

__all__ = ["facts"]


def facts() -> dict[str, Any]:
    """Facts of this machine and installation, as JSON can hold them.

    >>> sorted(facts())
    ['cpu', 'date', 'machine', 'python', 'threads', 'vectors', 'versions']
    """
    names = ["numpy", "numba", "llvmlite", *(reference.name for reference in REFERENCES)]
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": {"fp8np": fp8np.__version__} | {name: _version(name) for name in names},
        "python": f"{platform.python_implementation()} {platform.python_version()} ({sys.byteorder} endian)",
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "threads": get_num_threads(),
        "vectors": _vectors(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _vectors() -> dict[str, str]:
    """File -> SHA-256."""
    folder = data_file("")
    files = sorted((f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")), key=lambda f: str(f.name))
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
