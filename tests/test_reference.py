"""The law against ml_dtypes, IEEE 754 and the specifications' own words."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from _law import ALL_FORMATS, DETERMINISTIC, SIGNED_FORMATS, edges
from hypothesis import given
from hypothesis import strategies as st

from fp8np import codec, reference
from fp8np.errors import PolicyError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.policy import NAN, OVERFLOW, PRESETS, ROUNDING, Policy, resolve

ml_dtypes = pytest.importorskip("ml_dtypes")

SHARED = [f for f in FORMATS.values() if hasattr(ml_dtypes, f.name)]
E4M3FN, E5M2, E8M0 = (get_format(name) for name in ("e4m3fn", "e5m2", "e8m0fnu"))


def test_ml_dtypes_has_eleven_of_the_formats() -> None:
    assert len(SHARED) == 11


@pytest.mark.parametrize("f", SHARED, ids=str)
def test_decode_agrees_with_ml_dtypes_on_all_codes(f: FloatFormat) -> None:
    codes = np.arange(1 << f.bits, dtype=np.uint8)
    theirs = codes.view(getattr(ml_dtypes, f.name)).astype(np.float64)
    ours = np.array([float(reference.decode(f, code)) for code in codes.tolist()])
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
    for code, rounding, overflow in itertools.product(range(1 << f.bits), ROUNDING, OVERFLOW):
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
        ("odd", (0x39, 0x39, 0x39, 0x39)),
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
        ("ieee", "stochastic_a", (0x7C, 0xFC, 0x7C, 0xFC)),
        ("ieee", "toward_zero", (0x7B, 0xFB, 0x7C, 0xFC)),
        ("ieee", "up", (0x7C, 0xFB, 0x7C, 0xFC)),
        ("ieee", "down", (0x7B, 0xFC, 0x7C, 0xFC)),
        ("ieee_early", "nearest_even", (0x7C, 0xFC, 0x7C, 0xFC)),
        ("ieee_early", "up", (0x7C, 0xFB, 0x7C, 0xFC)),
    ],
)
def test_overflow_policies(overflow: str, rounding: str, codes: tuple[int, ...]) -> None:
    for x, code in zip((1e9, -1e9, math.inf, -math.inf), codes, strict=True):
        assert reference.encode(E5M2, x, overflow=overflow, rounding=rounding) == code


def test_overflow_before_rounding_starts_just_above_the_largest_value() -> None:
    above = math.nextafter(448, math.inf)
    assert [reference.encode(E4M3FN, x, overflow="ieee_early") for x in (448, above, -above)] == [0x7E, 0x7F, 0xFF]
    assert reference.encode(E4M3FN, above, overflow="ieee_early", rounding="toward_zero") == 0x7E


def test_where_there_is_no_infinity_overflow_gives_nan_with_the_sign() -> None:
    for nan in NAN[:5]:
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
    for nan, codes in zip(NAN[:3], (keep_sign, all_ones, positive), strict=True):
        for sign, code in zip((1, -1), codes, strict=True):
            assert reference.encode(get_format(name), math.copysign(math.nan, sign), nan=nan) == code


def test_payloads_of_nan() -> None:
    # float64 NaNs whose leading mantissa bits are q p...: quiet bit set, payload bit p kept.
    def nan(bits: int) -> float:
        return float(np.array(bits, np.uint64).view(np.float64))

    for p in (0, 1):
        x = nan(0xFFF8000000000000 | p << 50)
        assert reference.encode(E5M2, x, nan="payload") == 0xFE | p
        assert reference.encode(E4M3FN, x, nan="payload") == 0xFF
        assert reference.encode(get_format("e3m4"), x, nan="payload") == 0xF8 | p << 2
    signalling = np.array([0x7FA00001, 0xFFC00000], np.uint32).view(np.float32)
    assert codec.encode(signalling, E5M2, nan="payload").tolist() == [0x7F, 0xFE]


def test_what_nan_becomes_where_there_is_none() -> None:
    e2m1 = get_format("e2m1fn")
    codes = {nan: [reference.encode(e2m1, math.copysign(math.nan, s), nan=nan) for s in (1, -1)] for nan in NAN}
    assert codes["keep_sign"] == codes["max"] == codes["payload"] == [0x7, 0xF]
    assert codes["positive"] == [0x7, 0x7]
    assert codes["negated_zero"] == [0x8, 0x0]
    assert reference.encode(get_format("e4m3fnuz"), -math.nan, nan="max") == 0xFF


def test_unsigned_formats_and_numbers_below_zero() -> None:
    extended, finite = get_format("binary8p4ue"), get_format("binary8p4uf")
    tiny = -extended.smallest_subnormal
    for f in (extended, finite):
        assert [reference.encode(f, x) for x in (-1, -math.inf, -0.0, tiny)] == [0, 0, 0, 0]
        assert [reference.encode(f, x, negative="magnitude") for x in (-1, 1)] == [reference.encode(f, 1)] * 2
        # Rounded first, as P3109 projects: what rounds to zero is zero, and a rounding that points to zero stops there.
        results = [reference.encode(f, x, overflow="ieee") for x in (-1, -math.inf, -0.0, tiny, tiny / 2, tiny * 0.51)]
        assert results == [0xFF, 0xFF, 0, 0xFF, 0, 0xFF]
        assert [reference.encode(f, x, overflow="ieee", rounding="up") for x in (-1, -math.inf)] == [0, 0xFF]
    assert [reference.encode(extended, math.inf, overflow=o) for o in OVERFLOW] == [0xFD, 0xFE, 0xFE, 0xFE]
    assert [reference.encode(finite, math.inf, overflow=o) for o in OVERFLOW] == [0xFE, 0xFF, 0xFF, 0xFF]


@pytest.mark.parametrize("f", SIGNED_FORMATS, ids=str)
def test_negative_zero_and_what_rounds_to_it(f: FloatFormat) -> None:
    zero = f.sign_bit if f.has_negative_zero else 0x00
    tiny = -Fraction(1, 10**60)
    assert reference.encode(f, -0.0) == reference.encode(f, tiny) == reference.encode(f, tiny, rounding="up") == zero
    assert reference.encode(f, tiny, rounding="down") == f.sign_bit | 1


@pytest.mark.parametrize("nu", [Fraction(0), Fraction(1, 512), Fraction(1, 256), Fraction(3, 512), Fraction(1, 3), Fraction(255, 256)])
def test_stochastic_counts_are_exact(nu: Fraction) -> None:
    # P3109 v4.0: how many of the 2^N random integers round away from zero.
    wanted = {
        "stochastic_a": math.floor(nu * 256),
        "stochastic_b": math.floor(nu * 256 + Fraction(1, 2)),
        "stochastic_c": round(nu * 256),
    }
    for low in (Fraction(1), Fraction(7, 512), Fraction(0)):  # normal, subnormal, below the smallest subnormal
        step = Fraction(1, 8) if low == 1 else Fraction(1, 512)
        base = reference.encode(E4M3FN, low)
        for rounding, away in wanted.items():
            codes = [reference.encode(E4M3FN, low + nu * step, rounding=rounding, random_bits=(r, 8)) for r in range(256)]
            assert codes.count(base + 1) == away, rounding
            assert codes.count(base) == 256 - away, rounding


@pytest.mark.parametrize(
    ("mode", "theirs"), [("stochastic_a", "StochasticFastest"), ("stochastic_b", "StochasticFast"), ("stochastic_c", "Stochastic")]
)
def test_stochastic_rounding_is_that_of_gfloat(mode: str, theirs: str) -> None:
    gfloat = pytest.importorskip("gfloat")
    formats = pytest.importorskip("gfloat.formats")
    rounding = gfloat.RoundMode[theirs]
    rng = np.random.default_rng(0)
    for x in (rng.standard_normal(150) * 2.0 ** rng.integers(-12, 9, 150)).tolist():
        bits = int(rng.integers(0, 16))
        value = gfloat.round_float(formats.format_info_ocp_e4m3, x, rounding, True, bits, 4)
        assert float(reference.decode(E4M3FN, reference.encode(E4M3FN, x, rounding=mode, random_bits=(bits, 4)))) == value


def test_avx10_bias_is_stochastic_a_from_float16() -> None:
    # VCVTBIASPH2HF8 and VCVTBIASPH2BF8: an 8-bit integer is added below the last bit kept, 7 of its bits for normal HF8, and the rest cut.
    source = np.arange(0x7C00, dtype=np.uint16)[::7]
    bias = (np.arange(source.size) * 37 % 256).astype(np.uint8)
    half = source.view(np.float16)
    bf8 = np.minimum((source.astype(int) + bias) >> 8, 0x7C)
    np.testing.assert_array_equal(codec.encode(half, E5M2, preset="avx10_bias", random_bits=bias), bf8)
    normal = (source.astype(int) + (bias >> 1) >> 7) - (8 << 3)  # float16 and HF8 biases are 15 and 7
    subnormal = np.floor((half.astype(float) + bias * 2.0**-17) * 2**9).astype(int)
    hf8 = np.where(half < 2.0**-6, subnormal, np.minimum(normal, 0x7F))
    np.testing.assert_array_equal(codec.encode(half, E4M3FN, preset="avx10_bias", random_bits=bias), hf8)


def test_avx10_rounds_float32_to_float16_first() -> None:
    # 1.0625 is a tie in E4M3; a hair above it rounds up, but float16 has no room for the hair.
    x = np.float32(1.0625 + 2.0**-20)
    assert codec.encode(x, E4M3FN) == 0x39
    assert codec.encode(x, E4M3FN, preset="avx10") == reference.encode(E4M3FN, float(x), via="float16", overflow="ieee") == 0x38


@given(st.floats() | st.floats(-70000, 70000) | st.floats(-1e-4, 1e-4))
def test_float16_on_the_way_is_numpys(x: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        half = float(np.float16(x))
    for f in (E5M2, E4M3FN):
        assert reference.encode(f, x, via="float16", overflow="ieee") == reference.encode(f, half, overflow="ieee")


def test_e8m0_has_neither_sign_nor_zero() -> None:
    def encode(x: Fraction | float, **policy: str) -> int:
        return reference.encode(E8M0, x, **policy)  # type: ignore[arg-type]

    assert [encode(Fraction(2) ** e) for e in (-127, 0, 127)] == [0x00, 0x7F, 0xFE]
    for rounding in DETERMINISTIC:
        assert encode(Fraction(2) ** -130, rounding=rounding, overflow="ieee") == 0x00
        assert [encode(x, rounding=rounding) for x in (-1.0, -math.inf)] == [0xFF, 0xFF]
        assert [encode(0.0, rounding=rounding, overflow=o) for o in OVERFLOW] == [0x00] * 4
        assert encode(-0.0, rounding=rounding, zero="nan") == 0xFF
    # Ties go to the even code: 1.5 lies between 7F and 80, 3 between 80 and 81.
    assert [encode(x) for x in (1.5, 3.0, 1.49, 1.51)] == [0x80, 0x80, 0x7F, 0x80]
    assert [encode(1e39, overflow=o) for o in OVERFLOW] == [0xFE, 0xFF, 0xFE, 0xFF]
    assert [encode(math.inf, overflow=o) for o in OVERFLOW] == [0xFE, 0xFF, 0xFF, 0xFF]


# numerics of E8M0, input: code by preset. Rows as measured: ml_dtypes 0.6.0, torch 2.13, CUDA 13.5, ONNX 1.23.2.
E8M0_MEASURED = {
    0.0: {"ml_dtypes": 0xFF, "torch": 0x00, "cuda_up_satfinite": 0x00, "cuda_zero_satfinite": 0x00, "onnx_sat": 0x00},
    -2.0: {"ml_dtypes": 0xFF, "torch": 0x80, "cuda_up_satfinite": 0x80, "cuda_zero_satfinite": 0x80, "onnx_sat": 0x80},
    1.5: {"ml_dtypes": 0x80, "torch": 0x80, "cuda_up_satfinite": 0x80, "cuda_zero_satfinite": 0x7F, "onnx_nearest_nosat": 0x80},
    3.0: {"ml_dtypes": 0x81, "torch": 0x81, "cuda_up_satfinite": 0x81, "cuda_zero_satfinite": 0x80, "onnx_sat": 0x81},
    1.25 * 2.0**-127: {"ml_dtypes": 0x01, "torch": 0x01, "cuda_up_satfinite": 0x01, "cuda_zero_satfinite": 0x00, "onnx_sat": 0x01},
    2.0**-130: {"ml_dtypes": 0x00, "torch": 0x00, "cuda_up_satfinite": 0x00, "cuda_zero_satfinite": 0x00, "onnx_sat": 0x01},
    math.inf: {"ml_dtypes": 0xFF, "torch": 0xFF, "cuda_up_satfinite": 0xFE, "cuda_zero_nosat": 0xFF, "onnx_sat": 0xFF},
}


@pytest.mark.parametrize("x", E8M0_MEASURED)
def test_e8m0_by_the_name_of_who_does_it(x: float) -> None:
    for preset, code in E8M0_MEASURED[x].items():
        assert reference.encode(E8M0, x, **asdict(PRESETS[preset][E8M0.name])) == code, preset
        for dtype in (np.float32, np.float64):
            assert codec.encode(np.array(x, dtype), E8M0, preset=preset) == code, preset


def test_presets_are_rows_of_known_formats_and_policies() -> None:
    for rows in PRESETS.values():
        assert rows
        assert rows.keys() <= FORMATS.keys()
    assert set(PRESETS["ml_dtypes"]) == {f.name for f in SHARED}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("e4m3fn", {"overflow": "saturating"}, "did you mean 'saturate'"),
        ("e4m3fn", {"rounding": "bankers"}, "expected one of 'nearest_even'"),
        ("e4m3fn", {"nan": "quiet"}, "unknown nan"),
        ("e4m3fn", {"nan": "negated_zero"}, "float8_e4m3fn has one"),
        ("e4m3fn", {"preset": "pytorch"}, "did you mean 'torch'"),
        ("e3m4", {"preset": "cuda_satfinite"}, "does not define float8_e3m4; it defines float8_e5m2, float8_e4m3fn"),
        ("e8m0fnu", {"preset": "cuda_satfinite"}, "there are ml_dtypes, torch, cuda_up_satfinite"),
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
