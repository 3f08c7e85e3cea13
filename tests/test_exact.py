from __future__ import annotations

import itertools
from fractions import Fraction

import numba
import numpy as np
import pytest
from _products import assert_same_bits, exact_products, finite_codes, rounded, values
from hypothesis import given, settings
from hypothesis import strategies as st

import fp8np._exact
from fp8np.codec import decode_table
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.kernels import _threads, exact_gemm
from fp8np.kernels._jit import wide_vectors
from fp8np.kernels._table import select
from fp8np.kernels._threads import threads
from fp8np.kernels.exact import STRIP
from fp8np.kernels.exact_gemm import DEPTH, LANES
from fp8np.linalg import conv2d, matmul
from fp8np.tensor import QTensor

# Every pair of what vendors ship, every other format with itself.
PAIRS = [(a, b) for a, b in itertools.product(FORMATS.values(), repeat=2) if a is b or a.name[:5] == b.name[:5] == "float"]
PAIR_IDS = [f"{a}-{b}" for a, b in PAIRS]
E4M3 = get_format("e4m3fn")
E5M2 = get_format("e5m2")
E8M0 = get_format("e8m0fnu")


def random_codes(rng: np.random.Generator, fmt: FloatFormat, shape: tuple[int, ...]) -> np.ndarray:
    """Finite codes, half of them from a narrow range of magnitudes, where sums cancel and round."""
    finite = finite_codes(fmt)
    by_size = finite[np.argsort(np.abs(decode_table(fmt)[finite]), kind="stable")]
    near = by_size[(rng.integers(-18, 18, shape) + finite.size // 2) % finite.size]
    return np.where(rng.random(shape) < 0.5, rng.choice(finite, shape), near).astype(np.uint8)


def exact(a: QTensor, b: QTensor, init: np.ndarray | None = None) -> np.ndarray:
    return matmul(a, b, accumulate="exact", init=init)


def exact_sum(parts: np.ndarray) -> np.ndarray:
    out = np.full(parts.shape[1], np.nan, np.float32)
    select("exact_sum", reproducible=True)(parts, out)
    return out


def code(fmt: FloatFormat, value: float) -> int:
    return int(np.flatnonzero(decode_table(fmt) == value)[0])


def of(fmt: FloatFormat, rows: list[list[float]]) -> QTensor:
    return QTensor(np.array([[code(fmt, v) for v in row] for row in rows], np.uint8), fmt)


@pytest.mark.parametrize(("a_format", "b_format"), PAIRS, ids=PAIR_IDS)
def test_every_pair_of_formats_against_rationals(a_format, b_format):
    rng = np.random.default_rng(1)
    a = QTensor(random_codes(rng, a_format, (4, 9)), a_format)
    b = QTensor(random_codes(rng, b_format, (9, 3)), b_format)
    assert_same_bits(exact(a, b), exact_products(values(a), values(b)))


@pytest.mark.parametrize(("a_format", "b_format"), PAIRS, ids=PAIR_IDS)
def test_extremes_of_every_pair_with_init(a_format, b_format):
    # Largest, smallest and middle magnitudes of both signs: everything cancels or hides something.
    def extremes(fmt):
        finite = finite_codes(fmt)
        by_size = finite[np.argsort(np.abs(decode_table(fmt)[finite]), kind="stable")]
        return np.concatenate([by_size[:4], by_size[-4:], by_size[len(by_size) // 2 :][:2]])

    left, right = extremes(a_format), extremes(b_format)
    pairs = np.array(list(itertools.product(left, right)), np.uint8)
    rng = np.random.default_rng(2)
    a = QTensor(rng.permuted(np.tile(pairs[:, 0], (2, 1)), axis=1), a_format)
    b = QTensor(rng.permuted(np.tile(pairs[:, 1], (2, 1)), axis=1).T, b_format)
    init = rng.choice(np.array([0, 1, -(2.0**-149), 2.0**-126, 3.4e38, -1e-9], np.float32), (2, 2))
    assert_same_bits(exact(a, b, init), exact_products(values(a), values(b), init))


def test_ties_go_to_even_and_the_smallest_product_breaks_them():
    # start + 1 lies between two float32; one product of 2**-18 more, or less, decides.
    a = of(E4M3, [[1, 2.0**-9]])
    b = of(E4M3, [[1, 1, 1], [0, 2.0**-9, -(2.0**-9)]])
    for start, results in ((2**24, [2**24, 2**24 + 2, 2**24]), (2**24 + 2, [2**24 + 4, 2**24 + 4, 2**24 + 2])):
        got = exact(a, b, np.full((1, 3), start, np.float32))
        assert got.tolist() == [results]


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
def test_what_float32_sums_lose_survives(fmt):
    big, small = fmt.max, fmt.smallest_subnormal
    a = of(fmt, [[big, small, big]])
    b = of(fmt, [[big], [small], [-big]])
    assert exact(a, b).item() == small**2
    assert matmul(a, b).item() == 0


def test_float32_subnormal_results():
    # Terms 2**-150, half of float32's smallest number, and 2**-254: the tie goes to even, unless the second term breaks it.
    tie = of(E8M0, [[2.0**-127]]), of(E8M0, [[2.0**-23]])
    broken = of(E8M0, [[2.0**-127, 2.0**-127]]), of(E8M0, [[2.0**-23], [2.0**-127]])
    for start, even, up in ((0.0, 0.0, 2.0**-149), (2.0**-149, 2.0**-148, 2.0**-148), (2.0**-148, 2.0**-148, 3 * 2.0**-149)):
        init = np.full((1, 1), start, np.float32)
        assert exact(*tie, init).item() == even
        assert exact(*broken, init).item() == up


def test_overflow_is_decided_after_the_last_term():
    powers = of(E8M0, [[2.0**127, 2.0**127]])
    assert exact(powers, powers.T).item() == np.inf
    # Partial sums overflow float32, the sum does not.
    assert exact(of(E8M0, [[2.0**112, 2.0**112, 1]]), of(E5M2, [[57344], [-57344], [3]])).item() == 3
    # The largest float32 stays with less than half of its last bit added, and overflows with half.
    largest = np.finfo(np.float32).max
    init = np.full((1, 1), largest)
    assert exact(of(E8M0, [[2.0**102]]), of(E8M0, [[1]]), init).item() == largest
    assert exact(of(E8M0, [[2.0**103]]), of(E8M0, [[1]]), init).item() == np.inf


def test_zero_sums_are_positive():
    one, minus_zero = code(E4M3, 1.0), 0x80
    a = QTensor(np.array([[minus_zero, one]], np.uint8), E4M3)
    b = QTensor(np.array([[one, 0, one], [minus_zero, minus_zero, 0]], np.uint8), E4M3)
    assert_same_bits(exact(a, b), np.zeros((1, 3), np.float32))
    assert_same_bits(exact(a, b, np.full((1, 3), -0.0, np.float32)), np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_long_sums_in_chunks(fmt, monkeypatch):
    K, small = 20_000, 6_667
    codes = np.full((1, K), code(fmt, fmt.max), np.uint8)
    codes[0, ::3] = code(fmt, fmt.smallest_subnormal)
    a = QTensor(codes, fmt)
    expected = small * Fraction(fmt.smallest_subnormal) ** 2 + (K - small) * Fraction(fmt.max) ** 2
    assert_same_bits(exact(a, a.T), np.array([[rounded(expected)]]))
    shorten(monkeypatch, 7)
    x = QTensor(random_codes(np.random.default_rng(3), fmt, (2, 50)), fmt)
    assert_same_bits(exact(x, x.T), exact_products(values(x), values(x).T))


def shorten(monkeypatch, longest):
    """Chunks of K that are shorter than they need to be."""

    def short(*args):
        a_bands, b_bands, step = split(*args)
        return a_bands, b_bands, min(step, longest)

    split = fp8np._exact._split
    monkeypatch.setattr(fp8np._exact, "_split", short)


def split(a_codes, a_format, b_codes, b_format, K=6000):
    a_used, b_used = (np.isin(np.arange(256), codes) for codes in (a_codes, b_codes))
    return fp8np._exact._split(a_used, a_format, b_used, b_format, K)


@pytest.mark.parametrize(("a_format", "b_format"), PAIRS, ids=PAIR_IDS)
def test_every_partial_sum_of_a_pair_of_bands_fits_float64(a_format, b_format):
    # What the method stands on, where all codes occur and K is long.
    a_bands, b_bands, step = split(np.arange(256), a_format, np.arange(256), b_format)
    assert step >= 100  # or the additions would take most of the time
    for bands, fmt in ((a_bands, a_format), (b_bands, b_format)):
        table = decode_table(fmt).astype(np.float64)
        assert (sum(band for band, _ in bands) == np.where(np.isfinite(table), table, 0)).all()
        for band, limit in bands:
            unit = np.abs(band).max() / limit
            assert np.frexp(unit)[0] == 0.5
            assert (band / unit == np.round(band / unit)).all()
    for (_, a_limit), (_, b_limit) in itertools.product(a_bands, b_bands):
        assert a_limit * b_limit * step <= 2**53


@pytest.mark.parametrize(("fmt", "counts"), [(E4M3, (1, 1)), (get_format("e3m4"), (1, 1)), (E5M2, (3, 1)), (E8M0, (13, 10))], ids=str)
def test_a_pair_needs_as_many_bands_as_documented(fmt, counts):
    a_bands, b_bands, _ = split(np.arange(256), fmt, np.arange(256), fmt)
    assert (len(a_bands), len(b_bands)) == counts


def test_bands_are_cut_through_the_exponents_that_occur():
    assert len(split([100, 101], E8M0, [100, 119], E8M0)[0]) == 1
    assert split([0], E4M3, [1, 2], E4M3)[0] == []


def test_all_zero_operands():
    zeros = QTensor(np.array([[0, 0x80, 0]], np.uint8), E4M3)
    ones = QTensor(np.full((3, 2), code(E4M3, 1.0), np.uint8), E4M3)
    assert_same_bits(exact(zeros, ones), np.zeros((1, 2), np.float32))
    assert_same_bits(exact(zeros, ones, np.array([[-0.0, 3]], np.float32)), np.array([[0, 3]], np.float32))
    assert_same_bits(exact(ones.T, zeros.T), np.zeros((2, 1), np.float32))


@pytest.mark.parametrize(("fmt", "K"), [(E4M3, 6), (E5M2, DEPTH + 1), (E4M3, 2 * DEPTH + 3)], ids=str)
def test_blocks_of_a_large_result_join(fmt, K, monkeypatch):
    # Every remainder at once: rows of a tile, rows that share a panel, columns of a panel, terms of a panel and of a chunk.
    rng = np.random.default_rng(4)
    a = QTensor(random_codes(rng, fmt, (2, 31, K)), fmt)
    b = QTensor(random_codes(rng, fmt, (2, K, LANES + 3)), fmt)
    init = rng.standard_normal((2, 31, LANES + 3)).astype(np.float32)
    expected = np.stack([exact_products(*(values(x)[z] for x in (a, b)), init[z]) for z in range(2)])
    monkeypatch.setattr(_threads, "MIN_WORK", 1)
    for tall, step, count in ((256, K, 1), (8, K, 2), (12, DEPTH // 2 + 1, 3), (256, 5, 7)):
        with monkeypatch.context() as small, threads(count):
            small.setattr(exact_gemm, "TALL", tall)
            shorten(small, step)
            assert_same_bits(exact(a, b, init), expected)


@pytest.mark.parametrize("layout", ["C", "F", "every second", "reversed", "read-only"])
def test_any_layout(layout):
    rng = np.random.default_rng(8)
    codes, other = random_codes(rng, E4M3, (7, 9)), random_codes(rng, E4M3, (9, 5))
    laid = {
        "C": codes,
        "F": np.asfortranarray(codes),
        "every second": np.repeat(codes, 2, axis=1)[:, ::2],
        "reversed": codes[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": codes.copy(),
    }[layout]
    laid.flags.writeable = layout != "read-only"
    a, b = QTensor(laid, E4M3), QTensor(other, E4M3)
    assert_same_bits(exact(a, b), exact_products(values(a), values(b)))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_product_against_rationals(data):
    a_format, b_format = (data.draw(st.sampled_from(list(FORMATS.values()))) for _ in range(2))
    M, N, K = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(0, 70)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    a = QTensor(random_codes(rng, a_format, (M, K)), a_format)
    b = QTensor(random_codes(rng, b_format, (K, N)), b_format)
    size = data.draw(st.integers(-149, 100))
    init = np.ldexp(rng.standard_normal((M, N)), size).astype(np.float32) if data.draw(st.booleans()) else None
    assert_same_bits(exact(a, b, init), exact_products(values(a), values(b), init))


def test_vectors_may_be_as_wide_as_the_cpu_has():
    # A string that LLVM does not know is ignored: the promise is that it is there.
    @numba.njit
    def plain():
        return 1

    @numba.njit
    def wide():
        wide_vectors()
        return 1

    assert plain() == wide() == 1
    assert '"prefer-vector-width"="512"' in next(iter(wide.inspect_llvm().values()))
    assert "prefer-vector-width" not in next(iter(plain.inspect_llvm().values()))


def test_sum_of_parts_against_rationals():
    # Parts of widely different size, in any order, with ties made on purpose.
    rng = np.random.default_rng(5)
    parts = np.ldexp(rng.integers(-(2**53), 2**53, (7, 300)).astype(np.float64), rng.integers(-320, 200, (7, 300)))
    parts[:, 100:] = np.ldexp(rng.choice([-3.0, -1, 0, 1, 2], (7, 200)), rng.integers(-155, -140, (7, 200)))
    parts[:3, 200:] = np.ldexp([[1.0], [2.0**-24], [2.0**-90]], rng.integers(-5, 5, 100)) * rng.choice([-1, 0, 1], (3, 100))
    parts[3:, 200:] = np.ldexp(parts[3:, 200:], -100)
    expected = np.array([rounded(sum(map(Fraction, column))) for column in parts.T.tolist()])
    assert_same_bits(exact_sum(parts), expected)
    for order in (parts[::-1], parts[rng.permutation(7)]):
        assert_same_bits(exact_sum(np.ascontiguousarray(order)), expected)


def test_sum_rounds_to_odd_on_both_sides_of_a_power_of_two():
    # Half an ulp of float32 away from 1, then a bit far below: below a power of two the spacing is half as wide.
    cases = []
    for far in (0.0, 2.0**-200, -(2.0**-200), 2.0**-60, -(2.0**-60)):
        for half in (2.0**-24, -(2.0**-25), 3 * 2.0**-24, -3 * 2.0**-25):
            cases.append([1.0, half, far])
            cases.append([-1.0, half, far])
    parts = np.array(cases).T.copy()
    assert_same_bits(exact_sum(parts), np.array([rounded(sum(map(Fraction, case))) for case in cases]))


def test_what_two_float64_cannot_hold_still_decides():
    # A tie between two float32, which a third number breaks that was below the second when it came.
    for far in (2.0**-200, -(2.0**-200)):
        parts = np.array([[1.0], [2.0**-24], [2.0**-60], [far], [-(2.0**-60)]])
        assert exact_sum(parts).tolist() == [1 + 2.0**-23 if far > 0 else 1.0]
        assert_same_bits(exact_sum(np.tile(parts, 2 * STRIP + 1)), np.tile(exact_sum(parts), 2 * STRIP + 1))


def test_each_of_a_batch_has_its_own_special_values():
    a = QTensor(np.full((3, 1, 2), code(E5M2, 1.0), np.uint8), E5M2)
    b = a.codes.copy().swapaxes(1, 2)
    b[1, 0] = code(E5M2, np.inf)
    init = np.array([0, -1, np.inf], np.float32).reshape(3, 1, 1)
    assert exact(a, QTensor(b, E5M2), init).ravel().tolist() == [2, np.inf, np.inf]
    assert exact(QTensor(b.swapaxes(1, 2), E5M2), QTensor(a.codes.swapaxes(1, 2), E5M2), init).ravel().tolist() == [2, np.inf, np.inf]
    assert exact(a, QTensor(b[:1], E5M2), init).ravel().tolist() == [2, 1, np.inf]


@pytest.mark.parametrize(("a_format", "b_format"), [(E5M2, E5M2), (E4M3, E5M2), (E8M0, E4M3), (get_format("e4m3fnuz"), get_format("e3m4"))])
def test_nan_and_infinity_behave_as_in_float64(a_format, b_format, monkeypatch):
    rng = np.random.default_rng(6)
    shape = (40, 2)

    # Short sums, so that every class of result occurs; powers of two and zeros, so that float64 is exact.
    def draw(fmt, shape):
        special = np.flatnonzero(~np.isfinite(decode_table(fmt)))
        plain = [code(fmt, v) for v in ((1, 2, -1, 0) if fmt.signed else (1, 2))]
        return np.where(rng.random(shape) < 0.3, rng.choice(special, shape), rng.choice(plain, shape)).astype(np.uint8)

    a = QTensor(draw(a_format, shape), a_format)
    b = QTensor(draw(b_format, shape[::-1]), b_format)
    init = rng.choice(np.array([0, 1, np.inf, -np.inf, np.nan], np.float32), (40, 40), p=[0.4, 0.3, 0.1, 0.1, 0.1])
    x, y = values(a), values(b)
    with np.errstate(invalid="ignore"):
        sums = x[:, :1] * y[:1] + x[:, 1:] * y[1:]
        expected = sums.astype(np.float32) + np.float32(0)
        expected_init = (sums + init).astype(np.float32) + np.float32(0)
    assert_same_bits(exact(a, b), expected)
    assert_same_bits(exact(a, b, init), expected_init)
    with monkeypatch.context() as short:
        short.setattr(fp8np._exact, "LONGEST", 1)
        short.setattr(fp8np._exact, "SIDE", 16)
        assert_same_bits(exact(a, b, init), expected_init)
    assert_same_bits(matmul(a, b) + np.float32(0), expected)
    assert_same_bits(matmul(a, b, init=init) + np.float32(0), expected_init)
    if a_format is b_format:
        kinds = {"nan" if np.isnan(v) else v if np.isinf(v) else "finite" for v in expected.ravel().tolist()}
        assert kinds == {"nan", np.inf, -np.inf, "finite"}


def test_empty_products():
    def zeros(*shape):
        return QTensor(np.zeros(shape, np.uint8), E4M3)

    assert exact(zeros(0, 3), zeros(3, 2)).shape == (0, 2)
    assert exact(zeros(2, 3), zeros(3, 0)).shape == (2, 0)
    assert exact(zeros(0, 2, 3), zeros(3, 2)).shape == (0, 2, 2)
    assert exact(zeros(0, 2, 3), zeros(0, 3, 2)).shape == (0, 2, 2)
    init = np.array([[1, -0.0], [np.inf, np.nan]], np.float32)
    assert_same_bits(exact(zeros(2, 0), zeros(0, 2), init), np.array([[1, 0], [np.inf, np.nan]], np.float32))
    assert_same_bits(exact(zeros(2, 0), zeros(0, 2)), np.zeros((2, 2), np.float32))


def test_convolution_is_exact_too():
    rng = np.random.default_rng(7)
    x = QTensor(random_codes(rng, E5M2, (2, 4, 5, 4)), E5M2)
    w = QTensor(random_codes(rng, E5M2, (6, 2, 3, 2)), E5M2)
    got = conv2d(x, w, padding=((1, 0), (0, 2)), stride=(2, 1), groups=2, accumulate="exact")
    pictures = np.pad(values(x), ((0, 0), (0, 0), (1, 0), (0, 2)))
    filters = values(w)
    assert got.shape == (2, 6, 2, 5)
    for b, o, oy, ox in itertools.product(*map(range, got.shape)):
        window = pictures[b, o // 3 * 2 : o // 3 * 2 + 2, oy * 2 : oy * 2 + 3, ox : ox + 2]
        assert_same_bits(got[b, o, oy, ox].reshape(1, 1), exact_products(window.reshape(1, -1), filters[o].reshape(-1, 1)))
