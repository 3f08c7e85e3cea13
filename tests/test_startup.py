"""What is compiled, how often, and where: nothing at import, everything once, and nothing at all after `fp8np warmup`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _artifacts import tiny
from click.testing import CliRunner, Result
from rich.progress import Progress

import fp8np
from fp8np import _sizes, _terminal
from fp8np.artifact import save
from fp8np.build import GraphBuilder
from fp8np.cli import main
from fp8np.dims import symbol
from fp8np.errors import InputError
from fp8np.kernels import _cache, _jit, _objects
from fp8np.kernels._jit import Step, compiled, entry, exact, prepare, watching
from fp8np.kernels._native import put_word, word
from fp8np.kernels._program import rehearsing, run_tasks
from fp8np.kernels.widen import amax
from fp8np.memory import memory
from fp8np.model import Model
from fp8np.warmup import entries

pytestmark = pytest.mark.skipif(not compiled(), reason="about compiled kernels")

# Compiles everything and says what, how often, and for which arguments.
COUNT = """
import importlib, json, pkgutil
import fp8np.kernels
from fp8np.kernels._jit import Compiled, watching
from fp8np.warmup import warm_kernels

made = []
with watching(lambda step, done: made.append(step.name) if done else None):
    warmed = warm_kernels()
several = {}
for module in pkgutil.iter_modules(fp8np.kernels.__path__):
    name = f"fp8np.kernels.{module.name}"
    for key, value in vars(importlib.import_module(name)).items():
        if isinstance(value, Compiled) and value.__module__ == name and len(value.signatures) > 1:
            several[f"{module.name}.{key}"] = [str(signature) for signature in value.signatures]
print(json.dumps({"made": made, "several": several, "counted": warmed.made}))
"""

# Runs a model and says what was compiled and whether Numba was imported.
RUN = """
import json, sys
from fp8np.cli import main
from fp8np.dims import symbol
from fp8np.kernels._jit import watching

made = []
with watching(lambda step, done: made.append(step.name)):
    main(["run", *sys.argv[1:]], standalone_mode=False)
print(json.dumps([made, "numba" in sys.modules]))
"""


def python(code: str, cache: Path | str, *arguments: str) -> tuple[Any, str]:
    """What the last line that a process prints says, and what it wrote to standard error."""
    environment = {**os.environ, "FP8NP_CACHE": str(cache), "PYTHONPATH": str(Path(fp8np.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def files(cache: Path) -> set[str]:
    """Names of the entries that are kept."""
    return {path.stem for path in cache.rglob("*.o")}


def linear() -> Model:
    """x (B, 4) through a layer of float32 weights."""
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    return Model(b.finish(b.node("linear", (x, b.constant("w", np.ones((3, 4), np.float32))))))


def invoke(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


# -- how often --------------------------------------------------------------------------------------------------------


def test_everything_is_compiled_once(tmp_path: Path) -> None:
    found, _ = python(COUNT, tmp_path)
    names = [e.name for e in entries()]
    assert max(Counter(found["made"]).values()) == 1
    assert len(set(names)) == len(names)
    assert set(found["made"]) >= set(names)
    assert found["counted"] == len(found["made"])
    assert files(tmp_path) == set(names)
    # Written for a width that is known, and for one that is not.
    assert set(found["several"]) <= {"stochastic._code"}
    again, _ = python(COUNT, tmp_path)
    assert (again["made"], again["counted"]) == ([], 0)


def test_an_integer_in_a_call_is_no_new_signature() -> None:
    steps: list[Step] = []
    with watching(lambda step, done: steps.append(step)):
        out = np.zeros(3, np.int64)
        outer(out.ctypes.data, 0, 0)
    assert out.tolist() == [3, 5, 8]
    assert len(inner.signatures) == 1
    # Parts count as one with the entry, which was compiled for this once.
    assert {step.name.rpartition(".")[2] for step in steps} == {"outer"}
    assert [(step.number, step.count) for step in steps] == [(1, 1)] * 2
    with watching(lambda step, done: pytest.fail("compiled twice")):
        outer(out.ctypes.data, 0, 0)


@_jit.native
def inner(address: int, i: int, value: int) -> None:
    put_word(address + 8 * i, word(address, i) + value)


@entry
def outer(args: int, unit: int, scratch: int) -> None:
    inner(args, 0, 3)
    inner(args, 1, 5)
    inner(args, 2, 5 + word(args, 0))


@exact
def doubled(x: Any) -> Any:
    return x + x


def test_array_kernels_are_told_of_where_they_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    with watching(lambda step, done: names.append(step.name)):
        assert doubled(2) == 4
        assert names == []
        monkeypatch.setattr(doubled.py_func, "__module__", "fp8np.kernels.somewhere")
        assert doubled(2.0) == 4.0
        assert names == ["somewhere.doubled"] * 2


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_a_model_that_was_warmed_compiles_nothing(tmp_path: Path) -> None:
    model, inputs, cache = tmp_path / "tiny.safetensors", tmp_path / "x.npz", tmp_path / "cache"
    save(tiny(), model)
    np.savez(inputs, x=np.ones((2, 3, 2), np.float32))
    environment = {**os.environ, "FP8NP_CACHE": str(cache)}
    command = [sys.executable, "-m", "fp8np", "warmup", str(model)]
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2))
    count = len(files(cache))
    assert count >= 4
    assert f"compiling {count} kernels for this CPU, kept in {cache}" in first.stderr
    assert f"compiled {count} kernels in " in first.stdout
    assert (second.stderr, second.stdout.partition(":")[0]) == ("", "nothing to compile")
    (made, numba), said = python(RUN, cache, str(model), str(inputs))
    assert (made, said) == ([], "")
    assert not numba
    assert len(files(cache)) == count


def test_a_first_run_says_what_it_compiles(tmp_path: Path) -> None:
    model, inputs = tmp_path / "tiny.safetensors", tmp_path / "x.npz"
    save(tiny(), model)
    np.savez(inputs, x=np.ones((2, 3, 2), np.float32))
    (made, numba), said = python(RUN, tmp_path / "cache", str(model), str(inputs))
    assert numba
    count = len(made) // 2
    assert said == f"compiling {count} kernels for this CPU, kept in {next((tmp_path / 'cache').iterdir())}\n"
    (_, _), said = python(RUN, "off", str(model), str(inputs))
    assert said == f"compiling {count} kernels for this CPU, not kept\n"


def test_code_that_is_not_whole_is_not_linked(tmp_path: Path) -> None:
    file = tmp_path / "a.o"
    _objects.write(file, b"code")
    assert _objects.read(file) == b"code"
    for damaged in (file.read_bytes()[:-1], b"", b"x" * 40):
        file.write_bytes(damaged)
        assert _objects.read(file) is None
    assert _objects.read(tmp_path / "b.o") is None


def test_damaged_code_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jit, "kept_in", lambda: tmp_path)
    first = _jit.Entry(amax.function)
    file = tmp_path / f"{first.name}.o"
    assert not first.known()
    assert first.address
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    second = _jit.Entry(amax.function)
    assert not second.known()
    assert second.address
    assert file.read_bytes() == whole


def test_entries_of_others_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jit, "kept_in", lambda: tmp_path)
    assert _jit.Entry(outer.function).address
    assert list(tmp_path.iterdir()) == []


def test_code_that_cannot_be_kept_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jit, "kept_in", lambda: tmp_path / "gone")
    with pytest.warns(RuntimeWarning, match=r"widen.amax.o was not written"):
        assert _jit.Entry(amax.function).address


def test_an_entry_calls_nothing_from_outside() -> None:
    with pytest.raises(RuntimeError, match="calls erf"):
        assert _jit.Entry(calls_erf).address


def calls_nothing(args: int, unit: int, scratch: int) -> None:
    return


def calls_erf(args: int, unit: int, scratch: int) -> None:
    put_word(args, int(math.erf(word(args, 0) * 1.0)))


# -- planning without compiling ---------------------------------------------------------------------------------------


def test_a_rehearsal_runs_nothing() -> None:
    from fp8np.kernels._program import Task

    task = Task(entry(outer.function), (np.zeros(3, np.int64),), 1)
    with rehearsing() as noted:
        run_tasks(task)
    assert task.entry in noted
    assert not task.words[0].any()


def test_memory_is_said_at_sizes() -> None:
    model = linear()
    one, many = (memory(model, {"B": n}) for n in (1, 1000))
    assert one["sizes"] == {"B": 1}
    assert one == {**memory(model, {}), "sizes": {"B": 1}}
    assert one["weights"] == 48
    assert min(one["packed"], many["packed"]) >= 48
    assert many["arena"] >= 1000 * 3 * 4 > one["arena"] > 0
    assert one["arena"] % 64 == 0
    assert model.run(np.ones((2, 4), np.float32)).tolist() == [[4, 4, 4]] * 2


def test_inspect_compiles_nothing(tmp_path: Path) -> None:
    model = tmp_path / "tiny.safetensors"
    save(tiny(), model)
    code = """
import json, sys
from fp8np.cli import main
from fp8np.dims import symbol
main(["inspect", sys.argv[1], "--sizes", "T=5", "--json"], standalone_mode=False)
print(json.dumps("numba" in sys.modules))
"""
    numba, _ = python(code, tmp_path / "cache", str(model))
    assert not numba
    assert files(tmp_path / "cache") == set()
    facts = json.loads(invoke("inspect", model, "--sizes", "T=5", "--json").stdout)["memory"]
    assert facts["sizes"] == {"B": 1, "T": 5}
    assert facts == memory(fp8np.load(model), {"T": 5})
    assert "at B=1, T=128" in " ".join(invoke("inspect", model).stdout.split())


def test_examples_are_shorter_where_a_model_asks_for_less() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", "T", 4), "float32")
    places = b.constant("places", np.ones((20, 4), np.float32))
    first = b.node("slice", (places,), {"dim": 0, "start": 0, "end": symbol("T"), "step": 1})
    model = Model(b.finish(b.node("add", (x, first))))
    assert list(_sizes.examples(model.inputs, {"B": 2})) == [{"B": 2, "T": n} for n in (128, 16, 1)]
    assert memory(model, {})["sizes"] == {"B": 1, "T": 16}
    with pytest.raises(InputError, match=r"cannot run at B=1, T=128"):
        memory(model, {"T": 128})


def test_what_cannot_be_guessed_is_left_out(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    model = tmp_path / "odd.safetensors"
    save(b.finish(b.node("slice", (x,), {"dim": 0, "start": 2, "end": None, "step": 1})), model)
    assert json.loads(invoke("inspect", model, "--json").stdout)["memory"] is None
    assert "memory" not in invoke("inspect", model).stdout
    assert json.loads(invoke("inspect", model, "--sizes", "B=3", "--json").stdout)["memory"]["sizes"] == {"B": 3}
    refused = invoke("inspect", model, "--sizes", "B=1")
    assert refused.exit_code == 1
    assert "cannot run at B=1" in refused.output


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "B", "B=", "B=0", "B=-1", "=3", "B=1,", "B=1,B=2", "B=1;T=2", "a b=1"])
def test_sizes_are_names_and_numbers(text: str) -> None:
    with pytest.raises(InputError, match="expected names and positive numbers"):
        _sizes.named(text)
    result = invoke("inspect", __file__, "--sizes", text)
    assert result.exit_code == 2
    assert "Invalid value for '--sizes'" in result.output


def test_wrong_sizes_are_named(tmp_path: Path) -> None:
    model = tmp_path / "tiny.safetensors"
    save(tiny(), model)
    for command in ("inspect", "warmup"):
        result = invoke(command, model, "--sizes", "B=1,Q=2")
        assert result.exit_code == 1
        assert "Q; open are B, T" in result.output
    assert invoke("warmup", "--sizes", "B=1").exit_code == 2


def test_warming_needs_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for cache, message in (("off", "the cache is off"), (str(tmp_path / "file"), "cannot be kept in")):
        monkeypatch.setenv("FP8NP_CACHE", cache)
        result = invoke("warmup")
        assert result.exit_code == 1
        assert message in result.output


@pytest.mark.parametrize("around", [_terminal.compiling, _terminal.progress])
def test_a_terminal_shows_each_kernel(monkeypatch: pytest.MonkeyPatch, around: Any) -> None:
    seen: list[tuple[str, float]] = []
    update = Progress.update

    def updated(bars: Progress, row: Any, **shown: Any) -> None:
        update(bars, row, **shown)
        seen.extend((task.description, task.completed) for task in bars.tasks)

    monkeypatch.setattr(Progress, "update", updated)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with around():
        prepare([entry(outer.function), entry(calls_nothing)])
    what = [f"compiling kernels: {__name__}.{name}" for name in ("outer", "calls_nothing")]
    # The last step takes the line away.
    assert [s for s in seen if s[0] in what][:2] == [(what[0], 0), (what[0], 1)]


def test_a_library_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    assert entry(outer.function).address
    assert capfd.readouterr() == ("", "")


def test_a_place_is_known_without_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FP8NP_CACHE", str(tmp_path / "file"))
    directory, problem = _cache.place()
    assert directory is None
    assert problem.startswith(str(tmp_path / "file" / "kernels-"))
