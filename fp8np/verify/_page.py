"""Style and behaviour of the HTML report, as text to be put into it."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

# On a phone each check becomes a card, since nine columns do not fit.
STYLE = """
.verdict { font-size: 1.2rem; font-weight: 600; }
.verdict.equal { color: var(--good); }
.verdict.differs { color: var(--bad); }
#summary { width: auto; }
#summary :is(th, td):nth-child(n+3), #checks > * > tr > :is(th, td):is(:nth-child(6), :nth-child(7), :nth-child(8)) { text-align: right; }
#summary th { background: var(--panel); }
#checks > thead th { background: var(--panel); position: sticky; top: 0; padding: 0; }
#checks > tbody > tr > td:first-child { font-weight: 600; }
tr.equal > td:first-child, td.equal { color: var(--good); }
tr.known > td:first-child, td.known { color: var(--warn); }
tr.skipped > td:first-child { color: var(--soft); }
tr.differs > td:first-child, td.differs { color: var(--bad); }
td p { margin: 0; max-width: 60ch; }
details { overflow-x: auto; }
details table { width: auto; font: 13px/1.4 ui-monospace, monospace; white-space: nowrap; }
.findings { list-style: none; padding: 0; }
.findings > li { border-left: 3px solid var(--bad); padding: .1rem .8rem; margin-bottom: .8rem; overflow-wrap: anywhere; }
.findings p { margin: 0 0 .2rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
svg.errors { width: 100%; height: auto; background: var(--panel); border-radius: 6px; }
svg.errors .title { fill: var(--text); font-size: 13px; font-weight: 600; }
svg.errors .power { font-size: 8px; }
svg.errors .region { fill: var(--soft); opacity: .1; stroke: var(--page); }
svg.errors .grid { stroke: var(--rule); stroke-width: .6; }
svg.errors .tick { stroke: var(--soft); }
svg.errors .curve { fill: var(--accent); fill-opacity: .18; stroke: var(--accent); stroke-width: .8; stroke-linejoin: round; }
@media (max-width: 760px) {
  #checks > thead { position: absolute; left: -9999px; }
  #checks, #checks > tbody { display: block; }
  #checks > tbody > tr { display: block; border: 1px solid var(--rule); border-radius: 6px; margin-bottom: .6rem; padding: .3rem 0;
    content-visibility: auto; contain-intrinsic-size: auto 10rem; }
  #checks > tbody > tr[hidden] { display: none; }
  #checks > tbody > tr > td:is(td, :nth-child(n)) { display: grid; grid-template-columns: 7rem minmax(0, 1fr); border: 0;
    text-align: left; padding: .1rem .7rem; }
  #checks > tbody > tr:is(.equal, .skipped) > td:is(:nth-child(7), :nth-child(8), :last-child:not(:has(*))) { display: none; }
  #checks > tbody > tr > td::before { content: var(--label); color: var(--soft); font-weight: 400; }
  #checks > tbody > tr > td { overflow-wrap: anywhere; }
  #checks > tbody > tr > td > p { grid-column: 2; }
  #checks > tbody > tr > td > details { grid-column: 1 / -1; }
  #summary { font-size: 12px; }
  #summary :is(th, td) { padding: .25rem .2rem; }
  #summary :is(th, td):is(:nth-child(3), :nth-child(4), :nth-child(5)) { display: none; }
}
@media print { thead th { position: static; } }
"""

SCRIPT = """
const checks = document.querySelector("#checks"), rows = Array.from(checks.tBodies[0].rows);
const search = document.querySelector("#search"), choice = document.querySelector("#state");
const words = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
function filter() {
  const wanted = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of rows)
    row.hidden = (choice.value && row.className !== choice.value) || !wanted.every(word => words.get(row).includes(word));
  document.querySelector("#none").hidden = rows.some(row => !row.hidden);
}
sorter(checks, (row, column) => {
  const text = row.cells[column].textContent;
  return column >= 5 && column <= 7 ? Number(text.replace(/\\D/g, "")) : text;
});
search.addEventListener("input", filter);
choice.addEventListener("change", filter);
"""
