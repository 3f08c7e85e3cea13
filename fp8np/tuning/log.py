"""What was measured, as JSON lines, so that nothing is measured twice.

The first line says of what: the model, the data, the metric. Each other line is one recipe's model:

    {"key": "3f…", "value": 0.915, "graph": "9c…", "seconds": 1.2, "what": "the recipe as it is"}

A line is written at once and whole; of a process that was killed meanwhile the last one may be torn, and is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8np.errors import TuningError
from fp8np.metrics import plain

__all__ = ["Entry", "Log"]

_KIND = "fp8np tune log"
_START = json.dumps({"kind": _KIND})[:-1].encode()
_FOREIGN = "not a log of fp8np tune: name another file, or remove it"


@dataclass(frozen=True)
class Entry:
    """What is known of a recipe.

    Attributes:
        value: of the metric.
        graph: digest of the quantized graph.
        seconds: what it took.
    """

    value: float
    graph: str
    seconds: float


class Log:
    """The file of a log; without a path, nothing is kept.

    Args:
        path: of the file; it is made, or gone on with.
        facts: what values depend on besides the recipe: name of a fact -> text.

    Raises:
        TuningError: the file is the log of something else, no log at all, or damaged before its end.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, facts: Mapping[str, str]) -> None:
        self._path = None if path is None else Path(path)
        self.entries: dict[str, Entry] = {}
        if self._path is None:
            return
        head = {"kind": _KIND, **facts}
        # Opened for writing at once: that it cannot be is better known before the first trial than after it.
        with self._path.open("a+b") as file:
            file.seek(0)
            data = file.read()
            end = data.rfind(b"\n") + 1
            # Without a whole line it may be a first line that was torn.
            torn = not end and _START.startswith(data[: len(_START)])
            self._read(b"" if torn else data[:end] or data, head)
            file.truncate(end)
        if not end:
            self._append(head)

    def _read(self, data: bytes, head: Mapping[str, str]) -> None:
        """Takes the lines in that are whole."""
        try:
            lines = data.decode().splitlines()
        except UnicodeDecodeError as error:
            raise TuningError(f"{self._path}: {_FOREIGN}") from error
        if lines:
            self._require(lines[0], head)
        for number, line in enumerate(lines[1:], 2):
            try:
                found = json.loads(line)
                self.entries[str(found["key"])] = Entry(float(found["value"]), str(found["graph"]), float(found["seconds"]))
            except (KeyError, TypeError, ValueError) as error:
                raise TuningError(
                    f"{self._path}:{number}: damaged: expected key, value, graph and seconds, got {line:.80}; remove the line"
                ) from error

    def _require(self, line: str, head: Mapping[str, str]) -> None:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict) or found.get("kind") != _KIND:
            raise TuningError(f"{self._path}: {_FOREIGN}")
        for name, value in head.items():
            if found.get(name) != value:
                raise TuningError(
                    f"{self._path}: the log of another {name}: expected {value}, got {found.get(name)}; its values do not hold here: name "
                    "another file, or remove it"
                )

    def add(self, key: str, entry: Entry, what: str) -> None:
        """Keeps a value."""
        self.entries[key] = entry
        if self._path is not None:
            self._append({"key": key, "value": plain(entry.value), "graph": entry.graph, "seconds": round(entry.seconds, 3), "what": what})

    def _append(self, entry: Mapping[str, Any]) -> None:
        assert self._path is not None
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
