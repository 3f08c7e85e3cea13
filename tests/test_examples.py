"""The examples, run as the README tells: a real checkpoint converted, inspected, run and measured from the command line."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import fp8np
from fp8np.cli import main

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
CHECKPOINT = "examples/data/resnet20_cifar10.th"


def invoke(*args: Any) -> str:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 with its pretrained weights in every recipe."""
    folder = tmp_path_factory.mktemp("resnet20")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.syspath_prepend(str(ROOT))
        for recipe in ("fp32", "e4m3", "e3m4", "e5m2"):
            data = ("--module", "examples.resnet20:network", "--calibration", "examples.resnet20:calibration")
            report = folder / f"{recipe}.json"
            invoke("convert", CHECKPOINT, "-o", folder / f"{recipe}.safetensors", "--recipe", recipe, "--json", report, *data)
    return folder


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    from examples import resnet20

    return [np.concatenate(parts) for parts in zip(*resnet20.labelled(), strict=True)]


def test_fp32_graph_gives_what_pytorch_gives(converted: Path, pictures: Any) -> None:
    from examples import resnet20

    model = resnet20.network().eval()
    stored = torch.load(ROOT / CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in stored.items()})
    with torch.no_grad():
        expected = model(torch.from_numpy(pictures[0])).numpy()
    got = fp8np.run(converted / "fp32.safetensors", pictures[0])
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


# Measured: 0.800, 0.800, 0.790, 0.750. A picture is half a point; other sums in float32 (another BLAS) can move a few that are close.
@pytest.mark.parametrize(("recipe", "lowest"), [("fp32", 0.795), ("e4m3", 0.785), ("e3m4", 0.775), ("e5m2", 0.73)])
def test_accuracy(converted: Path, pictures: Any, recipe: str, lowest: float) -> None:
    options = ("--data", "examples.resnet20:labelled", "--metric", "accuracy", "--json")
    result = json.loads(invoke("evaluate", converted / f"{recipe}.safetensors", *options))
    assert result["samples"] == 200
    assert result["value"] >= lowest


@pytest.mark.parametrize("recipe", ["e4m3", "e3m4", "e5m2"])
def test_the_report_and_the_file_agree(converted: Path, recipe: str) -> None:
    report = json.loads((converted / f"{recipe}.json").read_text())
    facts = json.loads(invoke("inspect", converted / f"{recipe}.safetensors", "--json"))
    fp8 = {w["name"] for layer in facts["layers"] for w in layer["weights"] if w["format"].startswith("float8_")}
    assert len(fp8) == 18
    reasons = [layer["reason"] for layer in report["layers"] if layer["reason"]]
    assert reasons == ["first convolution, kept in float32", "last linear, kept in float32"]
    assert (converted / "fp32.safetensors").stat().st_size > 3 * (converted / f"{recipe}.safetensors").stat().st_size


def test_the_readme_says_what_happens() -> None:
    failures, examples = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert examples > 5
    assert failures == 0


def test_the_search_example_reads_its_sentences() -> None:
    for name in ("sentences.txt", "calibration.txt"):
        lines = (ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) >= 24
        assert len(set(lines)) == len(lines)
    assert "torch" not in {line.split()[1].split(".")[0] for line in _imports(ROOT / "examples" / "semantic_search.py")}


def _imports(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(("import ", "from "))]
