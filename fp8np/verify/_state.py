"""What a long check has found so far, as JSON lines in a folder: it goes on there after Ctrl-C, a crash, or a reboot."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fp8np
from fp8np.kernels._cache import fingerprint

__all__ = ["State", "key_of"]


def key_of(implementation: Any, parts: Iterable[str]) -> str:
    """What results depend on: the sources of fp8np, the CPU, the implementation's module, and `parts`. Others are not gone on with.

    What the implementation's module imports is not looked at.
    """
    texts = [fingerprint(), *parts]  # the compiler, NumPy, the CPU, and the kernels
    texts += [p.read_text(encoding="utf-8") for p in sorted(Path(fp8np.__file__).parent.rglob("*.py"))]
    kind = type(implementation)
    texts.append(f"{kind.__module__}.{kind.__qualname__}")
    with contextlib.suppress(TypeError, OSError, UnicodeDecodeError):  # a built-in, or an extension module
        texts.append(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


class State:
    """Records of named parts, in files ``FOLDER/KEY/NAME.jsonl``; without a folder nothing is kept.

    >>> import tempfile
    >>> state = State(Path(tempfile.mkdtemp()), "key")
    >>> state.append("one part", {"chunk": 3})
    >>> state.load("one part"), state.load("another")
    ([{'chunk': 3}], [])
    >>> state.clear()
    >>> state.load("one part")
    []
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder = None if folder is None else folder / key
        self._written: set[Path] = set()

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.jsonl"

    def load(self, name: str) -> list[dict[str, Any]]:
        """The records of a part. A line that was cut off in the middle is dropped."""
        path = self._path(name)
        if path is None or not path.exists():
            return []
        self._written.add(path)
        found = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(record)
        return found

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Adds a record.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._path(name)
        if path is None:
            return
        if path not in self._written or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._written.add(path)
        # The line break comes first: whatever was cut off before stays alone on its line.
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(record, separators=(",", ":")))

    def clear(self) -> None:
        """Removes the files of all parts that were loaded or written."""
        for path in self._written:
            path.unlink(missing_ok=True)
        self._written.clear()
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
