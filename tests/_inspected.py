"""Two small artifacts of one network, float32 and FP8, whose losses can be worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.build import GraphBuilder
from fp8np.graph import Graph
from fp8np.scaling import quantize

W1 = np.array([[1.0, 0.3], [500.0, 2.0**-11]], np.float32)
W2 = np.array([[0.25, 0.5], [1.0, -2.0], [0.0, 4.0]], np.float32)
X = np.array([[1.0, 1.0], [0.3, 1000.0], [2.0**-12, -8.0], [0.0, 2.0]], np.float32)


def float32_graph() -> Graph:
    """x (B, 2) -> linear "first" -> relu -> linear "second" (B, 3)."""
    b = GraphBuilder()
    x = b.input("x", ("B", 2), "float32")
    h = b.node("relu", (b.node("linear", (x, b.constant("w1", W1)), name="first", origin="net.first"),), name="middle")
    return b.finish({"y": b.node("linear", (h, b.constant("w2", W2)), name="second")}, {"recipe": "fp32"})


def fp8_graph(fmt: str = "e4m3fn", *, scale: Any = 1.0, **attrs: Any) -> Graph:
    """The same with "first" in a format, weight and activation; all scales 1 by default."""
    b = GraphBuilder()
    x = b.input("x", ("B", 2), "float32")
    q = b.node("quantize", (x,), {"format": fmt, "scale": scale, **attrs}, name="x.codes")
    h = b.node("linear", (q, b.constant("w1", quantize(W1, fmt, scale=1.0))), name="first", origin="net.first")
    h = b.node("relu", (h,), name="middle")
    return b.finish({"y": b.node("linear", (h, b.constant("w2", W2)), name="second")}, {"recipe": "by hand"})


def integer_graph() -> Graph:
    """The same with "first" in integers: steps of 4 from -8 to 1012, and weights of one scale."""
    b = GraphBuilder()
    x = b.input("x", ("B", 2), "float32")
    codes = b.node("quantize_integer", (x,), {"scale": 4.0, "zero_point": 2}, name="x.codes")
    w = np.clip(np.rint(W1 / np.float32(4)), -127, 127).astype(np.int8)
    h = b.node("integer_linear", (*codes, b.constant("w1.codes", w), b.constant("w1.scale", np.float32(4).reshape(()))), name="first")
    h = b.node("relu", (h,), name="middle")
    return b.finish({"y": b.node("linear", (h, b.constant("w2", W2)), name="second")})
