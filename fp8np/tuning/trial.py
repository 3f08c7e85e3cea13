"""One trial of tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fp8np.metrics import plain
from fp8np.ptq.recipe import Recipe

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """A recipe and what its model reaches.

    Attributes:
        number: from 1; 0 is the FP32 model.
        what: what was tried, in words.
        recipe: the whole recipe.
        key: the same for two recipes that make the same model.
        value: of the metric; NaN where it is undefined.
        loss: against FP32, in what the tolerance is given in.
        met: whether it is within the tolerance.
        floats: how many nodes stay in float32 that the recipe to be tuned would quantize.
        changes: how many formats and granularities of nodes it names beside those.
        seconds: what quantizing and measuring took.
        logged: whether it was read from the log.
    """

    number: int
    what: str
    recipe: Recipe
    key: str
    value: float
    loss: float
    met: bool
    floats: int
    changes: int
    seconds: float
    logged: bool

    @property
    def rank(self) -> tuple[float, ...]:
        """Less is better: what meets the target with the fewest nodes in float32, then the fewest changes; else what loses least."""
        return (0.0, self.floats, self.changes, self.loss, self.number) if self.met else (1.0, self.loss, self.number)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "number": self.number,
            "what": self.what,
            "key": self.key,
            "value": plain(self.value),
            "loss": plain(self.loss),
            "met": self.met,
            "floats": self.floats,
            "changes": self.changes,
            "seconds": self.seconds,
            "logged": self.logged,
        }
