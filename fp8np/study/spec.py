"""A study as plain data: what `fp8np.study.reading` makes of a file, and what processes are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp8np.ptq.recipe import Recipe
from fp8np.ptq.recipe_file import recipe_from_table, recipe_table

__all__ = ["FP32", "Cell", "Entry", "Study", "Workload"]

FP32 = "fp32"
"""What stands beside every recipe, and so is no name of one."""


@dataclass(frozen=True)
class Workload:
    """A trained model, data, and a metric.

    Attributes:
        name: unique, and fit for a file name.
        title, domain: for tables.
        source, module, key, example_inputs, pooling, dynamic_axes: as `fp8np convert` takes them; or `source` is an artifact.
        data, calibration, recalibration: what `fp8np.data.load_batches` takes; the last is None where it is the calibration's.
        output: which output counts, where there are several.
        units: function of all outputs and all labels, a list each, that gives predictions and targets (n, ...).
        metric: name in METRICS, or function.
        lower_is_better: for error rates.
        tolerance: the relative loss that passes.
        samples: of calibration; None: as the recipe has it.
        places: where it and its keys are written; "" is the whole.
        folder: where relative paths start: that of the file.

    Paths are as they are written: `{name}` stands for a folder.
    """

    name: str
    title: str
    domain: str
    source: str
    data: str
    metric: str
    calibration: str | None = None
    recalibration: str | None = None
    module: str | None = None
    key: str | None = None
    example_inputs: str | None = None
    pooling: str | None = None
    dynamic_axes: tuple[str, ...] | None = None
    output: str | None = None
    units: str | None = None
    lower_is_better: bool = False
    tolerance: float = 0.01
    samples: int | None = None
    places: Mapping[str, str] = field(default_factory=dict, compare=False)
    folder: str = field(default="", compare=False)

    def place(self, key: str = "") -> str:
        """Where a key is written, "paper.toml:31"; where it is not, the workload."""
        return self.places.get(key) or self.places.get("", f"workload {self.name!r}")


@dataclass(frozen=True)
class Entry:
    """A recipe of a study.

    Attributes:
        name: unique, and fit for a file name.
        recipe: what it stands for.
        samples: how many calibration samples, chosen exactly; None: the first ones in whole batches, as many as the workload or
            the recipe says.
        seed: they are drawn at random by it; None: the first.
        axes: where it is in the study's grid.
    """

    name: str
    recipe: Recipe
    samples: int | None = None
    seed: int | None = None
    axes: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def as_table(self) -> dict[str, Any]:
        """As plain data, which `from_table` reads back."""
        return {"name": self.name, "recipe": recipe_table(self.recipe), "samples": self.samples, "seed": self.seed, "axes": dict(self.axes)}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Entry:
        """What `as_table` gave."""
        recipe = recipe_from_table(table["recipe"], lambda *_: f"recipe {table['name']!r}")
        return cls(table["name"], recipe, table["samples"], table["seed"], table["axes"])


@dataclass(frozen=True)
class Cell:
    """One workload under one recipe (None: in FP32) on one tier of kernels ("": the highest that the CPU has)."""

    workload: str
    entry: Entry | None
    tier: str = ""

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return FP32 if self.entry is None else self.entry.name

    def __str__(self) -> str:
        return f"{self.workload} {self.recipe}" + (f" on {self.tier}" if self.tier else "")


@dataclass(frozen=True)
class Study:
    """What a file of a study says.

    Attributes:
        origin: the file's name.
        title: of the study.
        seed, resamples: of the bootstrap.
        baseline: the recipe whose pass rate stands beside the others'; None: none.
        folders: where `{name}` is.
        workloads, entries: in the order of the file; a grid is multiplied out.
        tiers: of kernels; ("",): the highest only.
    """

    origin: str
    title: str
    seed: int
    resamples: int
    baseline: str | None
    folders: Mapping[str, Path]
    workloads: tuple[Workload, ...]
    entries: tuple[Entry, ...]
    tiers: tuple[str, ...] = ("",)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every workload under every recipe on every tier, FP32 apart."""
        return tuple(Cell(w.name, entry, tier) for w in self.workloads for tier in self.tiers for entry in self.entries)
