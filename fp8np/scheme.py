"""How a tensor is quantized: which format, how many scales, and when they are found.

Shapes of the scale, for a weight of shape (O, I, 3, 3) and an activation of shape (B, T, K):

| granularity | scale of the weight | scale of the activation |
|---|---|---|
| `PerTensor()` | () | () |
| `PerChannel(0)` | (O, 1, 1, 1) | |
"""

from __future__ import annotations

from dataclasses import dataclass

from fp8np.formats import FloatFormat

__all__ = ["Granularity", "PerChannel", "PerTensor", "Scheme"]


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: shape (), whatever the tensor's shape."""

    def __str__(self) -> str:
        return "tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index of `axis`: a tensor of shape (O, I) with ``PerChannel(0)`` has a scale of shape (O, 1)."""

    axis: int = 0

    def __str__(self) -> str:
        return f"channel {self.axis}"


Granularity = PerTensor | PerChannel


@dataclass(frozen=True)
class Scheme:
    """How one tensor is quantized.

    Attributes:
        format: the format of its codes.
        granularity: which elements share a scale.
        dynamic: whether the scale is found anew at each run (activations only); otherwise it is fixed at conversion.
        direct: whether the scale is simply 1 (a cast: the paper's E5M2, section 3.1).
    """

    format: FloatFormat
    granularity: Granularity = PerTensor()
    dynamic: bool = False
    direct: bool = False
