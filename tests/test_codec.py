"""encode and decode: the law on every 16-bit input and at every edge, vendors' measured codes, every kind of array."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _law import ALL_FORMATS, DETERMINISTIC, EXTREME, SIGNED_FORMATS, all_16_bit, edges, law

import fp8np
from fp8np import codec, reference
from fp8np.errors import DTypeError, FormatError, PolicyError, ShapeError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.kernels._threads import threads
from fp8np.policy import NAN, OVERFLOW

ml_dtypes = pytest.importorskip("ml_dtypes")

VECTORS = Path(fp8np.__file__).parent / "verify" / "data"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BITS = np.arange(1 << 16, dtype=np.uint16)
SOURCES = {"float16": BITS.view(np.float16), "bfloat16": BITS.view(BFLOAT16)}
E4M3FN = get_format("e4m3fn")


def random_bits(shape: Any, dtype: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# -- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("f", ALL_FORMATS, ids=str)
def test_every_16_bit_input_under_every_policy(f: FloatFormat, kind: str) -> None:
    exact = all_16_bit(kind)
    for overflow in OVERFLOW:
        for rounding in DETERMINISTIC:
            codes = codec.encode(SOURCES[kind], f, overflow=overflow, rounding=rounding)
            np.testing.assert_array_equal(codes, law(f, exact, overflow, rounding), f"{overflow} {rounding}")


@pytest.mark.parametrize("f", [*ALL_FORMATS, *EXTREME], ids=str)
def test_every_edge_from_float64_and_float32(f: FloatFormat) -> None:
    double = edges(f)
    with np.errstate(over="ignore"):
        single = double.astype(np.float32)
    for overflow in OVERFLOW:
        for rounding in DETERMINISTIC:
            for x in (double, single):
                codes = codec.encode(x, f, overflow=overflow, rounding=rounding)
                np.testing.assert_array_equal(codes, law(f, x.astype(np.float64), overflow, rounding), f"{overflow} {rounding}")


@pytest.mark.parametrize("f", ALL_FORMATS, ids=str)
def test_nan_policies_and_overflow_from_every_source(f: FloatFormat) -> None:
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 1e6, -1e6])
    for source in (np.float64, np.float32, np.float16, BFLOAT16, np.longdouble):
        with np.errstate(over="ignore"):
            array = x.astype(source)
        for nan in NAN[: 6 - bool(f.nan_codes)]:
            for overflow in OVERFLOW:
                expected = law(f, array.astype(np.float64), overflow, nan=nan)
                np.testing.assert_array_equal(codec.encode(array, f, overflow=overflow, nan=nan), expected, f"{source} {nan} {overflow}")


@pytest.mark.parametrize("f", ALL_FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_stochastic_rounding_follows_the_law(f: FloatFormat, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    exponents = rng.integers(f.quantum_exponent - 40, f.max_exponent + 3, 400)
    x = np.concatenate([rng.standard_normal(400) * 2.0**exponents, edges(f)[::37], [5e-324, -5e-324, 2.0**-1022]])
    bits = random_bits(x.shape, dtype)
    bits[::7] = np.iinfo(dtype).max
    width = 8 * bits.itemsize
    for overflow in OVERFLOW:
        expected = [
            reference.encode(f, v, overflow=overflow, rounding="stochastic_a", random_bits=(r, width))
            for v, r in zip(x.tolist(), bits.tolist(), strict=True)
        ]
        codes = codec.encode(x, f, overflow=overflow, rounding="stochastic_a", random_bits=bits)
        np.testing.assert_array_equal(codes, np.array(expected, np.uint8))


def test_stochastic_rounding_at_a_cut_of_more_than_62_bits() -> None:
    # nu = 2^-31 of the smallest subnormal; only the largest 32-bit integers of all carry.
    x = np.full(3, 2.0**-9 * 2.0**-31)
    bits = np.array([2**32 - 1, 2**32 - 2, 2**32 - 3], np.uint32)
    assert codec.encode(x, "e4m3fn", rounding="stochastic_a", random_bits=bits).tolist() == [1, 1, 0]
    assert codec.encode(x / 2, "e4m3fn", rounding="stochastic_a", random_bits=bits).tolist() == [1, 0, 0]
    assert codec.encode(x / 4, "e4m3fn", rounding="stochastic_a", random_bits=bits).tolist() == [0, 0, 0]


# -- vendors' measured codes ------------------------------------------------------------------------------------------

DIGESTS = json.loads((VECTORS / "golden_digests.json").read_text())
PRESET_OF = {"ml_dtypes-0.6.0": "ml_dtypes", "torch-2.13.0+cpu": "torch", "cuda_fp8-13.5": None}


@pytest.mark.parametrize("key", DIGESTS)
def test_presets_give_the_measured_codes(key: str) -> None:
    # LIBRARY/SOURCE->FORMAT or LIBRARY/SOURCE->FORMAT/MODE
    library, conversion, *mode = key.split("/")
    kind, name = conversion.split("->")
    source = SOURCES[{"f16": "float16", "bf16": "bfloat16"}[kind]]
    preset = PRESET_OF[library] or f"cuda_{mode[0]}"
    codes = codec.encode(source, "e4m3fn" if mode and name == "e4m3" else name, preset=preset)
    assert hashlib.sha256(codes.tobytes()).hexdigest() == DIGESTS[key]


def test_an_h100_gives_the_codes_of_the_cuda_presets() -> None:
    with np.load(VECTORS / "hopper_cvt16.npz") as vectors:
        conversions = [key for key in vectors if "_to_e" in key]
        assert len(conversions) == 8
        for key in conversions:
            kind, rest = key.split("_to_")
            name, mode = rest.split("_")
            np.testing.assert_array_equal(codec.encode(SOURCES[kind], name, preset=f"cuda_{mode}"), vectors[key], key)
        for name in ("e4m3fn", "e5m2"):
            ours = codec.decode(np.arange(256, dtype=np.uint8), name, dtype=np.float16)
            theirs = vectors[f"{name}_to_float16_bits"].view(np.float16)
            number = ~np.isnan(ours)
            np.testing.assert_array_equal(ours.view(np.uint16)[number], theirs.view(np.uint16)[number])
            assert np.isnan(theirs[~number]).all()


@pytest.mark.parametrize("name", ["ocp", "onnx"])
def test_the_other_presets_are_named_policies(name: str) -> None:
    x = edges(E4M3FN)
    for short in ("e5m2", "e4m3fn"):
        np.testing.assert_array_equal(codec.encode(x, short, preset=f"{name}_sat"), codec.encode(x, short))
        nosat = f"{name}_nonsat" if name == "ocp" else f"{name}_nosat"
        np.testing.assert_array_equal(codec.encode(x, short, preset=nosat), codec.encode(x, short, overflow="ieee"))


def test_torch_before_2_12_gave_nan() -> None:
    assert [int(codec.encode(1e9, "e4m3fn", preset=p)) for p in ("torch", "torch<2.12")] == [0x7E, 0x7F]
    assert [int(codec.encode(np.nan, "e5m2", preset=p)) for p in ("torch", "torch<2.12")] == [0x7F, 0x7F]


@pytest.mark.parametrize("f", [f for f in FORMATS.values() if hasattr(ml_dtypes, f.name)], ids=str)
def test_decode_has_the_bits_of_ml_dtypes(f: FloatFormat) -> None:
    codes = np.arange(1 << f.bits, dtype=np.uint8)
    theirs = codes.view(getattr(ml_dtypes, f.name)).astype(np.float32)
    np.testing.assert_array_equal(codec.decode(codes, f).view(np.uint32), theirs.view(np.uint32))


# -- one rounding from any source -------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", ALL_FORMATS, ids=str)
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_longdouble_is_rounded_once(f: FloatFormat, rounding: str) -> None:
    x = edges(f)[::7].astype(np.longdouble)
    x = np.concatenate([x, np.nextafter(x, np.longdouble(np.inf)), np.nextafter(x, np.longdouble(-np.inf))])
    x = x[np.isfinite(x)]
    expected = [reference.encode(f, Fraction(*v.as_integer_ratio()) if v else float(v), rounding=rounding, overflow="ieee") for v in x]
    np.testing.assert_array_equal(codec.encode(x, f, rounding=rounding, overflow="ieee"), np.array(expected, np.uint8))


def test_a_longdouble_beyond_float64_stays_finite() -> None:
    huge = np.nextafter(np.longdouble(np.finfo(np.float64).max), np.longdouble(np.inf)) * 2
    assert codec.encode(np.array([huge, -huge]), "e5m2", overflow="ieee", rounding="toward_zero").tolist() == [
        0x7B if np.isfinite(huge) else 0x7C,
        0xFB if np.isfinite(huge) else 0xFC,
    ]


@pytest.mark.parametrize("dtype", [np.bool_, *"bhilqBHILQ"])
@pytest.mark.parametrize("name", ["e4m3fn", "e5m2fnuz", "e8m0fnu", "e4m3@0"])
def test_integers_are_exact(name: str, dtype: Any) -> None:
    f = get_format(name)
    low, high = (0, 1) if dtype is np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    centres = [0, 464, *(s * 3 * 2**k for k in range(63) for s in (1, -1)), 2**53, 2**62, 2**63, low, high]
    numbers = sorted({c + d for c in centres for d in (-(2**11), -1, 0, 1, 2**11) if low <= c + d <= high})
    for rounding in DETERMINISTIC:
        expected = np.array([reference.encode(f, n, rounding=rounding) for n in numbers], np.uint8)
        np.testing.assert_array_equal(codec.encode(np.array(numbers, dtype), f, rounding=rounding), expected)


def test_python_numbers_and_lists() -> None:
    assert codec.encode(1, "e4m3fn") == codec.encode(1.0, "e4m3fn") == codec.encode(True, "e4m3fn") == 0x38
    assert codec.encode([[1, 2.5], [-3, 0]], "e4m3fn").tolist() == [[0x38, 0x42], [0xC4, 0x00]]
    assert codec.encode(-(2**63), "e8m0fnu") == 0xFF


def test_bits_of_bfloat16() -> None:
    np.testing.assert_array_equal(codec.encode(BITS, E4M3FN, source="bfloat16"), codec.encode(SOURCES["bfloat16"], E4M3FN))
    assert codec.encode(np.uint16(0x3F80), E4M3FN, source="bfloat16") == 0x38
    assert codec.encode(BITS[::-2], E4M3FN, source="bfloat16").shape == (1 << 15,)


def test_codes_of_another_format_as_an_ml_dtypes_array() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = codec.encode(codec.decode(codes, "e5m2"), "e4m3fn")
    np.testing.assert_array_equal(codec.encode(codes.view(ml_dtypes.float8_e5m2), "e4m3fn"), expected)


# -- arrays of every kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
def test_strides_order_byte_order_and_read_only(dtype: Any) -> None:
    x = (np.random.default_rng(2).standard_normal((6, 7, 5)) * 50).astype(dtype)
    expected = codec.encode(x, E4M3FN)
    frozen = x.copy()
    frozen.setflags(write=False)
    for same in (np.asfortranarray(x), x.astype(np.dtype(dtype).newbyteorder("S")), frozen, np.repeat(x, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(codec.encode(same, E4M3FN), expected)
    np.testing.assert_array_equal(codec.encode(x[::-1, ::2, 1:], E4M3FN), expected[::-1, ::2, 1:])
    np.testing.assert_array_equal(codec.encode(x.T, E4M3FN), expected.T)
    np.testing.assert_array_equal(codec.encode(np.broadcast_to(x[0], (3, 7, 5)), E4M3FN), np.broadcast_to(expected[0], (3, 7, 5)))
    np.testing.assert_array_equal(codec.decode(expected[::-1, ::2, 1:], E4M3FN), codec.decode(expected, E4M3FN)[::-1, ::2, 1:])


@pytest.mark.parametrize("f", SIGNED_FORMATS, ids=str)
def test_any_length_and_offset_gives_the_same_codes(f: FloatFormat) -> None:
    # The compiled loops work in blocks with a remainder.
    x = (np.random.default_rng(3).standard_normal(200) * f.max / 3).astype(np.float32)
    whole = codec.encode(x, f)
    values = codec.decode(whole, f)
    for n in (1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 65, 100):
        np.testing.assert_array_equal(codec.encode(x[3 : 3 + n], f), whole[3 : 3 + n])
        np.testing.assert_array_equal(codec.encode(x[3 : 3 + n].astype(np.float64), f), whole[3 : 3 + n])
        np.testing.assert_array_equal(codec.decode(whole[3 : 3 + n], f), values[3 : 3 + n])


def test_scalars_empty_and_zero_dimensional() -> None:
    for x in (1.5, np.float32(1.5), np.array(1.5), np.array(1.5, np.float16)):
        code = codec.encode(x, E4M3FN)
        assert isinstance(code, np.uint8)
        assert code == 0x3C
        value = codec.decode(code, E4M3FN)
        assert isinstance(value, np.float32)
        assert value == 1.5
    out = np.empty((), np.uint8)
    assert codec.encode(1.5, E4M3FN, out=out) is out
    for shape in ((0,), (3, 0), (0, 2, 0)):
        for dtype in (np.float32, np.float64):
            assert codec.encode(np.empty(shape, dtype), E4M3FN).shape == shape
        assert codec.decode(np.empty(shape, np.uint8), E4M3FN).shape == shape


def test_threads_change_nothing() -> None:
    x = np.random.default_rng(4).standard_normal(3 << 19)
    bits = random_bits(x.shape, np.uint16)
    for source in (x, x.astype(np.float32)):
        for policy in ({}, {"rounding": "down"}, {"rounding": "stochastic_a", "random_bits": bits}):
            with threads(1):
                alone = codec.encode(source, E4M3FN, **policy)  # type: ignore[arg-type]
                values = codec.decode(alone, E4M3FN)
            with threads(3):
                np.testing.assert_array_equal(codec.encode(source, E4M3FN, **policy), alone)  # type: ignore[arg-type]
                np.testing.assert_array_equal(codec.decode(alone, E4M3FN), values)


def test_out_is_written_and_may_overlap() -> None:
    x = np.linspace(-500, 500, 64, dtype=np.float32)
    expected = codec.encode(x, E4M3FN)
    for out in (np.zeros(64, np.uint8), np.zeros(128, np.uint8)[::2], np.zeros(64, np.uint8)[::-1]):
        assert codec.encode(x, E4M3FN, out=out) is out
        np.testing.assert_array_equal(out, expected)
    for start in (0, 17, 192):
        inside = x.copy()
        overlapping = inside.view(np.uint8)[start : start + 64]
        np.testing.assert_array_equal(codec.encode(inside, E4M3FN, out=overlapping), expected)

    values = codec.decode(expected, E4M3FN)
    memory = np.zeros(64, np.float32)
    codes = memory.view(np.uint8)[100:164]
    codes[:] = expected
    assert codec.decode(codes, E4M3FN, out=memory) is memory
    np.testing.assert_array_equal(memory, values)
    strided = np.zeros((64, 2))[:, 0]
    np.testing.assert_array_equal(codec.decode(expected, E4M3FN, dtype=np.float64, out=strided), values)


# -- decode -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [*ALL_FORMATS, *EXTREME], ids=str)
def test_decode_into_every_type(f: FloatFormat) -> None:
    codes = np.arange(1 << f.bits, dtype=np.uint8)
    exact = [reference.decode(f, c) for c in range(1 << f.bits)]
    double = codec.decode(codes, f, dtype=np.float64)
    for value, expected in zip(double.tolist(), exact, strict=True):
        assert value == expected or (np.isnan(value) and np.isnan(float(expected)))
    np.testing.assert_array_equal(np.signbit(double), codes & f.sign_bit != 0)
    for dtype in (np.float32, BFLOAT16):
        np.testing.assert_array_equal(codec.decode(codes, f, dtype=dtype).astype(np.float64), double)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(codec.decode(codes, f, dtype=np.float16), double.astype(np.float16))
    table = codec.decode_table(f)
    assert np.isnan(table[1 << f.bits :]).all()
    table = table[: 1 << f.bits]
    np.testing.assert_array_equal(table.view(np.uint32), codec.decode(codes, f).view(np.uint32))
    assert not table.flags.writeable
    assert codec.decode_table(f) is codec.decode_table(f)


def test_decode_of_ml_dtypes_arrays() -> None:
    codes = np.arange(256, dtype=np.uint8)
    array = codes.view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(codec.decode(array, "e4m3fn"), codec.decode(codes, "e4m3fn"))
    with pytest.raises(FormatError, match=r"float8_e4m3fn.*float8_e5m2"):
        codec.decode(array, "e5m2")


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [np.array([1j]), np.array(["1"]), np.array([None]), np.array([2**70]), np.array(["2020"], "M8[Y]")])
def test_what_is_not_real_numbers_is_refused(x: Any) -> None:
    with pytest.raises(DTypeError, match="real numbers"):
        codec.encode(x, E4M3FN)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "bfloat16"}, DTypeError, "uint16"),
        ({"source": "float16"}, DTypeError, "source='float16'"),
        ({"random_bits": np.zeros(3, np.uint8)}, PolicyError, "stochastic"),
        ({"rounding": "stochastic_a"}, PolicyError, "needs random_bits"),
        ({"rounding": "stochastic_a", "random_bits": np.zeros(3)}, DTypeError, "float64"),
        ({"rounding": "stochastic_a", "random_bits": np.zeros(3, np.uint64)}, DTypeError, "uint64"),
        ({"rounding": "stochastic_a", "random_bits": np.zeros(2, np.uint8)}, ShapeError, "broadcast"),
        ({"out": np.zeros(3, np.int8)}, DTypeError, "int8"),
        ({"out": [0, 0, 0]}, DTypeError, "list"),
        ({"out": np.zeros(4, np.uint8)}, ShapeError, r"\(3,\).*\(4,\)"),
        ({"out": np.broadcast_to(np.uint8(0), 3)}, DTypeError, "read-only"),
        ({"preset": "nvidia"}, PolicyError, "preset"),
        ({"overflow": "wrap"}, PolicyError, "overflow"),
    ],
)
def test_encode_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codec.encode(np.zeros(3, np.float32), E4M3FN, **arguments)


@pytest.mark.parametrize(
    ("codes", "arguments", "error", "message"),
    [
        ([1, 2], {}, DTypeError, "uint8"),
        (np.zeros(2, np.int8), {}, DTypeError, "int8"),
        (np.zeros(2, np.float32), {}, DTypeError, "float32"),
        (np.zeros(2, np.uint8), {"dtype": np.int32}, DTypeError, "int32"),
        (np.zeros(2, np.uint8), {"out": np.zeros(2)}, DTypeError, "float64"),
        (np.zeros(2, np.uint8), {"out": np.zeros(3, np.float32)}, ShapeError, r"\(2,\)"),
    ],
)
def test_decode_refuses(codes: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codec.decode(codes, E4M3FN, **arguments)


def test_public_names() -> None:
    assert fp8np.encode is codec.encode
    assert fp8np.decode is codec.decode
