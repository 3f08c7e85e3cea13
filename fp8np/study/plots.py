"""Pictures of a study as SVG, with matplotlib: ``pip install 'fp8np[plot]'``. Text and lines take the colour of the page around them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fp8np.errors import MissingDependencyError
from fp8np.study.results import DONE, Results
from fp8np.study.spec import Entry
from fp8np.study.statistics import FAILS, PASSES, UNDECIDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["pictures"]

# Okabe and Ito's colours that stay apart for every kind of sight; each verdict has a shape too.
_MARKS = {PASSES: ("#0072B2", "o"), UNDECIDED: ("#CC79A7", "D"), FAILS: ("#D55E00", "X")}
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D00", "#56B4E9")
# Drawn in this colour, shown in that of the page's text.
_TEXT = "#010203"
_GREY = "#8A9199"


def pictures(results: Results) -> dict[str, str]:
    """Each picture by name, as the text of an SVG: "losses", "rates", and "samples" where a grid has numbers of samples.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("pictures need matplotlib: pip install 'fp8np[plot]'") from error
    made = {"losses": _losses(results), "rates": _rates(results), "samples": _samples(results)}
    return {name: _svg(figure) for name, figure in made.items() if figure is not None}


def _losses(results: Results) -> Figure | None:
    """Relative losses by recipe, a point for each workload, a panel for each domain: the paper's figure 4 for these workloads."""
    entries = [entry for entry in results.study.entries if results.rate(entry).count]
    domains = [d for d in results.domains if any(w.domain == d for w in results.measured)]
    if not entries or not domains:
        return None
    tolerances = {w.tolerance for w in results.measured}
    figure = _figure(2.2 + 2.9 * len(domains), 0.9 + 0.24 * len(entries))
    panels = figure.subplots(1, len(domains), sharex=True, sharey=True, squeeze=False)[0]
    for axes, domain in zip(panels, domains, strict=True):
        for place, entry in enumerate(entries):
            rows = [results.row(w, entry) for w in results.measured if w.domain == domain]
            rows = [row for row in rows if row.state == DONE and math.isfinite(row.loss)]
            losses = [100 * row.loss for row in rows]
            if len(losses) > 1:
                axes.plot([min(losses), max(losses)], [place, place], color=_GREY, linewidth=1, zorder=1)
            for row, loss in zip(rows, losses, strict=True):
                colour, shape = _MARKS[row.verdict]
                axes.plot(loss, place, marker=shape, color=colour, markersize=5, alpha=0.8, linestyle="", zorder=2)
        axes.set_title(domain, fontsize=9)
        axes.set_xscale("symlog", linthresh=1, linscale=1)
        axes.axvline(0, color=_GREY, linewidth=0.6)
        for tolerance in tolerances:
            axes.axvline(100 * tolerance, color=_TEXT, linewidth=0.8, linestyle="--")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(axis="x", color=_GREY, alpha=0.25, linewidth=0.5)
    _names(panels[0], entries)
    figure.supxlabel("relative loss, %   (circle: passes, diamond: undecided, cross: fails; dashed: tolerance)", fontsize=8, color=_TEXT)
    return figure


def _rates(results: Results) -> Figure | None:
    """Pass rates with their intervals."""
    entries = [entry for entry in results.study.entries if results.rate(entry).count]
    if not entries:
        return None
    figure = _figure(6.5, 0.8 + 0.24 * len(entries))
    axes = figure.subplots()
    for place, entry in enumerate(entries):
        rate = results.rate(entry)
        low, high = rate.interval
        colour = _LINES[1] if entry.name == results.study.baseline else _LINES[0]
        axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=1.5)
        axes.plot(100 * rate.share, place, marker="o", color=colour, markersize=6)
    axes.set_xlim(0, 102)
    axes.grid(axis="x", color=_GREY, alpha=0.25, linewidth=0.5)
    axes.set_xlabel("workloads that pass, % (95 % interval)", fontsize=8)
    _names(axes, entries)
    return figure


def _samples(results: Results) -> Figure | None:
    """Loss against the number of calibration samples: a panel for each workload, a line for all else of the grid, its width the seeds'."""
    gridded = [entry for entry in results.study.entries if entry.axes.get("samples") is not None]
    if not gridded or not results.measured:
        return None
    lines: dict[str, list[Entry]] = {}
    for entry in gridded:
        rest = [str(value) for key, value in entry.axes.items() if key not in ("samples", "seed")]
        lines.setdefault(" ".join([entry.name.partition("+")[0], *rest]), []).append(entry)
    figure = _figure(6.5, 2.6 * len(results.measured) + 0.5)
    panels = figure.subplots(len(results.measured), 1, sharex=True, squeeze=False)[:, 0]
    for axes, workload in zip(panels, results.measured, strict=True):
        for i, (label, entries) in enumerate(lines.items()):
            found: dict[int, list[float]] = {}
            for entry in entries:
                row = results.row(workload, entry)
                if row.state == DONE and math.isfinite(row.loss):
                    found.setdefault(entry.axes["samples"], []).append(100 * row.loss)
            counts = sorted(found)
            colour, dash = _LINES[i % len(_LINES)], ("-", "--", ":", "-.")[i // len(_LINES) % 4]
            axes.plot(counts, [sum(found[n]) / len(found[n]) for n in counts], dash, marker=".", color=colour, label=label, linewidth=1)
            axes.fill_between(
                counts, [min(found[n]) for n in counts], [max(found[n]) for n in counts], color=colour, alpha=0.12, linewidth=0
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.axhline(100 * workload.tolerance, color=_TEXT, linewidth=0.8, linestyle="--")
        axes.set_title(workload.title, fontsize=9)
        axes.set_ylabel("relative loss, %", fontsize=8)
    panels[-1].set_xlabel("calibration samples", fontsize=8)
    panels[0].legend(fontsize=7, frameon=False, labelcolor=_TEXT, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: it keeps figures, and may want a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _names(axes: Axes, entries: Sequence[Entry]) -> None:
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries], fontsize=8)
    axes.set_ylim(len(entries) - 0.5, -0.5)


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.patch.set_visible(False)
        axes.tick_params(colors=_TEXT, labelsize=8)
        axes.title.set_color(_TEXT)
        axes.xaxis.label.set_color(_TEXT)
        axes.yaxis.label.set_color(_TEXT)
        for name, spine in axes.spines.items():
            spine.set_color(_TEXT)
            spine.set_visible(name in ("left", "bottom"))
    out = io.StringIO()
    # The same text for the same study: no date, and no random names.
    with rc_context({"svg.hashsalt": "fp8np", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    # Inside of a page an SVG has neither a declaration nor a size of its own.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg\b[^>]*?) width="([\d.]+)pt"', r'\1 style="max-width: \2pt"', text, count=1).replace(_TEXT, "currentColor")
