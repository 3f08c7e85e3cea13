"""Scales for tokens and for blocks, and powers of two: what `quantize` means, what graphs may hold, and plans against the law."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _graphs import gamma, native, whole
from _weights import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.artifact import load_graph, save
from fp8np.build import GraphBuilder
from fp8np.check import check
from fp8np.describe import describe
from fp8np.errors import ArtifactError, GraphError
from fp8np.formats import FORMATS
from fp8np.graph import Graph
from fp8np.interpret import interpret
from fp8np.kernels._program import run_tasks
from fp8np.kernels._threads import threads
from fp8np.kernels.rounding import round_task, round_tokens_task, rounds
from fp8np.layers._op import OPS
from fp8np.model import Model
from fp8np.plan.fuse import fused
from fp8np.scaling import dequantize, quantize, rounded_up_to_power_of_two, scale_for
from fp8np.scheme import PerToken
from fp8np.tensor import QTensor

SIGNED = [f for f in FORMATS.values() if f.signed]
ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-30, 3e38, -3e38, 1.0], np.float32)


def coded(b: GraphBuilder, x: str, fmt: str = "e4m3fn", **attrs: Any) -> str:
    return str(b.node("quantize", (x,), {"format": fmt, **attrs}))


def graph_of(build: Callable[[GraphBuilder, str], Any], shape: tuple[Any, ...]) -> Graph:
    b = GraphBuilder()
    return b.finish(build(b, b.input("x", shape, "float32")))


def wild(*shape: int, seed: int = 0) -> Any:
    """Rows of very different magnitudes."""
    rng = np.random.default_rng((seed, *shape))
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-20, 20, (*shape[:-1], 1)))).astype(np.float32)


def same_bits(got: Any, want: Any) -> None:
    """One NaN is as good as another."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.where(np.isnan(got), 0, got).view(np.uint32), np.where(np.isnan(want), 0, want).view(np.uint32))


# -- the op -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(width=32, min_value=2.0**-126, max_value=2.0**127, exclude_max=False), min_size=1))
def test_the_smallest_power_of_two_above(scales: list[float]) -> None:
    up = rounded_up_to_power_of_two(scales).astype(np.float64)
    assert (np.frexp(up)[0] == 0.5).all()
    assert (np.asarray(scales) <= up).all()
    assert (up < 2 * np.asarray(scales)).all()


def test_no_power_of_two_above_the_largest() -> None:
    assert rounded_up_to_power_of_two(3e38) == 2.0**127
    assert scale_for(3 * 448, "e4m3fn", power_of_two=True) == 4


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4), (0, 4), (2, 1, 1), (3, 0)])
def test_a_token_is_quantized_by_itself(shape: tuple[int, ...], power_of_two: bool) -> None:
    x = wild(*shape)
    attrs = {"format": "e4m3fn", "scale": None, "power_of_two": power_of_two}
    q = OPS["quantize"].define(x, granularity=str(PerToken()), **attrs)
    assert q.scale.shape == (*shape[:-1], 1)
    for index in np.ndindex(shape[:-1]):
        alone = OPS["quantize"].define(x[index], granularity="tensor", **attrs)
        np.testing.assert_array_equal(q.codes[index], alone.codes)
        assert q.scale[index] == alone.scale
    if power_of_two:
        # Rounded up: the largest still fits, and scaling is exact.
        np.testing.assert_array_equal(np.frexp(q.scale)[0], 0.5)
        assert (np.abs(x) <= 448 * q.scale).all()


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"granularity": "channel"}, "expected granularity to be one of tensor, token"),
        ({"power_of_two": 1}, "power_of_two True or False"),
        ({"granularity": "token", "scale": 1.0}, "scales of tokens are found at each run; expected scale None, got 1.0"),
        ({"power_of_two": True, "scale": 0.75}, "expected a scale that is a power of two, or power_of_two False; got 0.75"),
    ],
)
def test_attributes_that_contradict_each_other(attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph_of(lambda b, x: coded(b, x, **attrs), (2, 3))


def test_a_number_has_no_tokens() -> None:
    with pytest.raises(GraphError, match="x with at least one axis"):
        graph_of(lambda b, x: b.node("add", (coded(b, x, granularity="token"), x)), ())


# -- rounding as a task -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", SIGNED, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.37, 2.0**-126])
def test_rounding_gives_what_the_codes_stand_for(fmt: Any, scale: float) -> None:
    if not rounds(fmt):
        assert fmt.mantissa_bits == 0
        return
    x = np.concatenate([ODD, wild(40, 25).reshape(-1), fmt.max * np.float32(scale) * np.linspace(-1.1, 1.1, 999, dtype=np.float32)])
    y = np.empty_like(x)
    run_tasks(round_task(x, y, len(x), fmt, np.array([scale], np.float32)))
    with np.errstate(all="ignore"):
        same_bits(y, dequantize(quantize(x, fmt, scale=scale)))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 70), st.sampled_from([f for f in SIGNED if rounds(f)]), st.booleans(), st.integers(0, 9))
def test_rounding_by_tokens(rows: int, k: int, fmt: Any, power_of_two: bool, odd: int) -> None:
    x = wild(rows, k)
    x[0, 0] = ODD[odd]
    y = np.empty_like(x)
    run_tasks(round_tokens_task(x, 4 * k, y, x.shape, fmt, power_of_two=power_of_two))
    with np.errstate(all="ignore"):
        want = OPS["quantize"].define(x, format=fmt.name, scale=None, granularity="token", power_of_two=power_of_two)
        same_bits(y, dequantize(want))


# -- products ---------------------------------------------------------------------------------------------------------

HOW: dict[str, dict[str, Any]] = {
    "static": {"scale": 0.01},
    "dynamic": {},
    "dynamic power of two": {"power_of_two": True},
    "token": {"granularity": "token"},
    "token power of two": {"granularity": "token", "power_of_two": True},
}
BLOCKS = {"channel": None, "group": (1, 64), "block": (128, 128), "small block": (16, 32), "whole": (1, 0), "odd group": (1, 20)}


def codes(*shape: int, block: tuple[int, ...] | None = None, fmt: str = "e4m3fn") -> QTensor:
    values = normal(*shape).astype(np.float32)
    return quantize(values, fmt, axis=0) if block is None else quantize(values, fmt, block=block)


def near(graph: Graph, x: Any, terms: int) -> Model:
    """The plan's result is within so many roundings of the law, of magnitudes that are those of a graph without signs."""
    model = Model(graph)
    got, law = model.run(x), interpret(graph, {"x": x}, dtype=np.float64)
    unsigned = graph.replace(constants={n: _magnitude(c) for n, c in graph.constants.items()})
    size = interpret(unsigned, {"x": np.abs(x)}, dtype=np.float64)
    assert (np.abs(got - law) <= gamma(terms) * np.abs(size) + 1e-37).all()
    assert native(model)
    for n in (1, 2):
        with threads(n):
            np.testing.assert_array_equal(Model(graph).run(x), got)
    return model


def _magnitude(c: Any) -> Any:
    return QTensor(c.codes & 0x7F, c.format, c.scale, block=c.block) if isinstance(c, QTensor) else np.abs(c)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("how", HOW)
def test_linear(how: str, block: str) -> None:
    for rows, n, k in ((1, 33, 70), (3, 40, 300), (37, 130, 257)):
        w = codes(n, k, block=BLOCKS[block])

        def build(b: GraphBuilder, x: str, w: Any = w, n: int = n) -> str:
            y = b.node("linear", (coded(b, x, **HOW[how]), b.constant("w", w), b.constant("b", normal(n).astype(np.float32))))
            return str(b.node("relu", (y,))) if n == 40 else str(y)

        near(graph_of(build, (rows, k)), normal(rows, k).astype(np.float32), k + 8)


@pytest.mark.parametrize("how", HOW)
def test_matmul(how: str) -> None:
    w = codes(70, 33).T
    groups = QTensor(codes(33, 300, block=(1, 64)).codes.T, "e4m3fn", codes(33, 300, block=(1, 64)).scale.T, block=(64, 1))
    for weight in (w, groups):
        graph = graph_of(lambda b, x, c=weight: b.node("matmul", (coded(b, x, **HOW[how]), b.constant("w", c))), (2, 5, len(weight.codes)))
        near(graph, normal(2, 5, len(weight.codes)).astype(np.float32), 308)


@pytest.mark.parametrize("left", HOW)
@pytest.mark.parametrize("right", HOW)
def test_products_of_computed_operands(left: str, right: str) -> None:
    def build(b: GraphBuilder, x: str) -> str:
        turned = b.node("transpose", (x,), {"dim0": 1, "dim1": 2})
        return str(b.node("matmul", (coded(b, x, **HOW[left]), coded(b, turned, "e5m2", **HOW[right]))))

    near(graph_of(build, (3, 9, 40)), normal(3, 9, 40).astype(np.float32), 48)


def test_rows_of_very_different_magnitude_keep_their_precision() -> None:
    """One scale flushes small tokens to zero; one for each does not."""
    x, w = wild(20, 64), codes(16, 64)

    def build(b: GraphBuilder, v: str, how: str) -> str:
        return str(b.node("linear", (coded(b, v, **HOW[how]), b.constant("w", w))))

    graphs = [graph_of(functools.partial(build, how=how), x.shape) for how in ("dynamic", "token")]
    exact = x.astype(np.float64) @ dequantize(w, dtype=np.float64).T
    size = np.abs(x).astype(np.float64) @ np.abs(dequantize(w)).T
    tensor, token = ((np.abs(Model(g).run(x) - exact) / size).max(axis=1) for g in graphs)
    assert token.max() < 2.0**-4
    assert tensor.max() > 0.25


@pytest.mark.parametrize("how", ["static", "dynamic", "token"])
@pytest.mark.parametrize(
    ("shape", "block", "attrs"),
    [
        ((40, 70, 3, 3), (1, 32, 0, 0), {"padding": (1, 1)}),
        ((33, 64, 1, 1), (16, 64, 0, 0), {"stride": (2, 2)}),
        ((33, 64, 3, 2), (1, 32, 1, 0), {}),
        ((70, 1, 3, 3), (1, 8, 0, 0), {"groups": 70}),
        ((70, 35, 3, 3), (1, 32, 0, 0), {"groups": 2}),
        ((8, 70, 3, 3), (4, 0, 0, 0), {}),
    ],
)
def test_convolutions(how: str, shape: tuple[int, ...], block: tuple[int, ...], attrs: dict[str, Any]) -> None:
    w = codes(*shape, block=block)
    x = normal(2, 64 if shape[1] == 64 else 70, 7, 6).astype(np.float32)
    graph = graph_of(lambda b, v: b.node("conv2d", (coded(b, v, **HOW[how]), b.constant("w", w)), attrs), x.shape)
    near(graph, x, int(np.prod(shape[1:])) + 12)


def test_groups_stay_codes_where_a_product_takes_them() -> None:
    """In whole steps; what is left becomes floats, or a weight with a scale for each output."""
    kept = {"group": True, "block": True, "small block": True, "whole": True, "odd group": False}
    for name, codes_kept in kept.items():
        w = codes(40, 300, block=BLOCKS[name])
        graph = fused(graph_of(lambda b, x, w=w: b.node("linear", (coded(b, x), b.constant("w", w))), (2, 300)))
        (weight,) = graph.constants.values()
        assert isinstance(weight, QTensor) == codes_kept, name
        assert np.array_equal(dequantize(weight) if isinstance(weight, QTensor) else weight, dequantize(w))


@pytest.mark.parametrize("how", ["token", "dynamic power of two"])
def test_values_in_any_order(how: str) -> None:
    """Sources that are views: rows of a transposed or sliced value."""
    w = quantize(whole(5, 6, most=1), "e4m3fn", scale=1.0)

    def build(b: GraphBuilder, x: str) -> Any:
        turned = b.node("permute", (b.node("slice", (x,), {"dim": 2, "start": 1, "end": 9, "step": 2}),), {"dims": (0, 2, 1)})
        q = coded(b, turned, **HOW[how])
        return b.node("linear", (q, b.constant("w", w))), b.node("add", (q, turned))

    graph = graph_of(build, (3, 6, 9))
    x = whole(3, 6, 9)
    for got, want in zip(Model(graph).run(x), interpret(graph, {"x": x}), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_recurrent_layers_over_tokens(op: str) -> None:
    """Tokens of one magnitude have one scale, and then the plan's bits are those of that scale."""
    gates, hidden = {"lstm": 4, "gru": 3}[op], 24
    x = (normal(2, 5, 20) * 3).astype(np.float32)
    x[..., 0] = 448.0 / 16

    def build(**attrs: Any) -> Graph:
        def node(b: GraphBuilder, v: str) -> Any:
            weights = [b.constant("w", codes(gates * hidden, n)) for n in (20, hidden)]
            biases = [b.constant("b", normal(gates * hidden).astype(np.float32)) for _ in range(2)]
            states = (None,) * (gates - 2)
            return b.node(op, (coded(b, v, **attrs), *states, *weights, *biases), {"batch_first": True})[0]

        return graph_of(node, x.shape)

    model = Model(build(granularity="token"))
    np.testing.assert_array_equal(model.run(x), Model(build(scale=1 / 16)).run(x))
    assert native(model)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 17), st.integers(1, 33), st.sampled_from(["embedding", "embedding_bag"]))
def test_tables_with_blocks(rows: int, width: int, high: int, wide: int, op: str) -> None:
    table = quantize(normal(rows, width).astype(np.float32), "e4m3fn", block=(high, wide))
    b = GraphBuilder()
    ids = b.input("ids", (2, 3), "int64")
    graph = b.finish(b.node(op, (b.constant("w", table), ids)))
    given = np.random.default_rng(rows).integers(0, rows, (2, 3))
    np.testing.assert_array_equal(Model(graph).run(given), interpret(graph, {"ids": given}))


# -- graphs and files -------------------------------------------------------------------------------------------------


def _blocked() -> Graph:
    return graph_of(
        lambda b, x: b.node("linear", (coded(b, x, granularity="token", power_of_two=True), b.constant("w", codes(6, 100, block=(4, 32))))),
        ("B", "T", 100),
    )


def test_a_file_keeps_blocks_and_tokens(tmp_path: Path) -> None:
    graph = _blocked()
    save(graph, tmp_path / "a.safetensors")
    again = load_graph(tmp_path / "a.safetensors")
    save(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    (old,), (new,) = graph.constants.values(), again.constants.values()
    assert isinstance(old, QTensor)
    assert isinstance(new, QTensor)
    assert new.block == old.block == (4, 32)
    np.testing.assert_array_equal(new.scale, old.scale)
    x = normal(2, 3, 100).astype(np.float32)
    np.testing.assert_array_equal(Model(again).run(x), Model(graph).run(x))


def _text(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + n]), content[8 + n :]


def _put(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_older_readers_refuse_what_they_would_misread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(_blocked(), path)
    assert json.loads(_text(path)[0]["__metadata__"]["fp8np"])["version"] == 2
    plain = graph_of(lambda b, x: b.node("linear", (coded(b, x), b.constant("w", codes(6, 100)))), (2, 100))
    save(plain, path)
    graph = json.loads(_text(path)[0]["__metadata__"]["fp8np"])
    assert graph["version"] == 1
    assert "block" not in graph["constants"]["w"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ([4], "expected a block of 2 lengths"),
        ([4, 0], "each at least 1"),
        ([4, 32.0], "each at least 1"),
        ("4x32", "expected an array"),
        ([4, 64], "expected a scale of shape"),
        ([2**63, 1], "each at least 1"),
    ],
)
def test_blocks_that_do_not_fit(tmp_path: Path, block: Any, message: str) -> None:
    path = tmp_path / "model.safetensors"
    save(_blocked(), path)
    header, data = _text(path)
    graph = json.loads(header["__metadata__"]["fp8np"])
    graph["constants"]["w"]["block"] = block
    header["__metadata__"]["fp8np"] = json.dumps(graph)
    _put(path, header, data)
    with pytest.raises(ArtifactError, match=message):
        load_graph(path)
    # And none in a file of the first version.
    graph["version"] = 1
    header["__metadata__"]["fp8np"] = json.dumps(graph)
    _put(path, header, data)
    with pytest.raises(ArtifactError, match="expected an object with dtype, shape, scale, got"):
        load_graph(path)


def test_blocks_are_for_weights_of_products() -> None:
    with pytest.raises(
        GraphError, match=r"input 'y' of add takes one scale, or one for each channel; 'w' has one for each block of \(1, 4\)"
    ):
        graph_of(lambda b, x: b.node("add", (x, b.constant("w", codes(3, 8, block=(1, 4))))), (3, 8))
    powers = quantize(normal(3, 64).astype(np.float32), "mxfp8_e4m3")
    graph = _blocked()
    with pytest.raises(GraphError, match="expected scales in float32, got float8_e8m0fnu"):
        check(graph.replace(constants={"w": powers, **{n: c for n, c in graph.constants.items() if n != "w"}}))


def test_described() -> None:
    (layer,) = describe(_blocked())["layers"]
    assert layer["weights"][0]["block"] == [4, 32]
    assert layer["activations"] == [{"name": "x", "format": "e4m3fn", "scale": None, "granularity": "token", "power_of_two": True}]
    assert dataclasses.asdict(PerToken()) == {}
