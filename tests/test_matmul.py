from __future__ import annotations

import numpy as np
import pytest
from _products import PAIRS, assert_same_bits, random_codes, sum_bound, values
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.errors import DTypeError, PolicyError, ScaleError, ShapeError
from fp8np.formats import FORMATS, get_format
from fp8np.kernels._tile import DEPTH, LANES
from fp8np.linalg import matmul
from fp8np.tensor import QTensor

E4M3 = get_format("e4m3fn")
E5M2 = get_format("e5m2")
ROWS = [1, 2, 3, 4, 5, 7]
COLUMNS = [1, 2, 8, 9, 17, LANES - 1, LANES, LANES + 3]
TERMS = [0, 1, 2, 3, 5, 37, DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH + 6]


def tensor(shape, seed=0, fmt=E4M3, scale=1.0):
    return QTensor(random_codes(np.random.default_rng(seed), fmt, shape), fmt, scale)


def check_within_bound(a, b, got=None):
    x, y = values(a), values(b)
    got = matmul(a, b) if got is None else got
    K = x.shape[-1]
    error = np.abs(got - x @ y)
    # The float64 reference itself rounds; 2**-40 of the magnitudes is far more than that for any K here.
    magnitudes = np.abs(x) @ np.abs(y)
    assert (error <= sum_bound(K, magnitudes) + 2.0**-40 * magnitudes).all()
    assert got.dtype == np.float32
    assert got.shape == (x @ y).shape


@pytest.mark.parametrize("M", ROWS)
@pytest.mark.parametrize("N", COLUMNS)
def test_all_paddings_stay_within_the_bound_and_sum_in_order(M, N):
    for K in TERMS:
        a, b = tensor((M, K), K), tensor((K, N), K + 1)
        got = matmul(a, b)
        check_within_bound(a, b, got)
        # "sequential": k ascending, one float32 rounding a term; products are exact in float32.
        in_order = np.zeros((M, N), np.float32)
        for k in range(K):
            in_order += (values(a)[:, k, None] * values(b)[k]).astype(np.float32)
        assert_same_bits(matmul(a, b, accumulate="sequential"), in_order)


@pytest.mark.parametrize(("a_format", "b_format"), [(a, b) for a, b in PAIRS if a.signed and b.signed])
def test_every_pair_of_signed_formats(a_format, b_format):
    check_within_bound(tensor((5, 70), 1, a_format), tensor((70, 11), 2, b_format))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_powers_of_two_as_one_operand(fmt):
    # E8M0 near 1, so that float32 holds all products.
    scales = QTensor(np.random.default_rng(3).integers(117, 138, (6, 9), dtype=np.uint8), "e8m0fnu")
    check_within_bound(scales, tensor((9, 5), 4, fmt if fmt.signed else E4M3))
    if not fmt.signed:
        check_within_bound(scales, QTensor(scales.codes.T, fmt))


def test_a_very_long_sum():
    for M in (1, 5):
        check_within_bound(tensor((M, 300_007), 5), tensor((300_007, 3), 6))


@pytest.mark.parametrize("accumulate", ["fp32", "exact"])
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((4, 3), (3,)),
        ((2, 4, 3), (3,)),
        ((3,), (2, 3, 5)),
        ((2, 4, 3), (3, 5)),
        ((4, 3), (2, 3, 5)),
        ((6, 1, 4, 3), (2, 3, 5)),
        ((1, 4, 3), (1, 3, 5)),
        ((2, 4, 3), (1, 3, 5)),
        ((2, 3, 4, 3), (2, 1, 3, 5)),
        ((0, 4, 3), (3, 5)),
        ((4, 3), (0, 3, 5)),
        ((2, 0, 3), (2, 3, 5)),
        ((4, 0), (0, 5)),
    ],
)
def test_shapes_are_those_of_numpy(a_shape, b_shape, accumulate):
    # Values so few and so close that every sum is exact.
    rng = np.random.default_rng(7)
    a = QTensor(rng.integers(0x30, 0x48, a_shape, dtype=np.uint8), E4M3)
    b = QTensor(rng.integers(0x30, 0x48, b_shape, dtype=np.uint8), E4M3)
    expected = np.matmul(values(a), values(b)).astype(np.float32)
    assert_same_bits(matmul(a, b, accumulate=accumulate), np.asarray(expected))


@pytest.mark.parametrize("accumulate", ["fp32", "exact"])
def test_any_strides(accumulate):
    rng = np.random.default_rng(8)
    wide = rng.integers(0x30, 0x48, (2, 14, 18), dtype=np.uint8)
    wide.flags.writeable = False
    a = QTensor(wide[:, ::3, ::-2], E4M3)
    b = QTensor(wide.transpose(0, 2, 1)[:, 1::2, 3:], E4M3)
    shared = QTensor(np.broadcast_to(wide[0, 0, :9, None], (2, 9, 4)), E4M3)
    for right in (b, shared):
        assert_same_bits(matmul(a, right, accumulate=accumulate), (values(a) @ values(right)).astype(np.float32))
    assert_same_bits(matmul(a.transpose(0, 2, 1), a, accumulate=accumulate), (values(a).transpose(0, 2, 1) @ values(a)).astype(np.float32))


@pytest.mark.parametrize("accumulate", ["fp32", "exact"])
def test_scales_multiply_on_the_way_out(accumulate):
    rng = np.random.default_rng(9)

    def scale(*shape):
        return rng.uniform(0.1, 3, shape).astype(np.float32)

    a_codes = rng.integers(0x30, 0x48, (2, 4, 6), dtype=np.uint8)
    b_codes = rng.integers(0x30, 0x48, (2, 6, 3), dtype=np.uint8)
    sums = matmul(QTensor(a_codes, E4M3), QTensor(b_codes, E4M3))
    for a_shape in ((), (1, 1, 1), (1, 4, 1), (2, 1, 1), (2, 4, 1)):
        for b_shape in ((), (1, 1, 3), (2, 1, 1), (2, 1, 3)):
            a, b = QTensor(a_codes, E4M3, scale(*a_shape)), QTensor(b_codes, E4M3, scale(*b_shape))
            assert_same_bits(matmul(a, b, accumulate=accumulate), sums * a.scale * b.scale)
    row = QTensor(a_codes[0, 0], E4M3, scale(1))
    assert_same_bits(matmul(row, QTensor(b_codes[0], E4M3), accumulate=accumulate), sums[0, 0] * row.scale)


@pytest.mark.parametrize("accumulate", ["fp32", "exact"])
@pytest.mark.parametrize("M", [1, 6])
def test_init_is_what_the_sum_starts_from(accumulate, M):
    a, b = tensor((2, M, 3), 10, scale=0.5), tensor((3, 5), 11)
    one = QTensor(np.full((2, M, 1), 0x38, np.uint8), E4M3)
    for shape in ((2, M, 5), (M, 5), (5,), (), (2, 1, 1)):
        init = (np.random.default_rng(12).integers(-9, 9, shape) * 2.0**-9).astype(np.float32)
        before = init.copy()
        plain = QTensor(np.zeros((1, 5), np.uint8), E4M3)
        assert_same_bits(matmul(one, plain, accumulate=accumulate, init=init), np.broadcast_to(init, (2, M, 5)) + np.float32(0))
        exact = (np.broadcast_to(init, (2, M, 5)).astype(np.float64) + values(a) @ values(b)) * 0.5
        got = matmul(a, b, accumulate=accumulate, init=init)
        assert (np.abs(got - exact) <= sum_bound(4, np.abs(init) + np.abs(values(a)) @ np.abs(values(b)))).all()
        assert (init == before).all()
    vector = matmul(QTensor(a.codes[0, 0], E4M3), b, accumulate=accumulate, init=np.ones(5, np.float32))
    assert vector.shape == (5,)


def test_the_sum_starts_from_init_and_does_not_add_it_last():
    # 2**24 + 1 + 1 is 2**24 in float32, 1 + 1 + 2**24 is not.
    ones = QTensor(np.full((1, 2), 0x38, np.uint8), E4M3)
    assert matmul(ones, ones.T, init=np.float32(2**24)).item() == 2**24


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exact_and_fp32_agree_within_the_bound(data):
    a_format, b_format = data.draw(st.sampled_from([pair for pair in PAIRS if pair[0].signed and pair[1].signed]))
    M, K, N = (data.draw(st.integers(0, limit)) for limit in (9, 300, 20))
    seed = data.draw(st.integers(0, 2**32 - 1))
    a, b = tensor((M, K), seed, a_format), tensor((K, N), seed + 1, b_format)
    got, exact = matmul(a, b), matmul(a, b, accumulate="exact")
    magnitudes = np.abs(values(a)) @ np.abs(values(b))
    assert (np.abs(got.astype(np.float64) - exact) <= sum_bound(K + 1, magnitudes)).all()


@pytest.mark.parametrize("special", [0x7F, 0x7C, 0xFC])
@pytest.mark.parametrize("M", [1, 5])
def test_a_special_value_stays_in_its_row_and_column(special, M):
    # The shapes leave padded rows and lanes, which must not leak.
    a, b = QTensor(np.full((M, 9), 0x3C, np.uint8), E5M2), QTensor(np.full((9, 11), 0x3C, np.uint8), E5M2)
    for accumulate in ("fp32", "exact"):
        for k in (0, 8):
            codes = b.codes.copy()
            codes[k, 10] = special
            got = matmul(a, QTensor(codes, E5M2), accumulate=accumulate)
            assert (got[:, :10] == 9).all()
            assert not np.isfinite(got[:, 10]).any()
            codes = a.codes.copy()
            codes[M - 1, k] = special
            got = matmul(QTensor(codes, E5M2), b, accumulate=accumulate)
            assert (got[: M - 1] == 9).all()
            assert not np.isfinite(got[M - 1]).any()


def test_bad_arguments_say_what_to_do():
    a, b = tensor((2, 3)), tensor((3, 4))
    with pytest.raises(DTypeError, match=r"QTensor for b, got ndarray.*quantize"):
        matmul(a, np.zeros((3, 4)))
    with pytest.raises(ShapeError, match="the K differ"):
        matmul(a, a)
    with pytest.raises(ShapeError, match="at least one axis"):
        matmul(QTensor(np.uint8(1), E4M3), b)
    with pytest.raises(ShapeError, match="do not broadcast"):
        matmul(tensor((2, 5, 3)), tensor((3, 3, 4)))
    with pytest.raises(ScaleError, match=r"scale of a.*axis=-2 \(M\)"):
        matmul(QTensor(a.codes, E4M3, np.ones((1, 3))), b)
    with pytest.raises(ScaleError, match=r"scale of b.*axis=-1 \(N\)"):
        matmul(a, QTensor(b.codes, E4M3, np.ones((3, 1))))
    with pytest.raises(ScaleError, match="scale of b"):
        matmul(a, QTensor(b.codes[:, 0], E4M3, np.ones(3)))
    with pytest.raises(PolicyError, match="known: fp32, exact"):
        matmul(a, b, accumulate="fp64")
    with pytest.raises(DTypeError, match="float32 for init, got float64"):
        matmul(a, b, init=np.zeros((2, 4)))
    with pytest.raises(ShapeError, match=r"init to broadcast to \(2, 4\)"):
        matmul(a, b, init=np.zeros((3, 4), np.float32))
