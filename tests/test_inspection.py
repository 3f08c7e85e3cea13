"""Looking inside a model: every figure against what it is by hand, on networks small enough for that."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _html import Elements, loads_nothing
from _inspected import W1, X, float32_graph, fp8_graph, integer_graph
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fp8np.artifact import save
from fp8np.build import GraphBuilder
from fp8np.check import check
from fp8np.cli import main
from fp8np.data import load_batches
from fp8np.graph import Graph
from fp8np.inspection.advice import shares
from fp8np.inspection.alternatives import activation_alternatives, weight_alternatives
from fp8np.inspection.changes import Change, changed
from fp8np.inspection.facts import Inspection, NodeFacts, TensorFacts, inspect_model
from fp8np.inspection.losses import PER_OCTAVE, Histogram
from fp8np.inspection.measure import cut, measured, pieces
from fp8np.inspection.operands import grid
from fp8np.inspection.page import as_html
from fp8np.inspection.pairs import Agreement, paired
from fp8np.interpret import interpret
from fp8np.metrics import cosine, sqnr
from fp8np.model import Model
from fp8np.scaling import dequantize, quantize

RNG = np.random.default_rng(5)
HOSTILE = "<script>alert(1)</script>"


def inspected(graph: Graph, against: Graph | None = None, data: Any = X) -> Inspection:
    model = Model(graph)
    return inspect_model(model, None if against is None else Model(against), load_batches(data, inputs=model.inputs))


def node(facts: Inspection, name: str) -> NodeFacts:
    return next(n for n in facts.nodes if n.name == name)


def tensor(facts: Inspection, kind: str, name: str = "first") -> TensorFacts:
    return next(t for t in node(facts, name).tensors if t.kind == kind)


FACTS = inspected(fp8_graph(), float32_graph())


def test_a_weight_by_hand() -> None:
    # In E4M3 1 is exact, 0.3 becomes 0.3125, 500 saturates at 448, and 2^-11, below half of 2^-9, becomes 0.
    weight = tensor(FACTS, "weight")
    assert (weight.format, weight.scaling, weight.scales, weight.scale_range) == ("float8_e4m3fn", "direct", 1, (1.0, 1.0))
    assert (weight.saturated, weight.flushed) == (0.25, 0.25)
    assert weight.sqnr == pytest.approx(sqnr([1, 0.3125, 448, 0], W1.reshape(-1)))


def test_an_activation_by_hand() -> None:
    # 1000 saturates, 2^-12 becomes 0, 0 is not lost, 0.3 becomes 0.3125.
    activation = tensor(FACTS, "activation")
    assert (activation.name, activation.scaling, activation.scale_range) == ("x", "direct", (1.0, 1.0))
    assert (activation.saturated, activation.flushed) == (1 / 8, 1 / 8)
    restored = [1, 1, 0.3125, 448, 0, -8, 0, 2]
    assert activation.sqnr == pytest.approx(sqnr(restored, X.reshape(-1)))


def test_noise_of_a_layer_and_of_all_before_it() -> None:
    x, w = dequantize(quantize(X, "e4m3fn", scale=1.0)).astype(np.float64), dequantize(quantize(W1, "e4m3fn", scale=1.0)).astype(np.float64)
    got, exact = x @ w.T, X.astype(np.float64) @ W1.T.astype(np.float64)
    first = node(FACTS, "first")
    assert first.own_sqnr == pytest.approx(sqnr(got, exact), abs=1e-4)
    assert first.output_sqnr == pytest.approx(first.own_sqnr, abs=1e-4)
    assert first.cosine == pytest.approx(cosine(got.reshape(-1), exact.reshape(-1)), abs=1e-6)
    assert first.noise_share == 1.0
    second = node(FACTS, "second")
    assert second.own_sqnr is second.noise_share is None
    assert second.output_sqnr == pytest.approx(FACTS.outputs["y"]["sqnr"])
    assert (first.bytes, first.float32_bytes, first.origin) == (8, 16, "net.first")


def test_the_histogram_is_in_scales() -> None:
    facts = inspected(fp8_graph(scale=0.5), float32_graph(), np.array([[4.0, 4.0], [0.0, 1.0]], np.float32))
    histogram = tensor(facts, "activation").histogram
    assert histogram == {"first": PER_OCTAVE, "shares": [0.25, *[0.0] * (2 * PER_OCTAVE - 1), 0.5]}


def test_up_to_half_a_step_beyond_the_largest_value_a_number_is_rounded_not_saturated() -> None:
    # Steps of E4M3 below 448 are 32.
    facts = inspected(fp8_graph(), None, np.array([[463.0, 465.0], [-463.0, -465.0]], np.float32))
    assert tensor(facts, "activation").saturated == 0.5
    # Integers from -8 on in steps of 4: -9 is rounded, -11 is not.
    facts = inspected(integer_graph(), None, np.array([[-9.0, -11.0], [1013.0, 1015.0]], np.float32))
    assert tensor(facts, "activation").saturated == 0.5


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1000, 1000, width=32)))
def test_every_number_but_zero_has_one_place_in_a_histogram(x: Any) -> None:
    histogram = Histogram("float8_e3m4fn")
    histogram.add(x)
    assert sum(histogram.as_dict()["shares"]) == pytest.approx(np.count_nonzero(x) / x.size, abs=0.01)


def test_without_an_fp32_artifact_what_weights_lost_is_not_known() -> None:
    facts = inspected(fp8_graph())
    weight = tensor(facts, "weight")
    assert weight.sqnr is weight.saturated is weight.flushed is None
    assert weight.histogram is not None
    first = node(facts, "first")
    assert first.output_sqnr is first.matched is None
    # The activation's noise alone: the weight counts as exact.
    w = dequantize(quantize(W1, "e4m3fn", scale=1.0))
    x = dequantize(quantize(X, "e4m3fn", scale=1.0))
    assert first.own_sqnr == pytest.approx(sqnr(x @ w.T, X @ w.T), abs=1e-3)


def test_without_data_nothing_is_run() -> None:
    facts = inspect_model(Model(fp8_graph()), Model(float32_graph()))
    assert tensor(facts, "weight").saturated == 0.25
    assert tensor(facts, "activation").scale_range == (1.0, 1.0)
    assert tensor(facts, "activation").histogram is None
    first = node(facts, "first")
    assert first.own_sqnr is first.output_sqnr is first.seconds is None
    assert (facts.samples, facts.advice, facts.outputs) == (0, (), {})
    assert "Nothing was run" in Elements(as_html(facts, "m")).text


def test_integers_by_hand() -> None:
    facts = inspected(integer_graph(), float32_graph())
    activation, weight = tensor(facts, "activation"), tensor(facts, "weight")
    assert (activation.format, weight.format, weight.scaling) == ("uint8", "int8", "tensor")
    # Steps of 4: to zero go 1, 1, 0.3, 2^-12 and, halves to even, 2; nothing is beyond 1012.
    assert (activation.saturated, activation.flushed) == (0.0, 5 / 8)
    assert (weight.saturated, weight.flushed) == (0.0, 3 / 4)
    assert weight.sqnr == pytest.approx(sqnr([0, 0, 500, 0], W1.reshape(-1)))
    x = np.rint(X / 4) * 4
    assert node(facts, "first").own_sqnr == pytest.approx(sqnr(x @ np.array([[0, 0], [500, 0]]).T, X @ W1.T), abs=1e-3)
    assert node(facts, "first").matched
    # Kept in float32, the node is a linear layer again, and nothing is lost.
    assert facts.advice[0].options[-1].output_sqnr == float("inf")


def test_nodes_are_paired_by_name_or_output_and_shape() -> None:
    def graph(first: str, size: int) -> Graph:
        b = GraphBuilder()
        x = b.node("relu", (b.input("x", ("B", size), "float32"),), name=first)
        return b.finish(b.node("neg", (x,), name="end"))

    assert [a.name for a, _ in paired(graph("a", 2), graph("a", 2)).same] == ["a", "end"]
    pairs = paired(graph("a", 2), graph("b", 2))
    assert [n.name for n in pairs.first + pairs.second] == ["a", "b"]
    assert paired(graph("a", 2), graph("a", 3)).same == ()
    facts = inspect_model(Model(graph("a", 2)), Model(graph("b", 2)))
    assert (facts.only_here, facts.only_there) == (("a",), ("b",))
    text = Elements(as_html(facts, "m")).text
    assert "Not in the FP32 artifact: 1 nodes" in text


FACTORS = np.tile(np.array([1, 2, 4, 8, 16, 8, 4, 2], np.float32), 4)


def smoothed(factors: Any) -> tuple[Graph, Graph]:
    """A norm and a linear layer, and the same in FP8 after the norm's output was divided by factors and the weight multiplied."""
    w = RNG.standard_normal((64, 32)).astype(np.float32)
    gamma = np.ones(32, np.float32)

    def graph(gain: Any, weight: Any, quantized: bool) -> Graph:
        b = GraphBuilder()
        x = b.input("x", ("B", 32), "float32")
        attrs = {"normalized_shape": (32,)}
        h = b.node("layer_norm", (x, b.constant("gamma", gain)), attrs, name="norm")
        if quantized:
            h = b.node("quantize", (h,), {"format": "e4m3fn", "scale": None}, name="codes")
            weight = quantize(weight, "e4m3fn", axis=0)
        return b.finish(b.node("linear", (h, b.constant("w", weight)), name="fc"))

    return graph(gamma, w, False), graph(gamma / factors, w * factors, True)


def test_scales_that_a_pass_moved_are_not_taken_for_noise() -> None:
    exact, quantized = smoothed(FACTORS)
    facts = inspected(quantized, exact, RNG.standard_normal((64, 32)).astype(np.float32))
    assert node(facts, "norm").rescaled
    assert node(facts, "norm").output_sqnr > 100  # type: ignore[operator]
    assert 28 < tensor(facts, "weight", "fc").sqnr < 36  # type: ignore[operator]
    assert not node(facts, "fc").rescaled
    assert 22 < node(facts, "fc").output_sqnr < 36  # type: ignore[operator]
    # Where nothing was moved, nothing is explained away.
    exact, quantized = smoothed(np.ones(32, np.float32))
    assert not any(n.rescaled for n in inspected(quantized, exact, RNG.standard_normal((64, 32)).astype(np.float32)).nodes)


def test_alternatives_are_what_carrying_them_out_gives() -> None:
    w = RNG.standard_normal((8, 32)).astype(np.float32) * np.geomspace(1, 1e4, 8, dtype=np.float32)[:, None]
    found = {(a.scheme.format.name, str(a.scheme.granularity), a.calibrator): a.sqnr for a in weight_alternatives("linear", "weight", w)}
    assert found["float8_e3m4fn", "channel 0", "max"] == pytest.approx(sqnr(dequantize(quantize(w, "e3m4fn", axis=0)), w))
    assert found["float8_e4m3fn", "tensor", "max"] == pytest.approx(sqnr(dequantize(quantize(w, "e4m3fn")), w))
    assert all(found[name, each, "mse"] >= value - 1e-9 for (name, each, how), value in found.items() if how == "max")
    # A bit of mantissa is 6 dB.
    sqnrs = [found[f"float8_{name}", "channel 0", "max"] for name in ("e3m4fn", "e4m3fn", "e5m2")]
    assert np.diff(sqnrs) == pytest.approx(-6, abs=2)


def test_tokens_far_apart_ask_for_scales_of_their_own() -> None:
    rows = RNG.standard_normal((32, 16)).astype(np.float32) * np.geomspace(1, 1e5, 32, dtype=np.float32)[:, None]
    best = activation_alternatives("linear", rows, float(np.abs(rows).max()))
    assert best[0].text == "e3m4fn per token"
    assert not any(a.scheme.dynamic for a in activation_alternatives("conv2d", rows, 1e5))


def test_advice_is_measured() -> None:
    advice = FACTS.advice[0]
    assert (advice.node, advice.share) == ("first", 1.0)
    # 1000 and 500 saturate: one scale each for the largest magnitude repairs that.
    best, last = advice.options[0], advice.options[-1]
    assert best.output_sqnr > FACTS.trials["as it is"] + 10  # type: ignore[operator]
    assert (last.text, last.output_sqnr) == ("keep it in float32", float("inf"))
    assert best.own_sqnr > FACTS.nodes[0].own_sqnr + 10  # type: ignore[operator]


@pytest.mark.parametrize(
    "graph", [fp8_graph(), fp8_graph("e5m2", scale=None, granularity="token"), integer_graph()], ids=["e4m3", "e5m2", "integers"]
)
def test_a_change_to_float32_gives_the_fp32_artifact(graph: Graph) -> None:
    exact = float32_graph()
    seen = measured(graph, exact, paired(graph, exact), [])
    found = changed(seen, [Change("first", {o.position: None for o in seen.operands["first"]})])
    check(found)
    np.testing.assert_array_equal(interpret(found, {"x": X})["y"], interpret(exact, {"x": X})["y"])


def test_a_node_on_integers_changes_as_a_whole() -> None:
    graph, exact = integer_graph(), float32_graph()
    seen = measured(graph, exact, paired(graph, exact), [])
    x = next(o for o in seen.operands["first"] if not o.constant)
    alternative = activation_alternatives("linear", X, 1000.0)[0]
    found = check(changed(seen, [Change("first", {x.position: alternative})]))
    first = next(n for n in found.nodes if n.name == "first")
    assert first.op == "linear"
    assert found.facts(str(first.inputs[0])).dtype == alternative.scheme.format.name
    np.testing.assert_array_equal(found.constants[str(first.inputs[1])], W1)


def test_advice_is_in_the_order_of_what_float32_gives_the_outputs() -> None:
    # The loud layer is all but muted in the sum: most noise is its own, but little of it comes out.
    w = RNG.standard_normal((2, 16, 16)).astype(np.float32)

    def graph(quantized: bool) -> Graph:
        b = GraphBuilder()
        x = b.input("x", ("B", 16), "float32")
        found = []
        for name, fmt, weight in (("loud", "e5m2", w[0]), ("clear", "e4m3fn", w[1])):
            h = b.node("quantize", (x,), {"format": fmt, "scale": None}, name=f"{name} codes") if quantized else x
            found.append(b.node("linear", (h, b.constant(f"{name} w", quantize(weight, fmt, axis=0) if quantized else weight)), name=name))
        return b.finish(b.node("add", (b.node("mul", (found[0],), {"scalar": 0.01}), found[1])))

    facts = inspected(graph(True), graph(False), RNG.standard_normal((32, 16)).astype(np.float32))
    assert node(facts, "loud").noise_share > node(facts, "clear").noise_share  # type: ignore[operator]
    assert [a.node for a in facts.advice] == ["clear", "loud"]
    assert facts.advice[0].options[-1].output_sqnr > facts.advice[1].options[-1].output_sqnr + 10  # type: ignore[operator]
    assert facts.trials["all of them"] > facts.trials["as it is"] + 3


def test_shares_add_up() -> None:
    seen = measured(fp8_graph(), None, None, [])
    for name, noise in (("a", 1.0), ("b", 3.0)):
        seen.own[name] = Agreement()
        seen.own[name].add(np.array([noise**0.5 + 1]), np.array([1.0]))
    assert shares(seen) == pytest.approx({"b": 0.75, "a": 0.25})


def test_agreement_over_several_arrays_is_that_of_them_joined() -> None:
    x, y = RNG.standard_normal((2, 6, 5))
    one, parts = Agreement(), Agreement()
    one.add(x, y)
    parts.add(x[:2], y[:2])
    parts.add(x[2:], y[2:])
    assert parts.sqnr == pytest.approx(one.sqnr) == pytest.approx(sqnr(x, y))
    assert parts.cosine == pytest.approx(cosine(x.reshape(-1), y.reshape(-1)))
    assert (parts.largest, parts.relative) == (one.largest, np.abs(x - y).max() / np.abs(y).max())


def test_what_is_not_finite_agrees_with_its_like_only() -> None:
    same, apart = Agreement(), Agreement()
    same.add(np.array([np.nan, np.inf, 1.0]), np.array([np.nan, np.inf, 1.0]))
    apart.add(np.array([np.inf, 1.0]), np.array([-np.inf, 1.0]))
    assert (same.largest, same.sqnr) == (0.0, float("inf"))
    assert (apart.largest, apart.sqnr) == (float("inf"), float("-inf"))


def test_nodes_know_their_time() -> None:
    model = Model(fp8_graph())
    seconds = model.node_seconds(X)
    assert {"first", "second"} <= set(seconds) <= {"first", "second", "middle", "x.codes", ""}
    assert all(s > 0 for s in seconds.values())
    # Line by line: a node that plans lift to a picture keeps its name in the report.
    b = GraphBuilder()
    y = b.node("conv1d", (b.input("x", ("B", 1, 8), "float32"), b.constant("w", np.ones((1, 1, 3), np.float32))), name="line")
    facts = inspect_model(Model(graph := b.finish(y)), None, load_batches(np.ones((2, 1, 8), np.float32), inputs=graph.inputs))
    assert node(facts, "line").seconds > 0  # type: ignore[operator]


def test_batches_are_cut_where_samples_are_counted() -> None:
    graph = float32_graph()
    data = load_batches(np.ones((40, 2), np.float32), inputs=graph.inputs, batch_size=20)
    assert [b.samples for b in pieces(data, 21)] == [20, 20]
    assert [p.samples for p in cut(graph, next(iter(data)))] == [16, 4]


def test_grids_hold_every_magnitude_once() -> None:
    assert len(grid("float8_e4m3fn")) == 126
    assert grid("float8_e4m3fn")[0] == 2.0**-9
    assert grid("int8")[-1] == 127.0


# -- files ------------------------------------------------------------------------------------------------------------


def test_json_has_no_numbers_that_json_has_not() -> None:
    document = FACTS.as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["nodes"][0]["tensors"][1]["saturated"] == 0.25
    assert document["nodes"][-1]["own_sqnr"] is None


def test_the_page_is_well_formed_loads_nothing_and_escapes_everything() -> None:
    hostile = dataclasses.replace(FACTS.nodes[0], name=HOSTILE, op="linear", origin=HOSTILE)
    advice = dataclasses.replace(FACTS.advice[0], node=HOSTILE)
    facts = dataclasses.replace(FACTS, nodes=(hostile, *FACTS.nodes[1:]), advice=(advice,), only_here=(HOSTILE,), meta={"a": HOSTILE})
    page = as_html(facts, HOSTILE, sources=[HOSTILE])
    parsed = Elements(page.replace("<wbr>", ""))
    assert parsed.open == []
    assert HOSTILE not in page
    assert sum(tag == "script" for tag, _ in parsed.seen) == 2
    loads_nothing(page)


def test_a_page_on_a_hundred_layers_stays_small() -> None:
    first, plain = FACTS.nodes[0], FACTS.nodes[1]
    histogram = {"first": -90, "shares": np.random.default_rng(0).random(160).tolist()}
    first = dataclasses.replace(first, tensors=tuple(dataclasses.replace(t, histogram=histogram) for t in first.tensors))
    nodes = [dataclasses.replace(n, name="n" * 60 + str(i)) for i, n in enumerate([first] * 100 + [plain] * 400)]
    assert len(as_html(dataclasses.replace(FACTS, advice=(), nodes=tuple(nodes)), "large").encode()) < 1_000_000


def artifacts(folder: Path) -> tuple[str, str, str]:
    save(fp8_graph(), folder / "e4m3.safetensors")
    save(float32_graph(), folder / "fp32.safetensors")
    np.savez(folder / "x.npz", x=X)
    return str(folder / "e4m3.safetensors"), str(folder / "fp32.safetensors"), str(folder / "x.npz")


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    model, fp32, data = artifacts(tmp_path)
    page, facts = tmp_path / "report.html", tmp_path / "report.json"
    result = CliRunner().invoke(main, ["report", model, "--against", fp32, "--data", data, "--html", str(page), "--json", str(facts)])
    assert result.exit_code == 0, result.output
    assert f"wrote {page}" in result.output
    assert json.loads(facts.read_text())["trials"].keys() == {"as it is"}
    assert "e4m3.safetensors" in Elements(page.read_text(encoding="utf-8").replace("<wbr>", "")).text


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    model, *_ = artifacts(tmp_path)
    run = CliRunner().invoke
    assert (result := run(main, ["report", model])).exit_code == 2
    assert "give --html FILE" in result.output
    result = run(main, ["report", model, "--data", str(tmp_path / "none.npz"), "--html", str(tmp_path / "r.html")])
    assert result.exit_code == 1
    assert "none.npz: no such file" in result.output
    assert not (tmp_path / "r.html").exists()
