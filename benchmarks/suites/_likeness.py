"""How like two outputs of a network are."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np_benchmarks.case import Check, CheckError, is_ours
from fp8np_benchmarks.peers import as_array

__all__ = ["likeness"]

LEAST_OURS = 20.0
"""dB. Our kernels and the interpreter add in another order; now and then a sum so falls on the other side of a rounding to FP8,
and the layers that follow carry it on. That stays well below the error of quantization; a wrong kernel does not."""

LEAST_PEER = {"f32": 60.0, "bf16": 20.0, "int8": 5.0}
"""dB, by the type in which a peer computes: networks with random weights forgive less than trained ones."""


def likeness(ours: Any, theirs: Any, least_ours: float = LEAST_OURS) -> Check:
    """Checks ours against the interpreted quantized graph, peers against the network in float32.

    Args:
        ours: what the definitions of the ops make of the quantized graph.
        theirs: the output in float32.
        least_ours: dB that the signal has to be above the difference.
    """

    def check(entry: str, result: Any) -> str:
        expected = ours if is_ours(entry) else theirs
        least = least_ours if is_ours(entry) else next(limit for kind, limit in LEAST_PEER.items() if kind in entry)
        got = as_array(result)
        if got.shape != expected.shape:
            raise CheckError(f"the shape is {got.shape}, expected {expected.shape}")
        error = float(((got.astype(np.float64) - expected) ** 2).sum())
        signal = 10 * np.log10(float((expected.astype(np.float64) ** 2).sum()) / error) if error else np.inf
        whom = "the interpreted graph" if is_ours(entry) else "the network in float32"
        if not signal >= least:
            raise CheckError(f"{signal:.1f} dB above the difference from {whom}, expected at least {least:.0f}")
        return f"{signal:.0f} dB above the difference from {whom}"

    return check
