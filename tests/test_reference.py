"""The law against ml_dtypes, IEEE 754 and the specifications' own words."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from _law import ALL_FORMATS, DETERMINISTIC, SIGNED_FORMATS, edges

from fp8np import reference
from fp8np.errors import PolicyError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.policy import NAN, OVERFLOW, PRESETS, ROUNDING, Policy, resolve

ml_dtypes = pytest.importorskip("ml_dtypes")

SHARED = [f for f in FORMATS.values() if hasattr(ml_dtypes, f.name)]
E4M3FN, E5M2, E8M0 = (get_format(name) for name in ("e4m3fn", "e5m2", "e8m0fnu"))


def test_ml_dtypes_has_eight_of_the_formats() -> None:
    assert len(SHARED) == 8


@pytest.mark.parametrize("f", SHARED, ids=str)
def test_decode_agrees_with_ml_dtypes_on_all_codes(f: FloatFormat) -> None:
    theirs = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, f.name)).astype(np.float64)
    ours = np.array([float(reference.decode(f, code)) for code in range(256)])
    np.testing.assert_array_equal(ours, theirs)
    zero = ours == 0
    np.testing.assert_array_equal(np.signbit(ours[zero]), np.signbit(theirs[zero]))


@pytest.mark.parametrize("f", [f for f in SHARED if f.signed], ids=str)
def test_encode_agrees_with_ml_dtypes_at_every_midpoint_and_its_neighbours(f: FloatFormat) -> None:
    # Python floats, one by one: arrays of float64 go through float32 in ml_dtypes and are rounded twice.
    scalar_type: Any = getattr(ml_dtypes, f.name)
    policy = resolve(f, preset="ml_dtypes")
    values = [*edges(f).tolist(), math.inf, -math.inf, math.nan, -math.nan]
    with np.errstate(over="ignore"):
        theirs = np.array([scalar_type(v) for v in values], scalar_type).view(np.uint8)
    ours = [reference.encode(f, v, overflow=policy.overflow, nan=policy.nan) for v in values]
    np.testing.assert_array_equal(np.array(ours, np.uint8), theirs)


@pytest.mark.parametrize("f", ALL_FORMATS, ids=str)
def test_values_of_codes_are_fixed_points_of_every_rounding(f: FloatFormat) -> None:
    for code, rounding, overflow in itertools.product(range(256), ROUNDING, OVERFLOW):
        value = reference.decode(f, code)
        if math.isfinite(value) or (math.isinf(value) and overflow != "saturate"):
            back = reference.encode(f, value, rounding=rounding, overflow=overflow, random_bits=(255, 8))
            assert back == code, (code, rounding, overflow)


@pytest.mark.parametrize(
    ("rounding", "codes"),
    # 1.0625 is the midpoint of 38 and 39, 1.1875 that of 39 and 3A; 1.07 lies above the first, 1.05 below.
    [
        ("nearest_even", (0x38, 0x3A, 0x39, 0x38)),
        ("nearest_away", (0x39, 0x3A, 0x39, 0x38)),
        ("toward_zero", (0x38, 0x39, 0x38, 0x38)),
        ("up", (0x39, 0x3A, 0x39, 0x39)),
        ("down", (0x38, 0x39, 0x38, 0x38)),
    ],
)
def test_rounding_modes(rounding: str, codes: tuple[int, ...]) -> None:
    mirrored = {"up": "down", "down": "up"}.get(rounding, rounding)
    for x, code in zip((1.0625, 1.1875, 1.07, 1.05), codes, strict=True):
        assert reference.encode(E4M3FN, x, rounding=rounding) == code
        assert reference.encode(E4M3FN, -x, rounding=mirrored) == code | 0x80


def test_overflow_is_decided_after_rounding() -> None:
    # 464 is the midpoint of 448 and the 480 that would follow it: ties to the even 448.
    above = math.nextafter(464, math.inf)
    assert reference.encode(E4M3FN, 464, overflow="ieee") == 0x7E
    assert reference.encode(E4M3FN, above, overflow="ieee") == 0x7F
    assert reference.encode(E4M3FN, 464, overflow="ieee", rounding="nearest_away") == 0x7F
    assert reference.encode(E5M2, 61440, overflow="ieee") == 0x7C
    assert reference.encode(E5M2, math.nextafter(61440, 0), overflow="ieee") == 0x7B


@pytest.mark.parametrize(
    ("overflow", "rounding", "codes"),
    # Of 1e9, -1e9, inf, -inf in e5m2.
    [
        ("saturate", "nearest_even", (0x7B, 0xFB, 0x7B, 0xFB)),
        ("saturate", "up", (0x7B, 0xFB, 0x7B, 0xFB)),
        ("propagate", "nearest_even", (0x7B, 0xFB, 0x7C, 0xFC)),
        ("ieee", "nearest_even", (0x7C, 0xFC, 0x7C, 0xFC)),
        ("ieee", "nearest_away", (0x7C, 0xFC, 0x7C, 0xFC)),
        ("ieee", "stochastic", (0x7C, 0xFC, 0x7C, 0xFC)),
        ("ieee", "toward_zero", (0x7B, 0xFB, 0x7C, 0xFC)),
        ("ieee", "up", (0x7C, 0xFB, 0x7C, 0xFC)),
        ("ieee", "down", (0x7B, 0xFC, 0x7C, 0xFC)),
    ],
)
def test_overflow_policies(overflow: str, rounding: str, codes: tuple[int, ...]) -> None:
    for x, code in zip((1e9, -1e9, math.inf, -math.inf), codes, strict=True):
        assert reference.encode(E5M2, x, overflow=overflow, rounding=rounding) == code


def test_where_there_is_no_infinity_overflow_gives_nan_with_the_sign() -> None:
    for nan in NAN:
        assert [reference.encode(E4M3FN, s * 1e9, overflow="ieee", nan=nan) for s in (1, -1)] == [0x7F, 0xFF]
        assert [reference.encode(E4M3FN, s * math.inf, overflow="propagate", nan=nan) for s in (1, -1)] == [0x7F, 0xFF]
        assert [reference.encode(get_format("e4m3fnuz"), s * 1e9, overflow="ieee", nan=nan) for s in (1, -1)] == [0x80, 0x80]


@pytest.mark.parametrize(
    ("name", "keep_sign", "all_ones", "positive"),
    [
        ("e5m2", (0x7E, 0xFE), (0x7F, 0xFF), (0x7F, 0x7F)),
        ("e4m3", (0x7C, 0xFC), (0x7F, 0xFF), (0x7F, 0x7F)),
        ("e3m4", (0x78, 0xF8), (0x7F, 0xFF), (0x7F, 0x7F)),
        ("e4m3fn", (0x7F, 0xFF), (0x7F, 0xFF), (0x7F, 0x7F)),
        ("e4m3fnuz", (0x80, 0x80), (0x80, 0x80), (0x80, 0x80)),
        ("e8m0fnu", (0xFF, 0xFF), (0xFF, 0xFF), (0xFF, 0xFF)),
    ],
)
def test_nan_policies(name: str, keep_sign: tuple[int, int], all_ones: tuple[int, int], positive: tuple[int, int]) -> None:
    for nan, codes in zip(NAN, (keep_sign, all_ones, positive), strict=True):
        for sign, code in zip((1, -1), codes, strict=True):
            assert reference.encode(get_format(name), math.copysign(math.nan, sign), nan=nan) == code


@pytest.mark.parametrize("f", SIGNED_FORMATS, ids=str)
def test_negative_zero_and_what_rounds_to_it(f: FloatFormat) -> None:
    zero = 0x80 if f.has_negative_zero else 0x00
    tiny = -Fraction(1, 10**60)
    assert reference.encode(f, -0.0) == reference.encode(f, tiny) == reference.encode(f, tiny, rounding="up") == zero
    assert reference.encode(f, tiny, rounding="down") == 0x81


@pytest.mark.parametrize("nu", [Fraction(0), Fraction(1, 512), Fraction(1, 256), Fraction(1, 3), Fraction(1, 2), Fraction(255, 256)])
def test_stochastic_counts_are_exact(nu: Fraction) -> None:
    # P3109 v4.0, StochasticA: of the 2^N random integers exactly floor(nu * 2^N) round away from zero.
    for low in (Fraction(1), Fraction(7, 512), Fraction(0)):  # normal, subnormal, below the smallest subnormal
        step = Fraction(1, 8) if low == 1 else Fraction(1, 512)
        x = low + nu * step
        codes = [reference.encode(E4M3FN, x, rounding="stochastic", random_bits=(r, 8)) for r in range(256)]
        base = reference.encode(E4M3FN, low)
        assert codes.count(base + 1) == math.floor(nu * 256)
        assert codes.count(base) == 256 - math.floor(nu * 256)


def test_e8m0_has_neither_sign_nor_zero() -> None:
    def encode(x: Fraction | float, **policy: str) -> int:
        return reference.encode(E8M0, x, **policy)  # type: ignore[arg-type]

    assert [encode(Fraction(2) ** e) for e in (-127, 0, 127)] == [0x00, 0x7F, 0xFE]
    for rounding in DETERMINISTIC:
        assert encode(Fraction(2) ** -130, rounding=rounding, overflow="ieee") == 0x00
        assert [encode(x, rounding=rounding) for x in (-1.0, -math.inf)] == [0xFF, 0xFF]
        assert [encode(0.0, rounding=rounding, overflow=o) for o in OVERFLOW] == [0x00, 0xFF, 0x00]
    # Ties go to the even code: 1.5 lies between 7F and 80, 3 between 80 and 81.
    assert [encode(x) for x in (1.5, 3.0, 1.49, 1.51)] == [0x80, 0x80, 0x7F, 0x80]
    assert [encode(1e39, overflow=o) for o in OVERFLOW] == [0xFE, 0xFF, 0xFE]
    assert [encode(math.inf, overflow=o) for o in OVERFLOW] == [0xFE, 0xFF, 0xFF]


def test_presets_are_rows_of_known_formats_and_policies() -> None:
    for rows in PRESETS.values():
        assert rows.keys() <= FORMATS.keys()
        assert all(policy.rounding == "nearest_even" for policy in rows.values())
    assert set(PRESETS["ml_dtypes"]) == {f.name for f in SHARED if f.signed}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("e4m3fn", {"overflow": "saturating"}, "did you mean 'saturate'"),
        ("e4m3fn", {"rounding": "bankers"}, "expected one of 'nearest_even'"),
        ("e4m3fn", {"nan": "payload"}, "unknown nan"),
        ("e4m3fn", {"preset": "pytorch"}, "did you mean 'torch'"),
        ("e3m4", {"preset": "cuda_satfinite"}, "does not define float8_e3m4; it defines float8_e5m2, float8_e4m3fn"),
        ("e8m0fnu", {"preset": "ml_dtypes"}, "does not define"),
        ("e4m3@3", {"preset": "ml_dtypes"}, "does not define"),
        ("e4m3fn", {"preset": "ml_dtypes", "overflow": "saturate"}, "overflow='saturate' was given too"),
        ("e5m2", {"preset": "torch", "nan": "keep_sign"}, "nan='keep_sign' was given too"),
        ("e5m2", {"preset": "torch", "rounding": "up"}, "rounding='up' was given too"),
    ],
)
def test_policy_errors(name: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        resolve(get_format(name), **arguments)


def test_a_preset_may_be_repeated_in_words() -> None:
    assert resolve(E5M2, preset="cuda_nosat", overflow="ieee", nan="positive") == Policy("ieee", "nearest_even", "positive")
    assert resolve(E5M2) == Policy("saturate", "nearest_even", "keep_sign")
