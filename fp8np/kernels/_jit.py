"""The one JIT policy: the only importer of `numba.njit`, the compile options, and where compiled code is kept.

Decorators of functions over arrays and numbers:

- `exact`: no floating-point liberties. For everything whose bits are promised.
- `fused`: the compiler may contract a*b + c into one fused multiply-add, and nothing else: fewer roundings, still the same
  order of operations on every thread count. It changes bits only where a product is inexact, which those of FP8 are not.

Of native code, which computes on addresses (see `fp8np.kernels._program`):

- `native`: as `fused`, for the parts of an entry.
- `entry`: what a program calls, through its address.
- `intrinsic`: LLVM instructions that Python has no word for, with a twin in Python that is its definition.

Numba's own cache key sees neither the callees in other files, nor the options, nor globals (Numba issues 1833, 6845). So the
cache directory is named by a fingerprint of everything that can change the machine code: any edit starts a new directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import llvmlite
import llvmlite.binding
import numba
import numba.extending
import numpy as np

from fp8np._settings import cache_dir
from fp8np.kernels._cpu import describe, target

__all__ = ["Entry", "compiled", "entry", "exact", "fingerprint", "fused", "intrinsic", "native", "wide_vectors"]

_F = TypeVar("_F", bound=Callable[..., Any])

# error_model="numpy": a division by zero gives inf instead of a check that raises, which would block vectorisation.
# nogil: kernels own no shared state, so threads of fp8np's own pool run them side by side.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


# FP8NP_CPU stands for another CPU, so everything is compiled for that one. Otherwise Numba's choice is not touched.
if (_target := target()) is not None:
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = _target


def exact(function: _F) -> _F:
    """Compiles `function` on first call, with IEEE semantics throughout."""
    return _compile(function, fastmath=False)


def fused(function: _F) -> _F:
    """Compiles `function` on first call; multiply-adds may be fused. NaN, infinities and signed zeros keep their meaning."""
    return _compile(function, fastmath={"contract"})


native = fused


def compiled() -> bool:
    """Whether kernels are compiled: not under ``NUMBA_DISABLE_JIT=1``, where they run as the plain Python that they are."""
    return not numba.config.DISABLE_JIT


class Entry:
    """A function of three integers (address of its words, number of the unit, address of scratch memory) that a program calls.

    Compiled when its address is first asked for. Uncompiled, the address is a number that stands for the function.
    """

    _BY_ADDRESS: ClassVar[dict[int, Callable[..., None]]] = {}

    def __init__(self, function: Callable[[int, int, int], None]) -> None:
        self.function = function
        self.name = f"{function.__module__.removeprefix('fp8np.kernels.')}.{function.__name__}"
        self._made: Any = None
        self._lock = threading.Lock()

    @property
    def address(self) -> int:
        """Where a program finds it."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
        return int(self._made.address) if compiled() else cast(int, self._made)

    def _make(self) -> Any:
        if not compiled():
            address = len(self._BY_ADDRESS) + 1
            self._BY_ADDRESS[address] = self.function
            return address
        i64 = numba.types.int64
        with compiling(self.name), _cache_directory() as cache:
            return numba.cfunc(numba.types.void(i64, i64, i64), cache=cache, fastmath={"contract"}, error_model="numpy")(self.function)

    @classmethod
    def call(cls, address: int, words: int, unit: int, scratch: int) -> None:
        """Calls the function that an uncompiled entry's address stands for."""
        cls._BY_ADDRESS[address](words, unit, scratch)


def entry(function: Callable[[int, int, int], None]) -> Entry:
    """Makes a function an `Entry`; multiply-adds in it may be fused."""
    return Entry(function)


_watchers: list[Callable[[str, bool], None]] = []


@contextlib.contextmanager
def compiling(name: str) -> Iterator[None]:
    """Tells whoever watches that a function is being compiled, or read from the cache."""
    for watch in _watchers:
        watch(name, False)
    try:
        yield
    finally:
        for watch in _watchers:
            watch(name, True)


@contextlib.contextmanager
def watching(watch: Callable[[str, bool], None]) -> Iterator[None]:
    """Calls ``watch(name, done)`` before and after each function that is compiled meanwhile."""
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)


def intrinsic(twin: Callable[..., Any], result: Any, *parameters: Any) -> Callable[[Callable[..., Any]], Any]:
    """Makes ``emit(builder, *values)``, which writes LLVM instructions, a function of the given Numba types.

    Args:
        twin: the same in Python: what runs uncompiled. Kept as the attribute ``twin``.
        result, parameters: Numba types.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        if not compiled():
            return twin

        def typed(typing: Any, *arguments: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                made = emit(builder, *values)
                return context.get_dummy_value() if made is None else made

            return result(*parameters), generate

        # Numba counts the parameters of what it is given.
        names = [f"a{i}" for i in range(len(parameters))]
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("typing", *names)]
        )
        typed.__name__ = typed.__qualname__ = emit.__name__
        typed.__doc__ = emit.__doc__
        typed.__module__ = emit.__module__
        made = numba.extending.intrinsic(typed)
        made.twin = twin
        return made

    return decorate


def wide_vectors() -> None:
    """Called in a kernel: lets its loops use the widest vectors of the CPU.

    For many CPUs with AVX-512 LLVM's default is 256 bits, since the first of them slowed their clock for 512. A kernel that does
    little else than float64 multiply-adds gains more than that: 60 against 112 GFLOP/s with 512-bit units. No bits change.
    """


@numba.extending.intrinsic
def _prefer_512_bits(typing: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite knows no attributes with a value; its set of attributes prints what is in it.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return numba.types.void(), generate


# Inlined, because the attribute is that of the function which the intrinsic stands in.
@numba.extending.overload(wide_vectors, inline="always")
def _wide_vectors() -> Any:
    # mypy sees the parameter that Numba fills in.
    return lambda: _prefer_512_bits()  # type: ignore[call-arg]


def _compile(function: _F, fastmath: bool | set[str]) -> _F:
    with _cache_directory() as cache:
        try:
            return cast(_F, numba.njit(function, cache=cache, fastmath=fastmath, **_OPTIONS))
        except RuntimeError:
            # Numba finds no file to stamp the cache with (a package imported from a zip): go on without.
            return cast(_F, numba.njit(function, fastmath=fastmath, **_OPTIONS))


@contextlib.contextmanager
def _cache_directory() -> Iterator[bool]:
    # Numba reads CACHE_DIR only while it decorates; setting it for longer would move the caches of other libraries.
    directory = _prepared_directory()
    if directory is None:
        yield False
        return
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(directory)
    try:
        yield True
    finally:
        config.CACHE_DIR = before


@lru_cache(maxsize=1)
def _prepared_directory() -> Path | None:
    base = cache_dir()
    if base is None:
        return None
    # Numba looks into it again at each first call, and the working directory may have changed by then.
    directory = base.absolute() / f"kernels-{fingerprint()}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _problem(directory)
    except OSError as error:
        problem = str(error)
    if problem:
        warnings.warn(
            f"fp8np: compiled kernels cannot be kept in {directory} ({problem}); each process compiles them anew. "
            "Set FP8NP_CACHE to a writable directory, or to 'off' to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return directory


def _problem(directory: Path) -> str | None:
    # The cache is unpickled when it is read: in a directory that others may write, or may exchange for another, it would be a
    # way to run their code. (In a sticky directory such as /tmp nobody renames what belongs to others.)
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
        numba.__version__,
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
