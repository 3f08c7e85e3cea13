"""Arrays cut into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["cut"]


def cut(size: int, *arrays: Any) -> Iterator[Any]:
    """Batches of up to `size` rows of arrays of one length; a tuple for each where there are several.

    >>> list(cut(2, "abc", "xyz"))
    [('ab', 'xy'), ('c', 'z')]
    """
    for start in range(0, len(arrays[0]), size):
        rows = tuple(array[start : start + size] for array in arrays)
        yield rows if len(rows) > 1 else rows[0]
