"""Shape rules on what a hostile file may say: each answers at once, in little memory, with a shape or a refusal of ours."""

from __future__ import annotations

import itertools
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from fp8np.check import DTYPES, infer
from fp8np.dims import Dim, symbol
from fp8np.errors import GraphError
from fp8np.graph import Node, Value
from fp8np.layers._op import OPS, REQUIRED, Op

STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(not STATM.exists(), reason="needs Linux to bound memory")

HUGE = 2**63 - 1
B = symbol("B")


def deep(value: Any) -> Any:
    for _ in range(15):
        value = (value,)
    return value


# What an attribute can be: `fp8np.check` lets nothing else through, and nothing nested deeper.
ATTRS: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2, HUGE, -HUGE - 1, 1 << 40, 1e308, 0.5, -0.0, float("nan"), float("inf"), B, B * B - 1),
    *("", "sum", "a" * 10_000, "..., ", "ij,jk->ik", "(" * 1000, "float8_e4m3fn", "int64"),
    *((), (0,), (1, 1), (-1,), (HUGE,) * 2, (1 << 40,) * 4, (1,) * 64, (0,) * 10_000, (HUGE,) * 1000, ("x", None), (B, -B)),
    *(((1, 2), (3, 4)), ((HUGE,), "x"), deep(1), (deep(HUGE), deep("x"))),
)
SHAPES: tuple[tuple[Any, ...], ...] = ((), (3,), (0,), (2, 3), (B, 4), (2, 3, 4), (B, 3, HUGE), (2, 3, 8, 8), (HUGE,) * 4, (1,) * 64)
SECONDS, BYTES = 1.0, 1 << 30


@contextmanager
def bounded() -> Iterator[None]:
    """No more time than SECONDS, and no more memory than BYTES beyond what the process has."""

    def stop(*_: object) -> None:
        pytest.fail(f"took more than {SECONDS} s")

    used = int(STATM.read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)


# Inputs and required attributes that fit each other, for ops that refuse inputs of one shape; float32 where not said.
FLOATS, INTEGERS = "float32", "int64"
CODES, WEIGHT, ZERO = "uint8", "int8", "int32"
FITTING: Mapping[str, tuple[tuple[tuple[Any, ...], ...], dict[str, Any]]] = {
    "batch_norm": (((2, 3, 8, 8), (3,), (3,)), {}),
    "col2im": (((2, 12, 9),), {"output_size": (4, 4), "kernel_size": (2, 2)}),
    "conv1d": (((B, 3, 8), (4, 3, 3)), {}),
    "conv2d": (((B, 3, 8, 8), (4, 3, 3, 3)), {}),
    "conv_transpose1d": (((B, 3, 8), (3, 4, 3)), {}),
    "conv_transpose2d": (((B, 3, 8, 8), (3, 4, 3, 3)), {}),
    "embedding": (((10, 4), (B, 3, INTEGERS)), {}),
    "embedding_bag": (((10, 4), (B, 3, INTEGERS)), {}),
    "fused_conv2d": (((B, 3, 8, 8), (4, 3, 3, 3)), {}),
    "fused_linear": (((B, 4), (3, 4)), {}),
    "group_norm": (((B, 4, 8),), {"num_groups": 2}),
    "gru": (((5, B, 4), (1, B, 3), (9, 4), (9, 3), (9,), (9,)), {}),
    "gru_cell": (((B, 4), (B, 3), (9, 4), (9, 3)), {}),
    "instance_norm": (((B, 4, 8),), {}),
    "linear": (((B, 4), (3, 4)), {}),
    "lstm": (((5, B, 4), (1, B, 3), (1, B, 3), (12, 4), (12, 3), (12,), (12,)), {}),
    "lstm_cell": (((B, 4), (B, 3), (B, 3), (12, 4), (12, 3)), {}),
    "fused_integer_conv": (((B, 3, 8, 8, CODES), (), (ZERO,), (4, 3, 3, 3, WEIGHT), (4, 1, 1, 1)), {}),
    "fused_integer_linear": (((B, 4, CODES), (), (ZERO,), (3, 4, WEIGHT), (3, 1)), {}),
    "integer_conv1d": (((B, 3, 8, CODES), (), (ZERO,), (4, 3, 3, WEIGHT), (4, 1, 1)), {}),
    "integer_conv2d": (((B, 3, 8, 8, CODES), (), (ZERO,), (4, 3, 3, 3, WEIGHT), (4, 1, 1, 1)), {}),
    "integer_embedding": (((10, 4, WEIGHT), (10, 1), (B, 3, INTEGERS)), {}),
    "integer_embedding_bag": (((10, 4, WEIGHT), (10, 1), (B, 3, INTEGERS)), {}),
    "integer_linear": (((B, 4, CODES), (), (ZERO,), (3, 4, WEIGHT), (3, 1)), {}),
    "integer_matmul": (((B, 5, 4, CODES), (), (ZERO,), (B, 4, 3, CODES), (), (ZERO,)), {}),
    "unflatten": (((B, 8),), {"dim": 1, "sizes": (2, 4)}),
}


def fitting(name: str, row: Op) -> tuple[tuple[Value, ...], dict[str, Any]]:
    shapes, attrs = FITTING[name]
    typed = [(shape[:-1], shape[-1]) if shape and isinstance(shape[-1], str) else (shape, FLOATS) for shape in shapes]
    return tuple(Value(f"{row.input_name(i)}{i}", shape, dtype) for i, (shape, dtype) in enumerate(typed)), attrs


def cases(name: str, row: Op) -> Iterator[tuple[tuple[Value, ...], dict[str, Any]]]:
    """Inputs of every rank and type, alone and with one hostile attribute; the required ones are as hostile."""
    required = [attr for attr, default in row.attrs.items() if default is REQUIRED]
    names = row.input_names
    inputs = [tuple(Value(n, shape, dtype) for n in names) for shape in SHAPES for dtype in (FLOATS, INTEGERS, "bool", "float8_e4m3fn")]
    inputs += [
        tuple(Value(n, SHAPES[(start + step * i) % len(SHAPES)], FLOATS) for i, n in enumerate(names))
        for start in range(len(SHAPES))
        for step in (1, 3)
    ]
    for values in inputs:
        yield values, {}
        for attr, value in itertools.product(row.attrs, ATTRS):
            yield values, {**dict.fromkeys(required, value), attr: value}
    if name in FITTING:
        values, attrs = fitting(name, row)
        yield values, attrs
        for attr, value in itertools.product(row.attrs, ATTRS):
            yield values, {**attrs, attr: value}


@pytest.mark.parametrize("name", sorted(OPS))
def test_hostile_attributes_are_answered_at_once(name: str) -> None:
    row = OPS[name]
    taken = 0
    with bounded():
        for values, attrs in cases(name, row):
            facts = {value.name: value for value in values}
            node = Node("n", name, tuple(facts), ("n",), MappingProxyType(attrs))
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                specs = infer(node, facts.__getitem__)
            except GraphError:
                continue
            taken += 1
            sizes = [size for spec in specs for size in spec.shape]
            assert all(isinstance(size, Dim) or (type(size) is int and 0 <= size <= HUGE) for size in sizes)
            assert all(spec.dtype in DTYPES or spec.dtype.startswith("float8_") for spec in specs)
    assert taken, "expected some of the inputs to fit: add a row to FITTING"
