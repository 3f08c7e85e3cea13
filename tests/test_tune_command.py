"""`fp8np tune` as a person meets it: what it writes, when, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _tuned import LOST, X, branches, kept, labelled
from click.testing import CliRunner, Result

from fp8np.cli import main
from fp8np.cli_source import READING
from fp8np.cli_tune import tune as command
from fp8np.graph import Graph
from fp8np.ptq.recipe_file import read_recipe

METRICS = """
import numpy as np

calls = 0

def likeness(outputs, labels):
    return 1 - np.linalg.norm(np.float64(outputs) - labels) / np.linalg.norm(labels)

def interrupted(outputs, labels):
    global calls
    calls += 1
    if calls == stop:
        raise KeyboardInterrupt
    return likeness(outputs, labels)

stop = 3

def nothing(outputs, labels):
    return 0.0
"""

READ = {name for names in READING.values() for name in names}
GRAPHS = {"easy": branches(1), "hard": branches(1, LOST)}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with data, and a converter that knows two networks by name."""
    (tmp_path / "mymetrics.py").write_text(METRICS)
    for name, graph in GRAPHS.items():
        (x, labels), *_ = labelled(graph, len(X))
        np.savez(tmp_path / f"{name}.npz", x=x, labels=labels)
    np.savez(tmp_path / "x.npz", x=X)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mymetrics", raising=False)

    def read_source(source: str, **_: Any) -> Graph:
        return GRAPHS[source]

    monkeypatch.setattr("fp8np.cli._converter", lambda: read_source)
    return tmp_path


def invoke(*args: Any) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def tune(source: str, *args: Any, metric: str = "likeness") -> Result:
    files = ("-o", "out.safetensors", "--recipe-out", "out.toml")
    given = ("--data", f"{source}.npz", "--metric", f"mymetrics:{metric}", "--tolerance", 0.07)
    return invoke("tune", source, *files, *given, *args)


@pytest.mark.parametrize("recipe", [("--recipe", "e4m3", "--calibration", "x.npz"), ("--recipe", "e4m3", "--set", "approach=dynamic")])
def test_convert_makes_the_same_model_of_the_recipe(recipe: tuple[str, ...], workplace: Path) -> None:
    result = tune("hard", *recipe, "--json", "facts.json")
    assert result.exit_code == 0
    assert "the recipe as it is" in result.output
    assert "wrote out.safetensors (" in result.output
    assert kept(read_recipe(Path("out.toml")).overrides) == {"branch.1"}
    assert "loses" in Path("out.toml").read_text().splitlines()[1]
    again = ("--calibration", "x.npz") if "--calibration" in recipe else ()
    assert invoke("convert", "hard", "-o", "again.safetensors", "--recipe", "out.toml", *again).exit_code == 0
    assert Path("again.safetensors").read_bytes() == Path("out.safetensors").read_bytes()
    facts = json.loads(Path("facts.json").read_text())
    assert facts["met"] is True
    assert facts["trials"][-1]["met"] is True
    assert facts["ranking"][0]["node"] == "branch.1"


def test_a_target_that_is_missed(workplace: Path) -> None:
    result = tune("hard", "--recipe", "e4m3-dynamic", "--trials", "2")
    assert result.exit_code == 1
    assert "Error: The target is missed: the best recipe loses" in result.output
    assert "all 2 trials are used up (--trials)" in result.output
    assert "--keep-best writes it" in result.output
    assert not Path("out.safetensors").exists()
    assert "MISSES the target" in Path("out.toml").read_text()
    read_recipe(Path("out.toml"))
    result = tune("easy", "--recipe", "e4m3-dynamic", "--tolerance", 0, "--keep-best")
    assert result.exit_code == 1
    assert "all that can be tried was" in result.output
    assert Path("out.safetensors").exists()


def test_ctrl_c_leaves_the_log_and_the_best_recipe(workplace: Path) -> None:
    result = tune("hard", "--recipe", "e4m3-dynamic", "--log", "log.jsonl", metric="interrupted")
    assert result.exit_code == 1
    assert "Interrupted: the best of 1 trial loses" in result.output
    assert "which MISSES the target; wrote out.toml, no model" in result.output
    assert "To go on: fp8np" in result.output
    assert "# Tuning was interrupted: the best of 1 trial loses" in Path("out.toml").read_text()
    read_recipe(Path("out.toml"))
    result = tune("hard", "--recipe", "e4m3-dynamic", "--log", "log.jsonl", metric="interrupted")
    assert result.exit_code == 0
    assert result.output.count("from the log") == 1


def test_ctrl_c_before_the_first_trial(workplace: Path) -> None:
    Path("mymetrics.py").write_text(METRICS.replace("stop = 3", "stop = 1"))
    result = tune("hard", "--recipe", "e4m3-dynamic", metric="interrupted")
    assert result.exit_code == 1
    assert "Interrupted before the first trial; nothing was written" in result.output
    assert not Path("out.toml").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--recipe", "e4m3"), 1, "finds the scales of activations"),
        (("--recipe", "e4m3-dynamic", "--metric", "mymetrics:nothing"), 1, "of the FP32 model is 0"),
        (("--recipe", "e4m3-dynamic", "--metric", "mymetrics:none"), 1, "no attribute 'none'"),
        (("--recipe", "e4m3-dynamic", "--data", "x.npz"), 1, "x.npz: batch 0 has no labels"),
        (("--recipe", "e4m3-dynamic", "--log", "x.npz"), 1, "x.npz: not a log of fp8np tune"),
        (("--recipe", "none.toml"), 1, "recipe none.toml: No such file"),
        (("--set", "approach"), 2, "expected KEY=VALUE"),
        (("--tolerance", "-1"), 2, "--tolerance"),
        (("--trials", "0"), 2, "--trials"),
        (("--log", "no/such/log.jsonl"), 2, "no folder 'no/such'"),
        (("--recipe-out", "no/such/out.toml"), 2, "no folder 'no/such'"),
    ],
)
def test_what_cannot_be_done(args: tuple[str, ...], code: int, message: str, workplace: Path) -> None:
    result = tune("easy", *args)
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert not Path("out.safetensors").exists()
    assert not Path("out.toml").exists()


def test_help_has_sections() -> None:
    text = invoke("tune", "--help").output
    for section in ("Target:", "Search:", "Where it starts:", "Calibration:", "Reading a PyTorch module:"):
        assert section in text


def test_every_option_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs/tuning.md").read_text(encoding="utf-8")
    own = [option for parameter in command.params if parameter.name not in READ for option in parameter.opts if option.startswith("-")]
    assert [option for option in own if f"`{option}`" not in text] == []
