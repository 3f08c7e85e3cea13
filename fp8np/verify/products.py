"""Checks of products: matrix products against the law of each accumulator and against hardware, convolutions against exact sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.accumulators import ACCUMULATORS, Accumulator
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.policy import PRESETS
from fp8np.verify._judge import Failure, attempt, code_text, compare, diagnosed, number_text, tell_floats
from fp8np.verify._result import Difference, Row
from fp8np.verify.cases import ProductCase, product_cases, product_formats
from fp8np.verify.conversions import data_file
from fp8np.verify.implementation import Checked

__all__ = ["against_hardware", "against_law"]

Array = npt.NDArray[Any]


def against_law(implementation: Checked, fmts: tuple[FloatFormat, ...], accumulator: Accumulator) -> Iterator[Row]:
    """Products of every pair of formats that the accumulator is for."""
    for pair in product_formats(accumulator):
        if pair[0] in fmts and pair[1] in fmts:
            yield _judged("the law", product_cases(pair, accumulator), implementation)


def against_hardware(implementation: Checked, fmts: tuple[FloatFormat, ...]) -> Iterator[Row]:
    """Products that tensor cores gave, bit for bit."""
    for file, accumulate in (("hopper_wgmma", "hopper"), ("hopper_wgmma_edges", "hopper"), ("hopper_mma", "hopper_mma")):
        with data_file(f"{file}.npz").open("rb") as stream, np.load(stream) as vectors:
            for key in vectors:
                if key.endswith("_a"):
                    name = key.removesuffix("_a")
                    a_format, b_format, rest = _formats(name)
                    if a_format in fmts and b_format in fmts:
                        tiles = [vectors[f"{name}_{part}"] for part in "abcd"]
                        cases = (
                            ProductCase(rest, a, a_format, b.T, b_format, ACCUMULATORS[accumulate], None, c, d)
                            for a, b, c, d in zip(*tiles, strict=True)
                        )
                        yield _judged(f"NVIDIA H100, {file.removeprefix('hopper_')}", cases, implementation, rest)
    yield from _scaled_mm(implementation, fmts)


def _scaled_mm(implementation: Checked, fmts: tuple[FloatFormat, ...]) -> Iterator[Row]:
    # The formats of the file are those of its README: the narrower of the two that the hardware takes.
    fmt = max((FORMATS[name] for name in PRESETS["cuda_satfinite"]), key=lambda f: (f.bits, f.mantissa_bits))
    if fmt in fmts:
        with data_file("hopper_scaled_mm.npz").open("rb") as stream, np.load(stream) as vectors:
            for fast, every in ((1, None), (0, 128)):
                case = ProductCase(
                    f"use_fast_accum={bool(fast)}",
                    vectors["k512_a"],
                    fmt,
                    vectors["k512_b"].T,
                    fmt,
                    ACCUMULATORS["hopper"],
                    every,
                    None,
                    vectors[f"k512_fast{fast}_y"],
                )
                yield _judged("NVIDIA H100, torch._scaled_mm 2.11.0", iter([case]), implementation, case.name)


def _formats(name: str) -> tuple[FloatFormat, FloatFormat, str]:
    """The formats at the beginning of a key, and the rest of it."""
    parts = name.replace("float8_", "").split("_")
    return get_format(parts[0]), get_format(parts[1]), " ".join(parts[2:])


def _judged(versus: str, cases: Iterator[ProductCase], implementation: Checked, kind: str = "") -> Row:
    row: Row | None = None
    results: list[tuple[ProductCase, Array, Array]] = []
    diagnosis = ""
    for case in cases:
        if row is None:
            policy = case.accumulate.name + (f", {kind}" if kind else "")
            row = Row("gemm", versus, f"{case.a_format} x {case.b_format}", policy)
        got = _product(implementation, case)
        row = _grown(row, case, got)
        if row.skipped:
            return row
        if isinstance(got, Failure):
            diagnosis = diagnosis or got.reason
        else:
            # What agrees counts, too: it refutes hypotheses.
            results.append((case, case.expected, got))
    if row is None:
        raise LookupError(f"{versus}: no cases")
    if row.mismatches and not diagnosis:
        diagnosis = diagnosed("products", results)
    return replace(row, diagnosis=diagnosis)


def _product(implementation: Checked, case: ProductCase) -> Array | Failure:
    return attempt(
        lambda: implementation.matmul(
            case.a,
            case.a_format.name,
            case.b,
            case.b_format.name,
            accumulate=case.accumulate.name,
            promote_every=case.promote_every,
            init=case.init,
        )
    )


def _grown(row: Row, case: ProductCase, got: Array | Failure) -> Row:
    columns = case.expected.shape[1]

    def show(i: int) -> Difference:
        m, n = divmod(i, columns)
        terms = case.a.shape[1]
        start = "" if case.init is None else f", init {number_text(case.init[m, n])}"
        first = ""
        if terms:
            first = f": {code_text(case.a_format, int(case.a[m, 0]))} * {code_text(case.b_format, int(case.b[0, n]))} + ..."
        return Difference(
            f"{case.name}, K={terms}, row {m}, column {n}{start}{first}",
            number_text(case.expected[m, n]),
            number_text(got[m, n]),  # type: ignore[index]
        )

    if isinstance(got, Failure):
        return compare(row, case.expected.reshape(-1), got, show)
    same = tell_floats(case.expected, got, any_nan=case.any_nan)
    if case.tolerance is not None:
        with np.errstate(invalid="ignore"):
            same |= np.abs(got.astype(np.float64) - case.expected) <= case.tolerance
    return compare(row, case.expected.reshape(-1), got.reshape(-1), show, same=same.reshape(-1))
