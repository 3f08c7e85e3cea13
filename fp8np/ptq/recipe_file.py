"""Recipes as files: small TOML or JSON tables whose keys are the attributes of `Recipe`; docs/recipes.md is their schema."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fp8np._toml import read_document
from fp8np.errors import FormatError, RecipeError
from fp8np.formats import FloatFormat
from fp8np.integers import IntegerFormat
from fp8np.ptq.recipe import COVERAGE, Override, Recipe, adjusted_ops, check_op, get_recipe, paper_name

__all__ = ["find_recipe", "read_recipe", "recipe_from_table", "recipe_table", "recipe_text", "with_settings"]

Place = Callable[..., str]
"""Where a key of a table stands, for messages: ``place("override", 0, "match")``."""


def find_recipe(text: str | Recipe) -> Recipe:
    """The recipe of a name, or in a file (a name that ends in .toml or .json).

    Raises:
        RecipeError: there is none of that name, or the file does not hold one.
    """
    if isinstance(text, str) and text.endswith((".toml", ".json")):
        return read_recipe(Path(text))
    return get_recipe(text)


def read_recipe(path: Path) -> Recipe:
    """A recipe from a file.

    Raises:
        RecipeError: there is no such file, or it does not hold a recipe; the message names the line.
    """
    try:
        document = read_document(path, RecipeError)
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror or error}") from error
    return recipe_from_table(document.data, document.place, name=path.stem)


def recipe_from_table(table: Mapping[str, Any], place: Place, *, name: str = "") -> Recipe:
    """A recipe from what a file says.

    Args:
        table: the attributes of a `Recipe` that differ from those of the recipe that `base` names (fp32 without one). Formats are named as
            `fp8np.ptq.recipe.format_named` reads them; `override` is a list of tables with the attributes of `Override`.
        place: where a key stands.
        name: of the recipe, where the table has none.

    Raises:
        RecipeError: a key or a value is not one of these; the message begins with its place.

    >>> recipe_from_table({"base": "e4m3", "smooth": 0.5, "ops": ["+matmul"]}, lambda *key: "mine.toml", name="mine").smooth
    0.5
    """
    keys = {f.name for f in dataclasses.fields(Recipe)} - {"overrides"} | {"base", "override"}
    _known(table, keys, place)
    if not _typed("name", table.get("name", "-"), str, place("name")):
        raise RecipeError(f"{place('name')}: expected name to be a text, it is empty")
    _typed("base", table.get("base", ""), str, place("base"))
    try:
        base = get_recipe(table.get("base", "fp32"))
    except RecipeError as error:
        raise RecipeError(f"{place('base')}: {error}") from None
    changes: dict[str, Any] = {key: _read(key, value, base, place) for key, value in table.items() if key not in ("base", "override")}
    changes.setdefault("name", name or base.name)
    overrides = _typed("override", table.get("override", []), list, place("override"))
    changes["overrides"] = (*base.overrides, *(_override(entry, i, place) for i, entry in enumerate(overrides)))
    try:
        return base.replace(**changes)
    except (RecipeError, FormatError) as error:
        text = str(error).removeprefix(f"recipe {changes['name']!r}: ")
        raise RecipeError(f"{_blamed(text, table, place)}: {error}") from error


def _override(entry: Any, i: int, place: Place) -> Override:
    own = partial(place, "override", i)
    _typed("override", entry, dict, own())
    _known(entry, {f.name for f in dataclasses.fields(Override)} - {"place"}, own)
    for key, value in entry.items():
        _typed(key, value, bool if key == "keep" else str, own(key))
    if "op" in entry:
        check_op(own("op"), entry["op"])
    try:
        return Override(**entry, place=own())
    except (RecipeError, FormatError) as error:
        text = str(error).removeprefix(f"{own()}: ")
        raise RecipeError(f"{_blamed(text, entry, own)}: {text}") from error


def _blamed(text: str, table: Mapping[str, Any], place: Place) -> str:
    """The place of the key that a message is about: the first that it names."""
    found = {key: match.start() for key in table if (match := re.search(rf"\b{re.escape(key)}\b", text))}
    return place(*sorted(found, key=found.__getitem__)[:1])


_LISTS = ("ops", "skip", "candidates")


def _read(key: str, value: Any, base: Recipe, place: Place) -> Any:
    where = place(key)
    if key in _LISTS:
        names = [_typed(key, name, str, where) for name in _typed(key, value, list, where)]
        if key != "ops":
            return tuple(names)
        for name in names:
            if name.lstrip("+-") not in COVERAGE:
                check_op(where, name.lstrip("+-"))
        try:
            return adjusted_ops(base.ops, names)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from None
    if key in ("smooth", "samples") and value is False:
        return None
    return value


def _known(table: Mapping[str, Any], known: set[str], place: Place) -> None:
    for key in table:
        if key not in known:
            raise RecipeError(f"{place(key)}: unknown key {key!r}; known: {', '.join(sorted(known))}")


def _typed(key: str, value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        names = {str: "a text", list: "a list", dict: "a table", bool: "true or false"}
        raise RecipeError(f"{where}: expected {key} to be {names[kind]}, got {value!r}")
    return value


def with_settings(recipe: Recipe, settings: Mapping[str, str]) -> Recipe:
    """A recipe with attributes changed by texts, as a command line gives them: "mse", "0.5", "true", "linear,matmul".

    Raises:
        RecipeError: there is no such attribute, or it cannot have that value.

    >>> with_settings(get_recipe("e4m3"), {"smooth": "0.5", "ops": "+matmul"}).smooth
    0.5
    """
    table: dict[str, Any] = {}
    for key, text in settings.items():
        if key in _LISTS:
            table[key] = [part.strip() for part in text.split(",") if part.strip()]
        else:
            try:
                table[key] = json.loads(text)
            except json.JSONDecodeError:
                table[key] = text
    for key in ("base", "override", "name"):
        if key in table:
            raise RecipeError(f"--set {key}: write a recipe file for this")
    # `base` takes names; what is changed here may be no row of RECIPES.
    changes = {key: _read(key, value, recipe, lambda *path: f"--set {path[0]}") for key, value in table.items()}
    _known(changes, {f.name for f in dataclasses.fields(Recipe)} - {"name", "overrides"}, lambda *path: f"--set {path[0]}")
    return recipe.replace(**changes)


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """All attributes of a recipe as plain data, which `recipe_from_table` reads back as the same recipe."""
    table: dict[str, Any] = {}
    for f in dataclasses.fields(Recipe):
        value = getattr(recipe, f.name)
        if f.name == "overrides":
            continue
        if f.name == "ops":
            value = sorted(value)
            value = next(([name] for name, ops in COVERAGE.items() if sorted(ops) == value), value)
        elif f.name == "candidates":
            value = [paper_name(fmt) for fmt in value]
        elif f.name == "skip":
            value = list(value)
        elif value is None:
            value = "fp32" if f.name in ("weights", "activations") else False
        elif isinstance(value, FloatFormat | IntegerFormat):
            value = paper_name(value)
        table[f.name] = value
    table["override"] = [
        {name: value for name, value in (("match", o.match), ("op", o.op), *o.settings.items()) if value not in ("", None)}
        for o in recipe.overrides
    ]
    return table


_MEANINGS: Mapping[str, str] = {
    "name": "of the recipe",
    "weights": "e4m3, e3m4, e5m2 (the paper's), int8, any other format's full name, or fp32: nothing is quantized",
    "activations": "likewise; fp32: weights only",
    "approach": "static (scales from calibration), dynamic (from each run), direct (all 1), auto (static in CNNs, else dynamic)",
    "ops": "op types to quantize; standard and extended stand for the paper's two sets",
    "keep_first_last": "whether the first convolution and the last linear stay in float32; auto: in CNNs only",
    "skip": "patterns of nodes that stay in float32",
    "weight_granularity": "scales of weights: tensor, channel, group N, block NxM",
    "activation_granularity": "tensor, or token (dynamic only)",
    "calibrator": "range of activations: max, percentile P, mse, kl, moving_average M",
    "weight_calibrator": "range of weights: max, mse",
    "power_of_two": "round scales up to powers of two",
    "samples": "calibration samples; false: all",
    "batch_norm": "samples for BatchNorm re-calibration on the quantized model; 0: none",
    "batch_norm_paired": "count only what differs from the float32 model on these samples",
    "equalize": "even out channels of convolutions that follow each other",
    "smooth": "SmoothQuant: 0 to 1, auto, or false",
    "rounding": "of weights: nearest, adaptive",
    "correct_bias": "take each output channel's mean error off the bias",
    "candidates": "formats among which each tensor's is chosen; empty: as above",
}


def recipe_text(recipe: Recipe) -> str:
    """A recipe as a TOML file that says what each key means; `read_recipe` reads it back as the same recipe."""
    table = recipe_table(recipe)
    overrides = table.pop("override")
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    width = min(max(map(len, lines)), 44)
    text = "".join(f"{line:<{width}}  # {_MEANINGS[key]}\n" for line, key in zip(lines, table, strict=True))
    for override in overrides:
        text += "\n[[override]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in override.items())
    return text


def _toml(value: Any) -> str:
    # JSON's texts, numbers, lists and booleans are TOML's, DEL in a text apart.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


assert set(_MEANINGS) == {f.name for f in dataclasses.fields(Recipe)} - {"overrides"}
