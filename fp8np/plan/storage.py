"""Where values lie while a plan runs: buffers, strided views of them, and the arena in which buffers share memory.

A value is `Stored`: a place and strides. A transposed tensor, a slice, one image format or another (channels last is strides like
any other) are the same buffer seen differently, and cost nothing until somebody needs another order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.kernels._program import Arena, External, Task, Word, rounded_up

__all__ = ["At", "Buffer", "Stored", "assign", "dense", "last_strides", "places", "resolved"]


@dataclass(eq=False)
class Buffer:
    """A piece of the arena. `zero`: a key by which buffers that are zero where nobody writes share memory; "" for any other.

    first, last: the steps between which it is in use.
    """

    size: int
    zero: str = ""
    first: int = -1
    last: int = -1
    offset: int = -1

    def used(self, step: int) -> None:
        """Notes that a step reads or writes it."""
        self.first = step if self.first < 0 else min(self.first, step)
        self.last = max(self.last, step)


@dataclass(frozen=True)
class At:
    """A place: bytes from the start of a buffer, of an array that does not move, or of what the caller brings under a name."""

    base: Buffer | str | npt.NDArray[Any]
    offset: int = 0

    def plus(self, offset: int) -> At:
        """The place so many bytes further on."""
        return At(self.base, self.offset + offset)


@dataclass(frozen=True)
class Stored:
    """An array: place, shape, strides in bytes, element type."""

    at: At
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether elements lie in the order of the axes, without gaps."""
        return _same_strides(self.strides, _c_strides(self.shape, self.dtype.itemsize), self.shape)

    @property
    def channels_last(self) -> bool:
        """Whether (B, C, H, W) lies as (B, H, W, C), without gaps."""
        return len(self.shape) == 4 and _same_strides(self.strides, last_strides(self.shape, self.dtype.itemsize), self.shape)


def _c_strides(shape: Sequence[int], item: int) -> tuple[int, ...]:
    strides = []
    for size in reversed(shape):
        strides.append(item)
        item *= size
    return tuple(reversed(strides))


def last_strides(shape: Sequence[int], item: int) -> tuple[int, ...]:
    """Strides of (B, C, H, W) that lies as (B, H, W, C)."""
    _, c, h, w = shape
    return h * w * c * item, item, w * c * item, c * item


def _same_strides(a: Sequence[int], b: Sequence[int], shape: Sequence[int]) -> bool:
    # The stride of an axis of one element says nothing.
    return all(x == y or n == 1 for x, y, n in zip(a, b, shape, strict=True)) or 0 in shape


def dense(shape: tuple[int, ...], dtype: Any = np.float32, *, channels_last: bool = False) -> Stored:
    """A new buffer for an array."""
    kind: np.dtype[Any] = np.dtype(dtype)
    strides = last_strides(shape, kind.itemsize) if channels_last else _c_strides(shape, kind.itemsize)
    return Stored(At(Buffer(math.prod(shape) * kind.itemsize)), shape, strides, kind)


# -- the arena --------------------------------------------------------------------------------------------------------


def assign(buffers: Iterable[Buffer]) -> tuple[int, int]:
    """Gives each buffer its offset, such that no two in use at a time overlap. Returns the arena's size, and how much of its start is
    to be zero at first.

    Large ones first, each in the first gap that holds it: within a few per cent of the largest sum in use at a time on the models
    measured (ResNet-50, BERT, EfficientNet). What kernels read beyond an end is another buffer's, or, at the end of the arena, its slack.
    """
    kept = [b for b in buffers if b.first >= 0]
    # Zeros around pictures stay zero only if nobody else writes there: buffers of one layout take turns in one place.
    zeroed = 0
    places: dict[str, list[tuple[int, list[Buffer]]]] = {}
    for buffer in sorted((b for b in kept if b.zero), key=lambda b: b.first):
        for offset, tenants in places.setdefault(buffer.zero, []):
            if all(_apart(buffer, other) for other in tenants):
                buffer.offset = offset
                tenants.append(buffer)
                break
        else:
            buffer.offset = zeroed
            places[buffer.zero].append((zeroed, [buffer]))
            zeroed += rounded_up(buffer.size)
    end = zeroed
    placed: list[Buffer] = []
    for buffer in sorted((b for b in kept if not b.zero), key=lambda b: (-b.size, b.first)):
        near = sorted((b for b in placed if not _apart(buffer, b)), key=lambda b: b.offset)
        offset = zeroed
        for other in near:
            if other.offset - offset >= rounded_up(buffer.size):
                break
            offset = max(offset, other.offset + rounded_up(other.size))
        buffer.offset = offset
        placed.append(buffer)
        end = max(end, offset + rounded_up(buffer.size))
    return end, zeroed


def _apart(a: Buffer, b: Buffer) -> bool:
    return a.last < b.first or b.last < a.first


def resolved(word: Any) -> Word:
    """A word of a task, with the place that its buffer was given."""
    if not isinstance(word, At):
        return word  # type: ignore[no-any-return]
    if isinstance(word.base, Buffer):
        return Arena(word.base.offset + word.offset)
    if isinstance(word.base, str):
        return External(word.base, word.offset)
    return word.base.reshape(-1).view(np.uint8)[word.offset :]


def places(task: Task) -> Iterable[Buffer]:
    """The buffers that a task's words name."""
    for word in task.words:
        if isinstance(word, At) and isinstance(word.base, Buffer):
            yield word.base
