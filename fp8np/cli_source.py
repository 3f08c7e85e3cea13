"""What commands that read a trained model share: the options that say how, and how they are listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fp8np.cli_recipe import SET
from fp8np.errors import InputError

if TYPE_CHECKING:
    from fp8np.graph import Graph

__all__ = ["READING", "Sectioned", "calibration_options", "measuring_options", "read", "reading_options", "recipe_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

READING: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Reading a PyTorch module": ("module", "key", "example_inputs", "dynamic_axes"),
        "Reading a BERT folder": ("pooling",),
    }
)
"""Sections for `reading_options`."""


class Sectioned(click.Command):
    """Lists options by what they are about.

    Args:
        sections: title -> names of parameters; the others are listed first.
    """

    def __init__(self, *args: Any, sections: Mapping[str, tuple[str, ...]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section after the other."""
        options = {p.name: p.get_help_record(ctx) for p in self.get_params(ctx) if isinstance(p, click.Option)}
        sections = {title: [options.pop(name) for name in names] for title, names in self._sections.items()}
        for title, records in {"Options": list(options.values()), **sections}.items():
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def _together(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorated(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


reading_options = _together(
    click.option("--module", metavar="PKG.MOD:FACTORY", help="Function returning the nn.Module that SOURCE's weights belong to."),
    click.option("--key", metavar="A.B", help="Where the weights are inside the checkpoint, if not found by themselves."),
    click.option("--example-inputs", type=_FILE, metavar="FILE.npz", help="Inputs to trace it with, an array for each by name."),
    click.option(
        "--dynamic-axis",
        "dynamic_axes",
        multiple=True,
        metavar="INPUT:AXIS=NAME",
        help="An axis whose size may vary, e.g. ids:1=T; may be repeated. By default the first axis of each input.",
    ),
    click.option(
        "--pooling", type=click.Choice(["mean"]), help="Add sentence embeddings, the mean of the last hidden states, to the outputs."
    ),
)
"""How SOURCE is read: for `read`."""

recipe_options = _together(
    click.option(
        "--recipe",
        default="e4m3",
        show_default=True,
        metavar="NAME|FILE",
        help="fp32, e4m3, e3m4, mixed, e5m2, int8, w8, auto, each with -static or -dynamic after it; or a recipe file (.toml, .json).",
    ),
    SET,
)
"""A recipe, and keys that are changed: ``recipe``, ``settings``."""

measuring_options = _together(
    click.option(
        "--data",
        required=True,
        metavar="DATA",
        help="Inputs and labels: .npz with an array 'labels', a folder of them, or pkg.mod:factory giving (inputs, labels).",
    ),
    click.option(
        "--metric",
        required=True,
        metavar="NAME",
        help="accuracy, spearman, cosine, psnr, sqnr, eer, or pkg.mod:function taking all outputs and all labels.",
    ),
)
"""What a model is measured by: ``data``, ``metric``."""

calibration_options = _together(
    click.option(
        "--calibration",
        metavar="DATA",
        help="Inputs like those the model will see: .npz, .npy, a folder of them, or pkg.mod:factory giving batches. "
        "Needed where activation scales are static, and by all that measures: SmoothQuant, bias correction, auto, ...",
    ),
    click.option("--recalibration", metavar="DATA", help="Inputs for the re-calibration of BatchNorm; by default those for calibration."),
)
"""Data that quantizing looks at: ``calibration``, ``recalibration``."""


def read(converter: Callable[[], Any], source: str, options: Mapping[str, Any]) -> Graph:
    """The graph of SOURCE.

    Args:
        converter: gives `fp8np_converters.source.read_source`.
        source: what the user named.
        options: those of `reading_options`, and others.
    """
    graph: Graph = converter()(
        source,
        module=options["module"],
        key=options["key"],
        example_inputs=options["example_inputs"],
        dynamic=_dynamic_axes(options["dynamic_axes"]),
        pooling=options["pooling"],
    )
    return graph


def _dynamic_axes(texts: Sequence[str]) -> dict[str, dict[int, str]] | None:
    from fp8np._sizes import dynamic_axes

    try:
        return dynamic_axes(texts)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="--dynamic-axis") from error
