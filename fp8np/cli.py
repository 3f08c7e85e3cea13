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
@click.option("--dynamic-axis", "dynamic_axes", multiple=True, metavar="INPUT:AXIS=NAME", help="An axis of an input that may vary, e.g. ids:1=T.")
@click.option("--pooling", type=click.Choice(["mean"]), help="For a BERT folder: give sentence embeddings instead of hidden states.")
@click.option("--recipe", default="e4m3", show_default=True, metavar="NAME", help="fp32, e4m3, e3m4 or e5m2.")
@click.option("--approach", type=click.Choice(["static", "dynamic"]), help="Where activation scales come from; static needs --calibration.")
@click.option("--ops", metavar="OP,OP", help="Quantize these op types instead of the recipe's; +OP adds, -OP removes one.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="Leave nodes of this name alone (* and ? match).")
@click.option("--keep-first-last", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
              help="Keep the first convolution and the last linear in FP32; auto: in convolutional networks.")
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
