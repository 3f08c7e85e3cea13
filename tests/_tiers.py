"""Products and convolutions of every class of shape, checked; what `tests/test_tiers.py` runs in a process for each tier.

Writes the SHA-256 of the results whose bits are promised on every CPU.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import _integers
import numpy as np
from _graphs import cnn, defined, exact, gamma, native, one_node, run_one, whole, whole_codes
from _weights import normal

from fp8np import QTensor, conv2d, conv_transpose2d, matmul, pack, quantize
from fp8np.build import GraphBuilder
from fp8np.graph import leaves
from fp8np.interpret import interpret
from fp8np.kernels._cpu import describe
from fp8np.kernels._jit import compiled
from fp8np.kernels._threads import threads
from fp8np.model import Model

# M, K, N: no multiple of anything, one row, thin, tall, deep, and empty.
PRODUCTS = [
    (1, 1, 1), (1, 300, 33), (3, 31, 65), (4, 64, 32), (5, 33, 7), (17, 96, 31), (33, 257, 70), (9, 4100, 40), (130, 40, 100), (0, 5, 3),
    (4, 0, 3), (3, 5, 0),
]  # fmt: skip
TINY = [(1, 1, 1), (3, 33, 34), (0, 5, 3), (4, 0, 3)]
# x, w; stride, padding, dilation, groups.
CONVOLUTIONS: list[Any] = [
    ((2, 3, 13, 12), (33, 3, 7, 7), 2, 3, 1, 1),
    ((1, 40, 9, 8), (35, 40, 3, 3), 1, 1, 1, 1),
    ((2, 35, 9, 9), (20, 35, 3, 2), 2, ((1, 0), (0, 2)), 1, 1),
    ((1, 33, 11, 9), (8, 33, 3, 3), 1, 2, (2, 3), 1),
    ((2, 70, 5, 7), (65, 70, 1, 1), 1, 0, 1, 1),
    ((2, 40, 9, 8), (40, 1, 3, 3), 1, 1, 1, 40),
    ((1, 40, 9, 8), (40, 1, 3, 3), 2, 1, (1, 2), 40),
    ((1, 64, 6, 7), (64, 8, 3, 3), 1, 1, 1, 8),
    ((1, 18, 6, 7), (24, 6, 3, 3), 2, 1, 1, 3),
    ((1, 300, 4, 5), (40, 300, 3, 3), 1, 1, 1, 1),
    ((0, 5, 4, 4), (3, 5, 3, 3), 1, 1, 1, 1),
]
TINY_CONVOLUTIONS: list[Any] = [((1, 3, 4, 5), (5, 3, 3, 3), 2, 1, 1, 1), ((1, 4, 4, 4), (4, 1, 3, 3), 1, 1, 1, 4)]
FORMATS = (("e4m3fn", "e4m3fn"), ("e5m2", "e3m4fn"))


def fp8(fmt: str, *shape: int, axis: int | None = None, seed: int = 0) -> QTensor:
    if 0 in shape:
        return QTensor(np.zeros(shape, np.uint8), fmt)
    return quantize(normal(*shape, seed=seed).astype(np.float32), fmt, axis=axis)


def magnitude(q: QTensor) -> QTensor:
    return QTensor(q.codes & 0x7F, q.format, q.scale)


def within(got: Any, want: Any, size: Any, terms: int) -> None:
    """float32 `got` is no further from `want` than so many roundings of terms of this total magnitude."""
    assert got.dtype == np.float32
    assert got.shape == want.shape
    assert (np.abs(got.astype(np.float64) - want) <= gamma(terms) * size).all()


def digest(array: Any) -> str:
    return hashlib.sha256(np.where(np.isnan(array), np.float32(np.nan), array).tobytes()).hexdigest()


def products(shapes: list[tuple[int, int, int]]) -> Iterator[str]:
    for (m, k, n), (f, g) in itertools.product(shapes, FORMATS):
        a, b = fp8(f, m, k, axis=0 if m else None), fp8(g, k, n, axis=-1 if n else None, seed=1)
        law, size = matmul(a, b, accumulate="exact"), matmul(magnitude(a), magnitude(b), accumulate="exact")
        # Two scales, and the rounding of what is compared with.
        within(matmul(a, b), law, size, k + 3)
        init = normal(m, n).astype(np.float32)
        units = (init + matmul(QTensor(a.codes, a.format), QTensor(b.codes, b.format), accumulate="exact")) * a.scale * b.scale
        room = (np.abs(init) + matmul(*(magnitude(QTensor(q.codes, q.format)) for q in (a, b)))) * a.scale * b.scale
        within(matmul(a, b, init=init), units.astype(np.float64), room, k + 5)
        if k:
            for kind in ("fp8", "bf16"):
                packed = pack(b, pack=kind)
                within(matmul(a, packed), law, size, k + 3)
                x = normal(m, k).astype(np.float32)
                # Three bfloat16 for a float32.
                within(matmul(x, packed), x.astype(np.float64) @ exact(b), np.abs(x) @ np.abs(exact(b)) * (1 + 2.0**-6), 3 * k + 3)
        for how in ("exact", "sequential", "hopper"):
            yield digest(matmul(a, b, accumulate=how))


def convolutions(cases: list[Any]) -> Iterator[str]:
    for (x_shape, w_shape, stride, padding, dilation, groups), (f, g) in itertools.product(cases, FORMATS):
        x, w = fp8(f, *x_shape), fp8(g, *w_shape, axis=0, seed=1)
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        law, size = conv2d(x, w, accumulate="exact", **attrs), conv2d(magnitude(x), magnitude(w), accumulate="exact", **attrs)
        within(conv2d(x, w, **attrs), law, size, int(np.prod(w_shape[1:])) + 3)
        for how in ("exact", "sequential", "hopper"):
            yield digest(conv2d(x, w, accumulate=how, **attrs))
    x, w = fp8("e4m3fn", 1, 5, 4, 4), fp8("e5m2", 5, 6, 3, 2, axis=1)
    law, size = (conv_transpose2d(p, q, stride=(2, 3), padding=1, accumulate="exact") for p, q in ((x, w), (magnitude(x), magnitude(w))))
    within(conv_transpose2d(x, w, stride=(2, 3), padding=1), law, size, 30 + 3)
    yield digest(law)


def nodes() -> None:
    """One node of a plan each: against its definition in float64."""
    x, w = fp8("e4m3fn", 2, 35, 7, 6), fp8("e5m2", 20, 35, 3, 3, axis=0)
    floats = normal(2, 35, 7, 6).astype(np.float32), normal(20, 35, 3, 3).astype(np.float32)
    line, turned = fp8("e4m3fn", 2, 35, 30), fp8("e5m2", 35, 6, 3, 2, axis=1)
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any], int]] = [
        ("conv2d", (x, w), {"padding": (1, 1)}, 315),
        ("conv2d", (x, floats[1]), {"padding": (1, 1), "stride": (2, 1)}, 6 * 315),
        ("conv2d", (floats[0], w), {"dilation": (2, 1)}, 6 * 315),
        ("conv2d", floats, {}, 6 * 315),
        ("conv2d", (floats[0], normal(35, 1, 3, 3).astype(np.float32)), {"groups": 35}, 6 * 9),
        ("conv2d", (x, fp8("e4m3fn", 35, 1, 3, 3, axis=0)), {"groups": 35, "stride": (2, 2)}, 9),
        ("conv2d", (fp8("e4m3fn", 1, 3, 20, 19), fp8("e4m3fn", 40, 3, 7, 7, axis=0)), {"stride": (2, 2), "padding": (3, 3)}, 147),
        ("conv1d", (line, fp8("e4m3fn", 20, 35, 5, axis=0)), {"padding": "same", "dilation": (3,)}, 175),
        ("conv_transpose2d", (x, turned), {"stride": (2, 3), "padding": (1, 0)}, 210),
        ("matmul", (fp8("e4m3fn", 3, 70), fp8("e5m2", 70, 33, axis=-1)), {}, 70),
    ]
    for name, operands, attrs, terms in cases:
        got, natively = run_one(name, operands, (1,), attrs)
        assert natively, name
        size = defined(name, tuple(np.abs(exact(o)) for o in operands), attrs)
        within(got, defined(name, operands, attrs), size * (1 + 2.0**-6), terms + 4)
    for left, right in itertools.product((fp8("e4m3fn", 2, 20, 33), normal(2, 20, 33).astype(np.float32)), repeat=2):
        operands = left, right.transpose(0, 2, 1)
        got, _ = run_one("matmul", operands, ())
        within(got, exact(left) @ exact(operands[1]), np.abs(exact(left)) @ np.abs(exact(operands[1])) * (1 + 2.0**-6), 6 * 33 + 4)


def endings() -> None:
    """Products with what follows them, on whole numbers: bit for bit what the interpreter gives."""
    b = GraphBuilder()
    x = b.input("x", ("B", 20, 6, 5), "float32")
    q = b.node("quantize", (x,), {"format": "e4m3fn", "scale": 1.0})
    y = b.node("conv2d", (q, b.constant("w", whole_codes(20, 20, 3, 3))), {"padding": (1, 1)})
    y = b.node("relu6", (b.node("add", (y, x)),))
    q = b.node("quantize", (y,), {"format": "e5m2", "scale": 0.5})
    z = b.node("conv2d", (q, b.constant("w", whole_codes(45, 20, 3, 3)), b.constant("b", whole(45))), {"padding": (2, 1), "stride": (2, 2)})
    r = b.node("linear", (b.node("quantize", (z,), {"format": "e4m3fn", "scale": 4.0}), b.constant("w", whole(7, 3, most=1))))
    graph = b.finish((y, z, r))
    model = Model(graph)
    for batch, count in ((1, 1), (3, 2)):
        given = {"x": whole(batch, 20, 6, 5)}
        found = model.run(given, threads=count), interpret(graph, given), interpret(graph, given, dtype=np.float64)
        for got, want, law in zip(*map(leaves, found), strict=True):
            np.testing.assert_array_equal(want, law)
            np.testing.assert_array_equal(got, want)
        assert native(model)
    # gelu: its slope is at most 1.13, and it is right to 4 units in the last place.
    rows, w = normal(5, 70).astype(np.float32), fp8("e4m3fn", 40, 70, axis=0)
    b = GraphBuilder()
    model = Model(b.finish(b.node("gelu", (b.node("linear", (b.input("x", rows.shape, "float32"), b.constant("w", w))),))))
    law = interpret(model.graph, {"x": rows}, dtype=np.float64)
    bound = 1.13 * gamma(3 * 70 + 4) * (np.abs(rows) @ np.abs(exact(w)).T) * (1 + 2.0**-6) + 8 * 2.0**-24 * np.abs(law)
    assert (np.abs(model.run(rows) - law) <= bound).all()
    assert native(model)


def networks() -> None:
    graph = cnn()
    model = Model(graph)
    for size in ((1, 3, 8, 8), (2, 3, 16, 32), (1, 3, 16, 8)):
        given = {"x": whole(*size)}
        for got, want in zip(leaves(model.run(given)), leaves(interpret(graph, given)), strict=True):
            np.testing.assert_array_equal(got, want)
    assert native(model)


def whole_numbers(small: bool = False) -> None:
    """INT8, its sums in float32, and in int32 across slabs; few rows and many; filters of every kind."""
    for quantized in (_integers.DYNAMIC, _integers.STATIC):
        for m, k, n in [(3, 33, 34)] if small else [(1, 300, 40), (3, 1100, 33), (9, 1100, 33), (40, 70, 65)]:
            x = _integers.data(m, k, special=True)
            _integers.equal(*_integers.product("integer_linear", x, _integers.weight(n, k, extreme=k > 1000), quantized=quantized))
        if small:
            _integers.equal(*_integers.of_two(_integers.data(2, 5), _integers.data(5, 3), quantized))
            continue
        _integers.equal(*_integers.of_two(_integers.data(2, 5, 300), _integers.data(2, 300, 37), quantized))
        for channels, groups, shape in [(40, 1, (70, 40, 3, 3)), (40, 40, (40, 1, 5, 5)), (64, 8, (64, 8, 3, 3)), (3, 1, (5, 3, 7, 7))]:
            x = _integers.data(2, channels, 9, 8)
            attrs = {"padding": (3, 2), "stride": (2, 1), "groups": groups}
            _integers.equal(*_integers.product("integer_conv2d", x, _integers.weight(*shape), quantized=quantized, ending="relu6", **attrs))


def tiny_model() -> None:
    graph, given = one_node("linear", (fp8("e4m3fn", 3, 33), fp8("e4m3fn", 34, 33, axis=0), normal(34).astype(np.float32)), (1, 2))
    got, law = Model(graph).run(given), interpret(graph, given, dtype=np.float64)
    within(got, law, np.abs(law) + 33 * 10, 33 + 5)


def main() -> None:
    if not compiled():
        with threads(1):
            tiny_model()
            whole_numbers(small=True)
            found = [*products(TINY), *convolutions(TINY_CONVOLUTIONS)]
        sys.stdout.write(json.dumps({"tier": describe().tier, "tiny": found}))
        return
    results = {"tier": describe().tier, "tiny": [*products(TINY), *convolutions(TINY_CONVOLUTIONS)]}
    results["all"] = [*products(PRODUCTS), *convolutions(CONVOLUTIONS)]
    nodes()
    endings()
    networks()
    whole_numbers()
    tiny_model()
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
