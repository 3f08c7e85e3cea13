"""Graphs to write to files, and how to tell whether two are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fp8np.artifact import save
from fp8np.build import GraphBuilder
from fp8np.check import DTYPES
from fp8np.dims import symbol
from fp8np.formats import FORMATS, get_format
from fp8np.graph import Graph, Node
from fp8np.tensor import QTensor

ALL_FORMATS = (*FORMATS, "float8_e4m3@11", "float8_e4m3@3")


def tiny() -> Graph:
    """A graph with a bit of everything. Its bytes are held by a digest below."""
    b = GraphBuilder()
    x = b.input("x", ("B", "T", 2), "float32")
    w = b.constant("w", QTensor(np.array([[0x38, 0xB8], [0x40, 0x00], [0x7E, 0x01]], np.uint8), "e4m3fn", [[0.5], [0.25], [2.0]]))
    q = b.node("quantize", (x,), {"format": "float8_e4m3fn", "scale": 0.1}, name="q")
    h = b.node("linear", (q, w, b.constant("b", np.array([0.0, -0.0, np.inf], np.float32))), name="fc", origin="model.py:7")
    y = b.node("reshape", (h,), {"shape": (symbol("B"), symbol("T") * 3)}, name="y")
    mask = b.constant("mask", np.array([True, False]))
    return b.finish({"z": y, "a": (h, None, [mask])}, {"source": "tests", "größe": "klein"})


def every_constant() -> Graph:
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    b.input("x", (2,), "float32")
    names = []
    codes_of: dict[str, QTensor] = {}
    for dtype in sorted(DTYPES):
        for shape in ((), (3,), (2, 0, 4), (2, 3, 5)):
            array = rng.integers(0, 2, shape) if dtype == "bool" else rng.integers(-100, 100, shape)
            names.append(b.constant(f"{dtype}{len(shape)}", np.asarray(array).astype(dtype)))
    for fmt in ALL_FORMATS:
        codes = rng.integers(0, 1 << get_format(fmt).bits, (4, 6)).astype(np.uint8)
        codes_of[f"{fmt} tensor"] = QTensor(codes, fmt, 0.125)
        codes_of[f"{fmt} channel"] = QTensor(codes, fmt, rng.uniform(0.1, 2, (4, 1)))
        codes_of[f"{fmt} transposed"] = QTensor(codes, fmt, rng.uniform(0.1, 2, (4, 1))).T
        codes_of[f"{fmt} empty"] = QTensor(codes[:0], fmt, np.ones((0, 1)))
        codes_of[f"{fmt} scalar"] = QTensor(codes[0, 0], fmt, 3.0)
    # A model does not return codes, so these are weights that nothing reads.
    graph = b.finish(tuple(names))
    return graph.replace(constants={**graph.constants, **codes_of})


def plain(value: Any) -> Any:
    """Data that compare equal only if they are the same, types, signs of zeros and NaN included."""
    if isinstance(value, Graph):
        return [
            plain(value.inputs),
            {name: plain(c) for name, c in value.constants.items()},
            plain(value.nodes),
            dict(value.values),
            plain(value.outputs),
            dict(value.meta),
        ]
    if isinstance(value, Node):
        return [value.name, value.op, value.inputs, value.outputs, plain(dict(value.attrs)), value.origin]
    if isinstance(value, QTensor):
        return [value.format.name, plain(value.codes), plain(value.scale)]
    if isinstance(value, np.ndarray):
        return [value.dtype.name, value.shape, value.tobytes()]
    if isinstance(value, dict):
        return [(key, plain(v)) for key, v in value.items()]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(plain, value)]
    return [type(value).__name__, repr(value)]


def bytes_of(graph: Graph, folder: Path) -> bytes:
    save(graph, folder / "bytes.safetensors")
    return (folder / "bytes.safetensors").read_bytes()


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())
