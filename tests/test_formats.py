"""The table of formats against the specification, the law, and ml_dtypes."""

from __future__ import annotations

import csv
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from _law import ALL_FORMATS, EXTREME

import fp8np
from fp8np import reference
from fp8np._finfo import FormatInfo, finfo
from fp8np.errors import FormatError
from fp8np.formats import FORMATS, FloatFormat, Specials, formats, get_format

ml_dtypes = pytest.importorskip("ml_dtypes")

# name: bias, max, its code, smallest normal, smallest subnormal, +Inf, NaN codes, distinct finite values.
# OFP8 1.0 tables 1 and 2 (e5m2, e4m3fn); arXiv 2206.02915 (fnuz); arXiv 2309.14592 table 1 (e3m4fn); MX 1.0 5.3 and 5.4.1.
SPECIFIED = {
    "float8_e5m2": (15, 57344, 0x7B, 2**-14, 2**-16, 0x7C, 6, 247),
    "float8_e5m2fnuz": (16, 57344, 0x7F, 2**-15, 2**-17, None, 1, 255),
    "float8_e4m3": (7, 240, 0x77, 2**-6, 2**-9, 0x78, 14, 239),
    "float8_e4m3fn": (7, 448, 0x7E, 2**-6, 2**-9, None, 2, 253),
    "float8_e4m3fnuz": (8, 240, 0x7F, 2**-7, 2**-10, None, 1, 255),
    "float8_e4m3b11fnuz": (11, 30, 0x7F, 2**-10, 2**-13, None, 1, 255),
    "float8_e3m4": (3, 15.5, 0x6F, 2**-2, 2**-6, 0x70, 30, 223),
    "float8_e3m4fn": (3, 30, 0x7E, 2**-2, 2**-6, None, 2, 253),
    "float8_e8m0fnu": (127, 2.0**127, 0xFE, 2.0**-127, 2.0**-127, None, 1, 255),
    "float6_e3m2fn": (3, 28, 0x1F, 2**-2, 2**-4, None, 0, 63),
    "float6_e2m3fn": (1, 7.5, 0x1F, 1, 2**-3, None, 0, 63),
    "float4_e2m1fn": (1, 6, 0x07, 1, 2**-1, None, 0, 15),
}
P3109 = [name for name in formats() if name.startswith("binary8p")]
TABLES = Path(fp8np.__file__).parent / "verify" / "data" / "p3109_k8_values.csv"


def test_every_format_is_specified() -> None:
    assert [*SPECIFIED, *P3109] == list(formats())


def test_every_value_of_p3109() -> None:
    # The working group's value tables: 30 formats, 256 codes each.
    with TABLES.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert sorted(name.lower() for name in header[1:]) == sorted(P3109)
    assert len(rows) == 256
    for column, name in enumerate(header[1:], 1):
        for row in rows:
            value = float(reference.decode(get_format(name), int(row[0], 16)))
            expected = float.fromhex(row[column])
            assert value == expected or (math.isnan(value) and math.isnan(expected)), (name, row[0])


@pytest.mark.parametrize(("theirs", "ours"), [("binary8p4sf", "e4m3fnuz"), ("binary8p3sf", "e5m2fnuz")])
def test_finite_p3109_formats_that_exist_under_other_names(theirs: str, ours: str) -> None:
    a, b = get_format(theirs), get_format(ours)
    assert (a.exponent_bits, a.mantissa_bits, a.bias, a.specials) == (b.exponent_bits, b.mantissa_bits, b.bias, b.specials)


@pytest.mark.parametrize("name", SPECIFIED)
def test_facts(name: str) -> None:
    f = FORMATS[name]
    bias, largest, code, normal, subnormal, infinity, nans, finite = SPECIFIED[name]
    assert (f.bias, f.max, f.max_magnitude) == (bias, largest, code)
    assert (f.smallest_normal, f.smallest_subnormal) == (normal, subnormal)
    assert f.inf_codes == (frozenset() if infinity is None else {infinity, infinity | f.sign_bit})
    assert len(f.nan_codes) == nans
    values = [reference.decode(f, c) for c in range(1 << f.bits)]
    assert len({v for v in values if math.isfinite(v)}) == finite


@pytest.mark.parametrize("f", [*ALL_FORMATS, *EXTREME], ids=str)
def test_derived_facts_hold_on_all_codes(f: FloatFormat) -> None:
    values = {c: reference.decode(f, c) for c in range(1 << f.bits)}
    assert {c for c, v in values.items() if math.isnan(v)} == f.nan_codes
    assert {c for c, v in values.items() if math.isinf(v)} == f.inf_codes
    assert f.has_inf == any(math.isinf(v) for v in values.values())
    assert f.has_negative_zero == any(isinstance(v, float) and v == 0 for v in values.values())
    assert f.has_zero == any(v == 0 for v in values.values())
    finite = [v for v in values.values() if math.isfinite(v)]
    assert (max(finite), min(finite), min(v for v in finite if v > 0)) == (f.max, f.min, f.smallest_subnormal)
    assert all((v / f.smallest_subnormal).is_integer() for v in map(float, finite))
    assert math.frexp(f.max)[1] - 1 == f.max_exponent
    assert math.frexp(f.smallest_normal)[1] - 1 == f.min_exponent
    # Magnitudes count the values in ascending order, which rounding and comparing of codes rest on.
    positive = [values[m] for m in range(f.max_magnitude + 1)]
    assert positive == sorted(positive)
    assert len(set(positive)) == len(positive)


@pytest.mark.parametrize("name", [n for n in FORMATS if hasattr(ml_dtypes, n)])
def test_finfo_has_the_figures_of_ml_dtypes(name: str) -> None:
    ours, theirs = finfo(name), ml_dtypes.finfo(getattr(ml_dtypes, name))
    assert ours.dtype == str(theirs.dtype)
    for field in ("bits", "nexp", "nmant", "iexp", "machep", "negep", "minexp", "maxexp", "precision"):
        assert getattr(ours, field) == getattr(theirs, field), field
    for field in ("eps", "epsneg", "max", "min", "tiny", "smallest_normal", "smallest_subnormal"):
        assert getattr(ours, field) == float(getattr(theirs, field)), field


def test_finfo_is_one_object_however_the_format_is_named() -> None:
    f = get_format("e4m3fn")
    assert (
        finfo("e4m3fn") is finfo("FLOAT8_E4M3FN") is finfo(f) is finfo(ml_dtypes.float8_e4m3fn) is finfo(np.dtype(ml_dtypes.float8_e4m3fn))
    )
    assert isinstance(finfo(f), FormatInfo)


def test_bias_of_gaudi() -> None:
    assert [get_format("e4m3").with_bias(b).max for b in (3, 7, 11, 15)] == [3840, 240, 15, 0.9375]
    assert get_format("e4m3").with_bias(7) is get_format("e4m3")
    assert get_format("e4m3@11") == get_format("e4m3").with_bias(11)
    assert get_format("e4m3@11").with_bias(7) is get_format("e4m3")
    assert get_format("e4m3@11").with_bias(3).name == "float8_e4m3@3"
    assert get_format("e5m2@3").stored_as == "U8"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e4m3fm", "did you mean float8_e4m3fn"),
        ("float8_e5m3", "float8_e5m2"),
        ("int4", "known: float8_e5m2, "),
        ("e4m3@200", "0..127"),
        ("e8m0fnu@3", "signed"),
        ("e2m1fn@3", "8 bits"),
        ("binary8p4s", "binary8p4s[ef]"),
        (np.dtype(np.float32), "float32"),
        (None, "None"),
    ],
)
def test_unknown_formats_are_refused_with_a_hint(name: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        get_format(name)


def test_a_format_of_more_than_a_byte_is_refused() -> None:
    with pytest.raises(FormatError, match="3 to 8 bits, got 9"):
        FloatFormat("float9_e4m4", 4, 4, 7, Specials.IEEE, "nowhere")
    with pytest.raises(FormatError, match="exponent bit"):
        FloatFormat("float8_e0m7", 0, 7, 7, Specials.IEEE, "nowhere")


@pytest.mark.parametrize("f", ALL_FORMATS, ids=str)
def test_formats_survive_pickling(f: FloatFormat) -> None:
    assert pickle.loads(pickle.dumps(f)) == f


def test_torch_dtypes_name_formats() -> None:
    torch = pytest.importorskip("torch")
    assert get_format(torch.float8_e4m3fn) is FORMATS["float8_e4m3fn"]
    assert get_format(torch.float8_e5m2fnuz) is FORMATS["float8_e5m2fnuz"]
