"""Running: the plan against the interpreter, inputs in all their forms, threads, sizes, and what is said when something is wrong."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8np
from fp8np.artifact import save
from fp8np.build import GraphBuilder
from fp8np.errors import ArtifactError, ExecutionError, InputError, PolicyError
from fp8np.graph import Graph, leaves
from fp8np.interpret import interpret
from fp8np.layers import _op
from fp8np.layers._op import OPS, Spec, op
from fp8np.model import _MAX_PLANS, Model
from fp8np.ptq.workflow import quantize_model

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def small_network() -> Graph:
    """Convolutions, a depthwise one, a normalisation, a linear layer; any batch."""
    b = GraphBuilder()
    x = b.input("x", ("B", 3, 12, 12), "float32")
    y = b.node("conv2d", (x, b.constant("w0", normal(8, 3, 3, 3)), b.constant("b0", normal(8))), {"padding": (1, 1), "stride": (1, 1)})
    y = b.node("relu", (y,))
    y = b.node("conv2d", (y, b.constant("w1", normal(8, 1, 3, 3)), None), {"padding": (1, 1), "stride": (2, 2), "groups": 8})
    y = b.node("batch_norm", (y, b.constant("m", normal(8)), b.constant("v", np.abs(normal(8)) + 1), b.constant("g", normal(8)), None))
    y = b.node("mean", (y,), {"dim": (2, 3)})
    y = b.node("linear", (y, b.constant("w2", normal(5, 8)), b.constant("b2", normal(5))))
    return b.finish({"logits": y, "parts": (y, [y])})


@pytest.fixture(scope="module")
def batch() -> Any:
    return normal(6, 3, 12, 12)


@pytest.fixture(scope="module")
def quantized(batch: Any) -> Graph:
    return quantize_model(small_network(), "e4m3", [batch]).graph


def test_plan_gives_what_the_graph_means(batch: Any, quantized: Graph) -> None:
    for graph in (small_network(), quantized):
        law = interpret(graph, {"x": batch}, dtype=np.float64)
        got = Model(graph).run(batch)
        assert set(got) == {"logits", "parts"}
        assert isinstance(got["parts"], tuple)
        assert isinstance(got["parts"][1], list)
        np.testing.assert_allclose(got["logits"], law["logits"], rtol=0, atol=1e-5 * np.abs(law["logits"]).max())


def test_the_bits_do_not_depend_on_the_threads(batch: Any, quantized: Graph) -> None:
    model = Model(quantized)
    large = np.tile(batch, (20, 1, 1, 1))
    expected = model.run(large, threads=1)["logits"]
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(model.run(large, threads=threads)["logits"], expected)


def test_many_threads_may_run_one_model(batch: Any, quantized: Graph) -> None:
    model = Model(quantized)
    sizes = [1, 2, 3, 5, 6] * 4
    expected = {n: model.run(batch[:n])["logits"] for n in set(sizes)}
    with ThreadPoolExecutor(4) as pool:
        for n, got in zip(sizes, pool.map(lambda n: Model.run(model, batch[:n], threads=2)["logits"], sizes), strict=True):
            np.testing.assert_array_equal(got, expected[n])


def test_running_leaves_inputs_and_weights_alone(batch: Any) -> None:
    b = GraphBuilder()
    x = b.input("x", ("B",), "float32")
    w = b.constant("w", np.ones(2, np.float32))
    model = Model(b.finish((x, w, b.node("unsqueeze", (x,), {"dim": 0}), b.node("unsqueeze", (w,), {"dim": 0}))))
    given = np.zeros(3, np.float32)
    for output in model.run(given):
        output[:] = 7
    assert not given.any()
    np.testing.assert_array_equal(model.run(given)[1], [1, 1])


def two_inputs() -> Model:
    b = GraphBuilder()
    ids = b.input("ids", ("B", "T"), "int64")
    weights = b.input("weights", ("B", "T"), "float32")
    rows = b.node("embedding", (b.constant("table", normal(10, 4)), ids))
    return Model(b.finish(b.node("mul", (rows, b.node("unsqueeze", (weights,), {"dim": -1})))))


def test_inputs_by_position_and_by_name() -> None:
    model = two_inputs()
    ids, weights = np.array([[1, 2]]), np.ones((1, 2), np.float32)
    expected = model.run((ids, weights))
    np.testing.assert_array_equal(model.run({"weights": weights, "ids": ids}), expected)
    np.testing.assert_array_equal(model([ids.astype(np.int32), weights.astype(np.float64)]), expected)
    np.testing.assert_array_equal(model.run((ids[:, ::-1], weights)), expected[:, ::-1])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ids": np.zeros((1, 2), int)}, "missing weights: float32[B, T]"),
        ({"ids": np.zeros((1, 2), int), "weights": np.zeros((1, 2)), "mask": 1}, "unknown mask"),
        ((np.zeros((1, 2), int),), "expected 2 (ids: int64[B, T], weights: float32[B, T]), got 1"),
        ((np.zeros((1, 2)), np.zeros((1, 2))), "input 'ids': expected ids: int64[B, T], got float64"),
        ((np.zeros(2, int), np.zeros((1, 2))), "input 'ids': expected ids: int64[B, T], got shape [2]"),
        ((np.zeros((1, 2), int), np.zeros((1, 3))), "input 'weights': T is 2 elsewhere, but axis 1 has 3"),
        ((np.zeros((1, 2), int), np.array([["a", "b"]])), "input 'weights'"),
        ((np.full((1, 2), 2**63, np.uint64), np.zeros((1, 2))), "values that do not fit"),
    ],
)
def test_wrong_inputs_say_what_was_expected(inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        two_inputs().run(inputs)


def test_an_index_out_of_range_names_the_node() -> None:
    with pytest.raises(InputError, match=r"node 'embedding' \(embedding\) failed: embedding: expected indices in 0..9; got 1..99"):
        two_inputs().run((np.array([[1, 99]]), np.ones((1, 2))))


def test_a_node_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_op, "_rows", dict(OPS))
    _op.ops.cache_clear()
    try:

        def fail(x: Any) -> Any:
            raise ZeroDivisionError("no such luck")

        op("fail", ("x",), shape=lambda x: Spec(x.shape), define=fail)
        b = GraphBuilder()
        model = Model(b.finish(b.node("fail", (b.input("x", (2,), "float32"),), name="head", origin="net.head")))
        with pytest.raises(ExecutionError, match=r"node 'head' \(fail, from net.head\) failed: no such luck"):
            model.run(np.zeros(2))
    finally:
        _op.ops.cache_clear()


def test_sizes_that_a_model_cannot_run_at(batch: Any) -> None:
    b = GraphBuilder()
    x = b.input("x", ("T",), "float32")
    table = b.constant("table", normal(4))
    model = Model(b.finish(b.node("add", (x, b.node("slice", (table,), {"dim": 0, "end": b.facts(x).shape[0]})))))
    assert model.run(np.zeros(3)).shape == (3,)
    with pytest.raises(InputError, match="cannot run at T=9: node 'slice'"):
        model.run(np.zeros(9))


def test_plans_are_kept_but_not_without_end(quantized: Graph, batch: Any) -> None:
    b = GraphBuilder()
    model = Model(b.finish(b.node("relu", (b.input("x", ("B",), "float32"),))))
    for n in range(_MAX_PLANS + 5):
        model.run(np.zeros(n))
    assert len(model._plans) == _MAX_PLANS


def test_an_infinity_on_the_way_warns_nobody() -> None:
    b = GraphBuilder()
    x = b.input("x", (2,), "float32")
    model = Model(b.finish(b.node("exp", (x,))))
    np.testing.assert_array_equal(model.run(np.array([1000, np.nan])), [np.inf, np.nan])


def test_load_and_run_a_file(tmp_path: Path, quantized: Graph, batch: Any) -> None:
    path = tmp_path / "model.safetensors"
    save(quantized, path)
    expected = Model(quantized).run(batch)["logits"]
    np.testing.assert_array_equal(fp8np.run(path, batch)["logits"], expected)
    np.testing.assert_array_equal(fp8np.run(fp8np.load(str(path)), {"x": batch}, threads=2)["logits"], expected)
    with pytest.raises(FileNotFoundError):
        fp8np.load(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        fp8np.load(path)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_thread_counts_are_positive_integers(threads: Any, quantized: Graph, batch: Any) -> None:
    with pytest.raises(PolicyError, match="positive integer"):
        Model(quantized).run(batch, threads=threads)


def test_looking_sees_what_a_run_returns() -> None:
    model = Model(small_network())
    inputs = np.random.default_rng(5).standard_normal((3, *model.inputs[0].shape[1:])).astype(np.float32)
    seen: list[Any] = []
    model.look(inputs, lambda outputs: seen.append([np.array(array) for array in leaves(outputs)]))
    for got, expected in zip(seen[0], leaves(model.run(inputs)), strict=True):
        np.testing.assert_array_equal(got, expected)
