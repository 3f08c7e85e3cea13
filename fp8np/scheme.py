"""How a tensor is quantized: which format, how many scales, and when they are found.

Shapes of the scale, for a weight of shape (O, I, 3, 3) and an activation of shape (B, T, K):

| granularity | scale of the weight | scale of the activation |
|---|---|---|
| `PerTensor()` | () | () |
| `PerChannel(0)` | (O, 1, 1, 1) | |
| `PerToken()` | | (B, T, 1) |
| `PerBlock((128, 128))` of a matrix (N, K) | (ceil(N/128), ceil(K/128)) | |
| `PerBlock((1, 128))`, `PerBlock((1, 32))` | | (B, T, ceil(K/128)), (B, T, ceil(K/32)) |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fp8np.formats import FORMATS, FloatFormat, Specials
from fp8np.integers import IntegerFormat

__all__ = ["MX", "Granularity", "PerBlock", "PerChannel", "PerTensor", "PerToken", "Scheme"]


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


@dataclass(frozen=True)
class PerToken:
    """One scale for each index of all axes but the last: an activation (B, T, K) has a scale of shape (B, T, 1).

    A token's scale depends on that token alone, so it is found anew at each run.
    """

    def __str__(self) -> str:
        return "token"


@dataclass(frozen=True)
class PerBlock:
    """One scale for each block of a `QTensor`.

    A weight (N, K) of a linear layer in groups of g along K is ``PerBlock((1, g))``; a matrix (K, N) ``PerBlock((g, 1))``; the filters
    of a convolution, cut along their input channels, ``PerBlock((1, g, 0, 0))``. The graphs of models have float32 scales.

    Attributes:
        shape: lengths of a block along the last axes; 1 gives each index its own scale, 0 is the whole axis. Axes before
            those have a scale for each index.
        scale_format: the format of the scales, or None for float32.

    >>> str(PerBlock((128, 128)))
    'block 128x128'
    """

    shape: tuple[int, ...]
    scale_format: FloatFormat | None = None

    def __str__(self) -> str:
        return f"block {'x'.join(map(str, self.shape))}" + (f" of {self.scale_format}" if self.scale_format else "")


Granularity = PerTensor | PerChannel | PerToken | PerBlock


@dataclass(frozen=True)
class Scheme:
    """How one tensor is quantized.

    Attributes:
        format: the format of its codes.
        granularity: which elements share a scale.
        dynamic: whether the scale is found anew at each run (activations only); otherwise it is fixed at conversion.
        direct: whether the scale is simply 1 (a cast: the paper's E5M2, section 3.1).
        power_of_two: whether scales are rounded up to a power of two, so that nothing saturates and scaling is exact.
    """

    format: FloatFormat | IntegerFormat
    granularity: Granularity = PerTensor()
    dynamic: bool = False
    direct: bool = False
    power_of_two: bool = False


def _mx() -> Mapping[str, tuple[FloatFormat, PerBlock]]:
    # The element formats of MX are the signed formats that OCP defines, its scale format the one without a sign.
    ocp = [f for f in FORMATS.values() if f.source.startswith("OCP")]
    blocks = PerBlock((1, 32), next(f for f in ocp if not f.signed))
    rows = {f"mxfp{f.bits}_e{f.exponent_bits}m{f.mantissa_bits}": (f, blocks) for f in ocp if f.signed}
    rows |= {name.split("_")[0]: row for name, row in rows.items() if row[0].specials is Specials.NONE and row[0].bits == 4}
    return MappingProxyType(rows)


MX: Mapping[str, tuple[FloatFormat, PerBlock]] = _mx()
"""OCP Microscaling (MX) 1.0, table 1: name -> element format, and groups of 32 along an axis with their scales."""
