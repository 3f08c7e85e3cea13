"""From an `Accumulator` of kind "aligned" to the kernel: the numbers that it reads."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fp8np.accumulators import ADDENDS, Accumulator
from fp8np.codec import decode_table
from fp8np.errors import FormatError
from fp8np.formats import FloatFormat
from fp8np.kernels._table import select
from fp8np.tensor import Codes, Floats

__all__ = ["aligned_product"]


def aligned_product(a: Codes, a_format: FloatFormat, b: Codes, b_format: FloatFormat, how: Accumulator, out: Floats) -> None:
    """out f32 (Z, M, N), in and out: what the accumulator makes of out and a @ b^T.

    Args:
        a: u8 (Z|1, M, K), any strides.
        a_format: of a's codes.
        b: u8 (Z|1, N, K), any strides.
        b_format: of b's codes.
        how: of kind ``"aligned"``.
        out: C-contiguous; what the sums start from.

    Raises:
        FormatError: the accumulator takes products in an order of its own, K ends within it, and neither format has a zero to
            fill it up.
    """
    if how.order:
        a, b = _ordered(a, a_format, b, b_format, how)
    rule = _rule(how, a_format, b_format)
    tables = decode_table(a_format), decode_table(b_format)
    kernel = select("gemm_aligned", a_format, b_format, reproducible=True)
    kernel(np.ascontiguousarray(a), tables[0], np.ascontiguousarray(b), tables[1], rule, out)


def _ordered(a: Codes, a_format: FloatFormat, b: Codes, b_format: FloatFormat, how: Accumulator) -> tuple[Codes, Codes]:
    """Both operands along K as the accumulator takes them, filled up with products that are zero."""
    K, period = a.shape[-1], len(how.order)
    missing = -K % period
    if missing and not (a_format.has_zero or b_format.has_zero):
        raise FormatError(f"{how} takes products {period} at a time: expected K to be a multiple, since {a_format} has no zero; got {K}")
    order = np.add.outer(np.arange(0, K, period), how.order).reshape(-1)
    # The code of +0 is 0 in every format that has one; any finite value of the other makes a product of zero with it.
    fill = (0, 0), (0, 0), (0, missing)
    return np.pad(a, fill)[..., order], np.pad(b, fill)[..., order]


@lru_cache(maxsize=256)
def _rule(how: Accumulator, a_format: FloatFormat, b_format: FloatFormat) -> npt.NDArray[np.int64]:
    # The order is that of the constants in fp8np.kernels._step.
    rule = np.array(
        [
            how.group,
            how.interleave,
            -1 if how.fraction_bits is None else how.fraction_bits,
            how.alignment == "floor",
            ADDENDS.index(how.addend),
            how.sum_fraction_bits,
            how.output_fraction_bits,
            how.output_rounding == "nearest_even",
            how.nan_code,
            how.promote_every or 0,
            *(f.min_exponent if how.operand_exponent is None else how.operand_exponent for f in (a_format, b_format)),
        ],
        np.int64,
    )
    rule.setflags(write=False)
    return rule
