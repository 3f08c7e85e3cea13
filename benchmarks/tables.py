"""A run in words: tables for a terminal, and README's in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fp8np_benchmarks.case import OURS, is_ours
from fp8np_benchmarks.results import Comparison, Row, Run

__all__ = ["comparison_table", "machine_table", "markdown", "run_table"]

_RATES = {"flop": (1e9, "GFLOP/s"), "byte": (1e9, "GB/s")}


def run_table(run: Run) -> Group:
    """The machine, a table for each suite, and what went wrong or is missing."""
    parts: list[RenderableType] = [machine_table(run.machine)]
    for suite in dict.fromkeys(row.suite for row in run.rows):
        parts += [Text(), _suite_table(suite, [row for row in run.rows if row.suite == suite])]
    remarks = [*_remarks(run)]
    if remarks:
        parts += [Text(), Text("\n".join(remarks))]
    return Group(*parts, Text(), Text(_summary(run)))


def machine_table(machine: Mapping[str, Any]) -> Table:
    """The facts about a machine, and its ceilings where they were measured."""
    table = _table(None)
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column()
    ready = {**machine, "tier": f"{machine['tier']}: {machine['why']}"}
    has = [name for name, there in machine["features"].items() if there]
    hasnt = [name for name, there in machine["features"].items() if not there]
    ready["features"] = " ".join(has) + (f"; not {' '.join(hasnt)}" if hasnt else "")
    ready["versions"] = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    ready["ceilings"] = "; ".join(f"{name} {_ceiling(name, rate)}" for name, rate in machine.get("ceilings", {}).items())
    for name, value in ready.items():
        if name != "why" and value != "":
            table.add_row(name, str(value))
    return table


def _ceiling(name: str, rate: float) -> str:
    return f"{rate / 1e9:,.0f} {'GB/s' if name.startswith('copy') else 'GFLOP/s'}"


def _suite_table(suite: str, rows: list[Row]) -> Table:
    table = _table(suite)
    for title in ("case", "threads", "", "median", "half of the rounds", "", "of the ceiling", "of fp8np's time"):
        table.add_column(title, justify="left" if title == "case" else "right", no_wrap=True)
    table.columns[2].justify = "left"
    for row in rows:
        lead = (row.name, str(row.threads))
        for entry in row.samples:
            low, high = row.spread(entry)
            unit = _scale(row.median(entry), row.measured)
            spread = f"{_number(low * unit[0])} .. {_number(high * unit[0])} {unit[1]}"
            ahead = "" if entry == OURS else f"{row.ratio(entry):.2f} x"
            table.add_row(*lead, entry, _quantity(row.median(entry), row.measured), spread, _rate(row, entry), _share(row, entry), ahead)
            lead = ("", "")
        for entry in row.failed:
            table.add_row(*lead, entry, "WRONG", style="bold red")
            lead = ("", "")
        if row.skipped:
            table.add_row(*lead, "skipped")
    return table


def _remarks(run: Run) -> Iterator[str]:
    for row in run.rows:
        for entry, why in row.failed.items():
            yield f"WRONG  {row.name}: {entry}: {why}"
    for row in run.rows:
        if row.skipped:
            yield f"skipped  {row.name}: {row.skipped}"
    missing: dict[tuple[str, str], list[str]] = {}
    for row in run.rows:
        for entry, why in row.absent.items():
            missing.setdefault((entry, why), []).append(row.suite)
    for (entry, why), suites in missing.items():
        yield f"left out  {entry} ({', '.join(dict.fromkeys(suites))}): {why}"


def _summary(run: Run) -> str:
    checked = sum(len(row.checked) for row in run.rows)
    wrong = sum(len(row.failed) for row in run.rows)
    said = f"{len(run.rows)} of {run.planned} cases, {checked + wrong} results checked before they were timed: "
    return said + (f"{wrong} wrong" if wrong else "all right")


def comparison_table(found: Comparison) -> Group:
    """The ratios of two runs side by side, and what became worse."""
    table = _table(None)
    for title in ("case", "against", "before", "now", ""):
        table.add_column(title, justify="left" if title in ("case", "against") else "right", no_wrap=True)
    for name, peer, was, now in found.ratios:
        table.add_row(name, peer, f"{was:.2f} x", f"{now:.2f} x", f"{100 * (now / was - 1):+.0f} %")
    lines = [f"remark  {remark}" for remark in found.remarks] + [f"WORSE  {worse}" for worse in found.regressions]
    lines.append(f"{len(found.ratios)} ratios compared: {len(found.regressions) or 'nothing'} worse")
    return Group(table, Text(), Text("\n".join(lines)))


def markdown(run: Run) -> str:
    """README's tables."""
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != OURS)
    lines = [f"{machine['cpu']}, {machine['usable cores']} cores, kernels of tier `{machine['tier']}`; {versions}."]
    for suite in dict.fromkeys(row.suite for row in run.rows):
        rows = [row for row in run.rows if row.suite == suite and OURS in row.samples]
        if not rows:
            continue
        lines += ["", f"| {suite} | threads | fp8np | | peers: time, as a multiple of ours |", "|---|---|---|---|---|"]
        for row in rows:
            ours = ", ".join(part for part in (_quantity(row.median(OURS), row.measured), _rate(row, OURS)) if part)
            peers = ", ".join(f"{entry} {row.ratio(entry):.2f}" for entry in row.samples if entry != OURS)
            lines.append(f"| {row.name} | {row.threads} | {ours} | {_share(row, OURS)} | {peers} |")
    return "\n".join(lines)


def _table(title: str | None) -> Table:
    return Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold")


def _scale(value: float, measured: str) -> tuple[float, str]:
    if measured == "bytes":
        return 1e-6, "MB"
    return (1.0, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _quantity(value: float, measured: str) -> str:
    factor, unit = _scale(value, measured)
    return f"{_number(value * factor)} {unit}"


def _rate(row: Row, entry: str) -> str:
    rate = row.rate(entry)
    if rate is None:
        return ""
    factor, unit = _RATES.get(row.unit, (1.0, f"{row.unit}/s"))
    return f"{_number(rate / factor)} {unit}"


def _share(row: Row, entry: str) -> str:
    share = row.share(entry)
    return "" if share is None or row.ceiling is None or not is_ours(entry) else f"{100 * share:.0f} % of {row.ceiling[0]}"
