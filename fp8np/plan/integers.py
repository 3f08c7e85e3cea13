"""What a plan in the making knows of a value that becomes integers."""

from __future__ import annotations

from dataclasses import dataclass, field

from fp8np.kernels._program import Word
from fp8np.plan.steps import Grid

__all__ = ["Integers"]


@dataclass
class Integers:
    """A value as integers.

    Attributes:
        source: the value that is rounded.
        parameters: address of its scale and zero point, as `fp8np.kernels.integer_widen` has them.
        grids: widened images, by how they are read.
    """

    source: str
    parameters: Word
    grids: dict[str, Grid] = field(default_factory=dict)
