"""The command line: argument parsing and printing, nothing else. Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, TextIO

import click

import fp8np
from fp8np._terminal import Sizes, Target, compiling, console, progress, writing
from fp8np.cli_bench import bench
from fp8np.cli_explain import explain
from fp8np.cli_recipe import recipe
from fp8np.cli_report import diff, report
from fp8np.cli_source import READING, Sectioned, calibration_options, measuring_options, read, reading_options, recipe_options
from fp8np.cli_study import study
from fp8np.cli_tune import tune
from fp8np.cli_verify import verify
from fp8np.cli_warmup import warmup
from fp8np.errors import Fp8npError, InputError, MissingDependencyError

__all__ = ["main"]


_SOURCE_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_TARGET = Target()


class _Group(click.Group):
    """Turns the errors a user can act on into one message and exit code 1; anything else is a defect and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise  # whoever read our output has gone, `head` for one; click ends quietly
            except Fp8npError as error:
                raise click.ClickException(str(error)) from error
            except OSError as error:
                place = f"{error.filename}: " if error.filename is not None else ""
                raise click.ClickException(f"{place}{error.strerror or error}") from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    click.echo(f"Warning: {message}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(fp8np.__version__, prog_name="fp8np")
@click.pass_context
def main(ctx: click.Context) -> None:
    """FP8 on any CPU: convert trained models, run them with NumPy, look inside, and verify the numerics.

    \b
    fp8np convert  FOLDER -o model.safetensors --calibration data.npz
    fp8np run      model.safetensors inputs.npz -o outputs.npz
    fp8np inspect  model.safetensors
    fp8np evaluate model.safetensors --data labelled.npz --metric accuracy
    fp8np tune     FOLDER -o model.safetensors --recipe-out tuned.toml --data labelled.npz --metric accuracy
    fp8np report   model.safetensors --against fp32.safetensors --data data.npz --html report.html
    fp8np diff     a.safetensors b.safetensors --data data.npz
    fp8np explain  0.3
    fp8np verify
    fp8np study    studies/paper.toml -o DIR
    fp8np recipe show mixed
    fp8np bench
    fp8np warmup

    Exit codes: 0 done, 1 failed, 2 wrong usage.
    """
    # For commands in other modules; nothing is imported before it is called.
    ctx.obj = _converter


main.add_command(report)
main.add_command(diff)
main.add_command(explain)
main.add_command(verify)
main.add_command(tune)
main.add_command(recipe)
main.add_command(study)
main.add_command(bench)
main.add_command(warmup)


@main.command(
    cls=Sectioned,
    sections={
        **READING,
        "Quantization": ("recipe", "settings", "approach", "ops", "skip", "keep_first_last"),
        "Calibration": ("calibration", "recalibration", "samples"),
    },
)
@click.argument("source")
@click.option("-o", "--output", type=_TARGET, required=True, metavar="FILE", help="Where the converted model is written (.safetensors).")
@click.option("--json", "report_file", type=_TARGET, metavar="FILE", help="Also write the report as JSON.")
@reading_options
@recipe_options
@click.option(
    "--approach",
    type=click.Choice(["static", "dynamic", "direct"]),
    help="Where scales come from: calibration, each run, or nowhere (all 1). By default the recipe's.",
)
@click.option("--ops", metavar="OP,OP", help="Quantize these op types instead of the recipe's; +OP adds, -OP removes one.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="Leave nodes of this name alone (* and ? match); may be repeated.")
@click.option(
    "--keep-first-last",
    type=click.Choice(["auto", "yes", "no"]),
    help="Keep the first convolution and the last linear in FP32; auto: in convolutional networks. By default the recipe's.",
)
@calibration_options
@click.option("--samples", type=click.IntRange(min=1), help="How many calibration samples to use; by default the recipe's: 300.")
def convert(source: str, output: Path, report_file: Path | None, **options: Any) -> None:
    """Convert a trained model to FP8.

    SOURCE is a Hugging Face BERT folder, a program saved by torch.export (.pt2), a checkpoint (.pt, .pth, .bin,
    .safetensors, .npz) together with --module, or pkg.mod:factory returning an nn.Module that has its weights.
    Only tracing an nn.Module needs PyTorch. It ends with a report on each layer.

    \b
    fp8np convert minilm/ -o minilm.safetensors --calibration sentences.npz
    fp8np convert net.pt2 -o net.safetensors --calibration images.npz
    fp8np convert resnet.pt -o resnet.safetensors --module nets:resnet \\
                  --example-inputs x.npz --calibration images.npz
    """
    from fp8np._files import replacing
    from fp8np.artifact import save
    from fp8np.ptq.recipe_file import find_recipe, with_settings
    from fp8np.ptq.workflow import quantize_model

    recipe = with_settings(find_recipe(options["recipe"]), options["settings"]).adjusted(
        approach=options["approach"], ops=options["ops"], skip=options["skip"], keep_first_last=options["keep_first_last"]
    )
    graph = read(_converter, source, options)
    with progress() as told:
        result = quantize_model(
            graph, recipe, options["calibration"], recalibration=options["recalibration"], samples=options["samples"], progress=told
        )
    with writing(output):
        save(result.graph, output)
    out = console()
    out.print(result.report.table())
    if report_file is not None:
        with writing(report_file), replacing(report_file) as temporary:
            temporary.write_text(json.dumps(result.report.as_dict(), indent=1) + "\n", encoding="utf-8")
    out.print(f"wrote {output} ({output.stat().st_size:,} bytes)" + (f" and {report_file}" if report_file else ""))


@main.command()
@click.argument("model", type=_SOURCE_FILE)
@click.argument("inputs", type=_SOURCE_FILE)
@click.option("-o", "--output", type=_TARGET, metavar="FILE.npz", help="Where the outputs are written; without it they are only described.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that kernels may use.")
@click.option("--json", "as_json", is_flag=True, help="Describe the outputs as JSON.")
def run(model: Path, inputs: Path, output: Path | None, threads: int | None, as_json: bool) -> None:
    """Run a converted MODEL on a batch.

    INPUTS is an .npz with an array for each input, by name, or an .npy for a model with one input; `fp8np inspect` shows the
    names, shapes and types.
    """
    import time

    from fp8np.data import read_arrays, write_arrays
    from fp8np.graph import named_leaves
    from fp8np.metrics import plain

    loaded = fp8np.load(model)
    arrays = read_arrays(inputs, loaded.inputs)
    start = time.perf_counter()
    with compiling():
        outputs = dict(named_leaves(loaded.run(arrays, threads=threads)))
    seconds = time.perf_counter() - start
    if output is not None:
        with writing(output):
            write_arrays(output, outputs)
    facts = {
        name: {"shape": list(a.shape), "dtype": a.dtype.name, "min": _bound(a, "min"), "max": _bound(a, "max")}
        for name, a in outputs.items()
    }
    if as_json:
        facts = {name: {**fact, "min": plain(fact["min"]), "max": plain(fact["max"])} for name, fact in facts.items()}
        click.echo(json.dumps({"outputs": facts, "seconds": seconds, "written": None if output is None else str(output)}))
        return
    for name, fact in facts.items():
        click.echo(f"{name}: {fact['dtype']}{fact['shape']}, from {fact['min']} to {fact['max']}")
    click.echo(f"ran in {seconds * 1e3:.1f} ms" + (f", wrote {output}" if output else ""))


@main.command()
@click.argument("model", type=_SOURCE_FILE)
@click.option("--graph", "show_graph", is_flag=True, help="Every node, not only those with weights.")
@click.option(
    "--sizes", type=Sizes(), metavar="NAME=N,...", help="Sizes to say the memory of a run at, such as B=1,T=128; by default examples."
)
@click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")
def inspect(model: Path, show_graph: bool, sizes: dict[str, int] | None, as_json: bool) -> None:
    """Show what a converted MODEL computes, how it is quantized, and the memory that a run takes."""
    from fp8np.describe import describe, described_table
    from fp8np.memory import memory

    loaded = fp8np.load(model)
    graph = loaded.graph
    try:
        taken = memory(loaded, sizes or {})
    except InputError:
        # Examples are guesses: a model may need sizes that only its user knows.
        if sizes:
            raise
        taken = None
    facts = describe(graph, model.stat().st_size, taken)
    if as_json:
        click.echo(json.dumps(facts))
        return
    out = console()
    if show_graph:
        out.print(str(graph), markup=False, highlight=False, soft_wrap=True)
    out.print(described_table(facts))


@main.command()
@click.argument("model", type=_SOURCE_FILE)
@measuring_options
@click.option("--reference", type=_SOURCE_FILE, metavar="MODEL", help="Another converted model, whose outputs stand in for labels.")
@click.option("--output", metavar="NAME", help="Which output counts, where there are several: its key or position.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that kernels may use.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(model: Path, data: str, metric: str, reference: Path | None, output: str | None, threads: int | None, as_json: bool) -> None:
    """Measure a converted MODEL on data.

    \b
    fp8np evaluate e4m3.safetensors --data labelled.npz --metric accuracy
    fp8np evaluate e4m3.safetensors --data inputs.npz --metric cosine \\
                   --reference fp32.safetensors
    """
    from fp8np.evaluate import evaluate as measure
    from fp8np.metrics import plain

    with progress() as told:
        result = measure(
            fp8np.load(model),
            data,
            metric,
            reference=None if reference is None else fp8np.load(reference),
            output=output,
            threads=threads,
            progress=told,
        )
    if as_json:
        click.echo(json.dumps({"metric": metric, "value": plain(result.value), "samples": result.samples}))
    else:
        click.echo(f"{metric} {result.value:.6g} on {result.samples} samples")


def _converter() -> Any:
    try:
        from fp8np_converters.source import read_source
    except ImportError as error:  # pragma: no cover - a broken installation
        raise MissingDependencyError("the converters are not installed: pip install fp8np") from error
    return read_source


def _bound(array: Any, which: str) -> float | None:
    return float(getattr(array, which)()) if array.size else None
