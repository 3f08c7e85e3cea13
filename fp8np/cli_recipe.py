"""`fp8np recipe`: recipes as the files that they can be written in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fp8np._terminal import Target, console, writing

__all__ = ["recipe"]


def settings(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``KEY=VALUE`` options as a dict."""
    found: dict[str, str] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"expected KEY=VALUE, e.g. calibrator=mse, got {text!r}")
        found[key.strip()] = value.strip()
    return found


SET = click.option(
    "--set",
    "settings",
    multiple=True,
    callback=settings,
    metavar="KEY=VALUE",
    help="Change a key of the recipe, e.g. calibrator=mse or smooth=0.5; may be repeated. `fp8np recipe show` lists them.",
)
"""An option that changes a recipe: a dict of texts for `fp8np.ptq.recipe_file.with_settings`."""


@click.group()
def recipe() -> None:
    """Recipes: what is quantized and how. Small TOML or JSON files."""


@recipe.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_all(as_json: bool) -> None:
    """The recipes that have a name."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from fp8np.ptq.recipe import RECIPES
    from fp8np.ptq.recipe_file import recipe_table

    tables: list[dict[str, Any]] = [recipe_table(row) for row in RECIPES.values()]
    if as_json:
        click.echo(json.dumps(tables))
        return
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("name", "weights", "activations", "approach"):
        shown.add_column(heading)
    for table in tables:
        chosen = " or ".join(table["candidates"])
        shown.add_row(table["name"], chosen or table["weights"], chosen or table["activations"], table["approach"])
    console().print(shown)


@recipe.command()
@click.argument("name")
@SET
@click.option("-o", "--output", type=Target(), metavar="FILE.toml", help="Write it to a file instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which is a recipe file, too.")
def show(name: str, settings: dict[str, str], output: Path | None, as_json: bool) -> None:
    """Print a recipe with all its keys, each explained.

    NAME is a recipe's name (`fp8np recipe list`; NAME-static and NAME-dynamic are the same with another approach) or a file.

    \b
    fp8np recipe show mixed --set smooth=0.5 -o mine.toml
    fp8np convert FOLDER -o model.safetensors --recipe mine.toml ...
    """
    from fp8np._files import replacing
    from fp8np.ptq.recipe_file import find_recipe, recipe_table, recipe_text, with_settings

    chosen = with_settings(find_recipe(name), settings)
    text = json.dumps(recipe_table(chosen), indent=1) + "\n" if as_json else recipe_text(chosen)
    if output is None:
        click.echo(text, nl=False)
        return
    with writing(output), replacing(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"wrote {output}")
