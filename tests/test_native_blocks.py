"""Blocks of products in `_parts` and `_gates` against their twins in NumPy: operands are whole numbers, so that sums are exact."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from fp8np.kernels import _gates, _parts
from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._jit import compiled, exact
from fp8np.kernels._parts import LEFT_STEP, RIGHT_STEP
from fp8np.kernels._program import aligned
from fp8np.kernels._vector import load, store

pytestmark = pytest.mark.skipif(not compiled(), reason="twins are all there is")
TILES = describe().cpu >= Cpu.AMX_BF16
needs_tiles = pytest.mark.skipif(not TILES, reason="this CPU has no tiles")

tile_gates_3, tile_gates_4 = _gates.tile_gates(3), _gates.tile_gates(4)
fma_2_3_brain, fma_4_2_floats = _gates.fma_gates(2, 3, True), _gates.fma_gates(4, 2, False)


def numbers(count, dtype=np.float32, seed=0):
    """Whole numbers as float32 or, uint16, bfloat16, from a cache line on."""
    x = np.random.default_rng(seed).integers(-9, 10, count).astype(np.float32)
    out = aligned(count * np.dtype(dtype).itemsize)[: count * np.dtype(dtype).itemsize].view(dtype)
    out[:] = x if dtype is np.float32 else x.view(np.uint32) >> 16
    return out


def parts_1(configuration, a, stride, b, c, steps):
    _gates.tiles_on(configuration)
    _parts.parts_block_1(a, stride, b, c, steps)
    _gates.tiles_off()


def parts_2(configuration, a, stride, b, c, steps):
    _gates.tiles_on(configuration)
    _parts.parts_block_2(a, stride, b, c, steps)
    _gates.tiles_off()


def tiles_3(configuration, a, stride, b, c, steps):
    _gates.tiles_on(configuration)
    tile_gates_3(a, stride, b, c, steps)
    _gates.tiles_off()


def tiles_4(configuration, a, stride, b, c, steps):
    _gates.tiles_on(configuration)
    tile_gates_4(a, stride, b, c, steps)
    _gates.tiles_off()


def multiply_brain(a, stride, b, gates, c, terms):
    fma_2_3_brain(a, stride, b, gates, c, terms)


def multiply_floats(a, stride, b, gates, c, terms):
    fma_4_2_floats(a, stride, b, gates, c, terms)


def halves(x, y, out):
    store(out, _parts.high_halves(load(x), load(y)))


def halves_twin(x, y, out):
    store.twin(out, _parts.high_halves.twin(load.twin(x), load.twin(y)))


machine_code = functools.cache(exact)


def both(function, twin, *arguments, size):
    """What they write into the place of None, float32 (size,), 77 where they write nothing."""
    results = []
    for version in (machine_code(function), twin):
        out = aligned(4 * size)[: 4 * size].view(np.float32)
        out[:] = 77
        version(*(out.ctypes.data if x is None else x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments))
        results.append(out)
    np.testing.assert_array_equal(*results)


@needs_tiles
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("function", "twin", "rows"), [(parts_1, "parts_block_1", 16), (parts_2, "parts_block_2", 32)])
def test_parts(function, twin, rows, steps):
    a, b = numbers(rows * (steps * LEFT_STEP + 64) // 2, np.uint16), numbers(steps * RIGHT_STEP // 2, np.uint16, 1)
    compared = getattr(_parts, twin).twin
    both(function, lambda _, *rest: compared(*rest), aligned(64), a, steps * LEFT_STEP + 64, b, None, steps, size=rows * 32 + 16)


@needs_tiles
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("function", "made", "gates"), [(tiles_3, tile_gates_3, 3), (tiles_4, tile_gates_4, 4)])
def test_tiles_of_gates(function, made, gates, steps):
    a, b = numbers(16 * (steps * 32 + 32), np.uint16), numbers(steps * gates * 512, np.uint16, 1)
    both(function, lambda _, *rest: made.twin(*rest), aligned(64), a, steps * 64 + 64, b, None, steps, size=gates * 256 + 16)


@pytest.mark.parametrize("terms", [1, 5])
@pytest.mark.parametrize(
    ("function", "made", "rows", "dtype", "gates"),
    [(multiply_brain, fma_2_3_brain, 2, np.uint16, 4), (multiply_floats, fma_4_2_floats, 4, np.float32, 3)],
)
def test_multiply_adds_of_gates(function, made, rows, dtype, gates, terms):
    a, b = numbers(rows * (terms + 3)), numbers(terms * gates * 16, dtype, 1)
    both(function, made.twin, a, 4 * (terms + 3), b, gates, None, terms, size=gates * 256)


def powers(x, y, out):
    store(out, _parts.fraction(load(x)))
    store(out + 64, _parts.scaled(load(x), load(y)))


def powers_twin(x, y, out):
    store.twin(out, _parts.fraction.twin(load.twin(x)))
    store.twin(out + 64, _parts.scaled.twin(load.twin(x), load.twin(y)))


@needs_tiles
def test_high_halves():
    x, y = np.random.default_rng(0).integers(0, 1 << 32, (2, 16), np.uint32).view(np.float32)
    results = []
    for version in (machine_code(halves), halves_twin):
        out = np.empty(16, np.uint32)
        version(x.ctypes.data, y.ctypes.data, out.ctypes.data)
        results.append(out)
    np.testing.assert_array_equal(*results)


@pytest.mark.skipif(describe().cpu < Cpu.AVX512, reason="this CPU has no AVX-512")
def test_powers():
    numbers = [0.0, -0.0, 1.0, -1.0, 0.3, -0.3, -1e-9, -125.9, -126.0, -126.1, -1e30, -np.inf, np.nan, 127.2, 5.5, -17.25]
    x = np.array(numbers, np.float32)
    for shift in range(16):
        both(powers, powers_twin, np.roll(x, shift), x, None, size=32)
