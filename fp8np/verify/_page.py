"""Style and behaviour of the HTML report, as text to be put into it."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

# Light and dark follow the reader's system. On a phone each check becomes a card, since nine columns do not fit.
STYLE = """
:root { --text: #1b1f24; --soft: #5b6570; --page: #fff; --panel: #f5f7f9; --rule: #d8dee4; --accent: #0b62c4;
  --equal: #1a7f37; --known: #8a6100; --skipped: #5b6570; --differs: #c4212b; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ec; --soft: #9aa4ae; --page: #14181c; --panel: #1d2329; --rule: #343c44;
  --accent: #6cb0ff; --equal: #56c271; --known: #dca63a; --skipped: #9aa4ae; --differs: #ff7a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 88rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
header p { margin: .2rem 0; }
.verdict { font-size: 1.2rem; font-weight: 600; }
.verdict.equal { color: var(--equal); }
.verdict.differs { color: var(--differs); }
.controls { display: flex; gap: .5rem; flex-wrap: wrap; margin-bottom: .6rem; }
.controls input, .controls select { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--rule);
  border-radius: 6px; padding: .4rem .6rem; }
.controls input { flex: 1 1 16rem; max-width: 30rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--rule); }
#summary { width: auto; }
#summary :is(th, td):nth-child(n+3), #checks > * > tr > :is(th, td):is(:nth-child(6), :nth-child(7), :nth-child(8)) { text-align: right; }
#summary th { background: var(--panel); }
#checks > thead th { background: var(--panel); position: sticky; top: 0; padding: 0; }
thead button { all: unset; cursor: pointer; padding: .4rem .6rem; font-weight: 600; white-space: nowrap; }
thead button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
#checks > tbody > tr > td:first-child { font-weight: 600; }
tr.equal > td:first-child, td.equal { color: var(--equal); }
tr.known > td:first-child, td.known { color: var(--known); }
tr.skipped > td:first-child { color: var(--skipped); }
tr.differs > td:first-child, td.differs { color: var(--differs); }
td p { margin: 0; max-width: 60ch; }
details { overflow-x: auto; }
details table { width: auto; font: 13px/1.4 ui-monospace, monospace; white-space: nowrap; }
.findings { list-style: none; padding: 0; }
.findings > li { border-left: 3px solid var(--differs); padding: .1rem .8rem; margin-bottom: .8rem; overflow-wrap: anywhere; }
.findings p { margin: 0 0 .2rem; }
summary { cursor: pointer; color: var(--accent); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; }
svg.errors { width: 100%; height: auto; background: var(--panel); border-radius: 6px; }
svg.errors text { fill: var(--soft); font-size: 11px; }
svg.errors .title { fill: var(--text); font-size: 13px; font-weight: 600; }
svg.errors .power { font-size: 8px; }
svg.errors .region { fill: var(--soft); opacity: .1; stroke: var(--page); }
svg.errors .grid { stroke: var(--rule); stroke-width: .6; }
svg.errors .tick { stroke: var(--soft); }
svg.errors .curve { fill: var(--accent); fill-opacity: .18; stroke: var(--accent); stroke-width: .8; stroke-linejoin: round; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 1.1rem; }
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
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .4rem; padding-left: .8rem; }
}
@media print { .controls { display: none; } thead th { position: static; } body { max-width: none; } }
"""

SCRIPT = """
"use strict";
const body = document.querySelector("#checks > tbody"), rows = Array.from(body.rows);
const search = document.querySelector("#search"), choice = document.querySelector("#state");
const heads = Array.from(document.querySelectorAll("#checks > thead th"));
const words = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
function filter() {
  const wanted = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of rows)
    row.hidden = (choice.value && row.className !== choice.value) || !wanted.every(word => words.get(row).includes(word));
  document.querySelector("#none").hidden = rows.some(row => !row.hidden);
}
function sort(column) {
  const head = heads[column], numeric = column >= 5 && column <= 7, up = head.getAttribute("aria-sort") !== "ascending";
  const key = row => numeric ? Number(row.cells[column].textContent.replace(/\\D/g, "")) : row.cells[column].textContent;
  const compare = (a, b) => numeric ? key(a) - key(b) : key(a).localeCompare(key(b), "en", {numeric: true});
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  rows.sort((a, b) => up ? compare(a, b) : compare(b, a));
  body.append(...rows);
}
heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(column)));
search.addEventListener("input", filter);
choice.addEventListener("change", filter);
"""
