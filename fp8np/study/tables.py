"""The tables of a study, shaped like the paper's 2, 3, 5 and 6 (arXiv 2309.14592), as data and as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fp8np.ptq.recipe import Recipe
from fp8np.study.results import DONE, FAILED, MISSING, Rate, Results, Row, approach_of, family, formats_of, is_fp8
from fp8np.study.spec import FP32, Entry, Workload
from fp8np.study.statistics import FAILS, PASSES, UNDECIDED

__all__ = ["Field", "Table", "as_csv", "as_markdown", "tables"]


@dataclass(frozen=True)
class Field:
    """What stands in a table: text, and what it says of a tolerance ("passes", "fails", "undecided", "failed", or nothing)."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table: `name` for files, `title`, `note` on how to read it, heads, and rows of as many fields."""

    name: str
    title: str
    note: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Field, ...], ...]


def tables(results: Results) -> list[Table]:
    """Those that have something to show, in order."""
    made = (make(results) for make in (_rates, _accuracies, _single_or_mixed, _static_or_dynamic, _grid, _tiers, _cells, _failures))
    return [table for table in made if table.rows]


_LOSS = (
    "In brackets the relative loss in % against FP32 on the same samples. Bold: beyond the tolerance. "
    "?: the loss's 95 % interval contains the tolerance."
)


def _rates(results: Results) -> Table:
    domains = results.domains if len(results.domains) > 1 else ()
    rows = []
    for entry in results.study.entries:
        whole = results.rate(entry)
        if whole.count:
            low, high = whole.interval
            fields = [entry.name, formats_of(entry.recipe), approach_of(entry.recipe)]
            fields += [_rate(results.rate(entry, domain)) for domain in domains]
            rows.append(_fields(*fields, _rate(whole), f"{100 * low:.0f} to {100 * high:.0f}", str(whole.undecided)))
    missing = len(results.study.workloads) - len(results.measured)
    note = (
        "Share of workloads in % whose relative loss is within the tolerance, as the paper counts it, and of how many; 95 % interval "
        "of the rate (Wilson); undecided: those whose own interval contains the tolerance."
    )
    note += f" {missing} workloads are in no rate: FP32 did not run." if missing else ""
    heads = ("recipe", "formats", "approach", *domains, "all", "95 % interval", "undecided")
    return Table("rates", "Workloads that pass", note, heads, tuple(rows))


def _rate(rate: Rate) -> str:
    return f"{100 * rate.share:.2f} ({rate.passed}/{rate.count})" if rate.count else ""


def _accuracies(results: Results) -> Table:
    entries = list(_first_of_families(results))
    return _by_workload(results, "accuracies", "Accuracy by format", "Of each kind of formats its first recipe. ", entries)


def _first_of_families(results: Results) -> Iterator[Entry]:
    seen: set[str] = set()
    for entry in results.study.entries:
        kind = family(entry.recipe)
        if kind not in seen and not entry.axes:
            seen.add(kind)
            yield entry


def _single_or_mixed(results: Results) -> Table:
    entries = [e for e in _first_of_families(results) if is_fp8(e.recipe) and not e.recipe.candidates]
    if not any(family(entry.recipe) == "mixed" for entry in entries):
        entries = []
    note = "Mixed: weights and activations have different formats. "
    return _by_workload(results, "mixed", "One format or mixed ones", note, entries)


def _by_workload(results: Results, name: str, title: str, note: str, entries: Sequence[Entry]) -> Table:
    rows = []
    for workload in results.measured if entries else ():
        reference = results.row(workload, None)
        lead = (workload.title, _metric(workload), _number(reference.value))
        rows.append((*_fields(*lead), *(_value(results.row(workload, entry)) for entry in entries)))
    heads = ("workload", "metric", "FP32", *(entry.name for entry in entries))
    return Table(name, title, note + _LOSS, heads, tuple(rows))


def _static_or_dynamic(results: Results) -> Table:
    rows = []
    for static, dynamic in _pairs([entry for entry in results.study.entries if not entry.axes]):
        for workload in results.measured:
            one, two = results.row(workload, static), results.row(workload, dynamic)
            if one.state == two.state == DONE and one.value:
                sign = -1 if workload.lower_is_better else 1
                gain = f"{100 * sign * (two.value - one.value) / abs(one.value):+.2f}"
                rows.append((*_fields(workload.title, formats_of(static.recipe), static.name), _value(two), _value(one), Field(gain)))
    heads = ("workload", "formats", "recipe", "dynamic", "static", "gain of dynamic, %")
    return Table("approaches", "Static or dynamic", "Recipes that differ in nothing else. " + _LOSS, heads, tuple(rows))


def _pairs(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Recipes that differ in the approach alone, static and dynamic."""
    dynamic: dict[Recipe, Entry] = {}
    for entry in entries:
        if entry.recipe.approach == "dynamic":
            dynamic.setdefault(entry.recipe.replace(name="", approach="static", activation_granularity="tensor"), entry)
    for entry in entries:
        other = dynamic.get(entry.recipe.replace(name=""))
        if entry.recipe.approach == "static" and other is not None:
            yield entry, other


def _grid(results: Results) -> Table:
    """Seeds together: the mean of the losses, and from where to where they go."""
    points: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in results.study.entries:
        if entry.axes:
            base = entry.name.partition("+")[0]
            point = (("recipe", base), *((key, str(value)) for key, value in entry.axes.items() if key != "seed"))
            points.setdefault(point, []).append(entry)
    axes = tuple(dict.fromkeys(key for point in points for key, _ in point))
    rows = []
    for point, entries in points.items():
        known = dict(point)
        spreads = (_spread([results.row(workload, entry) for entry in entries], workload) for workload in results.measured)
        rows.append((*_fields(*(known.get(axis, "any") for axis in axes)), *spreads))
    note = "Relative loss in %: the mean over seeds, and the least and the largest. Bold: the mean is beyond the tolerance."
    return Table("grid", "Sensitivity", note, (*axes, *(w.title for w in results.measured)), tuple(rows))


def _spread(rows: Sequence[Row], workload: Workload) -> Field:
    losses = [row.loss for row in rows if row.state == DONE]
    if not losses:
        return Field(rows[0].state, FAILED if rows[0].state == FAILED else "")
    mean = sum(losses) / len(losses)
    text = _percent(mean) + (f" ({_percent(min(losses))} to {_percent(max(losses))})" if len(losses) > 1 else "")
    return Field(text, PASSES if mean <= workload.tolerance else FAILS)


def _tiers(results: Results) -> Table:
    tiers = results.study.tiers
    rows = []
    for workload in results.study.workloads if tiers != ("",) else ():
        for entry in (None, *results.study.entries):
            found = [results.row(workload, entry, tier) for tier in tiers]
            done = [row for row in found if row.state == DONE]
            if done:
                name = FP32 if entry is None else entry.name
                fields = [Field(f"{_number(row.value)} {row.record['sha256'][:8]}") if row in done else Field(row.state) for row in found]
                apart = results.apart.get((workload.name, name))
                said = (_alike(done, "sha256"), "" if apart is None else f"{apart:.1e}", _alike(done, "model_sha256"))
                rows.append((*_fields(workload.title, name), *fields, *_fields(*said)))
    note = (
        "The metric, and the first eight digits of the SHA-256 of all predictions, on each tier of kernels; how far predictions are "
        "from the first tier's at most, as part of its largest; and whether quantizing, done on each tier anew, gave the same model."
    )
    heads = ("workload", "recipe", *tiers, "bits", "apart", "model")
    return Table("tiers", "The same on every tier of kernels?", note, heads, tuple(rows))


def _alike(rows: Sequence[Row], key: str) -> str:
    count = len({row.record[key] for row in rows})
    return "" if len(rows) == 1 else f"same on all {len(rows)}" if count == 1 else f"{count} different on {len(rows)}"


def _cells(results: Results) -> Table:
    rows = []
    for workload in results.measured:
        for entry in (None, *results.study.entries):
            row = results.row(workload, entry)
            if row.state == DONE:
                rows.append(_cell(row))
    figures = ("value", "loss, %", "95 % interval", "passes", "shown", "units", "size, MB", "ms a sample", "of FP32's time")
    heads = ("workload", "domain", "recipe", "metric", *figures, "quantized in, s", "layers", "warnings")
    note = (
        "passes: the loss is within the tolerance. shown: what the samples show, by the paired bootstrap. Times are medians on the "
        "first batch, FP32 and the recipe in turn in one process."
    )
    return Table("cells", "Every cell", note, heads, tuple(rows))


def _cell(row: Row) -> tuple[Field, ...]:
    record, workload = row.record, row.workload
    lead = (workload.title, workload.domain, "fp32" if row.entry is None else row.entry.name, _metric(workload), _number(row.value))
    size = f"{record['bytes'] / 1e6:.2f}"
    if row.entry is None:
        return _fields(*lead, "", "", "", "", str(record["units"]), size, "", "", "", "", "")
    interval = "" if row.interval is None else f"{_percent(row.interval.low)} to {_percent(row.interval.high)}"
    passed = Field("yes", PASSES) if row.passed else Field("no", FAILS)
    return (
        *_fields(*lead, _percent(row.loss), interval),
        passed,
        Field(row.verdict, row.verdict),
        *_fields(str(record["units"]), size, f"{record['ms']:.3g}", f"{record['time']:.2f}", f"{record['seconds']['quantize']:.1f}"),
        *_fields(f"{record['quantized']} of {record['layers']}", "; ".join(record["warnings"])),
    )


def _failures(results: Results) -> Table:
    rows = []
    for row in (*results.references, *results.rows):
        if row.state == FAILED:
            name = "fp32, so every recipe" if row.entry is None else row.entry.name
            rows.append((*_fields(row.workload.title, name + (f" on {row.tier}" if row.tier else "")), Field(row.reason, FAILED)))
    return Table("failures", "What failed", "A cell that failed has not passed.", ("workload", "recipe", "reason"), tuple(rows))


def _value(row: Row) -> Field:
    if row.state != DONE:
        return Field("" if row.state == MISSING else row.state, FAILED if row.state == FAILED else "")
    text = f"{_number(row.value)} ({_percent(row.loss)})"
    if row.verdict == UNDECIDED:
        return Field(text, UNDECIDED if row.passed else f"{FAILS} {UNDECIDED}")
    return Field(text, PASSES if row.passed else FAILS)


def _metric(workload: Workload) -> str:
    return workload.metric.rpartition(":")[2] + (", less is better" if workload.lower_is_better else "")


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _fields(*texts: str) -> tuple[Field, ...]:
    return tuple(Field(text) for text in texts)


_MARKS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        FAILS: lambda text: f"**{text}**",
        UNDECIDED: lambda text: f"{text} ?",
        f"{FAILS} {UNDECIDED}": lambda text: f"**{text}** ?",
        FAILED: lambda text: f"*{text}*",
    }
)


def as_markdown(results: Results) -> str:
    """All tables, with the study's title and headline."""
    study = results.study
    done, failed, missing = results.counts
    parts = [f"# {study.title}", "", *(f"- {line}" for line in results.headline())]
    parts += [f"- {done} cells done, {failed} failed, {missing} not run; bootstrap of {study.resamples} resamples, seed {study.seed}"]
    for table in tables(results):
        parts += ["", f"## {table.title}", "", table.note, "", _line(table.heads), _line("---" for _ in table.heads)]
        # What shows has a column of its own in the table of cells: bold and question marks would say it twice.
        marks = {} if table.name == "cells" else _MARKS
        parts += [_line(marks.get(field.kind, str)(_safe(field.text)) if field.text else "" for field in row) for row in table.rows]
    return "\n".join(parts) + "\n"


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def as_csv(table: Table) -> str:
    """A table, fields as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.heads)
    writer.writerows([field.text for field in row] for row in table.rows)
    return out.getvalue()
