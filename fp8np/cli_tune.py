"""`fp8np tune`: argument parsing and printing, nothing else."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp8np._terminal import Target, console, progress, writing
from fp8np.cli_source import READING, Sectioned, calibration_options, measuring_options, read, reading_options, recipe_options

if TYPE_CHECKING:
    from fp8np.ptq.recipe import Recipe
    from fp8np.tuning import Target as Wanted
    from fp8np.tuning import Trial, Tuned

__all__ = ["tune"]

_TARGET = Target()


@click.command(
    cls=Sectioned,
    sections={
        "Target": ("data", "metric", "tolerance", "absolute", "lower_is_better", "output"),
        "Search": ("trials", "log"),
        "Where it starts": ("recipe", "settings"),
        "Calibration": ("calibration", "recalibration"),
        **READING,
    },
)
@click.argument("source")
@click.option("-o", "model", type=_TARGET, required=True, metavar="FILE", help="Where the model is written, if it meets the target.")
@click.option("--recipe-out", type=_TARGET, required=True, metavar="FILE.toml", help="Where the best recipe is written, in any case.")
@click.option("--keep-best", is_flag=True, help="Write the model of the best recipe even if it misses the target.")
@click.option("--json", "facts", type=_TARGET, metavar="FILE", help="Also write all trials and the report as JSON.")
@measuring_options
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=0.01, show_default=True, help="How much may be lost, as a part of FP32's figure."
)
@click.option("--absolute", is_flag=True, help="The tolerance is in the metric's own unit.")
@click.option("--lower-is-better", is_flag=True, help="The metric counts errors.")
@click.option("--output", metavar="NAME", help="Which output is measured, where there are several: its key or position.")
@click.option("--trials", type=click.IntRange(min=1), default=60, show_default=True, help="How many recipes may be measured.")
@click.option("--log", type=_TARGET, metavar="FILE.jsonl", help="Keep each trial there at once, and take from there what it has already.")
@recipe_options
@calibration_options
@reading_options
@click.pass_obj
def tune(
    converter: Callable[[], Any], /, source: str, model: Path, recipe_out: Path, keep_best: bool, facts: Path | None, **options: Any
) -> None:
    """Change a recipe until your metric loses no more than a tolerance.

    SOURCE is what `fp8np convert` takes. Tried are: the recipe as it is; types of ops, as the paper's tool falls back; other
    formats and finer scales for the nodes that cost most; these in FP32, as few as do it. docs/tuning.md says more.

    \b
    fp8np tune minilm/ -o minilm.safetensors --recipe-out tuned.toml --recipe mixed \\
               --calibration sentences.npz --data labelled.npz --metric spearman
    fp8np tune net.pt2 -o net.safetensors --recipe-out tuned.toml --recipe e5m2 \\
               --data labelled.npz --metric accuracy --log trials.jsonl

    Exit codes: 0 the target is met, 1 it is missed (no model is written without --keep-best), or it failed, 2 wrong usage.
    """
    from fp8np.artifact import save
    from fp8np.ptq.recipe_file import find_recipe, with_settings
    from fp8np.tuning import tune as tuned

    recipe = with_settings(find_recipe(options["recipe"]), options["settings"])
    wanted = _wanted(options)
    shown = _Shown(wanted, options["trials"])
    graph = read(converter, source, options)
    try:
        with progress() as told:
            shown.bar = told
            found = tuned(
                graph,
                recipe,
                options["data"],
                options["metric"],
                **{name: options[name] for name in _PASSED},
                told=shown,
                progress=told,
            )
    except KeyboardInterrupt:
        _interrupted(shown, recipe_out, options["log"])
        raise
    _write_recipe(recipe_out, found.recipe, (_summary(found), *_missed(found)))
    written = [recipe_out]
    if found.met or keep_best:
        with writing(model):
            save(found.graph, model)
        written.insert(0, model)
    if facts is not None:
        _write(facts, json.dumps(found.as_dict(), indent=1) + "\n")
        written.append(facts)
    out = console()
    out.print(found.report.table())
    out.print(_summary(found), markup=False, highlight=False)
    out.print("wrote " + ", ".join(f"{path} ({path.stat().st_size:,} bytes)" for path in written), markup=False, highlight=False)
    if not found.met:
        unwritten = () if keep_best else ("Its model was not written; --keep-best writes it.",)
        raise click.ClickException(" ".join((*_missed(found), *unwritten)))


_PASSED = ("calibration", "recalibration", "tolerance", "absolute", "lower_is_better", "output", "trials", "log")


def _wanted(options: dict[str, Any]) -> Wanted:
    from fp8np.tuning import Target as Wanted

    return Wanted(options["metric"], options["tolerance"], options["absolute"], options["lower_is_better"])


class _Shown:
    """Prints a line for each trial on standard error, and remembers the best."""

    def __init__(self, wanted: Wanted, trials: int) -> None:
        self.wanted = wanted
        self.best: Trial | None = None
        self.bar: Any = None
        self.count = 0
        self._trials = trials

    def __call__(self, trial: Trial) -> None:
        if trial.number == 0:
            click.echo(f"FP32: {self.wanted.name} {trial.value:.6g}; to lose at most {self.wanted.amount(self.wanted.tolerance)}", err=True)
            return
        self.count = trial.number
        better = self.best is None or trial.rank < self.best.rank
        if better:
            self.best = trial
        mark = "meets" if trial.met else "best so far" if better else ""
        seconds = "from the log" if trial.logged else f"{trial.seconds:.1f} s"
        click.echo(f"{trial.number:3d}  {trial.value:<9.6g}{self.wanted.text(trial.loss):<16}{mark:<13}{trial.what}, {seconds}", err=True)
        self.bar("trials", trial.number, self._trials)


def _interrupted(shown: _Shown, recipe_out: Path, log: Path | None) -> None:
    trials = f"{shown.count} trial{'' if shown.count == 1 else 's'}"
    if shown.best is None:
        click.echo("Interrupted before the first trial; nothing was written.", err=True)
        return
    best = f"the best of {trials} {shown.wanted.text(shown.best.loss)} of {shown.wanted.name}"
    meets = "which meets the target" if shown.best.met else "which MISSES the target"
    _write_recipe(recipe_out, shown.best.recipe, (f"Tuning was interrupted: {best}, {meets}.",))
    click.echo(f"Interrupted: {best}, {meets}; wrote {recipe_out}, no model.", err=True)
    command = shlex.join(["fp8np", *sys.argv[1:]])
    click.echo(f"To go on: {command}" if log else "With --log FILE.jsonl it could be gone on with.", err=True)


def _summary(found: Tuned) -> str:
    target = found.target
    verdict = f"{'within' if found.met else 'MISSES the target,'} {target.amount(target.tolerance)}"
    figures = f"{target.name} {found.value:.6g}, FP32 {found.baseline:.6g}"
    return f"{figures}: {target.text(found.loss)}, {verdict}; {len(found.trials)} trials"


def _missed(found: Tuned) -> tuple[str, ...]:
    if found.met:
        return ()
    why = (
        f"all {len(found.trials)} trials are used up (--trials)"
        if found.spent
        else f"all that can be tried was, in {len(found.trials)} trials"
    )
    return (f"The target is missed: the best recipe {found.target.text(found.loss)} of {found.target.name}; {why}.",)


def _write_recipe(path: Path, recipe: Recipe, comments: Iterable[str]) -> None:
    from fp8np.ptq.recipe_file import recipe_text

    said = ("Made by fp8np tune. fp8np convert --recipe makes the same model of the same source and calibration data.", *comments)
    _write(path, "".join(f"# {line}\n" for line in said) + "\n" + recipe_text(recipe))


def _write(path: Path, text: str) -> None:
    from fp8np._files import replacing

    with writing(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
