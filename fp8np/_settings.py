"""The only reader of ``FP8NP_*`` environment variables.

| variable | meaning | default |
|---|---|---|
| ``FP8NP_CACHE`` | directory of compiled kernels, or ``off`` | a per-user cache directory |
| ``FP8NP_CPU`` | tier of kernels to run, at most what the CPU has: ``amx``, ``avx512bf16``, ``avx512``, ``avx2``, ``plain`` | the highest |
| ``FP8NP_THREADS`` | threads that kernels may use | the CPUs this process may run on |
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fp8np.errors import PolicyError

__all__ = ["cache_dir", "default_threads", "environment", "forced_cpu"]


def cache_dir() -> Path | None:
    """Directory for compiled kernels, or None where caching is switched off."""
    value = os.environ.get("FP8NP_CACHE", "").strip()
    if value.lower() == "off":
        return None
    if value:
        return Path(value).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        base = str(_home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else _home() / ".cache") / "fp8np"


def _home() -> Path:
    # A container may have neither HOME nor a passwd entry: Path.home() then raises.
    try:
        return Path.home()
    except RuntimeError:
        import tempfile

        return Path(tempfile.gettempdir())


def default_threads() -> int:
    """Threads that kernels use unless told otherwise.

    Raises:
        PolicyError: FP8NP_THREADS is not a positive integer.
    """
    value = os.environ.get("FP8NP_THREADS", "").strip()
    if value:
        if not value.isdecimal() or int(value) < 1:
            raise PolicyError(f"FP8NP_THREADS: expected a positive integer, got {value!r}")
        return int(value)
    # The affinity mask, not cpu_count: a container with 2 of 64 CPUs must not start 64 threads.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def forced_cpu() -> str | None:
    """The tier that FP8NP_CPU asks for, in small letters; None where it is not set."""
    return os.environ.get("FP8NP_CPU", "").strip().lower() or None


def environment(*, threads: int, tier: str = "") -> dict[str, str]:
    """The environment of a process that is to use so many threads, of libraries that it may import too, and kernels of a tier."""
    counts = dict.fromkeys(("FP8NP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**os.environ, **counts, **({"FP8NP_CPU": tier} if tier else {})}
