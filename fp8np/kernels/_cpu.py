"""What this CPU has: the only place that asks. Rows of the kernel table name what they need; order in the table is priority.

| tier | needs | products |
|---|---|---|
| ``amx`` | AMX tiles with bfloat16, granted by the operating system, and the tier below | of tiles, 16 x 16 x 32 an instruction |
| ``avx512bf16`` | AVX-512 with VBMI and BF16 | pairs of bfloat16, 32 an instruction |
| ``avx512`` | AVX-512 F, BW, DQ, VL | float32, 16 an instruction |
| ``avx2`` | AVX2, FMA and F16C | float32, 8 an instruction |
| ``plain`` | nothing | whatever LLVM makes of vectors of sixteen |

``FP8NP_CPU`` forces a lower tier, in this process alone: Numba then compiles everything for a CPU that has no more than that.
"""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import llvmlite.binding

from fp8np._settings import forced_cpu
from fp8np.errors import PolicyError

__all__ = ["Cpu", "Machine", "cpu_has", "describe", "target", "uncompiled"]


class Cpu(enum.IntEnum):
    """What a kernel row needs; each includes those before it."""

    ANY = 0
    """Nothing: every CPU that Numba compiles for."""
    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3
    AMX_BF16 = 4

    @property
    def tier(self) -> str:
        """Its name in FP8NP_CPU and in reports."""
        return ("plain", "avx2", "avx512", "avx512bf16", "amx")[self]


_FEATURES: Mapping[Cpu, tuple[str, ...]] = MappingProxyType(
    {
        Cpu.AVX2: ("avx2", "fma", "f16c"),
        Cpu.AVX512: ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
        Cpu.AVX512_BF16: ("avx512vbmi", "avx512bf16"),
        Cpu.AMX_BF16: ("amx-tile", "amx-bf16"),
    }
)

# CPUs that have what a tier needs and no more of what the tiers above need.
_TARGETS: Mapping[Cpu, tuple[str, str]] = MappingProxyType(
    {
        Cpu.ANY: ("x86-64", ""),
        Cpu.AVX2: ("haswell", ""),
        Cpu.AVX512: ("skylake-avx512", ""),
        Cpu.AVX512_BF16: ("icelake-server", "+avx512bf16"),
    }
)


@dataclass(frozen=True)
class Machine:
    """The tier whose kernels run here, and why.

    Attributes:
        tier: its name.
        cpu: as `Cpu`.
        reason: why not a higher one.
        features: of the CPU, those that tiers ask for.
        name: LLVM's name of the CPU.
    """

    tier: str
    cpu: Cpu
    reason: str
    features: Mapping[str, bool]
    name: str


def uncompiled() -> bool:
    """Whether ``NUMBA_DISABLE_JIT=1`` asks for kernels as plain Python; Numba, which this is an option of, is not imported to ask."""
    return os.environ.get("NUMBA_DISABLE_JIT", "").strip() not in ("", "0")


@lru_cache(maxsize=1)
def describe() -> Machine:
    """What kernels may use here.

    Raises:
        PolicyError: FP8NP_CPU names a tier that this machine does not have.
    """
    name = llvmlite.binding.get_host_cpu_name()
    known = llvmlite.binding.get_host_cpu_features()
    features = {f: bool(known.get(f, False)) for names in _FEATURES.values() for f in names}
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    best, reason = Cpu.ANY, "the CPU is not an x86 with AVX2" if not x86 else ""
    if x86:
        for cpu, names in _FEATURES.items():
            missing = [f for f in names if not features[f]]
            if missing:
                reason = f"{cpu.tier} needs {', '.join(missing)}, which this CPU has not"
                break
            if cpu is Cpu.AMX_BF16 and not _tiles_granted():
                reason = "amx: the operating system does not grant this process the state of AMX tiles"
                break
            best = cpu
        else:
            reason = "the CPU has everything that kernels ask for"
    if uncompiled():
        best, reason = Cpu.ANY, "NUMBA_DISABLE_JIT: kernels run uncompiled"
    forced = forced_cpu()
    if forced is not None:
        wanted = _tier(forced)
        if wanted > best and not uncompiled():
            raise PolicyError(f"FP8NP_CPU={forced}: this machine has no more than {best.tier} ({reason})")
        if wanted < best:
            best, reason = wanted, f"FP8NP_CPU={forced}"
    return Machine(best.tier, best, reason, MappingProxyType(features), name)


def _tier(name: str) -> Cpu:
    for cpu in Cpu:
        if cpu.tier == name:
            return cpu
    raise PolicyError(f"FP8NP_CPU: expected one of {', '.join(cpu.tier for cpu in Cpu)}, got {name!r}")


def _tiles_granted() -> bool:
    # Linux saves the 8 KiB of tiles only for processes that ask: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None, use_errno=True).syscall(158, 0x1023, 18) == 0)
    except (AttributeError, OSError):
        return False


def cpu_has(feature: Cpu) -> bool:
    """Whether kernels that need `feature` run here."""
    return describe().cpu >= feature


def target() -> tuple[str, str] | None:
    """The CPU name and features to compile for where FP8NP_CPU forces a tier below what the machine has; otherwise None."""
    machine = describe()
    if forced_cpu() is None or uncompiled() or machine.reason != f"FP8NP_CPU={forced_cpu()}":
        return None
    return _TARGETS[machine.cpu] if platform.machine().lower() in ("x86_64", "amd64") else None
