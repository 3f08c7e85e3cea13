"""`fp8np warmup`: argument parsing and printing, nothing else."""

from __future__ import annotations

from pathlib import Path

import click

from fp8np._terminal import Sizes, compiling

__all__ = ["warmup"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("models", nargs=-1, type=_FILE, metavar="[MODEL]...")
@click.option(
    "--sizes",
    multiple=True,
    type=Sizes(),
    metavar="NAME=N,...",
    help="Sizes that the models will be run at, such as B=1,T=128; may be repeated. By default 1 for a first axis, 128 for others.",
)
def warmup(models: tuple[Path, ...], sizes: tuple[dict[str, int], ...]) -> None:
    """Compile kernels ahead and keep them, so that the first run of a process need not.

    Without a MODEL, everything that any model can run, and the conversions of arrays; with models, what these run.

    \b
    fp8np warmup
    fp8np warmup model.safetensors --sizes B=1,T=16 --sizes B=32,T=128

    Kernels are kept in FP8NP_CACHE, by default in the user's cache directory, for this CPU and this version.

    Exit codes: 0 done, 1 failed, 2 wrong usage.
    """
    import fp8np
    from fp8np.warmup import warm_kernels, warm_models

    if sizes and not models:
        raise click.UsageError("--sizes are those of a MODEL: name one.")
    with compiling():
        warmed = warm_models([fp8np.load(model) for model in models], sizes) if models else warm_kernels()
    if warmed.made:
        what = "1 kernel" if warmed.made == 1 else f"{warmed.made} kernels"
        click.echo(f"compiled {what} in {warmed.seconds:.1f} s, kept in {warmed.directory}")
    else:
        click.echo(f"nothing to compile: all kernels are in {warmed.directory}")
