"""Sums as an NVIDIA H100 makes them: every vector measured on one, bit for bit (origin: fp8np/verify/data/README.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp8np import verify
from fp8np.accumulators import ACCUMULATORS
from fp8np.formats import get_format
from fp8np.linalg import linear, matmul
from fp8np.reference_sum import dot
from fp8np.tensor import QTensor

DATA = Path(verify.__file__).parent / "data"
ACCUMULATE = {"hopper_wgmma": "hopper", "hopper_wgmma_edges": "hopper", "hopper_mma": "hopper_mma"}
"""Which unit a file is from."""


def names() -> Iterator[tuple[str, str]]:
    for file in ACCUMULATE:
        with np.load(DATA / f"{file}.npz") as vectors:
            yield from ((file, name.removesuffix("_a")) for name in vectors if name.endswith("_a"))


def case(file: str, name: str) -> tuple[QTensor, QTensor, np.ndarray, np.ndarray]:
    """a (T, M, K), b (T, N, K), and the float32 accumulator (T, M, N) before and after."""
    _, a_format, _, b_format, *_ = name.split("_")
    with np.load(DATA / f"{file}.npz") as vectors:
        a, b, c, d = (vectors[f"{name}_{key}"] for key in "abcd")
    return QTensor(a, a_format), QTensor(b, b_format), c, d


def assert_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, those of NaN and of zeros included."""
    wrong = got.view(np.uint32) != expected.view(np.uint32)
    first = np.argwhere(wrong)[:1].tolist()
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ, {first} first: {got[wrong][0]} for {expected[wrong][0]}"


def test_there_are_vectors() -> None:
    assert len(list(names())) == 67


@pytest.mark.parametrize(("file", "name"), list(names()))
def test_a_tile(file: str, name: str) -> None:
    a, b, before, after = case(file, name)
    assert_bits(matmul(a, b.transpose(0, 2, 1), accumulate=ACCUMULATE[file], init=before), after)


@pytest.mark.parametrize(("file", "name"), list(names()))
def test_the_law_of_a_few_elements(file: str, name: str) -> None:
    a, b, before, after = case(file, name)
    rng = np.random.default_rng(20)
    how = ACCUMULATORS[ACCUMULATE[file]]
    for t, m, n in zip(*(rng.integers(0, size, 30) for size in before.shape), strict=True):
        bits = dot(how, a.codes[t, m].tolist(), a.format, b.codes[t, n].tolist(), b.format, float(before[t, m, n]))
        assert bits == int(after.view(np.uint32)[t, m, n]), (t, m, n)


@pytest.mark.parametrize(("fast", "promote_every"), [(1, None), (0, 128)])
def test_torch_scaled_mm(fast: int, promote_every: int | None) -> None:
    with np.load(DATA / "hopper_scaled_mm.npz") as vectors:
        a, b = (QTensor(vectors[f"k512_{key}"], "e4m3fn") for key in "ab")
        expected = vectors[f"k512_fast{fast}_y"]
    assert_bits(matmul(a, b.T, accumulate="hopper", promote_every=promote_every), expected)
    assert_bits(linear(a, b, accumulate="hopper", promote_every=promote_every), expected)


@pytest.mark.parametrize("field", [{"fraction_bits": 12}, {"fraction_bits": 14}, {"output_fraction_bits": 14}, {"group": 16}])
def test_the_vectors_see_one_bit(field: dict[str, int]) -> None:
    a, b, before, after = case("hopper_wgmma", "float8_e4m3fn_float8_e4m3fn_k64_normal")
    other = matmul(a, b.transpose(0, 2, 1), accumulate=replace(ACCUMULATORS["hopper"], **field), init=before)
    assert (other != after).mean() > 0.01


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("any", {"order": ()}),
        ("any", {"promote_every": None}),
        ("any", {"fraction_bits": 24}),
        ("any", {"group": 32}),
        ("subnormal", {"operand_exponent": None}),
    ],
)
def test_the_vectors_of_mma_see_each_of_its_parameters(name: str, field: dict[str, Any]) -> None:
    a, b, before, after = case("hopper_mma", f"float8_e4m3fn_float8_e5m2_k32_{name}")
    other = matmul(a, b.transpose(0, 2, 1), accumulate=replace(ACCUMULATORS["hopper_mma"], **field), init=before)
    assert (other != after).mean() > 0.01


def test_nan_is_one_code_and_zero_is_positive() -> None:
    fmt = get_format("e5m2")
    infinite, nan, one = 0x7C, 0x7D, 0x3C
    a = QTensor(np.array([[infinite, one], [nan, one], [infinite, 0], [0x80, 0]], np.uint8), fmt)
    b = QTensor(np.array([[one, one], [0xFC, one], [0, 0]], np.uint8), fmt)
    got = matmul(a, b.T, accumulate="hopper", init=np.float32(-0.0)).view(np.uint32)
    lost = 0x7FFFFFFF
    assert got.tolist() == [[0x7F800000, 0xFF800000, lost], [lost] * 3, [0x7F800000, 0xFF800000, lost], [0, lost, 0]]
