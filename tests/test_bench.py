"""`fp8np bench`: what is wrong is not timed, figures are those of the samples, and files can be compared. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fp8np
from fp8np import cli_bench
from fp8np.cli import main
from fp8np.errors import InputError, MissingDependencyError
from fp8np.reference import encode
from fp8np_benchmarks import peers, suites
from fp8np_benchmarks.case import OURS, Case, CheckError, Ready, Setting, SkipCase
from fp8np_benchmarks.machine import Ceiling, copy_bandwidth, roof
from fp8np_benchmarks.picture import draw
from fp8np_benchmarks.results import Row, Run, compare, read_run
from fp8np_benchmarks.runner import QUICK, Pace, measured, run_case, run_cases
from fp8np_benchmarks.suites import codec, gemm
from fp8np_benchmarks.suites._likeness import likeness
from fp8np_benchmarks.tables import markdown

MACHINE = {
    "cpu": "a CPU",
    "usable cores": 2,
    "threads": 2,
    "tier": "plain",
    "why": "it is a test",
    "features": {"avx2": False},
    "versions": {"fp8np": "0", "numpy": "2"},
    "ceilings": {"copy of 16 MB, 2 threads": 1e10, "fma, 2 threads": 1e11},
}
ROW = Row(
    "gemm",
    "matmul",
    2,
    "plain",
    work=1e9,
    unit="flop",
    traffic=1e8,
    samples={OURS: [0.2, 0.1, 0.3, 0.5], "fp8np, again": [0.1], "torch": [0.5, 0.25, 1.0]},
    checked={OURS: "right", "fp8np, again": "right", "torch": "right"},
    absent={"other": "other is not installed"},
    ceiling=("fma", 1e10),
)
RUN = Run(MACHINE, (ROW,), 1)


def bench(*args: str) -> Result:
    return CliRunner().invoke(main, ["bench", *args])


def right(entry: str, result: Any) -> str:
    if result != 1:
        raise CheckError(f"{result} is not 1")
    return "it is 1"


def case(entries: dict[str, Callable[[], Any]], **options: Any) -> Case:
    return Case("gemm", "a case", 1, lambda: Ready(entries, right), **options)


def failing() -> int:
    raise ValueError("no such instruction\nand more")


def test_statistics_of_a_row() -> None:
    assert ROW.median(OURS) == 0.25
    assert ROW.spread(OURS) == pytest.approx((0.175, 0.35))
    assert ROW.spread("fp8np, again") == (0.1, 0.1)
    assert ROW.ratio("torch") == 2
    assert ROW.rate(OURS) == 4e9
    assert ROW.share(OURS) == 0.4
    assert ROW.peers == ["torch"]
    assert replace(ROW, work=0.0).rate(OURS) is None


def test_entries_take_turns_and_each_is_woken_first() -> None:
    calls: list[str] = []
    samples = measured({name: lambda name=name: calls.append(name) for name in "abc"}, Pace(rounds=3, pause=0, stretch=0))
    assert {name: len(s) for name, s in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(calls) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert all(s >= 0 for taken in samples.values() for s in taken)


def test_short_calls_are_repeated_and_long_ones_get_fewer_rounds() -> None:
    calls: list[int] = []
    measured({"a": lambda: calls.append(1)}, Pace(rounds=1, pause=0, stretch=0.001))
    assert len(calls) > 20
    samples = measured({"a": lambda: None}, Pace(rounds=9, pause=0, stretch=0, budget=0, fewest=2))
    assert len(samples["a"]) == 2


def test_a_cold_start_is_not_warmed() -> None:
    calls: list[int] = []
    samples = measured({"a": lambda: calls.append(1)}, Pace(pause=0), warm=False, rounds=3)
    assert len(calls) == len(samples["a"]) == 3


def test_a_wrong_result_is_not_timed() -> None:
    calls: list[str] = []
    peer = {"torch": lambda: calls.append("torch") or 1}
    row = run_case(case({OURS: lambda: calls.append("ours") or 2, **peer}), QUICK)
    assert row.failed == {OURS: "2 is not 1"}
    assert row.samples == {}
    assert calls == ["ours", "torch"]
    assert not Run(MACHINE, (row,), 1).clean


def test_a_wrong_peer_is_not_timed_and_one_that_refuses_is_left_out() -> None:
    row = run_case(case({OURS: lambda: 1, "torch": lambda: 2, "other": failing}), QUICK)
    assert row.failed == {"torch": "2 is not 1"}
    assert row.absent == {"other": "does not run: ValueError: no such instruction"}
    assert row.checked == {OURS: "it is 1"}
    assert list(row.samples) == [OURS]
    assert not Run(MACHINE, (row,), 1).clean


def test_ours_may_not_refuse() -> None:
    assert run_case(case({OURS: failing}), QUICK).failed == {OURS: "does not run: ValueError: no such instruction"}
    broken = Case("gemm", "a case", 1, failing)
    assert run_case(broken, QUICK).failed == {OURS: "could not be prepared: ValueError: no such instruction"}


def test_what_breaks_in_a_check_or_while_it_is_timed_ends_the_case_alone() -> None:
    odd = Case("gemm", "a case", 1, lambda: Ready({OURS: lambda: 1}, lambda entry, result: result["no"]))
    assert run_case(odd, QUICK).failed[OURS].startswith("could not be checked: TypeError")
    answers = iter([1])
    row = run_case(case({OURS: lambda: next(answers)}), QUICK)
    assert row.failed == {OURS: "failed while it or a peer was timed: StopIteration: "}
    assert row.samples == {}


def test_a_case_that_cannot_be_run_here_is_skipped() -> None:
    def missing() -> Ready:
        raise SkipCase("needs --models DIR")

    row = run_case(Case("models", "a case", 1, missing), QUICK)
    assert (row.skipped, row.samples, row.failed) == ("needs --models DIR", {}, {})
    assert Run(MACHINE, (row,), 1).clean


def test_bytes_are_what_the_entry_says_and_rows_of_others_are_taken() -> None:
    sizes = Case("models", "memory", 1, lambda: Ready({OURS: lambda: (7, 1)}, lambda _, result: right(_, result[1])), measured="bytes")
    assert set(run_case(sizes, QUICK).samples[OURS]) == {7.0}
    taken = run_case(Case("gemm", "everybody on AVX2", 1, lambda: ROW), QUICK)
    assert taken == replace(ROW, name="everybody on AVX2")


def test_rows_come_as_they_are_done() -> None:
    heard: list[tuple[str, int, int]] = []
    rows = run_cases([case({OURS: lambda: 1}), case({OURS: lambda: 1})], QUICK, lambda *told: heard.append(told))
    assert next(rows).samples
    assert heard == [("gemm", 0, 2)]
    assert len([*rows]) == 1
    assert heard[-1] == ("gemm", 2, 2)


def test_the_roof_is_the_lower_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = importlib.import_module("fp8np_benchmarks.machine")
    monkeypatch.setattr(machine, "copy_bandwidth", lambda moved, threads: 100.0)
    monkeypatch.setattr(machine, "peak", lambda threads: Ceiling("fma", 1000.0))
    assert roof(80.0, 10.0, 1) == Ceiling("copy", 800.0)
    assert roof(800.0, 10.0, 1) == Ceiling("fma", 1000.0)
    monkeypatch.setattr(machine, "peak", lambda threads: None)
    assert roof(800.0, 10.0, 1) == Ceiling("copy", 8000.0)
    assert copy_bandwidth(1 << 12, 2) > 0


def test_json_keeps_everything(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    RUN.write(file)
    assert read_run(file) == RUN


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "machine": {}, "planned": 1, "rows": [{"suite": 1}]}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(InputError, match="expected a file written by fp8np bench --json"):
        read_run(file)


def test_files_of_other_versions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"version": 0}')
    with pytest.raises(InputError, match="version 0 of the file"):
        read_run(file)


def slower(factor: float) -> Run:
    return replace(RUN, rows=(replace(ROW, samples={**ROW.samples, OURS: [s * factor for s in ROW.samples[OURS]]}),))


def test_the_guard_compares_ratios() -> None:
    # Twice as fast a machine changes nothing.
    halved = replace(RUN, rows=(replace(ROW, samples={name: [s / 2 for s in taken] for name, taken in ROW.samples.items()}),))
    assert compare(RUN, halved).regressions == ()
    assert compare(RUN, slower(1.05)).regressions == ()
    assert compare(RUN, slower(0.5)).regressions == ()
    (worse,) = compare(RUN, slower(1.25)).regressions
    assert worse == "matmul, 2 threads: 1.60 times torch, 2.00 before"
    assert compare(RUN, slower(1.25), tolerance=0.3).regressions == ()


def test_the_guard_sees_wrong_results_and_says_what_is_missing() -> None:
    wrong = replace(ROW, samples={}, failed={OURS: "2 is not 1"})
    assert compare(RUN, replace(RUN, rows=(wrong,))).regressions == ("matmul, 2 threads: fp8np: 2 is not 1",)
    alone = replace(ROW, samples={OURS: [0.2]}, absent={"torch": "torch is not installed"}, tier="avx2")
    other = replace(ROW, name="another")
    found = compare(replace(RUN, rows=(ROW, other)), replace(RUN, rows=(alone, other, replace(ROW, name="new"))))
    assert found.remarks == (
        "matmul, 2 threads: kernels of plain before, of avx2 now",
        "matmul, 2 threads: not compared with torch (torch is not installed)",
        "new, 2 threads: only in the new file",
    )
    assert [name for name, *_ in found.ratios] == ["another, 2 threads"]
    assert compare(replace(RUN, rows=(ROW, other)), RUN).remarks == ("another, 2 threads: only in the old file",)
    with pytest.raises(InputError, match="no timed case with a peer in common"):
        compare(RUN, replace(RUN, rows=()))


def test_compare_on_the_command_line(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    RUN.write(old)
    slower(1.25).write(new)
    same = bench("--compare", str(old), str(old))
    assert same.exit_code == 0, same.output
    assert "1 ratios compared: nothing worse" in same.output
    worse = bench("--compare", str(old), str(new))
    assert worse.exit_code == 1
    assert "WORSE  matmul, 2 threads: 1.60 times torch, 2.00 before" in worse.output
    assert bench("--compare", str(old), str(new), "--tolerance", "0.3").exit_code == 0
    new.write_text("{}")
    assert "expected a file written by fp8np bench --json" in bench("--compare", str(old), str(new)).output


def test_readme_holds_the_tables_of_the_kept_results() -> None:
    root = Path(__file__).parents[1]
    printed = bench("--readme", str(root / "benchmarks/results/amx-2-cores.json")).output
    assert printed.strip() in (root / "README.md").read_text()


def test_readme_is_made_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    RUN.write(file)
    printed = bench("--readme", str(file)).output
    assert printed.strip() == markdown(RUN)
    assert "| matmul | 2 | 250 ms, 4 GFLOP/s | 40 % of fma | fp8np, again 0.40, torch 2.00 |" in printed
    assert printed.startswith("a CPU, 2 cores, kernels of tier `plain`; numpy 2.\n")


def test_a_picture(tmp_path: Path) -> None:
    for suffix in ("png", "svg"):
        draw(RUN, tmp_path / f"run.{suffix}")
        assert (tmp_path / f"run.{suffix}").stat().st_size > 1000
    with pytest.raises(InputError, match="xyz"):
        draw(RUN, tmp_path / "run.xyz")
    with pytest.raises(InputError, match="nothing to draw"):
        draw(replace(RUN, rows=()), tmp_path / "run.png")


def test_a_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        draw(RUN, tmp_path / "run.png")


def test_quick_run_of_the_codec(tmp_path: Path) -> None:
    file, picture = tmp_path / "run.json", tmp_path / "run.svg"
    options = ["--threads", "1", "--case", "encode*e4m3fn*", "--case", "stochastic_a*e5m2*"]
    result = bench("--quick", "--suite", "codec", *options, "--json", str(file), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "encode float32 -> float8_e4m3fn, 64 K" in result.output
    assert "2 of 2 cases" in result.output
    assert "all right" in result.output
    assert re.search(r"^tier +\w+: ", result.output, re.MULTILINE)
    run = read_run(file)
    assert run.machine["tier"] == run.rows[0].tier
    assert run.rows[0].checked[OURS] == "65,536 results as by the law"
    assert run.rows[0].ceiling is not None
    assert run.rows[0].ceiling[0] == "copy"
    assert picture.exists()


def test_the_machine(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    result = bench("--machine", "--threads", "1", "--json", str(file))
    assert result.exit_code == 0, result.output
    facts = json.loads(file.read_text())["machine"]
    assert {"cpu", "usable cores", "threads", "tier", "why", "features", "blas", "versions", "ceilings"} <= set(facts)
    assert any(name.startswith("copy") for name in facts["ceilings"])


def test_a_wrong_result_is_reported_and_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "cases", lambda setting: [case({OURS: lambda: 2}), case({OURS: lambda: 1})])
    result = bench("--quick", "--suite", "codec", "--threads", "1")
    assert result.exit_code == 1
    assert "WRONG  a case: fp8np: 2 is not 1" in result.output
    assert "2 of 2 cases, 2 results checked before they were timed: 1 wrong" in result.output


def test_an_interruption_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted() -> Ready:
        raise KeyboardInterrupt

    done = case({OURS: lambda: 1})
    monkeypatch.setattr(codec, "cases", lambda setting: [done, Case("codec", "the second", 1, interrupted), done])
    result = bench("--quick", "--suite", "codec", "--threads", "1", "--json", str(tmp_path / "run.json"))
    assert result.exit_code == 1
    assert "1 of 3 cases" in result.output
    assert "Aborted!" in result.output
    assert len(read_run(tmp_path / "run.json").rows) == 1


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == "ml_dtypes":
            raise ModuleNotFoundError("No module named 'ml_dtypes'", name=name)
        if name == "torch":
            raise OSError("libgomp is missing")
        return real(name, *rest)

    monkeypatch.setattr(peers.importlib, "import_module", without)
    ready = codec.encoding("float8_e4m3fn", 100)
    assert list(ready.entries) == [OURS]
    assert ready.absent == {"ml_dtypes": "ml_dtypes is not installed", "torch": "torch cannot be imported: libgomp is missing"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--suite", "nothing"], "'nothing' is not one of"),
        (["--threads", "0"], "0 is not in the range"),
        (["--threads", "100000"], "this process may use"),
        (["--case", "nothing"], "no case is named so; there are:"),
        (["--machine", "--readme", __file__], "--machine and --readme do different things"),
        (["--machine", "--suite", "gemm"], "--machine measures no cases"),
        (["--readme", __file__, "--quick"], "--readme measures no cases"),
        (["--readme", __file__, "--json", "x.json"], "--readme measures no cases"),
        (["--tolerance", "0.1"], "--tolerance goes with --compare"),
        (["--compare", __file__], "requires 2 arguments"),
        (["--models", "/no/such/folder"], "does not exist"),
        (["--json", "/no/such/folder/run.json"], "There is no folder"),
        (["--plot", "run.xyz"], "expected a file named .eps"),
    ],
)
def test_wrong_usage(args: list[str], message: str) -> None:
    result = bench(*args)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_a_tier_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from fp8np.kernels import _cpu

    monkeypatch.setenv("FP8NP_CPU", "abacus")
    _cpu.describe.cache_clear()
    try:
        result = bench("--machine")
    finally:
        monkeypatch.delenv("FP8NP_CPU")
        _cpu.describe.cache_clear()
    assert result.exit_code == 1
    assert "FP8NP_CPU" in result.output
    assert "abacus" in result.output


def test_suites_are_named_once() -> None:
    assert cli_bench._SUITES == suites.SUITES
    for quick in (False, True):
        planned = suites.cases(suites.SUITES, Setting(2, quick))
        names = [(c.suite, c.name, c.threads) for c in planned]
        assert len(set(names)) == len(names)
        assert {c.suite for c in planned} == set(suites.SUITES)


@pytest.mark.parametrize("fmt", codec.FORMATS)
def test_the_check_of_encoding_is_the_law(fmt: str) -> None:
    row = fp8np.get_format(fmt)
    values = fp8np.decode(np.arange(0x7B, dtype=np.uint8), fmt)
    ties = (values[1:] + values[:-1]) / 2
    x = np.concatenate([values, ties, np.nextafter(ties, np.float32(9)), -ties, [-0.0]]).astype(np.float32)
    assert codec.nearest(x, fmt).tolist() == [encode(row, float(v)) for v in x]


def test_checks_find_what_is_wrong() -> None:
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    near = gemm.close(x, x)
    product = x @ x.T
    assert "within" in near("NumPy f32", product)
    product[3, 3] *= 1 + 1e-4
    with pytest.raises(CheckError, match="an element is off by"):
        near("NumPy f32", product)
    assert "dB" in near("torch bf16", product)
    with pytest.raises(CheckError, match="the shape is"):
        near("torch bf16", product[0])
    product[3, 3] = np.nan
    for entry in ("NumPy f32", "torch bf16"):
        with pytest.raises(CheckError):
            near(entry, product)
    alike = likeness(x, 2 * x)
    assert "inf dB" in alike(OURS, x)
    with pytest.raises(CheckError, match="the network in float32, expected at least 60"):
        alike("torch f32", x)
    codes = codec.encoding("float8_e4m3fn", 100)
    with pytest.raises(CheckError, match="1 of 100 results differ"):
        codes.check(OURS, codes.entries[OURS]() ^ (np.arange(100) == 7))


@pytest.mark.parametrize(("m", "n", "k"), [(4, 8, 64)])
def test_products_are_prepared_so_that_they_pass(m: int, n: int, k: int) -> None:
    for ready in (gemm.square(16, "fp32"), gemm.square(16, "exact"), gemm.linear(m, n, k), gemm.batched(2, m, k)):
        for name, call in ready.entries.items():
            assert ready.check(name, call())


def test_a_case_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        stderr = "Error: FP8NP_CPU=avx2: this machine has no more than plain"

    given: dict[str, Any] = {}

    def run(command: list[str], env: dict[str, str], **options: Any) -> Done:
        given.update(command=command, env=env)
        if given.get("works"):
            RUN.write(Path(command[command.index("--json") + 1]))
        return Done()

    monkeypatch.setattr(gemm.subprocess, "run", run)
    with pytest.raises(SkipCase, match="no more than plain"):
        gemm.elsewhere(Setting(2, quick=True), "matmul")
    assert given["env"]["FP8NP_CPU"] == "avx2"
    assert given["env"]["OPENBLAS_CORETYPE"] == "Haswell"
    assert given["command"][1:7] == ["-m", "fp8np", "bench", "--suite", "gemm", "--case"]
    given["works"] = True
    assert gemm.elsewhere(Setting(2), "matmul") == ROW
    given["works"] = False
    Done.stderr = "Traceback\nZeroDivisionError: division by zero"
    with pytest.raises(RuntimeError, match="division by zero"):
        gemm.elsewhere(Setting(2), "matmul")


def test_networks_have_the_parameters_of_the_papers() -> None:
    from fp8np_benchmarks.workloads.mobilenet_v2 import MobileNetV2
    from fp8np_benchmarks.workloads.resnet50 import ResNet50

    # As many as torchvision's.
    for network, count in ((ResNet50(), 25_557_032), (MobileNetV2(), 3_504_872)):
        assert sum(p.numel() for p in network.parameters()) == count
