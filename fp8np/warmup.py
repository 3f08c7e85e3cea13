"""Compiling ahead of time what would be compiled when it is first called: for containers, and for whoever must not wait."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fp8np.kernels
from fp8np._sizes import open_sizes
from fp8np.codec import decode, encode
from fp8np.dims import evaluate
from fp8np.errors import Fp8npError, InputError, PolicyError
from fp8np.formats import FORMATS
from fp8np.kernels._cache import OFF, place
from fp8np.kernels._jit import Entry, Step, compiled, prepare, watching
from fp8np.memory import planned
from fp8np.model import Model
from fp8np.plan import Rehearsal
from fp8np.plan.builder import Host
from fp8np.scaling import quantize

__all__ = ["Warmed", "entries", "warm_kernels", "warm_models"]

# Not of any program: instructions by which `fp8np bench` measures a CPU, which may not have them.
_NOT_KERNELS = ("_peak",)


@dataclass(frozen=True)
class Warmed:
    """What came of it.

    Attributes:
        made: how many kernels were compiled; the others had been before.
        seconds: how long that took.
        directory: where they are kept.
    """

    made: int
    seconds: float
    directory: Path | None


def entries() -> tuple[Entry, ...]:
    """Every entry of the kernels."""
    found: list[Entry] = []
    for module in sorted(m.name for m in pkgutil.iter_modules(fp8np.kernels.__path__) if m.name not in _NOT_KERNELS):
        values = vars(importlib.import_module(f"fp8np.kernels.{module}")).values()
        found += [value for value in values if isinstance(value, Entry) and value.ours]
    return tuple(dict.fromkeys(found))


def warm_kernels() -> Warmed:
    """Compiles every entry, and the kernels by which arrays are encoded, decoded and quantized.

    Those that sum exactly or as hardware does are compiled when they are first called: they take as long as all others together, and no
    model runs them.

    Raises:
        PolicyError: there is no directory in which kernels can be kept.
    """
    return _timed(_kernels)


def _kernels() -> None:
    prepare(entries())
    fmt = next(f for f in FORMATS.values() if f.signed and f.bits == 8)
    x = np.ones((2, 2), np.float32)
    for dtype in (np.float32, np.float64):
        decode(encode(x.astype(dtype), fmt), fmt)
    for bits in (np.uint8, np.uint32):
        encode(x, fmt, rounding="stochastic_a", random_bits=np.zeros(x.shape, bits))
    for axis in (None, 1):
        quantize(x, fmt, axis=axis)


def warm_models(models: Sequence[Model], sizes: Sequence[Mapping[str, int]] = ()) -> Warmed:
    """Compiles what runs of the models call at the given sizes, or at examples of those that are not given.

    A model of which some steps run in NumPy is also run once, on zeros: what those call is known in no other way.

    Raises:
        InputError: a model cannot run at these sizes, or none of the models has a size of such a name.
        PolicyError: there is no directory in which kernels can be kept.
    """
    names = {name for model in models for name in open_sizes(model.inputs)}
    for unknown in sorted({name for given in sizes for name in given} - names):
        raise InputError(f"sizes: no model has {unknown}; open are {', '.join(sorted(names)) or 'none'}")

    def work() -> None:
        plans: list[tuple[Model, dict[str, int], Rehearsal]] = []
        for model in models:
            mine = open_sizes(model.inputs)
            plans += [(model, *planned(model, {n: s for n, s in given.items() if n in mine})) for given in sizes or ({},)]
        prepare(entry for _, _, rehearsal in plans for entry in rehearsal.entries)
        for model, given, rehearsal in plans:
            if any(isinstance(segment, Host) for segment in rehearsal.plan.segments):
                _try(model, given)

    return _timed(work)


def _try(model: Model, sizes: Mapping[str, int]) -> None:
    zeros = {v.name: np.zeros([evaluate(size, sizes) for size in v.shape], v.dtype) for v in model.inputs}
    try:
        model.run(zeros)
    except Fp8npError:
        # Not every model takes zeros; what it had compiled by then is kept.
        return


def _timed(work: Callable[[], None]) -> Warmed:
    directory, problem = place()
    if problem:
        raise PolicyError("warmup: " + (problem if problem == OFF else f"compiled kernels cannot be kept in {problem}"))
    if not compiled():
        raise PolicyError("warmup: NUMBA_DISABLE_JIT is set, so nothing is compiled")
    made: set[str] = set()

    def watch(step: Step, done: bool) -> None:
        if done:
            made.add(step.name)

    start = time.perf_counter()
    with watching(watch):
        work()
    return Warmed(len(made), time.perf_counter() - start, directory)
