"""Vectors for others: conversion tables and products as files that an RTL test bench, a C program or NumPy can read.

All codes and sums come from the law (`fp8np.reference`, `fp8np.reference_sum`), not from the kernels. The same version writes the
same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fp8np
from fp8np import policy, reference
from fp8np._files import replacing
from fp8np.accumulators import ACCUMULATORS, Accumulator
from fp8np.data import Progress, write_arrays
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.policy import ROUNDING, STOCHASTIC, Policy
from fp8np.reference_sum import dot
from fp8np.verify.cases import all_16_bit, drawn, inputs, product_formats
from fp8np.verify.law import law
from fp8np.verify.runs import conversions, label

__all__ = ["export_vectors"]

Array = npt.NDArray[Any]

README = """\
# FP8 vectors of fp8np {version}

Everything here is computed by exact rational arithmetic from the definition of each format, policy and accumulator; nothing is
copied from a library or a device. `index.json` lists every file with its columns and its SHA-256.

Each table comes twice: as `.npz` (NumPy, no pickles) and as `.hex`: a header of `//` comments, then one word a line in hexadecimal
digits, as Verilog's `$readmemh` reads it. `_` separates the fields of a word and counts for nothing. The leftmost field is in the
most significant bits; a code takes two digits, also where the format has fewer bits.

    reg [WIDTH-1:0] vectors [0:WORDS-1];               // both are in the header of the file, with the width of each field
    initial $readmemh("encode/FORMAT_SOURCE.hex", vectors);
    assign {{bits, code_1, code_2}} = vectors[i];        // and what each code is

## decode/FORMAT
The float32 bits of the value of each code; line = code. npz: `values`. Any NaN stands for NaN.

## encode/FORMAT_SOURCE
The codes of numbers of a source type: `input_code_code_...`, a code for each policy. npz: `inputs` (bits), `codes` (inputs, policies).
`float16` and `bfloat16`: all 65,536, line = bits. `float32` and `float64`: every value and every middle of the format with its
neighbours on both sides (m (1 +- 2^-k) for k = 26, 30, 40, 52 too), numbers spread over the range, zeros, infinities, NaNs.
A policy is written `overflow, rounding, nan, ... (presets that are this policy)`; the last section has their meaning.

## products/ACCUMULATOR_A_B_CASE
Dot products, one a line: `a[0]a[1]..a[K-1]_b[0]b[1]..b[K-1]_c_d`: d = c + sum a[k] b[k], c and d the bits of float32. npz: `a` and `b`
(lines, K), `c`, `d`. As a matrix product take any line as a row of A and a column of B.
Cases: `narrow`: products of similar size, which cancel; `wide`: of all sizes; `special`: of all codes, NaN and infinity among them;
`chain`: several groups of the accumulator and a group that is not full; `promoted`: with the promotion interval in the header.
"A" and "B" are the formats. NaN has the bits that the header names; for accumulators that no hardware defines any NaN will do.

| accumulator | rule | source | compared with |
|---|---|---|---|
{accumulators}

The fields of a rule are those of `fp8np.accumulators.Accumulator`.

## Policies
```text
{policies}
```
"""


@dataclass(frozen=True)
class _Table:
    """A file in both forms: the fields of a word from left to right, each (lines,) or (lines, n) of unsigned integers."""

    path: str
    about: str
    fields: tuple[Array, ...]
    arrays: Mapping[str, Array]
    facts: Mapping[str, Any]


def export_vectors(
    folder: str | os.PathLike[str],
    formats: Iterable[Any] | None = None,
    *,
    accumulators: Iterable[Accumulator] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes conversion tables and products, as npz and as text for ``$readmemh``, with a README that explains them.

    Args:
        folder: where to; it is made if need be. Files of the same name are replaced; those of an earlier export that this one
            does not write are removed.
        formats: names or formats. None means all of the table (180 MB).
        accumulators: whose products to write. None means all of `fp8np.accumulators.ACCUMULATORS` whose bits are laid down.
        progress: called with (what is written, tables done, None).

    Returns:
        The files, README.md first.

    Raises:
        FormatError: a format is unknown. OSError: the folder cannot be written.

    >>> import tempfile
    >>> files = export_vectors(tempfile.mkdtemp(), ["float4_e2m1fn"], accumulators=[])
    >>> [path.name for path in files[:4]]
    ['README.md', 'index.json', 'float4_e2m1fn.hex', 'float4_e2m1fn.npz']
    >>> files[2].read_text().splitlines()[-1]  # -6
    'c0c00000'
    """
    target = Path(folder)
    fmts = [get_format(f) for f in (FORMATS.values() if formats is None else formats)]
    sums = [how for how in (ACCUMULATORS.values() if accumulators is None else accumulators) if how.kind != "fp32"]
    index: dict[str, Any] = {}
    files: list[Path] = []
    for done, table in enumerate(_tables(fmts, sums)):
        if progress is not None:
            progress(table.path, done, None)
        (target / table.path).parent.mkdir(parents=True, exist_ok=True)
        for suffix, write in ((".hex", _write_text), (".npz", _write_npz)):
            path = target / f"{table.path}{suffix}"
            write(path, table)
            index[f"{table.path}{suffix}"] = dict(table.facts) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            files.append(path)
    target.mkdir(parents=True, exist_ok=True)
    _remove_older(target, index)
    rules = "\n".join(f"| {how.name} | {_rule(how)} | {how.source} | {how.verified or 'its definition'} |" for how in sums)
    readme = README.format(version=fp8np.__version__, accumulators=rules, policies=(policy.__doc__ or "").strip())
    return [_write(target / "README.md", readme), _write(target / "index.json", json.dumps(index, indent=1) + "\n"), *files]


def _remove_older(target: Path, index: dict[str, Any]) -> None:
    # What an earlier export wrote here and this one did not: it would look as if it belonged to the new index.
    try:
        older = json.loads((target / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for name in set(older) - set(index) if isinstance(older, dict) else ():
        path = target / name
        if path.is_file() and path.resolve().is_relative_to(target.resolve()):
            path.unlink()


def _write(path: Path, text: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def _write_npz(path: Path, table: _Table) -> None:
    write_arrays(path, table.arrays)


def _write_text(path: Path, table: _Table) -> None:
    widths = [field.dtype.itemsize * 8 * (field.shape[1] if field.ndim == 2 else 1) for field in table.fields]
    header = [table.about, f"{len(table.fields[0])} words of {sum(widths)} bits; fields of {', '.join(map(str, widths))} bits"]
    header += [f"{key}: {value}" for key, value in table.facts.items() if not isinstance(value, list)]
    header += [f"code_{i + 1}: {name}" for i, name in enumerate(table.facts.get("policies", []))]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write("".join(f"// {line}\n" for line in header).encode("utf-8"))
        file.write(_words(table.fields))


_DIGITS = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), np.uint8).reshape(256, 2)


def _words(fields: tuple[Array, ...]) -> bytes:
    """A line for each word."""
    lines = len(fields[0])
    parts = []
    for i, field in enumerate(fields):
        big = np.ascontiguousarray(field, field.dtype.newbyteorder(">")).reshape(lines, -1).view(np.uint8)
        parts += [_DIGITS[big].reshape(lines, -1), np.full((lines, 1), ord("\n" if i == len(fields) - 1 else "_"), np.uint8)]
    return np.concatenate(parts, axis=1).tobytes()


def _tables(fmts: list[FloatFormat], sums: list[Accumulator]) -> Iterator[_Table]:
    for fmt in fmts:
        yield _decoding(fmt)
        yield from _encodings(fmt)
    for how in sums:
        for a_format, b_format in product_formats(how):
            if a_format in fmts and b_format in fmts:
                yield from _products(how, a_format, b_format)


# -- conversions ------------------------------------------------------------------------------------------------------


def _decoding(fmt: FloatFormat) -> _Table:
    values = np.array([float(reference.decode(fmt, code)) for code in range(1 << fmt.bits)], np.float32)
    return _Table(f"decode/{fmt}", f"{fmt}: the float32 value of each code", (values.view(np.uint32),), {"values": values}, {})


def _columns(fmt: FloatFormat) -> dict[Policy, tuple[str, ...]]:
    """Presets, and every rounding with both common overflow policies."""
    directed = [Policy(overflow, rounding) for overflow in ("saturate", "ieee") for rounding in ROUNDING if rounding not in STOCHASTIC]
    return dict(conversions(fmt)) | {policy: () for policy in directed if policy not in conversions(fmt)}


def _encodings(fmt: FloatFormat) -> Iterator[_Table]:
    for source in ("float16", "bfloat16"):
        # The numbers of all presets: every rounding for all of them would be gigabytes of text.
        bits = np.arange(1 << 16, dtype=np.uint16)
        yield _encoding(fmt, source, bits, all_16_bit(source), conversions(fmt))
    crafted = {given.kind: given.x for given in inputs(fmt)}
    for source, kind in (("float32", np.uint32), ("float64", np.uint64)):
        bits = np.unique(crafted[source].view(kind))
        yield _encoding(fmt, source, bits, bits.view(source), _columns(fmt))


def _encoding(fmt: FloatFormat, source: str, bits: Array, x: Array, policies: Mapping[Policy, tuple[str, ...]]) -> _Table:
    codes = np.stack([law(fmt, x, policy) for policy in policies], axis=1)
    names = [label(policy, presets) for policy, presets in policies.items()]
    columns = tuple(codes[:, i] for i in range(codes.shape[1]))
    about = f"{source} to {fmt}: input bits, then the code of each policy"
    return _Table(f"encode/{fmt}_{source}", about, (bits, *columns), {"inputs": bits, "codes": codes}, {"policies": names})


# -- products ---------------------------------------------------------------------------------------------------------

# name: groups, further terms, how codes are drawn, lines. The law takes milliseconds a line.
_CASES = (
    ("narrow", 1, 0, "narrow", 12),
    ("wide", 1, 0, "wide", 12),
    ("special", 1, 0, "special", 8),
    ("chain", 2, 1, "narrow", 8),
    ("promoted", 4, 0, "narrow", 4),
)


def _products(how: Accumulator, a_format: FloatFormat, b_format: FloatFormat) -> Iterator[_Table]:
    group = len(how.order) or how.group or 32
    rng = np.random.default_rng([*how.name.encode(), 0, *f"{a_format} {b_format}".encode()])
    # Around the size of a product of two numbers in the middle of their ranges.
    middle = (a_format.max_exponent + a_format.min_exponent + b_format.max_exponent + b_format.min_exponent) // 2
    for name, groups, more, kind, lines in _CASES:
        rule = how
        if name == "promoted":
            if how.kind != "aligned":
                continue
            rule = dataclasses.replace(how, promote_every=2 * group)
        terms = groups * group + more
        a, b = drawn(rng, a_format, (lines, terms), kind), drawn(rng, b_format, (lines, terms), kind)
        c = np.ldexp(rng.uniform(-2, 2, lines), middle + rng.integers(-8, 12, lines)).astype(np.float32)
        c[:2] = 0.0, -0.0
        sums = [dot(rule, x, a_format, y, b_format, start) for x, y, start in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
        d = np.array(sums, np.uint32)
        facts = {"accumulator": how.name, "rule": _rule(rule), "a": str(a_format), "b": str(b_format), "terms": terms}
        facts["nan"] = f"{how.nan_code:08x}" if how.kind == "aligned" else "any"
        yield _Table(
            f"products/{re.sub(r'[^A-Za-z0-9.-]+', '_', how.name)}_{a_format}_{b_format}_{name}",
            "a_b_c_d: d = c + sum of a[k] * b[k], k = 0 leftmost",
            (a, b, c.view(np.uint32), d),
            {"a": a, "b": b, "c": c, "d": d.view(np.float32)},
            facts,
        )


def _rule(how: Accumulator) -> str:
    """The fields that say how it sums, as far as they are not the default."""
    told = ("name", "kind", "source", "verified", "nan_code")
    fields = [f for f in dataclasses.fields(how) if f.name not in told and getattr(how, f.name) != f.default]
    return ", ".join([how.kind, *(f"{f.name}={getattr(how, f.name)}" for f in fields)])
