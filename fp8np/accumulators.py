"""How a sum of products is rounded on the way: a table of accumulators, those of real hardware among them.

An accumulator is a few numbers, not a program. Four kinds exist; the first three are the sums of a CPU, the fourth is what the
matrix units of GPUs and CPUs do, each with parameters of its own::

    kind "aligned": K in steps of `group` products; c is the accumulator, a float32

      p0  1.0110011 * 2^3          1.0110011
      p1    1.1010010 * 2^2         .11010010          each product at the exponent ea + eb of its operands,
      p2        1.11 * 2^-1         .000111            not normalised; c at its own
      c          1.0101 * 2^-2      .00001|0101        cut at `fraction_bits` below the largest of the step
                                   -----------
      new c = the exact sum of what is left, rounded to `output_fraction_bits`

A person who builds hardware writes an `Accumulator` of his own and passes it wherever a name is taken.

>>> ACCUMULATORS["hopper"].fraction_bits
13
>>> resolve_accumulate("matmul", "hopper", 128).promote_every
128
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from types import MappingProxyType
from typing import Any

from fp8np.errors import PolicyError

__all__ = ["ACCUMULATORS", "Accumulator", "resolve_accumulate"]

KINDS = ("fp32", "exact", "sequential", "aligned")
ALIGNMENTS = ("toward_zero", "floor")
ADDENDS = ("aligned", "after", "rounded")
ROUNDINGS = ("toward_zero", "nearest_even")

WORKING_BITS = 53
"""Bits that the sum of the aligned terms of a step may have: it is kept in a float64."""


@dataclass(frozen=True)
class Accumulator:
    """A way to sum products of 8-bit floats into a float32.

    Attributes:
        name: how errors and reports call it.
        kind: ``"fp32"`` (float32, in the order of the fastest kernel), ``"exact"`` (the exact sum, rounded
            once), ``"sequential"`` (float32, k ascending, product and sum rounded one after the other) or ``"aligned"``. All
            fields below but the last two are for ``"aligned"`` alone; the others give 0x7FC00000 for NaN.
        group: products summed in a step.
        order: the order in which products are taken, as a permutation of so many numbers, repeated along K; K is filled up with
            zeros to a whole number of them. Empty: as they come.
        operand_exponent: the exponent of all operands below 2**operand_exponent; None is that of their format's smallest normal
            value. A unit that converts its operands to float16 first has -14.
        interleave: sums kept apart in a step: product i of it goes to sum i mod interleave.
        fraction_bits: bits kept below the largest exponent of a sum when its terms are aligned; None keeps all.
        alignment: what becomes of the bits beyond in sums, and in c, with ``"after"``: ``"toward_zero"`` cuts magnitudes,
            ``"floor"`` cuts two's complement. Single products, and c as a term of the step, are always cut toward zero.
        addend: how c takes part: ``"aligned"`` as one more term of the step; ``"after"``: aligned in a second step with the sum
            of the products; ``"rounded"``: the sum of the products is rounded, and added to c in float32, to nearest even.
        sum_fraction_bits: with ``"after"``: bits kept of what the second step adds up. The sum of the products is aligned with
            one bit more, c with `fraction_bits`, or dropped where its exponent is more than one below those; their sum,
            normalised, is cut to this width before it is rounded.
        output_fraction_bits: fraction bits of the new c: 23 is float32.
        output_rounding: ``"toward_zero"`` or ``"nearest_even"``.
        nan_code: the bits of a NaN result.
        promote_every: None, or the chain starts anew from zero every so many products, and each part is added to a float32
            total, to nearest even.
        source: where the rule is published.
        verified: on what it has been compared, bit for bit: a device, or ``"publication"`` where the rule is only what was
            published.

    Raises:
        PolicyError: a field has an unknown value, or the fields contradict each other.

    >>> Accumulator("mine", "aligned", group=8, fraction_bits=10, output_fraction_bits=10).interleave
    1
    """

    name: str
    kind: str
    group: int = 0
    order: tuple[int, ...] = ()
    operand_exponent: int | None = None
    interleave: int = 1
    fraction_bits: int | None = None
    alignment: str = "toward_zero"
    addend: str = "aligned"
    sum_fraction_bits: int = 0
    output_fraction_bits: int = 23
    output_rounding: str = "nearest_even"
    nan_code: int = 0x7FC00000
    promote_every: int | None = None
    source: str = ""
    verified: str = ""

    def __post_init__(self) -> None:
        for key, known in (("kind", KINDS), ("alignment", ALIGNMENTS), ("addend", ADDENDS), ("output_rounding", ROUNDINGS)):
            if getattr(self, key) not in known:
                raise PolicyError(f"{self}: unknown {key} {getattr(self, key)!r}; known: {', '.join(known)}")
        if not _whole(self.nan_code) or self.nan_code >> 32 or self.nan_code & 0x7FFFFFFF <= 0x7F800000:
            raise PolicyError(f"{self}: expected the 32 bits of a float32 NaN for nan_code, got {self.nan_code!r}")
        if self.kind == "aligned":
            self._check_aligned()
            return
        for field in dataclasses.fields(self):
            if field.name not in ("name", "kind", "source", "verified") and getattr(self, field.name) != field.default:
                raise PolicyError(f"{self}: only aligned accumulators take {field.name}; {self.kind} sums have no group of products")

    def _check_aligned(self) -> None:
        if not _whole(self.group) or not 1 <= self.group <= 4096:
            raise PolicyError(f"{self}: expected a group of 1 to 4096 products, got {self.group!r}")
        if not _whole(self.interleave) or not 1 <= self.interleave <= self.group:
            raise PolicyError(f"{self}: expected interleave to be 1 to group = {self.group}, got {self.interleave!r}")
        if not _whole(self.output_fraction_bits) or not 1 <= self.output_fraction_bits <= 23:
            raise PolicyError(f"{self}: expected 1 to 23 output_fraction_bits, got {self.output_fraction_bits!r}")
        bits = self.fraction_bits
        if bits is not None:
            widest = max(bits, self.sum_fraction_bits + 1) if self.addend == "after" else bits
            # A product is less than 4 units of the largest exponent, c less than 2.
            room = WORKING_BITS - (4 * self.group + 2).bit_length()
            if not _whole(bits) or not _whole(self.sum_fraction_bits) or bits < 0 or widest > room:
                raise PolicyError(f"{self}: expected fraction bits of 0 to {room} for groups of {self.group}, got {widest!r}")
        if self.addend == "after" and (bits is None or self.sum_fraction_bits < bits):
            raise PolicyError(f"{self}: addend='after' takes fraction_bits, and sum_fraction_bits not less than those")
        if self.addend != "after" and (self.sum_fraction_bits or self.interleave > 1 or self.alignment == "floor"):
            raise PolicyError(f"{self}: sum_fraction_bits, interleave and alignment='floor' go with addend='after'")
        if bits is None and self.output_fraction_bits != 23:
            raise PolicyError(f"{self}: exact groups (fraction_bits=None) round to float32: expected 23 output_fraction_bits")
        if self.operand_exponent is not None and (not _whole(self.operand_exponent) or not -127 <= self.operand_exponent <= 0):
            raise PolicyError(f"{self}: expected operand_exponent to be None or -127 to 0, got {self.operand_exponent!r}")
        if not isinstance(self.order, tuple) or not all(map(_whole, self.order)):
            raise PolicyError(f"{self}: expected order to be a tuple of whole numbers, got {self.order!r}")
        size, every = len(self.order), self.promote_every
        if sorted(self.order) != list(range(size)) or size % self.group:
            raise PolicyError(f"{self}: expected order to be a permutation of a multiple of {self.group} numbers, got {self.order}")
        if every is not None and (not _whole(every) or every < 1 or every % self.group):
            raise PolicyError(f"{self}: expected promote_every to be a positive multiple of its group of {self.group}, got {every!r}")
        if every is not None and size and every % size:
            raise PolicyError(f"{self}: expected promote_every to be a multiple of the {size} products of its order, got {every}")

    def __str__(self) -> str:
        return str(self.name)


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


_MMA_SIM = "Xie et al., arXiv 2511.10909, and their model, github.com/microsoft/MMA-Sim"
_BY_PAIRS = tuple(4 * i + j for half in (0, 2) for i in range(8) for j in (half, half + 1))
_LAW = "fp8np.reference_sum, the definition in exact arithmetic"


def _table(*rows: Accumulator) -> Mapping[str, Accumulator]:
    return MappingProxyType({row.name: row for row in rows})


def _nvidia(
    name: str, group: int, fraction_bits: int, output_fraction_bits: int, source: str, verified: str = "publication"
) -> Accumulator:
    return Accumulator(
        name,
        "aligned",
        group=group,
        fraction_bits=fraction_bits,
        output_fraction_bits=output_fraction_bits,
        output_rounding="toward_zero",
        nan_code=0x7FFFFFFF,
        source=source,
        verified=verified,
    )


ACCUMULATORS: Mapping[str, Accumulator] = _table(
    Accumulator("fp32", "fp32", source="IEEE 754-2019 binary32", verified=_LAW),
    Accumulator("exact", "exact", source="IEEE P3109 Interim Report v4.0, BlockDotProduct", verified=_LAW),
    Accumulator("sequential", "sequential", source="IEEE 754-2019 binary32", verified=_LAW),
    _nvidia(
        "hopper",
        32,
        13,
        13,
        "wgmma on 8-bit floats; " + _MMA_SIM,
        "silicon: NVIDIA H100, wgmma (E4M3, E5M2, E4M3 x E5M2) and torch._scaled_mm",
    ),
    Accumulator(
        "hopper_mma",
        "aligned",
        group=16,
        order=_BY_PAIRS,
        operand_exponent=-14,
        fraction_bits=25,
        output_rounding="toward_zero",
        nan_code=0x7FFFFFFF,
        promote_every=32,
        source="mma.sync m16n8k32 on 8-bit floats, compute capability 9.0, as measured: two products of float16, k = 0, 1, 4, 5, ... "
        "and k = 2, 3, 6, 7, ..., summed from zero, then added to c in float32",
        verified="silicon: NVIDIA H100, mma.sync (E4M3, E5M2, E4M3 x E5M2)",
    ),
    _nvidia("ada", 16, 13, 13, "mma.sync m16n8k32, in two halves of K; " + _MMA_SIM),
    _nvidia("blackwell", 32, 25, 23, "tcgen05.mma kind::f8f6f4, and mma.sync, without block scales; " + _MMA_SIM),
    Accumulator(
        "cdna3",
        "aligned",
        group=16,
        interleave=2,
        fraction_bits=24,
        alignment="floor",
        addend="after",
        sum_fraction_bits=31,
        source="v_mfma_f32_*_fp8/bf8 (fnuz formats); " + _MMA_SIM + ". The code of NaN is not published",
        verified="publication",
    ),
    Accumulator(
        "amx",
        "aligned",
        group=64,
        addend="rounded",
        nan_code=0xFFC00000,
        source="TDPBF8PS, TDPHF8PS and mixed, full tiles of 64 products a row: the model in GCC's testsuite (i386/amxfp8-*-2.c)",
        verified="publication",
    ),
    Accumulator(
        "arm",
        "aligned",
        group=4,
        source="FDOT (4-way, FP8 to FP32), Arm Architecture Reference Manual: a fused sum of products, added without intermediate "
        "rounding; FPMR.LSCALE = 0. Rounding to nearest even and the code of NaN are assumed",
        verified="publication",
    ),
)
"""Every accumulator by name."""


def resolve_accumulate(what: str, accumulate: Any, promote_every: int | None = None) -> Accumulator:
    """The accumulator meant by a name or an `Accumulator`, with another promotion interval if one is given.

    Args:
        what: the caller, for messages.
        accumulate: a name of `ACCUMULATORS`, or an `Accumulator`.
        promote_every: None for the accumulator's own; see `Accumulator`.

    Raises:
        PolicyError: the name is unknown, or promote_every does not fit the accumulator.
    """
    if isinstance(accumulate, Accumulator):
        how = accumulate
    elif isinstance(accumulate, str) and accumulate in ACCUMULATORS:
        how = ACCUMULATORS[accumulate]
    else:
        import difflib

        close = difflib.get_close_matches(accumulate, ACCUMULATORS, n=3) if isinstance(accumulate, str) else []
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(ACCUMULATORS)}, or an Accumulator"
        raise PolicyError(f"{what}: unknown accumulate {accumulate!r}{hint}")
    if promote_every is None:
        return how
    try:
        return dataclasses.replace(how, promote_every=promote_every)
    except PolicyError as error:
        raise PolicyError(f"{what}: {error}") from None
