"""What a study came to: every cell with its verdict, and what the cells have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fp8np._files import replacing
from fp8np.formats import FloatFormat
from fp8np.metrics import plain
from fp8np.ptq.recipe import Format, Recipe
from fp8np.ptq.recipe_file import recipe_table
from fp8np.study.keys import Keys
from fp8np.study.spec import FP32, Cell, Entry, Study, Workload
from fp8np.study.statistics import CONFIDENCE, Interval, passes, verdict, wilson
from fp8np.study.store import Store

__all__ = ["Rate", "Results", "Row", "approach_of", "family", "formats_of", "is_fp8", "read_results", "write_json"]

DONE, FAILED, MISSING = "done", "failed", "not run"


@dataclass(frozen=True)
class Row:
    """A cell and what is known of it.

    Attributes:
        workload, entry, tier: which one; `entry` is None for FP32.
        state: "done", "failed" or "not run".
        reason: why it is not done.
        record: see `fp8np.study.cell`; empty where it is not done.
    """

    workload: Workload
    entry: Entry | None
    tier: str
    state: str
    reason: str
    record: Mapping[str, Any]

    @property
    def value(self) -> float:
        """The metric."""
        return float(self.record["value"])

    @property
    def loss(self) -> float:
        """Relative to FP32."""
        return float(self.record["loss"])

    @property
    def interval(self) -> Interval | None:
        """Of the loss."""
        if self.record["low"] is None:
            return None
        return Interval(float(self.record["low"]), float(self.record["high"]), self.record["usable"])

    @property
    def passed(self) -> bool:
        """Whether the loss is within the tolerance, as the paper counts it; a cell that failed has not passed."""
        return self.state == DONE and passes(self.loss, self.workload.tolerance)

    @property
    def verdict(self) -> str:
        """What the samples show; the state of a cell that is not done."""
        return verdict(self.interval, self.workload.tolerance) if self.state == DONE else self.state


@dataclass(frozen=True)
class Rate:
    """How many of how many workloads passed, of which some are undecided; and 95 % of the rate."""

    passed: int
    count: int
    undecided: int

    @property
    def share(self) -> float:
        """The rate, 0 to 1; 0 of none."""
        return self.passed / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's."""
        return wilson(self.passed, self.count)


class Results:
    """All rows of a study, in its order.

    Attributes:
        study: what was run.
        references: FP32, a row for each workload and tier.
        rows: the cells.
        apart: by workload and recipe, how far predictions of different tiers are from each other at most, as part of the largest
            prediction; of what was run on several.
    """

    def __init__(
        self, study: Study, references: Sequence[Row], rows: Sequence[Row], apart: Mapping[tuple[str, str], float] | None = None
    ) -> None:
        self.study = study
        self.apart = apart or {}
        self.references = tuple(references)
        self.rows = tuple(rows)
        self._of = {(row.workload.name, row.entry and row.entry.name, row.tier): row for row in (*references, *rows)}

    def row(self, workload: Workload, entry: Entry | None, tier: str | None = None) -> Row:
        """One of them; without a tier, of the first that was run."""
        tiers = self.study.tiers if tier is None else (tier,)
        found = [self._of[workload.name, entry and entry.name, name] for name in tiers]
        return next((row for row in found if row.state == DONE), found[0])

    @cached_property
    def measured(self) -> tuple[Workload, ...]:
        """Workloads whose FP32 was run: the others have no part in any rate."""
        return tuple(w for w in self.study.workloads if self.row(w, None).state == DONE)

    @property
    def domains(self) -> tuple[str, ...]:
        """In the order in which they first appear."""
        return tuple(dict.fromkeys(w.domain for w in self.study.workloads))

    def rate(self, entry: Entry, domain: str | None = None) -> Rate:
        """How many workloads pass under a recipe; cells that were not run do not count."""
        rows = [self.row(w, entry) for w in self.measured if domain in (None, w.domain)]
        rows = [row for row in rows if row.state != MISSING]
        return Rate(sum(row.passed for row in rows), len(rows), sum(row.verdict == "undecided" for row in rows))

    @property
    def best_fixed(self) -> Entry | None:
        """The recipe of FP8 weights and activations, all chosen beforehand, that most workloads pass under; the first of several."""
        fixed = [entry for entry in self.study.entries if is_fp8(entry.recipe) and not entry.recipe.candidates]
        return max(fixed, key=lambda entry: self.rate(entry).share, default=None)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Cells done, failed, and not run."""
        states = [row.state for row in self.rows]
        return states.count(DONE), states.count(FAILED), states.count(MISSING)

    def headline(self) -> list[str]:
        """What is asked first, a line each: the best fixed FP8 recipe, those that choose formats, and the baseline."""
        study = self.study
        named = [("best fixed FP8 recipe", self.best_fixed)]
        named += [("formats chosen for each tensor", entry) for entry in study.entries if entry.recipe.candidates]
        named += [("baseline", entry) for entry in study.entries if entry.name == study.baseline]
        lines = []
        for what, entry in named:
            rate = None if entry is None else self.rate(entry)
            if entry is not None and rate is not None and rate.count:
                low, high = rate.interval
                said = f"{rate.passed} of {rate.count} workloads pass ({rate.share:.1%}; 95 % interval {low:.0%} to {high:.0%})"
                lines.append(f"{what}, {entry.name}: {said}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        study = self.study
        return {
            "title": study.title,
            "study": study.origin,
            "confidence": CONFIDENCE,
            "resamples": study.resamples,
            "seed": study.seed,
            "baseline": study.baseline,
            "headline": self.headline(),
            "workloads": [
                {
                    **{name: getattr(w, name) for name in ("name", "title", "domain", "metric", "lower_is_better", "tolerance")},
                    "fp32": [_plain(self.row(w, None, tier)) for tier in study.tiers],
                }
                for w in study.workloads
            ],
            "recipes": [
                {
                    "name": entry.name,
                    "formats": formats_of(entry.recipe),
                    "approach": approach_of(entry.recipe),
                    "samples": entry.samples,
                    "seed": entry.seed,
                    "axes": dict(entry.axes),
                    "recipe": recipe_table(entry.recipe),
                    "rates": {domain: _rate(self.rate(entry, None if domain == "all" else domain)) for domain in (*self.domains, "all")},
                }
                for entry in study.entries
            ],
            "cells": [_plain(row) for row in self.rows],
            "apart": [{"workload": w, "recipe": r, "apart": plain(distance)} for (w, r), distance in self.apart.items()],
        }


def _plain(row: Row) -> dict[str, Any]:
    facts = {"workload": row.workload.name, "recipe": row.entry and row.entry.name, "tier": row.tier, "state": row.state}
    if row.state != DONE:
        return {**facts, "reason": row.reason}
    said = {} if row.entry is None else {"passed": row.passed, "verdict": row.verdict}
    return {**row.record, **facts, **said}


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    return {"passed": rate.passed, "of": rate.count, "undecided": rate.undecided, "rate": plain(rate.share), "low": low, "high": high}


def read_results(study: Study, directory: Path) -> Results:
    """What is in the folder of a study. What it holds of other recipes, or made by another fp8np, counts as not run."""
    store, keys = Store(directory), Keys(study)
    tiers = study.tiers
    cells: Iterable[Cell] = (Cell(w.name, None, tier) for w in study.workloads for tier in tiers)
    workloads = {w.name: w for w in study.workloads}

    def row(cell: Cell) -> Row:
        known = store.read(cell)
        workload = workloads[cell.workload]
        if known is None or known.get("key", "").partition("-")[0] != keys.written(cell):
            return Row(workload, cell.entry, cell.tier, MISSING, "", {})
        if known["status"] != DONE:
            return Row(workload, cell.entry, cell.tier, FAILED, known["reason"], {})
        return Row(workload, cell.entry, cell.tier, DONE, "", known)

    references = [row(cell) for cell in cells]
    return Results(study, references, [row(cell) for cell in study.cells], dict(_apart(study, store)))


def _apart(study: Study, store: Store) -> Iterator[tuple[tuple[str, str], float]]:
    for workload in study.workloads if len(study.tiers) > 1 else ():
        for entry in (None, *study.entries):
            first: Any = None
            distances = []
            for cell in (Cell(workload.name, entry, tier) for tier in study.tiers):
                found = store.predictions(cell, store.read(cell) or {})
                if found is not None:
                    predictions = np.asarray(found[0], np.float64)
                    first = predictions if first is None else first
                    distances.append(float(np.abs(predictions - first).max() / max(np.abs(first).max(), np.finfo(np.float64).tiny)))
            if len(distances) > 1:
                yield (workload.name, FP32 if entry is None else entry.name), max(distances)


def write_json(results: Results, path: Path) -> None:
    """Writes `Results.as_dict`.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results.as_dict(), indent=1) + "\n", encoding="utf-8")


def is_fp8(recipe: Recipe) -> bool:
    """Whether weights and activations are FP8."""
    return isinstance(recipe.weights, FloatFormat) and isinstance(recipe.activations, FloatFormat)


def formats_of(recipe: Recipe) -> str:
    """Formats of weights and activations in words.

    >>> from fp8np.ptq.recipe import get_recipe
    >>> [formats_of(get_recipe(name)) for name in ("e4m3", "mixed", "w8", "int8")]
    ['E4M3', 'E3M4 weights, E4M3 activations', 'E3M4 weights', 'INT8']
    """
    if recipe.candidates:
        return "chosen for each tensor"
    weights, activations = _short(recipe.weights), _short(recipe.activations)
    if weights == activations:
        return weights
    return f"{weights} weights" + (f", {activations} activations" if recipe.activations is not None else "")


def family(recipe: Recipe) -> str:
    """What kind of formats a recipe has: one, "mixed", "weights only", or "auto".

    >>> from fp8np.ptq.recipe import get_recipe
    >>> [family(get_recipe(name)) for name in ("e4m3", "mixed", "w8", "auto")]
    ['E4M3', 'mixed', 'weights only', 'auto']
    """
    if recipe.candidates:
        return "auto"
    if recipe.activations is None:
        return "weights only"
    weights, activations = _short(recipe.weights), _short(recipe.activations)
    return weights if weights == activations else "mixed"


def approach_of(recipe: Recipe) -> str:
    """Where the scales of activations come from, in words."""
    if recipe.activations is None:
        return ""
    return "static in CNNs, else dynamic" if recipe.approach == "auto" else recipe.approach


def _short(fmt: Format | None) -> str:
    if isinstance(fmt, FloatFormat):
        return f"E{fmt.exponent_bits}M{fmt.mantissa_bits}"
    return "FP32" if fmt is None else fmt.name.upper()
