"""The data of a workload, gone through many times: kept in memory where they fit, with a digest, and chosen for calibration."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fp8np.data import Batch, Batches
from fp8np.dims import Dim
from fp8np.graph import Value

__all__ = ["Kept", "drawn"]

_LIMIT = 1 << 30
"""Bytes of a workload's data that a process keeps."""
_BATCH = 16


class Kept:
    """Batches that are made once, unless they are too large to be kept.

    Args:
        batches: what `fp8np.data.load_batches` gives.
        inputs: what the model takes.

    Attributes:
        seconds: what making them took, the last time.
        digest: of all arrays and labels, once all have been gone through.
    """

    def __init__(self, batches: Batches, inputs: Sequence[Value]) -> None:
        self._batches = batches
        self._inputs = inputs
        self._kept: list[Batch] | None = None
        self.seconds = 0.0
        self.digest = ""

    @property
    def origin(self) -> str:
        """What they come from, for messages."""
        return self._batches.origin

    @property
    def count(self) -> int | None:
        """How many, where that is known."""
        return self._batches.count if self._kept is None else len(self._kept)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] | None = []
        total, size, self.seconds = hashlib.sha256(), 0, 0.0
        batches, start = iter(self._batches), time.perf_counter()
        for batch in batches:
            for array in (*batch.inputs.values(), batch.label):
                _update(total, array)
            size += sum(array.nbytes for array in batch.inputs.values())
            if kept is not None:
                kept.append(batch)
                if size > _LIMIT:
                    kept = None
            self.seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
        self._kept, self.digest = kept, total.hexdigest()

    def load(self) -> None:
        """Makes them now, where they are not kept yet."""
        if self._kept is None:
            for _ in self:
                pass

    def batches(self) -> Batches:
        """The same as `fp8np.ptq.workflow.quantize_model` takes them."""
        return Batches(self.origin, lambda: ((batch.inputs, batch.label) for batch in self), self._inputs, self.count)


def _update(total: Any, array: Any) -> None:
    if isinstance(array, list | tuple):
        for part in array:
            _update(total, part)
        return
    values = np.asarray(array)
    total.update(f"{values.dtype.str}{values.shape}".encode())
    total.update(repr(array).encode() if values.dtype.hasobject else np.ascontiguousarray(values).tobytes())


def drawn(kept: Kept, inputs: Sequence[Value], samples: int | None, seed: int | None) -> Batches:
    """So many calibration samples exactly: the first, or drawn without replacement by a seed.

    Samples are the rows of batches, unless the model's inputs do not share one open first axis: then batches are what is drawn.

    Args:
        kept: all of them.
        inputs: what the model takes.
        samples: how many; None: all, in the seed's order. Where there are fewer, all.
        seed: of the draw; None: the first.
    """
    first = {value.shape[0] if value.shape else None for value in inputs}
    apart = len(first) == 1 and isinstance(next(iter(first)), Dim)
    rows = list(_rows(kept)) if apart else [dict(batch.inputs) for batch in kept]
    order = np.arange(len(rows)) if seed is None else np.random.default_rng(seed).permutation(len(rows))
    chosen = [rows[i] for i in order[:samples]]
    if apart:
        chosen = _joined(chosen)
    return Batches(kept.origin, lambda: chosen, inputs, len(chosen))


def _rows(kept: Kept) -> Iterator[dict[str, Any]]:
    for batch in kept:
        for i in range(batch.samples):
            yield {name: array[i : i + 1] for name, array in batch.inputs.items()}


def _joined(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that follow each other and have one shape, in batches: passes through a model are fewer so."""
    batches: list[list[dict[str, Any]]] = []
    for row in rows:
        last = batches[-1] if batches else []
        if last and len(last) < _BATCH and all(last[0][name].shape == array.shape for name, array in row.items()):
            last.append(row)
        else:
            batches.append([row])
    return [{name: np.concatenate([row[name] for row in batch]) for name in batch[0]} for batch in batches]
