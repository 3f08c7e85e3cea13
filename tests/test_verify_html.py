"""Reports as files: nothing is lost, nothing is loaded, nothing of a report becomes markup."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path

import pytest
from _html import Elements, loads_nothing
from hypothesis import given
from hypothesis import strategies as st

from fp8np.formats import FORMATS, FloatFormat
from fp8np.reference import decode, encode
from fp8np.verify._result import Difference, Report, Row
from fp8np.verify.html import as_html, as_json, write_html, write_json
from fp8np.verify.picture import error_profile, error_svg

HOSTILE = "<script>alert('&\"')</script>"
ROWS = [
    Row("decode", "the law", "float8_e4m3fn", "overflow=saturate", 256),
    Row("float64", "ml_dtypes 0.6", "float8_e5m2", "ml_dtypes", 1000, 0, 12, "rounds twice"),
    Row("gemm", HOSTILE, "float8_e4m3fn x float6_e2m3fn", "hopper", 1024, 3, 0, "", (Difference("a", "1", HOSTILE),), "one bit short"),
    Row("conv", "torch", "float8_e8m0fnu", "", reason="torch is not installed", skipped=True),
]
REPORT = Report("mine:engine", {"versions": {"numpy": "2.4"}, "vectors": [{"sha256": "00ff"}], "evil": HOSTILE}, ROWS)


def test_the_page_is_well_formed_and_escapes_everything() -> None:
    page = as_html(REPORT)
    parsed = Elements(page)
    assert parsed.open == []
    assert sum(tag == "script" for tag, _ in parsed.seen) == 1
    assert HOSTILE not in page
    assert parsed.text.count(HOSTILE) == 6  # of the mismatch too, and in the summary
    for text in ("3 results differ", "rounds twice", "torch is not installed", "one bit short", "00ff", "4 checks, 2,280 results"):
        assert text in parsed.text


def test_the_page_loads_nothing() -> None:
    loads_nothing(as_html(REPORT))
    assert "http:" not in as_html(REPORT)


def test_each_check_has_a_row_that_can_be_sorted_and_a_picture_per_format() -> None:
    page = as_html(REPORT)
    parsed = Elements(page)
    states = [attributes["class"] for tag, attributes in parsed.seen if tag == "tr" and attributes.get("class")]
    assert states == ["equal", "known", "differs", "skipped"]
    cells = re.findall(r"<td>(.*?)</td>", page[page.index('id="checks"') :])
    assert cells[5:8] == ["256", "·", "·"]
    labels = [attributes["aria-label"] or "" for tag, attributes in parsed.seen if tag == "svg"]
    shown = [re.findall(r"of (\S+)", label)[0] for label in labels]
    assert sorted(shown, key=list(FORMATS).index) == shown
    assert set(shown) == {"float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float8_e8m0fnu"}


def test_a_clean_report_says_so() -> None:
    page = as_html(Report("fp8np", {}, ROWS[:2]))
    assert '<p class="verdict equal">clean</p>' in page
    empty = as_html(Report("nothing", {}, []))
    assert Elements(empty).open == []
    assert '<p class="verdict differs">nothing was checked</p>' in empty


def test_what_matters_stands_above_the_table_of_all_checks() -> None:
    text = Elements(as_html(REPORT)).text
    order = [
        "3 results differ",
        "Mismatches",
        "one bit short",
        "Summary",
        "documented reason",
        "rounds twice",
        "Skipped",
        "Made with",
        "All checks",
    ]
    places = [text.index(part) for part in order[:1]]
    for part in order[1:]:
        places.append(text.index(part, places[-1] + 1))
    assert places == sorted(places)


def test_a_check_that_is_equal_costs_little() -> None:
    few, many = (as_html(Report("x", {}, [ROWS[0]] * n)) for n in (10, 1010))
    assert (len(many) - len(few)) / 1000 < 180


def test_json_holds_every_field() -> None:
    document = json.loads(as_json(REPORT))
    assert document["clean"] is False
    assert document["totals"] == {"checks": 4, "cases": 2280, "mismatches": 3, "known": 12, "skipped": 1}
    assert document["facts"] == REPORT.facts
    assert [(line["reference"], line["suite"], line["cases"]) for line in document["summary"]][:2] == [
        ("the law", "decode", 256),
        ("ml_dtypes 0.6", "float64", 1000),
    ]
    assert [row.pop("state") for row in document["rows"]] == ["equal", "known", "differs", "skipped"]
    rebuilt = [Row(**{**row, "first": tuple(Difference(**d) for d in row["first"])}) for row in document["rows"]]
    assert rebuilt == ROWS


def test_files_are_written_whole(tmp_path: Path) -> None:
    write_html(REPORT, tmp_path / "report.html")
    write_json(REPORT, str(tmp_path / "report.json"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == as_html(REPORT)
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == as_json(REPORT)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(OSError, match="no such folder"):
        write_html(REPORT, tmp_path / "absent" / "report.html")


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_the_error_profile_is_that_of_the_law(fmt: FloatFormat) -> None:
    points = error_profile(fmt)
    assert [x for x, _ in points] == sorted({x for x, _ in points})
    for x, error in points:
        assert abs(Fraction(decode(fmt, encode(fmt, x))) - x) / x == error


@given(st.sampled_from(list(FORMATS.values())))
def test_pictures_stay_inside_their_frame(fmt: FloatFormat) -> None:
    picture = ET.fromstring(error_svg(fmt))
    (curve,) = picture.iter("polygon")
    for point in curve.attrib["points"].split():
        x, y = map(float, point.split(","))
        assert 46 <= x <= 630
        assert 24 <= y <= 158
    for box in picture.iter("rect"):
        assert float(box.attrib["width"]) >= 0
