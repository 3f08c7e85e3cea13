"""The table of kernels: one row for each implementation, and the only way to reach one.

A kernel is a plain function over C-contiguous arrays and scalars that writes into its last argument and cannot fail. A row
says which operation it implements, for which formats, on which CPU, and in which order it adds. Rows are collected from the
modules of this package in the order of registration; the first that fits is taken. The last row of each operation is the
plain one: it needs nothing of the CPU and takes every format that the operation is for. (``decode_f32`` is for signed formats of
8 bits; the values of others are looked up in a table of 256.)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import fp8np.kernels
from fp8np.formats import FloatFormat
from fp8np.kernels._cpu import Cpu, cpu_has

__all__ = ["ALL", "Kernel", "Select", "kernel", "kernels", "select"]

KernelFunction = Callable[..., None]
Select = Callable[..., KernelFunction]


def ALL(*formats: FloatFormat) -> bool:  # noqa: N802 - reads as a constant in the rows
    """Every format."""
    return True


@dataclass(frozen=True)
class Kernel:
    """One implementation of an operation.

    Attributes:
        op: the operation; rows of one op take the same arguments.
        function: the entry, called with ready arrays.
        needs: the CPU feature without which it cannot run.
        takes: predicate over the formats of the operands.
        order: in which order it rounds, in words: what its bits depend on.
        reproducible: the same bits as the plain row, on every CPU and thread count.
    """

    op: str
    function: KernelFunction
    needs: Cpu
    takes: Callable[..., bool]
    order: str
    reproducible: bool


_rows: list[Kernel] = []


def kernel(
    op: str,
    function: KernelFunction,
    *,
    order: str,
    reproducible: bool,
    needs: Cpu = Cpu.ANY,
    takes: Callable[..., bool] = ALL,
) -> None:
    """Adds a row. Called at the bottom of each kernel module, fastest row first, plain row last."""
    _rows.append(Kernel(op, function, needs, takes, order, reproducible))


@lru_cache(maxsize=1)
def _load() -> None:
    # Importing a kernel module imports Numba but compiles nothing: that happens at a kernel's first call.
    for module in sorted(m.name for m in pkgutil.iter_modules(fp8np.kernels.__path__) if not m.name.startswith("_")):
        importlib.import_module(f"fp8np.kernels.{module}")


def kernels() -> tuple[Kernel, ...]:
    """All rows, for tests, benchmarks and docs."""
    _load()
    return tuple(_rows)


@lru_cache(maxsize=1024)
def select(op: str, *formats: FloatFormat, reproducible: bool = False) -> KernelFunction:
    """The first row of `op` that runs on this CPU, takes these formats, and is reproducible if asked to be.

    Raises:
        LookupError: no row fits: a defect of the table, since every op ends with a plain row.
    """
    for row in kernels():
        if row.op == op and cpu_has(row.needs) and row.takes(*formats) and (row.reproducible or not reproducible):
            return row.function
    raise LookupError(f"no kernel for {op}({', '.join(map(str, formats))})")
