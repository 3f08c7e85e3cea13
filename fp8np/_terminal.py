"""What the commands share: where they print, how they show progress, and the files they are asked to write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Target", "console", "progress", "writing"]


class Target(click.Path):
    """A file to be written: its folder must be there, so that hours of work are not lost at the end. Gives a `Path`."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, if its folder is there."""
        path = cast(Path, super().convert(value, param, ctx))
        if not path.resolve().parent.is_dir():
            self.fail(f"There is no folder '{path.parent}'.", param, ctx)
        return path


def console(width: int = 160) -> Console:
    """Standard output, `width` columns wide where it is no terminal.

    A pipe has no width: tables there are as wide as they need to be, so that no number is cut.
    """
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


@contextmanager
def progress() -> Iterator[Any]:
    """Gives a callback (what, done, total) that draws a bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write `path` into a message that names it, and not the temporary file."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{path} was not written: {error.strerror or error}") from error
