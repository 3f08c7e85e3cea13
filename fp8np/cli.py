"""The command line: argument parsing and printing, nothing else. Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fp8np
from fp8np.errors import Fp8npError, MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

_PATH = click.Path(path_type=Path)
_EXISTING = click.Path(exists=True, path_type=Path)


class _Group(click.Group):
    """Turns the errors a user can act on into one line and exit code 1; anything else is a defect and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Fp8npError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(fp8np.__version__, prog_name="fp8np")
def main() -> None:
    """FP8 on any CPU: convert trained models, run them with NumPy, look inside.

    \b
    fp8np convert FOLDER -o model.safetensors --calibration data.npz
    fp8np run     model.safetensors inputs.npz -o outputs.npz
    fp8np inspect model.safetensors
    """


@main.command()
@click.argument("source")
@click.option("-o", "--output", type=_PATH, required=True, help="Where the converted model is written (.safetensors).")
@click.option("--module", metavar="PKG.MOD:FACTORY", help="Function returning the nn.Module that SOURCE's weights belong to.")
@click.option("--key", metavar="A.B", help="Where the weights are inside the checkpoint, if not found by themselves.")
@click.option("--example-inputs", type=_EXISTING, metavar="FILE.npz", help="Inputs to trace an nn.Module with, by name.")
@click.option("--dynamic-axis", "dynamic_axes", multiple=True, metavar="INPUT:AXIS=NAME", help="An axis that may vary, e.g. ids:1=T.")
@click.option("--pooling", type=click.Choice(["mean"]), help="For a BERT folder: give sentence embeddings instead of hidden states.")
@click.option("--recipe", default="e4m3", show_default=True, metavar="NAME", help="fp32, e4m3, e3m4 or e5m2.")
@click.option("--approach", type=click.Choice(["static", "dynamic"]), help="Where activation scales come from; static needs --calibration.")
@click.option("--ops", metavar="OP,OP", help="Quantize these op types instead of the recipe's; +OP adds, -OP removes one.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="Leave nodes of this name alone (* and ? match).")
@click.option(
    "--keep-first-last",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Keep the first convolution and the last linear in FP32; auto: in convolutional networks.",
)
@click.option("--calibration", metavar="DATA", help="Representative inputs: .npz, .npy, a folder of them, or pkg.mod:factory.")
@click.option("--samples", type=click.IntRange(min=1), default=300, show_default=True, help="How many calibration samples to use.")
@click.option("--json", "report_file", type=_PATH, metavar="FILE", help="Also write the report as JSON.")
def convert(source: str, output: Path, report_file: Path | None, **options: Any) -> None:
    """Convert a trained model to FP8.

    SOURCE is a Hugging Face BERT folder, a program saved by torch.export (.pt2), a checkpoint (.pt, .pth, .bin,
    .safetensors, .npz) together with --module, or pkg.mod:factory returning an nn.Module that has its weights.
    Only tracing an nn.Module needs PyTorch.
    """
    from fp8np.artifact import save
    from fp8np.ptq.recipe import get_recipe
    from fp8np.ptq.workflow import quantize_model

    recipe = get_recipe(options["recipe"]).adjusted(
        approach=options["approach"], ops=options["ops"], skip=options["skip"], keep_first_last=options["keep_first_last"]
    )
    graph = _converter()(
        source,
        module=options["module"],
        key=options["key"],
        example_inputs=options["example_inputs"],
        dynamic=_dynamic_axes(options["dynamic_axes"]),
        pooling=options["pooling"],
    )
    with _progress() as progress:
        result = quantize_model(graph, recipe, options["calibration"], samples=options["samples"], progress=progress)
    save(result.graph, output)
    console = _console()
    console.print(result.report.table())
    if report_file is not None:
        _write_json(result.report.as_dict(), report_file)
    console.print(f"wrote {output} ({output.stat().st_size:,} bytes)" + (f" and {report_file}" if report_file else ""))


@main.command()
@click.argument("model", type=_EXISTING)
@click.argument("inputs", type=_EXISTING)
@click.option("-o", "--output", type=_PATH, metavar="FILE.npz", help="Where the outputs are written; without it they are only described.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that kernels may use.")
@click.option("--json", "as_json", is_flag=True, help="Describe the outputs as JSON.")
def run(model: Path, inputs: Path, output: Path | None, threads: int | None, as_json: bool) -> None:
    """Run a converted MODEL on one batch: INPUTS is an .npz with an array for each input, or an .npy for a single input."""
    import time

    from fp8np._files import replacing
    from fp8np.data import read_arrays

    loaded = fp8np.load(model)
    arrays = read_arrays(inputs, loaded.inputs)
    start = time.perf_counter()
    outputs = dict(_named(loaded.run(arrays, threads=threads)))
    seconds = time.perf_counter() - start
    if output is not None:
        import numpy as np

        with replacing(output) as temporary, temporary.open("wb") as file:
            np.savez(file, **outputs)
    facts = {
        name: {"shape": list(a.shape), "dtype": a.dtype.name, "min": _bound(a, "min"), "max": _bound(a, "max")}
        for name, a in outputs.items()
    }
    if as_json:
        click.echo(json.dumps({"outputs": facts, "seconds": seconds, "written": None if output is None else str(output)}))
        return
    for name, fact in facts.items():
        click.echo(f"{name}: {fact['dtype']}{fact['shape']}, from {fact['min']} to {fact['max']}")
    click.echo(f"ran in {seconds * 1e3:.1f} ms" + (f", wrote {output}" if output else ""))


@main.command()
@click.argument("model", type=_EXISTING)
@click.option("--graph", "show_graph", is_flag=True, help="Every node, not only those with weights.")
@click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")
def inspect(model: Path, show_graph: bool, as_json: bool) -> None:
    """Show what a converted MODEL computes and how it is quantized."""
    from fp8np.describe import describe, described_table

    graph = fp8np.load(model).graph
    facts = describe(graph, model.stat().st_size)
    if as_json:
        click.echo(json.dumps(facts))
        return
    console = _console()
    if show_graph:
        console.print(str(graph), markup=False, highlight=False, soft_wrap=True)
    console.print(described_table(facts))


@main.command()
@click.argument("model", type=_EXISTING)
@click.option(
    "--data", required=True, metavar="DATA", help="Inputs and labels: .npz with an array 'labels', a folder of them, or pkg.mod:factory."
)
@click.option("--metric", required=True, help="accuracy, spearman, psnr, cosine, eer, or pkg.mod:function(outputs, labels).")
@click.option("--reference", type=_EXISTING, metavar="MODEL", help="Take another converted model's outputs for labels.")
@click.option("--output", metavar="NAME", help="Which output counts, where there are several.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that kernels may use.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(model: Path, data: str, metric: str, reference: Path | None, output: str | None, threads: int | None, as_json: bool) -> None:
    """Measure a converted MODEL on data."""
    from fp8np.evaluate import evaluate as measure

    with _progress() as progress:
        result = measure(
            fp8np.load(model),
            data,
            metric,
            reference=None if reference is None else fp8np.load(reference),
            output=output,
            threads=threads,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps({"metric": metric, "value": result.value, "samples": result.samples}))
    else:
        click.echo(f"{metric} {result.value:.6g} on {result.samples} samples")


def _converter() -> Any:
    try:
        from fp8np_converters.source import read_source
    except ImportError as error:  # pragma: no cover - a broken installation
        raise MissingDependencyError("the converters are not installed: pip install fp8np") from error
    return read_source


def _dynamic_axes(texts: Sequence[str]) -> dict[str, dict[int, str]] | None:
    axes: dict[str, dict[int, str]] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        axis, _, size = rest.partition("=")
        if not (name and axis.isdecimal() and size.isidentifier()):
            raise click.BadParameter(f"expected INPUT:AXIS=NAME, e.g. input_ids:1=T, got {text!r}", param_hint="--dynamic-axis")
        axes.setdefault(name, {})[int(axis)] = size
    return axes or None


def _named(structure: Any, name: str = "output") -> Iterator[tuple[str, Any]]:
    """The arrays of an output structure, each under a name that says where it is."""
    if isinstance(structure, dict):
        for key, part in structure.items():
            yield from _named(part, key if name == "output" else f"{name}.{key}")
    elif isinstance(structure, list | tuple):
        for i, part in enumerate(structure):
            yield from _named(part, f"{name}.{i}")
    elif structure is not None:
        yield name, structure


def _bound(array: Any, which: str) -> float | None:
    return float(getattr(array, which)()) if array.size else None


def _write_json(value: Any, path: Path) -> None:
    from fp8np._files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _console() -> Console:
    from rich.console import Console

    # A pipe has no width: tables there are as wide as they need to be, so that no number is cut.
    return Console(width=None if sys.stdout.isatty() else 160)


@contextmanager
def _progress() -> Iterator[Any]:
    """Gives a callback (what, done, total) that draws a bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update
