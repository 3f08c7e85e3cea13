"""`pack`, and products with what it makes: against float64, for operands of every kind, and what is refused."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from _graphs import gamma
from _weights import normal

import fp8np
from fp8np import QTensor, matmul, pack, quantize
from fp8np._engine import _MOST
from fp8np.errors import DTypeError, FormatError, PolicyError, ScaleError, ShapeError
from fp8np.formats import FORMATS
from fp8np.kernels._engine import ELEMENT
from fp8np.kernels._grid import PARTS, holds, takes
from fp8np.kernels._program import SLACK
from fp8np.kernels._threads import threads
from fp8np.packed import PACKS
from fp8np.scaling import dequantize

ROWS = [0, 1, 2, 3, 4, 5, 16, 17, 33]
SIZES = [(1, 1), (31, 33), (64, 32), (70, 129), (300, 45)]
FORMATS_OF_B = ["e4m3fn", "e5m2", "e3m4fn", "e4m3", "e3m4"]


def f32(*shape: int, seed: int = 0) -> Any:
    return normal(*shape, seed=seed).astype(np.float32)


def exact(x: Any) -> Any:
    return dequantize(x, dtype=np.float64) if isinstance(x, QTensor) else np.asarray(x).astype(np.float64)


def weight(k: int, n: int, fmt: str = "e4m3fn", axis: int | None = -1) -> QTensor:
    return quantize(f32(k, n, seed=1), fmt, axis=axis)


def check(got: Any, a: Any, w: QTensor, terms: int) -> None:
    """Within so many roundings and two scales of the law, 2^-6 for what the smaller parts of a float add to magnitudes."""
    left, right = exact(a), exact(w)
    assert got.dtype == np.float32
    assert got.shape == (*left.shape[:-1], right.shape[1])
    assert (np.abs(got - left @ right) <= gamma(terms + 2) * (1 + 2.0**-6) * (np.abs(left) @ np.abs(right))).all()


# -- operands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_codes(m: int, k: int, n: int, kind: str) -> None:
    for axis in (None, -1):
        w = weight(k, n, axis=axis)
        packed = pack(w, pack=kind)
        assert packed.shape == (k, n)
        assert packed.ndim == 2
        for a in (quantize(f32(m, k), "e5m2"), quantize(f32(m, k), "e4m3fn", axis=0)):
            got = matmul(a, packed)
            check(got, a, w, k)
            check(matmul(a, w), a, w, k)


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_floats_are_multiplied_as_they_are(m: int, k: int, n: int, kind: str) -> None:
    w = weight(k, n)
    packed = pack(w, pack=kind)
    x = f32(m, k)
    # A float32 may be three bfloat16: three exact products for one.
    check(matmul(x, packed), x, w, 3 * k)
    half = x.astype(ml_dtypes.bfloat16)
    # The other two are zero.
    check(matmul(half, packed), half, w, k)
    np.testing.assert_array_equal(matmul(half, packed), matmul(half.astype(np.float32), packed))


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("m", [1, 5, 33])
@pytest.mark.parametrize("fmt", ["e4m3fn", "e5m2", "e3m4"])
def test_quantized_on_the_way(m: int, fmt: str, kind: str) -> None:
    """The same bits as with what `quantize` gives, with a scale and without, for float32 and bfloat16."""
    packed = pack(weight(70, 45), pack=kind)
    x = f32(m, 70)
    x.flat[:5] = [np.inf, np.nan, 0.0, -0.0, 1e-30]
    for a in (x, x.astype(ml_dtypes.bfloat16)):
        single = a.astype(np.float32)
        np.testing.assert_array_equal(matmul(a, packed, quantize=fmt), matmul(quantize(single, fmt), packed))
        for scale in (0.01, 3.7, 1):
            np.testing.assert_array_equal(
                matmul(a, packed, quantize=fmt, scale=scale), matmul(quantize(single, fmt, scale=np.float32(scale)), packed)
            )


def test_quantized_by_a_scale_below_the_normal_numbers() -> None:
    packed, x = pack(weight(70, 45)), f32(3, 70) * np.float32(1e-38)
    np.testing.assert_array_equal(matmul(x, packed, quantize="e4m3fn"), matmul(quantize(x, "e4m3fn"), packed))
    zeros = np.zeros((3, 70), np.float32)
    np.testing.assert_array_equal(matmul(zeros, packed, quantize="e4m3fn"), 0)


def test_leading_axes() -> None:
    w = weight(40, 35)
    packed = pack(w)
    check(matmul(f32(40), packed), f32(40), w, 120)
    check(matmul(f32(2, 3, 40), packed), f32(2, 3, 40), w, 120)
    assert matmul(f32(2, 0, 40), packed).shape == (2, 0, 35)
    for scale in (np.float32(0.5), np.full((2, 1, 1), 0.5), np.full((2, 3, 1), 0.5), np.full((1, 3, 1), 0.5), np.full((1, 1, 1), 2)):
        factors = np.asarray(scale, np.float32) * (1 + np.arange(np.size(scale), dtype=np.float32)).reshape(np.shape(scale))
        a = quantize(f32(2, 3, 40), "e4m3fn", scale=factors)
        check(matmul(a, packed), a, w, 40)
        check(matmul(QTensor(a.codes[0, 0], a.format), packed), QTensor(a.codes[0, 0], a.format), w, 40)


def test_operands_that_lie_otherwise() -> None:
    w = weight(40, 35)
    turned = QTensor(np.asfortranarray(w.codes), w.format, w.scale)
    x = f32(80, 10)[::2].T
    for packed in (pack(w), pack(turned), pack(QTensor(np.repeat(w.codes, 2, 0)[::2], w.format, w.scale))):
        check(matmul(x, packed), x, w, 120)
        a = quantize(f32(40, 10), "e4m3fn").T
        check(matmul(a, packed), a, w, 40)


@pytest.mark.parametrize("f", FORMATS_OF_B)
@pytest.mark.parametrize("g", FORMATS_OF_B)
def test_every_pair_of_formats(f: str, g: str) -> None:
    w = weight(50, 33, g)
    a = quantize(f32(6, 50), f)
    for kind in PACKS:
        check(matmul(a, pack(w, pack=kind)), a, w, 50)


def test_all_formats_that_the_engine_takes_are_tested() -> None:
    assert {f"float8_{name}" for name in FORMATS_OF_B} == {name for name, fmt in FORMATS.items() if takes(fmt)}


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("m", [1, 3, 20])
def test_nan_and_infinity(m: int, kind: str) -> None:
    """As in any sum of products; every NaN is 0x7FC00000."""
    w = quantize(f32(40, 35), "e5m2", axis=-1)
    w.codes[3, 5], w.codes[39, 34], w.codes[7, 8] = 0x7E, 0xFC, 0xFF
    packed = pack(w, pack=kind)
    codes = quantize(f32(m, 40), "e5m2")
    codes.codes[0, 2], codes.codes[-1, 39] = 0x7C, 0xFE
    floats = f32(m, 40)
    floats[0, 2], floats[-1, 39] = np.inf, -np.nan
    zeros = f32(m, 40)
    zeros[:, 39] = 0
    for a in (codes, floats, zeros):
        with np.errstate(invalid="ignore"):
            got, want = matmul(a, packed), exact(a) @ exact(w)
        # A float that is three bfloat16 meets an infinity three times, with either sign: NaN, where one product gives infinity.
        unsure = np.isinf(want) & (not isinstance(a, QTensor) and PARTS > 1)
        np.testing.assert_array_equal(np.isnan(got)[~unsure], np.isnan(want)[~unsure])
        known = np.isinf(want) & ~np.isnan(got)
        np.testing.assert_array_equal(got[known], want[known])
        assert np.isfinite(got[np.isfinite(want)]).all()
        assert (got.view(np.uint32)[np.isnan(got)] == 0x7FC00000).all()
        assert np.isnan(got).any()


def test_floats_of_any_size() -> None:
    """What matrix units take for zero, below the normal numbers of bfloat16, is lost, and nothing else."""
    w = quantize(np.eye(40, dtype=np.float32), "e4m3fn", scale=1.0)
    exponents = np.arange(-149, 127)
    x = np.ldexp(1 + np.random.default_rng(0).random((len(exponents), 40)), exponents[:, None]).astype(np.float32)
    x[::2] *= -1
    for kind in PACKS:
        got = matmul(x, pack(w, pack=kind))
        lost = np.where(exponents < -126 + 24, 2.0**-126, 0)[:, None]
        assert (np.abs(got.astype(np.float64) - x) <= lost).all()


# -- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKS)
def test_threads(kind: str) -> None:
    packed = pack(weight(700, 330), pack=kind)
    a, x = quantize(f32(90, 700), "e4m3fn", axis=0), f32(90, 700)
    results = []
    for n in (1, 2, 3):
        with threads(n):
            results.append([matmul(a, packed), matmul(x, packed), matmul(x[:3], packed), matmul(x, packed, quantize="e4m3fn")])
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got, want)


def test_one_matrix_many_callers() -> None:
    packed = pack(weight(100, 64))
    cases = [f32(m, 100, seed=m) for m in (1, 2, 5, 9)]
    want = [matmul(x, packed) for x in cases]
    with ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(lambda i: matmul(cases[i % 4], packed), range(80))):
            np.testing.assert_array_equal(got, want[i % 4])
    first = matmul(cases[2], packed)
    first[:] = 0
    np.testing.assert_array_equal(matmul(cases[2], packed), want[2])


def test_programs_for_many_sizes_share_memory_and_do_not_collect_without_end() -> None:
    packed, x = pack(weight(40, 33)), f32(_MOST + 20, 40)
    for m in (*range(1, len(x) + 1), 3, 1):
        np.testing.assert_array_equal(matmul(x[:m], packed), matmul(x[:m], pack(weight(40, 33))))
    assert len(packed.programs) == _MOST
    ((arena, _),) = packed.arenas._free
    assert len(arena) <= 2 * max(run.program.arena for run in packed.programs.values()) + SLACK


def test_memory() -> None:
    for k, n in ((64, 64), (4096, 32), (32, 4096), (1024, 1024)):
        w = weight(k, n)
        own = w.codes.nbytes + w.scale.nbytes
        assert pack(w).nbytes <= 1.1 * own
        assert pack(w, pack="bf16").nbytes <= 1.1 * ELEMENT * own
        assert pack(weight(k, n, axis=None)).nbytes <= 1.1 * own + 4 * n


def test_what_is_printed() -> None:
    assert re.fullmatch(r"PackedTensor\(64 x 32 float8_e4m3fn, codes, [\d,]+ bytes\)", repr(pack(weight(64, 32))))
    assert "widened" in repr(pack(weight(64, 32), pack="bf16"))


def test_a_matrix_without_a_column() -> None:
    assert matmul(f32(3, 40), pack(weight(40, 0, axis=None))).shape == (3, 0)


# -- what is refused --------------------------------------------------------------------------------------------------

W = weight(64, 32)
A = quantize(f32(3, 64), "e4m3fn")
BLOCKS = quantize(f32(64, 64), "e4m3fn", block=(32, 32))
REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: pack(f32(64, 32)), DTypeError, "pack: expected a QTensor for w, got ndarray; make one with quantize()"),
    (lambda: pack(quantize(f32(2, 64, 32), "e4m3fn")), ShapeError, "pack: expected w (K, N), got shape (2, 64, 32)"),
    (lambda: pack(W, pack="fp16"), PolicyError, "pack: expected pack to be one of fp8, bf16, got 'fp16'"),
    (lambda: pack(BLOCKS), ScaleError, "quantize w per tensor or with axis=-1"),
    (lambda: pack(weight(64, 32, axis=0)), ScaleError, "pack: expected one scale, or one for each of N (1, N); got (64, 1)"),
    (lambda: pack(weight(0, 32, axis=None)), ShapeError, "pack: expected K >= 1, got shape (0, 32)"),
    (lambda: pack(weight(64, 32, "e4m3fnuz")), FormatError, "float8_e4m3fnuz is not multiplied by packed kernels; give matmul the QTensor"),
    (lambda: matmul(f32(3, 63), pack(W)), ShapeError, "matmul: expected a (..., K) with K = 64 as packed, got shape (3, 63)"),
    (lambda: matmul(np.float32(1), pack(W)), ShapeError, "got shape ()"),
    (lambda: matmul(quantize(f32(64, 3), "e4m3fn"), pack(W)), ShapeError, "got shape (64, 3)"),
    (lambda: matmul(A, pack(W), init=np.float32(1)), PolicyError, "with accumulate='fp32' and without init, got 'fp32'; give the QTensor"),
    (lambda: matmul(A, pack(W), accumulate="exact"), PolicyError, "with accumulate='fp32' and without init, got 'exact'"),
    (lambda: matmul(A, pack(W), accumulate="sequential"), PolicyError, "got 'sequential'"),
    (lambda: matmul(A, pack(W), quantize="e4m3fn"), DTypeError, "quantize and scale are for floats; a is float8_e4m3fn already"),
    (lambda: matmul(A, pack(W), scale=1.0), DTypeError, "quantize and scale are for floats"),
    (lambda: matmul(f32(3, 64), pack(W), scale=1.0), ScaleError, "expected a finite and positive scale together with quantize, got 1.0"),
    *(
        (lambda s=s: matmul(f32(3, 64), pack(W), quantize="e4m3fn", scale=s), ScaleError, "expected a finite and positive scale")
        for s in (0.0, -1.0, np.inf, np.nan)
    ),
    (lambda: matmul(f32(3, 64), pack(W), quantize="e8m0fnu"), FormatError, "expected quantize to be a signed format of 8 bits"),
    (lambda: matmul(f32(3, 64), pack(W), quantize="e4"), FormatError, "e4"),
    (lambda: matmul(f32(3, 64).astype(np.float64), pack(W)), DTypeError, "expected a QTensor, float32 or bfloat16 for a, got float64"),
    (lambda: matmul(np.zeros((3, 64), np.int8), pack(W)), DTypeError, "got int8"),
    (lambda: matmul(f32(3, 64), W), DTypeError, "QTensor for a"),
    (lambda: matmul(A, W, quantize="e4m3fn"), PolicyError, "quantize and scale go with a packed b"),
    (lambda: matmul(quantize(f32(3, 64), "e4m3fnuz"), pack(W)), FormatError, "float8_e4m3fnuz is not multiplied by packed kernels"),
    (lambda: matmul(quantize(f32(3, 64), "e4m3fn", axis=1), pack(W)), ScaleError, "varies along an axis that is summed over"),
    (lambda: matmul(quantize(f32(3, 64), "mxfp8_e4m3"), pack(W)), ScaleError, "a is scaled in blocks"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED)
def test_what_is_refused(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_pack_is_public() -> None:
    assert fp8np.pack is pack
    assert not holds(FORMATS["float8_e8m0fnu"])
