"""Products of FP8 codes through the gemm kernel: what linear, matmul and the recurrent layers share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.codec import decode_table
from fp8np.formats import FloatFormat
from fp8np.tensor import Codes, Floats, QTensor

__all__ = ["NO_BIAS", "Right", "multiply", "right_operand", "weight_rows"]

NO_BIAS = np.empty(0, np.float32)


@dataclass(frozen=True)
class Right:
    """A right operand as the gemm kernel takes it.

    Attributes:
        codes: uint8 (..., N, K), C-contiguous: transposed.
        scale: float32 (1,) or (N,).
        format: of the codes.
    """

    codes: Codes
    scale: Floats
    format: FloatFormat


def right_operand(b: QTensor) -> Right:
    """b (..., K, N) with one scale, or one for each of N."""
    return Right(np.ascontiguousarray(b.codes.swapaxes(-1, -2)), b.scale.reshape(-1), b.format)


def weight_rows(weight: QTensor) -> Right:
    """A weight (N, K) with one scale, or one for each of N, as the right operand of x @ weight^T."""
    return Right(np.ascontiguousarray(weight.codes), np.ascontiguousarray(weight.scale.reshape(-1)), weight.format)


def multiply(kernel: Callable[..., None], a: QTensor, b: Right, bias: npt.NDArray[Any] = NO_BIAS) -> Any:
    """a (..., M, K), or (K,) where b is one matrix, with one scale, @ b + bias (N,) or (0,) -> float32 (..., M, N).

    `kernel` is a gemm for the formats of a and b.
    """
    n, k = b.codes.shape[-2:]
    if math.prod(b.codes.shape[:-2]) == 1:
        # One right operand for all: the leading axes of a are more rows.
        shape = (*np.broadcast_shapes(a.shape[:-2], b.codes.shape[:-2]), *a.shape[:-1][-1:], n)
        rows, columns = np.ascontiguousarray(a.codes).reshape(1, -1, k), b.codes.reshape(1, n, k)
    else:
        leading = np.broadcast_shapes(a.shape[:-2], b.codes.shape[:-2])
        shape = (*leading, a.shape[-2], n)
        rows, columns = _stacked(a.codes, leading), _stacked(b.codes, leading)
    out = np.zeros((max(len(rows), len(columns)), rows.shape[1], n), np.float32)
    kernel(rows, decode_table(a.format), columns, decode_table(b.format), a.scale.reshape(1), b.scale, bias, out)
    return out.reshape(shape)


def _stacked(codes: Codes, leading: tuple[int, ...]) -> Codes:
    """(..., M, K) -> (Z, M, K), C-contiguous; (1, M, K) where all share one."""
    matrix = codes.shape[-2:]
    if math.prod(codes.shape[:-2]) != 1:
        codes = np.broadcast_to(codes, (*leading, *matrix))
    return np.ascontiguousarray(codes).reshape(-1, *matrix)
