"""Plans whose inputs end, and begin, where memory ends, and whose arenas end with their slack: reading beyond ends the process.

Run by `tests/test_plan_runs.py` in a process of its own; says which graph it runs, so that the last one named is the one at fault.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from _graphs import cnn, tokens, transformer, whole, whole_codes

from fp8np import QTensor, conv2d, decode, encode, matmul, pack, quantize
from fp8np.build import GraphBuilder
from fp8np.graph import Graph
from fp8np.kernels import _program
from fp8np.kernels._program import SLACK
from fp8np.model import Model

PAGE = mmap.PAGESIZE
_kept: list[Any] = []


def guarded(size: int, *, at_end: bool = True) -> Any:
    """`size` bytes, u8, between two pages that nobody may touch: at their end, or at their start."""
    whole_pages = -(-max(size, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, whole_pages + 2 * PAGE)
    _kept.append(memory)
    raw = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (0, PAGE + whole_pages):
        assert protect(ctypes.c_void_p(raw.ctypes.data + page), ctypes.c_size_t(PAGE), 0) == 0
    start = PAGE + (whole_pages - size if at_end else 0)
    return raw[start : start + size]


def arena(size: int) -> Any:
    """As `fp8np.kernels._program.aligned`, with nothing behind the slack."""
    rounded = -(-(size + SLACK) // 64) * 64
    return guarded(rounded)[: size + SLACK]


def placed(array: Any, at_end: bool) -> Any:
    """The same array beside a page that nobody may touch."""
    copy = guarded(array.nbytes, at_end=at_end).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def graphs() -> Iterator[tuple[str, Graph, dict[str, Any]]]:
    """Each op of the engine on an input as it is given, and on one that a plan has computed."""
    for rows, k in ((1, 33), (2, 32), (3, 4096), (5, 5000), (17, 64), (33, 257)):
        for codes in (True, False):
            b = GraphBuilder()
            x = b.input("x", (rows, k), "float32")
            w = b.constant("w", whole_codes(7, k) if codes else whole(7, k))
            y = b.node("linear", (x, w))
            z = b.node("linear", (b.node("relu", (x,)), w))
            q = b.node("linear", (b.node("quantize", (x,), {"format": "e4m3fn", "scale": 1.0}), w))
            d = b.node("linear", (b.node("quantize", (x,), {"format": "e4m3fn", "scale": None}), w))
            yield f"linear {rows} {k} {codes}", b.finish((y, z, q, d)), {"x": whole(rows, k)}
    for shape, weight, attrs in (
        ((1, 3, 9, 9), (5, 3, 3, 3), {"padding": (1, 1)}),
        ((2, 3, 33, 20), (40, 3, 7, 7), {"stride": (2, 2)}),
        ((1, 8, 5, 6), (30, 8, 5, 5), {"padding": "same"}),
        ((1, 3, 23, 23), (5, 3, 11, 11), {"stride": (4, 4)}),
        ((1, 40, 5, 6), (30, 40, 3, 3), {"padding": (2, 2)}),
        ((2, 40, 5, 6), (40, 1, 3, 3), {"groups": 40}),
        ((1, 33, 1, 1), (3, 33, 1, 1), {}),
    ):
        for codes in (True, False):
            b = GraphBuilder()
            x = b.input("x", shape, "float32")
            w = b.constant("w", whole_codes(*weight) if codes else whole(*weight))
            q = b.node("quantize", (x,), {"format": "e4m3fn", "scale": 1.0})
            outputs = [b.node("conv2d", (v, w), attrs) for v in (x, q, b.node("relu", (x,)))]
            yield f"conv {shape} {weight}", b.finish(tuple(outputs)), {"x": whole(*shape)}
    for shape in ((1, 1, 1, 1), (2, 3, 5, 7), (1, 17, 4, 19), (3, 4, 16, 33)):
        b = GraphBuilder()
        x = b.input("x", shape, "float32")
        y = b.node("add", (x, b.constant("c", whole(*shape))))
        outputs = []
        for v in (x, y):
            outputs += [b.node(op, (v,)) for op in ("relu", "gelu", "silu", "exp", "tanh")]
            outputs += [b.node("softmax", (v,), {"dim": -1}), b.node("mean", (v,), {"dim": (2, 3)}), b.node("mul", (v, x))]
            outputs += [b.node("layer_norm", (v, None, None), {"normalized_shape": shape[3:], "eps": 1e-5})]
            outputs += [b.node("max_pool2d", (v,), {"kernel_size": (1, 1)}), b.node("avg_pool2d", (v,), {"kernel_size": (1, 1)})]
            outputs += [b.node("matmul", (v, b.node("transpose", (x,), {"dim0": 2, "dim1": 3})))]
            turned = b.node("permute", (v,), {"dims": (0, 2, 3, 1)})
            outputs += [b.node("relu", (b.node("reshape", (turned, None), {"shape": (shape[0], -1)}),))]
            outputs += [b.node("add", (v, b.node("select", (v,), {"dim": 0, "index": 0})))]
        yield f"others {shape}", b.finish(tuple(outputs)), {"x": whole(*shape)}
    for batch, length in ((1, 1), (3, 17)):
        yield f"transformer {batch} {length}", transformer(1), tokens(batch, length)
    yield "cnn", cnn(), {"x": whole(1, 3, 8, 8)}


def recurrent() -> Iterator[tuple[str, Graph, dict[str, Any]]]:
    """Sequences, of codes and of floats."""
    for name, gates in (("lstm", 4), ("gru", 3)):
        for codes in (True, False):
            b = GraphBuilder()
            x = b.input("x", (3, 2, 5), "float32")
            state = tuple(b.input(f"s{i}", (1, 2, 7), "float32") for i in range(gates - 2))
            matrices = (whole_codes if codes else whole)(gates * 7, 5), (whole_codes if codes else whole)(gates * 7, 7)
            weights = tuple(b.constant("w", w) for w in (*matrices, whole(gates * 7), whole(gates * 7)))
            source = b.node("quantize", (x,), {"format": "e4m3fn", "scale": 1.0}) if codes else x
            outputs = b.node(name, (source, *state, *weights))
            yield f"{name} {codes}", b.finish(tuple(outputs)), {"x": whole(3, 2, 5), **{s: whole(1, 2, 7) for s in state}}


def functions(at_end: bool) -> None:
    """The public functions on arrays beside a page that nobody may touch."""
    for m, k, n in ((1, 1, 1), (3, 33, 35), (2, 64, 32), (17, 100, 5), (1, 4096, 33)):
        x, w = placed(whole(m, k), at_end), placed(whole(k, n), at_end)
        a, b = quantize(x, "e4m3fn"), quantize(w, "e5m2", axis=1)
        left, right = (QTensor(placed(q.codes, at_end), q.format, q.scale) for q in (a, b))
        decode(left.codes, a.format)
        encode(x, "e4m3fn")
        encode(placed(whole(m, k).astype(np.float64), at_end), "e5m2")
        for how in ("fp32", "exact", "sequential", "hopper"):
            matmul(left, right, accumulate=how)
        for kind in ("fp8", "bf16"):
            packed = pack(right, pack=kind)
            matmul(left, packed)
            matmul(x, packed)
            matmul(x, packed, quantize="e4m3fn")
    for c, o, groups in ((3, 5, 1), (40, 33, 1), (40, 40, 40), (32, 32, 4)):
        pictures, filters = quantize(whole(1, c, 5, 6), "e4m3fn"), quantize(whole(o, c // groups, 3, 3), "e4m3fn", axis=0)
        conv2d(*(QTensor(placed(q.codes, at_end), q.format, q.scale) for q in (pictures, filters)), groups=groups, padding=1)


def main() -> None:
    """Runs everything."""
    _program.aligned = arena
    for at_end in (True, False):
        sys.stdout.write("functions\n")
        sys.stdout.flush()
        functions(at_end)
    for name, graph, inputs in itertools.chain(graphs(), recurrent()):
        sys.stdout.write(name + "\n")
        sys.stdout.flush()
        for at_end in (True, False):
            Model(graph).run({key: placed(array, at_end) for key, array in inputs.items()}, threads=2)
    sys.stdout.write("done")


if __name__ == "__main__":
    main()
