"""Small graphs, run as plans: what the tests of plans share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fp8np.build import GraphBuilder
from fp8np.graph import Graph
from fp8np.layers._op import OPS
from fp8np.model import Model
from fp8np.plan.builder import Host
from fp8np.scaling import dequantize, quantize
from fp8np.tensor import QTensor


def gamma(n: int) -> float:
    """The relative error of n roundings to float32 (Higham, Accuracy and Stability, lemma 3.1)."""
    return n * 2.0**-24 / (1 - n * 2.0**-24)


def exact(x: Any) -> Any:
    """What an operand means, in float64; integers as they are."""
    if isinstance(x, QTensor):
        return dequantize(x, dtype=np.float64)
    return x if x is None or x.dtype.kind != "f" else x.astype(np.float64)


def one_node(
    name: str, operands: tuple[Any, ...], constants: Collection[int], attrs: Mapping[str, Any] | None = None
) -> tuple[Graph, dict[str, Any]]:
    """A graph of one node, and its inputs. Operands at `constants` are weights; other QTensors are quantized on the way in."""
    b = GraphBuilder()
    names: list[str | None] = []
    given = {}
    for i, x in enumerate(operands):
        if x is None or i in constants:
            names.append(None if x is None else b.constant(f"w{i}", x))
            continue
        array = dequantize(x) if isinstance(x, QTensor) else x
        source = b.input(f"x{i}", array.shape, array.dtype.name)
        given[source] = array
        if isinstance(x, QTensor):
            source = b.node("quantize", (source,), {"format": x.format.name, "scale": float(x.scale)})
        names.append(source)
    return b.finish(b.node(name, tuple(names), attrs or {})), given


def native(model: Model) -> bool:
    """Whether nothing of the plan made last ran in Python."""
    *_, plan = model._plans.values()
    return not any(isinstance(segment, Host) for segment in plan.segments)


def run_one(name: str, operands: tuple[Any, ...], constants: Collection[int], attrs: Mapping[str, Any] | None = None) -> tuple[Any, bool]:
    """What a plan of the node gives, and whether all of it ran natively."""
    graph, given = one_node(name, operands, constants, attrs)
    model = Model(graph)
    return model.run(given), native(model)


def defined(name: str, operands: tuple[Any, ...], attrs: Mapping[str, Any] | None = None) -> Any:
    """The node's definition in float64 on what the operands mean."""
    row = OPS[name]
    return row.define(*map(exact, operands), **row.filled(attrs or {}))


# -- networks ---------------------------------------------------------------------------------------------------------


def whole(*shape: int, seed: int = 0, most: int = 3) -> Any:
    """Small whole numbers as float32: sums of their products are exact in any order."""
    return np.random.default_rng((seed, *shape)).integers(-most, most + 1, shape).astype(np.float32)


def whole_codes(*shape: int, seed: int = 0) -> QTensor:
    """A weight of small whole numbers in FP8, by scales that are powers of two, one for each output."""
    scale = np.ldexp(1.0, np.arange(shape[0]) % 3).astype(np.float32).reshape(-1, *(1,) * (len(shape) - 1))
    return quantize(whole(*shape, seed=seed, most=1) * scale, "e4m3fn", scale=scale)


def cnn() -> Graph:
    """Convolutions of all kinds on FP8 activations, any size; on whole numbers every sum in it is exact."""
    b = GraphBuilder()

    def rounded(x: str, scale: float, fmt: str = "e4m3fn") -> str:
        return str(b.node("quantize", (x,), {"format": fmt, "scale": scale}))

    def conv(x: str, *shape: int, **attrs: Any) -> str:
        return str(b.node("conv2d", (x, b.constant("w", whole_codes(*shape)), b.constant("b", whole(shape[0]))), attrs))

    x = b.input("x", ("B", 3, "H", "W"), "float32")
    first = b.node("relu", (conv(rounded(b.node("pad", (x,), {"pad": (1, 1, 1, 1)}), 1.0), 16, 3, 3, 3),))
    codes = rounded(first, 2.0)
    y = b.node("relu6", (conv(codes, 40, 16, 3, 3, stride=(2, 2), padding=(1, 1)),))
    y = b.node("relu", (conv(rounded(y, 0.25), 40, 1, 3, 3, padding=(1, 1), groups=40),))
    y = b.node("add", (conv(rounded(y, 0.5, "e5m2"), 16, 40, 1, 1), conv(codes, 16, 16, 1, 1, stride=(2, 2))))
    y = b.node("max_pool2d", (b.node("relu", (y,)),), {"kernel_size": (2, 2)})
    grouped = conv(rounded(y, 4.0), 16, 4, 3, 3, padding=(2, 2), dilation=(2, 2), groups=4)
    pooled = b.node("mean", (b.node("add", (grouped, y)),), {"dim": (2, 3)})
    logits = b.node("linear", (rounded(pooled, 8.0), b.constant("w", whole_codes(10, 16)), b.constant("b", whole(10))))
    return b.finish({"logits": logits, "features": [first, pooled]})


def transformer(layers: int = 2) -> Graph:
    """Encoder layers on tokens, any batch and length, weights in FP8."""
    b = GraphBuilder()
    width, heads = 32, 4
    rng = np.random.default_rng(5)

    def weight(*shape: int) -> str:
        values = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-1]))
        return b.constant("w", quantize(values, "e4m3fn", axis=0) if len(shape) == 2 else values)

    def linear(x: str, n: int, k: int) -> str:
        return str(b.node("linear", (x, weight(n, k), weight(n))))

    def norm(x: str) -> str:
        return str(b.node("layer_norm", (x, weight(width), weight(width)), {"normalized_shape": (width,), "eps": 1e-5}))

    ids = b.input("ids", ("B", "T"), "int64")
    mask = b.input("mask", ("B", "T"), "bool")
    B, T = b.facts(ids).shape
    x = norm(b.node("embedding", (weight(50, width), ids)))
    for dim in (1, 2):
        mask = b.node("unsqueeze", (mask,), {"dim": dim})
    for _ in range(layers):
        split = []
        for _ in range(3):
            parts = b.node("reshape", (linear(x, width, width), None), {"shape": (B, T, heads, width // heads)})
            split.append(b.node("transpose", (parts,), {"dim0": 1, "dim1": 2}))
        y = b.node("transpose", (b.node("scaled_dot_product_attention", (*split, mask)),), {"dim0": 1, "dim1": 2})
        y = b.node("reshape", (y, None), {"shape": (B, T, width)})
        x = norm(b.node("add", (linear(y, width, width), x)))
        y = b.node("gelu", (linear(x, 3 * width, width),))
        x = norm(b.node("add", (linear(y, width, 3 * width), x)))
    return b.finish((x, b.node("tanh", (linear(b.node("select", (x,), {"dim": 1, "index": 0}), 7, width),))))


def tokens(batch: int, length: int) -> dict[str, Any]:
    """Inputs of `transformer`; of each row at least one token is seen."""
    rng = np.random.default_rng((batch, length))
    mask = rng.random((batch, length)) < 0.7
    mask[:, :1] = True
    return {"ids": rng.integers(0, 50, (batch, length)), "mask": mask}
