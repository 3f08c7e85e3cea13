"""Error bounds: never exceeded, for any accumulator, against rationals; and close to what is reached."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from _products import finite_codes, random_codes, values
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fp8np.accumulators import ACCUMULATORS, Accumulator
from fp8np.bounds import error_bound
from fp8np.errors import DTypeError, FormatError, Fp8npError, PolicyError, ScaleError, ShapeError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.linalg import matmul
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor

E4M3, E5M2, E3M4 = (get_format(name) for name in ("e4m3fn", "e5m2", "e3m4fn"))
COMMON = [E4M3, E5M2, E3M4]
law = settings(max_examples=150, deadline=None, derandomize=True)
names = st.sampled_from(list(ACCUMULATORS))
seeds = st.integers(0, 2**32 - 1)
formats = st.sampled_from(COMMON) | st.sampled_from(list(FORMATS.values()))


def exact(a: Any, b: Any, init: Any = None, factor: Any = None) -> list[list[Fraction]]:
    """(init + a @ b) * factor of finite float64 a (M, K), b (K, N), init and factor (M, N), in rationals."""
    left = [[Fraction(v) for v in row] for row in a.tolist()]
    right = [[Fraction(v) for v in column] for column in b.T.tolist()]
    out = []
    for m, row in enumerate(left):
        out.append([])
        for n, column in enumerate(right):
            total = sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0 if init is None else float(init[m, n])))
            out[m].append(total if factor is None else total * factor[m][n])
    return out


def assert_bounded(got: Any, expected: list[list[Fraction]], bound: Any) -> float:
    """No error is larger than its bound; the largest ratio of the two."""
    assert got.shape == bound.shape
    assert bound.dtype == np.float64
    largest = 0.0
    for value, law_value, limit in zip(got.ravel().tolist(), itertools.chain(*expected), bound.ravel().tolist(), strict=True):
        if limit == np.inf:
            continue
        error = abs(Fraction(value) - law_value)
        assert error <= Fraction(limit), (value, float(law_value), float(error), limit)
        largest = max(largest, float(error) / limit if limit else 0.0)
    return largest


def operands(rng: Any, a_format: FloatFormat, b_format: FloatFormat, K: int, kind: int) -> tuple[QTensor, QTensor]:
    """(3, K) and (K, 4): of all magnitudes, of similar ones, all positive, or cancelling."""
    codes = [random_codes(rng, a_format, (3, K)), random_codes(rng, b_format, (K, 4))]
    if kind:
        for i, fmt in enumerate((a_format, b_format)):
            middle = (fmt.max_magnitude + (1 << fmt.mantissa_bits)) // 2
            near = np.clip(middle + rng.integers(-12, 13, codes[i].shape), 0, fmt.max_magnitude)
            sign = rng.integers(0, 2, near.shape) * fmt.sign_bit if kind == 1 else 0
            codes[i] = (near | sign).astype(np.uint8)
            codes[i][np.isin(codes[i], list(fmt.nan_codes))] = 0
    if kind == 3 and a_format.has_negative_zero:
        half = K // 2
        codes[0][:, half : 2 * half] = codes[0][:, :half] ^ a_format.sign_bit
        codes[1][half : 2 * half] = codes[1][:half]
    return QTensor(codes[0], a_format), QTensor(codes[1], b_format)


def scaled_by(rng: Any, q: QTensor, kind: int, along: int) -> QTensor:
    shape = [1, 1]
    shape[along] = q.shape[along]
    exponents = rng.integers(-140, 100, shape) if kind == 3 else rng.integers(-6, 7, shape)
    scale = np.ldexp(1.0 if kind == 1 else 1 + rng.random(shape), exponents)
    return q if kind == 0 else QTensor(q.codes, q.format, np.float32(np.maximum(scale, 2.0**-149)))


@law
@given(names, formats, formats, st.integers(0, 100), st.integers(0, 3), st.booleans(), st.integers(0, 3), seeds)
def test_no_error_exceeds_the_bound(
    name: str, a_format: FloatFormat, b_format: FloatFormat, K: int, kind: int, starts: bool, scale: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = operands(rng, a_format, b_format, K, kind)
    a, b = scaled_by(rng, a, scale, 0), scaled_by(rng, b, scale, 1)
    init = None
    if starts:
        size = np.abs(values(a)).max(initial=1) * np.abs(values(b)).max(initial=1)
        init = (rng.standard_normal((3, 4)) * np.minimum(size * 2.0 ** rng.integers(-20, 10, (3, 4)), 1e30)).astype(np.float32)
        init[rng.random((3, 4)) < 0.3] = 0
    try:
        with np.errstate(all="ignore"):
            got = matmul(a, b, accumulate=name, init=init)
    except (FormatError, PolicyError):
        assume(False)  # formats that the accumulator does not take
    factors = np.broadcast_to(a.scale, (3, 1)).astype(object), np.broadcast_to(b.scale, (1, 4)).astype(object)
    factor = [[Fraction(float(x)) * Fraction(float(y)) for y in factors[1][0]] for x in factors[0][:, 0]]
    assert_bounded(got, exact(values(a), values(b), init, factor), error_bound(a, b, name, init=init))


@st.composite
def accumulators(draw: Any) -> Accumulator:
    group = draw(st.sampled_from([1, 3, 4, 16, 32]))
    addend = draw(st.sampled_from(["aligned", "after", "rounded"]))
    fraction = draw(st.none() | st.integers(0, 30)) if addend != "after" else draw(st.integers(2, 26))
    return Accumulator(
        "random",
        "aligned",
        group=group,
        order=draw(st.sampled_from([(), tuple(np.random.default_rng(group).permutation(2 * group).tolist())])),
        operand_exponent=draw(st.sampled_from([None, -14, 0])),
        interleave=min(group, draw(st.integers(1, 3))) if addend == "after" else 1,
        fraction_bits=fraction,
        alignment=draw(st.sampled_from(["toward_zero", "floor"])) if addend == "after" else "toward_zero",
        addend=addend,
        sum_fraction_bits=(fraction or 0) + draw(st.integers(0, 5)) if addend == "after" else 0,
        output_fraction_bits=23 if fraction is None else draw(st.integers(2, 23)),
        output_rounding=draw(st.sampled_from(["toward_zero", "nearest_even"])),
        promote_every=draw(st.sampled_from([None, 2 * group, 4 * group])),
    )


@law
@given(accumulators(), st.sampled_from(COMMON), st.sampled_from(COMMON), st.integers(1, 90), st.integers(0, 3), st.booleans(), seeds)
def test_no_error_exceeds_the_bound_of_hardware_of_ones_own(
    how: Accumulator, a_format: FloatFormat, b_format: FloatFormat, K: int, kind: int, starts: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = operands(rng, a_format, b_format, K, kind)
    init = (rng.standard_normal((3, 4)) * 2.0 ** rng.integers(-20, 20, (3, 4))).astype(np.float32) if starts else None
    got = matmul(a, b, accumulate=how, init=init)
    assert_bounded(got, exact(values(a), values(b), init), error_bound(a, b, how, init=init))


@law
@given(names, st.integers(1, 90), st.integers(0, 3), st.booleans(), st.booleans(), seeds)
def test_no_error_exceeds_the_bound_with_scaled_blocks(name: str, K: int, kind: int, powers: bool, wide: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plain = operands(rng, E4M3, E4M3, K, kind)

    def blocked(q: QTensor, block: tuple[int, int]) -> QTensor:
        shape = tuple(-(-n // length) for n, length in zip(q.shape, block, strict=True))
        exponents = rng.integers(-110, 60, shape) if wide else rng.integers(-4, 5, shape)
        return QTensor(q.codes, q.format, np.float32(np.ldexp(1.0 if powers else 1 + rng.random(shape), exponents)), block=block)

    a, b = blocked(plain[0], (1, 32)), blocked(plain[1], (16, 2))
    with np.errstate(all="ignore"):
        got = matmul(a, b, accumulate=name)
    left, right = (dequantize(q, dtype=np.float64) for q in (a, b))
    assert_bounded(got, exact(left, right), error_bound(a, b, name))


def ratio(a: QTensor, b: QTensor, how: Any, init: Any = None) -> float:
    """The largest ratio of error and bound."""
    got, bound = matmul(a, b, accumulate=how, init=init), error_bound(a, b, how, init=init)
    return assert_bounded(got, exact(values(a), values(b), init), bound)


def of(fmt: FloatFormat, rows: Any) -> QTensor:
    table = {float(v): c for c, v in zip(finite_codes(fmt).tolist(), values(QTensor(finite_codes(fmt), fmt)).tolist(), strict=True)}
    return QTensor(np.array([[table[float(v)] for v in row] for row in rows], np.uint8), fmt)


@pytest.mark.parametrize(
    ("name", "least"), [("hopper", 0.8), ("ada", 0.8), ("hopper_mma", 0.5), ("blackwell", 0.8), ("cdna3", 0.2), ("amx", 0.4), ("arm", 0.2)]
)
def test_aligned_bounds_are_nearly_reached(name: str, least: float) -> None:
    # One large product, and others that lose as much as they can: all their bits but the first are below the last that is kept.
    how = ACCUMULATORS[name]
    best = 0.0
    for big in (57344.0, 448.0, 1.0):
        for e in range(-14, 14):
            K = max(how.group, 32)
            small = 1.75 * 2.0**e
            row = [big, *[small] * (K - 1)]
            a, b = of(E5M2, [row]), of(E5M2, [[v] for v in [big, *[1.75] * (K - 1)]])
            best = max(best, ratio(a, b, name), ratio(a, b, name, np.full((1, 1), 3 * 2.0**24, np.float32)))
    assert best >= least


def row_by_column(fmt: FloatFormat, row: list[float], column: list[float]) -> tuple[QTensor, QTensor]:
    return of(fmt, [row]), of(fmt, [[v] for v in column])


def own(**fields: Any) -> Accumulator:
    return Accumulator("own", "aligned", **fields)


P2 = FORMATS["binary8p2se"]


@pytest.mark.parametrize(
    ("how", "operands", "start", "error"),
    [
        # A product, 1.375, cut to 1, and all of c.
        (own(group=1, fraction_bits=1), row_by_column(E4M3, [1.375], [1]), 2.0**-2 + 2.0**-3 + 2.0**-4, 0.8125),
        # 2.4375 cut to 2, and c floored to -0.5.
        (
            own(group=1, fraction_bits=1, addend="after", sum_fraction_bits=20, alignment="floor"),
            row_by_column(E4M3, [1.5], [1.625]),
            -0.25,
            0.6875,
        ),
        # Products alone, three of four, all of them.
        (own(group=4, fraction_bits=3, addend="rounded"), row_by_column(E4M3, [16, 1.75, 1.75, 1.75], [1] * 4), 0, 5.25),
        # Sums that are floored where another is larger: three times -2^-4 becomes -1.
        (
            own(group=4, interleave=4, fraction_bits=0, addend="after", sum_fraction_bits=20, alignment="floor"),
            row_by_column(E4M3, [1, *[-(2.0**-4)] * 3], [1] * 4),
            0,
            3 - 3 * 2.0**-4,
        ),
        # The normalised sum, 2.75, cut to two bits.
        (own(group=2, fraction_bits=2, addend="after", sum_fraction_bits=2), row_by_column(E4M3, [1.75, 1], [1, 1]), 0, 0.25),
        # Products that float32 cannot hold: 2^-150 is halfway to the smallest.
        ("sequential", row_by_column(FORMATS["binary8p1ue"], [2.0**-75] * 4, [2.0**-75] * 4), 0, 2.0**-148),
        # A sum of which float64 has not seen a bit.
        ("exact", row_by_column(P2, [2.0**31, 2.0**-10, 2.0**-22, -(2.0**31)], [2.0**31, 2.0**-10, 2.0**-22, 2.0**31]), 0, 2.0**-44),
    ],
)
def test_losses_that_chance_does_not_find(how: Any, operands: tuple[QTensor, QTensor], start: float, error: float) -> None:
    init = np.full((1, 1), start, np.float32) if start else None
    got = matmul(*operands, accumulate=how, init=init)
    law_value = exact(values(operands[0]), values(operands[1]), init)
    assert abs(Fraction(float(got[0, 0])) - law_value[0][0]) == Fraction(error)
    assert_bounded(got, law_value, error_bound(*operands, how, init=init))


def test_a_chain_of_float32_is_nearly_as_wrong_as_it_may_be() -> None:
    # Each addition loses just under half a unit of the last bit: small ones on a large start.
    K = 64
    a, b = of(E4M3, [[2.0**-2] * K]), of(E4M3, [[1.75 * 2.0**-0]] * K)
    start = np.full((1, 1), 2.0**24 / 2**0, np.float32)
    for name in ("sequential", "fp32"):
        assert ratio(a, b, name, start) > 0.4


def test_exact_sums_are_off_by_half_a_unit_at_most() -> None:
    a, b = of(E4M3, [[2.0**-1]]), of(E4M3, [[1.0]])
    start = np.full((1, 1), 2.0**23 + 1, np.float32)
    assert error_bound(a, b, "exact", init=start) == pytest.approx(0.5)
    assert ratio(a, b, "exact", start) > 0.99
    assert error_bound(a, b, "exact") == 0


@pytest.mark.parametrize(("name", "least"), [("hopper", 0.01), ("blackwell", 0.01), ("sequential", 0.003), ("fp32", 0.0003), ("amx", 0.01)])
def test_random_data_come_within_reach_of_the_bound(name: str, least: float) -> None:
    # Errors of both signs cancel, so a bound that assumes the worst is some powers of two above; that of fp32 allows any order.
    rng = np.random.default_rng(3)
    codes = [(rng.integers(0x30, 0x50, shape) | 0x80 * rng.integers(0, 2, shape)).astype(np.uint8) for shape in ((16, 512), (512, 16))]
    a, b = (QTensor(c, E4M3) for c in codes)
    init = np.full((16, 16), 1 / 3, np.float32)
    assert ratio(a, b, name, init) >= least
    assert (error_bound(a, b, "hopper", 128, init) < error_bound(a, b, "hopper", init=init)).mean() > 0.9


def test_nothing_is_lost_where_float32_holds_everything() -> None:
    rng = np.random.default_rng(4)
    a, b = (QTensor(random_codes(rng, E3M4, shape), E3M4, 0.25) for shape in ((8, 100), (100, 8)))
    for name in ("fp32", "sequential", "exact", "blackwell", "amx", "arm"):
        assert not error_bound(a, b, name).any(), name
    assert error_bound(a, b, "hopper").any()
    one_more = dataclasses.replace(ACCUMULATORS["hopper"], fraction_bits=22, output_fraction_bits=22)
    assert not error_bound(a, b, one_more).any()


def test_overflow_and_specials() -> None:
    a = QTensor(np.array([[0x7B, 0x7B], [0x7C, 0x3C], [0x7E, 0x3C], [0x3C, 0x3C], [0x38, 0x00]], np.uint8), E5M2, np.float32(3e38))
    b = QTensor(np.full((2, 1), 0x3C, np.uint8), E5M2)
    bound = error_bound(a, b)
    assert bound[0] == np.inf
    assert np.isnan(bound[1:3]).all()
    assert bound[3] == np.inf
    assert bound[4] < 1e32
    assert error_bound(a, QTensor(b.codes, E5M2, 2.0**-1))[3] == np.inf  # after the first of two scales
    wide = FORMATS["binary8p1ue"]
    top = QTensor(np.full((1, 2), wide.max_magnitude, np.uint8), wide)
    assert error_bound(top, top.T, "sequential") == np.inf


def test_shapes() -> None:
    rng = np.random.default_rng(5)
    a = QTensor(random_codes(rng, E4M3, (2, 1, 3, 40)), E4M3, np.ones((1, 1, 3, 1)))
    b = QTensor(random_codes(rng, E5M2, (5, 40, 4)), E5M2)
    for name in ACCUMULATORS:
        bound = error_bound(a, b, name)
        assert bound.shape == (2, 5, 3, 4)
        one = error_bound(QTensor(a.codes[1, 0], E4M3, np.ones((3, 1))), QTensor(b.codes[2], E5M2), name)
        np.testing.assert_array_equal(bound[1, 2], one)
    row, column = QTensor(a.codes[0, 0, 0], E4M3), QTensor(b.codes[0, :, 0], E5M2)
    assert np.ndim(error_bound(row, column)) == 0
    assert error_bound(row, QTensor(b.codes[0], E5M2)).shape == (4,)
    empty = QTensor(np.zeros((2, 0), np.uint8), E4M3)
    for name in ACCUMULATORS:
        assert not error_bound(empty, empty.T, name, init=np.full((2, 2), 0.1, np.float32)).any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a, b: error_bound(a, b, "hoper"), PolicyError, "error_bound: unknown accumulate 'hoper'; did you mean hopper"),
        (lambda a, b: error_bound(a, b, "exact", 128), PolicyError, "only aligned accumulators take promote_every"),
        (lambda a, b: error_bound(a.codes, b), DTypeError, "error_bound: expected a QTensor for a"),
        (lambda a, b: error_bound(a, a), ShapeError, "error_bound: .*the K differ"),
        (lambda a, b: error_bound(a, b, init=np.zeros((2, 2))), DTypeError, "error_bound: expected float32 for init"),
        (lambda a, b: error_bound(a, b, init=np.zeros(3, np.float32)), ShapeError, "error_bound: expected init to broadcast"),
        (lambda a, b: error_bound(QTensor(a.codes, E4M3, np.ones((1, 3))), b), ScaleError, "error_bound: the scale of a"),
        (
            lambda a, b: error_bound(QTensor(a.codes, E4M3, np.ones((2, 3)), block=(1, 1)), b, init=np.zeros((2, 2), np.float32)),
            PolicyError,
            "error_bound: init has no place",
        ),
    ],
)
def test_refusals(call: Any, error: type[Fp8npError], message: str) -> None:
    a, b = QTensor(np.zeros((2, 3), np.uint8), E4M3), QTensor(np.zeros((3, 2), np.uint8), E4M3)
    with pytest.raises(error, match=message):
        call(a, b)
