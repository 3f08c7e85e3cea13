"""The one JIT policy: how kernels are compiled, when, and where machine code is kept.

Decorators of functions over arrays and numbers:

- `exact`: no floating-point liberties. For everything whose bits are promised.
- `fused`: the compiler may contract a*b + c into one fused multiply-add, and nothing else: fewer roundings, still the same
  order of operations on every thread count. It changes bits only where a product is inexact, which those of FP8 are not.

Of native code, which computes on addresses (see `fp8np.kernels._program`):

- `native`: as `fused`, for the parts of an entry.
- `entry`: what a program calls, through its address.
- `intrinsic`: LLVM instructions that Python has no word for, with a twin in Python that is its definition.

Nothing here imports Numba, which takes longer than a small model: `fp8np.kernels._compile` does, when something has to be compiled.
Entries that were compiled before are read from the cache and linked.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar, cast

import numpy as np

from fp8np.kernels import _objects
from fp8np.kernels._cache import kept_in
from fp8np.kernels._cpu import uncompiled

__all__ = [
    "Compiled",
    "Entry",
    "Intrinsic",
    "Step",
    "compiled",
    "entry",
    "exact",
    "fused",
    "intrinsic",
    "native",
    "prepare",
    "tell",
    "types",
    "watching",
    "wide_vectors",
]

_F = TypeVar("_F", bound=Callable[..., Any])

types = SimpleNamespace(void="void", int64="int64", float32="float32")
"""What intrinsics take and give, beside the vectors of `fp8np.kernels._vector`: names of Numba's types."""


def compiled() -> bool:
    """Whether kernels are compiled: not under ``NUMBA_DISABLE_JIT=1``, where they run as the plain Python that they are."""
    return not uncompiled()


# -- functions --------------------------------------------------------------------------------------------------------

# Held while a function becomes Numba's: two threads would make two of it, and compile both.
_resolving = threading.RLock()


class Compiled:
    """A function that is compiled when it is first called, from Python or by a function that is compiled.

    Attributes:
        py_func: as it was written.
    """

    def __init__(self, function: Callable[..., Any], fastmath: bool | set[str], part: bool = False) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function
        self._fastmath = fastmath
        self._part = part
        self._made: Any = None

    @property
    def dispatcher(self) -> Any:
        """Numba's form of it."""
        if self._made is None:
            with _resolving:
                if self._made is None:
                    self._made = self._make()
        return self._made

    def _make(self) -> Any:
        from fp8np.kernels import _compile

        if self._part:
            return _compile.part(self.py_func)
        return _compile.dispatcher(self.py_func, self._fastmath)

    def __call__(self, *arguments: Any) -> Any:
        return self.dispatcher(*arguments)

    @property
    def signatures(self) -> list[Any]:
        """The types for which it was compiled."""
        return [] if self._made is None else self._made.signatures

    @property
    def _numba_type_(self) -> Any:
        # Numba asks any object for its type by this name.
        if not self._part:
            return self.dispatcher._numba_type_
        from fp8np.kernels import _compile

        return _compile.part_type(self.dispatcher)


def exact(function: _F) -> _F:
    """Compiles `function` on first call, with IEEE semantics throughout."""
    return cast(_F, Compiled(function, False)) if compiled() else function


def fused(function: _F) -> _F:
    """Compiles `function` on first call; multiply-adds may be fused. NaN, infinities and signed zeros keep their meaning."""
    return cast(_F, Compiled(function, {"contract"})) if compiled() else function


def native(function: _F) -> _F:
    """Makes a function a part of the entries that call it; multiply-adds may be fused. Nothing else can call it."""
    return cast(_F, Compiled(function, {"contract"}, part=True)) if compiled() else function


class Intrinsic:
    """LLVM instructions as a function of compiled code.

    Attributes:
        emit: ``emit(builder, *values)`` writes them.
        twin: the same in Python.
        result, parameters: names of types.
    """

    def __init__(self, emit: Callable[..., Any], twin: Callable[..., Any], result: str, parameters: tuple[str, ...]) -> None:
        functools.update_wrapper(self, emit)
        self.emit = emit
        self.twin = twin
        self.result = result
        self.parameters = parameters
        self._type: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self.twin(*arguments)

    @property
    def _numba_type_(self) -> Any:
        if self._type is None:
            with _resolving:
                if self._type is None:
                    from fp8np.kernels import _compile

                    self._type = _compile.intrinsic_type(self)
        return self._type


def intrinsic(twin: Callable[..., Any], result: str, *parameters: str) -> Callable[[Callable[..., Any]], Any]:
    """Makes ``emit(builder, *values)``, which writes LLVM instructions, a function of the given types.

    Args:
        twin: the same in Python: what runs uncompiled. Kept as the attribute ``twin``.
        result: one of `types`, or a vector's.
        *parameters: such, too.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        return Intrinsic(emit, twin, result, parameters) if compiled() else twin

    return decorate


def wide_vectors() -> None:
    """Called in a kernel: lets its loops use the widest vectors of the CPU.

    For many CPUs with AVX-512 LLVM's default is 256 bits, since the first of them slowed their clock for 512. A kernel that does
    little else than float64 multiply-adds gains more than that: 60 against 112 GFLOP/s with 512-bit units. No bits change.
    """


_PACKAGE = "fp8np.kernels."


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__.removeprefix(_PACKAGE)}.{function.__name__}"


# -- entries ----------------------------------------------------------------------------------------------------------


class Entry:
    """A function of integers that a program calls, or that is called from Python while other threads run.

    A program calls those of three: address of its words, number of the unit, address of scratch memory. It is compiled, or read from
    the cache, when its address is first asked for. Uncompiled, the address is a number that stands for the function.

    Attributes:
        function: as it was written.
        name: its module and its name.
    """

    _BY_ADDRESS: ClassVar[dict[int, Callable[..., None]]] = {}

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.name = _name(function)
        self._address: int | None = None
        self._call: Callable[..., None] | None = None
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"Entry({self.name})"

    @property
    def address(self) -> int:
        """Where a program finds it."""
        if self._address is None:
            prepare([self])
        return cast(int, self._address)

    def __call__(self, *integers: int) -> None:
        if self._call is None:
            if compiled():
                self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(integers))(self.address)
            else:
                self._call = self.function
        self._call(*integers)

    @classmethod
    def call(cls, address: int, words: int, unit: int, scratch: int) -> None:
        """Calls the function that an uncompiled entry's address stands for."""
        # As compiled code: infinities and NaN are data.
        with np.errstate(all="ignore"):
            cls._BY_ADDRESS[address](words, unit, scratch)

    @property
    def _symbol(self) -> str:
        # Elsewhere, in tests, functions of one name may be many.
        return f"fp8np.{self.name}" if self.ours else f"fp8np.{self.name}.{id(self)}"

    @property
    def ours(self) -> bool:
        """Whether it is one of this package, and not of a test."""
        return self.function.__module__.startswith(_PACKAGE)

    @property
    def _file(self) -> Path | None:
        # The fingerprint is that of this package.
        directory = kept_in() if self.ours else None
        return None if directory is None else directory / f"{self.name}.o"

    def known(self) -> bool:
        """Whether nothing has to be compiled: its code is here, or in the cache, from where it is read."""
        with self._lock:
            if self._address is None and not compiled():
                self._address = len(self._BY_ADDRESS) + 1
                self._BY_ADDRESS[self._address] = self.function
            if self._address is None and (file := self._file) is not None and (code := _objects.read(file)) is not None:
                self._address = _objects.link(code, self._symbol)
            return self._address is not None

    def make(self) -> None:
        """Compiles it, unless that has been done meanwhile, and keeps the code."""
        with self._lock:
            if self._address is not None:
                return
            from fp8np.kernels import _compile

            code = _compile.object_code(self.function, self._symbol)
            self._address = _objects.link(code, self._symbol)
            if (file := self._file) is not None:
                try:
                    _objects.write(file, code)
                except OSError as error:
                    warnings.warn(f"fp8np: {file} was not written: {error.strerror or error}", RuntimeWarning, stacklevel=2)


def entry(function: Callable[..., None]) -> Entry:
    """Makes a function an `Entry`; multiply-adds in it may be fused."""
    return Entry(function)


def prepare(entries: Iterable[Entry]) -> int:
    """Compiles those entries that are not known, and tells who watches. How many these were."""
    missing = [e for e in dict.fromkeys(entries) if not e.known()]
    for number, one in enumerate(missing, 1):
        with _telling(Step(one.name, number, len(missing))):
            one.make()
    return len(missing)


# -- who watches ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Something that is compiled: the `number` th of `count`; both 0 where what else there will be is not known."""

    name: str
    number: int = 0
    count: int = 0


Watch = Callable[[Step, bool], None]
_watchers: list[Watch] = []
_inside = threading.local()


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Calls ``watch(step, done)`` before and after everything that is compiled meanwhile, not what is read from the cache."""
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)


def _tell(step: Step, done: bool) -> None:
    for watch in tuple(_watchers):
        watch(step, done)


@contextlib.contextmanager
def _telling(step: Step) -> Iterator[None]:
    _tell(step, False)
    _inside.entry = True
    try:
        yield
    finally:
        _inside.entry = False
        _tell(step, True)


def tell(function: Callable[..., Any], done: bool) -> None:
    """Says that Numba compiles a function over arrays; the parts of an entry count as one with it."""
    if not getattr(_inside, "entry", False):
        _tell(Step(_name(function)), done)
