"""Exported vectors: what a test bench reads is what the law says, twice the same, and described in the files themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp8np import QTensor, codec, linalg, reference
from fp8np.accumulators import ACCUMULATORS, Accumulator
from fp8np.errors import FormatError
from fp8np.formats import FORMATS
from fp8np.policy import IEEE, SATURATE, Policy
from fp8np.verify.export import export_vectors
from fp8np.verify.runs import conversions, label

NARROW, E4M3, E5M2 = (FORMATS[name] for name in ("float4_e2m1fn", "float8_e4m3fn", "float8_e5m2"))
HOPPER = ACCUMULATORS["hopper"]
MINE = Accumulator("mine", "aligned", group=4, fraction_bits=9, output_fraction_bits=9, output_rounding="toward_zero")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "new"
    export_vectors(path, [NARROW, E4M3], accumulators=[HOPPER, MINE, ACCUMULATORS["exact"], ACCUMULATORS["fp32"]])
    return path


def readmemh(path: Path) -> tuple[list[list[str]], list[str]]:
    """(fields of each word, header), by the rules of IEEE 1800-2017, 21.4: comments, white space, digits and underscores."""
    text = path.read_text(encoding="utf-8")
    header = re.findall(r"^// (.*)$", text, flags=re.MULTILINE)
    words = re.sub(r"//[^\n]*", "", text).split()
    assert all(re.fullmatch(r"[0-9a-f][0-9a-f_]*", word) for word in words)
    return [word.split("_") for word in words], header


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file}


def test_values(folder: Path) -> None:
    for fmt in (NARROW, E4M3):
        words, _ = readmemh(folder / f"decode/{fmt}.hex")
        assert len(words) == 1 << fmt.bits
        values = np.array([int(word, 16) for (word,) in words], np.uint32).view(np.float32)
        np.testing.assert_array_equal(values, codec.decode_table(fmt)[: 1 << fmt.bits])
        np.testing.assert_array_equal(arrays(folder / f"decode/{fmt}.npz")["values"], values)


@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("fmt", [NARROW, E4M3], ids=str)
def test_codes(folder: Path, fmt: Any, source: str) -> None:
    words, header = readmemh(folder / f"encode/{fmt}_{source}.hex")
    both = arrays(folder / f"encode/{fmt}_{source}.npz")
    names = json.loads((folder / "index.json").read_text())[f"encode/{fmt}_{source}.hex"]["policies"]
    assert [line.partition(": ")[2] for line in header if line.startswith("code_")] == names
    table = np.array([[int(field, 16) for field in word] for word in words], np.uint64)
    np.testing.assert_array_equal(table[:, 0], both["inputs"])
    np.testing.assert_array_equal(table[:, 1:], both["codes"])
    assert f"{len(words)} words of {4 * sum(map(len, words[0]))} bits" in header[1]
    if source.endswith("float16"):
        np.testing.assert_array_equal(table[:, 0], np.arange(1 << 16))
    # The columns by the kernels, which have no part in making them.
    x = both["inputs"] if source == "bfloat16" else both["inputs"].view(source)
    wanted = {label(policy, presets): (policy, presets) for policy, presets in conversions(fmt).items()}
    wanted |= {str(policy): (policy, ()) for policy in (Policy("ieee", "odd"), Policy("saturate", "up"))}
    checked = 0
    for i, name in enumerate(names):
        if name in wanted:
            policy, presets = wanted[name]
            how = {"preset": presets[0]} if presets else {"overflow": policy.overflow, "rounding": policy.rounding}
            with np.errstate(all="ignore"):
                expected = codec.encode(x, fmt, source="bfloat16" if source == "bfloat16" else None, **how)
            np.testing.assert_array_equal(both["codes"][:, i], expected, err_msg=name)
            checked += 1
    assert checked == len(conversions(fmt)) + 2 * (not source.endswith("float16"))


def test_columns_are_the_scalar_law(folder: Path) -> None:
    both = arrays(folder / f"encode/{NARROW}_float64.npz")
    for bits, codes in zip(both["inputs"][::97], both["codes"][::97], strict=True):
        x = float(bits.view(np.float64))
        assert codes[:2].tolist() == [reference.encode(NARROW, x, **vars(policy)) for policy in (SATURATE, IEEE)]


def products(folder: Path) -> list[Path]:
    return sorted((folder / "products").glob("*.hex"))


def test_products_by_the_kernels(folder: Path) -> None:
    known = {how.name: how for how in (HOPPER, MINE, ACCUMULATORS["exact"])}
    index = json.loads((folder / "index.json").read_text())
    seen = set()
    for path in products(folder):
        words, header = readmemh(path)
        facts = index[f"products/{path.name}"]
        assert f"terms: {facts['terms']}" in header
        both = arrays(path.with_suffix(".npz"))
        for line, (a, b, c, d) in enumerate(words):
            assert bytes.fromhex(a) == both["a"][line].tobytes()
            assert bytes.fromhex(b) == both["b"][line].tobytes()
            assert (int(c, 16), int(d, 16)) == (both["c"].view(np.uint32)[line], both["d"].view(np.uint32)[line])
        how = known[facts["accumulator"]]
        every = re.search(r"promote_every=(\d+)", facts["rule"])
        if every:
            how = dataclasses.replace(how, promote_every=int(every[1]))
        left, right = QTensor(both["a"][:, None, :], facts["a"]), QTensor(both["b"][:, :, None], facts["b"])
        got = linalg.matmul(left, right, accumulate=how, init=both["c"][:, None, None])[:, 0, 0]
        if facts["nan"] == "any":
            np.testing.assert_array_equal(got, both["d"])
        else:
            np.testing.assert_array_equal(got.view(np.uint32), both["d"].view(np.uint32), err_msg=path.name)
        seen.add((facts["accumulator"], path.stem.rpartition("_")[2]))
    aligned = {"narrow", "wide", "special", "chain", "promoted"}
    wanted = {(name, case) for name in known for case in aligned if name != "exact" or case != "promoted"}
    assert seen == wanted, "sums in an order of their own have no bits to export"


def test_cases_are_worth_checking(folder: Path) -> None:
    def sums(case: str) -> Any:
        return arrays(folder / f"products/hopper_{E4M3}_{E4M3}_{case}.npz")

    assert np.isnan(sums("special")["d"]).any()
    assert np.signbit(sums("narrow")["c"]).any()
    exact = sums("chain")
    left, right = (QTensor(exact[key], E4M3) for key in "ab")
    plain = np.diagonal(linalg.matmul(left, QTensor(right.codes.T.copy(), E4M3), accumulate="exact")) + exact["c"]
    assert (plain != exact["d"]).any(), "no sum of the chain is rounded by the accumulator"


def test_the_same_bytes_again(folder: Path, tmp_path: Path) -> None:
    export_vectors(tmp_path, [NARROW, E4M3], accumulators=[HOPPER, MINE, ACCUMULATORS["exact"]])
    first, again = ({p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} for root in (folder, tmp_path))
    assert first == again


def test_everything_is_described(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == set(index) | {"README.md", "index.json"}
    for name, facts in index.items():
        assert facts["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for name in {Path(name).parts[0] for name in index}:
        assert f"## {name}/" in readme
    assert "| mine | aligned, group=4, fraction_bits=9" in readme
    assert "{{" not in readme


def test_returned_files_and_progress(tmp_path: Path) -> None:
    told: list[Any] = []
    files = export_vectors(tmp_path, ["e2m1fn"], accumulators=[], progress=lambda *args: told.append(args))
    assert set(files) == {p for p in tmp_path.rglob("*") if p.is_file()}
    assert [done for _, done, _ in told] == list(range(5))


def test_products_need_both_formats(tmp_path: Path) -> None:
    export_vectors(tmp_path, [E5M2], accumulators=[MINE])
    assert {path.name.removeprefix("mine_").rpartition("_")[0] for path in products(tmp_path)} == {f"{E5M2}_{E5M2}"}


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="unknown format"):
        export_vectors(tmp_path, ["float9"])
    (tmp_path / "decode").write_text("a file")
    with pytest.raises(OSError, match="decode"):
        export_vectors(tmp_path, [NARROW], accumulators=[])


def test_files_of_an_earlier_export_do_not_stay_beside_the_new_index(tmp_path: Path) -> None:
    export_vectors(tmp_path, ["float4_e2m1fn", "float6_e2m3fn"], accumulators=[])
    mine = tmp_path / "decode" / "notes.txt"
    mine.write_text("not from fp8np")
    written = export_vectors(tmp_path, ["float4_e2m1fn"], accumulators=[])
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*written, mine}
