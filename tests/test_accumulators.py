"""The kernels of accumulators against their law, for the rows of the table and for any parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from _products import assert_same_bits, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.accumulators import ACCUMULATORS, ADDENDS, ALIGNMENTS, ROUNDINGS, Accumulator, resolve_accumulate
from fp8np.codec import decode_table, encode
from fp8np.errors import DTypeError, FormatError, PolicyError, ScaleError, ShapeError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.kernels._threads import threads
from fp8np.linalg import conv2d, conv_transpose1d, linear, matmul
from fp8np.reference_sum import dot
from fp8np.tensor import QTensor

NAMES = tuple(ACCUMULATORS)
STEPPED = [how for how in ACCUMULATORS.values() if how.kind == "aligned"]
E4M3, E5M2 = get_format("e4m3fn"), get_format("e5m2")


def fits(how: Accumulator, a: QTensor, b: QTensor) -> bool:
    """Whether the accumulator can fill K up to its order."""
    return not how.order or a.format.has_zero or b.format.has_zero or a.shape[1] % len(how.order) == 0


def law(how: Accumulator, a: QTensor, b: QTensor, init: np.ndarray | None = None) -> np.ndarray:
    """float32 (M, N) of a (M, K) and b (K, N), scales not applied, from the scalar law."""
    out = np.empty((a.shape[0], b.shape[1]), np.uint32)
    for m, n in np.ndindex(out.shape):
        start = 0.0 if init is None else float(init[m, n])
        out[m, n] = dot(how, a.codes[m].tolist(), a.format, b.codes[:, n].tolist(), b.format, start)
    return out.view(np.float32)


def assert_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, those of NaN and of zeros included."""
    assert got.shape == expected.shape
    wrong = got.view(np.uint32) != expected.view(np.uint32)
    assert not wrong.any(), f"{np.argwhere(wrong)[:3].tolist()}: {got[wrong][:3]} for {expected[wrong][:3]}"


@st.composite
def codes(draw: st.DrawFn, fmt: FloatFormat, shape: tuple[int, int]) -> QTensor:
    """Random codes: all of them, finite ones, or finite ones with many zeros."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["any", "finite", "finite", "sparse", "near"]))
    known = np.arange(1 << fmt.bits, dtype=np.uint8)
    finite = known[np.isfinite(decode_table(fmt)[known])]
    if kind == "near":
        return QTensor(random_codes(rng, fmt, shape) & np.uint8((1 << fmt.bits) - 1), fmt)
    chosen = rng.choice(known if kind == "any" else finite, shape)
    return QTensor(np.where(rng.random(shape) < 0.8, 0, chosen) if kind == "sparse" else chosen, fmt)


@st.composite
def starts(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray | None:
    """None, sums of any size, or any float32 at all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["none", "normal", "bits"]))
    if kind == "none":
        return None
    if kind == "bits":
        return rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    return (rng.normal(size=shape) * 2.0 ** draw(st.integers(-140, 120))).astype(np.float32)


@st.composite
def parameters(draw: st.DrawFn) -> Accumulator:
    """Any accumulator of kind "aligned"."""
    group = draw(st.integers(1, 40))
    addend = draw(st.sampled_from(ADDENDS))
    after = addend == "after"
    fraction = draw(st.integers(0, 43 - after)) if after or draw(st.booleans()) else None
    order = tuple(draw(st.permutations(range(2 * group)))) if draw(st.booleans()) else ()
    return Accumulator(
        "random",
        "aligned",
        group=group,
        order=order,
        operand_exponent=draw(st.sampled_from([None, -14, 0])),
        interleave=draw(st.integers(1, min(group, 4))) if after else 1,
        fraction_bits=fraction,
        alignment=draw(st.sampled_from(ALIGNMENTS)) if after else "toward_zero",
        addend=addend,
        sum_fraction_bits=draw(st.integers(fraction or 0, 42)) if after else 0,
        output_fraction_bits=23 if fraction is None else draw(st.integers(1, 23)),
        output_rounding=draw(st.sampled_from(ROUNDINGS)),
        nan_code=draw(st.sampled_from([0x7FC00000, 0x7FFFFFFF, 0xFFC00000])),
        promote_every=draw(st.sampled_from([None, 2 * group, 6 * group] if order else [None, group, 3 * group])),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[QTensor, QTensor, np.ndarray | None]:
    a_format, b_format = draw(st.sampled_from(list(FORMATS.values()))), draw(st.sampled_from(list(FORMATS.values())))
    M, N, K = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 15, 33, 70]))
    return draw(codes(a_format, (M, K))), draw(codes(b_format, (N, K))).T, draw(starts((M, N)))


@pytest.mark.parametrize("how", STEPPED, ids=str)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_a_row_of_the_table_is_its_law(how, case):
    a, b, init = case
    if fits(how, a, b):
        assert_bits(matmul(a, b, accumulate=how, init=init), law(how, a, b, init))
    else:
        with pytest.raises(FormatError, match="has no zero"):
            matmul(a, b, accumulate=how, init=init)


@settings(max_examples=400, deadline=None)
@given(how=parameters(), case=cases())
def test_any_parameters_are_their_law(how, case):
    a, b, init = case
    if fits(how, a, b):
        assert_bits(matmul(a, b, accumulate=how, init=init), law(how, a, b, init))
    else:
        with pytest.raises(FormatError, match="has no zero"):
            matmul(a, b, accumulate=how, init=init)


@pytest.mark.parametrize("name", ["sequential", "exact"])
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_sums_of_a_cpu_are_their_law(name, case):
    a, b, init = case
    assert_same_bits(matmul(a, b, accumulate=name, init=init), law(ACCUMULATORS[name], a, b, init))


@pytest.mark.parametrize(("M", "K"), [(1, 40), (9, 300)])
def test_sequential_is_a_plain_loop(M, K):
    # Also where products round: those of E8M0 with itself, which leave float32's range.
    rng = np.random.default_rng(3)
    for fmt in (E4M3, get_format("float8_e8m0fnu")):
        a, b = QTensor(rng.integers(0, 255, (M, K), np.uint8), fmt), QTensor(rng.integers(0, 255, (K, 11), np.uint8), fmt)
        expected = np.full((M, 11), 0.5, np.float32)
        with np.errstate(all="ignore"):
            for k in range(K):
                expected += decode_table(fmt)[a.codes[:, k, None]] * decode_table(fmt)[b.codes[k]]
        assert_same_bits(matmul(a, b, accumulate="sequential", init=np.float32(0.5)), expected)


@pytest.mark.parametrize("how", STEPPED, ids=str)
def test_bits_depend_on_nothing_but_the_sum(how):
    rng = np.random.default_rng(7)
    a = QTensor(random_codes(rng, E4M3, (3, 41, 600)), E4M3)
    b = QTensor(random_codes(rng, E5M2, (3, 600, 300)), E5M2)
    init = rng.normal(size=(3, 41, 300)).astype(np.float32)
    with threads(1):
        whole = matmul(a, b, accumulate=how, init=init)
    with threads(3):
        assert_bits(matmul(a, b, accumulate=how, init=init), whole)
    for z, m, n in ((0, 0, 0), (2, 40, 299), (1, 17, 130)):
        alone = matmul(QTensor(a.codes[z, m], E4M3), QTensor(b.codes[z, :, n], E5M2), accumulate=how, init=init[z, m, n])
        assert_bits(alone, whole[z, m, n])
        expected = law(how, QTensor(a.codes[z, m, None], E4M3), QTensor(b.codes[z, :, n, None], E5M2), init[z, m, n].reshape(1, 1))
        assert_bits(alone.reshape(1, 1), expected)
    shared = matmul(a, QTensor(b.codes[0], E5M2), accumulate=how)
    assert_bits(shared[0], matmul(QTensor(a.codes[0], E4M3), QTensor(b.codes[0], E5M2), accumulate=how))
    turned = QTensor(np.asfortranarray(b.codes[0]), E5M2)
    assert_bits(matmul(QTensor(a.codes[0], E4M3), turned, accumulate=how), shared[0])


def test_steps_go_on_where_a_chain_is_cut():
    rng = np.random.default_rng(8)
    a, b = QTensor(random_codes(rng, E4M3, (5, 512)), E4M3), QTensor(random_codes(rng, E4M3, (512, 7)), E4M3)
    for how in STEPPED:
        cut = 4 * how.group
        first = matmul(QTensor(a.codes[:, :cut], E4M3), QTensor(b.codes[:cut], E4M3), accumulate=how)
        rest = matmul(QTensor(a.codes[:, cut:], E4M3), QTensor(b.codes[cut:], E4M3), accumulate=how, init=first)
        assert_bits(rest, matmul(a, b, accumulate=how))


def test_promotion_adds_parts_in_float32():
    rng = np.random.default_rng(9)
    a, b = QTensor(random_codes(rng, E4M3, (6, 500)), E4M3), QTensor(random_codes(rng, E4M3, (500, 4)), E4M3)
    init = rng.normal(size=(6, 4)).astype(np.float32)
    for every in (32, 128, 320):
        total = init.copy()
        for k in range(0, 500, every):
            total += matmul(QTensor(a.codes[:, k : k + every], E4M3), QTensor(b.codes[k : k + every], E4M3), accumulate="hopper")
        assert_bits(matmul(a, b, accumulate="hopper", promote_every=every, init=init), total)
        assert_bits(matmul(a, b, accumulate=replace(ACCUMULATORS["hopper"], promote_every=every), init=init), total)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("exact", -0.875), ("fp32", -0.875), ("sequential", -0.875), ("hopper", 0.0), ("ada", 0.0), ("blackwell", -0.75), ("cdna3", -1.0)],
)
def test_one_sum_has_many_answers(name, expected):
    # arXiv 2511.10909, equation 10 and table 8: what each unit makes of 2**23 - 2**23 - 0.5 - 0.25 - 0.125.
    a = encode([-(2.0**13), -0.5, -0.25, -0.125], E5M2)
    b = encode([2.0**10, 1.0, 1.0, 1.0], E5M2)
    assert float(matmul(QTensor(a, E5M2), QTensor(b, E5M2), accumulate=name, init=np.float32(2**23))) == expected


@pytest.mark.parametrize("name", NAMES)
def test_empty_sums_are_what_they_start_from(name):
    a, b = QTensor(np.empty((2, 0), np.uint8), E4M3), QTensor(np.empty((0, 3), np.uint8), E4M3)
    assert_bits(matmul(a, b, accumulate=name), np.zeros((2, 3), np.float32))
    assert_bits(matmul(a, b, accumulate=name, init=np.float32(1.5)), np.full((2, 3), 1.5, np.float32))
    assert matmul(QTensor(np.empty((0, 4), np.uint8), E4M3), QTensor(np.empty((4, 3), np.uint8), E4M3), accumulate=name).shape == (0, 3)


@pytest.mark.parametrize("name", ["sequential", "hopper", "cdna3", "amx"])
def test_a_convolution_is_a_product_of_what_each_pixel_reads(name):
    rng = np.random.default_rng(10)
    x = QTensor(random_codes(rng, E4M3, (2, 6, 7, 8)), E4M3, scale=0.5)
    w = QTensor(random_codes(rng, E5M2, (4, 3, 3, 2)), E5M2, scale=np.float32([1, 2, 4, 0.5]).reshape(4, 1, 1, 1))
    got = conv2d(x, w, stride=(2, 1), padding=((1, 1), (0, 1)), groups=2, accumulate=name)
    padded = np.pad(x.codes, ((0, 0), (0, 0), (1, 1), (0, 1)))
    for b, o, i, j in ((0, 0, 0, 0), (1, 3, 3, 7), (0, 2, 1, 4)):
        window = padded[b, o // 2 * 3 : o // 2 * 3 + 3, 2 * i : 2 * i + 3, j : j + 2]
        one = matmul(QTensor(w.codes[o].reshape(-1), E5M2), QTensor(window.reshape(-1), E4M3), accumulate=name)
        assert_bits(got[b, o, i, j], one * (x.scale * w.scale[o, 0, 0, 0]))


def test_zeros_between_the_values_of_a_transposed_convolution_are_terms():
    x = QTensor(np.array([[[0x38, 0x40]]], np.uint8), E4M3)
    w = QTensor(np.full((1, 1, 3), 0x38, np.uint8), E4M3)
    assert conv_transpose1d(x, w, stride=2, accumulate="hopper").tolist() == [[[1, 1, 3, 2, 2]]]


@pytest.mark.parametrize("name", NAMES)
def test_linear_is_a_product_with_the_weights_turned(name):
    rng = np.random.default_rng(11)
    x = QTensor(random_codes(rng, E4M3, (2, 3, 50)), E4M3, scale=rng.uniform(0.5, 2, (2, 3, 1)).astype(np.float32))
    w = QTensor(random_codes(rng, E5M2, (7, 50)), E5M2, scale=rng.uniform(0.5, 2, (7, 1)).astype(np.float32))
    bias, init = rng.normal(size=(2, 7)).astype(np.float32)
    expected = matmul(x, w.T, accumulate=name, init=init)
    assert_bits(linear(x, w, accumulate=name, init=init), expected)
    assert_bits(linear(x, w, bias, accumulate=name, init=init), expected + bias)
    row, plain = QTensor(x.codes[0, 0], E4M3), QTensor(w.codes, E5M2)
    assert_bits(linear(row, plain, accumulate=name), matmul(row, plain.T, accumulate=name))


def test_linear_refuses_what_does_not_fit():
    x, w = QTensor(np.zeros((2, 3), np.uint8), E4M3), QTensor(np.zeros((4, 3), np.uint8), E4M3)
    with pytest.raises(DTypeError, match="expected a QTensor for w, got ndarray"):
        linear(x, w.codes)
    with pytest.raises(DTypeError, match="float32 for bias"):
        linear(x, w, np.zeros(4))
    with pytest.raises(ShapeError, match="bias to broadcast"):
        linear(x, w, np.zeros(3, np.float32))
    with pytest.raises(ShapeError, match="the K differ"):
        linear(x, w.T)
    with pytest.raises(ShapeError, match="2 axes for w"):
        linear(x, QTensor(w.codes[0], E4M3))
    with pytest.raises(ScaleError, match="the scale of w"):
        linear(x, QTensor(w.codes, E4M3, scale=np.ones((1, 3), np.float32)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hoper",), "unknown accumulate 'hoper'; did you mean hopper"),
        (("kahan",), "unknown accumulate 'kahan'; known: fp32, exact, sequential, hopper"),
        ((None,), "unknown accumulate None; known"),
        (("fp32", 128), "only aligned accumulators take promote_every"),
        (("hopper", 100), "positive multiple of its group of 32, got 100"),
        (("hopper", 0), "positive multiple of its group of 32, got 0"),
        (("hopper", 64.0), "positive multiple of its group of 32, got 64.0"),
    ],
)
def test_wrong_names_are_refused(arguments, message):
    with pytest.raises(PolicyError, match=message):
        resolve_accumulate("matmul", *arguments)
    one = QTensor(np.zeros((1, 1), np.uint8), E4M3)
    with pytest.raises(PolicyError, match=f"matmul: .*{message}"):
        matmul(one, one, accumulate=arguments[0], promote_every=arguments[1] if arguments[1:] else None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "kulisch"}, "unknown kind 'kulisch'"),
        ({"group": 0}, "group of 1 to 4096"),
        ({"group": True}, "group of 1 to 4096"),
        ({"fraction_bits": 60}, "fraction bits of 0 to 46 for groups of 16, got 60"),
        ({"fraction_bits": -1}, "fraction bits of 0 to 46"),
        ({"output_fraction_bits": 24}, "1 to 23 output_fraction_bits"),
        ({"output_rounding": "up"}, "unknown output_rounding 'up'"),
        ({"alignment": "floor"}, "go with addend='after'"),
        ({"interleave": 2}, "go with addend='after'"),
        ({"interleave": 17}, "interleave to be 1 to group = 16"),
        ({"addend": "after"}, "sum_fraction_bits not less"),
        ({"addend": "after", "fraction_bits": None}, "takes fraction_bits"),
        ({"fraction_bits": None, "output_fraction_bits": 13}, "round to float32"),
        ({"nan_code": 0x7F800000}, "32 bits of a float32 NaN"),
        ({"nan_code": -1}, "32 bits of a float32 NaN"),
        ({"nan_code": 1.5}, "32 bits of a float32 NaN for nan_code, got 1.5"),
        ({"order": [*range(16)]}, "order to be a tuple of whole numbers"),
        ({"order": None}, "order to be a tuple of whole numbers, got None"),
        ({"order": ("a",) * 16}, "order to be a tuple of whole numbers"),
        ({"order": (0, 1)}, "permutation of a multiple of 16 numbers"),
        ({"order": (0,) * 16}, "permutation of a multiple"),
        ({"order": tuple(range(32)), "promote_every": 48}, "multiple of the 32 products of its order, got 48"),
        ({"operand_exponent": 1}, "operand_exponent to be None or -127 to 0"),
        ({"promote_every": 24}, "positive multiple of its group of 16"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(PolicyError, match=f"mine: .*{message}"):
        Accumulator(**{"name": "mine", "kind": "aligned", "group": 16, "fraction_bits": 20, **fields})


@pytest.mark.parametrize("kind", ["fp32", "exact", "sequential"])
@pytest.mark.parametrize("field", [{"group": 4}, {"nan_code": 0x7FFFFFFF}, {"output_rounding": "toward_zero"}, {"promote_every": 4}])
def test_parameters_of_steps_are_refused_where_there_are_no_steps(kind, field):
    with pytest.raises(PolicyError, match=f"mine: only aligned accumulators take {next(iter(field))}"):
        Accumulator("mine", kind, **field)


def test_numpy_integers_are_whole_numbers():
    a = QTensor(np.full((1, 256), 0x39, np.uint8), E4M3)
    got = matmul(a, a.T, accumulate="hopper", promote_every=np.int64(128))
    assert_bits(got, matmul(a, a.T, accumulate="hopper", promote_every=128))


@pytest.mark.parametrize("how", ACCUMULATORS.values(), ids=str)
def test_every_nan_is_that_of_the_accumulator(how):
    # Infinities that meet, an infinity times zero, a NaN of either sign: CPUs make NaNs of different signs of them.
    inf, zero, one, nan = 0x7C, 0x00, 0x3C, 0x7E
    rows = [[inf, inf], [inf, one], [nan, one], [nan | 0x80, one], [one, one]]
    columns = [[one, one | 0x80], [zero, one], [one, one], [one, one], [inf, inf | 0x80]]
    a, b = QTensor(np.array(rows, np.uint8), E5M2), QTensor(np.array(columns, np.uint8).T, E5M2)
    for got in (matmul(a, b, accumulate=how), matmul(a, b, accumulate=how, init=np.float32(1)), _blocked(a, b, how)):
        assert_bits(np.diagonal(got).copy(), np.full(5, how.nan_code, np.uint32).view(np.float32))
    assert_bits(matmul(a, b, accumulate=how), law(how, a, b))
    pixels, filters = QTensor(a.codes[:, :, None, None], E5M2), QTensor(b.codes.T[:, :, None, None], E5M2)
    assert_bits(conv2d(pixels, filters, accumulate=how)[:, :, 0, 0], law(how, a, b))


def _blocked(a: QTensor, b: QTensor, how: Accumulator) -> np.ndarray:
    ones = np.ones((5, 2), np.float32)
    return matmul(QTensor(a.codes, E5M2, ones, block=(1, 1)), QTensor(b.codes, E5M2, ones.T, block=(1, 1)), accumulate=how)


@pytest.mark.parametrize("how", ACCUMULATORS.values(), ids=str)
def test_a_sum_of_nothing_is_what_it_starts_from(how):
    nothing = QTensor(np.zeros((1, 0), np.uint8), E4M3)
    init = np.array([[0xFFC12345]], np.uint32).view(np.float32)
    got = matmul(nothing, nothing.T, accumulate=how, init=init)
    assert_bits(got, law(how, nothing, nothing.T, init))
    assert_bits(got, np.array([[how.nan_code]], np.uint32).view(np.float32))
    if how.kind != "exact":
        assert_bits(matmul(nothing, nothing.T, accumulate=how, init=np.float32([[-0.0]])), np.float32([[-0.0]]))


def test_every_row_says_where_its_rule_is_from():
    for how in ACCUMULATORS.values():
        assert how.source, how
        assert how.verified, how
        assert ACCUMULATORS[how.name] is how
        assert resolve_accumulate("x", how) is how is resolve_accumulate("x", how.name)
