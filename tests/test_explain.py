"""What `fp8np explain` says, held against the law and against values worked out by hand."""

from __future__ import annotations

import io
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fp8np import codec
from fp8np._numbers import as_number, is_finite, parse_number, show
from fp8np.cli_explain import _print_overview, select_formats
from fp8np.cli_explain import explain as command
from fp8np.errors import FormatError, InputError
from fp8np.explain import explain, explain_code, finite_values
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.policy import PRESETS
from fp8np.reference import decode, encode

ALL = st.sampled_from(list(FORMATS.values()))
NUMBERS = st.one_of(st.fractions(), st.floats().map(as_number), st.floats(-600, 600).map(as_number))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.3", Fraction(3, 10)),
        ("1_000", Fraction(1000)),
        ("-1/3", Fraction(-1, 3)),
        ("0x1.8p-3", Fraction(3, 16)),
        ("-0x10", Fraction(-16)),
        ("0x.8", Fraction(1, 2)),
        ("2^-9", Fraction(1, 512)),
        ("-2**3", Fraction(-8)),
        ("f16:3c01", 1 + Fraction(1, 1024)),
        ("bf16:0x0001", Fraction(1, 2**133)),
        ("f32:80000001", Fraction(-1, 2**149)),
        ("f64:3ff0000000000001", 1 + Fraction(1, 2**52)),
        ("1e-400", Fraction(1, 10**400)),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction) -> None:
    assert parse_number(text) == value
    assert isinstance(parse_number(text), Fraction)


@given(st.floats(allow_nan=False))
def test_bit_patterns_and_hex_floats_are_read_as_the_machine_reads_them(x: float) -> None:
    for text in (x.hex(), f"f64:{np.float64(x).view(np.uint64):016x}"):
        read = parse_number(text)
        assert float(read) == x
        assert math.copysign(1, float(read)) == math.copysign(1, x)


def test_what_is_no_fraction() -> None:
    assert math.copysign(1, float(parse_number("-nan"))) == -1
    assert math.copysign(1, float(parse_number("-0.0"))) == -1
    assert parse_number("-Infinity") == -math.inf
    nan = float(parse_number("f32:ff800001"))
    assert math.isnan(nan)
    assert math.copysign(1, nan) == -1
    assert encode(get_format("e5m2"), parse_number("f32:7fe00000"), nan="payload") == 0x7F


@pytest.mark.parametrize(
    "text", ["", "abc", "1/0", "0x", "0xp3", "f16:12345", "f8:00", "1e99999999", "2^999999", "0x1p99999", "9" * 2000, "1 2", "2^", "--1"]
)
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_number(text)


def test_objects_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="got list"):
        explain([1.0], "e4m3fn")


@given(st.one_of(st.fractions(), st.floats(allow_nan=False, allow_infinity=False).map(Fraction)))
def test_shown_numbers_are_floats_or_exact_or_marked(x: Fraction) -> None:
    text = show(x)
    assert text.startswith("≈") or parse_number(text) == x or float(text) == x


@settings(deadline=None)  # the first call may compile kernels
@given(ALL, NUMBERS)
def test_an_explanation_follows_the_law(fmt: FloatFormat, x: Fraction | float) -> None:
    e = explain(x, fmt)
    assert e.code == encode(fmt, x)
    assert e.outcomes[0].presets[0] == "default"
    assert e.outcomes[0].codes == ((e.code, 1),)
    if is_finite(x):
        values = [value for value, _ in finite_values(fmt)]
        below, above = [v for v in values if v < x], [v for v in values if v > x]
        assert (e.below.value if e.below else None) == max(below, default=None)
        assert (e.above.value if e.above else None) == min(above, default=None)
        assert all(near is None or near.distance == abs(near.value - Fraction(x)) > 0 for near in (e.below, e.above))
        if e.error is not None:
            assert Fraction(x) + e.error == e.value
            assert (e.note == "exact" or "negative zero" in e.note) == (e.error == 0)
            if fmt.min <= x <= fmt.max and fmt.has_zero:
                assert abs(e.ulps or 0) <= Fraction(1, 2)
    json.dumps(e.as_dict(), allow_nan=False)


@settings(deadline=None)  # the first call may compile kernels
@given(ALL, NUMBERS)
def test_every_preset_is_in_one_group_with_its_own_result(fmt: FloatFormat, x: Fraction | float) -> None:
    e = explain(x, fmt)
    names = [name for outcome in e.outcomes for name in outcome.presets if name in PRESETS]
    assert sorted(names) == sorted(name for name in PRESETS if fmt.name in PRESETS[name])
    for outcome in e.outcomes:
        assert sum(share for _, share in outcome.codes) == 1
        assert bool(outcome.why) != e.agreed
        policy = PRESETS[outcome.presets[-1]].get(fmt.name) if outcome.presets[-1] in PRESETS else None
        if policy is not None and len(outcome.codes) == 1 and is_finite(x) and abs(x) < 1e300 and Fraction(float(x)) == x:
            bits = np.array(255, np.uint8) if "stochastic" in policy.rounding else None
            assert codec.encode(float(x), fmt, preset=outcome.presets[-1], random_bits=bits) == outcome.codes[0][0]


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_every_code_is_explained(fmt: FloatFormat) -> None:
    for code in range(1 << fmt.bits):
        e = explain_code(code, fmt)
        assert (e.code, e.fields.replace(" ", "")) == (code, f"{code:0{fmt.bits}b}")
        assert e.note == "exact" or e.kind == "infinity", (code, e.note)
        assert (e.kind == "NaN") == (code in fmt.nan_codes)
        assert (e.kind == "infinity") == (code in fmt.inf_codes)
        assert (e.kind == "zero") == (decode(fmt, code) == 0)
    with pytest.raises(FormatError, match="expected a code"):
        explain_code(1 << fmt.bits, fmt)


def test_shares_of_random_bits_are_counted() -> None:
    # 1.03125 lies a quarter of the way from 1 to 1.125: 64 of 256 random bytes carry it up.
    e = explain("1.03125", "e4m3fn")
    assert {codes for o in e.outcomes for codes in [o.codes] if len(codes) > 1} == {((0x38, Fraction(3, 4)), (0x39, Fraction(1, 4)))}


def why(x: str, fmt: str) -> dict[str, str]:
    return {preset: outcome.why for outcome in explain(x, fmt).outcomes for preset in outcome.presets}


def test_reasons_name_what_decides() -> None:
    beyond = why("470", "e4m3fn")
    assert beyond["cuda_satfinite"] == "beyond 448: clamped (overflow=saturate)"
    assert beyond["ml_dtypes"] == "beyond 448: NaN, as there is no infinity (overflow=ieee or ieee_early)"
    assert why("450", "e4m3fn")["amd_nosat"] == "beyond 448 before rounding: NaN, as there is no infinity (overflow=ieee_early)"
    assert "rounds to 448, which is in range" in why("450", "e4m3fn")["ml_dtypes"]
    assert why("-nan", "e5m2")["cuda_nosat"] == "the sign of NaN is dropped (nan=positive)"
    assert why("inf", "e5m2")["torch"].startswith("infinity is kept")
    assert why("0", "e8m0fnu")["ml_dtypes"] == "zero becomes NaN (zero=nan)"
    assert why("-1", "e8m0fnu")["torch"] == "negative numbers lose their sign (negative=magnitude)"
    # 0x1.200001p0 rounds to the tie 1.125 in float16, and from there to even.
    assert "rounded to float16 first" in why("0x1.100001p0", "e4m3fn")["avx10"]
    assert set(why("1", "e4m3fn").values()) == {""}


def test_formats_without_presets_show_what_can_be_asked_for() -> None:
    assert set(why("1e9", "e3m4fn")) == {"default", "overflow=ieee", "overflow=propagate", "overflow=ieee_early"}


@pytest.mark.parametrize(
    ("number", "fmt", "note"),
    [
        ("1.0625", "e4m3fn", "halfway between two values: to the even code"),
        ("450", "e4m3fn", "beyond the largest value, 448, but rounds to it"),
        ("464", "e4m3fn", "beyond the largest value, 448, but rounds to it"),
        ("465", "e4m3fn", "beyond the largest value, 448"),
        ("-0", "e4m3fnuz", "the format has no negative zero"),
        ("-0", "e4m3fn", "exact"),
        ("nan", "e2m1fn", "the format has no NaN"),
        ("0", "e8m0fnu", "the format has no zero"),
        ("2^-130", "e8m0fnu", "below the smallest value"),
        ("-3", "binary8p4ue", "the format has no sign"),
    ],
)
def test_notes(number: str, fmt: str, note: str) -> None:
    assert explain(number, fmt).note == note


# -- the command ------------------------------------------------------------------------------------------------------


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_one_format_in_detail() -> None:
    result = invoke("-0.3", "--format", "e4m3fn")
    assert result.exit_code == 0
    for text in ("1 0101 010", "0xAA", "-0.3125", "-0.28125", "-2^-2 * 1.010b", "0.4 ulp", "avx10_bias", "102 of 256"):
        assert text in result.output


def test_many_formats_side_by_side() -> None:
    result = invoke("1e9")
    assert result.exit_code == 0
    assert all(fmt.name in result.output for fmt in select_formats())
    assert "beyond 57344: infinity (overflow=ieee or ieee_early)" in " ".join(result.output.split())
    assert max(map(len, result.output.splitlines())) <= 160


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_number_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    _print_overview(console, [explain("-0.001", fmt) for fmt in select_formats()])
    text = console.export_text()
    assert "…" not in text
    assert all(f"{fmt.name} " in text for fmt in select_formats())
    assert ("-0.001220703125" in text) == (width == 160)  # of the neighbours
    assert ("a wider terminal" in text) == (width < 160)


def test_codes_of_several_formats() -> None:
    result = invoke("--code", "0x7f", "--format", "*e4m3*", "--json")
    rows = json.loads(result.output)
    assert [(row["format"].removeprefix("float8_"), row["value"]) for row in rows] == [
        ("e4m3", "nan"),
        ("e4m3fn", "nan"),
        ("e4m3fnuz", 240.0),
        ("e4m3b11fnuz", 30.0),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give a number"),
        (("1", "--code", "3", "--format", "e4m3fn"), "Give a number"),
        (("--code", "3"), "needs --format"),
        (("--code", "x", "--format", "e4m3fn"), "expected an integer such as"),
        (("abc",), "expected a number such as"),
        (("--code", "0x1ff", "--format", "e4m3fn"), "0..0xFF"),
        (("1", "--format", "e9m9"), "unknown format"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_infinite_and_negative_numbers_are_not_options() -> None:
    for text in ("-inf", "-nan", "-0x1p-3", "-1/3", "-2^4"):
        assert invoke(text, "--format", "e5m2").exit_code == 0


def test_formats_by_pattern() -> None:
    assert {f.name for f in select_formats(["all"])} == set(FORMATS)
    assert [f.name for f in select_formats(["e4m3@11", "E5M2"])] == ["float8_e4m3@11", "float8_e5m2"]
    with pytest.raises(FormatError, match="named like"):
        select_formats(["*e9*"])


def test_an_exponent_beyond_reason_is_named() -> None:
    with pytest.raises(InputError, match="exponent of at most"):
        parse_number("1e99999999")
