"""What kind of bug explains the differences: hypotheses are tested until one, or two together, predict every result that was given.

A hypothesis that explains every difference but also predicts one that is not there is refused. Where none is left, the pattern of
the differences is described instead. In order: one suspect (`suspects`, `suspect_values`, `suspect_sums`), one pattern learned from
the results (a constant for all NaN, a code that always becomes another), a pair of suspects, a suspect and a pattern.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.formats import FloatFormat
from fp8np.policy import STOCHASTIC, Policy
from fp8np.verify.diagnose_products import product, products
from fp8np.verify.law import cells
from fp8np.verify.suspect_values import values_of
from fp8np.verify.suspects import Grid, Suspect, grid, sources, tables, wholes

__all__ = ["decoding", "encoding", "product", "products"]

Codes = npt.NDArray[np.uint8]
Table = npt.NDArray[np.int16]
"""A code for each cell; UNSEEN where nothing is known, MIXED where one cell got several codes."""

UNSEEN, MIXED = -1, -2
SAMPLE = 4096
"""Differences and agreements (as many of each) that hypotheses are tested on; what holds there is then tested on all."""
ALTERNATIVES = 2
"""Hypotheses that are named where the cases cannot tell them apart."""


def encoding(fmt: FloatFormat, policy: Policy, x: Any, expected: Codes, got: Codes) -> str:
    """The kind of bug that turns numbers into other codes than expected.

    Args:
        fmt: the format.
        policy: what was asked for.
        x: the numbers, float16, float32 or float64, one axis.
        expected: their codes.
        got: the codes given.

    Returns:
        A phrase; empty if nothing differs.

    >>> from fp8np.formats import get_format
    >>> from fp8np.policy import SATURATE
    >>> from fp8np.verify.law import law
    >>> e4m3, x = get_format("e4m3fn"), np.linspace(-500, 500, 2001)
    >>> encoding(e4m3, SATURATE, x, law(e4m3, x), law(e4m3, x, Policy(rounding="toward_zero")))
    'truncation: rounds toward zero'
    """
    x, expected, got = np.asarray(x), np.asarray(expected), np.asarray(got)
    differs = expected != got
    if not differs.any():
        return ""
    if policy.rounding in STOCHASTIC:
        return _pattern(fmt, x, expected, got)
    case = _Encoding(fmt, policy, x, got, _sample(differs))
    found = list(itertools.islice(case.explanations(), ALTERNATIVES))
    return "; or: ".join(found) or _pattern(fmt, x, expected, got)


@dataclass(frozen=True, eq=False)
class _Encoding:
    fmt: FloatFormat
    policy: Policy
    x: npt.NDArray[Any]
    got: Codes
    at: npt.NDArray[np.intp]

    def explanations(self) -> Iterator[str]:
        """The hypotheses of the simplest sort of which any fits."""
        for tier in (self._singles, self._special_singles, self._wholes, self._learned, self._pairs, self._pairs_learned):
            texts = list(dict.fromkeys(tier()))
            if texts:
                yield from texts
                return

    # An observation is what a suspect of the source makes of the inputs: the code that each cell got.

    def _observed(self, source: Suspect | None, at: Any) -> Table:
        with np.errstate(all="ignore"):
            x = self.x[at].astype(np.float64)
            if source is not None and source.source is not None:
                x = source.source(x)
            if self.policy.via == "float16":
                x = x.astype(np.float16).astype(np.float64)
        table = np.full(grid(self.fmt).x.size, UNSEEN, np.int16)
        index, got = cells(self.fmt, x), self.got[at].astype(np.int16)
        table[index] = got
        mixed = table[index] != got
        table[index[mixed]] = MIXED
        return table

    def _explained(self, source: Suspect | None, predicted: Codes) -> bool:
        return _agrees(predicted, self._observed(source, slice(None)))

    @cached_property
    def _sources(self) -> list[tuple[Suspect | None, Table]]:
        """Suspects of the source under which every cell got one code: others are refuted, whatever comes after them."""
        every = ((source, self._observed(source, self.at)) for source in (None, *sources()))
        return [(source, table) for source, table in every if not (table == MIXED).any()]

    def _singles(self, special: bool = False) -> Iterator[str]:
        suspects = _tables(self.fmt, self.policy)
        for source, seen in self._sources:
            if source is None:
                fitting = [(s.text, t) for s, t in suspects if s.special == special and _agrees(t, seen)]
            else:
                plain = Suspect("").table(self.fmt, self.policy)
                fitting = [(source.text, plain)] if _agrees(plain, seen) else []
            yield from (text for text, table in fitting if self._explained(source, table))

    def _special_singles(self) -> Iterator[str]:
        return self._singles(special=True)

    def _wholes(self) -> Iterator[str]:
        for text, codes in wholes(self.fmt):
            if all((codes(self.fmt, self.policy, self.x[at].astype(np.float64)) == self.got[at]).all() for at in (self.at, slice(None))):
                yield text

    def _learned(self) -> Iterator[str]:
        plain = Suspect("").table(self.fmt, self.policy)
        for source, seen in self._sources:
            if source is None:
                yield from (text for text, table in _learn(grid(self.fmt), plain, seen) if self._explained(None, table))

    def _pairs(self) -> Iterator[str]:
        suspects = _tables(self.fmt, self.policy)
        for source, seen in self._sources:
            if source is not None:
                fitting: Iterator[tuple[str, Codes]] = ((f"{source.text}; and {s.text}", t) for s, t in suspects if _agrees(t, seen))
            else:
                fitting = self._joint(suspects, seen)
            for text, table in fitting:
                if self._explained(source, table):
                    yield text
                    break

    def _joint(self, suspects: tuple[tuple[Suspect, Codes], ...], seen: Table) -> Iterator[tuple[str, Codes]]:
        """Pairs of which each changes cells that the other leaves wrong, and no cell stays wrong."""
        plain = Suspect("").table(self.fmt, self.policy)
        wrong = (plain != seen) & (seen != UNSEEN)
        changes = np.array([t != plain for _, t in suspects])
        right = np.array([(t == seen) | (seen == UNSEEN) for _, t in suspects])
        for i, (one, table) in enumerate(suspects):
            # Where only one of the two acts, that one alone must be right.
            left = wrong & ~changes[i]
            alone = (changes[i] & ~right[i])[None] & ~changes
            refuted = ((~changes & left) | alone | (changes & ~right & ~changes[i])).any(axis=1)
            for k in np.flatnonzero(~refuted).tolist():
                two = suspects[k][0]
                both = _joined(self.fmt, self.policy, one, two, table)
                if k != i and _agrees(both, seen):
                    yield f"{one.text}; and {two.text}", both

    def _pairs_learned(self) -> Iterator[str]:
        plain = Suspect("").table(self.fmt, self.policy)
        for source, seen in self._sources:
            begun = [(source.text, plain)] if source is not None else [(s.text, t) for s, t in _tables(self.fmt, self.policy)]
            if source is None:
                # Two patterns, as though neither were a known bug.
                begun += [(text, table) for text, table in _constants(grid(self.fmt), plain, seen)]
            for text, table in begun:
                for more, both in _learn(grid(self.fmt), table, seen):
                    if self._explained(source, both):
                        yield f"{text}; and {more}"
                        break


def _sample(differs: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    parts = [np.flatnonzero(differs), np.flatnonzero(~differs)]
    return np.concatenate([p[:: max(1, p.size // SAMPLE)] for p in parts])


def _agrees(predicted: npt.NDArray[Any], seen: Table) -> bool:
    return bool(((predicted == seen) | (seen == UNSEEN)).all())


@lru_cache(maxsize=256)
def _tables(fmt: FloatFormat, policy: Policy) -> tuple[tuple[Suspect, Codes], ...]:
    """Suspects that predict anything else than the law, with what they predict."""
    plain = Suspect("").table(fmt, policy)
    every = ((s, s.table(fmt, policy)) for s in tables(fmt))
    return tuple((s, t) for s, t in every if (t != plain).any())


def _joined(fmt: FloatFormat, policy: Policy, first: Suspect, second: Suspect, begun: Codes) -> Codes:
    if second.policy is None:
        return second.table(fmt, first.policy(policy) if first.policy else policy, begun)
    changed = second.policy(policy)
    return first.table(fmt, changed)


# -- patterns ---------------------------------------------------------------------------------------------------------


def _classes(g: Grid) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    yield "NaN", np.isnan(g.x)
    yield "infinity", np.isinf(g.x)
    yield "what is beyond the largest value", g.beyond
    yield "what is beyond the largest value, and infinity,", g.beyond | np.isinf(g.x)
    yield "zero", g.x == 0


def _learn(g: Grid, predicted: Codes, seen: Table) -> Iterator[tuple[str, Codes]]:
    """Patterns in what is left to explain."""
    if _agrees(predicted, seen):
        return
    yield from ((text, table) for text, table in _constants(g, predicted, seen) if _agrees(table, seen))
    known = seen >= 0
    wrong = known & (predicted != seen)
    pairs = sorted({(int(e), int(s)) for e, s in zip(predicted[wrong], seen[wrong], strict=True)})
    if len(pairs) <= 4 and len({e for e, _ in pairs}) == len(pairs):
        table = predicted.copy()
        for expected, given in pairs:
            table[predicted == expected] = given
        if _agrees(table, seen):
            texts = [f"{_code(g.fmt, e)} always comes out as {_code(g.fmt, s)}" for e, s in pairs]
            yield f"wrong code: {', '.join(texts)}", table


def _constants(g: Grid, predicted: Codes, seen: Table) -> Iterator[tuple[str, Codes]]:
    """A class of inputs of which all of one sign got the same code, and not the right one."""
    for name, inside in _classes(g):
        table, said = predicted.copy(), []
        for minus in (False, True):
            mine = inside & (g.minus == minus)
            codes = set(seen[mine & (seen >= 0)].tolist())
            if len(codes) == 1:
                (code,) = codes
                if (predicted[mine] != code).any():
                    said.append(f"{'-' if minus else '+'}: {_code(g.fmt, code)}")
                table[mine] = code
        if said:
            yield f"{name} gives {', '.join(said)}", table


def _code(fmt: FloatFormat, code: int) -> str:
    if code >> fmt.bits:
        return f"{code:#04x} (no code of {fmt})"
    return f"{code:#04x} ({float(reference.decode(fmt, code)):g})"


def _pattern(fmt: FloatFormat, x: npt.NDArray[Any], expected: Codes, got: Codes) -> str:
    wrong = np.flatnonzero(expected != got)
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64)
    g = grid(fmt)
    at = cells(fmt, exact)
    minus, normal = g.minus[at], g.finite[at] & ~g.subnormal[at]
    magnitude = (expected & fmt.magnitude_mask).astype(int)
    facts = (
        ("NaN", np.isnan(exact)),
        ("infinity", np.isinf(exact)),
        ("beyond the largest value", g.beyond[at]),
        ("ties", g.finite[at] & (g.part[at] == 2)),
        ("numbers that have a code of their own", g.finite[at] & (g.part[at] == 0)),
        ("subnormals", g.subnormal[at]),
        ("just above a middle", g.part[at] == 3),
        ("normal numbers", normal),
        ("negative", minus),
        ("positive", ~minus),
    )
    only = [text for text, mask in facts if mask[wrong].all() and not mask.all()]
    return _sentence(only, exact, wrong, _steps(magnitude[wrong], (got[wrong] & fmt.magnitude_mask).astype(int)))


def _steps(expected: npt.NDArray[np.int_], got: npt.NDArray[np.int_]) -> str:
    off = set((got - expected).tolist())
    return {(1,): "one code too large", (-1,): "one code too small", (-1, 1): "one code off"}.get(tuple(sorted(off)), "")


def _sentence(only: Iterable[str], x: npt.NDArray[np.float64], wrong: npt.NDArray[np.intp], off: str) -> str:
    finite = np.abs(x[wrong][np.isfinite(x[wrong])])
    span = f"magnitudes {finite.min():g} to {finite.max():g}" if finite.size else ""
    said = ", ".join(part for part in (off, "only " + ", ".join(only) if only else "", span) if part)
    return f"no known kind of bug; {wrong.size} of {x.size}" + (f": {said}" if said else "")


# -- decoding ---------------------------------------------------------------------------------------------------------


def decoding(fmt: FloatFormat, expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> str:
    """The kind of bug that turns the codes 0, 1, 2, ... into other values than expected.

    Args:
        fmt: the format.
        expected: float32 values of the first codes, all of them as a rule.
        got: the values given.

    Returns:
        A phrase; empty if nothing differs. One NaN is as good as another.

    >>> from fp8np.codec import decode_table
    >>> from fp8np.formats import get_format
    >>> decoding(get_format("e4m3fn"), decode_table("e4m3fn"), decode_table("e4m3"))
    'wrong format: these are the values of float8_e4m3'
    """
    wrong = np.flatnonzero(~_same(expected, got))
    if not wrong.size:
        return ""
    found = [s.text for s in values_of(fmt) if _same(s.values[: got.size], got).all()]
    if found:
        return "; or: ".join(found[:ALTERNATIVES])
    pairs = itertools.permutations(values_of(fmt), 2)
    both = [f"{s.text}; and {t.text}" for s, t in pairs if _same(np.where(t.changed, t.values, s.values)[: got.size], got).all()]
    if both:
        return both[0]
    if wrong.size <= 4:
        return "wrong code: " + ", ".join(f"{int(c):#04x} decodes to {got[c]:g}, not {expected[c]:g}" for c in wrong)
    magnitude = wrong & fmt.magnitude_mask
    only = []
    if (magnitude < 1 << fmt.mantissa_bits).all():
        only.append("subnormals")
    if fmt.signed and ((wrong & fmt.sign_bit) != 0).all():
        only.append("negative codes")
    said = f"only {', '.join(only)}, " if only else ""
    return f"no known kind of bug; {wrong.size} of {got.size}: {said}codes {int(wrong.min()):#04x} to {int(wrong.max()):#04x}"


def _same(expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    same = expected.view(np.uint32) == got.view(np.uint32)
    return np.asarray(same | (np.isnan(expected) & np.isnan(got)))
