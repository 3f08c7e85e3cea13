"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to; on leaving the block it becomes `path`, in one step.

    If the block raises anything, Ctrl-C included, or the disk is full, whatever stood at `path` stays as it was and the
    temporary file is removed. Processes that have the old file open or mapped keep seeing the old one. The temporary file
    is in the same folder and has the same suffix; a symbolic link is followed.

    Raises:
        OSError: the folder does not exist or cannot be written, `path` is a folder or a device, or the disk is full.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("done")
    >>> [(p.name, p.read_text()) for p in folder.iterdir()]
    [('a.txt', 'done')]
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))
    if target.exists() and not target.is_file():
        # os.replace would put a file in the place of /dev/null.
        raise FileExistsError(errno.EEXIST, "not a regular file", str(target))
    temporary = target.with_name(f".{target.stem[:64]}.{secrets.token_hex(8)}{target.suffix}")
    try:
        # Made here, not by tempfile, so that the file gets the permissions of the user's umask.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        # The data must be on the disk before the name is: after a crash, a name with no data would be half a file.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
