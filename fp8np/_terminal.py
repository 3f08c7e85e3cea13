"""What the commands share: where they print, how they show progress, and the files they are asked to write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from fp8np.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fp8np.kernels._jit import Step

__all__ = ["Sizes", "Target", "compiling", "console", "progress", "writing"]


class Sizes(click.ParamType):  # type: ignore[type-arg]
    """Sizes of axes by name."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        """``B=1,T=128`` as a dict."""
        from fp8np._sizes import named

        if isinstance(value, dict):
            return value
        try:
            return named(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


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

    from fp8np.kernels._jit import watching

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        with watching(_Compiling(bars)):
            yield update


@contextmanager
def compiling() -> Iterator[None]:
    """Shows what is compiled meanwhile on standard error: a line that changes where that is a terminal, otherwise one that stays."""
    from fp8np.kernels._jit import watching

    shown = _Compiling()
    try:
        with watching(shown):
            yield
    finally:
        shown.close()


class _Compiling:
    """Shows steps of compilation, among other bars where there are some."""

    def __init__(self, bars: Progress | None = None) -> None:
        self._bars = bars
        self._own: Progress | None = None
        self._row: Any = None
        self._said = False

    def __call__(self, step: Step, done: bool) -> None:
        if not sys.stderr.isatty():
            if not done:
                self._say(step)
            return
        bars = self._bars or self._opened()
        if done and step.number == step.count:
            if self._row is not None:
                bars.remove_task(self._row)
            self._row = None
            return
        shown: dict[str, Any] = {"description": f"compiling kernels: {step.name}", "total": step.count or None}
        if self._row is None:
            self._row = bars.add_task(**shown)
        bars.update(self._row, completed=step.number - (not done), **shown)

    def _opened(self) -> Progress:
        if self._own is None:
            from rich.console import Console
            from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
            self._own = Progress(*columns, console=Console(stderr=True), transient=True)
            self._own.start()
        return self._own

    def _say(self, step: Step) -> None:
        # One line for what is known to come, one for all else.
        if step.number > 1 or (self._said and not step.count):
            return
        self._said = True
        from fp8np.kernels._cache import kept_in

        what = "1 kernel" if step.count == 1 else f"{step.count} kernels" if step.count else "kernels"
        kept = kept_in()
        click.echo(f"compiling {what} for this CPU, " + (f"kept in {kept}" if kept else "not kept"), err=True)

    def close(self) -> None:
        """Takes away what is shown."""
        if self._own is not None:
            self._own.stop()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write `path` into a message that names it, and not the temporary file."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{path} was not written: {error.strerror or error}") from error
