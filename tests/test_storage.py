"""Where values lie: buffers that are in use together never overlap, and views are what their strides say."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fp8np.kernels._program import ALIGNMENT, Arena, External, Task
from fp8np.kernels.pointwise import unary
from fp8np.plan.storage import At, Buffer, Stored, assign, dense, last_strides, places, resolved


def rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def apart(a: Buffer, b: Buffer) -> bool:
    return a.last < b.first or b.last < a.first


def disjoint(a: Buffer, b: Buffer) -> bool:
    return a.offset + a.size <= b.offset or b.offset + b.size <= a.offset


def largest_live_sum(buffers: list[Buffer]) -> int:
    """The most bytes that are in use at a step."""
    return max((sum(rounded(b.size) for b in buffers if b.first <= step <= b.last) for step in {b.first for b in buffers}), default=0)


@st.composite
def lives(draw: st.DrawFn) -> list[Buffer]:
    """Buffers of all sizes; those of one zero key have one size, as they are images of one layout."""
    of_key = {key: draw(st.integers(1, 5000)) for key in ("a", "b")}
    made = []
    for _ in range(draw(st.integers(0, 30))):
        first = draw(st.integers(0, 20))
        key = draw(st.sampled_from(["", "", "", "a", "b"]))
        size = of_key[key] if key else draw(st.sampled_from([0, 1, 4, 63, 64, 65, 1000, 4096]) | st.integers(0, 10_000))
        made.append(Buffer(size, key, first, first + draw(st.integers(0, 6))))
    return made


@settings(max_examples=400, deadline=None)
@given(lives())
@example([Buffer(100, "a", 0, 3), Buffer(100, "a", 3, 5), Buffer(100, "a", 4, 6), Buffer(100, "", 0, 6)])
def test_buffers_get_places(buffers: list[Buffer]) -> None:
    unused = Buffer(10**9)
    total, zeroed = assign([*buffers, unused])
    assert unused.offset == -1
    for buffer in buffers:
        assert buffer.offset >= 0
        assert buffer.offset % ALIGNMENT == 0
        assert buffer.offset + buffer.size <= total
        # What must be zero at first lies at the start, and nothing else is ever there.
        assert (buffer.offset + buffer.size <= zeroed) if buffer.zero else (buffer.offset >= zeroed)
    for a, b in itertools.combinations(buffers, 2):
        assert apart(a, b) or disjoint(a, b)
        if a.zero and not disjoint(a, b):
            assert a.zero == b.zero
            assert a.offset == b.offset
    assert total % ALIGNMENT == 0


@settings(max_examples=400, deadline=None)
@given(lives())
def test_the_arena_is_not_much_larger_than_what_is_in_use_at_a_time(buffers: list[Buffer]) -> None:
    plain = [b for b in buffers if not b.zero]
    by_key = [[b for b in buffers if b.zero == key] for key in ("a", "b")]
    total, zeroed = assign(buffers)
    # A first fit in the order of sizes has a known worst case; on lives like these, twice has never been seen.
    assert total - zeroed <= 2 * largest_live_sum(plain)
    # Buffers of one key are intervals given to the first place that is free, in the order in which they begin: exactly as many places
    # as are needed at a time.
    assert zeroed == sum(largest_live_sum(group) for group in by_key)


def test_a_chain_needs_two_places() -> None:
    chain = [Buffer(1000, "", i, i + 1) for i in range(20)]
    assert assign(chain) == (2 * 1024, 0)
    assert len({b.offset for b in chain}) == 2


def test_zeros_share_a_place_only_when_apart() -> None:
    first, second, third = Buffer(200, "a", 0, 2), Buffer(200, "a", 2, 3), Buffer(200, "a", 3, 4)
    assert assign([first, second, third]) == (2 * 256, 2 * 256)
    assert first.offset == third.offset
    assert second.offset != first.offset
    other = Buffer(200, "b", 9, 9)
    late = Buffer(200, "a", 8, 8)
    assign([late, other])
    assert late.offset != other.offset


def test_use_is_noted() -> None:
    buffer = Buffer(4)
    for step in (7, 3, 5):
        buffer.used(step)
    assert (buffer.first, buffer.last) == (3, 7)


# -- views ------------------------------------------------------------------------------------------------------------


def stored(array: Any) -> Stored:
    return Stored(At(array), array.shape, array.strides, array.dtype)


def views() -> list[Any]:
    """Arrays of four axes, in every order and with gaps."""
    full = np.zeros((2, 3, 4, 5), np.float32)
    made = [full.transpose(order) for order in itertools.permutations(range(4))]
    made += [full[:, :, 1:3], full[..., ::2], full[:1], full[:, :1], full[:, :, :1, :1], full[1:, :, ::2, 1:2], full[:0]]
    made += [full.transpose(0, 2, 3, 1)[:, :1].transpose(0, 3, 1, 2), np.ones((1, 7, 1, 1), np.float32)]
    return made


@pytest.mark.parametrize("array", views(), ids=lambda a: f"{a.shape}{a.strides}")
def test_orders_of_elements(array: Any) -> None:
    s = stored(array)
    assert s.size == array.size
    assert s.contiguous == array.flags.c_contiguous
    assert s.channels_last == array.transpose(0, 2, 3, 1).flags.c_contiguous


def test_only_pictures_have_channels() -> None:
    assert not dense((3, 4, 5)).channels_last
    assert dense((3, 4, 5)).contiguous
    assert dense((), np.int64).contiguous


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (0, 3, 4, 5), (2, 1, 4, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_a_new_buffer_holds_the_array(shape: tuple[int, ...], dtype: Any) -> None:
    plain, last = dense(shape, dtype), dense(shape, dtype, channels_last=True)
    assert plain.contiguous
    assert last.channels_last
    assert plain.strides == np.empty(shape, dtype).strides or 0 in shape
    assert last.strides == last_strides(shape, np.dtype(dtype).itemsize)
    for s in (plain, last):
        assert isinstance(s.at.base, Buffer)
        assert s.at.base.size == np.empty(shape, dtype).nbytes
        assert s.dtype == dtype
    assert plain.at.base is not last.at.base


def test_words_are_resolved() -> None:
    buffer, array = Buffer(100, offset=640), np.arange(10, dtype=np.float32)
    assert resolved(At(buffer).plus(12).plus(4)) == Arena(656)
    assert resolved(At("x", 8)) == External("x", 8)
    assert resolved(7) == 7
    word = resolved(At(array, 8))
    assert isinstance(word, np.ndarray)
    assert word.ctypes.data == array.ctypes.data + 8
    task = Task(unary, (At(buffer), 3, At("x"), At(array), At(buffer, 4)), 1)  # type: ignore[arg-type]
    assert list(places(task)) == [buffer, buffer]
