"""Studies: what their files may say, what they conclude, and that they come through failures, Ctrl-C and SIGKILL."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from fp8np.artifact import load_graph, save
from fp8np.build import GraphBuilder
from fp8np.cli import main
from fp8np.data import imported, load_batches
from fp8np.dims import symbol
from fp8np.errors import InputError, MissingDependencyError, StudyError
from fp8np.graph import Value
from fp8np.metrics import METRICS
from fp8np.model import Model, load
from fp8np.ptq.recipe import get_recipe
from fp8np.study import plots
from fp8np.study.board import CELL, CONVERT, REFERENCE, Board
from fp8np.study.calibration import Kept, drawn
from fp8np.study.cell import Settings, Workbench
from fp8np.study.factories import missing
from fp8np.study.keys import Keys
from fp8np.study.page import as_html
from fp8np.study.reading import _TOP, _WORKLOAD, read_study
from fp8np.study.results import Results, Row, read_results
from fp8np.study.spec import Cell, Entry, Study, Workload
from fp8np.study.statistics import distribution, loss_interval, passes, relative_loss, verdict, wilson
from fp8np.study.store import Store, digest
from fp8np.study.tables import as_csv, as_markdown, tables

MODULE = """
import os
import pathlib
import time

import numpy as np

def pictures(n, seed):
    x = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    return x, x[:, :3].argmax(1)

def test():
    x, y = pictures(40, 1)
    for i in range(0, 40, 20):
        yield x[i : i + 20], y[i : i + 20]

def calibration(folders):
    yield np.load(folders["data"] / "calibration.npy")

def raises():
    raise RuntimeError("no such luck")

def wrong():
    yield np.zeros((4, 9), np.float32), np.zeros(4, int)

def unlabelled():
    yield pictures(4, 1)[0]

def other():
    yield pictures(8, time.perf_counter_ns())

def dies():
    os.abort()

def nan(predictions, targets):
    return float("nan")

def first_two(outputs, labels):
    return np.concatenate(outputs)[:2], np.concatenate(labels)[:2]

def uneven(outputs, labels):
    return np.concatenate(outputs)[:2], np.concatenate(labels)

calls = []

def near(predictions, targets):
    calls.append(1)
    return np.mean(np.abs(predictions - targets) < 0.2)

def largest(predictions, targets):
    calls.append(1)
    return np.abs(predictions - targets).max()

def ratio(predictions, targets):
    calls.append(1)
    return predictions.sum() / targets.sum()

def slow(predictions, targets):
    # Blocks in the second cell.
    if pathlib.Path("block").exists() and pathlib.Path("out/cells/toy/e4m3.json").exists():
        pathlib.Path("blocked.part").write_text(str(os.getpid()))
        pathlib.Path("blocked.part").rename("blocked")
        time.sleep(60)
    return float((predictions.argmax(-1) == targets).mean())
"""
TOY = """
title = "Toys"
resamples = 50
baseline = "int8"

[folders]
data = "."

[[workload]]
name = "toy"
title = "A toy"
domain = "vision"
source = "toy.safetensors"
data = "toydata:test"
calibration = "toydata:calibration"
metric = "accuracy"

[[recipe]]
name = "e4m3"

[[recipe]]
name = "e4m3-dynamic"

[[recipe]]
name = "mixed"
"""
CONVERTER = "fp8np_converters.source:read_source"


def toy_model(path: Path) -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    hidden = b.node("relu", (b.node("linear", (b.input("x", ("B", 8), "float32"), b.constant("w", rng.standard_normal((16, 8))))),))
    save(b.finish(b.node("linear", (hidden, b.constant("v", rng.standard_normal((3, 16)))))), path)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a model, a module of factories, and no trace of it in sys.modules afterwards."""
    toy_model(tmp_path / "toy.safetensors")
    (tmp_path / "toydata.py").write_text(MODULE)
    np.save(tmp_path / "calibration.npy", np.random.default_rng(2).standard_normal((30, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toydata", raising=False)
    return tmp_path


def written(text: str, name: str = "toy.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def changed(**keys: Any) -> str:
    """TOY with keys of the workload replaced, or taken away where they are None."""
    before, head, text = TOY.replace('baseline = "int8"\n', "").partition("[[workload]]\n")
    for key, value in keys.items():
        line = "" if value is None else f"{key} = {json.dumps(value)}\n"
        text, count = re.subn(rf"(?m)^{key} = .*\n", line, text, count=1)
        text = text if count else line + text
    return before + head + text


def invoke(*args: Any) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


# Reading.


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


BROKEN: list[tuple[str, str, str, str]] = [
    (TOY, 'metric = "accuracy"', 'metric = "acuracy"', "unknown metric 'acuracy'; known: accuracy"),
    (TOY, 'metric = "accuracy"', 'metrics = "accuracy"', "unknown key 'metrics' of a workload"),
    (TOY, 'domain = "vision"', "domain = 3", "expected domain to be a text, got 3"),
    (TOY, 'data = "toydata:test"', 'data = "toydata:tset"', "data = 'toydata:tset': toydata has no 'tset'"),
    (TOY, 'data = "toydata:test"', 'data = "toydat:test"', "no module named 'toydat'"),
    (TOY, 'name = "toy"', 'name = "a/b"', "fit for a file"),
    (TOY, 'name = "e4m3-dynamic"', 'name = "e4m3"', "a recipe named 'e4m3' is there already, at toy.toml:1"),
    (TOY, 'name = "mixed"', 'name = "e9m9"', "unknown recipe 'e9m9'"),
    (TOY, 'name = "mixed"', 'name = "fp32"', "stands beside every recipe"),
    (TOY, 'name = "mixed"', 'name = "mine"\nbase = "e4m3"\nsmoth = 0.5', "unknown key 'smoth' of a recipe"),
    (TOY, 'name = "mixed"', 'smooth = 0.5\nname = "e4m3"', "smooth changes a recipe: name it with base"),
    (TOY, 'name = "mixed"', 'weights = "float9"\nname = "mine"\nbase = "e4m3"', "float9"),
    (TOY, 'name = "mixed"', 'file = "none.toml"', "none.toml"),
    (TOY, 'baseline = "int8"', 'baseline = "int9"', "no recipe is named 'int9'"),
    (TOY, "resamples = 50", "resamples = 0", "expected resamples to be a whole number from 1 on"),
    (TOY, 'metric = "accuracy"', 'tolerance = 2\nmetric = "accuracy"', "from 0 to below 1"),
    (TOY, 'metric = "accuracy"', 'dynamic_axes = ["x"]\nmetric = "accuracy"', "expected INPUT:AXIS=NAME"),
    (TOY, 'metric = "accuracy"', 'lower_is_better = 1\nmetric = "accuracy"', "to be true or false"),
    (TOY, 'source = "toy.safetensors"', 'source = "{models}/toy.safetensors"', "folder 'models' is not known: add --folder models=DIR"),
    (TOY, "resamples = 50", 'tiers = ["avx3"]', "expected tiers to be some of plain"),
    (TOY, "resamples = 50", 'include = "none.toml"', "none.toml: No such file"),
    (TOY, "resamples = 50", 'workloads = ["a"]', "include = 'FILE.toml' is missing"),
    (TOY + "[grid]\n", "[grid]", "[grid]\nsamples = [0]", "whole numbers from 1 on"),
    (TOY + "[grid]\n", "[grid]", '[grid]\nflavour = ["a"]', "unknown key 'flavour' of a grid"),
    (TOY + "[grid]\n", "[grid]", '[grid]\ncalibrator = ["maximal"]', "maximal"),
    (TOY + "[grid]\n", "[grid]", "[grid]\nseed = []", "it is empty"),
]


@pytest.mark.parametrize(("text", "old", "new", "message"), BROKEN, ids=[new.partition("\n")[0] for _, _, new, _ in BROKEN])
def test_a_slip_of_the_pen_is_told_with_its_line(workplace: Path, text: str, old: str, new: str, message: str) -> None:
    text = text if "baseline" in new else text.replace('baseline = "int8"\n', "")
    broken = text.replace(old, new, 1)
    with pytest.raises(StudyError) as error:
        read_study(written(broken))
    assert message in str(error.value)
    if "--folder" in message:
        assert str(error.value).endswith("[folders] of toy.toml")
        return
    below = 1 if new.startswith("[grid]") else 2 if "smoth" in new else 0
    assert str(error.value).startswith(f"toy.toml:{line_of(text, old) + below}: ")


@pytest.mark.parametrize("key", ["name", "domain", "source", "data", "metric"])
def test_a_missing_key_is_named(workplace: Path, key: str) -> None:
    with pytest.raises(StudyError, match=rf"^toy\.toml:\d+: workload.*: {key} is missing"):
        read_study(written(changed(**{key: None})))


def test_a_folder_that_the_user_is_to_name(workplace: Path) -> None:
    path = written(TOY.replace('data = "."', 'data = ""').replace('baseline = "int8"\n', ""))
    line = line_of(path.read_text(), 'data = ""')
    with pytest.raises(StudyError, match=f"folder 'data' is not known: add --folder data=DIR, or write it in toy.toml:{line}"):
        read_study(path)
    assert read_study(path, {"data": workplace}).folders == {"data": workplace}
    assert read_study(path, runs=False).folders == {}
    with pytest.raises(StudyError, match="there is no such folder"):
        read_study(path, {"data": workplace / "nowhere"})


def test_workloads_of_another_file(workplace: Path) -> None:
    (workplace / "deep").mkdir()
    toys = changed() + TOY[TOY.index("[[workload]]") : TOY.index("[[recipe]]")].replace('"toy"', '"second"')
    written(toys)
    path = written('include = "../toy.toml"\nworkloads = ["second"]\n[[recipe]]\nname = "e3m4"\n', "deep/own.toml")
    study = read_study(path)
    assert [w.name for w in study.workloads] == ["second"]
    assert [e.name for e in study.entries] == ["e3m4"]
    assert study.workloads[0].folder == str(workplace)
    assert study.folders["data"].samefile(workplace)
    assert len(read_study(written('include = "../toy.toml"', "deep/own.toml")).entries) == 3
    with pytest.raises(StudyError, match=r"own.toml:2: toy.toml has no workload 'third'; it has: toy, second"):
        read_study(written('include = "../toy.toml"\nworkloads = ["third"]', "deep/own.toml"))
    with pytest.raises(StudyError, match="includes this file"):
        read_study(written('include = "own.toml"', "deep/own.toml"))


def test_parts_are_chosen_by_pattern(workplace: Path) -> None:
    study = read_study(written(changed()), recipes=["e4m3*"])
    assert [e.name for e in study.entries] == ["e4m3", "e4m3-dynamic"]
    with pytest.raises(StudyError, match="no workload is named 'tyo'; there are: toy"):
        read_study(written(changed()), workloads=["tyo"])


def test_recipes_inline_and_in_files(workplace: Path) -> None:
    written('base = "e4m3"\nsmooth = 0.5\n', "own.toml")
    recipes = '[[recipe]]\nfile = "own.toml"\n[[recipe]]\nname = "inline"\nbase = "e5m2"\napproach = "static"\nsamples = 7\nseed = 3\n'
    text = changed()[: changed().index("[[recipe]]")] + recipes
    own, inline = read_study(written(text)).entries
    assert (own.name, own.recipe.smooth, own.samples) == ("own", 0.5, None)
    assert inline.recipe == get_recipe("e5m2").replace(name="inline", approach="static", samples=7)
    assert (inline.samples, inline.seed) == (7, 3)
    assert Entry.from_table(json.loads(json.dumps(inline.as_table()))) == inline


def test_a_grid_has_each_combination_that_differs_once(workplace: Path) -> None:
    grid = '[grid]\nsamples = [1, 10]\ncalibrator = ["max", "percentile 99.9"]\napproach = ["static", "dynamic"]\nseed = [0, 1, 2]\n'
    text = changed().replace('[[recipe]]\nname = "e4m3-dynamic"\n', "").replace('[[recipe]]\nname = "mixed"\n', grid)
    entries = read_study(written(text)).entries
    static = [e for e in entries if e.recipe.approach == "static"]
    assert len(static) == 2 * 2 * 3
    # Scales found at each run depend on no calibration.
    assert [e.name for e in entries if e.recipe.approach == "dynamic"] == ["e4m3+approach=dynamic"]
    assert static[0].name == "e4m3+samples=1+calibrator=max+approach=static+seed=0"
    assert {(e.samples, e.seed, e.recipe.calibrator) for e in static} == {
        (n, s, c) for n in (1, 10) for s in range(3) for c in ("max", "percentile 99.9")
    }


def test_functions_are_looked_for_without_running_their_module(workplace: Path) -> None:
    written("import absent_package\nfrom os import path as p\nif True:\n    a = b = 1\ndef f(): ...\n", "heavy.py")
    for name in ("f", "a", "b", "p", "absent_package"):
        assert missing(f"heavy:{name}") == ""
    assert missing("heavy:g") == "heavy has no 'g'"
    assert "heavy" not in sys.modules
    written("from os.path import *\n", "starred.py")
    assert missing("starred:join") == ""
    # A package above it, which is run, may lack anything: that shows when the workload is.
    Path("broken").mkdir()
    written("import absent_package\n", "broken/__init__.py")
    assert missing("broken.inside:f") == ""


STUDIES = Path(__file__).parents[1] / "studies"


@pytest.mark.parametrize("name", [path.stem for path in sorted(STUDIES.glob("*.toml"))])
def test_studies_that_are_shipped_can_be_read(tmp_path: Path, name: str) -> None:
    study = read_study(STUDIES / f"{name}.toml", {"models": tmp_path, "shared": tmp_path})
    assert {w.folder for w in study.workloads} == {str(STUDIES)}
    with pytest.raises(StudyError, match=r"folder '\w+' is not known: add --folder \w+=DIR, or write it in paper.toml:\d+"):
        read_study(STUDIES / f"{name}.toml")


def test_the_documentation_names_every_key_and_its_example_can_be_read(workplace: Path) -> None:
    text = (STUDIES.parent / "docs" / "study.md").read_text(encoding="utf-8")
    for key in (*_TOP, *_WORKLOAD, "base", "file"):
        assert re.search(rf"\b{key}\b", text), key
    example, grid = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    example = re.sub(r'"(nets|mydata):\w+"', '"toydata:test"', example)
    written('base = "e3m4"\n', "mine.toml")
    Path("data").mkdir()
    study = read_study(written(example), {"models": workplace})
    assert [entry.name for entry in study.entries] == ["int8", "mine", "e5m2-smooth"]
    assert study.folders["data"].samefile("data")
    assert study.workloads[0].recalibration == study.workloads[0].units == "toydata:test"
    gridded = read_study(written(example.replace('baseline = "int8"', "") + grid), {"models": workplace})
    # 4 x 2 x 3 where scales are fixed; where they are not, one, unless SmoothQuant looks at data.
    assert len(gridded.entries) == 3 * 24 + 1 + 1 + 24


# Statistics.


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 3), min_size=30, max_size=30), st.integers(0, 5))
def test_the_interval_contains_the_loss(right: list[int], said: list[int], seed: int) -> None:
    targets = np.array(right)
    reference, predictions = np.eye(4)[targets], np.eye(4)[said[: len(right)]]
    values = [distribution("accuracy", p, targets, resamples=40, seed=seed) for p in (reference, predictions)]
    loss = relative_loss(1.0, METRICS["accuracy"](predictions, targets))
    interval = loss_interval(*values, loss)
    assert interval is not None
    assert interval.low <= loss <= interval.high
    assert 0 <= interval.low <= interval.high <= 1


@pytest.mark.parametrize("metric", ["accuracy", "cosine", "psnr", "sqnr"])
@given(n=st.integers(2, 9), seed=st.integers(0, 99))
def test_means_of_all_resamples_at_once_are_the_metric_of_each(metric: str, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    predictions = rng.standard_normal((n, 4))
    targets = rng.integers(0, 4, n) if metric == "accuracy" else rng.standard_normal((n, 4))
    draws = np.random.default_rng([seed, n])
    each = [METRICS[metric](predictions[rows], targets[rows]) for rows in draws.integers(0, n, (20, n))]
    np.testing.assert_allclose(distribution(metric, predictions, targets, resamples=20, seed=seed), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("metric", "mean"), [("near", True), ("largest", False), ("ratio", False)])
def test_metrics_of_ones_own_are_as_if_computed_one_by_one(workplace: Path, metric: str, mean: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1, 2, (2, 51))
    calls = imported("toydata:calls")
    found = distribution(f"toydata:{metric}", a, b, resamples=300, seed=4)
    # Each unit once, and a few trials.
    assert (len(calls) < 100) == mean
    function = imported(f"toydata:{metric}")
    rows = np.random.default_rng([4, 51]).integers(0, 51, (300, 51))
    np.testing.assert_allclose(found, [function(a[r], b[r]) for r in rows], rtol=1e-12)


def test_what_cannot_be_resampled_is_left_out() -> None:
    scores, same = np.array([0.9, 0.1, 0.2]), np.array([1, 0, 0])
    values = distribution("eer", scores, same, resamples=200, seed=0)
    # Without the one pair that is the same, (2/3)^3 of the draws.
    assert 0.2 < np.isnan(values).mean() < 0.4
    interval = loss_interval(values, values, 0.0, lower_is_better=True)
    assert interval is not None
    assert (interval.low, interval.high, interval.usable) == (0, 0, int((~np.isnan(values)).sum()))
    assert loss_interval(np.full(10, np.nan), np.ones(10), 0.0) is None
    assert verdict(None, 0.01) == "undecided"


def test_an_interval_that_misses_the_loss_is_widened() -> None:
    # As that of a biased metric may.
    interval = loss_interval(np.ones(100), np.full(100, 0.9), 0.05)
    assert interval is not None
    assert (interval.low, interval.high) == (0.05, pytest.approx(0.1))
    assert loss_interval(np.ones(100), np.full(100, 0.9), 0.2) == dataclasses.replace(interval, low=interval.high, high=0.2)


def test_equal_seeds_pair_resamples_of_any_metric(workplace: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 30, 3))
    targets = a.argmax(1)
    for metric in ("accuracy", "toydata:slow"):
        one, two, other = (distribution(metric, p, targets, resamples=30, seed=s) for p, s in ((a, 1), (a, 1), (a, 2)))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, other)  # of what is always right
        shaken = [distribution(metric, b, targets, resamples=30, seed=s) for s in (1, 2)]
        assert not np.array_equal(*shaken)


def test_losses_of_errors_and_of_nothing() -> None:
    assert relative_loss(0.10, 0.11, lower_is_better=True) == pytest.approx(0.1)
    assert relative_loss(-2.0, -2.1) == pytest.approx(0.05)
    assert relative_loss(0.0, 0.0) == 0
    assert relative_loss(0.0, 0.1) == -np.inf
    zeros, some = np.zeros(4), np.array([0.0, 0.0, 0.1, 0.1])
    interval = loss_interval(zeros, some, relative_loss(0.0, 0.05, lower_is_better=True), lower_is_better=True)
    assert interval is not None
    assert (interval.low, interval.high) == (0.0, np.inf)


@given(st.integers(1, 60), st.data())
def test_wilsons_interval(count: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, count))
    low, high = wilson(passed, count)
    assert 0 <= low <= passed / count <= high <= 1
    # The same ends from its definition: where the score test just rejects.
    for end in {low, high} - {0.0, 1.0}:
        assert abs(passed / count - end) == pytest.approx(1.959963984540054 * np.sqrt(end * (1 - end) / count))


def test_a_loss_of_the_tolerance_passes() -> None:
    assert passes(relative_loss(1.0, 0.99), 0.01)
    assert passes(relative_loss(0.7, 0.7 * 0.99), 0.01)
    assert not passes(relative_loss(1.0, 0.9899), 0.01)


# Data.


def kept(rows: int, size: int = 7) -> tuple[Kept, tuple[Value, ...]]:
    inputs = (Value("x", (symbol("B"), 2), "float32"),)
    data = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    return Kept(load_batches(data, inputs=inputs, batch_size=size), inputs), inputs


@given(st.integers(1, 40), st.integers(1, 50), st.one_of(st.none(), st.integers(0, 3)))
def test_calibration_samples_are_drawn_exactly(rows: int, samples: int, seed: int | None) -> None:
    data, inputs = kept(rows)
    firsts = [int(row[0]) // 2 for batch in drawn(data, inputs, samples, seed) for row in batch.inputs["x"]]
    assert len(set(firsts)) == len(firsts) == min(rows, samples)
    if seed is None:
        assert firsts == list(range(len(firsts)))
    elif samples >= rows:
        assert sorted(firsts) == list(range(rows))


def test_batches_that_cannot_be_cut_are_drawn_whole() -> None:
    inputs = (Value("x", (3, 2), "float32"),)
    data = Kept(load_batches(np.zeros((9, 2), np.float32), inputs=inputs), inputs)
    assert [batch.samples for batch in drawn(data, inputs, 2, 0)] == [3, 3]


def test_data_are_made_once_and_told_apart() -> None:
    calls = []

    def factory(value: float = 0) -> Any:
        calls.append(value)
        yield np.full((2, 2), value, np.float32), [1, 2]

    inputs = (Value("x", (symbol("B"), 2), "float32"),)
    data = [Kept(load_batches(lambda value=value: factory(value), inputs=inputs), inputs) for value in (0, 0, 1)]
    for one in data:
        one.load()
        assert len(list(one)) == len(list(one.batches())) == 1
    assert calls == [0, 0, 1]
    assert data[0].digest == data[1].digest != data[2].digest


# Cells, in this process.


def bench(text: str = "", **settings: Any) -> tuple[Workbench, Study]:
    study = read_study(written(text or changed()))
    chosen = Settings(study.folders, study.seed, study.resamples, CONVERTER, keep=False, machine={"tier": "here"})
    made = Workbench(study.workloads[0], Store(Path("out")), dataclasses.replace(chosen, **settings), lambda *_: None)
    made.convert(Keys(study).conversion("toy"))
    return made, study


def run(made: Workbench, study: Study, entry: Entry | None) -> dict[str, Any]:
    cell = Cell("toy", entry)
    return made.record(cell, Keys(study).cell(cell))


FAILING = [
    ({"data": "toydata:raises"}, "data", "toydata:raises failed at toydata.py:21: RuntimeError: no such luck"),
    ({"data": "toydata:wrong"}, "data", "toydata:wrong, batch 0: input 'x': expected x: float32[B, 8], got shape [4, 9]"),
    ({"data": "toydata:unlabelled"}, "data", "toydata:unlabelled: batch 0 has no labels"),
    ({"data": "none.npz"}, "data", "none.npz: no such file"),
    ({"units": "toydata:uneven"}, "units", "toydata:uneven: expected targets (n, ...) of numbers, one for each unit, got int64[40]"),
    ({"metric": "toydata:nan"}, "metric", "metric toydata:nan of fp32 is nan"),
    ({"metric": "spearman"}, "metric", "spearman: expected two arrays of one shape"),
    ({"output": "logits"}, "data", "output: expected one of output; got 'logits'"),
]


@pytest.mark.parametrize(("keys", "at", "reason"), FAILING, ids=[str(keys) for keys, _, _ in FAILING])
def test_what_fails_is_a_record_that_names_the_line(workplace: Path, keys: dict[str, str], at: str, reason: str) -> None:
    text = changed(**keys)
    record = run(*bench(text), None)
    assert record["status"] == "failed"
    line = [i for i, said in enumerate(text.splitlines(), 1) if said.startswith(f"{at} = ")][-1]
    assert record["reason"].startswith(f"toy.toml:{line}: ")
    assert reason in record["reason"]
    assert Store(Path("out")).read(Cell("toy", None)) == record


def test_a_cell_is_compared_with_fp32_on_the_same_samples(workplace: Path) -> None:
    made, study = bench(keep=True)
    fp32 = run(made, study, None)
    records = {entry.name: run(made, study, entry) for entry in study.entries}
    graph = load_graph("toy.safetensors")
    batches = [batch.inputs["x"] for batch in load_batches("toydata:test", inputs=graph.inputs)]
    y = np.concatenate(batches)[:, :3].argmax(1)
    assert fp32["value"] == METRICS["accuracy"](np.concatenate([Model(graph).run(x) for x in batches]), y)
    for name, record in records.items():
        assert record["status"] == "done", record["reason"]
        model = load(f"out/models/toy/{name}.safetensors")
        predictions = np.concatenate([model.run(x) for x in batches])
        assert record["sha256"] == digest(predictions) != fp32["sha256"]
        assert record["value"] == METRICS["accuracy"](predictions, y)
        assert record["loss"] == relative_loss(fp32["value"], record["value"])
        assert record["low"] <= record["loss"] <= record["high"]
        assert (record["quantized"], record["layers"], record["units"]) == (2, 2, 40)
        assert record["bytes"] == Path(f"out/models/toy/{name}.safetensors").stat().st_size
        assert record["data_sha256"] == fp32["data_sha256"]
    assert len({record["model_sha256"] for record in records.values()}) == 3


def test_figures_are_made_anew_without_running_the_model(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, study = bench()
    cell = study.entries[0]
    fp32, before = run(made, study, None), run(made, study, cell)
    monkeypatch.setattr("fp8np.study.cell.quantize_model", None)
    again, study = bench(changed(units=None).replace("resamples = 50", "resamples = 60"))
    after = run(again, study, cell)
    assert after["usable"] == 60
    same = {"value", "loss", "sha256", "seconds", "key"}
    assert {k: after[k] for k in same} == {k: before[k] for k in same}
    assert run(again, study, None)["sha256"] == fp32["sha256"]
    # Damaged predictions are not measured: the cell is run again, which here cannot be done.
    path = Path("out/cells/toy/e4m3.npz")
    path.write_bytes(path.read_bytes()[:-40])
    assert run(again, study, cell)["status"] == "failed"


def test_a_result_of_another_key_is_not_taken(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, study = bench()
    run(made, study, None)
    cell = Cell("toy", study.entries[0])
    assert made.record(cell, "one")["key"] == "one"
    assert made.record(cell, "two")["key"] == "two"
    monkeypatch.setattr("fp8np.study.cell.quantize_model", None)
    assert made.record(cell, "two")["status"] == "done"
    assert made.record(cell, "one")["status"] == "failed"


def test_data_that_change_between_runs_are_not_compared(workplace: Path) -> None:
    made, study = bench(changed(data="toydata:other"))
    assert run(made, study, None)["status"] == "done"
    fresh, study = bench(changed(data="toydata:other"))
    record = run(fresh, study, study.entries[0])
    assert record["status"] == "failed"
    assert "gives other data than it gave FP32" in record["reason"]


def test_units_are_what_a_function_makes_of_outputs(workplace: Path) -> None:
    record = run(*bench(changed(units="toydata:first_two")), None)
    assert (record["units"], record["samples"]) == (2, 40)


def test_a_key_knows_what_a_result_depends_on(workplace: Path) -> None:
    def keys(text: str) -> tuple[str, str, str]:
        study = read_study(written(text))
        made = Keys(study)
        return made.conversion("toy"), made.cell(Cell("toy", None)), made.cell(Cell("toy", study.entries[0]))

    first = keys(changed())
    assert keys(changed(title="Another", tolerance=0.2)) == first
    assert [a == b for a, b in zip(keys(changed(samples=9)), first, strict=True)] == [True, True, False]
    assert [a == b for a, b in zip(keys(changed(units="toydata:first_two")), first, strict=True)] == [True, False, False]
    os.utime("toy.safetensors", ns=(1, 1))
    touched = keys(changed())
    assert [a == b for a, b in zip(touched, first, strict=True)] == [False] * 3
    (workplace / "toydata.py").write_text(MODULE + "\n# changed\n")
    assert [a == b for a, b in zip(keys(changed()), touched, strict=True)] == [True, False, False]


# Who does what.


def test_a_board_gives_out_what_can_be_done_in_order() -> None:
    entry = Entry("e4m3", get_recipe("e4m3"))
    cells = [Cell(w, e, "") for w in "ab" for e in (None, entry, dataclasses.replace(entry, name="x"))]
    board = Board(cells, ["b"], [])
    convert = board.take(None)
    assert convert is not None
    reference = board.take(None)
    assert reference is not None
    assert (convert.kind, convert.cell.workload, reference.kind, reference.cell.workload) == (CONVERT, "a", REFERENCE, "b")
    assert board.finished(reference, good=True) == []
    first = board.take(reference.group)
    assert first is not None
    assert (first.kind, str(first.cell)) == (CELL, "b e4m3")
    # A conversion that fails takes all that needs it along.
    assert [str(cell) for cell in board.finished(convert, good=False)] == ["a e4m3", "a x"]
    second = board.take(None)
    assert second is not None
    assert str(second.cell) == "b x"
    waiting: list[Any] = []
    thread = threading.Thread(target=lambda: waiting.append(board.take(None)))
    thread.start()
    board.finished(first, good=True)
    board.finished(second, good=False)
    thread.join(10)
    assert waiting == [None]


# The whole, with processes.


def test_a_study_comes_through_what_fails(workplace: Path) -> None:
    text = TOY + '[[recipe]]\nname = "int8"\n'
    workload = text[text.index("[[workload]]") : text.index("[[recipe]]")].replace('"toy"', '"{}"').replace("A toy", "{}")
    text += "".join(workload.replace("{}", name).replace("toydata:test", f"toydata:{name}") for name in ("raises", "dies"))
    path = written(text)
    result = invoke("study", path, "-o", "out", "--jobs", 2)
    assert result.exit_code == 0, result.output
    assert "toydata:raises failed" in result.output
    assert "4 cells done, 0 failed, 8 not run" in result.output
    found = json.loads(Path("out/study.json").read_text())
    assert [cell["state"] for cell in found["cells"]] == ["done"] * 4 + ["not run"] * 8
    reasons = {w["name"]: w["fp32"][0].get("reason") for w in found["workloads"]}
    assert reasons["toy"] == ""
    assert "signal 6 (SIGABRT)" in reasons["dies"]
    assert "toydata.py" in Path("out/work/dies/log").read_text()
    assert {p.name for p in Path("out").iterdir()} >= {"tables.md", "tables", "study.json", "index.html", "losses.svg", "rates.svg"}
    assert {p.stem for p in Path("out/tables").iterdir()} == {"rates", "accuracies", "mixed", "approaches", "cells", "failures"}
    assert not list(Path("out").rglob("*.safetensors.*"))
    stamps = {p: p.stat().st_mtime_ns for p in Path("out/cells/toy").iterdir()}

    again = invoke("study", path, "-o", "out", "--only", "toy", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["cells"] == found["cells"]
    assert {p: p.stat().st_mtime_ns for p in Path("out/cells/toy").iterdir()} == stamps
    assert again.stderr == ""  # nothing was run

    # Another tolerance needs no run.
    path.write_text(text.replace('metric = "accuracy"', 'metric = "accuracy"\ntolerance = 0.5'))
    assert "4 cells done" in invoke("study", path, "-o", "out", "--tables").output


def started() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fp8np", "study", "toy.toml", "-o", "out"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process whose parent has not asked yet how it ended is none.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_and_sigkill_cost_the_cell_in_work(workplace: Path) -> None:
    written(changed(metric="toydata:slow").replace("resamples = 50", "resamples = 2"))
    Path("block").touch()
    process = started()
    until(Path("blocked").exists)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Interrupted: 2 of 4 cells are done and kept in out." in said
    assert "To go on: fp8np study toy.toml -o out" in said
    until(lambda: not alive(int(Path("blocked").read_text())), 20)
    done = {p: p.read_bytes() for p in sorted(Path("out/cells/toy").glob("*.json"))}
    assert [p.name for p in done] == ["e4m3.json", "fp32.json"]

    Path("blocked").unlink()
    process = started()
    until(Path("blocked").exists)
    worker = int(Path("blocked").read_text())
    locked = invoke("study", "toy.toml", "-o", "out")
    assert (locked.exit_code, "another study is at work in this folder" in locked.output) == (1, True)
    process.kill()
    process.communicate()
    # Nobody is left to tell the process that does the work anything: it ends.
    until(lambda: not alive(worker), 20)
    assert {p: p.read_bytes() for p in sorted(Path("out/cells/toy").glob("*.json"))} == done
    # As if it had been killed while it wrote.
    left = Path("out/cells/toy/.mixed.0123456789abcdef.json")
    left.touch()

    Path("block").unlink()
    process = started()
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "3 cells done, 0 failed, 0 not run" in printed
    assert [line.partition(":")[0] for line in said.splitlines()] == ["[3/4] toy e4m3-dynamic", "[4/4] toy mixed"]
    assert {p: p.read_bytes() for p in done} == done
    assert not left.exists()


# Tables, of made-up results.


def results(values: dict[str, dict[str, Any]], study: Study | None = None) -> Results:
    """Of figures (value, low, high) by workload and recipe; "failed" or None of what is not done."""
    known = study or made_up()

    def row(workload: Workload, entry: Entry | None) -> Row:
        figure = values[workload.name].get("fp32" if entry is None else entry.name)
        if figure is None or isinstance(figure, str):
            return Row(workload, entry, "", figure or "not run", "why | not <b>" if figure else "", {})
        value, low, high = figure if isinstance(figure, tuple) else (figure, figure, figure)
        loss = relative_loss(float(values[workload.name]["fp32"]), value, lower_is_better=workload.lower_is_better)
        machine = {"fp8np": "0", "cpu": "c", "tier": "t", "threads": 1, "jobs": 1}
        facts = {"value": value, "loss": loss, "low": low, "high": high, "usable": 9, "bytes": 2_000_000, "sha256": "", "warnings": []}
        more = {"units": 9, "ms": 1.0, "time": 0.5, "seconds": {"quantize": 1}, "quantized": 1, "layers": 2, "machine": machine}
        return Row(workload, entry, "", "done", "", {**facts, **more})

    return Results(known, [row(w, None) for w in known.workloads], [row(w, e) for w in known.workloads for e in known.entries])


def made_up() -> Study:
    workloads = [Workload(name, name.upper(), domain, "", "", "accuracy") for name, domain in (("a", "cv"), ("b", "nlp"), ("c", "nlp"))]
    entries = [Entry(name, get_recipe(name)) for name in ("e5m2", "e4m3", "e4m3-dynamic", "mixed", "int8", "auto")]
    return Study("s.toml", "S & T", 0, 9, "int8", {}, tuple(workloads), tuple(entries))


FIGURES: dict[str, dict[str, Any]] = {
    "a": {"fp32": 0.8, "e5m2": (0.7, 0.1, 0.15), "e4m3": (0.798, -0.01, 0.02), "e4m3-dynamic": 0.8, "mixed": 0.8, "int8": 0.5, "auto": 0.8},
    "b": {"fp32": 0.5, "e5m2": (0.5, 0.0, 0.005), "e4m3": 0.5, "e4m3-dynamic": 0.49, "mixed": 0.5, "int8": "failed", "auto": 0.5},
    "c": {"fp32": "failed"},
}


def test_rates_by_format_approach_and_domain() -> None:
    found = results(FIGURES)
    rates = next(table for table in tables(found) if table.name == "rates")
    assert rates.heads == ("recipe", "formats", "approach", "cv", "nlp", "all", "95 % interval", "undecided")
    shown = {row[0].text: [field.text for field in row[1:]] for row in rates.rows}
    assert shown["e5m2"] == ["E5M2", "direct", "0.00 (0/1)", "100.00 (1/1)", "50.00 (1/2)", "9 to 91", "0"]
    assert shown["e4m3"][4:] == ["100.00 (2/2)", "34 to 100", "1"]
    # A cell that failed has not passed; a workload whose FP32 failed is in no rate.
    assert shown["int8"][1:5] == ["static in CNNs, else dynamic", "0.00 (0/1)", "0.00 (0/1)", "0.00 (0/2)"]
    assert "1 workloads are in no rate" in rates.note
    assert [line.partition(":")[0] for line in found.headline()] == [
        "best fixed FP8 recipe, e4m3",
        "formats chosen for each tensor, auto",
        "baseline, int8",
    ]


def test_tables_shaped_like_the_papers() -> None:
    found = {table.name: table for table in tables(results(FIGURES))}
    assert found["accuracies"].heads == ("workload", "metric", "FP32", "e5m2", "e4m3", "mixed", "int8", "auto")
    first, second = found["accuracies"].rows
    assert [(field.text, field.kind) for field in first[2:5]] == [
        ("0.8000", ""),
        ("0.7000 (12.50)", "fails"),
        ("0.7980 (0.25)", "undecided"),
    ]
    assert (second[6].text, second[6].kind) == ("failed", "failed")
    assert found["mixed"].heads == ("workload", "metric", "FP32", "e5m2", "e4m3", "mixed")
    assert [[field.text for field in row] for row in found["approaches"].rows] == [
        ["A", "E4M3", "e4m3", "0.8000 (0.00)", "0.7980 (0.25)", "+0.25"],
        ["B", "E4M3", "e4m3", "0.4900 (2.00)", "0.5000 (0.00)", "-2.00"],
    ]
    assert len(found["cells"].rows) == 2 + 11
    assert [[field.text for field in row[:2]] for row in found["failures"].rows] == [["C", "fp32, so every recipe"], ["B", "int8"]]
    for table in found.values():
        assert all(len(row) == len(table.heads) for row in table.rows)
        assert list(csv.reader(io.StringIO(as_csv(table))))[1:] == [[field.text for field in row] for row in table.rows]


def test_markdown_marks_what_fails_and_escapes_the_rest() -> None:
    text = as_markdown(results(FIGURES))
    assert "| A | accuracy | 0.8000 | **0.7000 (12.50)** | 0.7980 (0.25) ? | 0.8000 (0.00) | **0.5000 (37.50)** | 0.8000 (0.00) |" in text
    assert "*why \\| not &lt;b>*" in text
    assert "- best fixed FP8 recipe, e4m3: 2 of 2 workloads pass (100.0%; 95 % interval 34% to 100%)" in text


def test_seeds_of_a_grid_stand_together() -> None:
    base = get_recipe("e4m3")
    entries = [Entry(f"e4m3+samples={n}+seed={s}", base, n, s, {"samples": n, "seed": s}) for n in (1, 10) for s in (0, 1)]
    study = dataclasses.replace(made_up(), entries=tuple(entries), workloads=made_up().workloads[:1], baseline=None)
    values = {"a": {"fp32": 1.0, **{e.name: 1 - 0.001 * (e.samples or 0) * ((e.seed or 0) + 1) for e in entries}}}
    found = results(values, study)
    (grid,) = [table for table in tables(found) if table.name == "grid"]
    assert grid.heads == ("recipe", "samples", "A")
    assert [[field.text for field in row] for row in grid.rows] == [
        ["e4m3", "1", "0.15 (0.10 to 0.20)"],
        ["e4m3", "10", "1.50 (1.00 to 2.00)"],
    ]
    assert [row[-1].kind for row in grid.rows] == ["passes", "fails"]
    assert set(plots.pictures(found)) == {"losses", "rates", "samples"}


def test_tiers_stand_beside_each_other() -> None:
    study = dataclasses.replace(made_up(), tiers=("avx2", "plain"), workloads=made_up().workloads[:1], entries=made_up().entries[1:2])
    base = results(FIGURES)

    def row(entry: Entry | None, tier: str, bits: str) -> Row:
        known = base.row(study.workloads[0], entry)
        return dataclasses.replace(known, tier=tier, record={**known.record, "sha256": bits * 64, "model_sha256": "m"})

    e4m3 = study.entries[0]
    rows = [row(None, "avx2", "a"), row(None, "plain", "b")], [row(e4m3, "avx2", "c"), row(e4m3, "plain", "c")]
    (table,) = [t for t in tables(Results(study, *rows, {("a", "fp32"): 1e-7, ("a", "e4m3"): 0.0})) if t.name == "tiers"]
    assert [[field.text for field in line] for line in table.rows] == [
        ["A", "fp32", "0.8000 aaaaaaaa", "0.8000 bbbbbbbb", "2 different on 2", "1.0e-07", "same on all 2"],
        ["A", "e4m3", "0.7980 cccccccc", "0.7980 cccccccc", "same on all 2", "0.0e+00", "same on all 2"],
    ]


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.targets += [str(known[name]) for name in ("href", "src") if known.get(name)]
        self.ids += [str(known["id"])] if "id" in known else []


def test_the_page_is_one_file_with_every_table() -> None:
    found = results(FIGURES)
    page = as_html(found, plots.pictures(found))
    links = Links()
    links.feed(page)
    assert {t for t in links.targets if t.startswith("#")} >= {f"#{table.name}" for table in tables(found)}
    outside = [t for t in links.targets if not t.startswith("#")]
    assert outside == []
    assert {t.removeprefix("#") for t in links.targets} <= set(links.ids)
    assert "<h1>S &amp; T</h1>" in page
    assert "why | not &lt;b&gt;" in page
    assert page.count("<svg") == 2
    assert "currentColor" in page
    assert as_html(found, plots.pictures(found)) == page


def test_without_matplotlib_there_are_no_pictures(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="plot"):
        plots.pictures(results(FIGURES))
    result = invoke("study", written(changed()), "-o", "out", "--tables")
    assert result.exit_code == 0, result.output
    assert "no pictures: pictures need matplotlib" in result.stderr
    assert "0 cells done, 0 failed, 3 not run" in result.output
    assert read_results(read_study(Path("toy.toml")), Path("out")).counts == (0, 0, 3)


def test_wrong_usage(workplace: Path) -> None:
    path = written(changed())
    result = invoke("study", path, "-o", "out", "--folder", "data")
    assert (result.exit_code, "expected NAME=DIR, got 'data'" in result.output) == (2, True)
    result = invoke("study", path, "-o", "out", "--recipes", "none")
    assert (result.exit_code, "no recipe is named 'none'" in result.output) == (1, True)
    with pytest.raises(InputError):
        METRICS["accuracy"]([], [])
