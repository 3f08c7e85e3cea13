"""Intel's FP8-Emulation-Toolkit, errors included.

The counts were measured on the toolkit itself (fcd26e9, its C++ compiled). The digests are of this module's outputs after they
were compared, bit for bit, with a transcription of the toolkit's AVX-512 and scalar code.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fp8np import codec
from fp8np.emulation import intel_toolkit
from fp8np.errors import DTypeError, FormatError, PolicyError, ScaleError, ShapeError
from fp8np.formats import get_format

HALVES: Any = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = np.isfinite(HALVES)
NOISE = (np.arange(1 << 16) * 37 % 251).astype(np.uint8)


def nearest(name: str, x: Any = HALVES) -> Any:
    overflow = "ieee" if get_format(name).has_inf else "saturate"
    return codec.decode(codec.encode(x, name, overflow=overflow), name)


@pytest.mark.parametrize(("name", "wrong", "strangers"), [("e5m2", 0, 0), ("e4m3fn", 6_350, 4_304), ("e3m4fn", 8_190, 6_144)])
def test_as_wrong_as_the_toolkit(name: str, wrong: int, strangers: int) -> None:
    got = intel_toolkit(HALVES, name)
    differs = (got != nearest(name)) & FINITE
    assert np.count_nonzero(differs) == wrong
    assert np.count_nonzero(~np.isin(got, codec.decode_table(name)) & FINITE) == strangers
    assert (np.abs(HALVES[differs]) < get_format(name).smallest_normal).all()
    np.testing.assert_array_equal(np.signbit(got), np.signbit(HALVES))


@pytest.mark.parametrize(
    ("name", "rounding", "digest"),
    [
        ("e5m2", "nearest_even", "ef02a488795821144eec0541dc0c4ee1f91b7b97a2c28c123ba77113fa5fce52"),
        ("e4m3fn", "nearest_even", "da1fafc3958d14a6466d67210edc6ab1b4f8520ab702f87cee0b26308d518ded"),
        ("e3m4fn", "nearest_even", "da733c1c5ae02a0324d7b7c40df2e3d9fd95de1f01f4dce24915e39fb887dfa6"),
        ("e4m3fn", "stochastic", "6e54e0753e7389381e7d188163c96e7e61de4fe412186d8a80482008e32aeb96"),
        ("e3m4fn", "stochastic", "dcc0ee91d94de70a32502616622a7ccd19193a08043f02aae1765a0c43b6d72b"),
    ],
)
def test_golden_digests(name: str, rounding: str, digest: str) -> None:
    # 17 more elements, for the scalar code of what is left of 32.
    x, noise = np.concatenate([HALVES, HALVES[0x1F00:0x1F11]]), np.concatenate([NOISE, NOISE[:17]])
    got = intel_toolkit(x, name, rounding=rounding, random_bits=noise if rounding == "stochastic" else None)
    if rounding == "nearest_even":
        np.testing.assert_array_equal(got[1 << 16 :], got[0x1F00:0x1F11])
        got = got[: 1 << 16]
    got = np.where(np.isnan(got), np.float32(math.nan), got)
    assert hashlib.sha256(got.astype("<f4").tobytes()).hexdigest() == digest


def test_what_the_docstring_says() -> None:
    assert intel_toolkit(1 + 2.0**-4 + 2.0**-12, "e4m3fn") == 1
    assert nearest("e4m3fn", 1 + 2.0**-4 + 2.0**-12) == 1.125
    for name, largest, smallest in (("e4m3fn", 448, 2.0**-9), ("e3m4fn", 30, 2.0**-6)):
        below = smallest * (1 - 2.0**-10)
        assert nearest(name, below) == smallest
        assert intel_toolkit(below, name) == 0
        assert math.copysign(1, intel_toolkit(-below, name)) == -1
        assert intel_toolkit([math.nan, math.inf, -math.inf, -1e30], name).tolist() == [largest, largest, -largest, -largest]
        assert intel_toolkit(math.copysign(math.nan, -1), name) == -largest
    # A tie after bits were cleared: 1.0001 0001 of a subnormal binade is above 1.0001, and goes down to even.
    assert intel_toolkit(2.0**-9 * (1 + 2.0**-4 + 2.0**-9), "e4m3fn") == 2.0**-9
    assert intel_toolkit([61408, 61439, -1e9, math.nan], "e5m2").tolist()[:3] == [57344, math.inf, -math.inf]
    assert math.isnan(intel_toolkit(math.nan, "e5m2"))
    # A signalling NaN whose payload is cut off.
    assert np.isnan(intel_toolkit(np.array([0x7F800001], np.uint32).view(np.float32), "e5m2")).all()


def ups(x: float, name: str, count: int = 256) -> tuple[int, set[float]]:
    got = intel_toolkit(np.full(count, x), name, rounding="stochastic", random_bits=np.arange(count, dtype=np.uint8))
    low = float(nearest(name, x))
    return np.count_nonzero(got > low), set(got.tolist())


def test_stochastic_rounding() -> None:
    # A quarter of a step above 1: in E5M2 256 / 4 times up; in E4M3 as often, through 7 bits.
    assert ups(1 + 0.25 * 2**-2, "e5m2") == (64, {1.0, 1.25})
    assert ups(1 + 0.25 * 2**-3, "e4m3fn") == (64, {1.0, 1.125})
    # E3M4: seven bits on six: k + r of 64ths carries once from 64, twice from 128.
    assert ups(1.0, "e3m4fn") == (128, {1.0, 1.0625})
    assert ups(1 + 0.25 * 2**-4, "e3m4fn")[1] == {1.0, 1.0625, 1.125}
    assert 31.0 in ups(29.99, "e3m4fn")[1]
    # Subnormal numbers go to the nearest.
    assert len(ups(0.0033, "e4m3fn")[1]) == 1
    # The scalar code: 31 numbers.
    bits = np.arange(31, dtype=np.uint8)
    got = intel_toolkit(np.full(31, 1 + 48 / 1024), "e3m4fn", rounding="stochastic", random_bits=bits)
    np.testing.assert_array_equal(got, np.where(bits >= 16, 1.0625, 1.0))
    got = intel_toolkit(np.full(31, 0.0033), "e4m3fn", rounding="stochastic", random_bits=bits * 4)
    assert len(set(got.tolist())) == 2


def test_scale() -> None:
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(intel_toolkit(x, "e4m3fn", scale=16), intel_toolkit(x * 16, "e4m3fn") / 16)
    three = intel_toolkit(x, "e4m3fn", scale=3)
    np.testing.assert_array_equal(three, intel_toolkit(x * np.float32(3), "e4m3fn") * np.float32(1 / 3))


def test_sources_and_shapes() -> None:
    x = np.linspace(-3, 3, 24).reshape(2, 3, 4)
    expected = intel_toolkit(x.astype(np.float32), "e4m3fn")
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(intel_toolkit(x, "e4m3fn"), expected)
    np.testing.assert_array_equal(intel_toolkit(x.transpose(2, 0, 1), "float8_e4m3fn"), expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(intel_toolkit(x.astype(ml_dtypes.bfloat16), "e5m2"), nearest("e5m2", x.astype(ml_dtypes.bfloat16)))
    assert type(intel_toolkit(1.0, ml_dtypes.float8_e5m2)) is np.float32
    assert intel_toolkit(np.empty((0, 2)), "e5m2").shape == (0, 2)
    rng = [np.random.default_rng(5) for _ in range(2)]
    drawn = rng[1].integers(0, 256, x.shape, np.uint8)
    np.testing.assert_array_equal(
        intel_toolkit(x, "e5m2", rounding="stochastic", random_bits=rng[0]),
        intel_toolkit(x, "e5m2", rounding="stochastic", random_bits=drawn),
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fmt": "e4m3"}, FormatError, "expected one of float8_e5m2, float8_e4m3fn, float8_e3m4fn, got float8_e4m3"),
        ({"fmt": "e5m2@11"}, FormatError, "got float8_e5m2@11"),
        ({"rounding": "up"}, PolicyError, "expected rounding to be 'nearest_even' or 'stochastic', got 'up'"),
        ({"rounding": "stochastic"}, PolicyError, "needs random_bits"),
        ({"random_bits": np.zeros(2, np.uint8)}, PolicyError, "have no use"),
        ({"rounding": "stochastic", "random_bits": np.zeros(2, np.uint16)}, DTypeError, "expected random_bits of uint8"),
        ({"rounding": "stochastic", "random_bits": np.zeros(3, np.uint8)}, ShapeError, r"of shape \(3,\) do not broadcast"),
        ({"scale": 0.0}, ScaleError, "finite, positive scale"),
        ({"scale": 1e-60}, ScaleError, "finite, positive scale"),
        ({"x": ["a"]}, DTypeError, "intel_toolkit: expected real numbers"),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        intel_toolkit(**{"x": [1.0, 2.0], "fmt": "e4m3fn", **arguments})
