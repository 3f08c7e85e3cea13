"""The page on a model: one file that works from disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from fp8np._numbers import size_text
from fp8np._page import document
from fp8np.inspection._script import SCRIPT, STYLE
from fp8np.inspection.advice import Advice, Option
from fp8np.inspection.facts import Inspection, NodeFacts, TensorFacts
from fp8np.inspection.losses import PER_OCTAVE
from fp8np.inspection.operands import grid
from fp8np.layers._op import OPS
from fp8np.metrics import plain

__all__ = ["as_html"]

# Changes below that, in dB, are shown as none.
_VISIBLE = 0.05


@dataclass(frozen=True)
class _Column:
    """Of the table.

    Attributes:
        key: in the page's address.
        title: its head.
        meaning: shown where the pointer rests.
        value: what it sorts by: text, a number, or None.
        shown: what stands in the cell.
    """

    key: str
    title: str
    meaning: str
    value: Callable[[NodeFacts], Any]
    shown: Callable[[Any], str]


def as_html(facts: Inspection, title: str, *, sources: Iterable[str] = ()) -> str:
    """The page, as text.

    Args:
        facts: of the model.
        title: such as the name of its file.
        sources: lines on what it was compared with and run on.
    """
    columns = [c for c in _columns(facts) if c.key in ("layer", "op") or any(c.value(node) is not None for node in facts.nodes)]
    body = f"""<header>
<h1>{escape(title)}</h1>
{"".join(f'<p class="soft">{escape(line)}</p>' for line in sources)}
</header>
<main>
{_tiles(facts)}
{_missing(facts)}
{_advice(facts)}
{_depth(facts)}
<h2>Layers</h2>
{_controls(columns)}
<div class="scroll"><table id="layers">
<thead><tr>{"".join(map(_head, columns))}</tr></thead>
<tbody>
{"".join(_row(i, node, columns) for i, node in enumerate(facts.nodes))}</tbody>
</table></div>
<p id="none" hidden>No layer fits.</p>
{_unmatched(facts)}
{_notes(facts)}
</main>"""
    labels = "".join(f'#layers > tbody > tr > td:nth-child({i}) {{ --label: "{c.title}"; }}\n' for i, c in enumerate(columns, 1))
    return document(title, body, style=STYLE + labels, script=SCRIPT, data=_data(facts))


# -- above the table --------------------------------------------------------------------------------------------------


def _tiles(facts: Inspection) -> str:
    layers = [node for node in facts.nodes if _is_layer(node)]
    before = facts.float32_bytes
    tiles = [
        (f"{sum(bool(n.tensors) for n in layers)} of {len(layers)}", "layers in 8 bits"),
        (
            size_text(facts.bytes),
            "weights" + ("" if before is None else f", {before / max(facts.bytes, 1):.2f} times less than {size_text(before)}"),
        ),
    ]
    tiles += [(_db(o["sqnr"]), f"SQNR of {name}, cosine {o['cosine']:.5f}") for name, o in facts.outputs.items()]
    if facts.seconds is not None:
        than = "" if facts.float32_seconds is None else f"; FP32 {_time(facts.float32_seconds)}"
        tiles.append((_time(facts.seconds), f"a batch of {facts.timed_samples}{than}"))
    return f'<div class="tiles">{"".join(f"<div><b>{escape(b)}</b><span>{escape(text)}</span></div>" for b, text in tiles)}</div>'


def _missing(facts: Inspection) -> str:
    lines = []
    if not facts.samples:
        lines.append("Nothing was run: with data (--data) this page also shows activations, noise, time, and what would help.")
    if not facts.compared:
        lines.append("There was no FP32 artifact (--against): what weights lost, and what reaches the outputs, is not known.")
    return "".join(f"<p><b>{escape(line)}</b></p>" for line in lines)


def _advice(facts: Inspection) -> str:
    if not facts.advice:
        return ""
    now = facts.trials.get("as it is")
    together = facts.trials.get("all of them")
    lead = ""
    if now is not None and together is not None:
        lead = f"<p>With the first choice of each of these layers at once, the outputs go from {_db(now)} to {_change(now, together)}.</p>"
    items = "".join(_advised(advice, facts, now) for advice in facts.advice)
    return f'<h2>What hurts most, and what would help</h2>\n{lead}<ul class="advice">{items}</ul>'


def _advised(advice: Advice, facts: Inspection, now: float | None) -> str:
    node = next(n for n in facts.nodes if n.name == advice.node)
    options = "".join(f"<li>{_option(option, node, now)}</li>" for option in advice.options)
    alone = "" if node.own_sqnr is None else f", alone {_db(node.own_sqnr)}"
    button = f'<button class="link" data-show="{escape(node.name)}">{escape(node.name)}</button>'
    return f'<li>{button} <span class="soft">{advice.share:.1%} of the noise added{alone}</span><ul>{options}</ul></li>'


def _option(option: Option, node: NodeFacts, now: float | None) -> str:
    said = escape(option.text)
    if option.own_sqnr is not None and node.own_sqnr is not None:
        said += f'; <span class="soft">alone</span> {_change(node.own_sqnr, option.own_sqnr)}'
    if option.output_sqnr is not None and now is not None:
        said += f'; <span class="soft">outputs</span> {_change(now, option.output_sqnr)}'
    return said


def _change(before: float, after: float) -> str:
    gain = after - before
    if not math.isfinite(gain):
        return _db(after)
    kind = "gain" if gain >= _VISIBLE else "loss" if gain <= -_VISIBLE else "soft"
    return f'{_db(after)} <span class="{kind}">{gain:+.1f}</span>' if kind != "soft" else f'{_db(after)} <span class="soft">±0</span>'


def _depth(facts: Inspection) -> str:
    if not any(node.output_sqnr is not None or node.own_sqnr is not None for node in facts.nodes):
        return ""

    def key(kind: str, text: str) -> str:
        return f'<span><svg viewBox="0 0 14 10"><circle cx="7" cy="5" r="3.5" class="{kind}"/></svg>{text}</span>'

    keys = [("output", "output, in 8 bits"), ("output float", "output, in float32")] if facts.compared else []
    keys.append(("own", "what the layer adds on its own"))
    return (
        "<h2>Error along the depth of the network</h2>\n"
        '<p class="soft">SQNR in dB, higher is better, in the order of the graph. A dot opens its layer.</p>\n'
        f'<p class="key soft">{"".join(key(*k) for k in keys)}</p>\n<div id="depth"></div>\n<p id="told" class="soft"></p>'
    )


# -- the table --------------------------------------------------------------------------------------------------------


def _columns(facts: Inspection) -> list[_Column]:
    def pick(kind: str, name: str, worst: Callable[[Iterable[float]], float]) -> Callable[[NodeFacts], float | None]:
        def value(node: NodeFacts) -> float | None:
            found = [getattr(t, name) for t in node.tensors if t.kind == kind and getattr(t, name) is not None]
            return worst(found) if found else None

        return value

    total = sum(node.seconds or 0.0 for node in facts.nodes)
    w, a = "weight", "activation"
    return [
        _Column("layer", "layer", "the node, in the order of the graph", lambda n: n.name, str),
        _Column("op", "op", "its operation", lambda n: n.op, str),
        _Column("weights", "weights", "format and scales of its weights", lambda n: _formats(n, w) or None, str),
        _Column("activations", "activations", "format and scales of what it reads", lambda n: _formats(n, a) or None, str),
        _Column("weight_sqnr", "weight SQNR", "of its weights in dB", pick(w, "sqnr", min), _number),
        _Column("activation_sqnr", "act. SQNR", "of what it reads in dB", pick(a, "sqnr", min), _number),
        _Column("own", "own SQNR", "what rounding its operands adds to its output, in dB", lambda n: n.own_sqnr, _number),
        _Column("output", "output SQNR", "of its output against FP32, in dB: all noise so far is in it", lambda n: n.output_sqnr, _number),
        _Column("cosine", "cosine", "of its output to that of FP32", lambda n: n.cosine, lambda v: f"{v:.5f}"),
        _Column("weight_saturated", "weights saturated", "share beyond what the format reaches", pick(w, "saturated", max), _percent),
        _Column("weight_flushed", "weights to zero", "share that becomes zero", pick(w, "flushed", max), _percent),
        _Column("activation_saturated", "act. saturated", "share beyond what the format reaches", pick(a, "saturated", max), _percent),
        _Column("activation_flushed", "act. to zero", "share that becomes zero", pick(a, "flushed", max), _percent),
        _Column("time", "time", "share of a run", lambda n: n.seconds / total if n.seconds is not None and total else None, _percent),
        _Column("size", "size", "of its constants", lambda n: n.bytes or None, lambda v: size_text(int(v))),
        _Column(
            "float32_size", "size FP32", "of the same in the FP32 artifact", lambda n: n.float32_bytes or None, lambda v: size_text(int(v))
        ),
    ]


def _formats(node: NodeFacts, kind: str) -> str:
    return ", ".join(dict.fromkeys(f"{_short(t.format)} {t.scaling}" for t in node.tensors if t.kind == kind))


def _short(name: str) -> str:
    return name.removeprefix("float8_")


def _head(column: _Column) -> str:
    return f'<th scope="col" data-key="{column.key}" title="{escape(column.meaning)}"><button>{column.title}</button></th>'


def _is_layer(node: NodeFacts) -> bool:
    # Those that read fewer bits, and those with weights that could be.
    return bool(node.tensors) or any(role.startswith("weight") for role in OPS[node.op].quantizable)


def _row(index: int, node: NodeFacts, columns: list[_Column]) -> str:
    kinds = [*(["layer"] if _is_layer(node) else []), "quantized" if node.tensors else "float"]
    cells = "".join(_cell(index, node, column) for column in columns)
    return f'<tr class="{" ".join(kinds)}" data-name="{escape(node.name)}">{cells}</tr>\n'


def _cell(index: int, node: NodeFacts, column: _Column) -> str:
    value = column.value(node)
    if column.key == "layer":
        # Long names break at their dots.
        name = escape(node.name).replace(".", ".<wbr>")
        return f'<td class="name wide" data-v="{index}"><button class="link" aria-expanded="false">{name}</button></td>'
    if column.key in ("op", "weights", "activations"):
        return f'<td class="wide">{escape(value or "")}</td>'
    if value is None:
        return '<td class="number"></td>'
    # Numbers that are not finite sort at their end, and have to be numbers for the page.
    sorted_by = float(f"{value:.6g}") if math.isfinite(value) else math.copysign(1e308, value)
    shown = column.shown(value) + ("*" if column.key == "output" and node.rescaled else "")
    return f'<td class="number" data-v="{sorted_by:g}">{escape(shown)}</td>'


def _controls(columns: list[_Column]) -> str:
    kinds = [("layer", "layers"), ("quantized", "in 8 bits"), ("float", "in float32"), ("all", "all nodes")]
    options = "".join(f'<option value="{value}">{text}</option>' for value, text in kinds)
    orders = "".join(f'<option value="{c.key}">{c.title} ↑</option><option value="-{c.key}">{c.title} ↓</option>' for c in columns)
    return f"""<div class="controls">
<input id="search" type="search" placeholder="filter: conv e4m3fn" aria-label="filter by words">
<select id="show" aria-label="which nodes">{options}</select>
<select id="order" class="sizes" aria-label="order"><option value="">order…</option>{orders}</select>
</div>"""


# -- below the table --------------------------------------------------------------------------------------------------


def _unmatched(facts: Inspection) -> str:
    parts = []
    for title, names in (("Not in the FP32 artifact", facts.only_here), ("Only in the FP32 artifact", facts.only_there)):
        if names:
            items = "".join(f"<li>{escape(name)}</li>" for name in names)
            parts.append(f'<details><summary>{title}: {len(names)} nodes</summary><ul class="names">{items}</ul></details>')
    return f"<h2>Without a counterpart</h2>\n{''.join(parts)}" if parts else ""


def _notes(facts: Inspection) -> str:
    exact = "." if facts.compared else "; without an FP32 artifact, weights count as exact."
    notes = {
        "SQNR": "10 log10(sum of squares / sum of squared errors), in dB. 6 dB are one bit.",
        "own SQNR": "The layer by the definition of its op, once on what its codes stand for and once on the numbers before they were "
        f"rounded, as they reach it in this model{exact}",
        "saturated": "Numbers more than half a step beyond the largest value of the format times the scale.",
        "time": "Each step of the plan on the first batch by itself, fastest of five. What a plan joins counts for the first of it: the "
        "activation and the sum behind a convolution. Making codes counts for the first layer that reads them.",
        "histograms": "Magnitudes in scales on a log axis; below it the values of the format. Grey: what becomes zero, what saturates.",
    }
    if any(node.rescaled for node in facts.nodes):
        notes["*"] = "The output is FP32's times a factor for each channel, as smoothing and equalization make it. SQNR is without these."
    meta = ", ".join(f"{key} {value}" for key, value in facts.meta.items())
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in {**notes, "model": meta}.items())
    return f"<h2>How this was measured</h2>\n<dl>{rows}</dl>"


# -- what the script draws --------------------------------------------------------------------------------------------


def _data(facts: Inspection) -> dict[str, Any]:
    used = {tensor.format for node in facts.nodes for tensor in node.tensors}
    return {
        "perOctave": PER_OCTAVE,
        "formats": {name: [float(f"{value:.6g}") for value in grid(name)] for name in sorted(used)},
        "depth": [
            {"name": n.name, "output": _rounded(n.output_sqnr), "own": _rounded(n.own_sqnr), "quantized": bool(n.tensors)}
            for n in facts.nodes
            if n.output_sqnr is not None or n.own_sqnr is not None
        ],
        "details": {node.name: {"lines": list(_lines(node)), "tensors": [_picture(t) for t in node.tensors]} for node in facts.nodes},
    }


def _lines(node: NodeFacts) -> Iterator[str]:
    if node.origin and node.origin != node.name:
        yield f"{node.origin} in the model's source"
    if not node.tensors:
        yield "runs in float32"
    if node.noise_share is not None:
        yield f"{node.noise_share:.1%} of the noise added"
    if node.seconds is not None:
        yield f"{_time(node.seconds)} of the timed run"
    if node.rescaled:
        yield "its output has a factor for each channel that FP32's has not"


def _picture(tensor: TensorFacts) -> dict[str, Any]:
    lines = [f"{tensor.scaling}: {_scales(tensor)}"]
    measures = [("SQNR", tensor.sqnr, _db), ("saturated", tensor.saturated, _percent), ("to zero", tensor.flushed, _percent)]
    said = [f"{name} {shown(value)}" for name, value, shown in measures if value is not None]
    lines += [", ".join(said)] if said else []
    role = tensor.role if tensor.role == tensor.kind else f"{tensor.kind} {tensor.role}"
    title = f"{role} ({tensor.name}) in {tensor.format}"
    histogram = tensor.histogram
    if histogram is None or not histogram["shares"]:
        return {"title": title, "lines": lines, "format": tensor.format}
    # In thousandths of the largest: as fine as the picture, and short. Whatever is there stays visible.
    top = max(histogram["shares"])
    shares = [math.ceil(1000 * share / top) for share in histogram["shares"]]
    return {"title": title, "lines": lines, "format": tensor.format, "first": histogram["first"], "top": top, "shares": shares}


def _scales(tensor: TensorFacts) -> str:
    if tensor.scale_range is None:
        return "found at each run"
    low, high = tensor.scale_range
    count = "scale" if tensor.scales in (None, 1) else f"{tensor.scales:,} scales of"
    return f"{count} {low:.4g}" + (f" to {high:.4g}" if high > low else "")


# -- numbers ----------------------------------------------------------------------------------------------------------


def _rounded(value: float | None) -> float | str | None:
    return None if value is None else plain(round(value, 2) if math.isfinite(value) else value)


def _number(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f}"


def _db(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f} dB"


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.1f} %"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
