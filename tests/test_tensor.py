"""QTensor: what it keeps, what it refuses, and that nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fp8np
from fp8np.errors import DTypeError, FormatError, ScaleError, ShapeError
from fp8np.formats import FORMATS
from fp8np.tensor import QTensor

CODES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def test_facts() -> None:
    scale = np.linspace(1, 2, 3, dtype=np.float32).reshape(1, 3, 1)
    q = QTensor(CODES, "e4m3fn", scale)
    assert q.codes is CODES
    assert (q.shape, q.ndim, q.size, len(q)) == ((2, 3, 4), 3, 24, 2)
    assert (q.format, q.scale.dtype) == (FORMATS["float8_e4m3fn"], np.float32)
    assert q.nbytes == 24 + 12
    assert (q.block, q.scale_format) == (None, None)
    assert fp8np.QTensor is QTensor


def test_transposing_is_a_view_and_takes_the_scale_along() -> None:
    q = QTensor(CODES, "e4m3fn", np.ones((1, 3, 1), np.float32) * [[[1], [2], [4]]])
    assert q.T.shape == (4, 3, 2)
    assert q.T.scale.shape == (1, 3, 1)
    turned = q.transpose(1, 0, 2)
    assert (turned.shape, turned.scale.shape) == ((3, 2, 4), (3, 1, 1))
    assert np.shares_memory(turned.codes, CODES)
    np.testing.assert_array_equal(fp8np.dequantize(turned), fp8np.dequantize(q).transpose(1, 0, 2))
    assert QTensor(CODES, "e4m3fn", 2).T.scale.shape == ()


@pytest.mark.parametrize("name", [n for n in FORMATS if n.startswith("float") and n != "float8_e3m4fn"])
def test_ml_dtypes_arrays_both_ways_without_a_copy(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(1 << FORMATS[name].bits, dtype=np.uint8).view(getattr(ml_dtypes, name))
    for q in (QTensor(array), QTensor(array, name), QTensor(array, array.dtype)):
        assert q.format.name == name
        assert q.codes.dtype == np.uint8
        assert np.shares_memory(q.codes, array)
        back = q.view_ml_dtypes()
        assert back.dtype == array.dtype
        assert np.shares_memory(back, array)
    np.testing.assert_array_equal(fp8np.dequantize(QTensor(array)), array.astype(np.float32))


def test_ml_dtypes_lacks_the_format_of_the_paper() -> None:
    for name in ("e3m4fn", "e4m3@11"):
        with pytest.raises(FormatError, match=r"use \.codes"):
            QTensor(CODES, name).view_ml_dtypes()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((CODES,), FormatError, "format is needed"),
        ((CODES, "e4m3fm"), FormatError, "did you mean"),
        ((CODES.astype(np.float32), "e4m3fn"), DTypeError, r"float32; use quantize\(\)"),
        ((CODES.astype(np.int8), "e4m3fn"), DTypeError, "int8"),
        ((CODES, "e4m3fn", 0.0), ScaleError, "positive"),
        ((CODES, "e4m3fn", np.inf), ScaleError, "finite"),
        ((CODES, "e4m3fn", np.nan), ScaleError, "finite"),
        ((CODES, "e4m3fn", np.ones(4)), ShapeError, r"\(4,\)"),
        ((CODES, "e4m3fn", np.ones((2, 3, 3))), ShapeError, r"\(2, 3, 3\)"),
        ((CODES, "e2m1fn"), FormatError, "codes of 4 bits.*0x17"),
        ((CODES, "e4m3fn", np.ones((2, 3, 2))), ShapeError, "takes block="),
    ],
)
def test_refusals(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QTensor(*arguments)


# -- blocks and formats of scales -------------------------------------------------------------------------------------


def test_blocks() -> None:
    scale = np.linspace(1, 2, 4, dtype=np.float32).reshape(2, 1, 2)
    q = QTensor(CODES, "e4m3fn", scale, block=(0, 3))
    assert q.block == (1, 3, 3)
    for other in ((1, 0, 3), (1, 3, 3), [1, np.int64(3), 3]):
        assert QTensor(CODES, "e4m3fn", scale, block=other).block == (1, 3, 3)
    assert (q.T.block, q.T.scale.shape) == ((3, 3, 1), (2, 1, 2))
    turned = q.transpose(1, 0, 2)
    assert (turned.block, turned.scale.shape) == ((3, 1, 3), (1, 2, 2))
    np.testing.assert_array_equal(fp8np.dequantize(turned), fp8np.dequantize(q).transpose(1, 0, 2))
    assert q.nbytes == 24 + 16


def test_a_new_axis_is_a_view() -> None:
    blocked = QTensor(CODES, "e4m3fn", np.ones((2, 1, 2)), block=(1, 3, 3))
    for q in (blocked, QTensor(CODES, "e4m3fn", 2.0), QTensor(CODES, "e4m3fn", np.ones((1, 3, 1)))):
        for axis in range(-4, 4):
            more = q.expand_dims(axis)
            np.testing.assert_array_equal(fp8np.dequantize(more), np.expand_dims(fp8np.dequantize(q), axis))
            assert np.shares_memory(more.codes, CODES)
    assert blocked.expand_dims(-1).block == (1, 3, 3, 1)
    with pytest.raises(ShapeError, match="from -4 to 3"):
        blocked.expand_dims(4)


def test_scales_as_codes_and_as_values() -> None:
    codes = np.array([[[127, 0]], [[254, 255]]], np.uint8)
    q = QTensor(CODES, "e4m3fn", codes, block=(1, 0, 2), scale_format="e8m0fnu")
    np.testing.assert_array_equal(q.scale, np.array([[[1, 2.0**-127]], [[2.0**127, np.nan]]], np.float32))
    np.testing.assert_array_equal(q.scale_codes, codes)
    same = QTensor(CODES, "e4m3fn", q.scale, block=(1, 0, 2), scale_format="e8m0fnu")
    np.testing.assert_array_equal(same.scale_codes, codes)
    np.testing.assert_array_equal(same.T.scale_codes, codes.T)
    assert (q.nbytes, q.T.scale_format) == (28, FORMATS["float8_e8m0fnu"])
    assert np.isnan(fp8np.dequantize(q)[1, :, 2:]).all()
    assert QTensor(CODES, "e4m3fn", np.uint8(130), scale_format="e8m0fnu").scale == 8
    assert QTensor(CODES, "e4m3fn", 8, scale_format="e8m0fnu").scale_codes == 130


def test_scales_as_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    scale = np.full((2, 1, 2), 3, np.uint8).view(ml_dtypes.float8_e8m0fnu)
    q = QTensor(CODES, "e4m3fn", scale, block=(1, 0, 2))
    assert q.scale_format is FORMATS["float8_e8m0fnu"]
    assert (q.scale == 2.0**-124).all()
    with pytest.raises(FormatError, match="scales are float8_e8m0fnu"):
        QTensor(CODES, "e4m3fn", scale, block=(1, 0, 2), scale_format="e4m3fn")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"block": (1, 1, 2)}, ShapeError, r"\(2, 3, 2\)"),
        ({"block": (1, 1, 1, 1)}, ShapeError, "at most 3"),
        ({"block": 2}, ShapeError, "whole numbers"),
        ({"block": (True,)}, ShapeError, "whole numbers"),
        ({"scale": 3.0, "scale_format": "e8m0fnu"}, ScaleError, "round scales"),
        ({"scale": np.uint8(0), "scale_format": "e4m3fn"}, ScaleError, "positive"),
        ({"scale": np.nan, "scale_format": "e2m1fn"}, ScaleError, "finite"),
        ({"scale_format": "e8m1"}, FormatError, "did you mean"),
    ],
)
def test_block_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QTensor(CODES, "e4m3fn", **arguments)
    with pytest.raises(ScaleError, match="no codes"):
        _ = QTensor(CODES, "e4m3fn").scale_codes


# -- printing ---------------------------------------------------------------------------------------------------------


def test_small_tensors_print_whole() -> None:
    assert repr(QTensor(CODES[0, 0], "e4m3fn", 512.0)) == "QTensor([0., 1., 2., 3.], float8_e4m3fn, shape=(4,), scale=512)"
    assert repr(QTensor(np.uint8(0x38), "e4m3fn")) == "QTensor(1., float8_e4m3fn, shape=(), scale=1)"
    q = QTensor(np.array([[0x38, 0x7F], [0xB8, 0]], np.uint8), "e4m3fn", [[1.0], [0.5]])
    assert repr(q) == ("QTensor([[ 1. ,  nan],\n         [-0.5,  0. ]],\n        float8_e4m3fn, shape=(2, 2), scale=float32[2, 1] 0.5..1)")
    assert repr(QTensor(np.zeros((0, 2), np.uint8), "e5m2")) == "QTensor([], float8_e5m2, shape=(0, 2), scale=1)"
    assert repr(QTensor(CODES[0, 0], "e5m2", np.full(1, 255, np.uint8), block=(4,), scale_format="e8m0fnu")) == (
        "QTensor([nan, nan, nan, nan], float8_e5m2, shape=(4,), scale=float8_e8m0fnu[1], block=(4,))"
    )


@pytest.mark.parametrize("shape", [(1001,), (40, 50), (7, 3, 60), (2, 1000), (501, 1, 3)])
def test_large_tensors_print_their_edges_as_numpy_does(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0x30, 0x40, shape, np.uint8)
    for q in (
        QTensor(codes, "e4m3fn", 2.0),
        QTensor(codes, "e4m3fn", np.exp2(rng.integers(0, 3, (*shape[:-1], -(-shape[-1] // 4)))), block=(4,)),
        QTensor(codes, "e4m3fn", np.exp2(rng.integers(0, 3, (shape[0], *[1] * (len(shape) - 1))))),
    ):
        shown = repr(q).removeprefix("QTensor(").split("], float8")[0].split("],\n        float8")[0] + "]"
        whole = np.array2string(fp8np.dequantize(q), separator=", ", prefix="QTensor(", max_line_width=100, threshold=1000)
        assert shown == whole


def test_a_format_that_contradicts_the_array_is_refused() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(FormatError, match=r"float8_e5m2.*float8_e4m3fn"):
        QTensor(CODES.view(ml_dtypes.float8_e5m2), "e4m3fn")
