"""Checks of conversions: against the law, against other libraries, and against what hardware and libraries gave once."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np import reference
from fp8np.errors import MissingDependencyError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.policy import PRESETS, Policy
from fp8np.verify._judge import NOT_DIAGNOSED, Budget, Failure, attempt, code_text, compare, diagnosed, number_text, skipped, tell_floats
from fp8np.verify._result import Difference, Row
from fp8np.verify.cases import PRESET, Inputs, all_16_bit, inputs, policies
from fp8np.verify.implementation import Checked
from fp8np.verify.known import explain
from fp8np.verify.law import cells, law, law_table
from fp8np.verify.references import REFERENCES, Conversion

__all__ = ["against_law", "against_libraries", "against_records", "data_file"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.uint8]

THE_LAW = "the law"

_SUITES = ("decode", "16 bit", "float32", "float64")


def data_file(name: str) -> Any:
    """A file that ships with the package: the path, as `importlib.resources` has it."""
    return resources.files("fp8np.verify") / "data" / name


# -- the implementation, as the checks call it ------------------------------------------------------------------------


def _encoded(implementation: Checked, x: Array, fmt: FloatFormat, policy: Policy, preset: str) -> Array | Failure:
    """Codes, by the three names of the protocol, or by a preset for rules that three names cannot say."""
    if policy == Policy(policy.overflow, policy.rounding, policy.nan):
        return attempt(lambda: implementation.encode(x, fmt.name, overflow=policy.overflow, rounding=policy.rounding, nan=policy.nan))
    return attempt(lambda: implementation.encode_preset(x, fmt.name, preset))


def _decoded(implementation: Checked, fmt: FloatFormat) -> Array | Failure:
    return attempt(lambda: implementation.decode(_all_codes(fmt), fmt.name))


def _all_codes(fmt: FloatFormat) -> Codes:
    return np.arange(1 << fmt.bits, dtype=np.uint8)


@lru_cache(maxsize=128)
def _values(fmt: FloatFormat) -> npt.NDArray[np.float32]:
    return np.array([float(reference.decode(fmt, code)) for code in range(1 << fmt.bits)], np.float32)


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass
class _Encoding:
    """A row of one policy that grows by one kind of input after the other."""

    row: Row
    fmt: FloatFormat
    policy: Policy
    differing: list[tuple[Array, Codes, Codes]]

    def add(self, x: Array, expected: Codes, got: Array | Failure, explained: Any = None, reason: str = "") -> None:
        def show(i: int) -> Difference:
            return Difference(number_text(x[i]), code_text(self.fmt, int(expected[i])), code_text(self.fmt, int(got[i])))  # type: ignore[index]

        before = self.row.mismatches
        self.row = compare(self.row, expected, got, show, explained=explained, reason=reason)
        if self.row.mismatches > before and not isinstance(got, Failure):
            # What has a reason of its own would refute every kind of bug.
            told = slice(None) if explained is None else ~explained
            with np.errstate(invalid="ignore"):
                self.differing.append((x[told].astype(np.float64), expected[told], got[told]))

    def done(self, budget: Budget) -> Row:
        if not self.differing or self.row.diagnosis:
            return self.row
        if not budget.allows(self.row):
            return replace(self.row, diagnosis=NOT_DIAGNOSED)
        x, expected, got = (np.concatenate(parts) for parts in zip(*self.differing, strict=True))
        return replace(self.row, diagnosis=diagnosed("encoding", self.fmt, self.policy, x, expected, got))


def _decoding_row(versus: str, fmt: FloatFormat, expected: Array, got: Array | Failure, suite: str = "decode") -> Row:
    def show(i: int) -> Difference:
        return Difference(f"{i:02X}", number_text(expected[i]), number_text(got[i]))  # type: ignore[index]

    same = None if isinstance(got, Failure) else tell_floats(expected, got, any_nan=True)
    row = compare(Row(suite, versus, fmt.name, "value of each code"), expected, got, show, same=same)
    if row.mismatches and not isinstance(got, Failure):
        row = replace(row, diagnosis=diagnosed("decoding", fmt, expected, got))
    return row


# -- the law ----------------------------------------------------------------------------------------------------------


def against_law(implementation: Checked, fmt: FloatFormat, wanted: frozenset[str], budget: Budget) -> Iterator[Row]:
    """Every code, every 16-bit number, and float32 and float64 where it is difficult, under every policy of `fmt`."""
    if "decode" in wanted:
        yield _decoding_row(THE_LAW, fmt, _values(fmt), _decoded(implementation, fmt))
    numbers = _wanted(fmt, wanted)
    places = [_cells(fmt, given.x) for given in numbers]
    for name, policy in policies(fmt) if numbers else ():
        rows: dict[str, _Encoding] = {}
        for given, place in zip(numbers, places, strict=True):
            growing = rows.setdefault(given.suite, _Encoding(Row(given.suite, THE_LAW, fmt.name, name), fmt, policy, []))
            expected = law(fmt, given.x, policy) if policy.via else law_table(fmt, policy)[place]
            growing.add(given.x, expected, _encoded(implementation, given.x, fmt, policy, name.removeprefix(PRESET)))
        yield from (growing.done(budget) for growing in rows.values())


def _cells(fmt: FloatFormat, x: Array) -> npt.NDArray[np.intp]:
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return cells(fmt, x.astype(np.float64))


# -- libraries --------------------------------------------------------------------------------------------------------


def against_libraries(
    implementation: Checked,
    fmts: tuple[FloatFormat, ...],
    wanted: frozenset[str],
    budget: Budget,
    progress: Callable[[str, int, int | None], None],
) -> Iterator[Row]:
    """The same numbers, converted by the libraries that are installed."""
    for i, library in enumerate(REFERENCES):
        progress("other libraries", i, len(REFERENCES))
        first = next(suite for suite in _SUITES if suite in wanted)
        try:
            title = f"{library.name} {library.version()}"
        except MissingDependencyError as error:
            yield skipped(first, library.name, "", "", str(error))
            continue
        try:
            decoders, conversions = list(library.decoders()), list(library.conversions())
        except Exception as error:  # another version of the library
            yield skipped(first, title, "", "", _text(error))
            continue
        if "decode" in wanted:
            for fmt, decode in decoders:
                if fmt in fmts:
                    yield _against_decoder(implementation, title, fmt, decode)
        for how in conversions:
            if how.fmt in fmts:
                yield from _against_conversion(implementation, _wanted(how.fmt, wanted), budget, library.name, title, how)
    progress("other libraries", len(REFERENCES), len(REFERENCES))


def _text(error: Exception) -> str:
    return f"raised {type(error).__name__}: {error}"[:300]


def _against_decoder(implementation: Checked, title: str, fmt: FloatFormat, decode: Callable[[Array], Array]) -> Row:
    try:
        theirs = decode(_all_codes(fmt))
    except Exception as error:  # another version of the library
        return skipped("decode", title, fmt, "", _text(error))
    return _decoding_row(title, fmt, theirs, _decoded(implementation, fmt))


def _against_conversion(
    implementation: Checked, numbers: tuple[Inputs, ...], budget: Budget, library: str, title: str, how: Conversion
) -> Iterator[Row]:
    rows: dict[str, _Encoding] = {}
    for given in numbers:
        growing = rows.setdefault(given.suite, _Encoding(Row(given.suite, title, how.fmt.name, how.name), how.fmt, how.policy, []))
        x = given.x if how.takes_nan else given.x[~np.isnan(given.x)]
        try:
            theirs = how.encode(x)
        except Exception as error:  # another version of the library
            rows[given.suite].row = skipped(given.suite, title, how.fmt, how.name, _text(error))
            continue
        got = _encoded(implementation, x, how.fmt, how.policy, how.preset)
        explained, reason = None, ""
        if not isinstance(got, Failure):
            explained, reason = explain(library, given.suite, how.fmt, how.policy, x, theirs, got)
        growing.add(x, theirs, got, explained, reason)
    yield from (growing.done(budget) for growing in rows.values())


def _wanted(fmt: FloatFormat, wanted: frozenset[str]) -> tuple[Inputs, ...]:
    return tuple(given for given in inputs(fmt) if given.suite in wanted)


# -- records ----------------------------------------------------------------------------------------------------------


def against_records(implementation: Checked, fmts: tuple[FloatFormat, ...], wanted: frozenset[str], budget: Budget) -> Iterator[Row]:
    """What hardware, libraries and a working group gave, in files that ship with the package."""
    if "decode" in wanted:
        yield from _value_tables(implementation, fmts)
    if "digest" in wanted:
        yield from _golden_digests(implementation, fmts, budget)
    if wanted & set(_SUITES):
        yield from _hopper_16_bit(implementation, fmts, budget)
        yield from _hopper_narrow(implementation, fmts, budget)


def _value_tables(implementation: Checked, fmts: tuple[FloatFormat, ...]) -> Iterator[Row]:
    header, *lines = csv.reader(data_file("p3109_k8_values.csv").read_text(encoding="utf-8").splitlines())
    for column, name in enumerate(header[1:], 1):
        fmt = get_format(name)
        if fmt in fmts:
            expected = np.array([float.fromhex(line[column]) for line in lines], np.float32)
            yield _decoding_row("IEEE P3109 v4.0 value tables", fmt, expected, _decoded(implementation, fmt))


def _named(prefix: str, short: str) -> tuple[str, FloatFormat]:
    """(preset, format) of a conversion that is called by the beginnings of both names."""
    for preset, formats in PRESETS.items():
        for name in formats:
            if preset == prefix and (name == short or name.startswith(f"float8_{short}") or name.endswith(f"_{short}")):
                return preset, FORMATS[name]
    raise LookupError(f"no preset {prefix} of {short}")


def _golden_digests(implementation: Checked, fmts: tuple[FloatFormat, ...], budget: Budget) -> Iterator[Row]:
    # LIBRARY/SOURCE->FORMAT or LIBRARY/SOURCE->FORMAT/MODE: the SHA-256 of the codes of all 16-bit numbers in order of their bits.
    for key, digest in json.loads(data_file("golden_digests.json").read_text(encoding="utf-8")).items():
        library, conversion, *mode = key.split("/")
        source, name = conversion.split("->")
        origin = library.partition("-")[0]
        preset, fmt = _named(f"cuda_{mode[0]}" if mode else origin, name)
        if fmt not in fmts:
            continue
        x = all_16_bit({"f16": "float16", "bf16": "bfloat16"}[source])
        policy = PRESETS[preset][fmt.name]
        # The law stands in for the codes that were hashed, if it has their digest.
        expected = law(fmt, x, policy)
        title = library.replace("-", " ", 1)
        growing = _Encoding(Row("digest", title, fmt.name, f"{preset}, {source}"), fmt, policy, [])
        if hashlib.sha256(expected.tobytes()).hexdigest() == digest:
            growing.add(x, expected, _encoded(implementation, x, fmt, policy, preset))
            yield growing.done(budget)
        else:
            yield replace(growing.row, cases=x.size, mismatches=x.size, diagnosis="the law itself has another digest")


H100 = "NVIDIA H100, CUDA 13.0"


def _recorded(
    implementation: Checked, fmts: tuple[FloatFormat, ...], budget: Budget, suite: str, x: Array, name: str, modes: list[str], codes: Codes
) -> Iterator[Row]:
    preset, fmt = _named("_".join(["cuda", *modes]), name)
    if fmt in fmts:
        policy = PRESETS[preset][fmt.name]
        growing = _Encoding(Row(suite, H100, fmt.name, f"{preset}, {x.dtype}"), fmt, policy, [])
        got = _encoded(implementation, x, fmt, policy, preset)
        explained, reason = None, ""
        if not isinstance(got, Failure):
            explained, reason = explain(H100.partition(",")[0], suite, fmt, policy, x, codes, got)
        growing.add(x, codes, got, explained, reason)
        yield growing.done(budget)


def _hopper_16_bit(implementation: Checked, fmts: tuple[FloatFormat, ...], budget: Budget) -> Iterator[Row]:
    with data_file("hopper_cvt16.npz").open("rb") as file, np.load(file) as vectors:
        for key in vectors:
            source, target = key.split("_to_")
            name, *modes = target.split("_")
            if target.endswith("_bits"):
                fmt = _named("cuda_satfinite", source)[1]
                if fmt in fmts:
                    expected = vectors[key].view(np.float16).astype(np.float32)
                    yield _decoding_row(H100, fmt, expected, _decoded(implementation, fmt))
            else:
                yield from _recorded(implementation, fmts, budget, "16 bit", all_16_bit(source), name, modes, vectors[key])


def _hopper_narrow(implementation: Checked, fmts: tuple[FloatFormat, ...], budget: Budget) -> Iterator[Row]:
    with data_file("hopper_narrow.npz").open("rb") as file, np.load(file) as vectors:
        double = vectors["float64"]
        for key in vectors:
            if "_to_" in key:
                source, target = key.split("_to_")
                name, *modes = target.split("_")
                x = double if source == "float64" else all_16_bit(source)
                suite = "float64" if source == "float64" else "16 bit"
                yield from _recorded(implementation, fmts, budget, suite, x, name, modes or ["satfinite"], vectors[key])
