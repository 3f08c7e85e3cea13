"""The run over all float32 numbers: what it expects, that it finds what differs, and that it can be cut off."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8np import codec, reference
from fp8np.errors import FormatError, PolicyError
from fp8np.formats import FORMATS, FloatFormat
from fp8np.policy import IEEE, SATURATE, Policy
from fp8np.verify import digests
from fp8np.verify import exhaustive as module
from fp8np.verify._result import Row
from fp8np.verify._state import State, key_of
from fp8np.verify.exhaustive import DIGESTS, SUITE, THE_LAW, exhaustive
from fp8np.verify.law import law
from fp8np.verify.runs import CHUNK, CHUNKS, Runs, chunk_digest, chunk_digests, conversions, label, root_digest, runs

ALL = [(fmt, policy) for fmt in FORMATS.values() for policy in conversions(fmt)]
# Of each kind of specials, with and without sign, zero, and a mantissa: bisecting takes a tenth of a second for each policy.
SOME = ("float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e8m0fnu", "float6_e2m3fn", "binary8p1uf", "binary8p3se", "binary8p8ue")
SAMPLED = [(fmt, policy) for fmt, policy in ALL if fmt.name in SOME and policy != IEEE]
E4M3 = FORMATS["float8_e4m3fn"]
PLAIN = "float8_e3m4fn"  # of no preset: the two common policies alone
ONE = 0x3F800000


class Mine:
    """An implementation that is right but at some bits."""

    def __init__(self, wrong: dict[int, int] | None = None) -> None:
        self.wrong = wrong or {}
        self.calls: Counter[tuple[str, int]] = Counter()

    def encode(self, x: Any, fmt: str, *, overflow: str, rounding: str, nan: str) -> Any:
        bits = x.view(np.uint32)
        self.calls[overflow, int(bits[0]) >> 24] += x.size == module.PIECE
        codes = codec.encode(x, fmt, overflow=overflow, rounding=rounding, nan=nan)
        for at, code in self.wrong.items():
            codes[bits == at] = code
        return codes


def run(implementation: Any = None, formats: Any = (PLAIN,), chunks: Any = (0x3F,), **options: Any) -> list[Any]:
    return list(exhaustive(implementation, formats, **({"chunks": chunks, "libraries": False, "resume": False} | options)))


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fmt", "policy"), SAMPLED, ids=str)
def test_runs_are_the_law(fmt: FloatFormat, policy: Policy) -> None:
    found = runs(fmt, policy)
    assert found.starts[0] == 0
    assert (np.diff(found.starts) > 0).all()
    assert (np.diff(found.codes.astype(int)) != 0).all()
    # The law by bisection among breakpoints, which knows nothing of float32 bits.
    anywhere = np.random.default_rng(3).integers(0, 1 << 32, 4000)
    bits = np.concatenate([anywhere, found.starts, found.starts[1:] - 1, found.starts + 1])
    codes = found.codes[np.searchsorted(found.starts, bits, side="right") - 1]
    np.testing.assert_array_equal(codes, law(fmt, bits.astype(np.uint32).view(np.float32), policy))


@given(st.sampled_from(SAMPLED), st.integers(0, (1 << 32) - 1))
def test_runs_are_the_scalar_law(conversion: tuple[FloatFormat, Policy], bits: int) -> None:
    fmt, policy = conversion
    found, out = runs(fmt, policy), np.empty(1, np.uint8)
    found.fill(bits, out)
    x = float(np.array(bits, np.uint32).view(np.float32))
    if not np.isnan(x):  # a signalling NaN would become quiet
        assert out[0] == reference.encode(fmt, x, **vars(policy))


@given(st.sets(st.integers(1, 60)), st.integers(0, 60), st.integers(1, 60))
def test_runs_can_be_cut(starts: set[int], first: int, count: int) -> None:
    edges = sorted({0, *starts})
    found = Runs(np.array(edges, np.int64), np.arange(len(edges), dtype=np.uint8))
    out = np.empty(count, np.uint8)
    found.fill(first, out)
    assert out.tolist() == [sum(edge <= i for edge in edges) - 1 for i in range(first, first + count)]


def test_stochastic_conversions_have_no_runs() -> None:
    with pytest.raises(PolicyError, match="random bits"):
        runs(E4M3, Policy(rounding="stochastic_a"))


# -- digests ----------------------------------------------------------------------------------------------------------


def test_a_digest_is_that_of_the_codes() -> None:
    import hashlib

    found, out = runs(E4M3), np.empty(CHUNK, np.uint8)
    found.fill(0x3F * CHUNK, out)
    assert chunk_digest(found, 0x3F) == hashlib.sha256(out).digest()


def test_there_are_digests_from_hardware() -> None:
    assert Counter(record.origin for record in digests.recorded()) == {digests.H100: 11, digests.H100_TORCH: 4}


@pytest.mark.parametrize("record", digests.recorded(), ids=lambda r: f"{r.origin[-4:]}-{r.preset}-{r.fmt}")
def test_the_law_has_the_digests_of_hardware(record: digests.Recorded) -> None:
    found = runs(record.fmt, record.policy)
    # Without a mantissa no two chunks are alike: hashing all of them takes seconds, and `verify --exhaustive` does it.
    for chunk in range(0, CHUNKS, 1 if record.fmt.mantissa_bits else 15):
        assert chunk_digest(found, chunk) == record.chunks[chunk], f"chunk {chunk:#x}"


def test_every_conversion_has_a_shipped_digest() -> None:
    wanted = {fmt.name: {str(policy) for policy in conversions(fmt)} for fmt in FORMATS.values()}
    assert {name: set(rows) for name, rows in digests.shipped().items()} == wanted
    # Hardware is named wherever it was measured.
    for record in digests.recorded():
        assert record.origin in digests.shipped()[record.fmt.name][str(record.policy)]["equal"]


@pytest.mark.parametrize(("fmt", "policy"), [(f, p) for f, p in ALL if f.bits < 8], ids=str)
def test_shipped_digests_are_the_laws(fmt: FloatFormat, policy: Policy) -> None:
    assert root_digest(chunk_digests(runs(fmt, policy))) == digests.shipped_for(fmt, policy)


def test_names_of_those_who_agree_last_as_long_as_the_digest(tmp_path: Path) -> None:
    fmt, path = FORMATS["float4_e2m1fn"], tmp_path / "digests.json"
    key = fmt.name, str(SATURATE)
    digests.write(path, {key: ["a library"]}, formats=[fmt])
    digests.write(path, {key: ["another"]}, formats=[fmt])
    rows = json.loads(path.read_text())["digests"][fmt.name]
    assert rows[str(SATURATE)] == {"sha256": digests.shipped_for(fmt, SATURATE), "equal": ["a library", "another"]}
    path.write_text(path.read_text().replace(rows[str(SATURATE)]["sha256"], "0" * 64))
    digests.write(path, formats=[fmt])
    rows = json.loads(path.read_text())["digests"][fmt.name]
    assert rows[str(SATURATE)] == {"sha256": digests.shipped_for(fmt, SATURATE), "equal": []}


@pytest.mark.parametrize("wrong", ["", "a library 1.0", THE_LAW])
def test_libraries_that_agree_are_named_once(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, path, told = FORMATS["float4_e2m1fn"], tmp_path / "digests.json", []
    path.write_text(json.dumps({"digests": digests.shipped()}))
    calls: list[str] = []

    def rows(formats: Any, progress: Any) -> Any:
        calls.append(formats[0].name)
        for reference_name in (THE_LAW, "a library 1.0"):
            yield Row(SUITE, reference_name, fmt.name, str(SATURATE), 1 << 32, mismatches=reference_name == wrong)

    monkeypatch.setattr(module, "exhaustive", rows)
    monkeypatch.setattr(module, "live", lambda: {(fmt.name, SATURATE): [("a library 1.0", None)]})
    assert digests._confirm(path, told.append) == (wrong == "")
    digests._confirm(path, told.append)
    named = json.loads(path.read_text())["digests"][fmt.name][str(SATURATE)]["equal"]
    assert ("a library 1.0" in named, calls) == ((True, [fmt.name]) if not wrong else (False, [fmt.name] * 2))
    assert not wrong or wrong in told[0]


# -- the run ----------------------------------------------------------------------------------------------------------


def test_fp8np_is_right_where_most_codes_are() -> None:
    facts: dict[str, Any] = {}
    rows = run(formats=[E4M3], facts=facts)
    told = [label(policy, presets) for policy, presets in conversions(E4M3).items()]
    assert [row.policy for row in rows if row.reference == THE_LAW] == told
    assert {row.reference for row in rows if row.suite == DIGESTS} == {digests.H100, digests.H100_TORCH}
    assert all((row.cases, row.mismatches, row.skipped) == (CHUNK, 0, False) for row in rows)
    assert facts["exhaustive"]["seconds"][E4M3.name] > 0


def test_one_wrong_code_of_a_chunk_is_found() -> None:
    bits = ONE | 0x12345
    rows = run(Mine({bits: 0x7E}), [E4M3])
    at = {(row.policy.partition(" (")[2], row.reference): row for row in rows if "satfinite" in row.policy}
    for reference_name in (THE_LAW, digests.H100):
        row = at["cuda_satfinite)", reference_name]
        assert (row.cases, row.mismatches) == (CHUNK, 1)
        assert row.first[0].input.startswith("0x3f812345 (1.008")
        assert row.first[0].expected == "38 (1)"
        assert row.first[0].got == "7E (448)"
        assert row.diagnosis


def test_many_wrong_codes_are_counted_and_the_first_is_shown() -> None:
    class Truncating(Mine):
        def encode(self, x: Any, fmt: str, *, overflow: str, rounding: str, nan: str) -> Any:
            return codec.encode(x, fmt, overflow=overflow, rounding="toward_zero", nan=nan)

    row = run(Truncating())[0]
    fmt = FORMATS[PLAIN]
    right, wrong = np.empty((2, CHUNK), np.uint8)
    runs(fmt).fill(0x3F * CHUNK, right)
    runs(fmt, Policy(rounding="toward_zero")).fill(0x3F * CHUNK, wrong)
    assert row.mismatches == np.count_nonzero(right != wrong)
    first = 0x3F * CHUNK + int(np.flatnonzero(right != wrong)[0])
    assert row.first[0].input.startswith(f"0x{first:08x} ")
    assert "toward zero" in row.diagnosis


def test_records_that_the_law_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chunk_digests(runs(FORMATS[PLAIN]))
    record = digests.Recorded("a device", "", FORMATS[PLAIN], SATURATE, (*found[:0x3F], bytes(32), *found[0x40:]))
    monkeypatch.setattr(module, "recorded", lambda: (record,))
    row = next(row for row in run() if row.reference == "a device")
    assert row.mismatches == 1
    assert "0x3f......" in row.diagnosis
    assert next(row for row in run(chunks=[0x40]) if row.reference == "a device").mismatches == 0


def test_codes_that_have_the_digest_of_a_record_agree_with_it_whatever_the_law_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    mine, codes = Mine({ONE: 0}), np.empty(CHUNK, np.uint8)
    runs(FORMATS[PLAIN]).fill(0x3F * CHUNK, codes)
    codes[ONE - 0x3F * CHUNK] = 0
    record = digests.Recorded("a device", "", FORMATS[PLAIN], SATURATE, (hashlib.sha256(codes).digest(),) * CHUNKS)
    monkeypatch.setattr(module, "recorded", lambda: (record,))
    rows = {row.reference: row for row in run(mine)[:2]}
    assert (rows[THE_LAW].mismatches, rows["a device"].mismatches) == (1, 0)


def test_a_law_that_has_changed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = FORMATS[PLAIN]
    task = module._Task(fmt, SATURATE, "", runs(fmt), lambda x: x, [], [])
    found = [{"chunk": i, "sha256": d.hex(), "versus": {THE_LAW: [0, []]}} for i, d in enumerate(chunk_digests(runs(fmt)))]
    assert [row.mismatches for row in module._rows(task, found)] == [0, 0]
    found[5]["sha256"] = "00" * 32
    law_row, shipped = module._rows(task, found)
    assert (law_row.mismatches, shipped.mismatches) == (0, 1)
    assert "the law has changed" in shipped.diagnosis


def test_libraries_convert_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = FORMATS[PLAIN]
    theirs = Mine({ONE + 1: 3})
    live = {
        (fmt.name, SATURATE): [
            ("a library 1.0", lambda x: theirs.encode(x, fmt.name, overflow="saturate", rounding="nearest_even", nan="max"))
        ]
    }
    monkeypatch.setattr(module, "live", lambda: live)
    rows = {(row.policy, row.reference): row for row in run(libraries=True)}
    row = rows[str(SATURATE), "a library 1.0"]
    assert (row.suite, row.mismatches, row.first[0].expected[:2]) == (SUITE, 1, "03")
    assert rows[str(SATURATE), THE_LAW].mismatches == 0
    assert len(rows) == 3


def test_installed_libraries_take_part() -> None:
    found = module.live()
    names = {title.split()[0] for rows in found.values() for title, _ in rows}
    assert names == {"ml_dtypes", "torch"}
    assert set(found) <= {(fmt.name, policy) for fmt, policy in ALL}


def test_workers_change_nothing() -> None:
    wrong = {ONE: 1, ONE | 1 << 22: 2}
    assert run(Mine(wrong), chunks=range(0x3D, 0x41), workers=3) == run(Mine(wrong), chunks=range(0x3D, 0x41))


# -- cut off, and gone on with ----------------------------------------------------------------------------------------


def test_a_run_that_is_cut_off_goes_on(tmp_path: Path) -> None:
    mine, chunks = Mine({ONE: 1}), range(0x3C, 0x40)

    def cut_off(what: str, done: int, total: int | None) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(mine, chunks=chunks, resume=True, state_dir=tmp_path, progress=cut_off)
    (path,) = tmp_path.rglob("*-ieee-*.jsonl")
    with path.open("a") as file:
        file.write('\n{"chunk": 63, "seco')  # as a crash in the middle of a line leaves it
    before, done = Counter(mine.calls), []
    rows = run(mine, chunks=chunks, resume=True, state_dir=tmp_path, progress=lambda what, i, total: done.append((i, total)))
    assert len(before) >= 6
    assert all(mine.calls[key] == before[key] for key in before if key[0] == "saturate"), "the first conversion was done"
    assert sum((mine.calls - before).values()) <= 3 * CHUNK // module.PIECE, "two chunks, and one that was under way"
    assert [row.mismatches for row in rows] == [1, 1]
    assert done[-1] == (8, 8)
    assert list(tmp_path.iterdir()) == [], "what is finished is not kept"


def test_a_reader_who_stops_early_leaves_the_rest_for_later(tmp_path: Path) -> None:
    rows = exhaustive(Mine(), [PLAIN], chunks=[0x3F], libraries=False, state_dir=tmp_path)
    next(rows)
    rows.close()
    assert len(list(tmp_path.rglob("*.jsonl"))) == 1


def test_implementations_of_others_are_not_taken_for_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FP8NP_CACHE", str(tmp_path))
    facts: dict[str, Any] = {}
    next(exhaustive(Mine(), [PLAIN], chunks=[0], libraries=False, facts=facts))
    assert facts["exhaustive"]["state"] == ""
    next(exhaustive(None, [PLAIN], chunks=[0], libraries=False, facts=facts))
    assert Path(facts["exhaustive"]["state"]).parent == tmp_path / "exhaustive"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FP8NP_CACHE", str(tmp_path / "file"))
    facts: dict[str, Any] = {}
    exhaustive(None, [PLAIN], libraries=False, facts=facts)
    assert facts["exhaustive"]["state"] == ""


def test_what_results_depend_on() -> None:
    assert key_of(Mine(), ["a"]) == key_of(Mine(), ["a"]) != key_of(Mine(), ["b"])
    assert key_of(Mine(), ["a"]) != key_of(Counter(), ["a"])


def test_states_without_a_folder_keep_nothing() -> None:
    state = State(None, "key")
    state.append("part", {"chunk": 1})
    assert state.load("part") == []
    state.clear()


# -- implementations that fail ----------------------------------------------------------------------------------------


def test_what_is_not_offered_is_skipped() -> None:
    class Narrow(Mine):
        def encode(self, x: Any, fmt: str, **options: str) -> Any:
            if options["overflow"] == "ieee":
                raise NotImplementedError("always saturates")
            return super().encode(x, fmt, **options)

    first, second = run(Narrow())
    assert (first.skipped, first.mismatches, second.skipped) == (False, 0, True)
    assert "always saturates" in second.reason
    skipped = [row for row in run(Narrow(), [E4M3]) if row.skipped]
    assert any("encode_preset" in row.reason for row in skipped), "policies that three names cannot say"


@pytest.mark.parametrize("result", [None, np.zeros(3, np.uint8), "raise"])
def test_failures_are_rows(result: Any) -> None:
    class Broken:
        def encode(self, x: Any, fmt: str, **options: str) -> Any:
            if isinstance(result, str):
                raise ZeroDivisionError
            return result

    for row in run(Broken()):
        assert row.mismatches
        assert "Broken.encode" in row.diagnosis


def test_wrong_arguments() -> None:
    with pytest.raises(FormatError):
        exhaustive(formats=["float9"])
    with pytest.raises(PolicyError, match="chunks of 0"):
        exhaustive(chunks=[256])
    with pytest.raises(PolicyError, match="worker"):
        exhaustive(workers=0)
