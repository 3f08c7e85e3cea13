"""The teeth of `fp8np verify`: planted bugs are caught, and the report names their kind. Who answers wrongly, or not at all, is told so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _mutants import CONVERSIONS, E4, LAYOUTS, PRODUCTS, VALUES, Mutant, Plain

from fp8np.accumulators import ACCUMULATORS
from fp8np.errors import InputError
from fp8np.formats import FORMATS, get_format
from fp8np.policy import SATURATE, Policy
from fp8np.verify import Report, Row, conversions, diagnose, products, verify
from fp8np.verify.cases import ProductCase, policies
from fp8np.verify.implementation import BadResult, Checked, Implementation, NotOffered, Ours, load
from fp8np.verify.law import law

MUTANTS = (*CONVERSIONS, *VALUES, *PRODUCTS)


@pytest.fixture
def few_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two policies instead of fifty: a bug need not be found fifty times."""
    kept = ("saturate, nearest_even", "ieee, nearest_even")
    monkeypatch.setattr(conversions, "policies", lambda fmt: [p for p in policies(fmt) if p[0] in kept])
    monkeypatch.setattr(conversions, "against_libraries", lambda *_: iter(()))


def failed(report: Report) -> list[Row]:
    return [row for row in report.rows if row.mismatches]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_planted_bug_is_caught_and_named(mutant: Mutant, few_policies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "against_hardware", lambda *_: iter(()))  # the law alone must see it
    report = verify(mutant.implementation(), formats=[mutant.format], suites=[mutant.suite])
    rows = failed(report)
    assert rows, f"{mutant.name} passed"
    assert not report.clean
    said = [row.diagnosis for row in rows]
    assert any(re.search(mutant.kind, text) for text in said), said
    assert rows[0].first[0].expected != rows[0].first[0].got


def test_there_are_enough_of_them() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 50


@pytest.mark.parametrize("fmt", LAYOUTS)
def test_without_a_bug_the_plain_implementation_is_clean(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "against_hardware", lambda *_: iter(()))
    report = verify(Plain(), formats=[fmt])
    assert report.clean, failed(report)[0]
    assert {row.suite for row in report.rows if not row.skipped} >= {"decode", "16 bit", "float32", "float64"}


# -- implementations that do not answer -------------------------------------------------------------------------------

X = np.linspace(-1, 1, 5, dtype=np.float32)
OPTIONS = {"overflow": "saturate", "rounding": "nearest_even", "nan": "keep_sign"}
WRONG: tuple[tuple[str, Any, str], ...] = (
    ("none", lambda *_, **__: None, "expected a uint8 array (5,), got None: does it return its result?"),
    ("dtype", lambda x, *_, **__: np.zeros(x.shape, np.int64), "expected a uint8 array (5,), got int64 (5,)"),
    ("shape", lambda x, *_, **__: np.zeros((5, 1), np.uint8), "expected a uint8 array (5,), got uint8 (5, 1)"),
    ("list", lambda x, *_, **__: [0] * 5, "got list"),
    ("error", lambda x, *_, **__: 1 // 0, "ZeroDivisionError"),
    ("signature", lambda x: x, "TypeError"),
)


@pytest.mark.parametrize(("encode", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_answer_says_what_was_expected(encode: Any, message: str) -> None:
    wrong = type("Wrong", (), {"encode": staticmethod(encode)})()
    with pytest.raises(BadResult, match=re.escape(message)):
        Checked(wrong).encode(X, E4, **OPTIONS)
    rows = failed(verify(wrong, formats=[E4], suites=["float32"]))
    assert rows
    assert all(row.mismatches == row.cases > 0 for row in rows)


def test_an_error_is_shown_with_its_place() -> None:
    class Careless:
        def decode(self, codes: np.ndarray, fmt: str) -> np.ndarray:
            raise KeyError(fmt)

    with pytest.raises(BadResult, match=r"Careless.decode failed at test_mutants.py:\d+: KeyError"):
        Checked(Careless()).decode(np.zeros(3, np.uint8), E4)


def test_what_is_not_offered_is_skipped() -> None:
    class Nothing:
        def decode(self, codes: np.ndarray, fmt: str) -> np.ndarray:
            raise NotImplementedError("only on Tuesdays")

    with pytest.raises(NotOffered, match="only on Tuesdays"):
        Checked(Nothing()).decode(np.zeros(3, np.uint8), E4)
    with pytest.raises(NotOffered, match="has no encode"):
        Checked(Nothing()).encode(X, E4, **OPTIONS)
    report = verify(Nothing(), formats=[E4])
    assert not report.clean  # nothing was compared
    assert all(row.skipped and row.reason for row in report.rows)


def test_an_implementation_cannot_change_the_cases() -> None:
    class Vandal(Ours):
        def encode(self, x: np.ndarray, fmt: str, **options: Any) -> np.ndarray:
            codes = super().encode(x, fmt, **options)
            x[:] = 0
            return codes

    x = X.copy()
    Checked(Vandal()).encode(x, E4, **OPTIONS)
    np.testing.assert_array_equal(x, X)


def test_load_finds_an_object_a_class_and_says_what_it_misses() -> None:
    assert isinstance(load("fp8np.verify.implementation:Ours"), Ours)
    assert isinstance(Ours(), Implementation)
    for text, message in (
        ("fp8np.verify.implementation", "expected package.module:object"),
        ("fp8np.verify.implementation:Theirs", "no attribute 'Theirs'"),
        ("fp8np.nowhere:Ours", "No module named"),
        ("fp8np.verify._result:Report", "Report"),
        ("fp8np.formats:FORMATS", "expected an object with at least one of the methods encode"),
    ):
        with pytest.raises(InputError, match=message):
            load(text)


def test_the_example_has_the_bug_that_it_says(few_policies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    report = verify("examples.verify_mine:Mine", formats=[E4], suites=["decode", "float32"])
    assert {row.diagnosis for row in failed(report)} == {"ties go away from zero"}
    assert verify("examples.verify_mine:Fixed", formats=[E4], suites=["decode", "16 bit", "float64"]).clean


# -- diagnosis by itself ----------------------------------------------------------------------------------------------


def numbers() -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.concatenate([np.ldexp(rng.uniform(-2, 2, 3000), rng.integers(-14, 12, 3000)), [np.inf, -np.inf, np.nan, 0.0, -0.0]])


def test_nothing_wrong_is_no_bug() -> None:
    fmt, x = get_format(E4), numbers()
    assert diagnose.encoding(fmt, SATURATE, x, law(fmt, x), law(fmt, x)) == ""


@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if f.quantum_exponent > -40], ids=str)
def test_truncation_is_named_in_every_format(fmt: Any) -> None:
    x = np.concatenate([numbers() * fmt.max / 500, numbers() * fmt.smallest_subnormal])
    expected, got = law(fmt, x), law(fmt, x, Policy(rounding="toward_zero"))
    assert "truncation: rounds toward zero" in diagnose.encoding(fmt, SATURATE, x, expected, got)


def test_one_contradiction_refutes_a_suspect() -> None:
    fmt, x = get_format(E4), np.tile(numbers(), 4)
    got = law(fmt, x, Policy(rounding="toward_zero"))
    at = int(np.flatnonzero(got != law(fmt, x))[-1])
    got[at] = law(fmt, x)[at]
    assert "truncation" not in diagnose.encoding(fmt, SATURATE, x, law(fmt, x), got)


def test_the_unknown_is_described() -> None:
    fmt, x = get_format(E4), np.abs(numbers()[:-5])
    expected = law(fmt, x)
    noise = (np.arange(x.size) % 3 == 0) & (expected > 0x10) & (expected < 0x70)
    said = diagnose.encoding(fmt, SATURATE, x, expected, expected + noise.astype(np.uint8))
    assert said.startswith(f"no known kind of bug; {noise.sum()} of {x.size}: one code too large, only normal numbers")


def sums() -> Iterator[ProductCase]:
    rng, fmt = np.random.default_rng(1), get_format(E4)
    a, b = rng.integers(0x20, 0x50, (4, 70), dtype=np.uint8), rng.integers(0x20, 0x50, (70, 4), dtype=np.uint8)
    zero = np.zeros((4, 4), np.float32)
    yield ProductCase("", a, fmt, b, fmt, ACCUMULATORS["sequential"], None, None, zero, any_nan=True)


def test_two_bugs_in_a_product_are_named_together() -> None:
    (case,) = sums()
    options: dict[str, Any] = {"accumulate": "sequential", "promote_every": None, "init": None}
    expected = Plain().matmul(case.a, E4, case.b, E4, **options)
    got = -Plain().matmul(case.a[:, :-1], E4, case.b[:-1], E4, **options)
    said = diagnose.product(case, expected, got)
    assert "the last term of K is missing" in said
    assert "the result is negated" in said
    assert diagnose.product(case, expected, expected) == ""


def test_unknown_sums_are_described() -> None:
    (case,) = sums()
    expected = Plain().matmul(case.a, E4, case.b, E4, accumulate="sequential", promote_every=None, init=None)
    got = (expected.view(np.uint32) + np.arange(1, 17, dtype=np.uint32).reshape(4, 4)).view(np.float32)
    assert "at most 16 in the last place" in diagnose.product(case, expected, got)
