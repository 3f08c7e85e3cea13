from __future__ import annotations

import numpy as np
import pytest
from _products import assert_same_bits, random_codes, sum_bound, values
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.errors import DTypeError, FormatError, PolicyError, ScaleError, ShapeError
from fp8np.formats import get_format
from fp8np.linalg import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from fp8np.tensor import QTensor

torch = pytest.importorskip("torch")
functional = torch.nn.functional

E4M3 = get_format("e4m3fn")
E5M2 = get_format("e5m2")


def tensor(shape, seed=0, fmt=E4M3, scale=1.0):
    return QTensor(random_codes(np.random.default_rng(seed), fmt, shape), fmt, scale)


def real(q):
    return torch.from_numpy(values(q))


def check(ours, theirs, x, w, **arguments):
    """Values against torch in float64, within the bound of a float32 sum; `exact` within one rounding."""
    expected = theirs(real(x), real(w)).numpy()
    magnitudes = theirs(real(x).abs(), real(w).abs()).numpy()
    got = ours(x, w, **arguments)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    slack = 2.0**-40 * magnitudes
    assert (np.abs(got - expected) <= sum_bound(w.size // expected.shape[1], magnitudes) + slack).all()
    exact = ours(x, w, accumulate="exact", **arguments)
    assert (np.abs(exact - expected) <= sum_bound(1, np.abs(expected)) + slack).all()


sizes = st.integers(1, 9)
small = st.integers(1, 3)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_conv2d_of_any_geometry(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2, 3, 5]))
    per_group, outputs = draw(small), groups * draw(st.integers(1, 5))
    kernel, stride, dilation = ((draw(small), draw(small)) for _ in range(3))
    top, bottom, left, right = (draw(st.integers(0, 3)) for _ in range(4))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    H = max(draw(sizes), reach[0] - top - bottom)
    W = max(draw(sizes), reach[1] - left - right)
    seed = draw(st.integers(0, 2**31))
    x = tensor((draw(st.integers(1, 3)), groups * per_group, H, W), seed)
    w = tensor((outputs, per_group, *kernel), seed + 1, E5M2)

    def theirs(a, b):
        return functional.conv2d(functional.pad(a, (left, right, top, bottom)), b, None, stride, 0, dilation, groups)

    pads = ((top, bottom), (left, right))
    check(conv2d, theirs, x, w, stride=stride, padding=pads, dilation=dilation, groups=groups)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_conv_transpose2d_of_any_geometry(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_group, outputs = draw(small), draw(st.integers(1, 4))
    kernel, stride, dilation = ((draw(small), draw(small)) for _ in range(3))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    shape = draw(sizes), draw(sizes)
    # Padding beyond the filter's reach crops x itself.
    most = [((n - 1) * s + d * (k - 1) + e) // 2 for n, s, d, k, e in zip(shape, stride, dilation, kernel, extra, strict=True)]
    padding = tuple(draw(st.integers(0, min(m, 4))) for m in most)
    seed = draw(st.integers(0, 2**31))
    x = tensor((draw(st.integers(1, 2)), groups * per_group, *shape), seed)
    w = tensor((groups * per_group, outputs, *kernel), seed + 1)

    def theirs(a, b):
        return functional.conv_transpose2d(a, b, None, stride, padding, extra, groups, dilation)

    arguments = {"stride": stride, "padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation}
    check(conv_transpose2d, theirs, x, w, **arguments)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "stride", "padding", "groups"),
    [
        ((3, 20, 9, 11), (70, 20, 3, 3), 1, 1, 1),  # pixels of several pictures in a panel, terms in several panels
        ((2, 300, 6, 5), (9, 300, 1, 1), 1, 0, 1),  # pointwise
        ((2, 300, 6, 5), (9, 300, 1, 1), 2, 0, 1),  # pointwise in steps
        ((3, 5, 6, 4), (7, 5, 6, 4), 1, 0, 1),  # one window: a matrix product
        ((1, 1, 40, 41), (3, 1, 5, 5), 2, 2, 1),  # one channel
        ((2, 6, 50, 70), (6, 1, 3, 3), 1, 1, 6),  # depthwise, more than one block of rows
        ((2, 6, 13, 17), (18, 1, 5, 3), 3, 2, 6),  # depthwise with a multiplier, in steps
        ((1, 4, 3, 2), (8, 1, 1, 1), 1, 1, 4),  # depthwise, pointwise, padded
    ],
)
def test_shapes_of_networks(x_shape, w_shape, stride, padding, groups):
    def theirs(a, b):
        return functional.conv2d(a, b, None, stride, padding, 1, groups)

    check(conv2d, theirs, tensor(x_shape, 1), tensor(w_shape, 2), stride=stride, padding=padding, groups=groups)


def test_a_dilated_window_as_large_as_the_picture_is_no_matrix_product():
    x, w = tensor((2, 3, 3, 4), 13), tensor((5, 3, 3, 4), 14)

    def theirs(a, b):
        return functional.conv2d(functional.pad(a, (0, 3, 0, 2)), b, None, 1, 0, 2)

    check(conv2d, theirs, x, w, padding=((0, 2), (0, 3)), dilation=2)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_in_words_as_in_torch(kernel, dilation):
    x, w = tensor((1, 2, 12, 13), 3), tensor((3, 2, *kernel), 4)
    for padding in ("same", "valid"):
        with torch.no_grad():
            expected = functional.conv2d(
                _same_pad(real(x), kernel, dilation) if padding == "same" else real(x), real(w), None, 1, 0, dilation
            )
        got = conv2d(x, w, padding=padding, dilation=dilation)
        assert got.shape == tuple(expected.shape)
        assert np.allclose(got, expected.numpy(), rtol=1e-5, atol=1e-3 * np.abs(expected.numpy()).max())
    assert conv2d(x, w, padding="same", dilation=dilation).shape == (1, 3, 12, 13)


def _same_pad(x, kernel, dilation):
    # torch warns where an even kernel needs one zero more on one side; this is what it then does.
    (up, down), (left, right) = ((t // 2, t - t // 2) for t in (dilation * (k - 1) for k in kernel))
    return functional.pad(x, (left, right, up, down))


def test_one_dimension():
    x, w = tensor((2, 4, 11), 5), tensor((6, 2, 3), 6)
    for stride, padding, dilation in ((1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 4, 1)):

        def theirs(a, b, stride=stride, padding=padding, dilation=dilation):
            return functional.conv1d(a, b, None, stride, padding, dilation, 2)

        check(conv1d, theirs, x, w, stride=stride, padding=padding, dilation=dilation, groups=2)
    assert_same_bits(conv1d(x, w, padding="same", groups=2), conv1d(x, w, padding=(1, 1), groups=2))
    assert conv1d(x, w, padding=(0, 3), groups=2).shape == (2, 6, 12)
    v = tensor((4, 3, 3), 7)
    for stride, padding, extra, dilation in ((1, 0, 0, 1), (2, 1, 1, 1), (3, 4, 2, 2)):

        def theirs_too(a, b, stride=stride, padding=padding, extra=extra, dilation=dilation):
            return functional.conv_transpose1d(a, b, None, stride, padding, extra, 2, dilation)

        arguments = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
        check(conv_transpose1d, theirs_too, x, v, groups=2, **arguments)


@pytest.mark.parametrize("accumulate", ["fp32", "exact"])
def test_scales_and_bias(accumulate):
    rng = np.random.default_rng(8)

    def scale(*shape):
        return rng.uniform(0.1, 3, shape).astype(np.float32)

    x_codes = rng.integers(0x30, 0x48, (2, 4, 5, 5), dtype=np.uint8)
    w_codes = rng.integers(0x30, 0x48, (6, 2, 3, 3), dtype=np.uint8)
    bias = scale(6)
    sums = conv2d(QTensor(x_codes, E4M3), QTensor(w_codes, E4M3), groups=2)
    for x_scale in (scale(), scale(1, 1, 1, 1), scale(2, 1, 1, 1)):
        for w_scale in (scale(), scale(6, 1, 1, 1)):
            x, w = QTensor(x_codes, E4M3, x_scale), QTensor(w_codes, E4M3, w_scale)
            expected = sums * (x_scale.reshape(-1, 1, 1, 1) * w_scale.reshape(1, -1, 1, 1))
            assert_same_bits(conv2d(x, w, groups=2, accumulate=accumulate), expected)
            assert_same_bits(conv2d(x, w, groups=2, bias=bias, accumulate=accumulate), expected + bias[:, None, None])
    # Transposed: the scale of an output channel lies along axis 1, within each group.
    v_scale = scale(1, 2, 1, 1)
    v = QTensor(w_codes[:4], E4M3, v_scale)
    plain = conv_transpose2d(QTensor(x_codes, E4M3), QTensor(v.codes, E4M3), groups=2)
    got = conv_transpose2d(QTensor(x_codes, E4M3), v, groups=2, bias=bias[:4], accumulate=accumulate)
    assert_same_bits(got, plain * np.tile(v_scale.ravel(), 2)[:, None, None] + bias[:4, None, None])


@pytest.mark.parametrize(("groups", "padding"), [(1, 0), (1, 1), (3, 0), (3, 1)])
def test_nan_and_infinity_reach_what_they_touch(groups, padding):
    for special in (0x7C, 0xFC, 0x7E):
        x, w = tensor((2, 3, 6, 7), 9, E4M3), np.array(tensor((3, 3 // groups, 3, 3), 10, E5M2).codes)
        pictures = QTensor(random_codes(np.random.default_rng(11), E5M2, x.shape), E5M2)
        codes = np.where(pictures.codes == 0x80, 0, pictures.codes)
        codes[1, 2, 0, 6] = special
        pictures = QTensor(codes, E5M2)
        w[1, 0, 0, 0] = 0x7C  # meets padding as zero times infinity
        filters = QTensor(w, E5M2)
        with np.errstate(invalid="ignore"):
            expected = functional.conv2d(real(pictures), real(filters), None, 1, padding, 1, groups).numpy()
        for accumulate in ("fp32", "exact"):
            got = conv2d(pictures, filters, padding=padding, groups=groups, accumulate=accumulate)
            assert (np.isnan(got) == np.isnan(expected)).all()
            assert (np.isposinf(got) == np.isposinf(expected)).all()
            assert (np.isneginf(got) == np.isneginf(expected)).all()


@pytest.mark.parametrize(("channels", "filters", "groups"), [(32, 32, 4), (18, 24, 3), (8, 8, 2)])
def test_nan_and_infinity_stay_in_their_group(channels, filters, groups):
    x, w = tensor((2, channels, 5, 4), 12, E5M2), tensor((filters, channels // groups, 3, 3), 13, E5M2)
    codes = x.codes.copy()
    codes[0, 1, 2, 2], codes[1, channels - 1, 2, 1] = 0x7E, 0x7C
    pictures = QTensor(codes, E5M2)
    got, expected = (conv2d(pictures, w, groups=groups, padding=1, accumulate=how) for how in ("fp32", "exact"))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_array_equal(got[np.isinf(expected)], expected[np.isinf(expected)])
    assert not np.isnan(got[0, filters // groups :]).any()


@pytest.mark.parametrize("accumulate", ["fp32", "exact"])
def test_nothing_to_convolve(accumulate):
    for x_shape, w_shape, shape in (
        ((0, 2, 4, 4), (3, 2, 3, 3), (0, 3, 2, 2)),
        ((2, 2, 4, 4), (0, 2, 3, 3), (2, 0, 2, 2)),
        ((2, 0, 4, 4), (3, 0, 3, 3), (2, 3, 2, 2)),
    ):
        bias = np.arange(shape[1], dtype=np.float32)
        got = conv2d(tensor(x_shape), tensor(w_shape), bias=bias, accumulate=accumulate)
        assert_same_bits(got, np.broadcast_to(bias[:, None, None], shape) + np.float32(0))


def test_e8m0_has_no_zero_to_pad_with():
    powers = QTensor(np.full((1, 1, 4, 4), 127, np.uint8), "e8m0fnu")
    w = tensor((1, 1, 3, 3), 12)
    check(conv2d, lambda a, b: functional.conv2d(a, b), powers, w)
    assert conv_transpose2d(powers, w, padding=2).shape == (1, 1, 2, 2)
    with pytest.raises(FormatError, match="has no zero"):
        conv2d(powers, w, padding=1)
    with pytest.raises(FormatError, match="has no zero"):
        conv_transpose2d(powers, w)
    with pytest.raises(FormatError, match="has no zero"):
        conv_transpose2d(powers, w, stride=2, padding=2)


def test_bad_arguments_say_what_to_do():
    x, w = tensor((2, 4, 5, 5)), tensor((6, 2, 3, 3))
    for name, call in (("conv2d", conv2d), ("conv_transpose2d", conv_transpose2d)):
        with pytest.raises(DTypeError, match=f"{name}: expected a QTensor for w.*quantize"):
            call(x, values(w))
        with pytest.raises(PolicyError, match="known: fp32, exact"):
            call(x, w, groups=2, accumulate="int32")
        with pytest.raises(ShapeError, match="4 axes for x"):
            call(QTensor(x.codes[0], E4M3), w)
        with pytest.raises(ShapeError, match="G = 3"):
            call(x, w, groups=3)
        with pytest.raises(ShapeError, match="stride to be a whole number >= 1"):
            call(x, w, groups=2, stride=0)
        with pytest.raises(ShapeError, match="dilation"):
            call(x, w, groups=2, dilation=(1, 2, 3))
        with pytest.raises(ShapeError, match="padding"):
            call(x, w, groups=2, padding=-1)
    with pytest.raises(ShapeError, match="does not fit x"):
        conv2d(x, w, groups=2, dilation=3)
    with pytest.raises(ShapeError, match="needs stride 1"):
        conv2d(x, w, groups=2, stride=2, padding="same")
    with pytest.raises(ShapeError, match="unknown padding 'full'"):
        conv2d(x, w, groups=2, padding="full")
    with pytest.raises(ShapeError, match=r"\(\(top, bottom\), \(left, right\)\)"):
        conv2d(x, w, groups=2, padding=((1, 1), (1, 1), (1, 1)))
    with pytest.raises(ShapeError, match="expected bias to broadcast"):
        conv2d(x, w, groups=2, bias=np.ones(4, np.float32))
    with pytest.raises(DTypeError, match="float32 for bias"):
        conv2d(x, w, groups=2, bias=np.ones(6))
    with pytest.raises(ScaleError, match="scale of x"):
        conv2d(QTensor(x.codes, E4M3, np.ones((1, 4, 1, 1))), w, groups=2)
    with pytest.raises(ScaleError, match=r"scale of w.*output channels"):
        conv2d(x, QTensor(w.codes, E4M3, np.ones((1, 2, 1, 1))), groups=2)
    with pytest.raises(ScaleError, match=r"scale of w.*axis=1"):
        conv_transpose2d(x, QTensor(w.codes[:4], E4M3, np.ones((4, 1, 1, 1))), groups=2)
    with pytest.raises(ShapeError, match="output_padding less than stride"):
        conv_transpose2d(x, QTensor(w.codes[:4], E4M3), groups=2, output_padding=1)
    with pytest.raises(ShapeError, match="numbers for padding"):
        conv_transpose2d(x, QTensor(w.codes[:4], E4M3), groups=2, padding="same")
