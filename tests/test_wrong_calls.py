"""Calls that users get wrong: which error each raises, and that its message says what was expected and what was got."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fp8np
from fp8np import QTensor, conv1d, conv2d, conv_transpose1d, conv_transpose2d, decode, dequantize, encode, quantize
from fp8np.errors import DTypeError, FormatError, PolicyError, ScaleError, ShapeError

X = np.ones((4, 6), np.float32)
Q = quantize(X, "e4m3fn")
PICTURE, FILTERS = quantize(np.ones((1, 4, 6, 6)), "e4m3fn"), quantize(np.ones((4, 4, 3, 3)), "e4m3fn")
SIGNAL, TAPS = quantize(np.ones((1, 2, 5)), "e4m3fn"), quantize(np.ones((2, 2, 3)), "e4m3fn")


def refused(error: type[Exception], message: str, function: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=message):
        function(*arguments, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ("abc", "encode: expected real numbers, got an array of <U3"),
        (1j, "complex128"),
        (None, r"Python objects \(NoneType\)"),
        ([10**30], r"Python objects \(list\): integers of more than 64 bits"),
        (Q, r"Python objects \(QTensor\)"),
        ([[1, 2], [3]], "cannot make an array of x: .*inhomogeneous"),
    ],
)
def test_sources(x: Any, message: str) -> None:
    refused(DTypeError, message, encode, x, "e4m3fn")
    refused(DTypeError, message.replace("encode", "quantize"), quantize, x, "e4m3fn")


def test_torch_tensors_that_numpy_cannot_take() -> None:
    torch = pytest.importorskip("torch")
    refused(DTypeError, "requires grad", encode, torch.ones(3, requires_grad=True), "e4m3fn")
    halves = torch.tensor([1.0, -3.0], dtype=torch.bfloat16)
    refused(DTypeError, r"x\.view\(torch\.uint16\), \.\.\., source='bfloat16'", encode, halves, "e4m3fn")
    np.testing.assert_array_equal(encode(halves.view(torch.uint16), "e4m3fn", source="bfloat16"), [0x38, 0xC4])


def test_formats() -> None:
    refused(FormatError, "did you mean float8_e4m3fn", encode, X, "e4m3fnn")
    refused(FormatError, "unknown format 'None'; known: float8_e5m2", encode, X, None)
    refused(FormatError, "unknown format 'float32'", encode, X, np.float32)
    refused(FormatError, "bias must be in 0..127, got 1234", encode, X, "e4m3@1234")
    refused(TypeError, "integer", fp8np.get_format("e4m3").with_bias, 3.5)


def test_policies() -> None:
    refused(PolicyError, r"unknown overflow \['saturate'\]; did you mean", encode, X, "e4m3fn", overflow=["saturate"])
    refused(PolicyError, "unknown overflow True; expected one of 'saturate'", encode, X, "e4m3fn", overflow=True)
    refused(PolicyError, "did you mean 'nearest_even'", encode, X, "e4m3fn", rounding="nearest")
    refused(PolicyError, "did you mean 'torch'", encode, X, "e4m3fn", preset="pytorch")
    refused(PolicyError, "unknown preset {}", encode, X, "e4m3fn", preset={})
    refused(PolicyError, "does not define float8_e4m3@11", encode, X, "e4m3@11", preset="ml_dtypes")


@pytest.mark.parametrize("dtype", ["bfloat17", np.int32, None, list, ">f4"])
def test_types_of_values(dtype: Any) -> None:
    for function, argument in ((decode, (Q.codes, "e4m3fn")), (dequantize, (Q,))):
        refused(
            DTypeError,
            f"{function.__name__}: expected dtype to be float32, .* or ml_dtypes.bfloat16, got",
            function,
            *argument,
            dtype=dtype,
        )


def test_quantized_and_bare_codes_are_told_apart() -> None:
    refused(DTypeError, r"use dequantize\(\)", decode, Q, "e4m3fn")
    refused(DTypeError, r"expected a QTensor, got ndarray; use decode\(\)", dequantize, Q.codes)
    refused(DTypeError, "got float32", decode, X, "e4m3fn")


@pytest.mark.parametrize("axis", [2, -3, 1.0, (0, 1), "0"])
def test_axes(axis: Any) -> None:
    refused(ShapeError, r"one axis of x of shape \(4, 6\), got", quantize, X, "e4m3fn", axis=axis)


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf, 1e60, 1e-60, "2.0", 1j, [1, None], None, Q, [[1], [2, 3]], np.datetime64("2020")])
def test_scales(scale: Any) -> None:
    refused(ScaleError, r"QTensor: expected a scale of finite, positive numbers \(as float32\), got", QTensor, Q.codes, "e4m3fn", scale)
    if scale is not None:
        refused(ScaleError, "quantize: expected a scale of finite", quantize, X, "e4m3fn", scale=scale)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 0), (1, -1), (0, 1, 2), ((1, 0),)])
def test_transposing(axes: Any) -> None:
    refused(ShapeError, r"the axes of shape \(4, 6\), each once, got", Q.transpose, *axes)


@pytest.mark.parametrize("value", [0, 1.5, None, "2", (1, 2, 3), (1,), (1, None)])
def test_strides_and_dilations(value: Any) -> None:
    for key in ("stride", "dilation"):
        for function in (conv2d, conv_transpose2d):
            message = f"{function.__name__}: expected {key} to be a whole number >= 1 or a pair of them, got"
            refused(ShapeError, message, function, PICTURE, FILTERS, **{key: value})
        for function in (conv1d, conv_transpose1d):
            refused(
                ShapeError, f"{function.__name__}: expected {key} to be a whole number >= 1, got", function, SIGNAL, TAPS, **{key: value}
            )


@pytest.mark.parametrize("padding", [-1, None, 1.5, (1, 2, 3), ((1, 1), 1.5), ((1, 1), (1,)), ((1, 1), (1, -1)), ((1,), (2,), (3,))])
def test_padding(padding: Any) -> None:
    for function in (conv2d, conv_transpose2d):
        refused(ShapeError, f"{function.__name__}: expected padding", function, PICTURE, FILTERS, padding=padding)
    for function in (conv1d, conv_transpose1d):
        refused(ShapeError, f"{function.__name__}: expected padding", function, SIGNAL, TAPS, padding=padding)


@pytest.mark.parametrize("groups", [0, -1, 1.0, "1", None])
def test_groups(groups: Any) -> None:
    for function, x, w in ((conv2d, PICTURE, FILTERS), (conv_transpose2d, PICTURE, FILTERS), (conv1d, SIGNAL, TAPS)):
        refused(ShapeError, f"{function.__name__}: expected groups to be a whole number >= 1, got", function, x, w, groups=groups)


def test_nothing_left() -> None:
    refused(ShapeError, "conv1d: a kernel that reaches over", conv1d, SIGNAL, TAPS, dilation=4)
    refused(ShapeError, "removes all of the result", conv_transpose2d, PICTURE, FILTERS, padding=4)
    refused(ShapeError, "conv_transpose1d: .* removes all of the result", conv_transpose1d, SIGNAL, TAPS, padding=9)


def test_threads() -> None:
    before = fp8np.get_num_threads()
    for n in (0, -1, 2.0, True, "2", None):
        refused(PolicyError, "expected a positive integer", fp8np.set_num_threads, n)
    fp8np.set_num_threads(np.int64(before))  # type: ignore[arg-type]
    assert type(fp8np.get_num_threads()) is int


def test_names_of_mx() -> None:
    assert quantize(X, "MXFP4").format == quantize(X, "mxfp4").format
    refused(FormatError, "unknown MX format 'mxfp8'; known: mxfp8_e5m2, mxfp8_e4m3", quantize, X, "mxfp8")


def test_arrays_where_numbers_are_expected() -> None:
    expected = conv2d(PICTURE, FILTERS, padding=(1, 1))
    np.testing.assert_array_equal(conv2d(PICTURE, FILTERS, padding=np.array([1, 1])), expected)
    refused(ShapeError, "padding to be a whole number", conv2d, PICTURE, FILTERS, padding=np.array([1, 1, 1]))
    refused(DTypeError, "matmul: expected an array of float32 for init, got a ragged list", fp8np.matmul, Q, Q.T, init=[[1.0], [1.0, 2.0]])


def test_blocks_where_they_are_not_taken() -> None:
    blocks = quantize(np.ones((1, 4, 6, 6)), "e4m3fn", block=(0, 1, 0, 0))
    refused(ScaleError, "conv_transpose2d: x is scaled in blocks", conv_transpose2d, blocks, FILTERS, stride=2)


def test_errors_name_the_function_that_was_called() -> None:
    blocks, columns = quantize(X, "e4m3fn", block=(1, 2)), quantize(X, "e4m3fn", axis=1)
    refused(ScaleError, r"linear: the scale of w, of shape \(1, 6\), varies", fp8np.linear, blocks, columns)
    refused(ScaleError, r"matmul: the scale of b, of shape \(6, 1\), varies.*axis=-1 \(N\) or block=", fp8np.matmul, blocks, columns.T)
    refused(ShapeError, r"error_bound: .*the K differ", fp8np.error_bound, Q, Q)


def test_tensors_are_saved_by_name(tmp_path: Any) -> None:
    refused(DTypeError, "expected a dict of tensors by name, got list", fp8np.save_tensors, tmp_path / "a.safetensors", [Q])
