"""From an `Accumulator` of kind "aligned" to the kernel: the numbers that it reads."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fp8np.accumulators import ADDENDS, Accumulator
from fp8np.codec import decode_table
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
    """
    rule = _rule(how, a_format, b_format)
    tables = decode_table(a_format), decode_table(b_format)
    kernel = select("gemm_aligned", a_format, b_format, reproducible=True)
    kernel(np.ascontiguousarray(a), tables[0], np.ascontiguousarray(b), tables[1], rule, out)


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
            a_format.min_exponent,
            b_format.min_exponent,
        ],
        np.int64,
    )
    rule.setflags(write=False)
    return rule
