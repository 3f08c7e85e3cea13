"""What a result depends on, as a hash: a cell whose key is the same is not run again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fp8np
from fp8np.data import is_factory
from fp8np.study.factories import source_of
from fp8np.study.spec import Cell, Study, Workload

__all__ = ["Keys", "measure_key", "place_of"]

_CONVERSION = ("source", "module", "key", "example_inputs", "pooling", "dynamic_axes")
_REFERENCE = (*_CONVERSION, "data", "output", "units")
_QUANTIZATION = (*_REFERENCE, "calibration", "recalibration", "samples")


def place_of(text: str, workload: Workload, folders: Mapping[str, Path]) -> str:
    """A path of a workload with its folders filled in, from the folder of the study on; a ``pkg.mod:function`` as it is.

    >>> place_of("{data}/x.npz", Workload("a", "", "", "", "", ""), {"data": Path("/d")})
    '/d/x.npz'
    """
    if is_factory(text):
        return text
    return os.fspath(Path(workload.folder) / text.format_map(folders))


class Keys:
    """Keys of the parts of a study: of what is written, and of the files that it names, with a dash between.

    Files count by their size and the time of their last change, modules by their text. What a module reads or imports is not looked at.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._workloads = {w.name: w for w in study.workloads}
        self._seen: dict[tuple[str, tuple[str, ...]], str] = {}

    def conversion(self, workload: str) -> str:
        """Of a workload in FP32 as an artifact."""
        return self._key(workload, _CONVERSION, None)

    def cell(self, cell: Cell) -> str:
        """Of the predictions of a cell."""
        if cell.entry is None:
            return self._key(cell.workload, _REFERENCE, cell.tier)
        return self._key(cell.workload, _QUANTIZATION, [cell.entry.as_table(), cell.tier])

    def written(self, cell: Cell) -> str:
        """The part of `cell` that no file has part in: for tables, which need no folders."""
        what = [_REFERENCE, cell.tier] if cell.entry is None else [_QUANTIZATION, [cell.entry.as_table(), cell.tier]]
        return self._written(cell.workload, *what)

    def _key(self, workload: str, fields: tuple[str, ...], more: Any) -> str:
        return f"{self._written(workload, fields, more)}-{self._files(workload, fields)}"

    def _written(self, workload: str, fields: Any, more: Any) -> str:
        facts = dataclasses.asdict(self._workloads[workload])
        return _hash(fp8np.__version__, {name: facts[name] for name in fields}, more)

    def _files(self, workload: str, fields: tuple[str, ...]) -> str:
        if (workload, fields) not in self._seen:
            self._seen[workload, fields] = _hash(*self._stamps(self._workloads[workload], fields))
        return self._seen[workload, fields]

    def _stamps(self, workload: Workload, fields: tuple[str, ...]) -> Iterator[Any]:
        for name in fields:
            text = getattr(workload, name)
            if not isinstance(text, str):
                continue
            if is_factory(text):
                module = source_of(text)
                yield None if module is None else hashlib.sha256(module.read_bytes()).hexdigest()
            elif name in ("source", "example_inputs", "data", "calibration", "recalibration"):
                yield list(_files(Path(place_of(text, workload, self._study.folders))))


def measure_key(workload: Workload, seed: int, resamples: int, reference: str) -> str:
    """Of figures made of predictions, with a bootstrap of so many resamples, against FP32's predictions of the digest `reference`."""
    module = source_of(workload.metric) if is_factory(workload.metric) else None
    text = "" if module is None else module.read_text(encoding="utf-8")
    return _hash(workload.metric, text, workload.lower_is_better, seed, resamples, reference)


def _files(path: Path) -> Iterator[Any]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        try:
            facts = file.stat()
        except OSError:
            yield None
        else:
            yield [file.name, facts.st_size, facts.st_mtime_ns]


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
