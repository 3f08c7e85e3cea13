"""`fp8np report` and `fp8np diff`: argument parsing and printing, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fp8np._terminal import Target, console, progress, writing

__all__ = ["diff", "report"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_TARGET = Target()
_DATA_HELP = ".npz, .npy, a folder of them, or pkg.mod:factory giving batches."


@click.command()
@click.argument("model", type=_FILE)
@click.option("--against", type=_FILE, metavar="FP32", help="The same model, converted by the recipe fp32.")
@click.option("--data", metavar="DATA", help=f"What it is run on: {_DATA_HELP} Without it nothing is run.")
@click.option("--samples", type=click.IntRange(min=1), default=64, show_default=True, help="How many samples to use, in whole batches.")
@click.option("--html", "page", type=_TARGET, metavar="FILE", help="Where the page is written.")
@click.option("--json", "facts", type=_TARGET, metavar="FILE", help="Where the same facts are written as JSON.")
def report(model: Path, against: Path | None, data: str | None, samples: int, page: Path | None, facts: Path | None) -> None:
    """Look inside a converted MODEL: a page on what each layer's formats cost, and what would help.

    The page is one file that needs no network: a table of the layers that sorts, histograms of tensors above the values of their
    formats, the error along the depth of the network, and choices that were tried where it hurts most.

    \b
    fp8np report e4m3.safetensors --against fp32.safetensors \\
                 --data inputs.npz --html report.html
    """
    import fp8np
    from fp8np.data import load_batches
    from fp8np.inspection.facts import inspect_model
    from fp8np.inspection.page import as_html

    if page is None and facts is None:
        raise click.UsageError("Nothing to write: give --html FILE, --json FILE, or both.")
    loaded = fp8np.load(model)
    reference = None if against is None else fp8np.load(against)
    batches = None if data is None else load_batches(data, inputs=loaded.inputs)
    with progress() as told:
        found = inspect_model(loaded, reference, batches, samples=samples, progress=told)
    sources = [] if against is None else [f"against {against.name}"]
    sources += [] if data is None else [f"on {found.samples} samples of {data}"]
    if page is not None:
        _write(page, as_html(found, model.name, sources=sources))
    if facts is not None:
        _write(facts, json.dumps(found.as_dict(), indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    from fp8np._files import replacing

    with writing(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"wrote {path} ({path.stat().st_size:,} bytes)")


@click.command()
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option("--data", required=True, metavar="DATA", help=f"What both are run on: {_DATA_HELP}")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Differences up to this part of the largest magnitude of SECOND's value are none.",
)
@click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True, help="How many samples to use, in whole batches.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every node.")
def diff(first: Path, second: Path, data: str, tolerance: float, samples: int, as_json: bool) -> None:
    """Find the first node where two converted models part, and by how much.

    Both are run on the same data, and every node that both have is compared, in the order of FIRST.

    \b
    fp8np diff e4m3.safetensors fp32.safetensors --data inputs.npz
    fp8np diff old.safetensors new.safetensors --data inputs.npz --tolerance 1e-5

    Exit codes: 0 compared, whether they are equal or not ("equal" in the JSON says which), 1 failed, 2 wrong usage.
    """
    import fp8np
    from fp8np.data import load_batches
    from fp8np.difference import compare, difference_table

    a, b = fp8np.load(first), fp8np.load(second)
    with progress() as told:
        found: Any = compare(a, b, load_batches(data, inputs=a.inputs), tolerance=tolerance, samples=samples, progress=told)
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        console().print(difference_table(found), highlight=False)
