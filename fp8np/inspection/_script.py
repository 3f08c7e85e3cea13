"""Style and behaviour of the page on a model, as text to be put into it.

Pictures are drawn by the page, in the width that there is: text in them stays readable on a phone.
"""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

# On a phone each layer becomes a card, since so many columns do not fit; the list of orders stands in for the heads.
STYLE = """
main { max-width: 100%; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.tiles > div { background: var(--panel); border-radius: 8px; padding: .5rem .8rem; }
.tiles b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.tiles span, .soft { color: var(--soft); font-size: .9em; }
.advice { list-style: none; padding: 0; display: grid; gap: .7rem;
  grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); }
.advice > li { background: var(--panel); border-left: 3px solid var(--bad); border-radius: 0 8px 8px 0; padding: .5rem .8rem;
  overflow-wrap: anywhere; }
.advice ul { margin-top: .3rem; }
.gain { color: var(--good); font-weight: 600; white-space: nowrap; }
.loss { color: var(--bad); font-weight: 600; white-space: nowrap; }
.link { all: unset; cursor: pointer; color: var(--accent); font-weight: 600; overflow-wrap: anywhere; }
.link:focus-visible { outline: 2px solid var(--accent); }
#layers { font-size: 13px; }
#layers > thead th { background: var(--panel); position: sticky; top: 0; padding: 0; vertical-align: bottom; z-index: 1; }
#layers > thead button { padding: .35rem .45rem; white-space: normal; line-height: 1.2; }
#layers > tbody > tr > td { padding: .3rem .45rem; }
#layers .number { text-align: right; white-space: nowrap; }
#layers > tbody > tr.float > td { color: var(--soft); }
#layers > tbody > tr.detail > td { padding: .6rem; background: var(--panel); }
#layers td.name { min-width: 11rem; overflow-wrap: anywhere; }
#layers td.wide:not(.name) { white-space: nowrap; }
td.low { color: var(--bad); font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr)); gap: 1rem; }
.detail p, .pictures figcaption { margin: 0 0 .2rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg .bar { fill: var(--accent); opacity: .6; }
svg .values { stroke: var(--warn); stroke-width: 1; fill: none; }
svg .lost { fill: var(--soft); opacity: .14; }
svg .rule { stroke: var(--rule); stroke-width: 1; fill: none; }
svg .line { stroke: var(--accent); stroke-width: 1.5; fill: none; stroke-linejoin: round; }
svg .output { fill: var(--accent); cursor: pointer; }
svg .output.float { fill: var(--page); stroke: var(--accent); }
svg .own { fill: var(--warn); cursor: pointer; }
.key span { margin-right: 1rem; white-space: nowrap; }
.key svg { display: inline-block; width: 14px; height: 10px; }
#told { min-height: 1.5em; margin: .3rem 0 0; }
ul.names { columns: 18rem auto; overflow-wrap: anywhere; }
.sizes { display: none; }
@media (max-width: 760px) {
  .sizes { display: inline-block; }
  .controls select { flex: 1 1 9rem; min-width: 0; }
  #layers > thead { position: absolute; left: -9999px; }
  #layers, #layers > tbody { display: block; }
  #layers > tbody > tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); border: 1px solid var(--rule); border-radius: 8px;
    margin-bottom: .6rem; padding: .3rem 0; }
  #layers > tbody > tr[hidden] { display: none; }
  #layers > tbody > tr.detail { display: block; margin-top: -.7rem; border-top: 0; border-radius: 0 0 8px 8px; }
  #layers > tbody > tr.detail > td { display: block; }
  #layers > tbody > tr:not(.detail) > td { display: flex; gap: .5rem; justify-content: space-between; border: 0; padding: .1rem .7rem;
    overflow-wrap: anywhere; text-align: right; }
  #layers > tbody > tr > td.wide { grid-column: 1 / -1; white-space: normal; }
  #layers > tbody > tr:not(.detail) > td:not(.name)::before { content: var(--label); color: var(--soft); font-weight: 400;
    white-space: nowrap; text-align: left; }
  #layers > tbody > tr:not(.detail) > td:empty { display: none; }
  #layers > tbody > tr > td.name { font-size: 15px; text-align: left; }
}
@media print { #layers > thead th { position: static; } }
"""

SCRIPT = """
const data = JSON.parse(document.querySelector("#data").textContent), table = document.querySelector("#layers");
const layers = Array.from(table.tBodies[0].rows), byName = new Map(layers.map(row => [row.dataset.name, row]));
const choice = document.querySelector("#show"), search = document.querySelector("#search"), order = document.querySelector("#order");

// -- pictures --
const make = (name, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  return element;
};
const picture = (width, height, label) => make("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label});
function power(x, y, exponent) {
  const text = make("text", {x, y, "text-anchor": "middle"}, "2");
  text.append(make("tspan", {dy: -4, "font-size": 8}, String(exponent)));
  return text;
}
function histogram(tensor, width) {
  const height = 150, base = 112, grid = data.formats[tensor.format].map(Math.log2), shares = tensor.shares, step = 1 / data.perOctave;
  const first = tensor.first * step, smallest = grid[0], largest = grid[grid.length - 1];
  const low = Math.floor(Math.min(first, smallest - 2)), high = Math.ceil(Math.max(first + shares.length * step, largest + 1));
  const at = exponent => 4 + (exponent - low) / (high - low) * (width - 8);
  const svg = picture(width, height, `histogram of ${tensor.title}`);
  for (const [from, to, what] of [[low, smallest - 1, "become zero"], [largest, high, "saturate"]]) {
    const lost = make("rect", {x: at(from), y: 4, width: Math.max(at(to) - at(from), 0), height: base - 4, class: "lost"});
    lost.append(make("title", {}, what));
    svg.append(lost);
  }
  shares.forEach((share, i) => {
    if (!share) return;
    const x = at(first + i * step), bar = Math.max(share / 1000 * (base - 10), .5);
    const rect = make("rect", {x, y: base - bar, width: Math.max(at(first + (i + 1) * step) - x - .5, .5), height: bar, class: "bar"});
    rect.append(make("title", {}, `${(tensor.top * share / 10).toPrecision(2)} %`));
    svg.append(rect);
  });
  svg.append(make("path", {d: `M4 ${base}H${width - 4}`, class: "rule"}));
  svg.append(make("path", {d: grid.map(x => `M${at(x).toFixed(1)} ${base + 2}v11`).join(""), class: "values"}));
  const every = [1, 2, 4, 8, 16].find(n => (high - low) / n * 34 <= width) || 32;
  for (let k = Math.ceil(low / every) * every; k <= high; k += every)
    if (at(k) > 12 && at(k) < width - 12) svg.append(power(at(k), base + 30, k));
  return svg;
}
function depth() {
  const place = document.querySelector("#depth");
  if (!place) return;
  const points = data.depth, width = Math.max(place.clientWidth, 240), height = 260, left = 34, bottom = height - 22;
  const known = points.flatMap(p => [p.output, p.own]).filter(v => typeof v === "number");
  if (!known.length) return;
  const low = Math.floor((Math.min(...known) - 1) / 5) * 5, high = Math.ceil((Math.max(...known) + 1) / 5) * 5;
  const x = i => left + 6 + i / Math.max(points.length - 1, 1) * (width - left - 14);
  const y = v => bottom - (v - low) / (high - low) * (bottom - 10);
  const svg = picture(width, height, "error along the depth of the network");
  const every = high - low > 60 ? 20 : high - low > 25 ? 10 : 5;
  for (let v = low; v <= high; v += every) {
    svg.append(make("path", {d: `M${left} ${y(v)}H${width - 4}`, class: "rule"}));
    svg.append(make("text", {x: left - 4, y: y(v) + 4, "text-anchor": "end"}, String(v)));
  }
  svg.append(make("text", {x: left, y: height - 4}, "input"), make("text", {x: width - 4, y: height - 4, "text-anchor": "end"}, "output"));
  const corners = points.flatMap((p, i) => typeof p.output === "number" ? [`${x(i).toFixed(1)} ${y(p.output).toFixed(1)}`] : []);
  if (corners.length) svg.append(make("path", {d: `M${corners.join("L")}`, class: "line"}));
  const told = document.querySelector("#told"), text = v => typeof v === "number" ? `${v.toFixed(1)} dB` : v === "inf" ? "exact" : v;
  points.forEach((p, i) => {
    const figures = [["output", p.output], ["alone", p.own]].filter(figure => figure[1] !== null);
    const said = `${p.name}: ${figures.map(figure => `${figure[0]} ${text(figure[1])}`).join(", ")}`;
    for (const kind of ["output", "own"]) {
      if (typeof p[kind] !== "number") continue;
      const dot = make("circle", {cx: x(i), cy: y(p[kind]), r: kind === "own" ? 3 : p.quantized ? 3.5 : 2.2,
        class: `${kind}${p.quantized ? "" : " float"}`});
      dot.append(make("title", {}, said));
      dot.addEventListener("pointerenter", () => { told.textContent = said; });
      dot.addEventListener("click", () => { told.textContent = said; show(p.name); });
      svg.append(dot);
    }
  });
  place.replaceChildren(svg);
}

// -- rows --
function open(row, wanted = !row.detail) {
  row.querySelector(".link").setAttribute("aria-expanded", String(wanted));
  if (row.detail) { row.detail.remove(); row.detail = null; }
  if (!wanted) return;
  const detail = row.detail = document.createElement("tr"), cell = detail.insertCell(), said = data.details[row.dataset.name];
  detail.className = "detail";
  cell.colSpan = row.cells.length;
  row.after(detail);
  const add = (parent, name, text) => parent.appendChild(Object.assign(document.createElement(name), {textContent: text}));
  said.lines.forEach(line => { add(cell, "p", line).className = "soft"; });
  const pictures = add(cell, "div", "");
  pictures.className = "pictures";
  const space = Math.min(cell.clientWidth - 20, document.documentElement.clientWidth - 40);
  const width = said.tensors.length > 1 && space > 920 ? space / 2 - 8 : Math.min(space, 720);
  for (const tensor of said.tensors) {
    const figure = add(pictures, "figure", "");
    add(figure, "figcaption", tensor.title).style.fontWeight = 600;
    tensor.lines.forEach(line => { add(figure, "p", line).className = "soft"; });
    if (tensor.shares) figure.append(histogram(tensor, Math.max(width, 220)));
  }
}
function show(name) {
  const row = byName.get(name);
  if (!row) return;
  if (row.hidden) { choice.value = "all"; search.value = ""; filter(); }
  open(row, true);
  row.scrollIntoView({block: "center"});
}
function filter() {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of layers) {
    const text = row.textContent.toLowerCase(), kinds = row.className.split(" ");
    row.hidden = (choice.value !== "all" && !kinds.includes(choice.value)) || !words.every(word => text.includes(word));
    if (row.hidden && row.detail) open(row, false);
  }
  document.querySelector("#none").hidden = layers.some(row => !row.hidden);
}

// -- order: a view can be shared, its order is in the address --
const columns = Array.from(table.tHead.rows[0].cells, head => head.dataset.key);
const sort = sorter(table, (row, column) => {
  const value = row.cells[column].dataset.v;
  if (value === undefined) return row.cells[column].classList.contains("number") ? null : row.cells[column].textContent;
  return Number(value);
}, (column, up) => { order.value = ""; history.replaceState(null, "", `#sort=${up ? "" : "-"}${columns[column]}`); });
function read() {
  const wanted = new URLSearchParams(location.hash.slice(1)), key = wanted.get("sort");
  if (key) {
    const column = columns.indexOf(key.replace(/^-/, ""));
    if (column >= 0) sort(column, !key.startsWith("-"));
  }
  if (wanted.get("open")) show(wanted.get("open"));
}
layers.forEach(row => row.querySelector(".link").addEventListener("click", () => open(row)));
document.querySelectorAll("[data-show]").forEach(button => button.addEventListener("click", () => show(button.dataset.show)));
choice.addEventListener("change", filter);
search.addEventListener("input", filter);
order.addEventListener("change", () => { if (order.value) location.hash = `sort=${order.value}`; });
addEventListener("hashchange", read);
addEventListener("resize", depth);
depth();
filter();
read();
"""
