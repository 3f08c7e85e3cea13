"""Where weights and data are: folders that the user names, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fp8np.errors import InputError

__all__ = ["Folders", "find"]

Folders = Mapping[str, Path]
"""By name: ``models`` holds unpacked wheels, ``shared`` has ``data`` and ``models`` inside (docs/study.md lists both)."""


def find(folders: Folders, name: str, path: str, what: str) -> Path:
    """A file or folder inside of the folder `name`.

    Args:
        folders: as the user named them.
        name: of the folder.
        path: inside of it; ``*`` and ``?`` match, and the first match in the order of names counts.
        what: is there, for the message.

    Raises:
        InputError: the folder is not named, or has nothing at `path`.

    >>> find({}, "models", "net.pt", "the weights")
    Traceback (most recent call last):
    fp8np.errors.InputError: the weights: expected a folder 'models' that has net.pt; name it with --folder models=PATH
    """
    if name not in folders:
        raise InputError(f"{what}: expected a folder {name!r} that has {path}; name it with --folder {name}=PATH")
    found = sorted(folders[name].glob(path))
    if not found:
        raise InputError(f"{what}: expected {path} in {folders[name]}, which is --folder {name}, and it is not there")
    return found[0]
