"""What a study has found, as files in a folder: each appears whole or not at all, so that it may be killed at any point.

| file | holds |
|---|---|
| ``work/WORKLOAD/fp32.safetensors`` | the model in FP32; ``fp32.key`` says of what |
| ``work/WORKLOAD/log`` | what the processes that ran it printed |
| ``cells/WORKLOAD/RECIPE.json`` | a cell: `Store.read`; ``RECIPE@TIER.json`` where tiers are compared |
| ``cells/WORKLOAD/RECIPE.npz`` | its predictions (n, ...), and its targets where they are not those of FP32 |
| ``models/WORKLOAD/RECIPE.safetensors`` | the quantized model, with ``--keep`` |
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._files import replacing
from fp8np.data import read_file, write_arrays
from fp8np.errors import InputError, StudyError
from fp8np.study.spec import FP32, Cell

__all__ = ["Store", "digest"]

Array = npt.NDArray[Any]

_LEFT = re.compile(r"\..+\.[0-9a-f]{16}(\.\w+)?")
"""Temporary files of `fp8np._files.replacing` whose process was killed."""


def digest(*arrays: Array) -> str:
    """SHA-256 of arrays, shapes and types included.

    >>> digest(np.zeros(2)) == digest(np.zeros(2, np.float32))
    False
    """
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data if array.size else b"")
    return total.hexdigest()


class Store:
    """The folder of a study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, workload: str) -> Path:
        """Where a workload's model in FP32 is."""
        return self._made("work", workload) / f"{FP32}.safetensors"

    def log(self, workload: str) -> Path:
        """Where processes print."""
        return self._made("work", workload) / "log"

    def quantized(self, cell: Cell, *, keep: bool) -> Path:
        """Where a quantized model is written."""
        return self._made("models" if keep else "work", cell.workload) / f"{_stem(cell)}.safetensors"

    def converted(self, workload: str, key: str) -> bool:
        """Whether a workload's model in FP32 is there, made under this key."""
        path = self.model(workload)
        with contextlib.suppress(OSError):
            return path.exists() and path.with_suffix(".key").read_text(encoding="utf-8") == key
        return False

    def mark_converted(self, workload: str, key: str) -> None:
        """Says of what the model in FP32 was made, once it is there."""
        with replacing(self.model(workload).with_suffix(".key")) as temporary:
            temporary.write_text(key, encoding="utf-8")

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What is known of a cell, None where nothing is.

        ``key``, ``status`` ("done" or "failed"), ``reason``, and figures: see `fp8np.study.cell`.
        """
        try:
            record = json.loads(self._cell(cell, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def write(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Keeps what is known of a cell."""
        with replacing(self._cell(cell, ".json", make=True)) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def write_predictions(self, cell: Cell, predictions: Array, targets: Array | None) -> None:
        """Keeps predictions, before the record that has their digest; `targets` only where they are not FP32's."""
        arrays = {"predictions": predictions} if targets is None else {"predictions": predictions, "targets": targets}
        write_arrays(self._cell(cell, ".npz", make=True), arrays)

    def predictions(self, cell: Cell, record: Mapping[str, Any]) -> tuple[Array, Array] | None:
        """Predictions and targets of a cell; None where they are not the ones that its record is about."""
        try:
            arrays = read_file(self._cell(cell, ".npz"))
            of_targets = arrays if "targets" in arrays else read_file(self._cell(Cell(cell.workload, None, cell.tier), ".npz"))
            predictions, targets = arrays["predictions"], of_targets["targets"]
        except (InputError, KeyError, TypeError):
            return None
        fits = digest(predictions) == record.get("sha256") and digest(targets) == record.get("targets_sha256")
        return (predictions, targets) if fits else None

    def clean(self) -> None:
        """Takes away what a killed process left half written."""
        for path in self.folder.rglob(".*"):
            if _LEFT.fullmatch(path.name):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second study out of the folder; the system lifts the lock of a process that dies.

        Raises:
            StudyError: one is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                import fcntl
            except ImportError:  # Windows
                yield
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(f"{self.folder}: another study is at work in this folder") from error
            yield

    def _cell(self, cell: Cell, suffix: str, *, make: bool = False) -> Path:
        folder = self._made("cells", cell.workload) if make else self.folder / "cells" / cell.workload
        # Not with_suffix: names of recipes have dots.
        return folder / f"{_stem(cell)}{suffix}"

    def _made(self, kind: str, workload: str) -> Path:
        folder = self.folder / kind / workload
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _stem(cell: Cell) -> str:
    return cell.recipe + (f"@{cell.tier}" if cell.tier else "")
