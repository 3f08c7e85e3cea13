"""The float32 kernel of stochastic rounding: the definitions of P3109, counted and compared with the law."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from _law import ALL_FORMATS, EXTREME, breakpoints
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np import reference
from fp8np.codec import encode
from fp8np.formats import FORMATS, FloatFormat
from fp8np.kernels._rule import conversion_rule
from fp8np.kernels._table import kernels, select
from fp8np.policy import OVERFLOW, STOCHASTIC, Policy

FORMATS_TESTED = (*ALL_FORMATS, *EXTREME)
SIGNED = [f for f in FORMATS_TESTED if f.signed]
roundings = st.sampled_from(STOCHASTIC)


def stochastic(x: Any, fmt: FloatFormat, policy: Policy, random: Any, width: int) -> Any:
    x, random = np.broadcast_arrays(np.asarray(x, np.float32), np.asarray(random, np.uint32))
    out = np.empty(x.size, np.uint8)
    rule = conversion_rule(fmt, policy)
    select("encode_f32_stochastic", fmt)(x.reshape(-1).copy(), rule, random.reshape(-1).copy(), width, out)
    return out.reshape(x.shape)


def inputs(fmt: FloatFormat) -> Any:
    """float32: breakpoints of a few places in the range, quarters between them, neighbours, and what is at the ends of float32."""
    points = breakpoints(fmt)
    chosen = [*points[:12], *points[len(points) // 2 :][:6], *points[-8:]]
    quarters = [a + (b - a) * Fraction(k, 4) for a, b in itertools.pairwise(chosen) for k in range(4)]
    with np.errstate(over="ignore", under="ignore"):
        near = np.array([float(q) for q in quarters]).astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))])
    ends = np.array([0, 1e-45, 2.0**-127, 2.0**-126, 3.4028235e38, np.inf, np.nan], np.float32)
    return np.concatenate([near, -near, ends, -ends])


@pytest.mark.parametrize("rounding", STOCHASTIC)
@pytest.mark.parametrize("fmt", SIGNED, ids=str)
def test_the_law_at_the_edges(fmt: FloatFormat, rounding: str) -> None:
    x = inputs(fmt)
    rng = np.random.default_rng(1)
    for width, overflow in ((1, "saturate"), (3, "propagate"), (8, "ieee"), (16, "saturate")):
        x = rng.permutation(x)[:60]
        random = rng.integers(0, 1 << width, x.size, np.uint32)
        random[::5] = (1 << width) - 1
        random[1::5] = 0
        got = stochastic(x, fmt, Policy(overflow, rounding), random, width)
        for value, bits, code in zip(x.tolist(), random.tolist(), got.tolist(), strict=True):
            law = reference.encode(fmt, value, overflow=overflow, rounding=rounding, random_bits=(bits, width))
            assert code == law, (value.hex(), bits, width)


FAST, PLAIN = (row for row in kernels() if row.op == "encode_f32_stochastic")


@pytest.mark.parametrize("fmt", [f for f in FORMATS_TESTED if FAST.takes(f)], ids=str)
def test_both_rows_agree(fmt: FloatFormat) -> None:
    # The float64 row is another computation: integers of the significand instead of a multiplication.
    rng = np.random.default_rng(2)
    x = np.concatenate([inputs(fmt), rng.integers(0, 1 << 32, 20_000, np.uint32).view(np.float32)])
    exponents = rng.uniform(fmt.min_exponent - 4, fmt.max_exponent + 2, 20_000)
    x = np.concatenate([x, (np.exp2(exponents) * rng.choice([-1, 1], exponents.size)).astype(np.float32)])
    for rounding in STOCHASTIC:
        for width in range(1, 17):
            random = rng.integers(0, 1 << width, x.size, np.uint32)
            rule = conversion_rule(fmt, Policy(OVERFLOW[width % 3], rounding))
            codes = [np.empty(x.size, np.uint8) for _ in range(2)]
            for row, out in zip((FAST, PLAIN), codes, strict=True):
                row.function(x, rule, random, width, out)
            np.testing.assert_array_equal(codes[0], codes[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(SIGNED), roundings, st.integers(1, 9), st.floats(0, 1, exclude_max=True), st.integers(0, 126))
def test_as_many_go_up_as_the_definition_says(fmt: FloatFormat, rounding: str, width: int, nu: float, low: int) -> None:
    low = low % fmt.max_magnitude
    below, above = (float(reference.magnitude_value(fmt, low + i)) for i in (0, 1))
    x = np.float32(below + nu * (above - below))
    if not below <= x < above:
        return
    exact = (Fraction(float(x)) - Fraction(below)) / (Fraction(above) - Fraction(below))
    count = 1 << width
    codes = stochastic(x, fmt, Policy(rounding=rounding), np.arange(count), width)
    ups = {
        "stochastic_a": math.floor(exact * count),
        "stochastic_b": math.floor(exact * count + Fraction(1, 2)),
        "stochastic_c": round(exact * count),
    }
    assert np.count_nonzero(codes == low + 1) == ups[rounding]
    assert np.count_nonzero(codes == low) == count - ups[rounding]


def test_mean_is_unbiased_where_the_bits_hold_the_fraction() -> None:
    # 299.375 lies 11.375 / 32 above 288: a multiple of 2^-16.
    fmt = FORMATS["float8_e4m3fn"]
    x = np.full(1 << 16, 299.375, np.float32)
    for rounding in STOCHASTIC:
        codes = encode(x, fmt, rounding=rounding, random_bits=np.arange(1 << 16, dtype=np.uint16))
        assert np.count_nonzero(codes == encode(320, fmt)) == (1 << 16) * 11.375 / 32


def test_few_formats_need_the_plain_row() -> None:
    assert {f.name for f in FORMATS.values() if not FAST.takes(f)} == {"float8_e8m0fnu", "binary8p1ue", "binary8p1uf"}


@pytest.mark.parametrize("name", [f.name for f in FORMATS.values()])
def test_the_codec_gives_the_law_with_random_bits_of_every_width(name: str) -> None:
    fmt = FORMATS[name]
    rng = np.random.default_rng(3)
    x = rng.permutation(inputs(fmt))[:40]
    for dtype in (np.uint8, np.uint16, np.uint32):
        random = rng.integers(0, np.iinfo(dtype).max, x.size, dtype, endpoint=True)
        for rounding in STOCHASTIC:
            got = encode(x, fmt, rounding=rounding, random_bits=random)
            width = 8 * random.itemsize
            law = [
                reference.encode(fmt, value, rounding=rounding, random_bits=(bits, width))
                for value, bits in zip(x.tolist(), random.tolist(), strict=True)
            ]
            np.testing.assert_array_equal(got, law)
