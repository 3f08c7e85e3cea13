"""Runs of a plan: many threads at once, after a fork, one after the other in the same memory, and after something went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _graphs import cnn, native, one_node, tokens, transformer, whole, whole_codes
from _weights import normal

from fp8np.build import GraphBuilder
from fp8np.errors import ExecutionError, InputError
from fp8np.graph import leaves
from fp8np.interpret import interpret
from fp8np.kernels._jit import compiled
from fp8np.layers import _op
from fp8np.layers._op import OPS, Spec, op
from fp8np.model import Model
from fp8np.scaling import quantize


def bits(outputs: Any) -> list[bytes]:
    return [np.ascontiguousarray(array).tobytes() for array in leaves(outputs)]


def pictures(batch: int, height: int, width: int, seed: int = 0) -> dict[str, Any]:
    return {"x": normal(batch, 3, height, width, seed=seed).astype(np.float32)}


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("graph", "inputs"), [(cnn(), pictures(3, 32, 32)), (cnn(), pictures(1, 8, 8)), (transformer(), tokens(3, 40))])
def test_the_bits_do_not_depend_on_the_threads(graph: Any, inputs: Any) -> None:
    model = Model(graph)
    alone = bits(model.run(inputs, threads=1))
    for threads in (2, 3, 3, 2, 1):
        assert bits(model.run(inputs, threads=threads)) == alone


def test_many_threads_run_one_model_at_once() -> None:
    """Eight threads, each with inputs, sizes and thread counts of its own, while plans are made: the bits of serial runs."""
    jobs: list[tuple[Model, Any, int]] = []
    models = Model(cnn()), Model(transformer())
    for i in range(48):
        size = [(1, 8, 8), (2, 16, 8), (1, 16, 16), (3, 8, 16)][i % 4]
        inputs: Any = pictures(*size, seed=i) if i % 2 else tokens(1 + i % 3, 5 + i % 4)
        jobs.append((models[1 - i % 2], inputs, 1 + i % 3))
    expected = [bits(Model(model.graph).run(inputs, threads=1)) for model, inputs, _ in jobs]
    gate = threading.Barrier(8)

    def work(worker: int) -> list[tuple[int, list[bytes]]]:
        gate.wait()
        return [(i, bits(model.run(inputs, threads=n))) for i, (model, inputs, n) in enumerate(jobs) if i % 8 == worker or i % 5 == 0]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for i, got in results:
                assert got == expected[i]


FORK = """
import os, sys, warnings
import numpy as np
from _graphs import cnn, whole
from fp8np.model import Model
warnings.simplefilter("ignore", DeprecationWarning)  # of forks among threads, which is what this is about
model, other, x = Model(cnn()), Model(cnn()), {"x": whole(8, 3, 32, 32)}
before = model.run(x, threads=2)["logits"]
child = os.fork()
if not child:
    same = [np.array_equal(m.run(x, threads=n)["logits"], before) for m in (model, other) for n in (2, 3, 1)]
    os._exit(0 if all(same) else 1)
assert np.array_equal(model.run(x, threads=2)["logits"], before)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_runs_models() -> None:
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))}
    done = subprocess.run([sys.executable, "-c", FORK], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [cnn(), transformer()])
def test_memory_is_used_again_and_nothing_stays_in_it(graph: Any) -> None:
    model = Model(graph)
    if "x" in (v.name for v in graph.inputs):
        first, second, poison = pictures(2, 16, 16), pictures(2, 16, 16, seed=1), {"x": np.full((2, 3, 16, 16), np.nan, np.float32)}
    else:
        first, second, poison = tokens(2, 9), {"ids": tokens(2, 9)["ids"][::-1], "mask": np.ones((2, 9), bool)}, tokens(4, 20)
    expected = bits(model.run(first))
    other = bits(model.run(second))
    assert other != expected
    model.run(poison)
    assert bits(model.run(first)) == expected
    (plan, *_) = model._plans.values()
    assert plan.memory < 4 << 20
    free = plan.program._free
    for _ in range(5):
        model.run(first)
    assert plan.program._free is free
    assert len(free) == 1


def test_plans_of_all_sizes_work_in_one_memory() -> None:
    model = Model(cnn())
    for batch in (*range(1, 9), 3, 1):
        model.run(whole(batch, 3, 16, 16))
    assert model._ready is not None
    ((arena, _),) = model._ready[1].arenas._free
    assert len(arena) <= 2 * max(plan.memory for plan in model._plans.values())
    assert not any(memory.arena.size for plan in model._plans.values() for memory in plan.program._free)


def test_outputs_belong_to_the_caller() -> None:
    """Whatever an output is (an input, a weight, a view of one, of a result, or twice the same), writing into it changes nothing."""
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    w = b.constant("w", whole(3, 4))
    y = b.node("relu", (x,))
    table = b.constant("t", whole_codes(3, 4))
    outputs = {
        "input": x,
        "view of the input": b.node("unsqueeze", (x,), {"dim": 0}),
        "weight": w,
        "view of the weight": b.node("transpose", (w,), {"dim0": 0, "dim1": 1}),
        "value": y,
        "again": [y, y],
        "view": b.node("slice", (y,), {"dim": 1, "start": 1, "end": 4, "step": 2}),
        "linear": b.node("linear", (y, table)),
        "nothing": None,
    }
    graph = b.finish(outputs)
    model, given = Model(graph), whole(2, 4)
    kept = given.copy()
    want = interpret(graph, {"x": given})
    for _ in range(3):
        got = model.run(given)
        assert list(got) == list(outputs)
        assert got["nothing"] is None
        for a, b_ in zip(leaves(got), leaves(want), strict=True):
            np.testing.assert_array_equal(a, b_, strict=True)
        arrays = list(leaves(got))
        for i, array in enumerate(arrays):
            assert array.flags.writeable
            assert array.flags.c_contiguous
            assert not any(np.shares_memory(array, other) for other in (given, *arrays[:i]))
            array[...] = 77
    np.testing.assert_array_equal(given, kept)


def test_a_graph_without_inputs_or_without_nodes() -> None:
    b = GraphBuilder()
    model = Model(b.finish((b.constant("w", whole(3)), b.node("relu", (b.constant("v", whole(4)),)))))
    for _ in range(2):
        got = model.run({})
        np.testing.assert_array_equal(got[0], whole(3))
        np.testing.assert_array_equal(got[1], np.maximum(whole(4), 0))
    b = GraphBuilder()
    x = b.input("x", ("B", 2), "int64")
    np.testing.assert_array_equal(Model(b.finish([x])).run(np.array([[1, 2]]))[0], [[1, 2]])


def test_inputs_may_lie_anywhere() -> None:
    """Not aligned, not contiguous, read-only, of another byte order or width: the same bits."""
    graph = cnn()
    x = whole(2, 3, 8, 8)
    expected = bits(Model(graph).run(x))
    raw = np.empty(x.nbytes + 1, np.uint8)
    shifted = raw[1:].view(np.float32).reshape(x.shape)
    shifted[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for given in (shifted, frozen, last, np.repeat(x, 2, 3)[..., ::2], x.astype(">f4"), x.astype(np.float64), x.astype(np.float16)):
        assert bits(Model(graph).run(given)) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux") or not compiled(), reason="guards memory as Linux does")
def test_nothing_is_read_beyond_inputs_and_arenas() -> None:
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))}
    done = subprocess.run([sys.executable, str(tests / "_guarded.py")], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("done"), (done.stdout.splitlines()[-1:], done.stderr)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_names_its_node_and_leaves_the_plan_as_it_was() -> None:
    model = Model(transformer())
    good = tokens(2, 6)
    bad = {**good, "ids": np.full((2, 6), 50)}
    expected = bits(model.run(good))
    for _ in range(3):
        with pytest.raises(
            InputError, match=r"node 'embedding' \(embedding\) failed: embedding: expected indices in 0\.\.49; got 50\.\.50"
        ):
            model.run(bad)
        assert bits(model.run(good)) == expected
    (plan,) = model._plans.values()
    assert len(plan.program._free) == 1


def test_errors_of_some_threads_do_not_disturb_others() -> None:
    model = Model(transformer())
    good = tokens(2, 6)
    bad = {**good, "ids": np.full((2, 6), -1)}
    expected = bits(model.run(good))

    def work(i: int) -> bool:
        if i % 3:
            return bits(model.run(good, threads=1 + i % 2)) == expected
        with pytest.raises(InputError):
            model.run(bad)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(60)))


def test_a_node_that_fails_between_native_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_op, "_rows", dict(OPS))
    _op.ops.cache_clear()
    try:
        calls = []

        def sometimes(x: Any) -> Any:
            calls.append(x.copy())
            if len(calls) == 2:
                raise ZeroDivisionError("the second time")
            return x + 1

        op("sometimes", ("x",), shape=lambda x: Spec(x.shape), define=sometimes)
        b = GraphBuilder()
        x = b.input("x", ("B", 3, 8, 8), "float32")
        q = b.node("quantize", (x,), {"format": "e4m3fn", "scale": 1.0})
        y = b.node("conv2d", (q, b.constant("w", whole_codes(32, 3, 3, 3))), {"padding": (1, 1)})
        y = b.node("sometimes", (y,), origin="net.head")
        q = b.node("quantize", (y,), {"format": "e4m3fn", "scale": 4.0})
        model = Model(b.finish(b.node("conv2d", (q, b.constant("w", whole_codes(4, 32, 3, 3))), {"padding": (1, 1)})))
        first = model.run(whole(2, 3, 8, 8))
        with pytest.raises(ExecutionError, match=r"node 'sometimes' \(sometimes, from net.head\) failed: the second time"):
            model.run(whole(2, 3, 8, 8, seed=1))
        np.testing.assert_array_equal(model.run(whole(2, 3, 8, 8)), first)
        np.testing.assert_array_equal(calls[0], calls[2])
        assert not native(model)
    finally:
        _op.ops.cache_clear()


# -- sizes of a product -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not compiled(), reason="large")
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(1, 1, 1), (1, 33, 65), (2, 300, 31), (4, 32, 32), (5, 64, 100), (17, 31, 33), (33, 257, 1), (64, 600, 70), (150, 1000, 300)],
)
def test_products_of_any_size(m: int, k: int, n: int) -> None:
    """On whole numbers every sum is exact: bit for bit, whatever the order, with codes and floats on either side, on any threads."""
    x, w, bias = whole(m, k), whole(n, k, seed=1, most=1), whole(n)
    want = x.astype(np.float64) @ w.T + bias
    for left in (x, quantize(x, "e4m3fn", scale=1.0)):
        for right in (w, quantize(w, "e5m2", scale=np.ones((n, 1), np.float32))):
            graph, given = one_node("linear", (left, right, bias), (1, 2))
            model = Model(graph)
            for threads in (1, 2, 3):
                np.testing.assert_array_equal(model.run(given, threads=threads), want)
            assert native(model)
