"""`fp8np verify`: argument parsing and printing, nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp8np._terminal import Target, console, progress, writing
from fp8np.cli_explain import formats_of
from fp8np.errors import InputError
from fp8np.formats import FloatFormat

if TYPE_CHECKING:
    from rich.console import Console

    from fp8np.verify import Report
    from fp8np.verify.implementation import Checked

__all__ = ["verify"]

# `fp8np.verify.SUITES`, which would take a second to import; a test compares them.
_SUITES = ("decode", "16 bit", "float32", "float64", "stochastic", "digest", "gemm", "conv")
# In a file every line of a report is one line, however long: it can be searched.
_FILE_WIDTH = 10_000

_TARGET = Target()
_FOLDER = click.Path(file_okay=False, writable=True, path_type=Path)


@click.command()
@click.option(
    "--implementation", metavar="PKG.MOD:OBJECT", help="What to verify in place of fp8np: an object with encode, decode and matmul."
)
@click.option(
    "--format", "formats", multiple=True, metavar="NAME", help="A format, or a pattern such as '*e4m3*'; may be repeated. By default all."
)
@click.option(
    "--suite",
    "suites",
    type=click.Choice(_SUITES),
    multiple=True,
    metavar="NAME",
    help=f"A check: {', '.join(repr(name) if ' ' in name else name for name in _SUITES)}; may be repeated.",
)
@click.option(
    "--exhaustive", is_flag=True, help="All 2^32 float32 numbers of every format and preset, instead. Takes minutes; may be interrupted."
)
@click.option(
    "--state", type=_FOLDER, metavar="DIR", help="Where --exhaustive keeps what is done, to go on from. By default a cache folder."
)
@click.option("--export-vectors", "export", type=_FOLDER, metavar="DIR", help="Write test vectors for others, and check nothing.")
@click.option("--json", "json_file", type=_TARGET, metavar="FILE", help="Also write the report as JSON.")
@click.option("--html", "html_file", type=_TARGET, metavar="FILE", help="Also write the report as one HTML page.")
@click.option("--all", "every_row", is_flag=True, help="A line for each format and policy.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that kernels may use.")
def verify(
    implementation: str | None,
    formats: tuple[str, ...],
    suites: tuple[str, ...],
    exhaustive: bool,
    state: Path | None,
    export: Path | None,
    json_file: Path | None,
    html_file: Path | None,
    every_row: bool,
    threads: int | None,
) -> None:
    """Compare FP8 arithmetic with an exact law, with other libraries, and with what hardware gave.

    \b
    fp8np verify
    fp8np verify --format e4m3fn --suite gemm --html report.html
    fp8np verify --implementation mypackage.fp8:device
    fp8np verify --exhaustive
    fp8np verify --export-vectors vectors/

    Exit codes: 0 nothing differs without a documented reason; 1 something does, or nothing was checked; 2 wrong usage.
    """
    if exhaustive and suites:
        raise click.UsageError("--suite is for the checks that take seconds: leave it out with --exhaustive.")
    if state is not None and not exhaustive:
        raise click.UsageError("--state goes with --exhaustive.")
    if export is not None and (exhaustive or suites or implementation or json_file or html_file or every_row):
        raise click.UsageError("--export-vectors checks nothing: only --format and --threads go with it.")
    from fp8np.kernels._threads import threads as using

    chosen = formats_of(formats) if formats else None
    out = console(_FILE_WIDTH)
    with using(threads):
        if export is not None:
            with progress() as told:
                written = _export(export, chosen, told)
            out.print(written, markup=False, highlight=False)
            return
        under_test = _implementation(implementation)
        with progress() as told:
            if exhaustive:
                report = _exhaustive(under_test, chosen, state, told)
            else:
                from fp8np.verify import verify as check

                report = check(under_test, formats=chosen, suites=suites or None, progress=told)
    _print(report, out, every_row=every_row)
    _write(report, json_file, html_file)
    if not report.clean:
        sys.exit(1)


def _implementation(name: str | None) -> Checked:
    from fp8np.verify.suite import checked

    try:
        return checked(name)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="--implementation") from error


def _exhaustive(implementation: Checked, formats: tuple[FloatFormat, ...] | None, state: Path | None, told: Any) -> Report:
    from fp8np.verify import Report
    from fp8np.verify.exhaustive import SUITE, exhaustive
    from fp8np.verify.facts import facts

    report = Report(implementation.name, facts())
    try:
        report.rows.extend(exhaustive(implementation, formats, state_dir=state, progress=told, facts=report.facts))
    except KeyboardInterrupt:
        kept = report.facts.get(SUITE, {}).get("state")
        text = f"what is done is kept in {kept}; the same command goes on from there" if kept else "nothing is kept without --state DIR"
        click.echo(f"Interrupted: {text}.", err=True)
        raise
    return report


def _export(folder: Path, formats: tuple[FloatFormat, ...] | None, told: Any) -> str:
    from fp8np.verify.export import export_vectors

    files = export_vectors(folder, formats, progress=told)
    return f"wrote {len(files):,} files to {folder} ({sum(file.stat().st_size for file in files):,} bytes)"


def _print(report: Report, out: Console, *, every_row: bool) -> None:
    from fp8np.verify.table import report_table

    out.print(report_table(report, every_row=every_row, width=out.width), markup=False, highlight=False)


def _write(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    from fp8np.verify.html import write_html, write_json

    for path, write in ((json_file, write_json), (html_file, write_html)):
        if path is not None:
            with writing(path):
                write(report, path)
            click.echo(f"wrote {path} ({path.stat().st_size:,} bytes)")
