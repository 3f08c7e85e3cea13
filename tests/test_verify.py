"""The verification suite: it finds what is wrong, calls known what is documented and nothing else, and is clean for fp8np."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import fp8np
from fp8np import codec, linalg, reference
from fp8np.accumulators import ACCUMULATORS
from fp8np.cli_verify import verify as command
from fp8np.errors import FormatError, MissingDependencyError, PolicyError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.policy import OVERFLOW, PRESETS, ROUNDING, STOCHASTIC, Policy
from fp8np.verify import SUITES, Difference, Report, Row, conversions, convolutions, products, references, stochastic, verify
from fp8np.verify._judge import NOT_DIAGNOSED, Budget
from fp8np.verify._summary import skipped
from fp8np.verify.cases import ProductCase, all_16_bit, edges, inputs, policies, product_cases, product_formats
from fp8np.verify.facts import facts
from fp8np.verify.implementation import Checked, Ours
from fp8np.verify.known import KNOWN, explain
from fp8np.verify.law import cells, law, law_table, probes
from fp8np.verify.references import REFERENCES
from fp8np.verify.table import report_table, summary

E4M3FN, E5M2, E8M0, E2M1 = (get_format(name) for name in ("e4m3fn", "e5m2", "e8m0fnu", "e2m1fn"))
DATA = Path(fp8np.__file__).parent / "verify" / "data"
SMALL = ["float4_e2m1fn", "float8_e4m3fn"]


class Broken(Ours):
    """fp8np with one function replaced."""

    def __init__(self, **methods: Any) -> None:
        vars(self).update(methods)


def only(report: Report, **wanted: str) -> list[Row]:
    return [row for row in report.rows if all(getattr(row, key).startswith(value) for key, value in wanted.items())]


# -- the law of many numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["e4m3fn", "e8m0fnu", "e2m1fn", "binary8p3ue", "e4m3@15"])
def test_tables_hold_what_the_scalar_law_says_of_every_cell(name: str) -> None:
    fmt = get_format(name)
    chosen = dict.fromkeys(policy for _, policy in policies(fmt))
    # The overflow policies share most of their table with "saturate": all of them for two roundings, the rest once.
    for policy in [p for p in chosen if p.rounding in ("nearest_even", "up") and p.via is None]:
        expected = [reference.encode(fmt, p, **dataclasses.asdict(policy)) for p in probes(fmt)]
        np.testing.assert_array_equal(law_table(fmt, policy), np.array(expected, np.uint8), str(policy))


FORMAT = st.sampled_from([get_format(n) for n in ("e5m2", "e4m3fnuz", "e8m0fnu", "e2m3fn", "binary8p1se", "binary8p8uf", "e5m2@62")])
DETERMINISTIC = [r for r in ROUNDING if r not in STOCHASTIC]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(FORMAT, st.sampled_from(OVERFLOW), st.sampled_from(DETERMINISTIC), st.floats(-4, 4), st.integers(-140, 140))
def test_numbers_find_their_cell(fmt: FloatFormat, overflow: str, rounding: str, x: float, exponent: int) -> None:
    number = math.ldexp(x, exponent)
    got = law(fmt, np.array([number]), Policy(overflow, rounding))
    assert int(got[0]) == reference.encode(fmt, number, overflow=overflow, rounding=rounding)


@pytest.mark.parametrize("preset", ["avx10", "amd_sat", "amd_nosat", "ml_dtypes"])
@pytest.mark.parametrize("fmt", [E5M2, get_format("e4m3fnuz"), E8M0], ids=str)
def test_presets_beyond_three_names(preset: str, fmt: FloatFormat) -> None:
    if fmt.name not in PRESETS[preset]:
        pytest.skip("the preset has no such format")
    policy = PRESETS[preset][fmt.name]
    double = inputs(fmt)[3].x
    x = np.concatenate([double[::97], double[-40:]])
    expected = [reference.encode(fmt, v, **dataclasses.asdict(policy)) for v in x.tolist()]
    np.testing.assert_array_equal(law(fmt, x, policy), np.array(expected, np.uint8))


def test_stochastic_rounding_has_no_table() -> None:
    with pytest.raises(PolicyError, match="random bits"):
        law(E4M3FN, np.ones(1), Policy(rounding="stochastic_a"))


def test_every_input_lies_in_a_cell_and_every_cell_has_an_input() -> None:
    for fmt in (E4M3FN, E2M1, E8M0, get_format("binary8p4ue")):
        double = inputs(fmt)[3].x
        numbers = len(probes(fmt)) - 2 - 2 * (fmt.mantissa_bits == 2)  # without NaNs
        hit = np.unique(cells(fmt, double))
        finite = hit[hit < numbers - 2]
        # A gap may be too narrow for m * (1 + 2^-26), and then has its float64 neighbours: none is left out.
        assert finite.size >= numbers - 4, fmt


def test_all_16_bit_numbers_are_there() -> None:
    for kind, bits in (("float16", np.uint16), ("bfloat16", np.uint32)):
        x = all_16_bit(kind)
        expected = np.arange(1 << 16, dtype=bits) << (16 if kind == "bfloat16" else 0)
        np.testing.assert_array_equal(x.view(bits), expected)


# -- a clean run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> Report:
    return verify(formats=["e4m3fn", "e2m1fn", "e8m0fnu", "binary8p3ue"])


def test_fp8np_is_clean(report: Report) -> None:
    assert not [row for row in report.rows if row.mismatches]
    assert report.clean
    assert {row.suite for row in report.rows} == set(SUITES)
    assert all(row.cases for row in report.rows if not row.skipped)
    assert report.implementation == f"fp8np {fp8np.__version__}"


def test_every_reference_takes_part(report: Report) -> None:
    pytest.importorskip("ml_dtypes")
    titles = {row.reference for row in report.rows if not row.skipped}
    assert {"the law", "NVIDIA H100, wgmma", "NVIDIA H100, CUDA 13.0", "IEEE P3109 v4.0 value tables", "cuda_fp8 13.5"} <= titles
    assert any(title.startswith("ml_dtypes") for title in titles)


def test_every_preset_is_checked() -> None:
    for fmt in FORMATS.values():
        checked = {policy for _, policy in policies(fmt)}
        for rows in PRESETS.values():
            if fmt.name in rows and rows[fmt.name].rounding not in STOCHASTIC:
                assert rows[fmt.name] in checked


def test_double_rounding_is_known_and_counted(report: Report) -> None:
    pytest.importorskip("ml_dtypes")
    (row,) = [r for r in only(report, reference="ml_dtypes", suite="float64") if r.format == E4M3FN.name]
    assert row.known > 900
    assert "float32 first" in row.reason
    assert not [r for r in only(report, reference="ml_dtypes") if r.known and r.suite != "float64"]


def test_formats_and_suites_are_chosen() -> None:
    chosen = verify(formats=["e4m3fn"], suites=["decode"])
    assert {row.suite for row in chosen.rows} == {"decode"}
    assert {row.format for row in chosen.rows} == {E4M3FN.name}
    with pytest.raises(FormatError):
        verify(formats=["e9m9"])
    with pytest.raises(PolicyError, match="decoed"):
        verify(suites=["decoed"])


# -- what is wrong is found -------------------------------------------------------------------------------------------


def test_a_wrong_value() -> None:
    def decode(codes: Any, fmt: str) -> Any:
        values = codec.decode(codes, fmt).copy()
        values[3] *= 2
        return values

    rows = only(verify(Broken(decode=decode), formats=SMALL, suites=["decode"]), reference="the law")
    assert [row.mismatches for row in rows] == [1, 1]
    assert rows[0].first[0].input == "03"


def test_double_rounding_shows_in_float64_alone() -> None:
    def encode(x: Any, fmt: str, **policy: Any) -> Any:
        with np.errstate(over="ignore"):
            return codec.encode(x.astype(np.float32), fmt, **policy)

    report = verify(Broken(encode=encode), formats=["e4m3fn"], suites=["16 bit", "float32", "float64"])
    rows = [row for row in report.rows if row.mismatches]
    assert {row.suite for row in rows} == {"float64"}
    assert {row.reference.split(" ")[0] for row in rows} >= {"the"}
    nearest = next(row for row in rows if row.policy == "saturate, nearest_even" and row.reference == "the law")
    assert nearest.mismatches > 900
    assert nearest.diagnosis
    # The libraries round twice too: nothing differs from them, and nothing is known.
    for row in only(report, reference="ml_dtypes", suite="float64"):
        assert (row.mismatches, row.known) == (0, 0)


@pytest.mark.parametrize("overflow", OVERFLOW)
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_one_wrong_code_under_one_policy(overflow: str, rounding: str) -> None:
    def encode(x: Any, fmt: str, **policy: Any) -> Any:
        codes = codec.encode(x, fmt, **policy)
        if (policy["overflow"], policy["rounding"], policy["nan"]) == (overflow, rounding, "keep_sign"):
            codes[codes == 5] = 4
        return codes

    rows = only(verify(Broken(encode=encode), formats=["e2m1fn"], suites=["16 bit", "float32", "float64"]), reference="the law")
    assert {(row.suite, row.policy) for row in rows if row.mismatches} == {
        (suite, f"{overflow}, {rounding}") for suite in ("16 bit", "float32", "float64")
    }


def test_what_is_not_done_is_skipped_and_what_fails_is_a_mismatch() -> None:
    def encode(x: Any, fmt: str, *, overflow: str, rounding: str, nan: str) -> Any:
        if rounding != "nearest_even":
            raise NotImplementedError("nearest only")
        if overflow == "propagate":
            raise ZeroDivisionError("oops")
        return codec.encode(x, fmt, overflow=overflow, rounding=rounding, nan=nan)

    class Partial:
        def __init__(self) -> None:
            self.encode = encode

    report = verify(Partial(), formats=["e2m1fn"], suites=["decode", "float32", "gemm", "conv"])
    rows = {row.policy: row for row in only(report, reference="the law", suite="float32")}
    assert rows["saturate, up"].skipped
    assert "nearest only" in rows["saturate, up"].reason
    assert rows["propagate, nearest_even"].mismatches == rows["propagate, nearest_even"].cases > 0
    assert "ZeroDivisionError" in rows["propagate, nearest_even"].diagnosis
    assert rows["saturate, nearest_even"].mismatches == 0
    assert all(row.skipped for row in only(report, suite="gemm") + only(report, suite="decode") + only(report, suite="conv"))
    assert not report.clean


def test_diagnoses_are_rationed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(conversions, "diagnosed", lambda *arguments: asked.append(arguments) or "a kind of bug")

    def encode(x: Any, fmt: str, **policy: Any) -> Any:
        return codec.encode(x, fmt, **policy) ^ 1

    rows = only(verify(Broken(encode=encode), formats=["e2m1fn"], suites=["float32"]), reference="the law")
    told = [row.diagnosis for row in rows if row.mismatches]
    assert told.count("a kind of bug") == Budget.LIMIT < len(told)
    assert set(told) == {"a kind of bug", NOT_DIAGNOSED}


# -- stochastic rounding ----------------------------------------------------------------------------------------------


def test_thresholds_are_where_the_law_changes() -> None:
    for rounding in STOCHASTIC:
        numbers = tuple((1 + nu / 8, nu) for nu in (0.0, 2.0**-11, 0.5, 0.75, 1 - 2.0**-12))
        up_from, low, high = stochastic.thresholds(E4M3FN, rounding, 8, numbers)
        for (x, _), start, below, above in zip(numbers, up_from, low, high, strict=True):
            codes = [reference.encode(E4M3FN, x, rounding=rounding, random_bits=(r, 8)) for r in range(256)]
            assert codes == [below] * start + [above] * (256 - start)


@pytest.mark.parametrize(
    ("bug", "text"),
    [
        (lambda r, bits: (r["rounding"], np.where(bits == 0, bits, bits - 1)), "too rarely"),
        (lambda r, bits: (r["rounding"], np.where(bits == np.iinfo(bits.dtype).max, bits, bits + 1)), "too often"),
        (lambda r, bits: (r["rounding"], bits[::-1].copy()), "other random integers"),
        (lambda r, bits: ("stochastic_a" if r["rounding"] == "stochastic_b" else r["rounding"], bits), ""),
    ],
)
def test_random_bits_that_are_used_wrongly(bug: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = codec.encode

    def encode(x: Any, fmt: Any, *, random_bits: Any, **how: Any) -> Any:
        with np.errstate(over="ignore"):
            rounding, bits = bug(how, random_bits)
        return real(x, fmt, **how | {"rounding": rounding}, random_bits=bits)

    assert verify(formats=["e4m3fn"], suites=["stochastic"]).clean
    monkeypatch.setattr(codec, "encode", encode)
    wrong = [row for row in verify(formats=["e4m3fn"], suites=["stochastic"]).rows if row.mismatches]
    assert wrong
    assert all(text in row.diagnosis for row in wrong)
    if not text:
        assert [row.policy for row in wrong] == ["stochastic_b"]


# -- known differences ------------------------------------------------------------------------------------------------


def test_a_known_reason_explains_exactly_what_it_says() -> None:
    policy = Policy("ieee")
    x = np.array([2.0**-10 * (1 + 2.0**-52)] * 2 + [1.0, 2.0])
    ours = law(E4M3FN, x, policy)
    twice = law(E4M3FN, x.astype(np.float32), policy)
    assert (ours[0], twice[0]) == (1, 0)
    theirs = twice.copy()
    theirs[1:3] = 7  # not what double rounding gives
    explained, reason = explain("ml_dtypes", "float64", E4M3FN, policy, x, theirs, ours)
    assert explained.tolist() == [True, False, False, False]
    assert "float32 first" in reason
    # A result that is wrong by the law as well is no known difference.
    assert not explain("ml_dtypes", "float64", E4M3FN, policy, x, theirs, ours + 9)[0].any()
    assert not explain("ml_dtypes", "float32", E4M3FN, policy, x, theirs, ours)[0].any()


def test_every_known_entry_is_needed(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ml_dtypes", "gfloat"):
        pytest.importorskip(package)
    seen = {row.reason for row in report.rows if row.known}
    assert all(any(entry.reason in reason for reason in seen) for entry in KNOWN)
    monkeypatch.setattr("fp8np.verify.known.KNOWN", ())
    bare = verify(formats=["e4m3fn"], suites=["float64"])
    assert {row.reference.split(" ")[0] for row in bare.rows if row.mismatches} >= {"ml_dtypes", "gfloat", "NVIDIA"}


def test_a_library_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Any) -> str:
        raise MissingDependencyError(f"{self.name} is not installed")

    monkeypatch.setattr(references.Reference, "version", absent)
    rows = [row for row in verify(formats=["e4m3fn"], suites=["float32"]).rows if row.skipped]
    assert [row.reference for row in rows] == [library.name for library in REFERENCES]
    assert all("not installed" in row.reason for row in rows)


def test_a_library_of_another_version_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*_: Any) -> Any:
        raise TypeError("a new signature")

    (real,) = [library for library in REFERENCES if library.name == "ml_dtypes"]
    how = next(iter(real.conversions()))
    fakes = (
        dataclasses.replace(real, conversions=changed),
        dataclasses.replace(
            real, conversions=lambda: iter([dataclasses.replace(how, encode=changed)]), decoders=lambda: iter([(how.fmt, changed)])
        ),
    )
    monkeypatch.setattr(conversions, "REFERENCES", fakes)
    rows = [row for row in verify(formats=[how.fmt], suites=["decode", "float32"]).rows if row.reference.startswith("ml_dtypes")]
    assert len(rows) == 3
    assert all(row.skipped and "a new signature" in row.reason for row in rows)


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_recorded_digest_that_the_law_does_not_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digests = json.loads((DATA / "golden_digests.json").read_text(encoding="utf-8"))
    key = "ml_dtypes-0.6.0/f16->float8_e4m3fn"
    (tmp_path / "golden_digests.json").write_text(json.dumps({key: "0" * 64, **{k: v for k, v in digests.items() if k != key}}))
    monkeypatch.setattr(conversions, "data_file", lambda name: tmp_path / name)
    rows = [row for row in verify(formats=["e4m3fn"], suites=["digest"]).rows if row.mismatches]
    assert [(row.reference, row.policy, row.mismatches) for row in rows] == [("ml_dtypes 0.6.0", "ml_dtypes, f16", 1 << 16)]


def test_every_record_is_compared() -> None:
    rows = verify(suites=["digest"]).rows
    assert len(rows) == len(json.loads((DATA / "golden_digests.json").read_text(encoding="utf-8")))


def test_data_files_are_described_and_hashed() -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    files = [path for path in DATA.iterdir() if path.suffix != ".md"]
    assert all(f"`{path.name}`" in text for path in files)
    vectors = facts()["vectors"]
    for path in files:
        assert vectors[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.dumps(facts())


# -- products ---------------------------------------------------------------------------------------------------------


def judged(implementation: Any, cases: Iterator[ProductCase]) -> Row:
    return products._judged("the law", cases, Checked(implementation))


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_a_product_that_is_off_by_one_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "diagnosed", lambda *_: "")  # takes seconds where there is nothing to find

    def matmul(a: Any, a_format: str, b: Any, b_format: str, **how: Any) -> Any:
        result = Ours().matmul(a, a_format, b, b_format, **how)
        finite = np.isfinite(result)
        # Beyond any bound where the order is free, and one unit in the last place where it is not.
        result[finite] = result[finite] * 2 + 1 if name == "fp32" else np.nextafter(result[finite], np.float32(np.inf))
        return result

    accumulator = ACCUMULATORS[name]
    pair = product_formats(accumulator)[0]
    assert judged(Ours(), product_cases(pair, accumulator)).cases == (59 if accumulator.kind == "aligned" else 47)
    assert judged(Broken(matmul=matmul), product_cases(pair, accumulator)).mismatches > 30


def test_sums_in_another_order_keep_the_fp32_contract() -> None:
    def matmul(a: Any, a_format: str, b: Any, b_format: str, *, init: Any = None, **how: Any) -> Any:
        result = Ours().matmul(a[:, ::-1].copy(), a_format, b[::-1].copy(), b_format, **how, init=None)
        return result if init is None else (result + init).astype(np.float32)

    row = judged(Broken(matmul=matmul), product_cases((E4M3FN, E4M3FN), ACCUMULATORS["fp32"]))
    assert row.mismatches == 0
    assert judged(Broken(matmul=matmul), product_cases((E4M3FN, E4M3FN), ACCUMULATORS["sequential"])).mismatches


def test_one_wrong_bit_of_hardware() -> None:
    codes = np.full((2, 32), 0x38, np.uint8)
    right = np.full((2, 2), 32, np.float32)
    wrong = right.copy()
    wrong[1, 0] = np.nextafter(np.float32(32), np.float32(33))
    cases = [ProductCase("one", codes, E4M3FN, codes.T, E4M3FN, ACCUMULATORS["hopper"], None, None, d) for d in (right, wrong)]
    row = judged(Ours(), iter(cases))
    assert (row.cases, row.mismatches) == (8, 1)
    assert "row 1, column 0" in row.first[0].input


def test_nan_bits_count_where_hardware_lays_them_down() -> None:
    nan = np.array([[np.nan]], np.float32)  # 7FC00000; the tensor core has 7FFFFFFF
    codes = np.full((1, 32), 0x7F, np.uint8)
    case = ProductCase("nan", codes, E4M3FN, codes.T, E4M3FN, ACCUMULATORS["hopper"], None, None, nan)
    assert judged(Ours(), iter([case])).mismatches == 1
    assert judged(Ours(), iter([dataclasses.replace(case, any_nan=True)])).mismatches == 0


def test_a_wrong_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    real = linalg.conv2d
    assert all(row.mismatches == 0 for row in convolutions.against_exact(Checked(Ours()), (E4M3FN,)))
    monkeypatch.setattr(linalg, "conv2d", lambda x, w, *, dilation, **options: real(x, w, dilation=1, **options))
    (row,) = convolutions.against_exact(Checked(Ours()), (E4M3FN,))
    assert 0 < row.mismatches < row.cases


# -- what a person sees -----------------------------------------------------------------------------------------------

WRONG = Row("float32", "the law", "f", "saturate", 100, 2, first=(Difference("in", "want", "have"),), diagnosis="ties away")
ROWS = [
    Row("decode", "the law", "f", "value of each code", 256),
    WRONG,
    dataclasses.replace(WRONG, format="g"),
    Row("float64", "lib 1", "f", "lib", 10, 0, 3, "rounds twice"),
    Row("gemm", "the law", "f x f", "hopper", reason="not done", skipped=True),
]


@pytest.mark.parametrize("every_row", [False, True])
def test_table(every_row: bool) -> None:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report_table(Report("mine", rows=ROWS), every_row=every_row), markup=False)
    text = console.export_text()
    for part in ("ties away", "in: expected want, got have", "rounds twice", "not done", "4 of 466 results differ", "lib 1 (f): 3 results"):
        assert part in text
    assert text.count("ties away") == 1  # said once of both formats
    assert "[" not in text
    assert text.count("float32") == (3 if every_row else 2)


def test_summary_of_a_clean_report() -> None:
    assert summary(Report("mine", rows=ROWS[:1])) == "mine: 256 results in 1 check: no difference without a documented reason"


def test_nothing_checked_is_not_clean() -> None:
    declined = Report("mine", rows=ROWS[4:])
    assert not declined.clean
    assert summary(declined) == "mine: nothing was checked; 1 check skipped"
    result = CliRunner().invoke(command, ["--format", "e2m1fn", "--suite", "gemm", "--implementation", f"{__name__}:WrongDecoder"])
    assert result.exit_code == 1, result.output
    assert "nothing was checked" in result.output


def test_a_thousand_declined_checks_are_said_in_a_line() -> None:
    rows = [Row("float32", "the law", "f", "", reason=f"Mine.encode: rule {i}", skipped=True) for i in range(1000)]
    rows += [Row("gemm", "the law", f, "", reason="Mine has no matmul", skipped=True) for f in "abcd"]
    assert skipped(rows) == [
        "Mine.encode: 1,000 checks (f): rule 0; rule 1; and 998 more reasons",
        "Mine has no matmul: 4 checks (4 formats)",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_terminal_is_too_narrow_for_a_reference(width: int) -> None:
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    rows = [Row(suite, "NVIDIA H100, torch._scaled_mm 2.11.0", "f", "", 180_748_288, 0, 8_653_504, "why") for suite in ("gemm", "conv")]
    console.print(report_table(Report("mine", rows=rows), width=width))
    text = console.export_text()
    assert "…" not in text
    assert text.count("180,748,288") == text.count("8,653,504") == 2
    assert "torch._scaled_mm" in "".join(text.split())


def test_a_diagnosis_is_of_what_has_no_documented_reason() -> None:
    x = np.array([1.0, 2.0, 3.0])
    expected, got = np.array([0x38, 0x40, 0x44], np.uint8), np.array([0x38, 0x41, 0x45], np.uint8)
    growing = conversions._Encoding(Row("float64", "lib 1", E4M3FN.name, ""), E4M3FN, Policy(), [])
    growing.add(x, expected, got, np.array([False, True, False]), "rounds twice")
    assert (growing.row.mismatches, growing.row.known) == (1, 1)
    assert [part.tolist() for part in growing.differing[0]] == [[1.0, 3.0], [0x38, 0x44], [0x38, 0x45]]


def test_the_command_names_all_suites() -> None:
    (option,) = (p for p in command.params if p.name == "suites")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == SUITES
    assert all(name in (getattr(option, "help", "") or "") for name in SUITES)


def test_ctrl_c_says_where_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def exhaustive(implementation: Any, formats: Any, *, facts: dict[str, Any], state_dir: Any, **how: Any) -> Iterator[Row]:
        facts["exhaustive"] = {"state": str(state_dir or "")}
        raise KeyboardInterrupt

    monkeypatch.setattr("fp8np.verify.exhaustive.exhaustive", exhaustive)
    for state, told in ((["--state", str(tmp_path)], f"is kept in {tmp_path}"), ([], "nothing is kept without --state")):
        result = CliRunner().invoke(command, ["--exhaustive", "--format", "e2m1fn", *state])
        assert result.exit_code == 1
        assert told in result.output.replace("\n", " ")


def test_command(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    clean = CliRunner().invoke(command, ["--format", "e2m1fn", "--suite", "decode", "--json", str(target)])
    assert clean.exit_code == 0, clean.output
    assert "no difference without a documented reason" in clean.output
    assert json.loads(target.read_text(encoding="utf-8"))["clean"] is True
    assert f"wrote {target} ({target.stat().st_size:,} bytes)" in clean.output
    bad = CliRunner().invoke(command, ["--format", "e2m1fn", "--suite", "decode", "--implementation", f"{__name__}:WrongDecoder"])
    assert bad.exit_code == 1, bad.output
    assert "Mismatches" in bad.output


def test_the_long_run_and_the_export_are_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def exhaustive(implementation: Any, formats: Any, **how: Any) -> Iterator[Row]:
        seen.update(how, formats=formats)
        return iter(ROWS[:1])

    monkeypatch.setattr("fp8np.verify.exhaustive.exhaustive", exhaustive)
    result = CliRunner().invoke(command, ["--exhaustive", "--format", "e2m1fn", "--state", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (seen["formats"], seen["state_dir"]) == ((E2M1,), tmp_path)
    monkeypatch.setattr("fp8np.verify.export.export_vectors", lambda folder, formats, progress: [tmp_path])
    result = CliRunner().invoke(command, ["--export-vectors", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "wrote 1 files to" in result.output


class Quits:
    """Ends the program, as a script does."""

    def __init__(self) -> None:
        sys.exit(3)


class WrongDecoder:
    """Gives zeros."""

    def decode(self, codes: Any, fmt: str) -> Any:
        return np.zeros(codes.shape, np.float32)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--state", "x"],
        ["--exhaustive", "--suite", "gemm"],
        ["--export-vectors", "x", "--json", "y"],
        ["--json", "no/such/folder/report.json"],
        ["--threads", "0"],
        ["--format", "e9m9"],
        ["--format", "*e9*"],
        ["--suite", "16bit"],
        ["--export-vectors", "x", "--all"],
        ["--implementation", "json"],
        ["--implementation", "json:nothing"],
        ["--implementation", f"{__name__}:Quits"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(command, arguments).exit_code == 2


def test_edges_are_there() -> None:
    x = set(edges(E4M3FN).tolist())
    assert {464.0, -464.0, math.nextafter(464.0, math.inf), 464 * (1 + 2.0**-26), float(np.nextafter(np.float32(464), np.float32(0)))} <= x
