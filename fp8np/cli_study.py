"""`fp8np study`: argument parsing and printing, nothing else."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp8np._terminal import console, writing
from fp8np.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fp8np.study.results import Results
    from fp8np.study.runner import Event
    from fp8np.study.spec import Cell, Study

__all__ = ["study"]

_STUDY = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=_STUDY, metavar="STUDY.toml")
@click.option("-o", "--output", type=_FOLDER, required=True, metavar="DIR", help="Where cells, tables and the page are kept.")
@click.option("--folder", "folders", multiple=True, metavar="NAME=DIR", help="Where a folder is that the study names; may be repeated.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at a time; they share the cores.")
@click.option("--only", metavar="NAME,NAME", help="Only workloads named so (* and ? match).")
@click.option("--recipes", metavar="NAME,NAME", help="Only recipes named so (* and ? match).")
@click.option("--keep", is_flag=True, help="Keep the quantized models, in DIR/models.")
@click.option("--tables", "only_tables", is_flag=True, help="Run nothing: make tables and page again from what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON (what DIR/study.json has) instead of a table.")
@click.pass_obj
def study(
    converter: Callable[[], Any],
    file: Path,
    output: Path,
    folders: tuple[str, ...],
    jobs: int,
    only: str | None,
    recipes: str | None,
    keep: bool,
    only_tables: bool,
    as_json: bool,
) -> None:
    """Measure workloads under recipes, each against FP32 on the same samples.

    STUDY.toml names both; docs/study.md says how. What is done is kept in DIR: the same command goes on where it was stopped,
    and tries again what failed.

    \b
    fp8np study studies/paper.toml -o out --folder models=DIR --folder shared=DIR
    fp8np study studies/paper.toml -o out --folder models=DIR --folder shared=DIR \\
                --only resnet20 --recipes 'e4m3*'
    fp8np study studies/paper.toml -o out --tables

    Exit codes: 0 done, failed cells included: they are rows of a table; 1 the study cannot be run, or was interrupted; 2 wrong usage.
    """
    from fp8np.study.reading import read_study
    from fp8np.study.results import read_results

    if not only_tables:
        chosen = read_study(file, _folders(folders), workloads=_names(only), recipes=_names(recipes))
        _run(chosen, output, converter(), jobs, keep)
    # All of the study, whatever part of it was run now.
    results = read_results(read_study(file, runs=False), output)
    with writing(output):
        written = _write(results, output)
    if as_json:
        click.echo(json.dumps(results.as_dict()))
        return
    _print(results)
    click.echo(f"wrote {', '.join(str(output / name) for name in written)}")


def _folders(texts: tuple[str, ...]) -> dict[str, Path]:
    folders = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"expected NAME=DIR, got {text!r}", param_hint="--folder")
        folders[name] = Path(path).expanduser()
    return folders


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _run(chosen: Study, output: Path, read_source: Any, jobs: int, keep: bool) -> None:
    from fp8np.study.runner import run_study

    counted = _Counted()
    try:
        with writing(output), _shown() as show:

            def told(event: Event) -> None:
                counted(event)
                show(event)

            # By name: processes of their own import it.
            name = f"{read_source.__module__}:{read_source.__qualname__}"
            run_study(chosen, output, converter=name, jobs=jobs, keep=keep, told=told)
    except KeyboardInterrupt:
        click.echo(f"Interrupted: {counted.finished} of {counted.planned} cells are done and kept in {output}.", err=True)
        command = shlex.join(["fp8np", *sys.argv[1:]])
        click.echo(f"To go on: {command}\nTables of what is there: {command} --tables", err=True)
        raise


class _Counted:
    """How far a run has come."""

    finished = planned = 0

    def __call__(self, event: Event) -> None:
        self.finished, self.planned = event.finished, event.planned


@contextmanager
def _shown() -> Iterator[Callable[[Event], None]]:
    """Shows events on standard error: bars where that is a terminal, a line for each cell elsewhere."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)


def _lines() -> Callable[[Event], None]:
    begun: dict[Cell, float] = {}

    def show(event: Event) -> None:
        begun.setdefault(event.cell, time.monotonic())
        said = _said(event)
        if said:
            seconds = time.monotonic() - begun[event.cell]
            click.echo(f"[{event.finished}/{event.planned}] {event.cell}: {said}, {seconds:.1f} s", err=True)

    return show


class _Bars:
    """A bar for the study, one for each cell that is being run, and a line above for each that failed."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._whole = bars.add_task("study", total=None)
        self._cells: dict[Cell, TaskID] = {}

    def __call__(self, event: Event) -> None:
        self._bars.update(self._whole, completed=event.finished, total=event.planned)
        if event.kind in ("begin", "progress"):
            if event.cell not in self._cells:
                self._cells[event.cell] = self._bars.add_task(str(event.cell), total=None)
            what = f"{event.cell}: {event.what}" if event.what else str(event.cell)
            self._bars.update(self._cells[event.cell], description=what, completed=event.done, total=event.total)
        elif event.cell in self._cells:
            self._bars.remove_task(self._cells.pop(event.cell))
        if event.record is not None and event.record["status"] != "done":
            self._bars.console.print(f"{event.cell}: {_said(event)}", markup=False, highlight=False)


def _said(event: Event) -> str:
    """How a cell ended, in words; "" where it has not."""
    if event.kind != "end" or event.record is None:
        return ""
    if event.record["status"] != "done":
        return f"failed: {event.record['reason']}"
    value = f"{event.record['value']:.6g}"
    return value if event.cell.entry is None else f"{value}, loses {100 * float(event.record['loss']):.2f} %"


def _write(results: Results, output: Path) -> list[str]:
    from fp8np._files import replacing
    from fp8np.study.page import write_html
    from fp8np.study.plots import pictures
    from fp8np.study.results import write_json
    from fp8np.study.tables import as_csv, as_markdown, tables

    output.mkdir(parents=True, exist_ok=True)
    try:
        drawn = pictures(results)
    except MissingDependencyError as error:
        click.echo(f"no pictures: {error}", err=True)
        drawn = {}
    texts = {"tables.md": as_markdown(results)}
    texts |= {f"{name}.svg": svg.replace("currentColor", "#000") for name, svg in drawn.items()}
    texts |= {f"tables/{table.name}.csv": as_csv(table) for table in tables(results)}
    (output / "tables").mkdir(exist_ok=True)
    for name, text in texts.items():
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(results, output / "study.json")
    write_html(results, drawn, output / "index.html")
    return ["tables.md", "tables", "study.json", "index.html"]


def _print(results: Results) -> None:
    from rich.table import Table

    from fp8np.study.tables import tables

    out = console()
    shown: dict[str, Any] = {table.name: table for table in tables(results)}
    for name in ("rates", "failures"):
        if name in shown:
            table = Table(title=shown[name].title, box=None, pad_edge=False, title_justify="left", title_style="bold", header_style="bold")
            for head in shown[name].heads:
                table.add_column(head, overflow="fold")
            for row in shown[name].rows:
                table.add_row(*(field.text for field in row))
            out.print(table, highlight=False)
    for line in results.headline():
        out.print(line, markup=False, highlight=False)
    done, failed, missing = results.counts
    out.print(f"{done} cells done, {failed} failed, {missing} not run", highlight=False)
