"""Recordings in archives."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

__all__ = ["RATE", "names", "recording"]

RATE = 16000
"""Samples per second of every recording."""


def names(archive: Path, *endings: str) -> list[str]:
    """Of the files in an archive with one of these endings, sorted."""
    with zipfile.ZipFile(archive) as files:
        return sorted(name for name in files.namelist() if name.endswith(endings))


def recording(archive: Path, name: str) -> Any:
    """float32 (samples,) within [-1, 1]

    Raises:
        ValueError: it has another rate or more than one channel.
    """
    import soundfile

    with zipfile.ZipFile(archive) as files:
        audio, rate = soundfile.read(io.BytesIO(files.read(name)), dtype="float32")
    if rate != RATE or audio.ndim != 1:
        raise ValueError(f"{archive.name}, {name}: expected one channel of {RATE} samples per second, got {audio.shape} at {rate}")
    return audio
