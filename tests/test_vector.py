"""Every function of `_vector`, `_native` and `_lanes` against its twin in NumPy, on random and special values.

The functions below are compiled, and also run as they stand with every name replaced by its twin.
"""

from __future__ import annotations

import functools
import itertools
from types import FunctionType

import numpy as np
import pytest
from _native import SPECIAL

from fp8np.kernels import _lanes, _native, _vector
from fp8np.kernels._jit import compiled, exact
from fp8np.kernels._lanes import first, gather, int_at, sqrt, transpose_bytes, transpose_words
from fp8np.kernels._native import byte_at, clear, fetch_and_add, float_at, pause, put_byte, put_float, put_word, shared_word, word
from fp8np.kernels._vector import (
    LANES,
    absolute,
    as_float,
    as_int,
    floats,
    fma,
    from_int,
    ints,
    largest,
    load,
    load_bf16,
    load_bytes,
    load_bytes_n,
    load_n,
    maximum,
    minimum,
    select,
    select_int,
    shl,
    shr,
    store,
    store_bf16,
    store_bytes,
    store_bytes_n,
    store_n,
    to_int,
    total,
)

pytestmark = pytest.mark.skipif(not compiled(), reason="twins are all there is")

# Not compared here: a NumPy type, calls through addresses (tests of programs make them).
ELSEWHERE = {"LANES", "memory", "call", "call_plain"}


def arithmetic(x, y, z, out):
    # x, y, z: addresses of 16 float32; out: of 16 float32 for each line.
    a, b, c = load(x), load(y), load(z)
    store(out, a + b)
    store(out + 64, a - b)
    store(out + 128, a * b)
    store(out + 192, a / b)
    store(out + 256, minimum(a, b))
    store(out + 320, maximum(a, b))
    store(out + 384, absolute(a))
    store(out + 448, select(a < b, a, c))
    store(out + 512, select(a > b, a, c))
    store(out + 576, select(a == b, a, c))
    store(out + 640, select((a < b) & (b < c), a, c))
    store(out + 704, select((a < b) | (b < c), a, c))
    store(out + 768, sqrt(a))
    store(out + 832, floats(float_at(x)))
    put_float(out + 896, total(a))
    put_float(out + 900, largest(a))


def integers(x, y, n, out):
    # x, y: addresses of 16 int32.
    a, b = as_int(load(x)), as_int(load(y))
    store(out, as_float(a + b))
    store(out + 64, as_float(a - b))
    store(out + 128, as_float(a * b))
    store(out + 192, as_float(a & b))
    store(out + 256, as_float(a | b))
    store(out + 320, as_float(a ^ b))
    store(out + 384, as_float(shl(a, n)))
    store(out + 448, as_float(shr(a, n)))
    store(out + 512, from_int(a))
    store(out + 576, as_float(to_int(from_int(shr(a, 2)))))
    store(out + 640, as_float(select_int(a < b, a, b)))
    store(out + 704, as_float(select_int(a > b, a, b)))
    store(out + 768, as_float(select_int(a == b, a, ints(n))))


def memory_of(x, n, out):
    # x: address of 64 bytes; out: of 64 bytes a line.
    store(out, load_n(x, n))
    store_n(out + 64, load(x), n)
    store(out + 128, as_float(load_bytes(x + 3)))
    store(out + 192, as_float(load_bytes_n(x + 3, n)))
    store_bytes(out + 256, as_int(load(x)))
    store_bytes_n(out + 320, as_int(load(x)), n)
    store(out + 384, load_bf16(x + 2))
    store_bf16(out + 448, load(x))
    store(out + 512, select(first(n), load(x), floats(float_at(x))))


def numbers(x, out):
    pause()
    put_word(out, word(x, 1))
    put_byte(out + 8, byte_at(x + 3) + 1)
    put_word(out + 16, int_at(x + 4))
    put_word(out + 24, shared_word(x))
    put_word(out + 32, 5)
    put_word(out + 40, fetch_and_add(out + 32, -7))
    clear(out + 51, 6)


def tables(x, table, out):
    # x: address of 16 bytes; table: of 256 float32.
    store(out, gather(table, load_bytes(x)))


def transposed(x, step, out, out_step):
    transpose_words(x, step, out, out_step)
    transpose_bytes(x, step, out + 2048, out_step)


def fused(x, y, z, out):
    store(out, fma(load(x), load(y), load(z)))


machine_code = functools.cache(exact)
OUT = object()


def both(function, *arguments, lines):
    """What the function writes, compiled and with twins: `lines` of 64 bytes, 0xEE where it writes nothing."""
    twins = {name: getattr(value, "twin", value) for name, value in globals().items()}
    results = []
    for version in (machine_code(function), FunctionType(function.__code__, twins)):
        out = np.full(64 * lines, 0xEE, np.uint8)
        with np.errstate(all="ignore"):
            version(*(out.ctypes.data if a is OUT else a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))
        results.append(out)
    return results


def same(got, expected):
    """Equal bits; but NaN is NaN, since a CPU makes them with either sign."""
    a, b = got.view(np.float32), expected.view(np.float32)
    np.testing.assert_array_equal(np.where(np.isnan(a), 0, got.view(np.uint32)), np.where(np.isnan(b), 0, expected.view(np.uint32)))
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))


def vectors():
    """Triples of sixteen float32."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        yield tuple(rng.standard_normal((3, LANES)).astype(np.float32))
    for _ in range(60):
        yield tuple(rng.choice(np.append(SPECIAL, [2.0, -1.0, 0.5]).astype(np.float32), (3, LANES)))


def test_every_function_is_compared():
    functions = (arithmetic, integers, memory_of, numbers, tables, transposed, fused)
    compared = set().union(*(f.__code__.co_names for f in functions))
    assert set(_vector.__all__) | set(_native.__all__) | set(_lanes.__all__) == compared | ELSEWHERE


def test_arithmetic():
    for x, y, z in vectors():
        same(*both(arithmetic, x, y, z, OUT, lines=15))


def test_fused_multiply_add():
    for x, y, z in itertools.islice(vectors(), 20):
        got, expected = (out.view(np.float32) for out in both(fused, x, y, z, OUT, lines=1))
        # Where the CPU has no such instruction, the product is rounded first.
        assert (np.abs(got - expected) <= 2.0**-23 * (np.abs(x * y) + np.abs(z))).all()


def test_integers():
    rng = np.random.default_rng(1)
    corner = np.array([0, 1, -1, 2**31 - 1, -(2**31), 255, 256, 1 << 23], np.int32)
    for n in (0, 1, 8, 23, 31):
        for _ in range(5):
            x, y = rng.integers(-(2**31), 2**31, (2, LANES)).astype(np.int32)
            same(*both(integers, x, y, n, OUT, lines=13))
            x, y = rng.choice(corner, (2, LANES))
            same(*both(integers, x, y, n, OUT, lines=13))


@pytest.mark.parametrize("n", [-3, 0, 1, 7, 15, 16, 40])
def test_memory(n):
    rng = np.random.default_rng(2)
    for _ in range(5):
        x = rng.integers(0, 256, 64).astype(np.uint8)
        got, expected = both(memory_of, x, n, OUT, lines=9)
        np.testing.assert_array_equal(got, expected)
    # Halfway between two bfloat16, and a bit beside.
    ties = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF808000, 0x7F7F8000, 0x7F7F7FFF, 0x8000], np.uint32).repeat(2)
    for x in (ties, *(x for x, _, _ in vectors())):
        np.testing.assert_array_equal(*both(memory_of, x, n, OUT, lines=9))


def test_numbers():
    rng = np.random.default_rng(3)
    for _ in range(5):
        got, expected = both(numbers, rng.integers(0, 256, 16).astype(np.uint8), OUT, lines=1)
        np.testing.assert_array_equal(got, expected)
        assert got.view(np.int64)[4] == -2


def test_tables():
    rng = np.random.default_rng(4)
    table = rng.standard_normal(256).astype(np.float32)
    same(*both(tables, rng.integers(0, 256, LANES).astype(np.uint8), table, OUT, lines=1))


def test_transposed():
    x = np.random.default_rng(5).integers(0, 256, (16, 100)).astype(np.uint8)
    np.testing.assert_array_equal(*both(transposed, x, 100, OUT, 68, lines=60))
