"""A grid: recipes times values of their attributes, each combination that differs once."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fp8np.errors import RecipeError, StudyError
from fp8np.ptq.recipe import Recipe
from fp8np.ptq.recipe_file import recipe_from_table
from fp8np.study.spec import Entry

__all__ = ["Written", "expanded", "uses_data"]

_STUDY_KEYS = ("samples", "seed")


@dataclass(frozen=True)
class Written:
    """A recipe of a study as it is written: `table` gives it to `recipe_from_table`, `place` says where a key of it stands."""

    entry: Entry
    table: Mapping[str, Any]
    place: Callable[..., str]


def uses_data(recipe: Recipe) -> bool:
    """Whether calibration data have a part in what a recipe makes of a model.

    >>> from fp8np.ptq.recipe import get_recipe
    >>> uses_data(get_recipe("e4m3")), uses_data(get_recipe("e4m3-dynamic"))
    (True, False)
    """
    if recipe.weights is None:
        return False
    fixed = ("static", "auto")
    scales = recipe.activations is not None and (recipe.approach in fixed or any(o.approach in fixed for o in recipe.overrides))
    measured = recipe.batch_norm or recipe.smooth is not None or recipe.rounding == "adaptive" or recipe.correct_bias or recipe.candidates
    return scales or bool(measured)


def expanded(written: Iterable[Written], grid: Mapping[str, Sequence[Any]], place: Callable[..., str]) -> Iterator[Entry]:
    """The entries of a grid.

    Where a recipe does not look at data, how data are chosen and which of them count makes no difference: of these combinations one is
    kept.

    Args:
        written: the recipes.
        grid: values by key: an attribute of recipes, "samples" or "seed". None: nothing is multiplied.
        place: where a key of the grid stands.

    Raises:
        StudyError: a recipe cannot have such a value.
    """
    for base in written:
        seen: list[tuple[Recipe, Any, Any]] = []
        for values in itertools.product(*grid.values()):
            entry = _entry(base, dict(zip(grid, values, strict=True)), place)
            same = entry.recipe.replace(name=""), entry.samples, entry.seed
            if same not in seen:
                seen.append(same)
                yield entry


def _entry(base: Written, axes: Mapping[str, Any], place: Callable[..., str]) -> Entry:
    if not axes:
        return base.entry
    changes = {key: value for key, value in axes.items() if key not in _STUDY_KEYS}
    table = {**base.table, **changes}
    try:
        recipe = recipe_from_table(table, lambda *key: place(*key) if key[0] in changes else base.place(*key))
    except RecipeError as error:
        raise StudyError(str(error)) from error
    samples, seed = axes.get("samples", base.entry.samples), axes.get("seed", base.entry.seed)
    kept = dict(axes)
    if not uses_data(recipe):
        recipe, samples, seed = recipe.replace(calibrator=base.entry.recipe.calibrator), None, None
        kept = {key: value for key, value in axes.items() if key not in (*_STUDY_KEYS, "calibrator")}
    name = "+".join([base.entry.name, *(f"{key}={_word(value)}" for key, value in kept.items())])
    return dataclasses.replace(base.entry, name=name, recipe=recipe.replace(name=name), samples=samples, seed=seed, axes=kept)


def _word(value: Any) -> str:
    """A value as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "-".join(map(str, value)) if isinstance(value, list) else str(value))
