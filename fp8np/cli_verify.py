"""`fp8np verify`: argument parsing and printing, nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp8np.formats import FloatFormat

if TYPE_CHECKING:
    from fp8np.verify import Report

__all__ = ["verify"]

_TARGET = click.Path(dir_okay=False, writable=True, path_type=Path)
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
    multiple=True,
    metavar="NAME",
    help="A check: decode, '16 bit', float32, float64, digest, gemm, conv; may be repeated.",
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

    Exit code 1 if anything differs without a documented reason.
    """
    for path in (json_file, html_file):
        if path is not None and not path.resolve().parent.is_dir():
            raise click.BadParameter(f"There is no folder '{path.parent}'.")
    if exhaustive and suites:
        raise click.UsageError("--suite is for the checks that take seconds: leave it out with --exhaustive.")
    if state is not None and not exhaustive:
        raise click.UsageError("--state goes with --exhaustive.")
    if export is not None and (exhaustive or suites or implementation or json_file or html_file):
        raise click.UsageError("--export-vectors checks nothing: only --format goes with it.")
    from fp8np.cli import _console, _progress
    from fp8np.kernels._threads import threads as using

    chosen = _chosen(formats)
    console = _console()
    with using(threads):
        if export is not None:
            with _progress() as progress:
                written = _export(export, chosen, progress)
            console.print(written, markup=False, highlight=False)
            return
        with _progress() as progress:
            if exhaustive:
                report = _exhaustive(implementation, chosen, state, progress)
            else:
                from fp8np.verify import verify as check

                report = check(implementation, formats=chosen, suites=suites or None, progress=progress)
    _print(report, console, every_row=every_row)
    _write(report, json_file, html_file)
    if not report.clean:
        sys.exit(1)


def _chosen(patterns: tuple[str, ...]) -> tuple[FloatFormat, ...] | None:
    if not patterns:
        return None
    from fp8np.cli_explain import select_formats

    return tuple(select_formats(patterns))


def _exhaustive(implementation: str | None, formats: tuple[FloatFormat, ...] | None, state: Path | None, progress: Any) -> Report:
    from fp8np.verify import Report
    from fp8np.verify.exhaustive import exhaustive
    from fp8np.verify.facts import facts
    from fp8np.verify.suite import checked

    report = Report(checked(implementation).name, facts())
    report.rows.extend(exhaustive(implementation, formats, state_dir=state, progress=progress, facts=report.facts))
    return report


def _export(folder: Path, formats: tuple[FloatFormat, ...] | None, progress: Any) -> str:
    from fp8np.verify.export import export_vectors

    files = export_vectors(folder, formats, progress=progress)
    return f"wrote {len(files)} files to {folder} ({sum(file.stat().st_size for file in files):,} bytes)"


def _print(report: Report, console: Any, *, every_row: bool) -> None:
    from fp8np.verify.table import report_table

    console.print(report_table(report, every_row=every_row), markup=False, highlight=False)


def _write(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    from fp8np.verify.html import write_html, write_json

    if json_file is not None:
        write_json(report, json_file)
    if html_file is not None:
        write_html(report, html_file)
