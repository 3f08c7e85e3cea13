"""Tuning on networks of which it is known what hurts: the fewest nodes in float32, other formats first, no trial too many, none lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _tuned import LOST, WIDE, X, branches, kept, labelled, likeness
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.build import GraphBuilder
from fp8np.data import load_batches
from fp8np.errors import InputError, RecipeError, TuningError
from fp8np.graph import Graph
from fp8np.model import Model
from fp8np.ptq.assign import decide
from fp8np.ptq.recipe import Override, Recipe, get_recipe
from fp8np.ptq.workflow import quantize_model
from fp8np.study.calibration import Kept
from fp8np.tuning import Target, Trial, Tuned, tune
from fp8np.tuning.bench import Bench, graph_digest
from fp8np.tuning.change import Change, changed
from fp8np.tuning.log import Log

START = get_recipe("e4m3-dynamic")


def tuned(graph: Graph, recipe: Recipe | str = START, metric: Any = likeness, **options: Any) -> Tuned:
    return tune(graph, recipe, labelled(graph), metric, **{"tolerance": 0.07, **options})


class Counted:
    """A metric that says how often it was asked, and may fail."""

    def __init__(self, fails: Callable[[int], Any] = lambda count: None) -> None:
        self.count = 0
        self.fails = fails

    def __call__(self, outputs: Any, labels: Any) -> Any:
        self.count += 1
        found = self.fails(self.count)
        return likeness(outputs, labels) if found is None else found


# -- what is found ----------------------------------------------------------------------------------------------------


def test_a_recipe_that_meets_the_target_is_left_alone() -> None:
    found = tuned(branches(1, 1))
    assert found.met
    assert len(found.trials) == 1
    assert found.recipe == START
    assert found.ranking == ()
    assert found.baseline == 1.0
    assert found.loss == 1 - found.value <= 0.07


def test_other_formats_come_before_float32() -> None:
    found = tuned(branches(1, WIDE, 1, 1))
    assert found.met
    assert not kept(found.recipe.overrides)
    assert [(o.match, o.weights, o.activations) for o in found.recipe.overrides] == [("branch.1", "e5m2", "e5m2")]
    assert found.ranking[0].node == "branch.1"
    assert found.ranking[0].sqnr < 15 < 30 < found.ranking[1].sqnr


@pytest.mark.parametrize("calibration", [None, [X]], ids=["dynamic", "static"])
def test_float32_only_where_no_format_does(calibration: Any) -> None:
    found = tuned(branches(1, LOST, 1, WIDE, 1, 1), "e4m3-dynamic" if calibration is None else "e4m3", calibration=calibration)
    assert found.met
    assert kept(found.recipe.overrides) == {"branch.1"}
    assert [(o.match, o.weights) for o in found.recipe.overrides if not o.keep] == [("branch.3", "e5m2")]
    assert {layer.name for layer in found.report.layers if not layer.weights} - {f"scaled.{i}" for i in range(6)} == {"branch.1"}


@settings(max_examples=4, deadline=None)
@given(st.sets(st.integers(0, 5), min_size=1, max_size=5))
def test_the_nodes_in_float32_are_the_fewest(broken: set[int]) -> None:
    graph = branches(*(LOST if i in broken else 1.0 for i in range(6)))
    found = tuned(graph)
    assert found.met
    assert kept(found.recipe.overrides) == {f"branch.{i}" for i in broken}
    assert all(o.keep for o in found.recipe.overrides)
    # Doubling and halving, formats and scales before, and giving back each of those kept.
    assert len(found.trials) <= 8 + 2 * 3 + len(broken)


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_nodes_that_the_ranking_overrates_are_given_back(seen: int) -> None:
    # All three hurt the output, but the metric sees the columns of one alone, be it the first of the ranking or the last.
    columns = slice(8 * seen, 8 * seen + 8)

    def metric(outputs: Any, labels: Any) -> float:
        return likeness(outputs[:, columns], labels[:, columns])

    found = tuned(branches(LOST, LOST, LOST, 1), metric=metric)
    assert found.met
    assert kept(found.recipe.overrides) == {f"branch.{seen}"}


def ops(add: float, mul: float) -> Graph:
    """Linear layers, and an add and a mul that hold one number so far from the others."""
    b = GraphBuilder()
    x = b.input("x", ("B", 16), "float32")
    w = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    y = b.node("linear", (x, b.constant("w", w)), name="first")
    for op, span in (("add", add), ("mul", mul)):
        far = np.eye(16, dtype=np.float32)[0] * np.float32(span - 1) + np.float32(1)
        # Back again by another op than the one that is looked at.
        large = b.node(
            "where",
            (
                b.constant("all", np.ones(16, bool)),
                b.node("einsum", (y, b.constant(f"{op}.far", np.diag(far))), {"equation": "bi,ij->bj"}),
                y,
            ),
        )
        y = b.node(op, (large, b.constant(f"{op}.c", np.full(16, 0.5, np.float32))), name=op)
        y = b.node("einsum", (y, b.constant(f"{op}.near", np.diag(1 / far))), {"equation": "bi,ij->bj"})
    return b.finish(b.node("linear", (y, b.constant("v", w.T)), name="last"))


EXTENDED = START.replace(ops=frozenset({"linear", "add", "mul"}))


@pytest.mark.parametrize(("add", "mul", "left"), [(LOST, 1, {"linear", "mul"}), (1, LOST, {"linear", "add"}), (LOST, LOST, {"linear"})])
def test_types_of_ops_fall_back_as_in_the_papers_tool(add: float, mul: float, left: set[str]) -> None:
    found = tuned(ops(add, mul), EXTENDED, tolerance=0.12)
    assert found.met
    assert found.recipe.ops == left
    assert not found.recipe.overrides
    assert [trial.what for trial in found.trials[:2]] == ["the recipe as it is", "convolutions and linear layers only"]
    # Each of the others beside these; of both together it is known already.
    assert len(found.trials) == 4
    assert found.ranking == ()


def test_types_are_added_up_until_one_fails() -> None:
    # With the add alone and with the mul alone the target is met, with both it is not.
    one = tuned(ops(1, 1), EXTENDED, tolerance=1.0).trials[0].loss
    found = tuned(ops(1, 1), EXTENDED, tolerance=one * 0.999)
    assert found.met
    assert found.recipe.ops in ({"linear", "add"}, {"linear", "mul"})


def convolutional(span: float) -> Graph:
    """A convolution that no format holds, one that any does, and a last linear."""
    b = GraphBuilder()
    x = b.input("x", ("B", 16), "float32")
    scale = np.ones(16, np.float32)
    scale[0] = span
    image = b.node("reshape", (b.node("mul", (x, b.constant("s", scale))), None), {"shape": (b.facts(x).shape[0], 16, 1, 1)})
    rng = np.random.default_rng(1)
    w = rng.standard_normal((16, 16, 1, 1)).astype(np.float32) / scale.reshape(1, 16, 1, 1)
    y = b.node("conv2d", (image, b.constant("w", w)), name="first")
    y = b.node("conv2d", (y, b.constant("v", rng.standard_normal((16, 16, 1, 1)))), name="middle")
    flat = b.node("reshape", (y, None), {"shape": (b.facts(x).shape[0], 16)})
    return b.finish(b.node("linear", (flat, b.constant("u", rng.standard_normal((8, 16)))), name="last"))


def test_the_first_convolution_and_the_last_linear_are_left_out() -> None:
    for recipe in (START.replace(keep_first_last=False), START.replace(overrides=(Override(match="first", weights="e4m3"),))):
        found = tuned(convolutional(LOST), recipe, tolerance=0.1)
        assert found.met
        assert len(found.trials) == 2
        assert {d.node for d in decide(convolutional(1), found.recipe) if d.schemes} == {"middle"}


def test_scales_of_tokens_where_formats_are_not_enough() -> None:
    # Each row has its own magnitude; over all rows no format spans them.
    rows = X * np.geomspace(1, LOST, len(X), dtype=np.float32)[:, None]
    graph = branches(1, 1)

    def metric(outputs: Any, labels: Any) -> float:
        size = np.linalg.norm(labels, axis=1, keepdims=True)
        return likeness(outputs / size, labels / size)

    data = [(rows, Model(graph).run(rows))]
    found = tune(graph, START, data, metric, tolerance=0.07)
    assert found.met
    assert not kept(found.recipe.overrides)
    assert {(o.match, o.activation_granularity) for o in found.recipe.overrides} == {("branch.0", "token"), ("branch.1", "token")}


def test_from_scales_of_one_formats_get_scales() -> None:
    found = tuned(branches(1, 1), "e5m2", calibration=[X], tolerance=0.06)
    assert found.trials[0].loss > 0.06
    assert found.met
    assert {o.approach for o in found.recipe.overrides} == {"static"}
    found = tuned(branches(1, 1), "e5m2", tolerance=0.06)
    assert found.met
    assert {o.approach for o in found.recipe.overrides} == {"dynamic"}


def test_errors_count_downwards_and_tolerances_may_be_absolute() -> None:
    graph = branches(1, LOST)
    found = tuned(graph, metric=lambda outputs, labels: 2 - likeness(outputs, labels), tolerance=0.07, lower_is_better=True)
    assert found.baseline == 1
    assert found.met
    assert kept(found.recipe.overrides) == {"branch.1"}
    found = tuned(graph, metric=lambda outputs, labels: 1 - likeness(outputs, labels), tolerance=0.07, lower_is_better=True, absolute=True)
    assert found.baseline == 0
    assert found.met
    assert found.loss == found.value <= 0.07


def test_a_model_too_broken_for_the_metric_misses_the_target() -> None:
    found = tuned(branches(1, LOST), metric=lambda outputs, labels: v if (v := likeness(outputs, labels)) > 0.8 else math.nan)
    assert found.met
    assert found.trials[0].loss == math.inf
    assert kept(found.recipe.overrides) == {"branch.1"}
    assert json.loads(json.dumps(found.as_dict()))["trials"][0]["value"] == "nan"


def test_where_the_output_is_no_float_nodes_are_ranked_by_their_own() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 16), "float32")
    rng = np.random.default_rng(3)
    far = np.ones(16, np.float32)
    far[0] = LOST
    y = b.node("linear", (x, b.constant("w", rng.standard_normal((16, 16)))), name="sound")
    scaled = b.node("mul", (y, b.constant("far", far)))
    y = b.node("linear", (scaled, b.constant("v", rng.standard_normal((16, 16)) / far)), name="broken")
    graph = b.finish(b.node("argmax", (y,), {"dim": 1}))
    found = tuned(graph, metric=lambda outputs, labels: float(np.mean(outputs == labels)), tolerance=0.2)
    assert found.met
    assert found.ranking[0].node == "broken"
    assert kept(found.recipe.overrides) == {"broken"}


# -- what it takes ----------------------------------------------------------------------------------------------------


def test_a_target_out_of_reach_is_missed_and_says_so() -> None:
    found = tuned(branches(1, 1, 1), tolerance=0.0)
    assert not found.met
    assert not found.spent
    assert found.loss > 0
    assert found.value == max(trial.value for trial in found.trials)
    # Where all nodes were in float32, nothing would be quantized.
    assert max(trial.floats for trial in found.trials) == 2


@pytest.mark.parametrize("trials", [1, 2, 5])
def test_no_more_trials_than_allowed(trials: int) -> None:
    metric = Counted()
    found = tuned(branches(LOST, LOST, LOST, 1), metric=metric, trials=trials)
    assert len(found.trials) == trials
    assert metric.count == trials + 1
    assert found.spent
    assert not found.met
    assert found.loss == min(trial.loss for trial in found.trials)


def test_the_model_is_what_convert_makes_of_the_recipe() -> None:
    graph, data = branches(1, LOST, WIDE), [X[:24], X[24:]]
    found = tuned(graph, "e4m3", calibration=data)
    assert graph_digest(quantize_model(graph, found.recipe, data).graph) == graph_digest(found.graph)


@pytest.mark.parametrize(
    "recipe", [get_recipe("mixed"), get_recipe("int8-static"), get_recipe("e4m3").replace(smooth=0.5, ops=frozenset({"linear", "mul"}))]
)
def test_trials_measure_the_models_that_the_workflow_makes(recipe: Recipe) -> None:
    graph = branches(1, 1)
    data, calibration = (Kept(load_batches(source, inputs=graph.inputs), graph.inputs) for source in (labelled(graph), [X]))
    bench = Bench(graph, recipe, data, Target(likeness), calibration=calibration)
    for change in (Change(), Change(keep=("branch.1",)), Change(formats={"branch.0": {"weights": "e3m4", "activations": "e3m4"}})):
        candidate = changed(bench.prepared, recipe, change)
        assert graph_digest(bench.quantized(candidate)) == graph_digest(quantize_model(graph, candidate, [X]).graph)


def test_recipes_have_one_key_if_they_make_one_model() -> None:
    graph = branches(1, 1)
    bench = Bench(graph, START, Kept(load_batches(labelled(graph), inputs=graph.inputs), graph.inputs), Target(likeness))
    named = START.replace(name="other", overrides=(Override(match="branch.*", weights="e4m3"),))
    assert bench.key(START) == bench.key(named)
    changes: list[dict[str, Any]] = [
        {"weights": "e3m4"},
        {"activations": "e3m4"},
        {"approach": "static"},
        {"weight_granularity": "tensor"},
        {"activation_granularity": "token"},
        {"power_of_two": True},
        {"skip": ("branch.0",)},
        {"calibrator": "mse"},
        {"weight_calibrator": "mse"},
        {"samples": 7},
        {"smooth": 0.5},
        {"smooth": 0.6},
        {"correct_bias": True},
    ]
    keys = {bench.key(START.replace(**change)) for change in changes} | {bench.key(START)}
    assert len(keys) == len(changes) + 1


def test_automatic_formats_are_chosen_once_and_changed_from_there() -> None:
    found = tuned(branches(1, LOST), "auto", calibration=[X])
    assert found.met
    assert "branch.1" in kept(found.recipe.overrides)
    assert not found.recipe.candidates


# -- changes of recipes -----------------------------------------------------------------------------------------------


def shared_origins() -> Graph:
    """Three layers; the first one's name is where the others come from."""
    b = GraphBuilder()
    y = b.input("x", ("B", 4), "float32")
    for name in ("block", "block_1", "other"):
        y = b.node("linear", (y, b.constant("w", np.eye(4, dtype=np.float32))), name=name, origin="block" if name != "other" else "other")
    return b.finish(y)


SAID = st.sampled_from(
    [
        Override(match="block", weights="e3m4"),
        Override(match="block", keep=True),
        Override(match="block_1", activations="e5m2"),
        Override(match="bl*", weight_granularity="tensor"),
        Override(match="o*r", keep=True),
        Override(match="other", weight_granularity="tensor"),
        Override(op="linear", weights="e5m2"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(SAID, unique=True, max_size=3),
    st.sets(st.sampled_from(["block", "block_1", "other"])),
    st.sets(st.sampled_from(["block", "block_1", "other"])),
)
def test_a_change_is_about_its_nodes_and_no_others(overrides: list[Override], keep: set[str], formats: set[str]) -> None:
    graph = shared_origins()
    base = START.replace(overrides=tuple(overrides))
    try:
        before = {d.node: d.schemes for d in decide(graph, base)}
    except RecipeError:
        return  # overrides that contradict each other
    change = Change(formats={name: {"weights": "e4m3", "activations": "e3m4"} for name in formats}, keep=tuple(keep))
    after = {d.node: d.schemes for d in decide(graph, changed(graph, base, change))}
    for name, schemes in after.items():
        if name in keep:
            assert not schemes
        elif name in formats:
            assert [str(scheme.format) for scheme in schemes.values()] == ["float8_e3m4fn", "float8_e4m3fn"]
            # What else was said of it still holds.
            assert not before[name] or [s.granularity for s in schemes.values()] == [s.granularity for s in before[name].values()]
        else:
            assert schemes == before[name]


# -- the log ----------------------------------------------------------------------------------------------------------


def test_a_log_is_gone_on_with(tmp_path: Path) -> None:
    graph, log, metric = branches(LOST, 1, LOST, LOST), tmp_path / "log.jsonl", Counted()
    whole = tuned(graph)
    first = tuned(graph, metric=metric, log=log, trials=3)
    assert first.spent
    assert metric.count == 4
    again = tuned(graph, metric=metric, log=log)
    assert metric.count == len(whole.trials) + 1
    assert [t.key for t in again.trials] == [t.key for t in whole.trials]
    assert again.recipe == whole.recipe
    assert [t.logged for t in again.trials] == [True] * 3 + [False] * (len(whole.trials) - 3)
    count = metric.count
    assert tuned(graph, metric=metric, log=log).value == whole.value
    assert metric.count == count


def test_a_log_after_a_kill(tmp_path: Path) -> None:
    graph, log, metric = branches(LOST, 1), tmp_path / "log.jsonl", Counted()
    whole = tuned(graph, log=log, metric=metric)
    data = log.read_bytes()
    # Wherever the file ends, what is whole counts.
    for size in (0, 5, data.index(b"\n"), data.index(b"\n") + 1, len(data) - 1, len(data) - 40):
        log.write_bytes(data[:size])
        again = tuned(graph, log=log, metric=metric)
        assert again.recipe == whole.recipe
        assert [json.loads(line).get("key") for line in log.read_text().splitlines()][1:] == ["fp32", *(t.key for t in whole.trials)]


@pytest.mark.parametrize("which", ["model", "data", "calibration", "metric", "output", "version"])
def test_the_log_of_something_else_is_refused(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, graph = tmp_path / "log.jsonl", branches(1)
    base: dict[str, Any] = {"recipe": "e4m3", "data": labelled(graph), "metric": "cosine", "calibration": [X], "log": log}
    tune(graph, **base, tolerance=0.1)
    if which == "version":
        monkeypatch.setattr("fp8np.__version__", "9.9")
    other: dict[str, Any] = {
        "data": {"data": labelled(graph)[:1]},
        "calibration": {"calibration": [X[:8]]},
        "metric": {"metric": "sqnr", "absolute": True},
        "output": {"output": "output"},
    }
    with pytest.raises(TuningError, match=rf"log.jsonl: the log of another {which}: expected .*name another file"):
        tune(branches(2) if which == "model" else graph, **{**base, **other.get(which, {})})
    tune(graph, **base, tolerance=0.5) if which != "version" else None


@pytest.mark.parametrize("text", ["", "x = 1\ny = 2\n", "no line", '{"kind": "other"}\n', "[1]\n", "\xff\n"])
def test_a_file_that_is_no_log_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text, encoding="latin-1")
    if not text:
        Log(path, {})
        assert json.loads(path.read_text())["kind"] == "fp8np tune log"
        return
    with pytest.raises(TuningError, match=r"notes.txt: not a log of fp8np tune"):
        Log(path, {})
    assert path.read_text(encoding="latin-1") == text


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"key": "a", "value": "x", "graph": "", "seconds": 1}'])
def test_a_line_that_is_damaged_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Log(path, {"model": "m"})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(TuningError, match=r"log.jsonl:2: damaged"):
        Log(path, {"model": "m"})


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    metric = Counted()
    with pytest.raises(OSError, match="no/such"):
        tuned(branches(1), metric=metric, log=tmp_path / "no/such/log.jsonl")
    with pytest.raises(IsADirectoryError):
        tuned(branches(1), metric=metric, log=tmp_path)
    assert metric.count == 0


def test_an_interrupted_search_has_told_its_best(tmp_path: Path) -> None:
    def interrupt(count: int) -> Any:
        if count == 4:
            raise KeyboardInterrupt

    told: list[Trial] = []
    graph, log = branches(LOST, LOST, 1), tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        tuned(graph, metric=Counted(interrupt), log=log, told=told.append)
    assert [trial.number for trial in told] == [0, 1, 2]
    assert len(log.read_text().splitlines()) == 4
    assert tuned(graph, log=log, metric=Counted()).recipe == tuned(graph).recipe


# -- bad input --------------------------------------------------------------------------------------------------------


def broken(outputs: Any, labels: Any) -> float:
    raise RuntimeError("no such luck")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda outputs, labels: math.nan, "expected a finite number of the FP32 model, got nan"),
        (lambda outputs, labels: "good", "expected a number, got str 'good'"),
        (lambda outputs, labels: outputs, "expected a number, got ndarray"),
        (broken, r"FP32: .*test_tuning:broken failed at test_tuning.py:\d+: RuntimeError: no such luck"),
        ("test_tuning:broken", r"FP32: test_tuning:broken failed at test_tuning.py:\d+: RuntimeError: no such luck"),
        ("test_tuning:START", "expected a function of outputs and labels, got Recipe"),
        ("accurate", "unknown metric 'accurate'; known: accuracy"),
        ("accuracy", "accuracy: expected logits"),
        ("sqnr", "expected a finite number of the FP32 model, got inf"),
    ],
)
def test_metrics_that_are_none(metric: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tuned(branches(1), metric=metric)


def test_a_metric_that_fails_later_names_the_trial() -> None:
    def fails(count: int) -> Any:
        if count == 3:
            raise ValueError("too odd")

    with pytest.raises(InputError, match=r"trial 2, 1 node .*: ValueError: too odd"):
        tuned(branches(LOST, LOST), metric=Counted(fails))


def test_nothing_can_be_lost_of_nothing() -> None:
    with pytest.raises(TuningError, match=r"accuracy of the FP32 model is 0, .* \(--absolute\)"):
        tune(branches(1), START, [(X, np.full(len(X), 99))], "accuracy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, "tolerance: expected a number from 0 on, got -0.1"),
        ({"tolerance": math.nan}, "tolerance: expected a number from 0 on"),
        ({"trials": 0}, "trials: expected a number from 1 on, got 0"),
        ({"output": "logits"}, "output: expected one of output; got 'logits'"),
    ],
)
def test_arguments_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tuned(branches(1), **options)


def test_data_without_labels() -> None:
    with pytest.raises(InputError, match="array: batch 0 has no labels, which the metric needs"):
        tune(branches(1), START, X, likeness)
    with pytest.raises(InputError, match="expected data with labels, got None"):
        tune(branches(1), START, None, likeness)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("fp32", "recipe 'fp32' quantizes no node of this model: recipe fp32 quantizes nothing"),
        ("e4m4", "unknown recipe 'e4m4'"),
        (START.replace(skip=("bramch*",)), "no quantizable node matches 'bramch"),
        (
            START.replace(
                overrides=(Override(match="b*", keep=True, place="a.toml:3"), Override(match="*0", weights="e3m4", place="a.toml:7"))
            ),
            "a.toml:7: '.0' quantizes node 'branch.0'.* but 'b.' .a.toml:3. keeps it in float32",
        ),
    ],
)
def test_recipes_that_do_not_fit(recipe: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tuned(branches(1), recipe)
