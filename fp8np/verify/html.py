"""Reports to attach to a sign-off: one JSON file, or one HTML page that loads nothing from anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from fp8np._files import replacing
from fp8np._page import document
from fp8np.errors import FormatError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.verify._page import SCRIPT, STYLE
from fp8np.verify._result import Difference, Report, Row
from fp8np.verify._summary import known, mismatches, skipped, totals
from fp8np.verify.picture import error_svg

__all__ = ["as_html", "as_json", "state", "write_html", "write_json"]

_Path = str | os.PathLike[str]

_STATES = {
    "differs": "differs without a documented reason",
    "known": "differs for a documented reason",
    "skipped": "could not be checked here",
    "equal": "equal",
}


def state(row: Row) -> str:
    """What a row says in a word: ``differs``, ``known``, ``skipped`` or ``equal``."""
    if row.mismatches:
        return "differs"
    if row.skipped:
        return "skipped"
    return "known" if row.known else "equal"


def as_json(report: Report) -> str:
    """The report as JSON text: implementation, clean, totals, summary, facts, rows; each row has a ``state`` too."""
    document = {
        "implementation": report.implementation,
        "clean": report.clean,
        "totals": _totals(report.rows),
        "summary": [dataclasses.asdict(total) for total in totals(report.rows)],
        "facts": report.facts,
        "rows": [{**dataclasses.asdict(row), "state": state(row)} for row in report.rows],
    }
    return json.dumps(document, indent=1, default=str, ensure_ascii=False) + "\n"


def write_json(report: Report, path: _Path) -> None:
    """Writes `as_json`.

    Raises:
        OSError: the file cannot be written.
    """
    _write(as_json(report), path)


def write_html(report: Report, path: _Path) -> None:
    """Writes `as_html`.

    Raises:
        OSError: the file cannot be written.
    """
    _write(as_html(report), path)


def _write(text: str, path: _Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _totals(rows: Iterable[Row]) -> dict[str, int]:
    rows = list(rows)
    return {
        "checks": len(rows),
        "cases": sum(row.cases for row in rows),
        "mismatches": sum(row.mismatches for row in rows),
        "known": sum(row.known for row in rows),
        "skipped": sum(row.skipped for row in rows),
    }


def as_html(report: Report) -> str:
    """The report as one page: verdict, totals, what differs, facts, error pictures, and a table of all checks to search and sort.

    Every text of the report is escaped, and the page's own policy forbids it to load or send anything.
    """
    title = f"{report.implementation}: FP8 verification"
    sums = _totals(report.rows)
    if report.clean:
        verdict = "clean"
    else:
        verdict = f"{sums['mismatches']:,} results differ without a documented reason" if sums["mismatches"] else "nothing was checked"
    counts = f"{sums['checks']:,} checks, {sums['cases']:,} results, {sums['known']:,} known differences, {sums['skipped']:,} skipped"
    pictures = "\n".join(f"<figure>{error_svg(fmt)}</figure>" for fmt in _formats(report.rows))
    body = f"""<header>
<h1>{escape(title)}</h1>
<p class="verdict {"equal" if report.clean else "differs"}">{verdict}</p>
<p>{counts}</p>
</header>
<main>
{_findings(report.rows)}{_summary(report.rows)}{_list("Differences with a documented reason", known(report.rows))}
{_list("Skipped", skipped(report.rows))}
<h2>Made with</h2>
{_facts(report.facts)}
<h2>Relative error of rounding to nearest</h2>
<p>Input (log2) against |error| / |input| (log2), saturating, by the law. Shaded: zero, subnormal numbers, beyond the largest value.</p>
<div class="pictures">
{pictures}
</div>
<h2>All checks</h2>
{_controls(report.rows)}
<div class="scroll">
<table id="checks">
<thead><tr>{_HEADS}</tr></thead>
<tbody>
{"".join(_row(row) for row in report.rows)}</tbody>
</table>
</div>
<p id="none" hidden>No check fits.</p>
</main>"""
    return document(title, body, style=STYLE + _LABELS, script=SCRIPT)


_UNFOLDED = 3
"""Mismatches whose differences are shown at once."""

_COLUMNS = ("state", "check", "reference", "format", "policy", "results", "mismatches", "known", "details")
_HEADS = "".join(f'<th scope="col"><button>{title}</button></th>' for title in _COLUMNS)
# On a phone, where there are no heads. Thousands of cells would each carry theirs otherwise: half of the page.
_LABELS = "".join(f'#checks > tbody > tr > td:nth-child({i})::before {{ --label: "{title}"; }}\n' for i, title in enumerate(_COLUMNS, 1))


def _findings(rows: Iterable[Row]) -> str:
    parts = []
    for i, finding in enumerate(mismatches(rows)):
        said = f"<p><b>{escape(finding.diagnosis)}</b></p>" if finding.diagnosis else ""
        parts.append(f"<li><p>{escape(finding.title)}</p>{said}{_differences(finding.first, unfolded=i < _UNFOLDED)}</li>")
    return f'<h2>Mismatches</h2>\n<ul class="findings">{"".join(parts)}</ul>\n' if parts else ""


def _summary(rows: Iterable[Row]) -> str:
    lines = []
    for total in totals(rows):
        kind = "differs" if total.mismatches else "known" if total.known else "equal"
        numbers = (len(total.formats), len(total.policies), total.cases, total.mismatches, total.known)
        cells = "".join(f"<td>{number:,}</td>" for number in numbers)
        lines.append(f'<tr><td class="{kind}">{escape(total.reference)}</td><td>{escape(total.suite)}</td>{cells}</tr>')
    heads = "".join(
        f'<th scope="col">{head}</th>' for head in ("reference", "check", "formats", "policies", "results", "mismatches", "known")
    )
    table = f'<div class="scroll"><table id="summary"><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    return f"<h2>Summary</h2>\n{table}\n" if lines else ""


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{title}</h2>\n<ul>{items}</ul>\n" if items else ""


def _controls(rows: Iterable[Row]) -> str:
    count = Counter(map(state, rows))
    options = "".join(
        f'<option value="{name}" title="{text}">{name} ({count[name]:,})</option>' for name, text in _STATES.items() if count[name]
    )
    return f"""<div class="controls">
<input id="search" type="search" placeholder="filter: e4m3fn torch gemm" aria-label="filter by words">
<select id="state" aria-label="filter by state"><option value="">all ({sum(count.values()):,})</option>{options}</select>
</div>"""


def _row(row: Row) -> str:
    kind = state(row)
    texts = (kind, row.suite, row.reference, row.format, row.policy)
    counts = (row.cases, row.mismatches, row.known)
    cells = [escape(text) for text in texts] + [f"{n:,}" if n else "·" for n in counts] + [_details(row)]
    return f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'


def _details(row: Row) -> str:
    parts = []
    if row.diagnosis:
        parts.append(f"<p><b>{escape(row.diagnosis)}</b></p>")
    if row.reason:
        parts.append(f"<p>{escape(row.reason)}</p>")
    parts.append(_differences(row.first))
    return "".join(parts)


def _differences(differences: Iterable[Difference], *, unfolded: bool = False) -> str:
    lines = "".join(f"<tr><td>{escape(d.input)}</td><td>{escape(d.expected)}</td><td>{escape(d.got)}</td></tr>" for d in differences)
    if not lines:
        return ""
    table = f"<table><tr><th>input</th><th>expected</th><th>got</th></tr>{lines}</table>"
    return f"<details{' open' if unfolded else ''}><summary>first differences</summary>{table}</details>"


def _formats(rows: Iterable[Row]) -> list[FloatFormat]:
    # In the order of the table of formats; those of another bias after them.
    found: dict[str, FloatFormat] = {}
    for row in rows:
        for name in row.format.split():
            try:
                fmt = get_format(name)
            except FormatError:  # the "x" of a product, "all", or a name of the implementation's own
                continue
            found[fmt.name] = fmt
    order = {name: index for index, name in enumerate(FORMATS)}
    return sorted(found.values(), key=lambda fmt: order.get(fmt.name, len(order)))


def _facts(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<dl>" + "".join(f"<dt>{escape(str(key))}</dt><dd>{_facts(item)}</dd>" for key, item in value.items()) + "</dl>"
    if isinstance(value, list | tuple):
        return "<ul>" + "".join(f"<li>{_facts(item)}</li>" for item in value) + "</ul>"
    return escape(str(value))
