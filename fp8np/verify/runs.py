"""What the law says about all 2^32 float32 numbers, as runs of one code: a few hundred of them, found by bisection.

Among positive numbers a conversion never goes down, and what lies beyond the largest value has a code of its own; the same holds for
negative ones. So two numbers of one sign with the same code have only that code between them, and each change of code is bisected
with `fp8np.reference.encode`. Zeros, infinities and NaNs are asked one by one::

    bits  00000000 | 00000001 ........ 7F7FFFFF | 7F800000 | 7F800001 .. 7FFFFFFF | 80000000 | 80000001 ...
          zero     | finite, bisected           | infinity | NaN, by payload      | -0       | ...

The digests of such codes are cheap too: most chunks of 2^24 codes hold a single one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.errors import PolicyError
from fp8np.formats import FloatFormat
from fp8np.policy import IEEE, PRESETS, SATURATE, STOCHASTIC, Policy

__all__ = ["CHUNK", "CHUNKS", "Runs", "chunk_digest", "chunk_digests", "conversions", "label", "root_digest", "runs"]

Codes = npt.NDArray[np.uint8]

CHUNK = 1 << 24
"""Codes in a chunk: what one digest is of, and the unit of work and of resumption."""
CHUNKS = (1 << 32) // CHUNK

_SIGN = 1 << 31
_INFINITY = 0x7F800000


@dataclass(frozen=True, eq=False)
class Runs:
    """The codes of all float32 numbers in order of their bits.

    Attributes:
        starts: int64, ascending from 0: the bits of the first number of each run.
        codes: uint8: the code of each run; neighbours differ.
    """

    starts: npt.NDArray[np.int64]
    codes: Codes

    def within(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, code) of all runs of the bits ``first .. stop``, cut at both ends and counted from `first`."""
        low = int(np.searchsorted(self.starts, first, side="right")) - 1
        high = int(np.searchsorted(self.starts, stop, side="left"))
        edges = [0, *(self.starts[low + 1 : high] - first).tolist(), stop - first]
        return zip(edges, edges[1:], self.codes[low:high].tolist(), strict=False)

    def fill(self, first: int, out: Codes) -> None:
        """Writes the codes of the bits ``first .. first + out.size``."""
        for start, stop, code in self.within(first, first + out.size):
            out[start:stop] = code


@lru_cache(maxsize=256)
def runs(fmt: FloatFormat, policy: Policy = SATURATE) -> Runs:
    """The codes of all float32 numbers, by `fp8np.reference.encode`.

    Raises:
        PolicyError: the rounding is stochastic: the codes depend on random bits too.

    >>> from fp8np.formats import get_format
    >>> found = runs(get_format("e2m1fn"))
    >>> [(f"{start:08X}", code) for start, code in zip(found.starts.tolist(), found.codes.tolist())][:4]
    [('00000000', 0), ('3E800001', 1), ('3F400000', 2), ('3FA00001', 3)]
    """
    if policy.rounding in STOCHASTIC:
        raise PolicyError(f"runs: {policy.rounding} depends on random bits; ask fp8np.reference.encode")
    how = dataclasses.asdict(policy)

    @cache
    def code(bits: int) -> int:
        return reference.encode(fmt, _value(bits), **how)

    starts: list[int] = []
    codes: list[int] = []
    for sign in (0, _SIGN):
        # The payload bits that a NaN can keep; below them nothing can matter.
        step = 1 << (23 - fmt.mantissa_bits)
        nans = [sign | _INFINITY | 1, *range((sign | _INFINITY) + step, sign + _SIGN, step)]
        first, last = sign | 1, sign | (_INFINITY - 1)
        for bits in (sign, first, *_changes(code, first, last), sign | _INFINITY, *nans):
            if not codes or code(bits) != codes[-1]:
                starts.append(bits)
                codes.append(code(bits))
    return Runs(np.array(starts, np.int64), np.array(codes, np.uint8))


def _value(bits: int) -> float:
    # A NaN is built as float64, with its payload in place: the conversion of a float32 would make a signalling one quiet.
    if bits & (_SIGN - 1) > _INFINITY:
        wide = (bits & _SIGN) << 32 | 0x7FF << 52 | (bits & 0x7FFFFF) << 29
        return float(struct.unpack("<d", struct.pack("<Q", wide))[0])
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _changes(code: Callable[[int], int], first: int, last: int) -> list[int]:
    # Where the code becomes another one, ascending: what is left of `first .. last` when all runs but the first are named.
    found, waiting = [], [(first, last)]
    while waiting:
        low, high = waiting.pop()
        if code(low) == code(high):
            continue
        if high == low + 1:
            found.append(high)
            continue
        middle = (low + high) // 2
        waiting += [(middle, high), (low, middle)]  # the lower half first
    return found


def conversions(fmt: FloatFormat) -> Mapping[Policy, tuple[str, ...]]:
    """Every policy that a preset has for `fmt`, stochastic ones left out, with its presets; and both common ones without.

    >>> from fp8np.formats import get_format
    >>> {str(policy): presets for policy, presets in conversions(get_format("float8_e3m4fn")).items()}
    {'saturate, nearest_even, keep_sign': (), 'ieee, nearest_even, keep_sign': ()}
    """
    found: dict[Policy, tuple[str, ...]] = {SATURATE: (), IEEE: ()}
    for preset, rows in PRESETS.items():
        policy = rows.get(fmt.name)
        if policy is not None and policy.rounding not in STOCHASTIC:
            found[policy] = (*found.get(policy, ()), preset)
    return found


def label(policy: Policy, presets: Iterable[str]) -> str:
    """How rows name a conversion.

    >>> label(Policy("ieee"), ["ocp_nonsat", "onnx_nosat"])
    'ieee, nearest_even, keep_sign (ocp_nonsat, onnx_nosat)'
    """
    names = ", ".join(presets)
    return f"{policy} ({names})" if names else str(policy)


# -- digests ----------------------------------------------------------------------------------------------------------


def chunk_digest(codes: Runs, chunk: int) -> bytes:
    """The SHA-256 of one chunk of codes, a byte each."""
    return _digest(tuple(codes.within(chunk * CHUNK, (chunk + 1) * CHUNK)))


# A chunk of one code has the digest of every other chunk of that code, in all formats. (2^24 codes take 10 ms.)
@lru_cache(maxsize=4096)
def _digest(content: tuple[tuple[int, int, int], ...]) -> bytes:
    digest = hashlib.sha256()
    for start, stop, code in content:
        digest.update(bytes([code]) * (stop - start))
    return digest.digest()


def chunk_digests(codes: Runs) -> tuple[bytes, ...]:
    """The SHA-256 of each of the 256 chunks."""
    return tuple(chunk_digest(codes, chunk) for chunk in range(CHUNKS))


def root_digest(chunks: tuple[bytes, ...]) -> str:
    """One digest for all 2^32 codes: the SHA-256, in hexadecimal, of the 256 digests of the chunks put together (8,192 bytes).

    >>> root_digest((bytes(32),) * 256)[:16]
    '9f1dcbc35c350d60'
    """
    return hashlib.sha256(b"".join(chunks)).hexdigest()
