"""Recipes: what to quantize, into which formats, where the scales come from, and what is done against the loss.

Data only: `fp8np.ptq.assign` reads it for each node, `fp8np.ptq.workflow` for the whole, `fp8np.ptq.recipe_file` writes it down.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fp8np.errors import FormatError, RecipeError
from fp8np.formats import FloatFormat, get_format
from fp8np.integers import INT8, IntegerFormat
from fp8np.layers._op import OPS
from fp8np.observers import parse_calibrator

__all__ = [
    "APPROACHES",
    "COVERAGE",
    "EXTENDED_OPS",
    "RECIPES",
    "STANDARD_OPS",
    "Format",
    "Override",
    "Recipe",
    "check_op",
    "format_named",
    "get_recipe",
    "paper_name",
]

Format = FloatFormat | IntegerFormat

APPROACHES = ("static", "dynamic", "direct", "auto")

STANDARD_OPS = frozenset(
    {"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear", "embedding", "embedding_bag"},
)
"""Operators of the standard scheme (arXiv 2309.14592, section 3.1)."""

EXTENDED_OPS = STANDARD_OPS | {
    *("matmul", "addmm", "scaled_dot_product_attention"),
    *("add", "mul", "div", "batch_norm", "layer_norm"),
    *("lstm", "lstm_cell", "gru", "gru_cell"),
}
"""Operators of the extended scheme (section 3.2), attention's two products and recurrent cells among them."""

COVERAGE: Mapping[str, frozenset[str]] = MappingProxyType({"standard": STANDARD_OPS, "extended": EXTENDED_OPS})
"""Names for sets of ops, which stand among the names of ops."""

_KEEP = MappingProxyType({"auto": "auto", "yes": True, "no": False})
_PAPER: Mapping[str, str] = MappingProxyType({"e4m3": "float8_e4m3fn", "e3m4": "float8_e3m4fn", "e5m2": "float8_e5m2"})
_GRANULARITY = re.compile(r"tensor|channel|group [1-9]\d*|block [1-9]\d*x[1-9]\d*")


def format_named(name: Any) -> Format | None:
    """The format that a recipe means: the paper's three by its names, "int8", None for "fp32", or any signed format by its own.

    Raises:
        FormatError: it is unknown.

    >>> format_named("e4m3").name, format_named("float8_e4m3").name, format_named("fp32")
    ('float8_e4m3fn', 'float8_e4m3', None)
    """
    if name is None or isinstance(name, FloatFormat | IntegerFormat):
        return name
    if name in ("fp32", "float32"):
        return None
    if name == INT8.name:
        return INT8
    return get_format(_PAPER.get(name, name) if isinstance(name, str) else name)


def paper_name(fmt: Format | None) -> str:
    """How a recipe names a format: the inverse of `format_named`.

    >>> paper_name(format_named("e3m4")), paper_name(format_named("float8_e4m3fnuz")), paper_name(None)
    ('e3m4', 'float8_e4m3fnuz', 'fp32')
    """
    if fmt is None:
        return "fp32"
    return next((short for short, name in _PAPER.items() if name == fmt.name), fmt.name)


@dataclass(frozen=True)
class Override:
    """What a recipe says of some nodes only. Of those that match a node, its name counts before its origin, then a pattern, then an op.

    Attributes:
        match: a node's name or origin; ``*`` and ``?`` match. Or:
        op: an op's name.
        keep: the nodes stay in float32.
        weights, activations, approach, weight_granularity, activation_granularity: as in `Recipe`; None leaves the recipe's. Formats
            are given by name; "fp32" for activations quantizes weights only. Naming a format covers nodes that the recipe would leave
            alone.
        place: where it was written, for messages.
    """

    match: str = ""
    op: str = ""
    keep: bool | None = None
    weights: str | None = None
    activations: str | None = None
    approach: str | None = None
    weight_granularity: str | None = None
    activation_granularity: str | None = None
    place: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        where = self.place or "override"
        if bool(self.match) == bool(self.op):
            raise RecipeError(f"{where}: expected either match = 'PATTERN' or op = 'OP'")
        said = {name: value for name, value in self.settings.items() if name != "keep"}
        if not said and self.keep is None:
            raise RecipeError(f"{where}: says nothing about {self.subject}; give keep = true, or one of {', '.join(_SETTINGS)}")
        if said and self.keep:
            raise RecipeError(f"{where}: contradicts itself: keep = true leaves {self.subject} in float32, {next(iter(said))} quantizes it")
        weights, activations = (_valid_format(where, name, getattr(self, name)) for name in ("weights", "activations"))
        if self.weights is not None and weights is None and activations is not None:
            raise RecipeError(f"{where}: activations are quantized where they meet quantized weights, and weights = {self.weights!r}")
        _valid_words(where, self)

    @property
    def subject(self) -> str:
        """What it is about, in words."""
        return repr(self.match) if self.match else f"op {self.op}"

    @property
    def settings(self) -> dict[str, Any]:
        """What it says, by the names of its attributes."""
        return {name: getattr(self, name) for name in ("keep", *_SETTINGS) if getattr(self, name) is not None}


_SETTINGS = ("weights", "activations", "approach", "weight_granularity", "activation_granularity")


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Attributes:
        name: of the recipe.
        weights: format of the weights; None leaves them, and so everything, in float32.
        activations: format of the activations that meet quantized weights; None quantizes weights only.
        approach: where scales come from. "static": activation scales are found by calibration and fixed; "dynamic": found
            anew at each run; "direct": every scale, of weights too, is 1, as the paper has it for E5M2; "auto": static in
            convolutional networks, dynamic in others, as the paper has it for INT8.
        ops: names of the ops to quantize; "standard" and "extended" stand for sets (`COVERAGE`).
        keep_first_last: whether the first convolution and the last linear stay in float32; "auto": in convolutional
            networks only.
        skip: patterns (``*`` and ``?`` match) of nodes, by name or origin, that stay in float32.
        overrides: what holds for some nodes only.
        weight_granularity: how many scales weights have: "tensor", "channel" (one for each output channel, row of an embedding or column
            of a matrix), "group N" (each N in a row along the inner length), "block NxM".
        activation_granularity: "tensor", or "token": one for each index of all axes but the last, where linear layers and products read;
            dynamic scales only.
        calibrator: which range of an activation counts: "max", "percentile P", "mse", "kl", "moving_average M"; see `fp8np.observers`.
        weight_calibrator: which range of a weight counts: "max" or "mse".
        power_of_two: scales are rounded up to powers of two.
        samples: how many calibration samples are used; None: all.
        batch_norm: re-calibrate BatchNorm on the quantized model, with so many samples (the tools of the paper take 3,000); 0: do not.
        batch_norm_paired: whether only what differs from the float32 model on these samples counts; see `fp8np.ptq.batch_norm`.
        equalize: even out the channels' ranges of convolutions that follow each other (arXiv 1906.04721), before all else.
        smooth: SmoothQuant (arXiv 2211.10438): how much of the activations' range goes into the weights, 0 to 1; "auto" searches for
            each layer; None: do not.
        rounding: "nearest", or "adaptive": each weight goes up or down so that the layer's output errs least (after arXiv 2004.10568).
        correct_bias: take the mean error of each output channel off the bias (arXiv 1906.04721, section 4.2).
        candidates: if any, the format of each tensor is chosen among these, by measured error: see `fp8np.ptq.auto`.

    Formats may be given by name.

    Raises:
        RecipeError: an attribute has a value that it cannot have. FormatError: a format is unknown.

    >>> get_recipe("e4m3").activations.max
    448.0
    """

    name: str
    weights: Format | None
    activations: Format | None
    approach: str = "static"
    ops: frozenset[str] = STANDARD_OPS
    keep_first_last: bool | str = "auto"
    skip: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    weight_granularity: str = "channel"
    activation_granularity: str = "tensor"
    calibrator: str = "max"
    weight_calibrator: str = "max"
    power_of_two: bool = False
    samples: int | None = 300
    batch_norm: int = 0
    batch_norm_paired: bool = True
    equalize: bool = False
    smooth: float | str | None = None
    rounding: str = "nearest"
    correct_bias: bool = False
    candidates: tuple[FloatFormat, ...] = ()

    def __post_init__(self) -> None:
        where = f"recipe {self.name!r}"
        for role in ("weights", "activations"):
            object.__setattr__(self, role, _valid_format(where, role, getattr(self, role)))
        formats = [_valid_format(where, "candidates", name) for name in self.candidates]
        if None in formats:
            raise RecipeError(f"{where}: expected candidates to be formats; what stays in float32 is said by ops, skip or an override")
        if INT8 in formats:
            raise RecipeError(f"{where}: candidates are formats of floats; {INT8} meets itself only: say it of nodes in an override")
        object.__setattr__(self, "candidates", tuple(dict.fromkeys(formats)))
        object.__setattr__(self, "ops", expanded(self.ops))
        object.__setattr__(self, "skip", tuple(self.skip))
        object.__setattr__(self, "overrides", tuple(self.overrides))
        if self.weights is None and self.activations is not None:
            raise RecipeError(f"{where}: activations are quantized where they meet quantized weights; weights has no format")
        _valid_words(where, self)
        if not isinstance(self.keep_first_last, bool) and self.keep_first_last != "auto":
            raise RecipeError(f"{where}: expected keep_first_last to be 'auto', True or False, got {self.keep_first_last!r}")
        for role in ("calibrator", "weight_calibrator"):
            try:
                object.__setattr__(self, role, str(parse_calibrator(getattr(self, role))))
            except RecipeError as error:
                raise RecipeError(f"{where}: {role}: {error}") from None
        if self.weight_calibrator not in ("max", "mse"):
            raise RecipeError(f"{where}: expected weight_calibrator to be 'max' or 'mse', got {self.weight_calibrator!r}")
        if self.rounding not in ("nearest", "adaptive"):
            raise RecipeError(f"{where}: expected rounding to be 'nearest' or 'adaptive', got {self.rounding!r}")
        for role, least in (("samples", 1), ("batch_norm", 0)):
            value = getattr(self, role)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise RecipeError(f"{where}: expected {role} to be a whole number from {least} on, got {value!r}")
        for role in ("power_of_two", "batch_norm_paired", "equalize", "correct_bias"):
            if not isinstance(getattr(self, role), bool):
                raise RecipeError(f"{where}: expected {role} to be true or false, got {getattr(self, role)!r}")
        number = isinstance(self.smooth, int | float) and not isinstance(self.smooth, bool)
        if self.smooth not in (None, "auto") and not (number and 0 <= float(self.smooth) <= 1):
            raise RecipeError(f"{where}: expected smooth to be a number from 0 to 1, or 'auto', got {self.smooth!r}")

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def adjusted(
        self,
        *,
        approach: str | None = None,
        ops: str | None = None,
        skip: Iterable[str] = (),
        keep_first_last: str | None = None,
    ) -> Recipe:
        """The recipe as a command line changes it.

        Args:
            approach: see the class; None leaves it.
            ops: names separated by commas, to be covered instead of the recipe's; with + or - before a name it is added
                or taken away. None leaves them.
            skip: more patterns.
            keep_first_last: "auto", "yes" or "no"; None leaves it.

        Raises:
            RecipeError: an argument is not one of these.

        >>> sorted(get_recipe("e4m3").adjusted(ops="linear,embedding").ops)
        ['embedding', 'linear']
        >>> get_recipe("e4m3").adjusted(ops="+lstm,-linear").ops ^ STANDARD_OPS == {"lstm", "linear"}
        True
        """
        if keep_first_last is not None and keep_first_last not in _KEEP:
            raise RecipeError(f"recipe {self.name!r}: expected keep_first_last to be one of {', '.join(_KEEP)}, got {keep_first_last!r}")
        return self.replace(
            approach=self.approach if approach is None else approach,
            ops=self.ops if ops is None else adjusted_ops(self.ops, [name.strip() for name in ops.split(",") if name.strip()]),
            skip=(*self.skip, *skip),
            keep_first_last=self.keep_first_last if keep_first_last is None else _KEEP[keep_first_last],
        )


def _valid_format(where: str, role: str, name: Any) -> Format | None:
    try:
        fmt = format_named(name)
    except FormatError as error:
        raise type(error)(f"{where}: {role}: {error}") from error
    if isinstance(fmt, FloatFormat) and not fmt.signed:
        raise RecipeError(f"{where}: {role} need a format with a sign and a zero, which {fmt} has not")
    return fmt


def _valid_words(where: str, said: Recipe | Override) -> None:
    silent = (None,) if isinstance(said, Override) else ()
    if said.approach not in (*APPROACHES, *silent):
        raise RecipeError(f"{where}: expected approach to be one of {', '.join(APPROACHES)}, got {said.approach!r}")
    for role, known in (("weight_granularity", _GRANULARITY), ("activation_granularity", re.compile("tensor|token"))):
        text = getattr(said, role)
        if text not in silent and not (isinstance(text, str) and known.fullmatch(text)):
            shown = "'tensor', 'channel', 'group N' or 'block NxM'" if known is _GRANULARITY else "'tensor' or 'token'"
            raise RecipeError(f"{where}: expected {role} to be {shown}, got {text!r}")
    if said.activation_granularity == "token" and said.approach in ("static", "direct"):
        raise RecipeError(f"{where}: a token's scale is found at each run: activation_granularity = 'token' needs approach = 'dynamic'")


def check_op(where: str, name: str) -> None:
    """Does nothing if an op of this name can be quantized.

    Raises:
        RecipeError: it cannot, or there is none.
    """
    possible = sorted(op for op, row in OPS.items() if row.quantizable)
    if name not in possible:
        close = difflib.get_close_matches(name, possible, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise RecipeError(f"{where}: {name!r} is not an op that can be quantized; these can: {', '.join(possible)}{hint}")


def expanded(ops: Iterable[str]) -> frozenset[str]:
    """Names of ops, "standard" and "extended" replaced by the ops that they stand for."""
    return frozenset(op for name in ops for op in COVERAGE.get(name, {name}))


def adjusted_ops(ops: frozenset[str], names: Iterable[str]) -> frozenset[str]:
    """The ops that `names` say instead of `ops`; or, where each name has + or - before it, `ops` with these added or taken away.

    Raises:
        RecipeError: some names have + or - before them and some have not.
    """
    given = list(names)
    signed = [name for name in given if name[:1] in ("+", "-")]
    if signed and len(signed) < len(given):
        raise RecipeError(f"ops {','.join(given)!r}: either every name has + or - before it, or none")
    if not signed:
        return expanded(given)
    return (ops | expanded(n[1:] for n in signed if n[0] == "+")) - expanded(n[1:] for n in signed if n[0] == "-")


def _rows(*rows: Recipe) -> Mapping[str, Recipe]:
    return MappingProxyType({row.name: row for row in rows})


def _uniform(name: str, approach: str = "static") -> Recipe:
    return Recipe(name, format_named(name), format_named(name), approach)


RECIPES: Mapping[str, Recipe] = _rows(
    Recipe("fp32", None, None),
    _uniform("e4m3"),
    _uniform("e3m4"),
    Recipe("mixed", format_named("e3m4"), format_named("e4m3")),
    _uniform("e5m2", "direct"),
    _uniform("int8", "auto"),
    Recipe("w8", format_named("e3m4"), None),
    Recipe(
        "auto",
        format_named("e4m3"),
        format_named("e4m3"),
        candidates=tuple(map(get_format, _PAPER.values())),
        batch_norm=128,
    ),
)
"""Every recipe by name. A new one is a row. "NAME-static" and "NAME-dynamic" are the same with another approach."""


def get_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe of a name; a recipe is returned as it is.

    Raises:
        RecipeError: the name is unknown.

    >>> get_recipe("mixed-dynamic").approach
    'dynamic'
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in RECIPES:
        return RECIPES[recipe]
    base, _, approach = str(recipe).rpartition("-")
    if base in RECIPES and approach in APPROACHES and RECIPES[base].weights is not None:
        return RECIPES[base].replace(name=recipe, approach=approach)
    close = difflib.get_close_matches(str(recipe).lower(), RECIPES, n=2)
    known = f"known: {', '.join(RECIPES)}, each with -static or -dynamic after it; or a file, NAME.toml"
    hint = f"did you mean {' or '.join(close)}?" if close else known
    raise RecipeError(f"unknown recipe {recipe!r}; {hint}")
