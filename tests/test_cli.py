"""The command line as a person meets it: what it does, what it prints, how it fails."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fp8np
from fp8np.artifact import save
from fp8np.build import GraphBuilder
from fp8np.cli import main
from fp8np.ptq.workflow import quantize_model

RNG = np.random.default_rng(0)
NETWORK = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

def unsupported():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x) + torch.linalg.det(x[:, None] * x[:, :, None])[:, None]
    return Odd()

instance = network()
"""
DATA = """
def labelled():
    import numpy as np
    rng = np.random.default_rng(1)
    for _ in range(3):
        yield rng.standard_normal((8, 4)).astype(np.float32), rng.integers(0, 3, 8)

def mean_logit(outputs, labels):
    return outputs.mean()

def number():
    return 3

def broken():
    raise RuntimeError("no such luck")

def interrupted():
    import signal
    import numpy as np
    yield np.ones((2, 4), np.float32)
    signal.raise_signal(signal.SIGINT)
    yield np.ones((2, 4), np.float32)
"""


def invoke(*args: Any) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a user's module, data, and nothing left behind in sys.modules."""
    (tmp_path / "mynet.py").write_text(NETWORK)
    (tmp_path / "mydata.py").write_text(DATA)
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((20, 4)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("mynet", "mydata"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


@pytest.fixture
def artifact(workplace: Path) -> Path:
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    w = b.constant("fc.weight", RNG.standard_normal((3, 4)))
    graph = b.finish({"logits": b.node("linear", (x, w), name="fc"), "same": x})
    np.savez("other.npz", y=np.ones((2, 4), np.float32))
    Path("net.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    path = workplace / "model.safetensors"
    save(quantize_model(graph, "e4m3", [np.ones((2, 4), np.float32)]).graph, path)
    return path


@pytest.mark.parametrize("command", [(), ("convert",), ("run",), ("inspect",), ("evaluate",)])
def test_help(command: tuple[str, ...]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("convert",), "Missing argument 'SOURCE'"),
        (("convert", "net.pt"), "Missing option '-o'"),
        (("convert", "net.pt", "-o", "out.safetensors", "--recipy", "e4m3"), "--recipe"),
        (("convert", "net.pt", "-o", "no/such/out.safetensors"), "no folder 'no/such'"),
        (("convert", "net.pt", "-o", "."), "is a directory"),
        (("convert", "net.pt", "-o", "out.safetensors", "--json", "no/such/report.json"), "no folder 'no/such'"),
        (("convert", "mynet:network", "-o", "out.safetensors", "--dynamic-axis", "x=1"), "expected INPUT:AXIS=NAME"),
        (("frobnicate",), "No such command"),
        (("run", "model.safetensors", "data.npz", "--threads", "0"), "--threads"),
        (("run", "model.safetensors", "data.npz", "-o", "no/such/out.npz"), "no folder 'no/such'"),
        (("run", "model.safetensors", "."), "is a directory"),
        (("run", ".", "data.npz"), "is a directory"),
        (("run", "model.safetensors", "missing.npz"), "does not exist"),
        (("evaluate", "missing.safetensors"), "does not exist"),
    ],
)
def test_wrong_usage_exits_with_2(artifact: Path, args: tuple[str, ...], message: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_convert_run_inspect_evaluate(workplace: Path) -> None:
    torch = pytest.importorskip("torch")
    import mynet

    torch.save(mynet.network().state_dict(), "net.pt")
    np.savez("example.npz", input=np.zeros((2, 4), np.float32))
    np.savez("data.npz", input=RNG.standard_normal((20, 4)).astype(np.float32))
    options = ("--module", "mynet:network", "--example-inputs", "example.npz", "--calibration", "data.npz", "--json", "report.json")
    result = invoke("convert", "net.pt", "-o", "net.safetensors", *options)
    assert result.exit_code == 0, result.output
    assert re.search(r"wrote net.safetensors \([\d,]+ bytes\) and report.json", result.output)
    report = json.loads(Path("report.json").read_text())
    assert [layer["op"] for layer in report["layers"]] == ["linear", "linear"]

    x = np.load("data.npz")["input"]
    np.save("x.npy", x)
    result = invoke("run", "net.safetensors", "x.npy", "-o", "out.npz", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "output: float32[20, 3]" in result.output
    with torch.no_grad():
        expected = mynet.network()(torch.from_numpy(x)).numpy()
    got = np.load("out.npz")["output"]
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()

    facts = json.loads(invoke("inspect", "net.safetensors", "--json").stdout)
    assert facts["inputs"] == ["input: float32[B, 4]"]
    assert {w["format"] for layer in facts["layers"] for w in layer["weights"]} == {"float8_e4m3fn"}
    assert "float8_e4m3fn" in invoke("inspect", "net.safetensors", "--graph").output

    for recipe in ("fp32", "e3m4", "e5m2"):
        assert invoke("convert", "net.pt", "-o", f"{recipe}.safetensors", "--recipe", recipe, *options).exit_code == 0
    result = invoke("evaluate", "net.safetensors", "--data", "data.npz", "--metric", "cosine", "--reference", "fp32.safetensors", "--json")
    assert json.loads(result.stdout)["samples"] == 20
    assert json.loads(result.stdout)["value"] > 0.99
    assert "accuracy " in invoke("evaluate", "fp32.safetensors", "--data", "mydata:labelled", "--metric", "accuracy").output
    assert "on 24 samples" in invoke("evaluate", "fp32.safetensors", "--data", "mydata:labelled", "--metric", "mydata:mean_logit").output


def test_every_output_is_written_under_its_own_name(workplace: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 2), "float32")
    y = b.node("mul", (x, None), {"scalar": 2.0})
    z = b.node("log", (x,))
    save(b.finish({"file": x, "a": y, "output": {"a": z, "b": (x, [y])}}), "many.safetensors")
    np.save("x.npy", np.array([[1, -1]], np.float32))
    result = invoke("run", "many.safetensors", "x.npy", "-o", "out.npz", "--json")
    facts = json.loads(result.stdout, parse_constant=pytest.fail)["outputs"]
    with np.load("out.npz") as got:
        assert list(facts) == list(got) == ["file", "a", "output.a", "output.b.0", "output.b.1.0"]
        assert got["a"].tolist() == got["output.b.1.0"].tolist() == [[2, -2]]
    assert facts["output.a"]["max"] == "nan"
    assert json.loads(invoke("inspect", "many.safetensors", "--json").stdout)["outputs"][2] == "output.a: float32[B, 2]"


def convert_arguments(workplace: Path, calibration: str) -> tuple[str, ...]:
    np.savez("example.npz", input=np.zeros((2, 4), np.float32))
    options = ("--example-inputs", "example.npz", "--calibration", calibration, "--json", "report.json")
    return ("convert", "mynet:network", "-o", "out.safetensors", *options)


def test_ctrl_c_during_calibration_leaves_no_file(workplace: Path) -> None:
    pytest.importorskip("torch")
    before = sorted(p.name for p in workplace.iterdir())
    result = invoke(*convert_arguments(workplace, "mydata:interrupted"))
    assert result.exit_code == 1, result.output
    assert "Aborted!" in result.output
    assert "Traceback" not in result.output
    assert {p.name for p in workplace.iterdir()} - {*before, "__pycache__"} == {"example.npz"}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "out.safetensors was not written: No space left"),
        (KeyboardInterrupt(), "Aborted!"),
    ],
)
def test_a_full_disk_or_ctrl_c_while_writing_leaves_the_old_file(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, message: str
) -> None:
    pytest.importorskip("torch")
    Path("out.safetensors").write_bytes(b"old")

    def fail(_: int) -> None:
        raise failure

    np.savez("good.npz", input=np.ones((4, 4), np.float32))
    arguments = convert_arguments(workplace, "good.npz")
    monkeypatch.setattr(os, "fsync", fail)
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert Path("out.safetensors").read_bytes() == b"old"
    assert [p.name for p in workplace.glob("*out*")] == ["out.safetensors"]
    assert not Path("report.json").exists()


def test_warnings_are_one_line_each(workplace: Path) -> None:
    torch = pytest.importorskip("torch")
    import mynet

    torch.save({**mynet.network().state_dict(), "extra": torch.zeros(1)}, "net.pt")
    np.savez("example.npz", input=np.zeros((2, 4), np.float32))
    arguments = ("convert", "net.pt", "-o", "out.safetensors", "--module", "mynet:network", "--example-inputs", "example.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = invoke(*arguments, "--recipe", "fp32")
    assert result.exit_code == 0, result.output
    assert "Warning: net.pt: left out, since Sequential has no such tensors: extra\n" in result.output


def test_run_without_output_describes(artifact: Path) -> None:
    np.savez("in.npz", x=np.ones((2, 4), np.float32))
    described = json.loads(invoke("run", artifact, "in.npz", "--json").stdout)
    assert described["outputs"]["same"] == {"shape": [2, 4], "dtype": "float32", "min": 1.0, "max": 1.0}
    assert described["written"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("run", "model.safetensors", "mynet.py"), "mynet.py: expected an .npz or .npy file"),
        (("run", "model.safetensors", "other.npz"), "missing x: float32[B, 4]; unknown y; expected x: float32[B, 4]"),
        (("run", "data.npz", "data.npz"), "data.npz: not a file of fp8np"),
        (("evaluate", "model.safetensors", "--data", "mydata:broken", "--metric", "accuracy"), "mydata:broken failed at mydata.py:"),
        (("evaluate", "model.safetensors", "--data", "mydata:labelled", "--metric", "mydata:number", "--output", "logits"), "TypeError"),
        (("inspect", "data.npz"), "data.npz"),
        (("evaluate", "model.safetensors", "--data", "data.npz", "--metric", "accuracy", "--output", "logits"), "no labels"),
        (("evaluate", "model.safetensors", "--data", "mydata:labelled", "--metric", "accuracy"), "logits, same"),
        (("evaluate", "model.safetensors", "--data", "mydata:labelled", "--metric", "acuracy", "--output", "logits"), "accuracy"),
        (("evaluate", "model.safetensors", "--data", "mynet:nothing", "--metric", "accuracy"), "nothing"),
        (("convert", "nowhere", "-o", "out.safetensors"), "nowhere: no such file"),
        (("convert", "data.npz", "-o", "out.safetensors"), "--module pkg.mod:factory"),
        (("convert", "data.npz", "-o", "out.safetensors", "--recipe", "e4m4"), "did you mean"),
        (("convert", "data.npz", "-o", "out.safetensors", "--recipe", "E4M3"), "did you mean e4m3"),
        (("convert", "model.safetensors", "-o", "out.safetensors"), "a converted model, not a checkpoint"),
        (("convert", "net.onnx", "-o", "out.safetensors"), "an ONNX model"),
        (("convert", "mynet.py", "-o", "out.safetensors"), "no checkpoint of a known kind"),
        (("convert", ".", "-o", "out.safetensors"), "expected a Hugging Face folder with a config.json"),
        (("convert", ".", "-o", "out.safetensors", "--key", "model"), "does not go with --key"),
        (("convert", "data.npz", "-o", "out.safetensors", "--module", "m:f", "--pooling", "mean"), "does not go with --pooling"),
    ],
)
def test_failures_are_one_message_and_exit_with_1(artifact: Path, args: tuple[str, ...], message: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--module", "mynet:network"), "--example-inputs"),
        (("--module", "mynet:nothing"), "mynet:nothing"),
        (("--module", "mynet"), "expected package.module:function, got 'mynet'"),
        (("--module", "nosuch:network"), "No module named 'nosuch'"),
        (("--module", "mynet:instance"), "expected a function that returns an nn.Module, got a Sequential"),
        (("--module", "mydata:number"), "it returned a int"),
        (("--module", "mydata:broken"), "RuntimeError: no such luck"),
        (("--module", "mynet:network", "--example-inputs", "cut.npz"), "cut.npz: not readable"),
        (("--module", "mynet:network", "--example-inputs", "data.npz", "--calibration", "none.npz"), "none.npz: no samples"),
        (("--module", "mynet:network", "--example-inputs", "data.npz", "--calibration", "missing.npz"), "missing.npz: no such file"),
        (("--module", "mynet:network", "--example-inputs", "data.npz"), "calibration"),
        (("--module", "mynet:network", "--example-inputs", "data.npz", "--calibration", "nan.npz"), "expected finite numbers, got nan"),
        (("--module", "mynet:network", "--example-inputs", "data.npz", "--skip", "nosuch*", "--approach", "dynamic"), "nosuch*"),
        (("--module", "mynet:network", "--example-inputs", "data.npz", "--ops", "linaer"), "linaer"),
    ],
)
def test_conversions_that_cannot_work(workplace: Path, options: tuple[str, ...], message: str) -> None:
    torch = pytest.importorskip("torch")
    import mynet

    torch.save(mynet.network().state_dict(), "net.pt")
    np.savez("data.npz", input=np.zeros((2, 4), np.float32))
    np.savez("nan.npz", input=np.full((2, 4), np.nan, np.float32))
    np.savez("none.npz", input=np.zeros((0, 4), np.float32))
    Path("cut.npz").write_bytes(Path("data.npz").read_bytes()[:100])
    result = invoke("convert", "net.pt", "-o", "out.safetensors", *options)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert not list(workplace.glob("out*"))


def test_all_missing_operators_are_listed_at_once(workplace: Path) -> None:
    pytest.importorskip("torch")
    np.savez("example.npz", x=np.zeros((2, 4), np.float32))
    result = invoke("convert", "mynet:unsupported", "-o", "out.safetensors", "--example-inputs", "example.npz")
    assert result.exit_code == 1, result.output
    assert "bessel_j0" in result.output
    assert "det" in result.output
    assert "mynet.py" in result.output


def test_a_checkpoint_that_would_run_code_is_refused(workplace: Path) -> None:
    pytest.importorskip("torch")
    gadget = b"cos\nsystem\n(S'touch harmed'\ntR."
    (workplace / "evil.pt").write_bytes(b"\x80\x02" + gadget)
    np.savez("example.npz", input=np.zeros((2, 4), np.float32))
    options = ("--module", "mynet:network", "--example-inputs", "example.npz")
    result = invoke("convert", "evil.pt", "-o", "out.safetensors", *options)
    assert result.exit_code == 1
    assert "os.system" in result.output
    assert not (workplace / "harmed").exists()


def test_version_and_start() -> None:
    command = [sys.executable, "-m", "fp8np", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().endswith(fp8np.__version__)
