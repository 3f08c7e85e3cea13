"""Products of quantized tensors: `matmul`, `linear`, and convolutions.

All take `QTensor`s of any two formats and give float32. What is summed are products of the codes' values; scales multiply on the
way out. How the sum is rounded is the caller's choice, ``accumulate=``, a name of `fp8np.accumulators.ACCUMULATORS` or an
`Accumulator`:

- ``"fp32"``: in float32, in the order that this CPU's fastest kernel takes. With u = 2**-24, K terms differ from the exact sum by at
  most ``gamma(K) * sum |a| |b|``, gamma(K) = K u / (1 - K u). The bits do not depend on the number of threads; on the CPU and on M
  they may.
- ``"exact"``: the exact sum, rounded once to nearest, ties to even, for any K: the same bits on every machine. A sum
  of zero gives +0.
- ``"sequential"``: what a plain loop does in float32: k ascending, each product rounded, then each sum.
- ``"hopper"`` and others: the sums of matrix units of that name, in steps; ``promote_every=`` restarts them from zero every so
  many products, and adds the parts in float32.

The k of a convolution run over input channels, then rows and columns of the filter; zeros of padding, and those that a transposed
convolution puts between the values of x, are terms like any other.

`matmul` and `linear` take operands with a scale for each block (docs/blocks.md): each segment of K is summed as asked and scaled.

NaN and infinity behave as in any sum of products: NaN where a NaN takes part, where infinity meets zero and where infinities
of both signs meet.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._products import (
    Pads,
    Pair,
    check_ndim,
    check_operands,
    check_scale,
    convolve,
    float32_of,
    matrices,
    packed_product,
    pads_of,
    pair_of,
    product,
    scaled,
    transposed,
    whole_of,
)
from fp8np.accumulators import Accumulator, resolve_accumulate
from fp8np.errors import PolicyError, ShapeError
from fp8np.packed import PackedTensor
from fp8np.tensor import Floats, QTensor

__all__ = ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear", "matmul"]


def matmul(
    a: QTensor | Floats,
    b: QTensor | PackedTensor,
    *,
    accumulate: str | Accumulator = "fp32",
    promote_every: int | None = None,
    init: npt.ArrayLike | None = None,
    quantize: Any = None,
    scale: float | None = None,
) -> Floats:
    """The matrix product ``a @ b``, with the shapes and broadcasting of `numpy.matmul`.

    Args:
        a: (..., M, K) or (K,). Its scale may vary over batch axes and M; over K in blocks (docs/blocks.md), not otherwise.
            With a packed b also float32, or bfloat16 (an ml_dtypes array): multiplied as they are, unless `quantize` is given.
        b: (..., K, N) or (K,). Its scale may vary over batch axes and N; over K in blocks, not otherwise. Or what `fp8np.pack` made
            of a matrix: for many products with the same one.
        accumulate: a name or an `Accumulator`; see the module's docstring.
        promote_every: None for the accumulator's own, or products in a part; see the module's docstring.
        init: float32, broadcastable to the result: what the sum starts from, in units of products of the codes' values,
            that is before the scales.
        quantize: with float32 a and a packed b: the format to which a is rounded on the way, per tensor.
        scale: for `quantize`; by default the one by which the largest magnitude of a becomes the largest value of the format.

    Returns:
        float32 (..., M, N), less the axes that 1-d operands lack: ``(init + sum) * a.scale * b.scale``, rounded to float32
        after each of the two multiplications.

    Raises:
        DTypeError: an operand is not a QTensor, or init is not float32. ShapeError: the shapes do not fit.
        ScaleError: a scale varies along K. PolicyError: accumulate is unknown, or promote_every does not fit it.

    >>> import numpy as np
    >>> a = QTensor(np.array([[0x38, 0x40]], np.uint8), "e4m3fn", scale=0.5)  # 1, 2
    >>> b = QTensor(np.array([[0x3E], [0x3C]], np.uint8), "e5m2")  # 1.5, 1
    >>> matmul(a, b)
    array([[1.75]], dtype=float32)
    """
    how = resolve_accumulate("matmul", accumulate, promote_every)
    if isinstance(b, PackedTensor):
        if how.kind != "fp32" or init is not None:
            raise PolicyError(
                f"matmul: a packed b is multiplied with accumulate='fp32' and without init, got {accumulate!r}; give the QTensor"
            )
        return packed_product("matmul", a, b, quantize, scale)
    if quantize is not None or scale is not None:
        raise PolicyError("matmul: quantize and scale go with a packed b; quantize a with fp8np.quantize, or pack b")
    check_operands("matmul", a=a, b=b)
    assert isinstance(a, QTensor)
    left, right, batch, shape = matrices("matmul", a, b)
    if a.block is not None or b.block is not None:
        return _in_blocks("matmul", left, right, batch, how, init).reshape(shape)
    start = None if init is None else float32_of("matmul", "init", init, shape).reshape(*batch, left.shape[-2], right.shape[-1])
    return scaled(product(left, right, batch, how, start), left.scale, right.scale).reshape(shape)


def linear(
    x: QTensor,
    w: QTensor,
    bias: npt.ArrayLike | None = None,
    *,
    accumulate: str | Accumulator = "fp32",
    promote_every: int | None = None,
    init: npt.ArrayLike | None = None,
) -> Floats:
    """A linear layer: ``x @ w.T + bias``.

    Args:
        x: (..., K). Its scale may vary over all axes but the last, over that in blocks.
        w: (N, K), scaled per tensor, per output (N, 1), or in blocks.
        bias: float32 (N,), added after the scales.
        accumulate: a name or an `Accumulator`; see the module's docstring.
        promote_every: None for the accumulator's own, or products in a part; see the module's docstring.
        init: float32, broadcastable to the result: what the sum starts from, before the scales.

    Returns:
        float32 (..., N): ``(init + sum) * x.scale * w.scale + bias``, rounded to float32 after each operation but the sum.

    Raises:
        As `matmul`.

    >>> import numpy as np
    >>> x = QTensor(np.array([0x38, 0x40], np.uint8), "e4m3fn")  # 1, 2
    >>> w = QTensor(np.full((1, 2), 0x38, np.uint8), "e4m3fn", scale=0.5)
    >>> linear(x, w, np.float32([0.25]), accumulate="hopper")
    array([1.75], dtype=float32)
    """
    name = "linear"
    how = resolve_accumulate(name, accumulate, promote_every)
    check_operands(name, x=x, w=w)
    check_ndim(name, 2, w=w)
    N, K = w.shape
    if x.ndim == 0 or x.shape[-1] != K:
        raise ShapeError(f"{name}: expected x (..., K) and w (N, K), got x {x.shape} and w {w.shape}: the K differ")
    shift = None if bias is None else float32_of(name, "bias", bias, (N,))
    shape = (*x.shape[:-1], N)
    for key, operand, allowed in (("x", x, "an axis other than the last, or block="), ("w", w, "axis=0 (N) or block=")):
        if operand.block is None:
            check_scale(name, key, operand, (-1,), allowed)
    if x.block is not None or w.block is not None:
        left, right, batch, _ = matrices(name, x, w.T)
        return _plus(_in_blocks(name, left, right, batch, how, init).reshape(shape), shift)
    rows = math.prod(shape[:-1])
    start = None if init is None else float32_of(name, "init", init, shape).reshape(rows, N)
    flat = QTensor(x.codes.reshape(rows, K), x.format)
    scale = w.scale[:, 0] if w.scale.ndim else w.scale
    return _plus(scaled(product(flat, w.T, (), how, start).reshape(shape), x.scale, scale), shift)


def _plus(out: Floats, bias: Floats | None) -> Floats:
    """Adds a bias along the last axis, in place."""
    if bias is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            out += bias
    return out


def _in_blocks(name: str, a: QTensor, b: QTensor, batch: tuple[int, ...], how: Accumulator, init: npt.ArrayLike | None) -> Floats:
    """The product of matrices of which at least one is scaled in blocks."""
    from fp8np._blocks import block_matmul

    if init is not None:
        raise PolicyError(f"{name}: init is in units of the codes' products, which block scales do not share; add to the result instead")
    return block_matmul(a, b, batch, how)


def conv2d(
    x: QTensor,
    w: QTensor,
    *,
    bias: npt.ArrayLike | None = None,
    stride: int | Pair = 1,
    padding: int | str | Pair | Pads = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    accumulate: str | Accumulator = "fp32",
    promote_every: int | None = None,
) -> Floats:
    """The 2-d convolution (cross-correlation) of a batch of pictures with filters.

    Args:
        x: (B, C, H, W), scaled per tensor or per sample (B, 1, 1, 1).
        w: (O, C/G, kh, kw), scaled per tensor or per output channel (O, 1, 1, 1).
        bias: float32 (O,), added after the scales.
        stride: one number, or one each for H and W.
        dilation: distance of neighbouring filter values in the picture: one number, or one each for H and W.
        padding: zeros around each picture: one number, one each for H and W, ``((top, bottom), (left, right))``, ``"valid"``
            (none), or ``"same"`` (the result has the picture's size; stride 1 only; an odd zero goes to the bottom and right).
        groups: G; group g of the outputs reads group g of the channels.
        accumulate: a name or an `Accumulator`; see the module's docstring.
        promote_every: None for the accumulator's own, or products in a part; see the module's docstring.

    Returns:
        float32 (B, O, Ho, Wo): ``sum * (x.scale * w.scale) + bias``, each operation rounded to float32.

    Raises:
        DTypeError: an operand is not a QTensor, or bias is not float32. ShapeError: shapes or geometry do not fit.
        ScaleError: a scale varies along an axis that is summed over. FormatError: padding is asked of a format without a
            zero. PolicyError: accumulate is unknown, or promote_every does not fit it.

    >>> import numpy as np
    >>> x = QTensor(np.full((1, 1, 3, 3), 0x38, np.uint8), "e4m3fn")  # ones
    >>> w = QTensor(np.full((1, 1, 3, 3), 0x38, np.uint8), "e4m3fn", scale=0.5)
    >>> conv2d(x, w, padding="same")[0, 0]
    array([[2. , 3. , 2. ],
           [3. , 4.5, 3. ],
           [2. , 3. , 2. ]], dtype=float32)
    """
    name = "conv2d"
    how = resolve_accumulate(name, accumulate, promote_every)
    check_operands(name, x=x, w=w)
    check_ndim(name, 4, x=x, w=w)
    strides = pair_of(name, "stride", stride)
    dilations = pair_of(name, "dilation", dilation)
    pads = pads_of(name, padding, (w.shape[2], w.shape[3]), strides, dilations)
    return convolve(name, x, w, bias, strides, pads, dilations, groups, how)


def conv1d(
    x: QTensor,
    w: QTensor,
    *,
    bias: npt.ArrayLike | None = None,
    stride: int = 1,
    padding: int | str | Pair = 0,
    dilation: int = 1,
    groups: int = 1,
    accumulate: str | Accumulator = "fp32",
    promote_every: int | None = None,
) -> Floats:
    """The 1-d convolution of x (B, C, T) with w (O, C/G, k): float32 (B, O, To).

    As `conv2d`, with one number for each of stride and dilation; padding may be a number, ``(left, right)``, ``"same"`` or
    ``"valid"``.

    >>> import numpy as np
    >>> x = QTensor(np.full((1, 1, 4), 0x38, np.uint8), "e4m3fn")
    >>> w = QTensor(np.full((1, 1, 2), 0x38, np.uint8), "e4m3fn")
    >>> conv1d(x, w, padding=(1, 0))
    array([[[1., 2., 2., 2.]]], dtype=float32)
    """
    name = "conv1d"
    how = resolve_accumulate(name, accumulate, promote_every)
    check_operands(name, x=x, w=w)
    check_ndim(name, 3, x=x, w=w)
    strides = 1, whole_of(name, "stride", stride)
    dilations = 1, whole_of(name, "dilation", dilation)
    pads: Any = padding if isinstance(padding, str) else ((0, 0), pair_of(name, "padding", padding, least=0))
    pads = pads_of(name, pads, (1, w.shape[2]), strides, dilations)
    return convolve(name, x.expand_dims(2), w.expand_dims(2), bias, strides, pads, dilations, groups, how)[:, :, 0]


def conv_transpose2d(
    x: QTensor,
    w: QTensor,
    *,
    bias: npt.ArrayLike | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | Pads = 0,
    output_padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    accumulate: str | Accumulator = "fp32",
    promote_every: int | None = None,
) -> Floats:
    """The 2-d transposed convolution: each value of x adds its multiple of a filter to the result, `stride` apart.

    Args:
        x: (B, C, H, W), scaled per tensor or per sample (B, 1, 1, 1).
        w: (C, O/G, kh, kw), scaled per tensor or along axis 1.
        bias: float32 (O,).
        stride: one number, or one each for H and W.
        dilation: one number, or one each for H and W.
        padding: rows and columns removed from the result: one number, one each for H and W, or ``((top, bottom), (left, right))``.
        output_padding: rows and columns added at the bottom and right; less than stride or dilation.
        groups: G; group g of the channels adds to group g of the outputs.
        accumulate: a name or an `Accumulator`; see the module's docstring.
        promote_every: None for the accumulator's own, or products in a part; see the module's docstring.

    Returns:
        float32 (B, O, Ho, Wo), ``Ho = (H - 1) * stride - top - bottom + dilation * (kh - 1) + output_padding + 1``.

    Raises:
        As `conv2d`; ShapeError also for an output_padding that is not less than stride or dilation.

    >>> import numpy as np
    >>> x = QTensor(np.array([[[[0x38, 0x40]]]], np.uint8), "e4m3fn")  # 1, 2
    >>> w = QTensor(np.full((1, 1, 1, 2), 0x38, np.uint8), "e4m3fn")
    >>> conv_transpose2d(x, w, stride=(1, 2))
    array([[[[1., 1., 2., 2.]]]], dtype=float32)
    """
    name = "conv_transpose2d"
    how = resolve_accumulate(name, accumulate, promote_every)
    check_operands(name, x=x, w=w)
    check_ndim(name, 4, x=x, w=w)
    strides = pair_of(name, "stride", stride)
    dilations = pair_of(name, "dilation", dilation)
    extra = pair_of(name, "output_padding", output_padding, least=0)
    if isinstance(padding, str):
        raise ShapeError(f"{name}: expected numbers for padding, got {padding!r}")
    removed = pads_of(name, padding, (w.shape[2], w.shape[3]), strides, dilations)
    return transposed(name, x, w, bias, strides, removed, extra, dilations, groups, how)


def conv_transpose1d(
    x: QTensor,
    w: QTensor,
    *,
    bias: npt.ArrayLike | None = None,
    stride: int = 1,
    padding: int | Pair = 0,
    output_padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    accumulate: str | Accumulator = "fp32",
    promote_every: int | None = None,
) -> Floats:
    """The 1-d transposed convolution of x (B, C, T) with w (C, O/G, k): float32 (B, O, To). As `conv_transpose2d`.

    >>> import numpy as np
    >>> x = QTensor(np.array([[[0x38, 0x40]]], np.uint8), "e4m3fn")
    >>> w = QTensor(np.full((1, 1, 3), 0x38, np.uint8), "e4m3fn")
    >>> conv_transpose1d(x, w, stride=2)
    array([[[1., 1., 3., 2., 2.]]], dtype=float32)
    """
    name = "conv_transpose1d"
    how = resolve_accumulate(name, accumulate, promote_every)
    check_operands(name, x=x, w=w)
    check_ndim(name, 3, x=x, w=w)
    strides = 1, whole_of(name, "stride", stride)
    dilations = 1, whole_of(name, "dilation", dilation)
    extra = 0, whole_of(name, "output_padding", output_padding, least=0)
    removed = (0, 0), pair_of(name, "padding", padding, least=0)
    return transposed(name, x.expand_dims(2), w.expand_dims(2), bias, strides, removed, extra, dilations, groups, how)[:, :, 0]
