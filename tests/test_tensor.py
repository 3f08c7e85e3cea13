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
    assert repr(q) == "QTensor(float8_e4m3fn, shape=(2, 3, 4), scale=float32[1, 3, 1])"
    assert repr(QTensor(CODES, "e5m2", 0.5)) == "QTensor(float8_e5m2, shape=(2, 3, 4), scale=0.5)"
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


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "float8_e3m4fn"])
def test_ml_dtypes_arrays_both_ways_without_a_copy(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name))
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
    ],
)
def test_refusals(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QTensor(*arguments)


def test_a_format_that_contradicts_the_array_is_refused() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(FormatError, match=r"float8_e5m2.*float8_e4m3fn"):
        QTensor(CODES.view(ml_dtypes.float8_e5m2), "e4m3fn")
