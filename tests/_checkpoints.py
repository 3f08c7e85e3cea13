"""Checkpoint files made by hand, for the tests of damaged and malicious ones."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from fp8np_converters.checkpoint import read_checkpoint


def zip_bytes(program: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """A torch zip with any pickle: `s0=...` is the storage "0"."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("x/data.pkl", program)
        for name, data in members.items():
            archive.writestr(f"x/data/{name[1:]}", data)
    return buffer.getvalue()


def legacy_bytes(program: bytes, keys: Any = (), stored: bytes = b"") -> bytes:
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join(head) + program + pickle.dumps(list(keys), 2) + stored


def read(data: bytes, folder: Path, name: str = "x.pt") -> Any:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return read_checkpoint(path)
