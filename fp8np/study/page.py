"""A study as one HTML page that loads nothing from anywhere, readable on a phone, dark and light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from fp8np._files import replacing
from fp8np._page import document
from fp8np.study.results import DONE, Results
from fp8np.study.tables import Field, Table, tables

__all__ = ["as_html", "write_html"]

_STYLE = """
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .8rem 0; }
a { color: var(--accent); }
.note { max-width: 80ch; color: var(--soft); margin: 0 0 .5rem; }
.data { width: auto; min-width: 40%; }
.data thead th { background: var(--panel); position: sticky; top: 0; padding: 0; }
.data td:first-child { font-weight: 600; min-width: 9rem; }
.data td { white-space: nowrap; }
.data.wordy td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
.headline { font-weight: 600; overflow-wrap: anywhere; }
.passes { color: var(--good); }
.fails, .failed { color: var(--bad); }
.undecided { color: var(--warn); }
figure svg { width: 100%; height: auto; }
figure text { font-family: system-ui, sans-serif !important; }
figcaption { color: var(--soft); margin-bottom: 1rem; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.data")) {
  const rows = Array.from(table.tBodies[0].rows);
  const numeric = Array.from(table.tHead.rows[0].cells, (_, i) => rows.every(row => /^([-+]?\\d|$)/.test(row.cells[i].textContent)));
  sorter(table, (row, i) => {
    const text = row.cells[i].textContent;
    return text === "" ? null : numeric[i] ? parseFloat(text) : text;
  });
}
const search = document.querySelector("#search"), cells = document.querySelector("#cells");
search?.addEventListener("input", () => {
  const wanted = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of cells.tBodies[0].rows) row.hidden = !wanted.every(word => row.textContent.toLowerCase().includes(word));
});
"""

_CAPTIONS = {
    "losses": "Relative loss against FP32 by recipe, a mark for each workload.",
    "rates": "Share of workloads that pass.",
    "samples": "Relative loss against the number of calibration samples; shaded: from the least to the largest of the seeds.",
}


def as_html(results: Results, pictures: Mapping[str, str]) -> str:
    """The page: headline, pictures, every table to sort, and how it was made. Every text is escaped but the pictures'."""
    study = results.study
    done, failed, missing = results.counts
    made = tables(results)
    links = "".join(f'<a href="#{table.name}">{escape(table.title)}</a>' for table in made)
    headline = "".join(f"<li>{escape(line)}</li>" for line in results.headline())
    figures = "".join(f"<figure>{svg}<figcaption>{escape(_CAPTIONS[name])}</figcaption></figure>" for name, svg in pictures.items())
    body = f"""<header>
<h1>{escape(study.title)}</h1>
<p>{done:,} cells done, {failed:,} failed, {missing:,} not run</p>
</header>
<main>
<ul class="headline">{headline}</ul>
<nav aria-label="tables">{links}</nav>
{figures}
{"".join(_table(table) for table in made)}
<h2>Made with</h2>
<dl>{_facts(results)}</dl>
</main>"""
    return document(study.title, body, style=_STYLE, script=_SCRIPT)


def write_html(results: Results, pictures: Mapping[str, str], path: Path) -> None:
    """Writes `as_html`.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(as_html(results, pictures), encoding="utf-8")


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col"><button>{escape(head)}</button></th>' for head in table.heads)
    rows = "".join(f"<tr>{_row(row)}</tr>\n" for row in table.rows)
    search = ""
    if table.name == "cells":
        search = '<div class="controls"><input id="search" type="search" placeholder="filter" aria-label="filter by words"></div>\n'
    wordy = " wordy" if table.name in ("cells", "failures") else ""
    return f"""<h2 id="of-{table.name}">{escape(table.title)}</h2>
<p class="note">{escape(table.note)}</p>
{search}<div class="scroll"><table class="data{wordy}" id="{table.name}"><thead><tr>{heads}</tr></thead>
<tbody>
{rows}</tbody></table></div>
"""


def _row(fields: Iterable[Field]) -> str:
    return "".join(f'<td class="{field.kind}">{escape(field.text)}</td>' for field in fields).replace(' class=""', "")


def _facts(results: Results) -> str:
    study = results.study
    machines: dict[str, int] = {}
    for row in (*results.references, *results.rows):
        if row.state == DONE:
            machine = row.record["machine"]
            said = f"fp8np {machine['fp8np']}, {machine['cpu']}, kernels of tier {machine['tier']}, {machine['threads']} threads"
            said += f", {machine['jobs']} processes at a time" if machine["jobs"] > 1 else ""
            machines[said] = machines.get(said, 0) + 1
    facts = {
        "study": study.origin,
        "bootstrap": f"{study.resamples} resamples of the units, the same for FP32 and the recipe, seed {study.seed}",
        "machine": "; ".join(f"{said} ({count} cells)" for said, count in machines.items()),
    }
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
