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
from fp8np.errors import FormatError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.verify._page import SCRIPT, STYLE
from fp8np.verify._result import Report, Row
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
    """The report as JSON text: implementation, clean, facts, totals, rows; each row has a ``state`` too."""
    document = {
        "implementation": report.implementation,
        "clean": report.clean,
        "totals": _totals(report.rows),
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
    """The report as one page: verdict, table that can be sorted and filtered, error pictures of the formats in it, facts.

    Every text of the report is escaped, and the page's own policy forbids it to load or send anything.
    """
    title = f"{report.implementation}: FP8 verification"
    totals = _totals(report.rows)
    verdict = "clean" if report.clean else f"{totals['mismatches']:,} results differ without a documented reason"
    summary = (
        f"{totals['checks']:,} checks, {totals['cases']:,} cases, {totals['known']:,} known differences, {totals['skipped']:,} skipped"
    )
    pictures = "\n".join(f"<figure>{error_svg(fmt)}</figure>" for fmt in _formats(report.rows))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="verdict {"equal" if report.clean else "differs"}">{verdict}</p>
<p>{summary}</p>
</header>
<main>
<h2>Checks</h2>
{_controls(report.rows)}
<div class="scroll">
<table id="checks">
<thead><tr>{_HEADS}</tr></thead>
<tbody>
{"".join(_row(row) for row in report.rows)}</tbody>
</table>
</div>
<p id="none" hidden>No check fits.</p>
<h2>Relative error of rounding to nearest</h2>
<p>Input (log2) against |error| / |input| (log2), saturating, by the law. Shaded: zero, subnormal numbers, beyond the largest value.</p>
<div class="pictures">
{pictures}
</div>
<h2>Facts</h2>
{_facts(report.facts)}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


_TEXTS = ("state", "suite", "reference", "format", "policy")
_COUNTS = ("cases", "mismatches", "known")
_HEADS = "".join(
    [f'<th scope="col"><button>{title}</button></th>' for title in _TEXTS]
    + [f'<th scope="col" class="number"><button>{title}</button></th>' for title in _COUNTS]
    + ['<th scope="col"><button>details</button></th>']
)


def _controls(rows: Iterable[Row]) -> str:
    count = Counter(map(state, rows))
    options = "".join(f'<option value="{name}">{name} ({count[name]:,})</option>' for name in _STATES if count[name])
    return f"""<div class="controls">
<input id="search" type="search" placeholder="filter: e4m3fn torch gemm" aria-label="filter by words">
<select id="state" aria-label="filter by state"><option value="">all ({sum(count.values()):,})</option>{options}</select>
</div>"""


def _row(row: Row) -> str:
    kind = state(row)
    texts = zip(_TEXTS[1:], (row.suite, row.reference, row.format, row.policy), strict=True)
    counts = zip(_COUNTS, (row.cases, row.mismatches, row.known), strict=True)
    cells = [f'<td data-title="state" title="{_STATES[kind]}">{kind}</td>']
    cells += [f'<td data-title="{title}">{escape(text)}</td>' for title, text in texts]
    cells += [f'<td data-title="{title}" class="number" data-value="{n}">{f"{n:,}" if n else "·"}</td>' for title, n in counts]
    return f'<tr class="{kind}">{"".join(cells)}<td data-title="details">{_details(row)}</td></tr>\n'


def _details(row: Row) -> str:
    parts = []
    if row.diagnosis:
        parts.append(f"<p><b>{escape(row.diagnosis)}</b></p>")
    if row.reason:
        parts.append(f"<p>{escape(row.reason)}</p>")
    if row.first:
        lines = "".join(f"<tr><td>{escape(d.input)}</td><td>{escape(d.expected)}</td><td>{escape(d.got)}</td></tr>" for d in row.first)
        head = "<tr><th>input</th><th>expected</th><th>got</th></tr>"
        is_open = " open" if row.mismatches else ""
        parts.append(f"<details{is_open}><summary>first differences</summary><table>{head}{lines}</table></details>")
    return "".join(parts)


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
