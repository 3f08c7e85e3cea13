"""Files of studies: TOML, read strictly, so that a slip of the pen costs a message and not a night. docs/study.md lists the keys."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fp8np._sizes import dynamic_axes
from fp8np._toml import Document, read_document
from fp8np.data import is_factory
from fp8np.errors import FormatError, InputError, RecipeError, StudyError
from fp8np.metrics import METRICS
from fp8np.ptq.recipe import Recipe, get_recipe
from fp8np.ptq.recipe_file import read_recipe, recipe_from_table, recipe_table
from fp8np.study.factories import missing
from fp8np.study.grid import Written, expanded
from fp8np.study.spec import FP32, Entry, Study, Workload

__all__ = ["read_study"]

_TOP = {
    "title": str,
    "seed": int,
    "resamples": int,
    "baseline": str,
    "tiers": list,
    "include": str,
    "workloads": list,
    "folders": dict,
    "workload": list,
    "recipe": list,
    "grid": dict,
}
_WORKLOAD = {
    "name": str,
    "title": str,
    "domain": str,
    "source": str,
    "module": str,
    "key": str,
    "example_inputs": str,
    "pooling": str,
    "dynamic_axes": list,
    "data": str,
    "calibration": str,
    "recalibration": str,
    "output": str,
    "units": str,
    "metric": str,
    "lower_is_better": bool,
    "tolerance": float,
    "samples": int,
}
_REQUIRED = ("name", "domain", "source", "data", "metric")
_PATHS = ("source", "example_inputs", "data", "calibration", "recalibration")
_FUNCTIONS = ("source", "module", "data", "calibration", "recalibration", "units", "metric")
_RECIPE = frozenset(f.name for f in dataclasses.fields(Recipe)) - {"overrides"} | {"base", "override", "file", "seed"}
_GRID = frozenset(f.name for f in dataclasses.fields(Recipe)) - {"name", "overrides"} | {"seed"}
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a table"}
_LISTED = 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")

Place = Callable[..., str]


@dataclass(frozen=True)
class _Folder:
    """A folder that a file declares; `path` is None where the user is to name it."""

    path: Path | None
    place: str


def read_study(
    path: Path,
    folders: Mapping[str, Path] | None = None,
    *,
    workloads: Sequence[str] = (),
    recipes: Sequence[str] = (),
    runs: bool = True,
) -> Study:
    """A study from its file.

    Args:
        path: the file.
        folders: by name, before those of the file.
        workloads: patterns of names; none: all.
        recipes: the same.
        runs: whether it is to be run; only then folders are needed.

    Raises:
        StudyError: the file is malformed; the message begins with file and line. Or a folder that is needed is not named.
        OSError: there is no such file.
    """
    document = read_document(path, StudyError)
    data, place = document.data, document.place
    _known(data, _TOP, place, "a study")
    given = dict(folders or {})
    declared, found, written = _parts(document, path.resolve())
    chosen = _chosen(found, workloads, "workload", path)
    entries = tuple(expanded(written, _grid(data.get("grid", {}), place), partial(place, "grid")))
    _unique([(entry.name, place("recipe")) for entry in entries], "recipe")
    kept = _chosen(entries, recipes, "recipe", path)
    baseline = data.get("baseline")
    if baseline is not None and baseline not in {entry.name for entry in entries}:
        raise StudyError(f"{place('baseline')}: no recipe is named {baseline!r}; there are: {_listed(entries)}")
    study = Study(
        origin=path.name,
        title=data.get("title", path.stem),
        seed=_number(data, "seed", 0, 0, place),
        resamples=_number(data, "resamples", 2000, 1, place),
        baseline=baseline,
        folders=_folders(declared, given, chosen, everything=runs and not workloads),
        workloads=chosen,
        entries=kept,
        tiers=_tiers(data, place),
    )
    if not study.workloads or not study.entries:
        raise StudyError(f"{path.name}: expected at least one [[workload]] and one [[recipe]]")
    for workload in study.workloads if runs else ():
        _check_places(workload, study.folders, declared)
    return study


def _parts(document: Document, path: Path, seen: tuple[Path, ...] = ()) -> tuple[dict[str, _Folder], list[Workload], list[Written]]:
    """The folders, workloads and recipes of a file and of what it includes."""
    data, place = document.data, document.place
    declared: dict[str, _Folder] = {}
    workloads: list[Workload] = []
    recipes: list[Written] = []
    if "include" in data:
        declared, workloads, recipes = _included(data, place, path, (*seen, path))
    elif "workloads" in data:
        raise StudyError(f"{place('workloads')}: names workloads of another file: include = 'FILE.toml' is missing")
    for name, value in data.get("folders", {}).items():
        where = place("folders", name)
        text = _typed(value, str, f"folders.{name}", where)
        declared[name] = _Folder(path.parent / Path(text).expanduser() if text else None, where)
    own = [_workload(table, partial(place, "workload", i), path.parent) for i, table in enumerate(data.get("workload", []))]
    written = [_recipe(table, partial(place, "recipe", i), path.parent) for i, table in enumerate(data.get("recipe", []))]
    _unique([(w.name, w.place()) for w in (*workloads, *own)], "workload")
    _unique([(w.entry.name, w.place("name")) for w in written], "recipe")
    return declared, [*workloads, *own], written or recipes


def _included(
    data: Mapping[str, Any], place: Place, path: Path, seen: tuple[Path, ...]
) -> tuple[dict[str, _Folder], list[Workload], list[Written]]:
    other = (path.parent / data["include"]).resolve()
    if other in seen:
        raise StudyError(f"{place('include')}: {data['include']} includes this file")
    try:
        document = read_document(other, StudyError)
    except OSError as error:
        raise StudyError(f"{place('include')}: {other}: {error.strerror or error}") from error
    _known(document.data, _TOP, document.place, "a study")
    declared, workloads, recipes = _parts(document, other, seen)
    if "workloads" in data:
        named = data["workloads"]
        for name in named:
            if name not in {w.name for w in workloads}:
                raise StudyError(f"{place('workloads')}: {other.name} has no workload {name!r}; it has: {_listed(workloads)}")
        workloads = [w for w in workloads if w.name in named]
    return declared, workloads, recipes


def _workload(table: Any, place: Place, folder: Path) -> Workload:
    table = _typed(table, dict, "workload", place())
    _known(table, _WORKLOAD, place, "a workload")
    for key in _REQUIRED:
        if key not in table:
            called = f" {table['name']!r}" if "name" in table else ""
            raise StudyError(f"{place()}: workload{called}: {key} is missing")
    _file_name(table["name"], "workload", place("name"))
    _number(table, "samples", 1, 1, place)
    tolerance = float(table.get("tolerance", 0.01))
    if not 0 <= tolerance < 1:
        raise StudyError(f"{place('tolerance')}: expected tolerance to be from 0 to below 1, relative to FP32, got {tolerance}")
    try:
        dynamic_axes(table.get("dynamic_axes", []))
    except (InputError, AttributeError) as error:
        raise StudyError(f"{place('dynamic_axes')}: {error}") from None
    for key in _FUNCTIONS:
        text = table.get(key)
        if text is None or (key == "metric" and text in METRICS):
            continue
        if is_factory(text):
            reason = missing(text)
            if reason:
                raise StudyError(f"{place(key)}: {key} = {text!r}: {reason}")
        elif key == "metric":
            raise StudyError(f"{place(key)}: unknown metric {text!r}; known: {', '.join(METRICS)}, or pkg.mod:function")
        elif key not in _PATHS:
            raise StudyError(f"{place(key)}: expected {key} to be pkg.mod:function, got {text!r}")
    axes = tuple(table["dynamic_axes"]) if "dynamic_axes" in table else None
    facts = {**table, "title": table.get("title", table["name"]), "tolerance": tolerance, "dynamic_axes": axes}
    return Workload(**facts, places={"": place(), **{key: place(key) for key in table}}, folder=str(folder))


def _recipe(table: Any, place: Place, folder: Path) -> Written:
    table = dict(_typed(table, dict, "recipe", place()))
    for key in table:
        if key not in _RECIPE:
            raise StudyError(f"{place(key)}: unknown key {key!r} of a recipe; known: {', '.join(sorted(_RECIPE))}")
    given = {key: table.pop(key, None) for key in ("file", "seed")}
    seed = None if given["seed"] is None else _number(given, "seed", 0, 0, place)
    samples = table.get("samples")
    if isinstance(samples, bool) or not isinstance(samples, int):
        samples = None
    if given["file"] is None and "name" not in table:
        raise StudyError(f"{place()}: recipe: name is missing")
    try:
        if given["file"] is not None:
            unused = set(table) - {"name", "samples"}
            if unused:
                raise StudyError(f"{place(min(unused))}: {min(unused)} does not go with file, which has the whole recipe")
            recipe = read_recipe(folder / _typed(given["file"], str, "file", place("file")))
            table = {**recipe_table(recipe), **table}
        elif "base" not in table:
            unused = set(table) - {"name", "samples"}
            if unused:
                raise StudyError(f"{place(min(unused))}: {min(unused)} changes a recipe: name it with base = 'RECIPE'")
            get_recipe(table["name"])
            table = {"base": table["name"], **table}
        recipe = recipe_from_table(table, place)
    except (RecipeError, FormatError) as error:
        text = str(error)
        key = "name" if given["file"] is None else "file"
        raise StudyError(text if text.startswith(place().partition(":")[0]) else f"{place(key)}: {text}") from error
    _file_name(recipe.name, "recipe", place("name"))
    if recipe.name == FP32:
        raise StudyError(f"{place('name')}: {FP32} stands beside every recipe as it is; give the recipe another name")
    return Written(Entry(recipe.name, recipe, samples, seed), table, place)


def _grid(table: Mapping[str, Any], place: Place) -> dict[str, list[Any]]:
    for key, values in table.items():
        where = place("grid", key)
        if key not in _GRID:
            raise StudyError(f"{where}: unknown key {key!r} of a grid; known: {', '.join(sorted(_GRID))}")
        if not _typed(values, list, f"grid.{key}", where):
            raise StudyError(f"{where}: expected grid.{key} to be a list of values, it is empty")
        if key in ("samples", "seed") and not all(type(v) is int and v >= (key == "samples") for v in values):
            raise StudyError(f"{where}: expected grid.{key} to be whole numbers{' from 1 on' if key == 'samples' else ''}, got {values}")
    return dict(table)


def _tiers(data: Mapping[str, Any], place: Place) -> tuple[str, ...]:
    if "tiers" not in data:
        return ("",)
    from fp8np.kernels._cpu import Cpu

    known = [cpu.tier for cpu in Cpu]
    tiers = data["tiers"]
    if not tiers or any(tier not in known for tier in tiers) or len(set(tiers)) < len(tiers):
        raise StudyError(f"{place('tiers')}: expected tiers to be some of {', '.join(known)}, each once, got {tiers}")
    return tuple(tiers)


def _folders(
    declared: Mapping[str, _Folder], given: Mapping[str, Path], chosen: Sequence[Workload], *, everything: bool
) -> dict[str, Path]:
    for name, folder in given.items():
        if not folder.is_dir():
            raise StudyError(f"--folder {name}={folder}: there is no such folder")
    if everything:
        # Functions find folders only when they run; of a part of a study not all may be needed.
        for name, declaration in declared.items():
            if declaration.path is None and name not in given and any(is_factory(w.data) or is_factory(w.source) for w in chosen):
                raise _unknown(name, declaration.place)
    return {**{name: folder.path for name, folder in declared.items() if folder.path is not None}, **given}


def _check_places(workload: Workload, folders: Mapping[str, Path], declared: Mapping[str, _Folder]) -> None:
    for key in _PATHS:
        text = getattr(workload, key)
        for name in _placeholders(text or "", f"{workload.place(key)}: {key}"):
            if name not in folders:
                raise _unknown(name, declared[name].place if name in declared else f"[folders] of {workload.place().partition(':')[0]}")


def _unknown(name: str, place: str) -> StudyError:
    return StudyError(f"folder {name!r} is not known: add --folder {name}=DIR, or write it in {place}")


def _placeholders(text: str, where: str) -> Iterator[str]:
    try:
        yield from (name for _, name, _, _ in string.Formatter().parse(text) if name is not None)
    except ValueError as error:
        raise StudyError(f"{where}: {text!r}: {error}") from None


def _chosen(things: Sequence[Any], patterns: Sequence[str], what: str, path: Path) -> tuple[Any, ...]:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(thing.name, pattern) for thing in things):
            raise StudyError(f"{path.name}: no {what} is named {pattern!r}; there are: {_listed(things)}")
    return tuple(t for t in things if not patterns or any(fnmatch.fnmatchcase(t.name, pattern) for pattern in patterns))


def _listed(things: Sequence[Any]) -> str:
    # A grid has hundreds.
    names = [thing.name for thing in things[:_LISTED]]
    return ", ".join(names) + (f", ... ({len(things)})" if len(things) > _LISTED else "")


def _known(table: Mapping[str, Any], keys: Mapping[str, type], place: Place, what: str) -> None:
    for key, value in table.items():
        if key not in keys:
            raise StudyError(f"{place(key)}: unknown key {key!r} of {what}; known: {', '.join(sorted(keys))}")
        _typed(value, keys[key], key, place(key))


def _typed(value: Any, kind: type, key: str, where: str) -> Any:
    right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if not (right or (kind is float and type(value) is int)):
        raise StudyError(f"{where}: expected {key} to be {_KINDS[kind]}, got {value!r}")
    return value


def _number(table: Mapping[str, Any], key: str, default: int, least: int, place: Place) -> int:
    value = table.get(key, default)
    if type(value) is not int or value < least:
        raise StudyError(f"{place(key)}: expected {key} to be a whole number from {least} on, got {value!r}")
    return value


def _file_name(name: str, what: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise StudyError(f"{where}: expected the name of a {what} to be fit for a file: letters, digits, . _ + = -, got {name!r}")


def _unique(names: Sequence[tuple[str, str]], what: str) -> None:
    seen: dict[str, str] = {}
    for name, where in names:
        if name in seen:
            raise StudyError(f"{where}: a {what} named {name!r} is there already, at {seen[name]}")
        seen[name] = where
