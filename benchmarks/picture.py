"""A run as a picture: the products under the machine's roofs, and how far ahead of each peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fp8np.errors import InputError, MissingDependencyError
from fp8np_benchmarks.case import OURS
from fp8np_benchmarks.results import Row, Run

__all__ = ["check_target", "draw"]


def check_target(path: Path) -> None:
    """Whether `draw` can write such a file.

    Raises:
        MissingDependencyError: matplotlib is not installed. InputError: the suffix of the file is none that it knows.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise MissingDependencyError("drawing needs matplotlib: pip install 'fp8np[plot]'") from error
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise InputError(f"{path}: expected a file named .{', .'.join(known)}")


def draw(run: Run, path: Path) -> None:
    """Writes a roofline of the products, and bars of the ratios; the suffix of `path` says how.

    Raises:
        InputError: nothing was timed. And as `check_target`.
    """
    check_target(path)
    from matplotlib.figure import Figure

    timed = [row for row in run.rows if OURS in row.samples]
    if not timed:
        raise InputError("there is nothing to draw: no case was timed")
    products = [row for row in timed if row.unit == "flop" and row.traffic and row.threads == run.machine["threads"]]
    compared = [row for row in timed if row.peers]
    heights = [5.0] * bool(products) + [1 + 0.16 * sum(len(row.peers) + 1 for row in compared)] * bool(compared) or [1.0]
    figure = Figure(figsize=(9, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0].tolist()
    figure.suptitle(f"{run.machine['cpu']}, {run.machine['threads']} threads, tier {run.machine['tier']}")
    if products:
        _roofline(axes.pop(0), products, run)
    if compared:
        _bars(axes.pop(0), compared)
    figure.savefig(path, dpi=150)


def _roofline(axis: Any, rows: list[Row], run: Run) -> None:
    """Work for each byte moved against work done a second."""
    ahead = [row.work / row.traffic for row in rows]
    low, high = min(ahead) / 2, max(ahead) * 2
    ceilings = run.machine.get("ceilings", {})
    ending = f", {run.machine['threads']} thread{'s' * (run.machine['threads'] > 1)}"
    copies = [(name, rate) for name, rate in ceilings.items() if name.startswith("copy") and name.endswith(ending)]
    for name, rate in ceilings.items():
        if not name.startswith("copy") and name.endswith(ending):
            axis.plot([low, high], [rate / 1e9] * 2, color="black", lw=1)
            axis.annotate(name, (high, rate / 1e9), ha="right", va="bottom", fontsize=8)
    for name, rate in copies:
        axis.plot([low, high], [low * rate / 1e9, high * rate / 1e9], color="black", lw=1, ls="--", label=name)
    entries = dict.fromkeys(entry for row in rows for entry in (OURS, *row.peers))
    for index, entry in enumerate(entries):
        chosen = [(row.work / row.traffic, row.work / row.median(entry) / 1e9) for row in rows if entry in row.samples]
        axis.scatter(*zip(*chosen, strict=True), s=40 if entry == OURS else 14, color=f"C{index}", label=entry, zorder=3)
    top = max([row.work / row.median(OURS) / 1e9 for row in rows] + [r / 1e9 for n, r in ceilings.items() if not n.startswith("copy")])
    axis.set(xscale="log", yscale="log", xlabel="flop for each byte moved", ylabel="GFLOP/s", ylim=(None, top * 2))
    axis.legend(fontsize=8)


def _bars(axis: Any, rows: list[Row]) -> None:
    """A bar for each peer of each case, the case's name above them."""
    place, ticks, labels = 0, [], []
    for row in rows:
        where = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7, "weight": "bold"}
        axis.annotate(f"{row.name}, {row.threads} threads", (0.01, place), **where)
        for peer in row.peers:
            place += 1
            ratio = row.ratio(peer)
            axis.barh(place, ratio - 1, left=1, color="C0" if ratio >= 1 else "C3", height=0.8)
            ticks.append(place)
            labels.append(f"{peer} {ratio:.2f}")
        place += 1
    axis.axvline(1, color="black", lw=1)
    axis.set(xscale="log", xlabel="time of the peer / time of fp8np", yticks=ticks, ylim=(place, -1))
    axis.set_yticklabels(labels, fontsize=7)
