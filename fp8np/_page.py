"""Pages that people open from disk: one file, no network; light and dark; tables that sort. What the reports of this package share."""

from __future__ import annotations

import json
from html import escape
from typing import Any

__all__ = ["document"]

# Light and dark follow the reader's system until the button says otherwise.
_STYLE = """
:root { color-scheme: light dark; --text: light-dark(#1b1f24, #e6e9ec); --soft: light-dark(#5b6570, #9aa4ae);
  --page: light-dark(#fff, #14181c); --panel: light-dark(#f5f7f9, #1d2329); --rule: light-dark(#d8dee4, #343c44);
  --accent: light-dark(#0b62c4, #6cb0ff); --good: light-dark(#1a7f37, #56c271); --warn: light-dark(#8a6100, #dca63a);
  --bad: light-dark(#c4212b, #ff7a7a); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 88rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
header p { margin: .2rem 0; overflow-wrap: anywhere; }
button, input, select { font: inherit; color: inherit; }
.controls { display: flex; gap: .5rem; flex-wrap: wrap; margin-bottom: .6rem; }
.controls input, .controls select, #theme { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px;
  padding: .4rem .6rem; }
.controls input { flex: 1 1 16rem; max-width: 30rem; min-width: 0; }
#theme { float: right; cursor: pointer; margin: 0 0 .5rem 1rem; padding: .2rem .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--rule); }
thead button { all: unset; cursor: pointer; padding: .4rem .6rem; font-weight: 600; white-space: nowrap; }
:is(button, summary, input, select):focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
summary { cursor: pointer; color: var(--accent); }
figure { margin: 0; }
svg text { fill: var(--soft); font-size: 11px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 1.1rem; }
@media (max-width: 760px) {
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .4rem; padding-left: .8rem; }
}
@media print { .controls, #theme { display: none; } body { max-width: none; } }
"""

# `sorter(table, key)` makes the heads of a table sort its rows by key(row, column), a number, a string, or null, which stays last;
# it returns the function that sorts by a column. A row's `detail`, a row too, follows it.
_SCRIPT = """
"use strict";
document.querySelector("#theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = (root.style.colorScheme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
function sorter(table, key, told = () => {}) {
  const heads = Array.from(table.tHead.rows[0].cells), body = table.tBodies[0], rows = Array.from(body.rows);
  const order = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", {numeric: true}) : a - b;
  function sort(column, up) {
    const keys = new Map(rows.map(row => [row, key(row, column)]));
    rows.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      return x === null || y === null ? (x === null) - (y === null) : up ? order(x, y) : order(y, x);
    });
    heads.forEach(head => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows.flatMap(row => row.detail ? [row, row.detail] : [row]));
  }
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    sort(column, up);
    told(column, up);
  }));
  return sort;
}
"""


def document(title: str, body: str, *, style: str = "", script: str = "", data: Any = None) -> str:
    """A page of one file, whose own policy forbids it to load or send anything.

    Args:
        title: text of the window.
        body: markup of the ``<header>`` and ``<main>``; whoever writes it escapes what is not markup.
        style: CSS after the common one, which defines colours (``--text``, ``--soft``, ``--page``, ``--panel``, ``--rule``, ``--accent``,
            ``--good``, ``--warn``, ``--bad``) for light and dark.
        script: after the common one, which has ``sorter``.
        data: anything JSON can hold, to be read by the script: ``JSON.parse(document.querySelector("#data").textContent)``.

    >>> document("a < b", "<main></main>").splitlines()[-3:]
    ['</script>', '</body>', '</html>']
    """
    held = ""
    if data is not None:
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        held = f'<script id="data" type="application/json">{text}</script>\n'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<button id="theme" aria-label="light or dark" title="light or dark">◐</button>
{body}
{held}<script>{_SCRIPT}{script}</script>
</body>
</html>
"""
