"""How else a tensor could be held in 8 bits, and how well: every choice is carried out on its numbers and measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.formats import FloatFormat
from fp8np.inspection.originals import sqnr_of
from fp8np.layers._op import OPS
from fp8np.ptq.codes import quantized_weight
from fp8np.ptq.recipe import RECIPES
from fp8np.ptq.weights import weight_scales
from fp8np.scaling import dequantize, quantize, scale_for
from fp8np.scheme import Granularity, PerChannel, PerTensor, Scheme

__all__ = ["Alternative", "activation_alternatives", "float_op", "sample_rows", "weight_alternatives"]

Array = npt.NDArray[Any]

# Numbers of an activation that are looked at, in whole rows.
_MOST = 1 << 16


@dataclass(frozen=True)
class Alternative:
    """A way to hold a tensor.

    Attributes:
        scheme: its format and scales.
        calibrator: "max": scales of the largest magnitude; "mse": those of the least squared error.
        sqnr: in dB, on the numbers it was tried on.
        scale: of an activation with one scale.
    """

    scheme: Scheme
    calibrator: str
    sqnr: float
    scale: float | None = None

    @property
    def text(self) -> str:
        """In words: "e3m4fn per channel, scaled by mse"."""
        name = self.scheme.format.name.removeprefix("float8_")
        if isinstance(self.scheme.granularity, PerChannel):
            each = "per token" if self.scheme.dynamic else "per channel"
        else:
            each = "with one scale"
        return f"{name} {each}{', scaled by mse' if self.calibrator == 'mse' else ''}"


def formats() -> tuple[FloatFormat, ...]:
    """The 8-bit floats that recipes have for weights and activations, each once."""
    found = (f for recipe in RECIPES.values() for f in (recipe.weights, recipe.activations))
    return tuple(dict.fromkeys(f for f in found if isinstance(f, FloatFormat)))


def weight_alternatives(op: str, role: str, weight: Array) -> tuple[Alternative, ...]:
    """Ways to hold a float32 weight of a node of an op, best first."""
    each: Granularity = OPS[float_op(op)].quantizable.get(role, PerTensor())
    schemes = [Scheme(fmt, granularity) for fmt in formats() for granularity in dict.fromkeys((each, PerTensor()))]
    return _best_first(
        Alternative(scheme, how, sqnr_of(dequantize(quantized_weight(weight, scheme, how)), weight))
        for scheme in schemes
        for how in ("max", "mse")
    )


def activation_alternatives(op: str, rows: Array, amax: float) -> tuple[Alternative, ...]:
    """Ways to hold an activation that a node of an op reads, best first. Convolutions have no scales for tokens.

    Args:
        op: of the node.
        rows: (n, K), some of its numbers.
        amax: the largest magnitude of all of them.
    """
    x = np.where(np.isfinite(rows), rows, 0).astype(np.float32)
    found: list[Alternative] = []
    for fmt in formats():
        scheme = Scheme(fmt)
        for how, scale in (("max", scale_for(amax, fmt)), ("mse", weight_scales(x, scheme, "mse"))):
            found.append(Alternative(scheme, how, sqnr_of(dequantize(quantize(x, fmt, scale=scale)), x), float(scale)))
        if "conv" not in op and x.shape[1] > 1:
            found.append(Alternative(Scheme(fmt, PerChannel(0), dynamic=True), "max", sqnr_of(dequantize(quantize(x, fmt, axis=0)), x)))
    return _best_first(found)


def float_op(op: str) -> str:
    """The op on floats that an op on integers stands for; any other is itself.

    >>> float_op("integer_linear"), float_op("linear")
    ('linear', 'linear')
    """
    name = op.removeprefix("integer_")
    return name if name in OPS else op


def sample_rows(array: Array) -> Array:
    """Rows (n, K) of an activation (..., K): all, or as many as hold about 65,000 numbers, evenly spread.

    >>> sample_rows(np.zeros((2, 3, 4))).shape, sample_rows(np.zeros((1 << 14, 8))).shape, sample_rows(np.float32(1)).shape
    ((6, 4), (8192, 8), (1, 1))
    """
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    return rows[:: -(-rows.size // _MOST)] if rows.size > _MOST else rows


def _best_first(found: Iterable[Alternative]) -> tuple[Alternative, ...]:
    return tuple(sorted(found, key=lambda alternative: -alternative.sqnr))
