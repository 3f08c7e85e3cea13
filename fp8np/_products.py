"""From checked operands of a product or a convolution to the kernels: what `fp8np.linalg` and nobody else uses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._aligned import aligned_product
from fp8np._engine import engine_convolution, engine_floats, engine_matmul, engine_product
from fp8np._exact import exact_product
from fp8np.accumulators import Accumulator
from fp8np.codec import decode_table
from fp8np.errors import DTypeError, FormatError, ScaleError, ShapeError
from fp8np.formats import FloatFormat, get_format
from fp8np.kernels._grid import takes
from fp8np.kernels._table import select
from fp8np.packed import PackedTensor
from fp8np.tensor import Codes, Floats, QTensor

__all__ = [
    "Pads",
    "Pair",
    "check_ndim",
    "check_operands",
    "check_scale",
    "convolve",
    "float32_of",
    "matrices",
    "one_nan",
    "packed_product",
    "pads_of",
    "pair_of",
    "product",
    "scaled",
    "transposed",
    "whole_of",
]

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
"""((top, bottom), (left, right))."""

_ONE = np.ones(1, np.float32)
_NO_BIAS = np.empty(0, np.float32)


def check_operands(name: str, **operands: Any) -> None:
    """Refuses operands that are not quantized."""
    for key, operand in operands.items():
        if not isinstance(operand, QTensor):
            raise DTypeError(f"{name}: expected a QTensor for {key}, got {type(operand).__name__}; make one with quantize()")


def check_ndim(name: str, ndim: int, **operands: QTensor) -> None:
    """Refuses operands with another number of axes."""
    for key, operand in operands.items():
        if operand.ndim != ndim:
            raise ShapeError(f"{name}: expected {ndim} axes for {key}, got shape {operand.shape}")


def check_scale(name: str, key: str, operand: QTensor, axes: tuple[int, ...], allowed: str) -> None:
    """Refuses a scale in blocks, or one that varies along axes over which products are summed."""
    if operand.block is not None:
        raise ScaleError(f"{name}: {key} is scaled in blocks, as matmul and linear take it; quantize it per tensor or with {allowed}")
    scale = operand.scale
    if scale.ndim and any(scale.shape[axis] != 1 for axis in axes):
        raise ScaleError(
            f"{name}: the scale of {key}, of shape {scale.shape}, varies along an axis that is summed over; "
            f"quantize {key} per tensor or with {allowed}"
        )


def matrices(name: str, a: QTensor, b: QTensor) -> tuple[QTensor, QTensor, tuple[int, ...], tuple[int, ...]]:
    """The operands of `matmul` as a (..., M, K) and b (..., K, N), their common batch axes, and the shape of the result."""
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"{name}: expected at least one axis, got a {a.shape} and b {b.shape}; multiply scalars as numbers")
    left = a.expand_dims(0) if a.ndim == 1 else a
    right = b.expand_dims(1) if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ShapeError(f"{name}: expected a (..., M, K) and b (..., K, N), got a {a.shape} and b {b.shape}: the K differ")
    try:
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        raise ShapeError(f"{name}: the batch axes of a {a.shape} and b {b.shape} do not broadcast") from None
    for key, operand, axis, allowed in (("a", left, -1, "axis=-2 (M) or block="), ("b", right, -2, "axis=-1 (N) or block=")):
        if operand.block is None:
            check_scale(name, key, operand, (axis,), allowed)
    return left, right, batch, (*batch, *(left.shape[-2:-1] if a.ndim > 1 else ()), *(right.shape[-1:] if b.ndim > 1 else ()))


def float32_of(name: str, key: str, array: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    """An optional float32 argument, broadcast to `shape`."""
    try:
        values = np.asarray(array)
    except ValueError:
        raise DTypeError(f"{name}: expected an array of float32 for {key}, got a ragged list") from None
    if values.dtype != np.float32:
        raise DTypeError(f"{name}: expected float32 for {key}, got {values.dtype}; convert it with np.float32 or .astype")
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        raise ShapeError(f"{name}: expected {key} to broadcast to {shape}, got shape {values.shape}") from None


def scaled(out: Floats, *scales: Floats) -> Floats:
    """Multiplies `out`, in place, by one scale after the other."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for scale in scales:
            out *= scale
    return out


def one_nan(out: Floats, how: Accumulator) -> Floats:
    """Makes every NaN of `out`, in place, the accumulator's: CPUs differ in the sign of those that they make."""
    nan = np.isnan(out)
    if nan.any():
        out[nan] = np.uint32(how.nan_code).view(np.float32)
    return out


def product(a: QTensor, b: QTensor, batch: tuple[int, ...], how: Accumulator, init: Floats | None) -> Floats:
    """f32 (*batch, M, N): init + the sum of products, before the scales.

    a (..., M, K) and b (..., K, N) with batch axes that broadcast to `batch`; init f32 (*batch, M, N).
    """
    Z = math.prod(batch)
    left = _batched(a.codes, batch)
    right = _batched(b.codes.swapaxes(-1, -2), batch)
    (M, K), N = left.shape[1:], right.shape[1]
    shape = (Z, M, N)
    if len(right) == 1:
        # All of the batch meets the same columns: one product with many rows.
        left = left.reshape(1, Z * M, K)
        shape = (1, Z * M, N)
    start = None if init is None else init.reshape(shape)
    return _sums(left, a.format, right, b.format, how, start).reshape(*batch, M, N)


def _sums(a: Codes, a_format: FloatFormat, b: Codes, b_format: FloatFormat, how: Accumulator, init: Floats | None) -> Floats:
    """f32 (Z, M, N): init and a (Z|1, M, K) @ b (Z|1, N, K)^T, summed as `how` says."""
    if how.kind == "exact":
        return one_nan(exact_product(a, a_format, b, b_format, init), how)
    Z = max(len(a), len(b)) if len(a) and len(b) else 0
    out = np.zeros((Z, a.shape[1], b.shape[1]), np.float32) if init is None else np.array(init, order="C")
    if how.kind == "aligned":
        aligned_product(a, a_format, b, b_format, how, out)
        return out if a.shape[-1] else one_nan(out, how)  # without a step, what it started from
    if how.kind == "fp32" and init is None and takes(a_format, b_format):
        # The engine's sums start from zero.
        return engine_product(a, a_format, b, b_format)
    gemm = select("gemm" if how.kind == "fp32" else "gemm_sequential", a_format, b_format)
    tables = decode_table(a_format), decode_table(b_format)
    gemm(np.ascontiguousarray(a), tables[0], np.ascontiguousarray(b), tables[1], _ONE, _ONE, _NO_BIAS, out)
    return one_nan(out, how)


def packed_product(name: str, a: Any, b: PackedTensor, quantize: Any, scale: float | None) -> Floats:
    """The product with a packed matrix: a (..., K), float32 or bfloat16 or quantized per tensor or per row."""
    if isinstance(a, QTensor):
        if quantize is not None or scale is not None:
            raise DTypeError(f"{name}: quantize and scale are for floats; a is {a.format} already")
        _check_inner(name, a.shape, b)
        check_scale(name, "a", a, (-1,), "axis=-2 (M)")
        if not takes(a.format):
            raise FormatError(f"{name}: {a.format} is not multiplied by packed kernels; give the QTensor of b")
        rows = a.codes.reshape(-1, b.shape[0])
        per_row = a.scale.reshape(()) if a.scale.size == 1 else np.broadcast_to(a.scale, (*a.shape[:-1], 1)).reshape(-1, 1)
        return engine_matmul(QTensor(rows, a.format, per_row), b).reshape(*a.shape[:-1], b.shape[1])
    x = np.asarray(a)
    if x.dtype.name == "bfloat16":
        x = x.astype(np.float32)
    if x.dtype != np.float32:
        raise DTypeError(f"{name}: expected a QTensor, float32 or bfloat16 for a, got {x.dtype}")
    _check_inner(name, x.shape, b)
    fmt = None if quantize is None else get_format(quantize)
    if fmt is not None and not takes(fmt):
        raise FormatError(f"{name}: expected quantize to be a signed format of 8 bits with a negative zero, got {fmt}")
    if scale is not None and (fmt is None or not 0 < scale < math.inf):
        raise ScaleError(f"{name}: expected a finite and positive scale together with quantize, got {scale!r}")
    given = None if scale is None else np.array([scale], np.float32)
    return engine_floats(x.reshape(-1, b.shape[0]), b, fmt, given).reshape(*x.shape[:-1], b.shape[1])


def _check_inner(name: str, shape: tuple[int, ...], b: PackedTensor) -> None:
    if not shape or shape[-1] != b.shape[0]:
        raise ShapeError(f"{name}: expected a (..., K) with K = {b.shape[0]} as packed, got shape {shape}")


def _batched(codes: Codes, batch: tuple[int, ...]) -> Codes:
    """u8 (Z, ...) over all of the batch, or (1, ...) where the batch shares the codes."""
    last = codes.shape[-2:]
    if math.prod(codes.shape[:-2]) == 1:
        return codes.reshape(1, *last)
    return np.broadcast_to(codes, (*batch, *last)).reshape(math.prod(batch), *last)


def whole_of(name: str, key: str, value: Any, least: int = 1) -> int:
    """A whole number."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ShapeError(f"{name}: expected {key} to be a whole number >= {least}, got {value!r}")
    return int(value)


def pair_of(name: str, key: str, value: Any, least: int = 1) -> Pair:
    """One whole number for both axes, or one each."""
    values = value if isinstance(value, Iterable) else (value, value)
    values = tuple(values)
    if len(values) != 2 or not all(isinstance(v, int | np.integer) and v >= least for v in values):
        raise ShapeError(f"{name}: expected {key} to be a whole number >= {least} or a pair of them, got {value!r}")
    return int(values[0]), int(values[1])


def pads_of(name: str, padding: Any, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    """Zeros before and after each axis, from any of the ways to say so."""
    if isinstance(padding, str) and padding == "valid":
        return (0, 0), (0, 0)
    if isinstance(padding, str) and padding == "same":
        if stride != (1, 1):
            raise ShapeError(f"{name}: padding='same' needs stride 1, got {stride}")
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    if isinstance(padding, str):
        raise ShapeError(f"{name}: unknown padding {padding!r}; expected numbers, 'same' or 'valid'")
    sides = tuple(padding) if isinstance(padding, Iterable) else (padding, padding)
    if all(isinstance(side, Iterable) for side in sides):
        if len(sides) != 2:
            raise ShapeError(f"{name}: expected padding as ((top, bottom), (left, right)), got {padding!r}")
        return pair_of(name, "padding", sides[0], least=0), pair_of(name, "padding", sides[1], least=0)
    vertical, horizontal = pair_of(name, "padding", padding, least=0)
    return (vertical, vertical), (horizontal, horizontal)


def _check_zero(name: str, x: QTensor, why: str) -> None:
    if not x.format.has_zero:
        raise FormatError(f"{name}: {why}, but {x.format} has no zero")


def convolve(
    name: str, x: QTensor, w: QTensor, bias: Any, stride: Pair, pads: Pads, dilation: Pair, groups: int, how: Accumulator
) -> Floats:
    """f32 (B, O, Ho, Wo), scales and bias applied. Negative padding crops. x (B, C, H, W), w (O, C/G, kh, kw)."""
    (B, C, H, W), (O, per_group, kh, kw) = x.shape, w.shape  # noqa: E741 - the alphabet
    groups = whole_of(name, "groups", groups)
    if per_group * groups != C or O % groups or not kh or not kw:
        raise ShapeError(
            f"{name}: expected x (B, C, H, W) and w (O, C/G, kh, kw), G = {groups} dividing O, and a kernel that is not empty; "
            f"got x {x.shape} and w {w.shape}"
        )
    check_scale(name, "x", x, (1, 2, 3), "axis=0 (samples)")
    check_scale(name, "w", w, (1, 2, 3), "axis=0 (output channels)")
    if any(p > 0 for pair in pads for p in pair):
        _check_zero(name, x, f"padding {pads} adds zeros to x")
    reach = dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1
    inside = H + sum(pads[0]), W + sum(pads[1])
    if inside[0] < reach[0] or inside[1] < reach[1]:
        raise ShapeError(f"{name}: a kernel that reaches over {reach} does not fit x, which is {inside} with its padding")
    size = (inside[0] - reach[0]) // stride[0] + 1, (inside[1] - reach[1]) // stride[1] + 1
    shift = None if bias is None else float32_of(name, "bias", bias, (O,))
    out: Floats
    if how.kind != "fp32":
        out = _gathered_convolution(x, w, stride, pads, dilation, groups, size, how)
    elif (
        takes(x.format, w.format)
        and min(map(min, pads)) >= 0
        and (
            sums := engine_convolution(
                x.codes, x.format, w, (pads[0][0], pads[1][0], pads[0][1], pads[1][1]), stride, dilation, groups, size
            )
        )
        is not None
    ):
        out = sums
    else:
        out = np.empty((B, O, *size), np.float32)
        geometry = np.array([*stride, pads[0][0], pads[1][0], *dilation, groups], np.int64)
        select("conv2d", x.format, w.format)(
            np.ascontiguousarray(x.codes),
            decode_table(x.format),
            np.ascontiguousarray(w.codes),
            decode_table(w.format),
            geometry,
            np.ones(O, np.float32),
            _NO_BIAS,
            out,
        )
        one_nan(out, how)
    with np.errstate(over="ignore", under="ignore"):
        scale = x.scale.reshape(-1, 1, 1, 1) * w.scale.reshape(1, -1, 1, 1)
    scaled(out, scale)
    if shift is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            out += shift[:, None, None]
    return out


def transposed(
    name: str,
    x: QTensor,
    w: QTensor,
    bias: Any,
    stride: Pair,
    removed: Pads,
    extra: Pair,
    dilation: Pair,
    groups: int,
    how: Accumulator,
) -> Floats:
    """f32 (B, O, Ho, Wo), scales and bias applied. x (B, C, H, W), w (C, O/G, kh, kw).

    The same as a convolution of x, with zeros between its values, by the filters turned round, their channels exchanged.
    """
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise ShapeError(f"{name}: expected output_padding less than stride {stride} or dilation {dilation}, got {extra}")
    groups = whole_of(name, "groups", groups)
    C, per_group, kh, kw = w.shape
    if x.shape[1] != C or C % groups:
        raise ShapeError(
            f"{name}: expected x (B, C, H, W) and w (C, O/G, kh, kw), G = {groups} dividing C; got x {x.shape} and w {w.shape}"
        )
    check_scale(name, "x", x, (1, 2, 3), "axis=0 (samples)")
    check_scale(name, "w", w, (0, 2, 3), "axis=1 (output channels)")
    codes = w.codes.reshape(groups, C // groups, per_group, kh, kw).swapaxes(1, 2)[..., ::-1, ::-1]
    scale = w.scale if w.scale.size == 1 else np.tile(w.scale.reshape(-1), groups).reshape(-1, 1, 1, 1)
    filters = QTensor(codes.reshape(groups * per_group, C // groups, kh, kw), w.format, scale)
    full = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    (top, bottom), (left, right) = removed
    pads = (full[0] - top, full[0] - bottom + extra[0]), (full[1] - left, full[1] - right + extra[1])
    x = _spread(name, x, stride)
    if x.shape[2] + sum(pads[0]) <= full[0] or x.shape[3] + sum(pads[1]) <= full[1]:
        raise ShapeError(f"{name}: padding {removed} removes all of the result")
    return convolve(name, x, filters, bias, (1, 1), pads, dilation, groups, how)


def _spread(name: str, x: QTensor, stride: Pair) -> QTensor:
    """x (B, C, H, W) with ``stride - 1`` zeros between neighbours."""
    if stride == (1, 1):
        return x
    _check_zero(name, x, f"stride {stride} puts zeros between the values of x")
    B, C, H, W = x.shape
    # The code of +0 is 0 in every format that has one.
    codes = np.zeros((B, C, max(0, (H - 1) * stride[0] + 1), max(0, (W - 1) * stride[1] + 1)), np.uint8)
    codes[:, :, :: stride[0], :: stride[1]] = x.codes
    return QTensor(codes, x.format, x.scale)


def _gathered_convolution(
    x: QTensor, w: QTensor, stride: Pair, pads: Pads, dilation: Pair, groups: int, size: Pair, how: Accumulator
) -> Floats:
    """f32 (B, O, Ho, Wo) through a matrix of the codes that each output pixel reads: K bytes a pixel."""
    B, C = x.shape[:2]
    O, per_group, kh, kw = w.shape  # noqa: E741 - the alphabet
    (top, bottom), (left, right) = pads
    H, W = x.shape[2:]
    codes = x.codes[:, :, max(0, -top) : H - max(0, -bottom), max(0, -left) : W - max(0, -right)]
    codes = np.pad(codes, ((0, 0), (0, 0), (max(0, top), max(0, bottom)), (max(0, left), max(0, right))))
    strides = codes.strides
    taps = dilation[0] * strides[2], dilation[1] * strides[3]
    steps = stride[0] * strides[2], stride[1] * strides[3]
    windows = np.lib.stride_tricks.as_strided(codes, (B, C, kh, kw, *size), (*strides[:2], *taps, *steps), writeable=False)
    out = np.empty((B, O, math.prod(size)), np.float32)
    for g in range(groups):
        rows = slice(g * (O // groups), (g + 1) * (O // groups))
        filters = w.codes[rows].reshape(1, O // groups, per_group * kh * kw)
        pixels = windows[:, g * per_group : (g + 1) * per_group].reshape(B, per_group * kh * kw, math.prod(size))
        out[:, rows] = _sums(filters, w.format, pixels.swapaxes(1, 2), x.format, how, None)
    return out.reshape(B, O, *size)
