"""docs/numerics.md against the tables of the code: no format, preset or policy is missing, and the figures are those of the rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fp8np.accumulators import ACCUMULATORS
from fp8np.formats import FORMATS, get_format
from fp8np.policy import NAN, OVERFLOW, PRESETS, ROUNDING
from fp8np.verify import SUITES

DOCS = Path(__file__).parents[1] / "docs"
NUMERICS = (DOCS / "numerics.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in NUMERICS.splitlines() if re.match(r"\| `float\d_", line)
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_of_the_table_of_formats(row: list[str]) -> None:
    fmt = get_format(row[0])
    assert row[1] == f"{fmt.exponent_bits}/{fmt.mantissa_bits}"
    assert int(row[2]) == fmt.bias
    value, code = row[3].split(" ")
    assert eval(value.replace("^", "**")) == fmt.max
    assert int(code.strip("()"), 16) == fmt.max_magnitude
    normal, subnormal = row[4].split(", ")
    normal = normal.split(" ")[0]
    assert eval(normal.replace("^", "**")) == fmt.smallest_normal
    assert subnormal == "-" or eval(subnormal.replace("^", "**")) == fmt.smallest_subnormal
    assert {int(c, 16) for c in row[5].split() if c != "-"} == fmt.inf_codes
    nan = [c.split("-") for c in row[6].split() if c != "-"]
    assert {c for span in nan for c in range(int(span[0], 16), int(span[-1], 16) + 1)} == fmt.nan_codes
    assert row[7] == (f"{fmt.sign_bit:02X}".lstrip("0") if fmt.has_negative_zero else "-")


def test_nothing_is_missing() -> None:
    assert [row[0] for row in ROWS] == [name for name in FORMATS if not name.startswith("binary8p")]
    for name in (*PRESETS, *OVERFLOW, *ROUNDING, *NAN):
        assert f"`{name}`" in NUMERICS, name
    accumulators = (DOCS / "accumulators.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in accumulators for name in ACCUMULATORS)
    table = (DOCS / "verify.md").read_text(encoding="utf-8")
    assert all(suite in table for suite in SUITES), SUITES
