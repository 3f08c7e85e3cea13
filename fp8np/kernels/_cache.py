"""Where machine code is kept: a directory of the user's own, named by a fingerprint of everything that can change the code.

Any edit of a kernel, another version of a library, another CPU start a new directory.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import llvmlite
import llvmlite.binding
import numpy as np

from fp8np._settings import cache_dir
from fp8np.kernels._cpu import describe

__all__ = ["OFF", "fingerprint", "kept_in", "place"]

# What a relative FP8NP_CACHE starts from: the working directory may change before anything is compiled.
try:
    _START = Path.cwd()
except FileNotFoundError:
    _START = Path()


@lru_cache(maxsize=1)
def kept_in() -> Path | None:
    """The directory in which this process keeps compiled kernels; None where it keeps none, for which the first caller is warned once."""
    directory, problem = place()
    if directory is None and problem != OFF:
        warnings.warn(
            f"fp8np: compiled kernels cannot be kept in {problem}; each process compiles them anew. "
            "Set FP8NP_CACHE to a writable directory, or to 'off' to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )
    return directory


OFF = "the cache is off. Set FP8NP_CACHE to a directory."


def place() -> tuple[Path | None, str]:
    """As `kept_in`; or None and why not."""
    base = cache_dir()
    if base is None:
        return None, OFF
    directory = _START / base / f"kernels-{fingerprint()}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _problem(directory)
    except OSError as error:
        problem = error.strerror or str(error)
    return (None, f"{directory} ({problem})") if problem else (directory, "")


def _problem(directory: Path) -> str | None:
    # The cache is machine code, and pickles of Numba's: in a directory that others may write, or may exchange for another, it would be
    # a way to run their code. (In a sticky directory such as /tmp nobody renames what belongs to others.)
    if not os.access(directory, os.W_OK | os.X_OK):
        return "not writable"
    if hasattr(os, "getuid"):
        info = directory.stat()
        if info.st_uid != os.getuid():
            return "owned by another user"
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "writable by other users"
        for parent in directory.resolve().parents:
            mode = parent.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return f"{parent} is writable by other users"
    return None


def fingerprint() -> str:
    """Of everything that can change the machine code: versions, the CPU, and the sources of all kernels."""
    digest = hashlib.sha256()
    facts = [
        sys.version,
        _numba_version(),
        llvmlite.__version__,
        np.__version__,
        llvmlite.binding.get_process_triple(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
        describe().tier,
        *(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")),
    ]
    for path in sorted(Path(__file__).parent.glob("*.py")):
        facts += [path.name, path.read_text(encoding="utf-8")]
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:20]


def _numba_version() -> str:
    # What Numba says of itself, without importing it.
    found = importlib.util.find_spec("numba")
    try:
        return (Path(cast(str, cast(Any, found).origin)).parent / "_version.py").read_text(encoding="utf-8")
    except (AttributeError, TypeError, OSError):
        from importlib.metadata import version

        return version("numba")
