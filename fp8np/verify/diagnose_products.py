"""What kind of bug explains other sums of products than expected: the search among `suspect_sums`.

Elements are taken one by one, those that differ first, so most suspects are refuted by a single sum.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fp8np.accumulators import ACCUMULATORS
from fp8np.verify.cases import ProductCase
from fp8np.verify.suspect_sums import LONGEST, Element, Suspect, suspects

__all__ = ["product", "products"]

Floats = npt.NDArray[np.float32]

ELEMENTS = 24
"""Elements of each sort, differing and not, that suspects are tested on."""
PAIRED = 6
"""Elements of each sort that pairs of suspects are tested on first."""
BUDGET = 30_000
"""Products that the search for pairs may cost."""
ALTERNATIVES = 2
"""Suspects that are named where the cases cannot tell them apart."""


def product(case: ProductCase, expected: Floats, got: Floats) -> str:
    """The kind of bug that gives other sums of products than expected.

    Args:
        case: codes, formats and accumulation: a `fp8np.verify.cases.ProductCase`.
        expected: float32 (M, N).
        got: float32 (M, N).

    Returns:
        A phrase; empty if nothing differs.
    """
    return products([(case, expected, got)])


def products(results: Iterable[tuple[ProductCase, Floats, Floats]]) -> str:
    """As `product`, for several cases at once: a suspect must explain all."""
    given = list(results)
    elements = _elements(given)
    if not any(e.differs for e in elements):
        return ""
    every = list(suspects(elements))
    found = list(itertools.islice((s.text for s in every if _fits(s, elements)), ALTERNATIVES))
    if not found:
        found = list(itertools.islice(_pairs(every, elements), 1))
    return "; or: ".join(found) or _pattern(elements, given)


def _elements(results: Sequence[tuple[ProductCase, Floats, Floats]]) -> list[Element]:
    chosen: list[Element] = []
    for case, expected, got in results:
        if case.a.shape[1] > LONGEST:
            continue
        same = expected.view(np.uint32) == got.view(np.uint32)
        if case.any_nan:
            same |= np.isnan(expected) & np.isnan(got)
        if case.tolerance is not None:
            with np.errstate(invalid="ignore"):
                same |= np.abs(got.astype(np.float64) - expected) <= case.tolerance
        for where in (~same, same):
            every = np.argwhere(where)
            # Few of each case, spread out: cases differ in more than elements do.
            for m, n in every[:: max(1, -(-len(every) // max(4, ELEMENTS // len(results))))].tolist():
                chosen.append(_element(case, m, n, got, bool(not same[m, n])))
    # The cheapest first: a short sum refutes as well as a long one.
    chosen.sort(key=lambda e: (not e.differs, len(e.a)))
    different = [e for e in chosen if e.differs]
    spread = different[:: max(1, len(different) // ELEMENTS)]
    agreeing = [e for e in chosen if not e.differs]
    return [*spread, *agreeing[:: max(1, len(agreeing) // ELEMENTS)]]


def _element(case: ProductCase, m: int, n: int, got: Floats, differs: bool) -> Element:
    how = case.accumulate
    if case.promote_every is not None:
        how = dataclasses.replace(how, promote_every=case.promote_every)
    free = case.tolerance is not None
    return Element(
        tuple(case.a[m].tolist()),
        case.a_format,
        tuple(case.b[:, n].tolist()),
        case.b_format,
        0.0 if case.init is None else float(case.init[m, n]),
        ACCUMULATORS["exact"] if free else how,
        int(got.view(np.uint32)[m, n]),
        differs,
        float(case.tolerance[m, n]) if case.tolerance is not None else 0.0,
        case.any_nan,
    )


def _fits(suspect: Suspect, elements: Iterable[Element]) -> bool:
    return all((bits := suspect.predict(e)) is not None and e.agrees(bits) for e in elements)


def _pairs(every: Sequence[Suspect], elements: list[Element]) -> Iterator[str]:
    # Of the elements that are tested first, as many differ as not, and all are short.
    first = [e for e in elements if e.differs][:PAIRED] + [e for e in elements if not e.differs][:PAIRED]
    spent = 0
    for one, two in itertools.permutations(every, 2):
        both = _joined(one, two)
        if both is None:
            continue
        fits = True
        for element in first:
            spent += len(element.a) + 1
            bits = both.predict(element)
            if bits is None or not element.agrees(bits):
                fits = False
                break
        if fits and _fits(both, elements):
            yield both.text
        if spent > BUDGET:
            return


def _joined(one: Suspect, two: Suspect) -> Suspect | None:
    if (one.total and (two.total or two.terms)) or (one.bits and (two.terms or two.total)):
        return None  # the other way round says it

    def terms(element: Element) -> Element | None:
        changed = one.before(element)
        return None if changed is None else two.before(changed)

    def bits(total: int) -> int:
        changed = one.bits(total) if one.bits else total
        return two.bits(changed) if two.bits else changed

    return Suspect(f"{one.text}; and {two.text}", terms, one.total or two.total, bits)


def _pattern(elements: Sequence[Element], results: Sequence[tuple[ProductCase, Floats, Floats]]) -> str:
    wrong = [e for e in elements if e.differs]
    laws = [e.law() for e in wrong]
    facts = (
        ("NaN results", [b & 0x7FFFFFFF > 0x7F800000 for b in laws]),
        ("zero results", [b & 0x7FFFFFFF == 0 for b in laws]),
        ("infinite results", [b & 0x7FFFFFFF == 0x7F800000 for b in laws]),
        ("negative results", [b >> 31 == 1 for b in laws]),
        ("sums that start from init", [e.init != 0 for e in wrong]),
        (f"K of {len(wrong[0].a)} or more", [len(e.a) >= len(wrong[0].a) > 1 for e in wrong]),
    )
    only = [text for text, holds in facts if all(holds)]
    near = max(abs(b - e.got) for b, e in zip(laws, wrong, strict=True))
    said = [f"at most {near} in the last place"] if near < 1 << 12 else []
    said += [f"only {', '.join(only)}"] if only else []
    total = sum(expected.size for _, expected, _ in results)
    return f"no known kind of bug; {len(wrong)} looked at, of {total} sums" + (f": {'; '.join(said)}" if said else "")
