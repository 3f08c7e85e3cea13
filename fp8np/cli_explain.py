"""`fp8np explain`: argument parsing and printing, nothing else."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from fp8np import explain as law
from fp8np._numbers import Number, approximately, as_number, is_finite, parse_number, show
from fp8np._terminal import console
from fp8np.errors import FormatError, Fp8npError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.reference import decode

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["explain", "formats_of", "select_formats"]

_COLOURS = ("red", "green", "blue")
_WIDEST = 1000


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("number", required=False)
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="NAME",
    help="A format, a pattern such as '*e4m3*' or 'binary8p4*', or all; may be repeated. By default all but the P3109 family.",
)
@click.option("--code", metavar="BITS", help="Explain this code instead of a number: 0x7f, 0b01111111 or 127. Needs --format.")
@click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")
def explain(number: str | None, formats: tuple[str, ...], code: str | None, as_json: bool) -> None:
    """Show how formats hold a NUMBER: code, neighbours, error, and what each preset makes of it and why.

    NUMBER is taken exactly as written: a decimal, a fraction 1/3, a hexadecimal integer or float 0x1.8p-3, a power 2^-9, inf, nan,
    -0, or the bits of a float as f16:3c00, bf16:3f80, f32:3e99999a or f64:....

    \b
    fp8np explain 0.3
    fp8np explain 465 --format e4m3fn
    fp8np explain --code 0x7f --format 'e4m3*'
    """
    if (number is None) == (code is None):
        raise click.UsageError("Give a number, or --code with --format.")
    if code is not None and not formats:
        raise click.UsageError("--code needs --format: the same bits mean different numbers.")
    chosen = formats_of(formats)
    try:
        if code is not None:
            explanations = [law.explain_code(_code(code), fmt) for fmt in chosen]
        else:
            value = parse_number(str(number))
            explanations = [law.explain(value, fmt) for fmt in chosen]
    except Fp8npError as error:
        raise click.BadParameter(str(error), param_hint="NUMBER" if code is None else "--code") from error
    if as_json:
        click.echo(json.dumps([explanation.as_dict() for explanation in explanations]))
        return
    out = console()
    if number is not None:
        out.print(_heading(number), markup=False, highlight=False)
    if len(explanations) == 1:
        _print_one(out, explanations[0])
    else:
        _print_overview(out, explanations)
        _print_differences(out, explanations)


def formats_of(options: Sequence[str]) -> tuple[FloatFormat, ...]:
    """`select_formats` of what ``--format`` was given; an unknown name is wrong usage."""
    try:
        return select_formats(options)
    except FormatError as error:
        raise click.BadParameter(str(error), param_hint="--format") from error


def select_formats(names: Iterable[str] = ()) -> tuple[FloatFormat, ...]:
    """The formats meant by names and patterns; with none, all but the P3109 family, which has 30.

    Args:
        names: names as `fp8np.get_format` takes them, ``all``, or patterns with ``*`` and ``?`` over canonical and short names.

    Raises:
        FormatError: a name is unknown, or a pattern fits nothing.

    >>> [f.name for f in select_formats(["binary8p4*"])]
    ['binary8p4se', 'binary8p4sf', 'binary8p4ue', 'binary8p4uf']
    """
    found: dict[str, FloatFormat] = {}
    for name in names:
        if name == "all":
            found.update(FORMATS)
        elif "*" in name or "?" in name:
            pattern = name.lower()
            fitting = {f.name: f for f in FORMATS.values() if fnmatch.fnmatch(f.name, pattern) or fnmatch.fnmatch(_short(f), pattern)}
            if not fitting:
                raise FormatError(f"no format is named like {name!r}; known: {', '.join(FORMATS)}")
            found.update(fitting)
        else:
            found[get_format(name).name] = get_format(name)
    return tuple(found.values()) or tuple(f for f in FORMATS.values() if f.name.startswith("float"))


def _short(fmt: FloatFormat) -> str:
    return fmt.name.partition("_")[2] or fmt.name


def _code(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise click.BadParameter(f"expected an integer such as 0x7f, 0b01111111 or 127, got {text!r}", param_hint="--code") from None


def _heading(text: str) -> str:
    x = as_number(text)
    if not is_finite(x) or not x:
        return text
    exact = show(x)
    parts = [text if exact in (text, text.removeprefix("+")) or exact.startswith("≈") or parse_number(exact) != x else f"{text} = {exact}"]
    try:
        nearest = float(x)
    except OverflowError:
        return ", ".join([*parts, "beyond float64"])
    digits = re.sub(r"\.?0+p", "p", nearest.hex())
    if Fraction(nearest) != x:
        parts.append(f"not a float64; the nearest is {digits}")
    elif digits != text:
        parts.append(digits)
    return ", ".join(parts)


def _bits(fmt: FloatFormat, code: int) -> Text:
    from rich.text import Text

    parts = law.code_fields(fmt, code).split(" ")
    colours = _COLOURS[0 if fmt.signed else 1 :]
    text = Text()
    for part, colour in zip(parts, colours, strict=False):
        text.append(part + " ", colour)
    text.rstrip()
    return text


def _hex(code: int) -> str:
    return f"{code:02X}"


def _percent(x: Fraction | None) -> str:
    return "" if x is None else "0" if not x else f"{approximately(100 * x, 3)} %"


def _ulps(x: Fraction | None) -> str:
    return "" if x is None else approximately(x, 3)


def _shown(x: Number) -> str:
    # Powers of two far from 1 are read more easily as such.
    if isinstance(x, Fraction) and x and 1 in (abs(x.numerator), x.denominator):
        n, d = abs(x.numerator), x.denominator
        exponent = n.bit_length() - d.bit_length()
        if abs(exponent) > 12 and Fraction(2) ** exponent == abs(x):
            return f"{'-' if x < 0 else ''}2^{exponent}"
    return show(x)


def _print_overview(out: Console, explanations: Sequence[law.Explanation]) -> None:
    table = _overview(explanations)
    narrow = out.measure(table, options=out.options.update(max_width=_WIDEST)).maximum > out.width
    out.print(_overview(explanations, neighbours=False) if narrow else table)
    if narrow:
        out.print("\nThe neighbours need a wider terminal, or one format.", markup=False, highlight=False)


def _overview(explanations: Sequence[law.Explanation], *, neighbours: bool = True) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    near = ("below", "above") if neighbours else ()
    for title in ("format", "bits", "hex", "value", *near, "rel. error", "ulp", ""):
        # Only the remark is broken into lines; of what is cut off a reader would see half a number.
        table.add_column(title, justify="left" if title in ("format", "bits", "") else "right", no_wrap=bool(title), overflow="fold")
    for e in explanations:
        row: list[Any] = [e.format.name, _bits(e.format, e.code), _hex(e.code), _shown(e.value)]
        row += ["" if end is None else _shown(end.value) for end in ((e.below, e.above) if neighbours else ())]
        table.add_row(*row, _percent(e.relative), _ulps(e.ulps), _remark(e))
    return table


def _remark(e: law.Explanation) -> str:
    kind = "" if e.kind == "normal" else e.kind
    plain = e.note.startswith("rounded") or (kind == "NaN" and e.note == "exact")
    return ", ".join(part for part in (kind, "" if plain else e.note) if part)


def _print_one(out: Console, e: law.Explanation) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    bits = _bits(e.format, e.code)
    table.add_row("format", f"{e.format.name}  ({e.format.source})")
    table.add_row("code", bits.append(f"   0x{_hex(e.code)}", "default"))
    table.add_row("value", f"{_shown(e.value)}   {_formula(e)}")
    for title, near in (("below", e.below), ("above", e.above)):
        if near is not None:
            table.add_row(title, f"{_shown(near.value)}   0x{_hex(near.code)}, {approximately(near.distance)} away")
    if e.error:
        relative = "" if e.relative is None else f", {_percent(e.relative)}"
        table.add_row("error", f"{approximately(e.error)}{relative}, {_ulps(e.ulps)} ulp")
    table.add_row("", e.note)
    out.print(table)
    _print_differences(out, [e])


def _formula(e: law.Explanation) -> str:
    fmt = e.format
    if e.kind not in ("normal", "subnormal"):
        return e.kind
    magnitude = e.code & fmt.magnitude_mask
    field, mantissa = magnitude >> fmt.mantissa_bits, magnitude & ((1 << fmt.mantissa_bits) - 1)
    sign = "-" if e.code & fmt.sign_bit else ""
    hidden, exponent = (1, field - fmt.bias) if e.kind == "normal" else (0, fmt.min_exponent)
    fraction = f".{mantissa:0{fmt.mantissa_bits}b}" if fmt.mantissa_bits else ""
    return f"= {sign}2^{exponent} * {hidden}{fraction}b  ({e.kind})"


def _print_differences(out: Console, explanations: Sequence[law.Explanation]) -> None:
    from rich.table import Table

    several = len(explanations) > 1
    # Side by side, formats show what presets always do; by chance they differ at nearly every number.
    shown = {e.format.name: [o for o in e.outcomes if len(o.codes) == 1 or not several] for e in explanations}
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title="Presets differ", title_style="bold")
    for title in (("format",) if several else ()) + ("result", "preset", "why"):
        table.add_column(title, no_wrap=title in ("format", "result"), ratio=None if title in ("format", "result") else 1)
    for e in explanations:
        outcomes = shown[e.format.name]
        for index, outcome in enumerate(outcomes if len(outcomes) > 1 else ()):
            lead = [e.format.name if index == 0 else ""] if several else []
            table.add_row(*lead, _results(e.format, outcome), ", ".join(outcome.presets), outcome.why)
    if table.row_count:
        out.print()
        out.print(table, highlight=False)
    random = sorted({name for e in explanations for o in e.outcomes if len(o.codes) > 1 for name in o.presets})
    if several and random:
        out.print(f"\nNot shown, since their random bits decide: {', '.join(random)}", markup=False, highlight=False)
    if not several and explanations[0].agreed:
        out.print(f"\nAll agree: {', '.join(explanations[0].outcomes[0].presets)}", markup=False, highlight=False)


def _results(fmt: FloatFormat, outcome: law.Outcome) -> str:
    def share(p: Fraction) -> str:
        return "" if p == 1 else f" in {p.numerator * (256 // p.denominator)} of 256"

    return "\n".join(f"{_hex(code)} {_shown(decode(fmt, code))}{share(p)}" for code, p in outcome.codes)
