"""Recipes: what to quantize, into which format, and where the scales come from. Data only; `fp8np.ptq.assign` reads it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fp8np.errors import RecipeError
from fp8np.formats import FloatFormat, get_format

__all__ = ["APPROACHES", "RECIPES", "STANDARD_OPS", "Recipe", "get_recipe"]

APPROACHES = ("static", "dynamic", "direct")

STANDARD_OPS = frozenset(
    {"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear", "embedding", "embedding_bag"},
)
"""Operators of the standard scheme (arXiv 2309.14592, section 3.1)."""

_KEEP = MappingProxyType({"auto": "auto", "yes": True, "no": False})


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Attributes:
        name: of the recipe.
        weights: format of the weights; None leaves them, and so everything, in float32.
        activations: format of the activations that meet quantized weights; None quantizes weights only.
        approach: where scales come from. "static": activation scales are found by calibration and fixed; "dynamic": found
            anew at each run; "direct": every scale, of weights too, is 1, as the paper has it for E5M2.
        ops: names of the ops to quantize. How finely their inputs are scaled is told by their rows of OPS.
        keep_first_last: whether the first convolution and the last linear stay in float32; "auto": in convolutional
            networks only.
        skip: patterns (``*`` and ``?`` match) of nodes, by name or origin, that stay in float32.

    Formats may be given by name.

    Raises:
        RecipeError: an attribute has a value that it cannot have. FormatError: a format is unknown.

    >>> get_recipe("e4m3").activations.max
    448.0
    """

    name: str
    weights: FloatFormat | None
    activations: FloatFormat | None
    approach: str = "static"
    ops: frozenset[str] = STANDARD_OPS
    keep_first_last: bool | str = "auto"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for role in ("weights", "activations"):
            fmt = getattr(self, role)
            if fmt is not None:
                object.__setattr__(self, role, _checked_format(self.name, role, get_format(fmt)))
        object.__setattr__(self, "ops", frozenset(self.ops))
        object.__setattr__(self, "skip", tuple(self.skip))
        if self.weights is None and self.activations is not None:
            raise RecipeError(f"recipe {self.name!r}: activations are quantized where they meet quantized weights; weights has no format")
        if self.approach not in APPROACHES:
            raise RecipeError(f"recipe {self.name!r}: expected approach to be one of {', '.join(APPROACHES)}, got {self.approach!r}")
        if self.keep_first_last not in (True, False, "auto"):
            raise RecipeError(f"recipe {self.name!r}: expected keep_first_last to be 'auto', True or False, got {self.keep_first_last!r}")

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def adjusted(
        self,
        *,
        approach: str | None = None,
        ops: str | None = None,
        skip: Iterable[str] = (),
        keep_first_last: str = "auto",
    ) -> Recipe:
        """The recipe as a command line changes it.

        Args:
            approach: see the class; None leaves it.
            ops: names separated by commas, to be covered instead of the recipe's; with + or - before a name it is added
                or taken away. None leaves them.
            skip: more patterns.
            keep_first_last: "auto", "yes" or "no".

        Raises:
            RecipeError: an argument is not one of these.

        >>> sorted(get_recipe("e4m3").adjusted(ops="linear,embedding").ops)
        ['embedding', 'linear']
        >>> get_recipe("e4m3").adjusted(ops="+lstm,-linear").ops ^ STANDARD_OPS == {"lstm", "linear"}
        True
        """
        if keep_first_last not in _KEEP:
            raise RecipeError(f"recipe {self.name!r}: expected keep_first_last to be one of {', '.join(_KEEP)}, got {keep_first_last!r}")
        return self.replace(
            approach=self.approach if approach is None else approach,
            ops=self.ops if ops is None else _adjusted_ops(self.ops, ops),
            skip=(*self.skip, *skip),
            keep_first_last=_KEEP[keep_first_last],
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether activation scales come from data."""
        return self.activations is not None and self.approach == "static"


def _checked_format(recipe: str, role: str, fmt: FloatFormat) -> FloatFormat:
    if not fmt.signed:
        raise RecipeError(f"recipe {recipe!r}: {role} need a format with a sign and a zero, which {fmt} has not")
    return fmt


def _adjusted_ops(ops: frozenset[str], text: str) -> frozenset[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    signed = [name for name in names if name[0] in "+-"]
    if signed and len(signed) < len(names):
        raise RecipeError(f"ops {text!r}: either every name has + or - before it, or none")
    if not signed:
        return frozenset(names)
    added = {name[1:] for name in signed if name[0] == "+"}
    return (ops | added) - {name[1:] for name in signed if name[0] == "-"}


def _rows(*rows: Recipe) -> Mapping[str, Recipe]:
    return MappingProxyType({row.name: row for row in rows})


def _uniform(name: str, fmt: str, approach: str = "static") -> Recipe:
    return Recipe(name, get_format(fmt), get_format(fmt), approach)


RECIPES: Mapping[str, Recipe] = _rows(
    Recipe("fp32", None, None),
    _uniform("e4m3", "float8_e4m3fn"),
    _uniform("e3m4", "float8_e3m4fn"),
    _uniform("e5m2", "float8_e5m2", "direct"),
)
"""Every recipe by name. A new one is a row."""


def get_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe of a name; a recipe is returned as it is.

    Raises:
        RecipeError: the name is unknown.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        close = difflib.get_close_matches(str(recipe).lower(), RECIPES, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(RECIPES)}"
        raise RecipeError(f"unknown recipe {recipe!r}; {hint}")
    return RECIPES[recipe]
