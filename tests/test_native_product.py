"""The parts of products: blocks against NumPy, and codes as the engine holds them.

Operands of blocks are whole numbers, so that their sums are exact in any order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _images import brain, empty, pixels, same_bits, view, widened
from _native import Guarded, run

from fp8np.codec import decode_table
from fp8np.formats import FORMATS, get_format
from fp8np.kernels import _fma, _x86
from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._ending import View
from fp8np.kernels._engine import ELEMENT, decode_tables, order_of_slab, pack_codes, pack_values, packed_steps, widened_task
from fp8np.kernels._grid import holds, matrix, takes
from fp8np.kernels._jit import compiled, exact
from fp8np.kernels._program import aligned
from fp8np.kernels._vector import load
from fp8np.kernels._x86 import configure
from fp8np.kernels.pack import packed_codes
from fp8np.kernels.widen import widen_task
from fp8np.scaling import dequantize, quantize

TILES, HALF = describe().cpu >= Cpu.AMX_BF16, describe().cpu >= Cpu.AVX512_BF16
machine_code = functools.cache(exact)
needs_half = pytest.mark.skipif(not HALF, reason="this CPU has no bfloat16")
HELD = [fmt for fmt in (*FORMATS.values(), *map(get_format, ("e4m3@0", "e4m3@50", "e5m2@30", "e3m4@62"))) if holds(fmt)]


def whole(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng((seed, *shape)).integers(-9, 10, shape).astype(np.float32)


# -- blocks -----------------------------------------------------------------------------------------------------------


def amx_block_1(t, a, stride, offsets, b, c, steps, first):
    _x86.tiles_on(t)
    _x86.amx_block_1(a, stride, offsets, b, c, steps, first)
    _x86.tiles_off()


def amx_block_2(t, a, stride, offsets, b, c, steps, first):
    _x86.tiles_on(t)
    _x86.amx_block_2(a, stride, offsets, b, c, steps, first)
    _x86.tiles_off()


def amx_stream_1(t, a, stride, offsets, b, c, steps, first):
    _x86.tiles_on(t)
    _x86.amx_stream_1(a, stride, offsets, b, c, steps, first)
    _x86.tiles_off()


def amx_stream_2(t, a, stride, offsets, b, c, steps, first):
    _x86.tiles_on(t)
    _x86.amx_stream_2(a, stride, offsets, b, c, steps, first)
    _x86.tiles_off()


def bf16_dots_1(t, a, stride, offsets, b, c, steps, first):
    _x86.bf16_dots_1(a, stride, offsets, b, c, steps, first)


def bf16_dots_8(t, a, stride, offsets, b, c, steps, first):
    _x86.bf16_dots_8(a, stride, offsets, b, c, steps, first)


def fma_8x32(t, a, stride, offsets, b, c, steps, first):
    _fma.fma_8x32(a, stride, offsets, b, c, steps, first)


def fma_1x32(t, a, stride, offsets, b, c, steps, first):
    _fma.fma_1x32(a, stride, offsets, b, c, steps, first)


def fma_6x16(t, a, stride, offsets, b, c, steps, first):
    _fma.fma_6x16(a, stride, offsets, b, c, steps, first)


def fma_4x16(t, a, stride, offsets, b, c, steps, first):
    _fma.fma_4x16(a, stride, offsets, b, c, steps, first)


def fma_2x16(t, a, stride, offsets, b, c, steps, first):
    _fma.fma_2x16(a, stride, offsets, b, c, steps, first)


def part_8x32(t, a, stride, offsets, b, c, steps, first):
    _fma.part_8x32(a, stride, offsets, b, c, steps, first, 5)


def part_1x32(t, a, stride, offsets, b, c, steps, first):
    _fma.part_1x32(a, stride, offsets, b, c, steps, first, 5)


def part_6x16(t, a, stride, offsets, b, c, steps, first):
    _fma.part_6x16(a, stride, offsets, b, c, steps, first, 5)


def part_2x16(t, a, stride, offsets, b, c, steps, first):
    _fma.part_2x16(a, stride, offsets, b, c, steps, first, 5)


# Rows, columns, terms of a step, and whether operands are bfloat16.
BLOCKS: list[tuple[Callable[..., None], int, int, int, bool, Cpu]] = [
    (amx_block_1, 16, 32, 32, True, Cpu.AMX_BF16),
    (amx_block_2, 32, 32, 32, True, Cpu.AMX_BF16),
    (amx_stream_1, 16, 32, 32, True, Cpu.AMX_BF16),
    (amx_stream_2, 32, 32, 32, True, Cpu.AMX_BF16),
    (bf16_dots_1, 1, 32, 32, True, Cpu.AVX512_BF16),
    (bf16_dots_8, 8, 32, 32, True, Cpu.AVX512_BF16),
    (fma_8x32, 8, 32, 32, False, Cpu.ANY),
    (fma_1x32, 1, 32, 32, False, Cpu.ANY),
    (fma_6x16, 6, 16, 32, False, Cpu.ANY),
    (fma_4x16, 4, 16, 32, False, Cpu.ANY),
    (fma_2x16, 2, 16, 32, False, Cpu.ANY),
    (part_8x32, 8, 32, 5, False, Cpu.ANY),
    (part_1x32, 1, 32, 5, False, Cpu.ANY),
    (part_6x16, 6, 16, 5, False, Cpu.ANY),
    (part_2x16, 2, 16, 5, False, Cpu.ANY),
]


def test_every_block_is_tested() -> None:
    tested = {block[0].__name__ for block in BLOCKS} | {"thin_1", "thin_2", "thin_4", "widen_64", "widen_packed_64", "store_brain"}
    assert set(_x86.__all__) | set(_fma.__all__) == tested | {"configure", "tiles_on", "tiles_off"}
    assert callable(configure)


def address(array: Any) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("first", [1, 0])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("function", "rows", "columns", "terms", "half", "needs"), BLOCKS, ids=[b[0].__name__ for b in BLOCKS])
def test_block(function: Any, rows: int, columns: int, terms: int, half: bool, needs: Cpu, steps: int, first: int) -> None:
    """Steps lie anywhere, in any order; what is no part of the block is left alone; the twin gives the same."""
    item = 2 if half else 4
    # a: rows of 8 steps, of which `steps` are taken from the end, and some numbers that belong to nobody.
    stride = 8 * 32 * item + 64
    values, right = whole(rows, steps, 32), whole(steps, 32, 32, seed=1)
    offsets = np.array([64 + (7 - 2 * s if s < 4 else 2) * 32 * item for s in range(steps)], np.int64)
    a = np.full(rows * stride + 64, 0xAA, np.uint8)
    for r in range(rows):
        for s in range(steps):
            line = brain(values[r, s]) if half else values[r, s]
            a[r * stride + offsets[s] :][: 32 * item] = line.view(np.uint8)
    # Of bfloat16, b[s, j, p, n, h] is k = 2 p + h, column 16 j + n.
    b = np.ascontiguousarray(brain(right).reshape(steps, 16, 2, 2, 16).transpose(0, 3, 1, 4, 2)) if half else right
    before, tiles = whole(2, 2, 16, 16, seed=2), aligned(64)
    sums = np.einsum("rsk,skn->rn", values[..., :terms].astype(np.float64), right[:, :terms])
    want = before.copy()
    for r in range(rows):
        for n in range(columns):
            want[r // 16, n // 16, r % 16, n % 16] = sums[r, n] + (0 if first else before[r // 16, n // 16, r % 16, n % 16])
    versions = [machine_code(function)] if describe().cpu >= needs and compiled() else []
    twin = getattr(_x86 if half else _fma, function.__name__)
    twin = getattr(twin, "twin", twin)
    versions.append(lambda t, *rest: twin(*rest, *((5,) if terms == 5 else ())))
    for version in versions:
        c = Guarded(2, 2, 16, 16)
        c.array[...] = before
        version(address(tiles), address(a), stride, address(offsets), address(b), address(c.array), steps, first)
        np.testing.assert_array_equal(c.check(), want)


def thin_1(a, stride, offsets, packed, tables, c, steps):
    _x86.thin_1(a, stride, offsets, packed, tables, c, steps)


def thin_2(a, stride, offsets, packed, tables, c, steps):
    _x86.thin_2(a, stride, offsets, packed, tables, c, steps)


def thin_4(a, stride, offsets, packed, tables, c, steps):
    _x86.thin_4(a, stride, offsets, packed, tables, c, steps)


@needs_half
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("function", "rows"), [(thin_1, 1), (thin_2, 2), (thin_4, 4)])
def test_thin(function: Any, rows: int, steps: int) -> None:
    values, columns = whole(rows, 32 * steps), quantize(whole(32, 32 * steps, seed=1), "e4m3fn", scale=1.0)
    a, stride = np.zeros((rows, 32 * steps + 32), np.uint16), 64 * steps + 64
    a[:, : 32 * steps] = brain(values)
    offsets = np.arange(steps, dtype=np.int64) * 64
    packed, tables = pack_codes(columns.codes), decode_tables(columns.format)
    want = np.full((2, 16, 16), 77, np.float32)
    want[:, :rows] = (values.astype(np.float64) @ dequantize(columns).T).reshape(rows, 2, 16).swapaxes(0, 1)
    twin = getattr(_x86, function.__name__)
    for version in ([machine_code(function)] if compiled() else []) + [getattr(twin, "twin", twin)]:
        c = Guarded(2, 16, 16)
        c.array[...] = 77
        version(*map(address, (a,)), stride, *map(address, (offsets, packed, tables, c.array)), steps)
        np.testing.assert_array_equal(c.check(), want)


# -- codes ------------------------------------------------------------------------------------------------------------


def widen_64(codes, tables, out):
    _x86.widen_64(codes, tables, out)


def widen_packed_64(codes, tables, out):
    _x86.widen_packed_64(codes, tables, out)


def store_brain(x, out):
    _x86.store_brain(out, load(x))


@needs_half
@pytest.mark.skipif(not compiled(), reason="twins are all there is")
@pytest.mark.parametrize("function", [widen_64, widen_packed_64])
def test_widening_against_its_twin(function: Any) -> None:
    codes, tables = np.random.default_rng(0).integers(0, 256, (20, 64)).astype(np.uint8), decode_tables(get_format("e5m2"))
    for line in codes:
        results = []
        for version in (machine_code(function), getattr(_x86, function.__name__).twin):
            out = Guarded(64, dtype=np.uint16)
            version(address(line), address(tables), address(out.array))
            results.append(out.check())
        np.testing.assert_array_equal(*results)


@needs_half
@pytest.mark.skipif(not compiled(), reason="twins are all there is")
def test_floats_become_bfloat16() -> None:
    """As the twin rounds them, but what is below the normal numbers may become zero."""
    rng = np.random.default_rng(1)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF808000, 0x7F7F8000, 0x7F7F7FFF, 0x7FC00000], np.uint32)
    for x in (ties.repeat(2).view(np.float32), *rng.integers(0, 1 << 32, (50, 16), np.uint32).view(np.float32)):
        results = []
        for version in (machine_code(store_brain), lambda x, out: _x86.store_brain.twin(out, load.twin(x))):
            out = Guarded(16, dtype=np.uint16)
            with np.errstate(all="ignore"):
                version(address(x), address(out.array))
            results.append(widened(out.check().copy()))
        tiny = np.abs(x) < 2.0**-126
        same_bits(*(np.where(tiny, np.float32(0), r) for r in results))
        assert (np.abs(results[0][tiny]) < 2.0**-126).all()


SIGNED = [fmt for fmt in FORMATS.values() if fmt.signed and fmt.bits == 8]


@pytest.mark.parametrize("fmt", SIGNED, ids=str)
def test_tables_hold_the_values_of_magnitudes(fmt: Any) -> None:
    tables, values = decode_tables(fmt), decode_table(fmt)[:128]
    got = widened(tables[:128].astype(np.uint16) << 8 | tables[128:256])
    if fmt.quantum_exponent >= -126:
        same_bits(got, values)
    assert not tables.flags.writeable


@pytest.mark.parametrize("fmt", [f for f in (*FORMATS.values(), get_format("e4m3@30"), get_format("e5m2@0")) if takes(f)], ids=str)
def test_codes_are_widened(fmt: Any) -> None:
    """All 256 codes, in rows of any length: the bits of `decode_table`; then zeros up to a whole step."""
    for count in (256, 1, 31, 33, 63, 64, 65, 100) if compiled() else (256, 33):
        codes = np.stack([np.arange(256), np.arange(256)[::-1]]).astype(np.uint8)[:, :count].copy()
        image = matrix(2, count)
        raw = empty(image)
        run(widen_task(View(codes, 0, 0, count), view(image, raw), image.panel, (1, 1, 2, count), decode_tables(fmt)))
        got = pixels(image, raw)[0, 0, 0]
        same_bits(got[:, :count], decode_table(fmt)[codes])
        assert not got[:, count:].any()


@pytest.mark.parametrize(("n", "k"), [(32, 32), (1, 1), (33, 40), (70, 100), (31, 64)])
def test_codes_are_packed(n: int, k: int) -> None:
    """As `pack_codes` says, whatever order they lie in and however many taps there are."""
    rng = np.random.default_rng(n)
    codes = rng.integers(0, 256, (n, 1, k)).astype(np.uint8)
    full = np.zeros((n, packed_steps(k) * 32), np.uint8)
    full[:, :k] = codes[:, 0]
    want = pack_codes(full)
    np.testing.assert_array_equal(packed_codes(codes), want)
    np.testing.assert_array_equal(packed_codes(np.asfortranarray(codes)), want)
    np.testing.assert_array_equal(packed_codes(np.repeat(codes, 2, 2)[..., ::2]), want)
    several = rng.integers(0, 256, (n, k, 3)).astype(np.uint8).transpose(0, 2, 1)
    taps = [packed_codes(several[:, t : t + 1]) for t in range(3)]
    np.testing.assert_array_equal(packed_codes(several), np.concatenate(taps, 1))


def test_the_order_of_a_slab_is_a_permutation() -> None:
    order = order_of_slab()
    np.testing.assert_array_equal(np.sort(order), np.arange(1024))
    codes = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    np.testing.assert_array_equal(pack_codes(codes).reshape(-1), codes.reshape(-1)[order])


def test_packed_codes_widen_to_the_slab_of_their_values() -> None:
    codes = np.random.default_rng(0).integers(0, 120, (40, 64)).astype(np.uint8)
    fmt = get_format("e4m3fn")
    packed, slab = pack_codes(codes), aligned(64 * 64 * ELEMENT)
    run(widened_task(packed, decode_tables(fmt), slab, 2, 2))
    np.testing.assert_array_equal(slab[: 64 * 64 * ELEMENT], pack_values(decode_table(fmt)[codes])[0].reshape(-1))
