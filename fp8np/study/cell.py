"""What is done for one workload, in a process of its own: converting it, running it in FP32, and each of its cells.

A record says of a cell, as JSON: ``workload``, ``recipe``, ``tier``, ``key``, ``status`` ("done" or "failed"), ``reason``, ``machine``; of
one that is done

| key | meaning |
|---|---|
| ``value`` | the metric on all units |
| ``loss``, ``low``, ``high``, ``usable`` | relative loss against FP32, its 95 % interval and from how many resamples; not of FP32 itself |
| ``measure`` | a key of what these figures were made with |
| ``units``, ``samples`` | how many units the metric is of, how many samples the model ran on |
| ``sha256``, ``targets_sha256``, ``data_sha256`` | of predictions and targets (`fp8np.study.store.digest`), and of inputs and labels |
| ``bytes``, ``model_sha256`` | size and SHA-256 of the model as a file |
| ``ms``, ``ms_fp32``, ``time`` | median time of a sample, FP32's beside it in the same process, and the one as part of the other |
| ``seconds`` | of the whole cell, of quantizing without making the calibration data, and of making these |
| ``quantized``, ``layers`` | how many layers are quantized, of how many that could be |
| ``warnings`` | what quantizing warned of |
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import statistics
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import fp8np
from fp8np._sizes import dynamic_axes
from fp8np.artifact import load_graph, save
from fp8np.data import Batch, Progress, imported, is_factory, load_batches, user_code
from fp8np.errors import Fp8npError, InputError
from fp8np.evaluate import chosen_output, metric_function
from fp8np.graph import Graph
from fp8np.metrics import plain
from fp8np.model import Model, load
from fp8np.ptq.workflow import quantize_model
from fp8np.study.calibration import Kept, drawn
from fp8np.study.keys import measure_key, place_of
from fp8np.study.spec import FP32, Cell, Entry, Workload
from fp8np.study.statistics import distribution, loss_interval, relative_loss
from fp8np.study.store import Store, digest

__all__ = ["Settings", "Workbench", "machine_facts", "reason_of"]

Record = dict[str, Any]

# Rounds of FP32 and the recipe in turn: as many as fit into the seconds, within these limits; a single one of a slow model.
_ROUNDS = (3, 9)
_SECONDS = 1.0
_SLOW = 5.0


@dataclass(frozen=True)
class Settings:
    """What holds for all cells of a run.

    Attributes:
        folders: of the study.
        seed, resamples: of the bootstrap.
        converter: ``pkg.mod:function`` that reads a source as `fp8np convert` does.
        keep: whether quantized models stay.
        machine: facts that records carry.
    """

    folders: Mapping[str, Path]
    seed: int
    resamples: int
    converter: str
    keep: bool
    machine: Mapping[str, Any]


class Workbench:
    """A workload on one tier, with what its cells share.

    Args:
        workload: what is run.
        store: where results go.
        settings: of the run.
        told: see `fp8np.data.Progress`.
    """

    def __init__(self, workload: Workload, store: Store, settings: Settings, told: Progress) -> None:
        self.workload = workload
        self.store = store
        self.settings = settings
        self.told = told
        self._distributions: dict[str, Any] = {}

    def convert(self, key: str) -> None:
        """Writes the workload's model in FP32.

        Raises:
            Fp8npError: the source cannot be read or converted.
        """
        workload = self.workload
        self.told("converting", 0, None)
        with self._naming("source"):
            graph = self._converted()
        save(graph, self.store.model(workload.name))
        self.store.mark_converted(workload.name, key)

    def _converted(self) -> Graph:
        workload = self.workload
        source = self._place("source") or ""
        if workload.module is None and source.endswith(".safetensors") and not is_factory(source):
            return load_graph(source)
        examples = self._place("example_inputs")
        graph: Graph = imported(self.settings.converter)(
            source,
            module=workload.module,
            key=workload.key,
            example_inputs=None if examples is None else Path(examples),
            dynamic=dynamic_axes(workload.dynamic_axes or ()),
            pooling=workload.pooling,
            folders=self.settings.folders,
        )
        return graph

    def record(self, cell: Cell, key: str) -> Record:
        """Carries a cell out, or only measures anew what it predicted before, and keeps its record. Whatever fails is in the record."""
        start = time.perf_counter()
        facts: Record = {"workload": cell.workload, "recipe": cell.recipe, "tier": cell.tier, "key": key}
        try:
            known, found = self.store.read(cell), None
            beside = {} if cell.entry is None else self.store.read(Cell(cell.workload, None, cell.tier)) or {}
            measure = measure_key(self.workload, self.settings.seed, self.settings.resamples, beside.get("sha256", ""))
            if known is not None and known["key"] == key and known["status"] == "done":
                found = self.store.predictions(cell, known)
                if found is not None and known["measure"] == measure:
                    return known
            if known is None or found is None:
                fresh, found = self._run(cell)
                known = {**facts, **fresh, "machine": dict(self.settings.machine)}
                known["seconds"]["all"] = time.perf_counter() - start
            record = {**known, "status": "done", "reason": "", "measure": measure, **self._measured(cell, *found)}
        except Exception as error:
            record = {**facts, "status": "failed", "reason": reason_of(error), "machine": dict(self.settings.machine)}
        self.store.write(cell, record)
        return record

    def _run(self, cell: Cell) -> tuple[Record, tuple[Any, Any]]:
        if cell.entry is None:
            record: Record = {**_file_facts(self.store.model(cell.workload)), "seconds": {}, "warnings": []}
            predictions, targets = self._outcome(self._reference)
            shared = False
        else:
            beside = self.store.read(Cell(cell.workload, None, cell.tier)) or {}
            path = self.store.quantized(cell, keep=self.settings.keep)
            try:
                record = self._quantized(cell.entry, path)
                model = load(path)
                predictions, targets = self._outcome(model)
                record |= self._timed(model)
            finally:
                if not self.settings.keep:
                    path.unlink(missing_ok=True)
            if self._data.digest != beside["data_sha256"] or len(predictions) != beside["units"]:
                raise InputError(
                    f"{self._data.origin}: gives other data than it gave FP32, so that nothing can be compared; use fixed seeds"
                )
            shared = digest(targets) == beside["targets_sha256"]
        record |= {
            "units": len(predictions),
            "samples": sum(batch.samples for batch in self._data),
            "sha256": digest(predictions),
            "targets_sha256": digest(targets),
            "data_sha256": self._data.digest,
        }
        self.store.write_predictions(cell, predictions, None if shared else targets)
        return record, (predictions, targets)

    def _quantized(self, entry: Entry, path: Path) -> Record:
        samples = self.workload.samples if entry.samples is None else entry.samples
        calibration = None
        if self._calibration is not None:
            with self._naming("calibration"):
                self._calibration.load()
            if entry.samples is None and entry.seed is None:
                calibration = self._calibration.batches()
            else:
                calibration = drawn(self._calibration, self._graph.inputs, samples or entry.recipe.samples, entry.seed)
        recalibration = {} if self._recalibration is None else {"recalibration": self._recalibration.batches()}
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = quantize_model(
                self._graph, entry.recipe, calibration, samples=samples, report_batches=0, progress=self.told, **recalibration
            )
        seconds = time.perf_counter() - start
        save(result.graph, path)
        return {
            **_file_facts(path),
            "quantized": result.report.quantized,
            "layers": len(result.report.layers),
            "warnings": list(dict.fromkeys(str(warning.message) for warning in caught)),
            "seconds": {"quantize": seconds, "calibration_data": 0.0 if self._calibration is None else self._calibration.seconds},
        }

    def _outcome(self, model: Model) -> tuple[Any, Any]:
        outputs, labels = [], []
        with self._naming("data"):
            for i, batch in enumerate(self._data):
                if batch.label is None:
                    raise InputError(f"{self._data.origin}: batch {i} has no labels; give (inputs, labels), or an array 'labels'")
                outputs.append(chosen_output(model.run(batch.inputs), self.workload.output))
                labels.append(batch.label)
                self.told("evaluating", i + 1, self._data.count)
        with self._naming("units" if self.workload.units else "data"):
            return _units(self.workload.units, outputs, labels)

    def _measured(self, cell: Cell, predictions: Any, targets: Any) -> Record:
        workload = self.workload
        value = self._value(cell.recipe, predictions, targets)
        if cell.entry is None:
            return {"value": value}
        beside = Cell(cell.workload, None, cell.tier)
        known = self.store.read(beside) or {}
        self.told("resampling", 0, None)
        reference = self._reference_distribution(beside, known)
        loss = relative_loss(known["value"], value, lower_is_better=workload.lower_is_better)
        values = self._distribution(predictions, targets)
        interval = loss_interval(reference, values, loss, lower_is_better=workload.lower_is_better)
        figures: Record = {"value": value, "loss": plain(loss), "low": None, "high": None, "usable": 0}
        if interval is not None:
            figures |= {"low": plain(interval.low), "high": plain(interval.high), "usable": interval.usable}
        return figures

    def _value(self, recipe: str, predictions: Any, targets: Any) -> float:
        with self._naming("metric"):
            value = float(metric_function(self.workload.metric)(predictions, targets))
        if not math.isfinite(value):
            spoiled = int(np.sum(~np.isfinite(predictions))) if predictions.dtype.kind == "f" else 0
            said = f"; {spoiled:,} of {predictions.size:,} predictions are not finite" if spoiled else ""
            raise InputError(f"{self.workload.place('metric')}: metric {self.workload.metric} of {recipe} is {value}{said}")
        return value

    def _reference_distribution(self, cell: Cell, known: Mapping[str, Any]) -> Any:
        if known["sha256"] not in self._distributions:
            found = self.store.predictions(cell, known)
            if found is None:
                raise InputError(f"{cell}: its predictions are gone or damaged; run the study again")
            self._distributions = {known["sha256"]: self._distribution(*found)}
        return self._distributions[known["sha256"]]

    def _distribution(self, predictions: Any, targets: Any) -> Any:
        settings = self.settings
        return distribution(self.workload.metric, predictions, targets, resamples=settings.resamples, seed=settings.seed)

    def _timed(self, model: Model) -> Record:
        """Median times of a sample, of the recipe and of FP32 in turn on the first batch."""
        batch: Batch = next(iter(self._data))
        self.told("timing", 0, None)
        self._reference.run(batch.inputs)
        times: tuple[list[float], list[float]] = [], []
        least, most = _ROUNDS
        for i in range(most):
            for measured, kept in zip((model, self._reference), times, strict=True):
                start = time.perf_counter()
                measured.run(batch.inputs)
                kept.append(time.perf_counter() - start)
            spent = sum(map(sum, times))
            if spent > _SLOW or (i + 1 >= least and spent > _SECONDS):
                break
        ours, theirs = (1e3 * statistics.median(kept) / batch.samples for kept in times)
        return {"ms": ours, "ms_fp32": theirs, "time": ours / theirs}

    def _place(self, field: str) -> str | None:
        text = getattr(self.workload, field)
        return None if text is None else place_of(text, self.workload, self.settings.folders)

    @contextlib.contextmanager
    def _naming(self, key: str) -> Iterator[None]:
        """Puts the line of the study that is to be looked at before an error's message."""
        try:
            yield
        except Fp8npError as error:
            raise type(error)(f"{self.workload.place(key)}: {error}") from error

    def _opened(self, field: str) -> Kept | None:
        place = self._place(field)
        if place is None:
            return None
        with self._naming(field):
            return Kept(load_batches(place, inputs=self._graph.inputs, folders=self.settings.folders), self._graph.inputs)

    @cached_property
    def _graph(self) -> Graph:
        return load_graph(self.store.model(self.workload.name))

    @cached_property
    def _reference(self) -> Model:
        # With BatchNorm folded, as every recipe has it: neither the bits nor the time should differ for that.
        return Model(quantize_model(self._graph, FP32).graph, checked=True)

    @cached_property
    def _data(self) -> Kept:
        found = self._opened("data")
        if found is None:
            raise InputError(f"{self.workload.place()}: workload {self.workload.name!r} has no data")
        return found

    @cached_property
    def _calibration(self) -> Kept | None:
        return self._opened("calibration")

    @cached_property
    def _recalibration(self) -> Kept | None:
        return self._opened("recalibration")


def _file_facts(path: Path) -> Record:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "model_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _units(name: str | None, outputs: list[Any], labels: list[Any]) -> tuple[Any, Any]:
    """Predictions and targets (n, ...) of all batches."""
    if name is None:
        return _joined("outputs", outputs), _joined("labels", labels)
    with user_code(name):
        found = imported(name)(outputs, labels)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise InputError(f"{name}: expected predictions and targets, got {type(found).__name__}")
    predictions, targets = map(np.asarray, found)
    for what, array in (("predictions", predictions), ("targets", targets)):
        if array.ndim == 0 or array.dtype.hasobject or len(array) != len(predictions) or not len(array):
            raise InputError(f"{name}: expected {what} (n, ...) of numbers, one for each unit, got {array.dtype}{list(array.shape)}")
    return predictions, targets


def _joined(what: str, parts: Iterable[Any]) -> Any:
    arrays = [np.atleast_1d(part) for part in parts]
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise InputError(f"{what} of the batches do not fit together ({error}); a function 'units' can say what they come to") from error


def reason_of(error: Exception) -> str:
    """Why a cell failed, in a line; of what is nobody's message, with the place."""
    text = " ".join(str(error).split())
    if isinstance(error, Fp8npError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {text}"


def machine_facts(threads: int, jobs: int) -> dict[str, Any]:
    """What records say about where they were made: the CPU, its tier, and how many threads each of so many processes had."""
    from fp8np.kernels._cpu import describe

    machine = describe()
    return {"cpu": machine.name, "tier": machine.tier, "threads": threads, "jobs": jobs, "fp8np": fp8np.__version__}
