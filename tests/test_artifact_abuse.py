"""Files that are not what they should be: each a good one with one thing wrong. All are refused, with the place."""

# ruff: noqa: E501 - a bad file a line

from __future__ import annotations

import contextlib
import copy
import gc
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _artifacts import bytes_of, files, tiny

from fp8np.artifact import load_graph, save
from fp8np.errors import ArtifactError, ArtifactVersionError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def good_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return bytes_of(tiny(), Path(folder))


GOOD = good_bytes()


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    n = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + n]), content[8 + n :]


def join(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def in_header(change: Callable[[Any], Any]) -> bytes:
    header, data = split(GOOD)
    change(header)
    return join(header, data)


def in_graph(change: Callable[[Any], Any]) -> bytes:
    header, data = split(GOOD)
    graph = json.loads(header["__metadata__"]["fp8np"])
    change(graph)
    header["__metadata__"]["fp8np"] = json.dumps(graph)
    return join(header, data)


def graph_text(text: str) -> bytes:
    return in_header(lambda h: h["__metadata__"].update(fp8np=text))


def data_of(name: str, new: bytes) -> bytes:
    header, data = split(GOOD)
    begin, end = header[name]["data_offsets"]
    return join(header, data[:begin] + new + data[end:])


def node_of(graph: Any, name: str) -> Any:
    return next(node for node in graph["nodes"] if node["name"] == name)


def raw_header(old: bytes, new: bytes) -> bytes:
    n = int.from_bytes(GOOD[:8], "little")
    header = GOOD[8 : 8 + n].rstrip()
    assert header.count(old) == 1
    return join(header.replace(old, new), GOOD[8 + n :])


def f32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def set_in(*keys: Any) -> Callable[[Any], None]:
    *way, last, new = keys

    def change(thing: Any) -> None:
        for key in way:
            thing = thing[key]
        thing[last] = new

    return change


def attr(name: str, key: str, new: Any) -> bytes:
    return in_graph(lambda g: node_of(g, name)["attrs"].update({key: new}))


def deep(n: int, left: str = "[", right: str = "]") -> str:
    return left * n + right * n


TEXT = json.loads(split(GOOD)[0]["__metadata__"]["fp8np"])
START = 8 + int.from_bytes(GOOD[:8], "little")

BAD: dict[str, tuple[bytes, str]] = {
    # The container.
    "empty": (b"", "not a file of fp8np: expected the length of a header"),
    "cut in the length": (GOOD[:5], "not a file of fp8np: expected the length of a header"),
    "cut in the header": (GOOD[:100], "header: expected .* bytes, the file has 92: truncated"),
    "cut in the data": (GOOD[:-1], "data: expected .* bytes, the file has .*: truncated"),
    "no data": (GOOD[:START], "data: expected .* bytes, the file has 0"),
    "something appended": (GOOD + b"\0", "or with something appended"),
    "a zip": (b"PK\x03\x04" + bytes(1000), "`fp8np convert` makes a model of a checkpoint"),
    "a huge header": ((2**63).to_bytes(8, "little") + GOOD[8:], "got 9223372036854775808"),
    "a header of 40 MiB": ((40 << 20).to_bytes(8, "little") + b"[" * (40 << 20), "not a file of fp8np: expected the length of a header"),
    "a header of odd length": (int(START - 8 + 1).to_bytes(8, "little") + GOOD[8:], "not a file of fp8np: expected the length of a header first, a multiple of 8"),
    "not UTF-8": (join(b"\xff" * 8, b""), "header: not UTF-8 at byte 0"),
    "not JSON": (join(b"{'a': 1}", b""), "header: not JSON"),
    "not an object": (join([1, 2], b""), r"header: expected an object, got \[1, 2\]"),
    "deep": (join(deep(1 << 20).encode(), b""), "header: nested too deeply"),
    "deep objects": (join(deep(1 << 18, '{"":', "}").replace(":}", ":1}").encode(), b""), "header: nested too deeply"),
    "NaN in the header": (join(b'{"a": NaN}', b""), "header: NaN is not JSON"),
    "a number too large": (join(b'{"a": 1e999}', b""), "header: the number '1e999' is too large"),
    "an integer too long": (join(b'{"a": ' + b"9" * 5000 + b"}", b""), "header: not JSON"),
    "a tensor twice": (raw_header(b'"mask":', b'"b":'), "header: the key 'b' occurs twice"),
    "half a character": (join(b'{"\\ud800": 1}', b""), r"header: '\\ud800' is not valid Unicode"),
    "someone else's": (in_header(lambda h: h.update(__metadata__={"format": "pt"})), "not one of fp8np .*`fp8np convert` makes a model"),
    "no metadata": (in_header(lambda h: h.pop("__metadata__")), "not one of fp8np"),
    "metadata of numbers": (in_header(set_in("__metadata__", "fp8np", 3)), "__metadata__: expected an object of strings"),
    "metadata not an object": (in_header(set_in("__metadata__", [])), "__metadata__: expected an object of strings"),
    "a tensor that is no object": (in_header(set_in("b", 3)), "tensor 'b': expected an object with dtype"),
    "a tensor with more to say": (in_header(set_in("b", "more", 3)), "tensor 'b': expected an object with dtype"),
    "an unknown dtype": (in_header(set_in("b", "dtype", "F4")), "tensor 'b': expected a dtype of U64.*got 'F4'"),
    "a dtype that is no string": (in_header(set_in("b", "dtype", ["F32"])), "tensor 'b': expected a dtype"),
    "a wider dtype": (in_header(set_in("b", "dtype", "I64")), r"tensor 'b': I64\[3\] needs 24 bytes, data_offsets give 12"),
    "another shape": (in_header(set_in("b", "shape", [4])), r"tensor 'b': F32\[4\] needs 16 bytes, data_offsets give 12"),
    "a negative size": (in_header(set_in("b", "shape", [-3])), r"tensor 'b': expected a shape .*got \[-3\]"),
    "a size that is a float": (in_header(set_in("b", "shape", [3.0])), "tensor 'b': expected a shape"),
    "a size that is true": (in_header(set_in("b", "shape", [True])), "tensor 'b': expected a shape"),
    "a size that overflows": (in_header(set_in("b", "shape", [2**62, 4, 3])), "tensor 'b': .*more elements than 64 bits can count"),
    "an overflow beside a zero": (in_header(set_in("b", "shape", [0, 2**62, 2**62])), "more elements than 64 bits can count"),
    "a size beyond 64 bits": (in_header(set_in("b", "shape", [2**64])), "tensor 'b': expected a shape"),
    "a huge rank": (in_header(set_in("b", "shape", [1] * 65)), "tensor 'b': expected a shape of at most 64 sizes"),
    "a rank beyond reason": (in_header(set_in("b", "shape", [1] * 10**6)), "tensor 'b': expected a shape of at most 64 sizes"),
    "offsets out of range": (in_header(set_in("mask", "data_offsets", [999, 1001])), "tensor 'mask': begins at 999 and leaves a hole"),
    "offsets backwards": (in_header(set_in("b", "data_offsets", [12, 0])), "tensor 'b': expected data_offsets"),
    "one offset": (in_header(set_in("b", "data_offsets", [12])), "tensor 'b': expected data_offsets"),
    "negative offsets": (in_header(set_in("b", "data_offsets", [-12, 0])), "tensor 'b': expected data_offsets"),
    "overlapping": (in_header(set_in("w_scale", "data_offsets", [0, 12])), "tensor 'w_scale': begins at 0 and overlaps tensor 'b', which ends at 12"),
    "partly overlapping": (in_header(set_in("w_scale", "data_offsets", [8, 20])), "tensor 'w_scale': begins at 8 and overlaps tensor 'b'"),
    "a hole": (in_header(set_in("mask", "data_offsets", [32, 34])), "tensor 'mask': begins at 32 and leaves a hole of 2 bytes after tensor 'w'"),
    "a hole at the start": (in_header(lambda h: [h.pop("b"), h.pop("w_scale")]), "leaves a hole of 24 bytes after the header"),
    "not aligned": (in_header(lambda h: (h["w"].update(data_offsets=[0, 6]), h["b"].update(data_offsets=[6, 18]))), "tensor 'b': expected a start at a multiple of 4 bytes, got 6"),
    "a bool of 2": (data_of("mask", b"\x01\x02"), "tensor 'mask': expected bytes 0 and 1"),
    # The graph's text.
    "graph not JSON": (graph_text("{"), "graph: not JSON"),
    "graph not an object": (graph_text("[]"), r"graph: expected an object, got \[\]"),
    "graph deep": (graph_text(deep(1 << 16)), "graph: nested too deeply"),
    "graph with a key twice": (graph_text('{"version": 1, "version": 1}'), "graph: the key 'version' occurs twice"),
    "no version": (in_graph(lambda g: g.pop("version")), "graph: expected a version, got None"),
    "version zero": (in_graph(set_in("version", 0)), "graph: expected a version, got 0"),
    "version true": (in_graph(set_in("version", True)), "graph: expected a version, got True"),
    "a field too few": (in_graph(lambda g: g.pop("meta")), "graph: expected an object with version, inputs"),
    "a field too many": (in_graph(set_in("code", "print(1)")), "graph: expected an object with version, inputs"),
    "inputs no array": (in_graph(set_in("inputs", {})), "inputs: expected an array"),
    "an input too short": (in_graph(lambda g: g["inputs"][0].pop("dtype")), "input 0: expected an object with name, dtype, shape"),
    "an input without a name": (in_graph(set_in("inputs", 0, "name", 3)), "input 0: name: expected a string, got 3"),
    "an input of a wrong type": (in_graph(set_in("inputs", 0, "dtype", "float64")), "'x': unknown element type 'float64'"),
    "an input of a huge rank": (in_graph(set_in("inputs", 0, "shape", [1] * 65)), "at most 64 axes, got 65"),
    "a size that is null": (in_graph(set_in("inputs", 0, "shape", [None])), r"input 0 \('x'\): expected a size from 0 .*got None"),
    "a size below zero": (in_graph(set_in("inputs", 0, "shape", [-1])), r"input 0 \('x'\): expected a size"),
    "a size too large": (in_graph(set_in("inputs", 0, "shape", [2**63])), r"input 0 \('x'\): expected a size"),
    "a size that runs code": (in_graph(set_in("inputs", 0, "shape", ["__import__('os')"])), r"input 0 \('x'\): size expression"),
    "a size of many terms": (in_graph(set_in("inputs", 0, "shape", ["*".join(["(A+B+C)"] * 100)])), r"input 0 \('x'\): size"),
    "a size of a million terms": (in_graph(set_in("inputs", 0, "shape", ["+".join(["A"] * 10**6)])), "expected at most 1000 characters"),
    "a size not as written": (in_graph(set_in("inputs", 0, "shape", ["T*1"])), "expected the size 'T' to be written so, got 'T"),
    "a size that is a number": (in_graph(set_in("inputs", 0, "shape", ["3"])), "expected the size '3' to be written so"),
    "a name twice": (in_graph(lambda g: g["inputs"].append(g["inputs"][0])), "names are unique: 'x' is both an input and an input"),
    "an input named as a constant": (in_graph(set_in("inputs", 0, "name", "b")), "'b' is both an input and a constant"),
    "an output twice": (in_graph(set_in("nodes", 2, "outputs", 0, "name", "fc")), "node 'y': its output 'fc' is the output of a node before it"),
    "two nodes of one name": (in_graph(set_in("nodes", 2, "name", "fc")), "2 nodes are named 'fc'"),
    "an empty name": (in_graph(set_in("nodes", 2, "name", "")), "non-empty name"),
    "a node no object": (in_graph(set_in("nodes", 1, None)), "node 1: expected an object with name, op"),
    "an unknown op": (in_graph(set_in("nodes", 1, "op", "system")), r"node 'fc' \(from model.py:7\): unknown op 'system'"),
    "an op that is no string": (in_graph(set_in("nodes", 1, "op", ["linear"])), r"node 1 \('fc'\): op: expected a string"),
    "an unknown attribute": (attr("fc", "alpha", 1), r"node 'fc' .*: linear: unknown attribute 'alpha'"),
    "no attribute": (in_graph(lambda g: node_of(g, "q")["attrs"].pop("format")), "node 'q': quantize: attribute 'format' is required"),
    "an attribute of no kind": (attr("y", "shape", {"call": "f"}), r"node 2 \('y'\): attribute 'shape': expected \{"),
    "an attribute of two kinds": (attr("y", "shape", {"size": "B", "float": "inf"}), "attribute 'shape': expected"),
    "a float of no kind": (attr("q", "scale", {"float": "1.0"}), "attribute 'scale': expected"),
    "a size of no kind": (attr("y", "shape", {"size": 3}), "attribute 'shape': expected a string"),
    "a size with a call": (attr("y", "shape", [{"size": "f(B)"}]), "attribute 'shape': size expression"),
    "an integer too large": (attr("y", "shape", [2**64]), "node 'y': attribute 'shape': expected an integer of 64 bits"),
    "an attribute nested": (attr("y", "shape", json.loads(deep(40))), "node 'y': attribute 'shape': tuples nested more than"),
    "an attribute nested deep": (graph_text(json.dumps(TEXT).replace('"scale": 0.1', '"scale": ' + deep(600))), "nested"),
    "a scale that is NaN": (attr("q", "scale", {"float": "nan"}), "node 'q': quantize: expected a finite and positive scale"),
    "a scale below zero": (attr("q", "scale", -0.5), "node 'q': quantize: expected a finite and positive scale"),
    "a cycle": (in_graph(lambda g: node_of(g, "q").update(inputs=["y"])), "node 'q' reads 'y', which is computed by it or after it"),
    "nodes out of order": (in_graph(lambda g: g["nodes"].reverse()), "node 'y' reads 'fc', which is computed by it or after it"),
    "a missing input": (in_graph(lambda g: node_of(g, "fc").update(inputs=["q", "v", "b"])), "node 'fc' .* reads 'v', which does not exist"),
    "too few inputs": (in_graph(lambda g: node_of(g, "fc").update(inputs=["q"])), "linear takes .*, got 1 inputs"),
    "a number as an input": (in_graph(lambda g: node_of(g, "fc").update(inputs=["q", 3, "b"])), r"node 1 \('fc'\): inputs: expected a string"),
    "a wrong shape": (in_graph(set_in("nodes", 1, "outputs", 0, "shape", ["B", "T", 4])), r"node 'fc' .*: 'fc' is declared float32\[B, T, 4\], but linear gives"),
    "a wrong dtype": (in_graph(set_in("nodes", 1, "outputs", 0, "dtype", "int32")), "'fc' is declared int32"),
    "outputs of nothing": (in_graph(set_in("outputs", None)), "the model has no output"),
    "outputs that do not exist": (in_graph(set_in("outputs", {"tuple": ["gone"]})), "the output 'gone' does not exist"),
    "outputs of no kind": (in_graph(set_in("outputs", {"set": ["y"]})), "outputs: expected a name, null"),
    "outputs of a number": (in_graph(set_in("outputs", 3)), "outputs: expected a name, null"),
    "outputs with a key twice": (in_graph(set_in("outputs", {"dict": [["a", "y"], ["a", "fc"]]})), "outputs: 'dict': expected pairs with keys that differ"),
    "outputs with half a pair": (in_graph(set_in("outputs", {"dict": [["a"]]})), "outputs: 'dict': expected pairs"),
    "outputs with a key of no string": (in_graph(set_in("outputs", {"dict": [[1, "y"]]})), "outputs: 'dict': expected a string"),
    "outputs nested": (graph_text(json.dumps({**TEXT, "outputs": 0}).replace('"outputs": 0', '"outputs": ' + deep(20, '{"list":[', "]}"))), "outputs .*nested more than"),
    "outputs nested deep": (graph_text(json.dumps({**TEXT, "outputs": 0}).replace('"outputs": 0', '"outputs": ' + deep(300, '{"list":[', "]}"))), "nested"),
    "meta of numbers": (in_graph(set_in("meta", "source", 3)), "meta 'source': expected a string, got 3"),
    # Where they meet.
    "a constant without a tensor": (in_graph(set_in("constants", "c", {"dtype": "float32", "shape": [1], "scale": None})), "constant 'c': the tensor 'c' is not in the file"),
    "a tensor without a constant": (in_graph(lambda g: g["constants"].pop("mask")), "tensor 'mask': no constant of the graph uses it"),
    "a constant of another type": (in_graph(set_in("constants", "b", "dtype", "int32")), "constant 'b': expected a tensor of I32, 'b' is stored as F32"),
    "a constant of no type": (in_graph(set_in("constants", "b", "dtype", "float64")), "constant 'b': expected one of .*got 'float64'"),
    "a constant of another shape": (in_graph(set_in("constants", "b", "shape", [3, 1])), r"constant 'b': declared with the shape \[3, 1\], stored with \[3\]"),
    "another format": (in_graph(set_in("constants", "w", "dtype", "float8_e5m2")), "constant 'w': expected a tensor of F8_E5M2, 'w' is stored as F8_E4M3"),
    "an unknown format": (in_graph(set_in("constants", "w", "dtype", "float8_e9m9")), "constant 'w': unknown format 'float8_e9m9'"),
    "a format by a short name": (in_graph(set_in("constants", "w", "dtype", "e4m3fn")), "constant 'w': expected the canonical name of a format, got 'e4m3fn'"),
    "a format of a long name": (in_graph(set_in("constants", "w", "dtype", "e" * 10**6)), "constant 'w': expected the canonical name"),
    "FP8 without a scale": (in_graph(set_in("constants", "w", "scale", None)), "constant 'w': expected one of .*or FP8 and a scale"),
    "a scale for float32": (in_graph(set_in("constants", "b", "scale", "w_scale")), "constant 'b': unknown format 'float32'"),
    "a scale that is missing": (in_graph(set_in("constants", "w", "scale", "gone")), "constant 'w': scale: the tensor 'gone' is not in the file"),
    "a scale used twice": (in_graph(set_in("constants", "w", "scale", "b")), "constant 'w': scale: the tensor 'b' is used twice"),
    "a scale of another type": (in_graph(lambda g: (g["constants"].pop("mask"), g["constants"]["w"].update(scale="mask"))), "constant 'w': scale: expected a tensor of F32, 'mask' is stored as BOOL"),
    "a scale of another shape": (in_header(set_in("w_scale", "shape", [1, 3])), "constant 'w': QTensor: expected a scale of shape"),
    "a weight's scale NaN": (data_of("w_scale", f32(1, np.nan, 1)), "constant 'w': QTensor: expected a scale of finite, positive numbers"),
    "a weight's scale infinite": (data_of("w_scale", f32(1, np.inf, 1)), "constant 'w': QTensor: expected a scale of finite, positive numbers"),
    "a weight's scale negative": (data_of("w_scale", f32(1, -1, 1)), "constant 'w': QTensor: expected a scale of finite, positive numbers"),
    "a weight's scale zero": (data_of("w_scale", f32(1, 0, 1)), "constant 'w': QTensor: expected a scale of finite, positive numbers"),
}  # fmt: skip


def test_the_good_file_is_good(path: Path) -> None:
    path.write_bytes(GOOD)
    load_graph(path)
    path.write_bytes(join(*split(GOOD)))
    load_graph(path)
    path.write_bytes(in_graph(lambda g: None))
    load_graph(path)


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, path: Path) -> None:
    content, place = BAD[name]
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=place) as error:
        load_graph(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 2000
    assert type(error.value) is ArtifactError


def test_a_version_from_the_future(path: Path) -> None:
    # Nothing else of such a file is looked at: it may be quite different.
    for content in (in_graph(set_in("version", 3)), graph_text('{"version": 7, "other": []}')):
        path.write_bytes(content)
        with pytest.raises(ArtifactVersionError, match=r"written by a newer fp8np .*reads 2.*upgrade") as error:
            load_graph(path)
        assert str(error.value).startswith(f"{path}: ")


def test_files_that_are_not_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_graph(path)
    with pytest.raises(ArtifactError, match="got a folder or a device"):
        load_graph(tmp_path)


def test_a_plain_safetensors_file(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.ones((2, 3), np.float16)}, path)
    with pytest.raises(ArtifactError, match=r"a safetensors file, but not one of fp8np .*`fp8np convert`"):
        load_graph(path)


def test_failures_leak_no_file(path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    gc.collect()
    before = len(files(folder))
    for content in (GOOD, *(content for content, _ in BAD.values() if len(content) < 1 << 16)):
        path.write_bytes(content)
        with contextlib.suppress(ArtifactError):
            load_graph(path)
        assert len(files(folder)) == before


def test_any_truncation_is_refused(path: Path) -> None:
    for n in range(len(GOOD)):
        path.write_bytes(GOOD[:n])
        with pytest.raises(ArtifactError):
            load_graph(path)


def test_any_mutation_is_refused_or_harmless(path: Path) -> None:
    rng = random.Random(0)
    loaded = 0
    for _ in range(1500):
        content = bytearray(GOOD)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            i = rng.randrange(len(content))
            kind = rng.randrange(4)
            if kind == 0:
                content[i] = rng.randrange(256)
            elif kind == 1:
                content[i] ^= 1 << rng.randrange(8)
            elif kind == 2:
                # The length of the header stays true, so that the change gets as far as it can.
                content[i] = rng.choice(b'0123456789{}[]",:-. ETB*/')
            else:
                j = rng.randrange(len(content))
                content[i], content[j] = content[j], content[i]
        path.write_bytes(content)
        try:
            save(load_graph(path), path)
        except ArtifactError:
            continue
        loaded += 1
    assert 0 < loaded < 1000


def json_mutations(value: Any, rng: random.Random) -> Any:
    """The same JSON with one part, anywhere, replaced, removed or doubled."""
    value = copy.deepcopy(value)
    parts = [(None, None, value)]
    for _, _, part in parts:
        if isinstance(part, dict | list):
            parts += [(part, key, part[key]) for key in (part if isinstance(part, dict) else range(len(part)))]
    holder, key, part = rng.choice(parts[1:])
    other = rng.choice(parts[1:])[2]
    strange = [
        None,
        True,
        -1,
        0,
        2**31,
        2**62,
        10**30,
        1.5,
        -0.0,
        "",
        "x",
        "B",
        "\0",
        [],
        {},
        [[]],
        {"size": "T//2"},
        {"float": "nan"},
        part,
        [part, part],
    ]
    action = rng.randrange(4)
    if action == 0:
        holder[key] = copy.deepcopy(other)
    elif action == 1 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(other))
    elif action == 2:
        del holder[key]
    else:
        holder[key] = rng.choice(strange)
    return value


def test_any_change_of_the_graph_is_refused_or_harmless(path: Path) -> None:
    rng = random.Random(1)
    loaded = 0
    for _ in range(1500):
        header, data = split(GOOD)
        if rng.random() < 0.8:
            header["__metadata__"]["fp8np"] = json.dumps(json_mutations(TEXT, rng))
        else:
            header = json_mutations(header, rng)
        path.write_bytes(join(header, data))
        try:
            save(load_graph(path), path)
        except ArtifactError:
            continue
        loaded += 1
    assert 0 < loaded < 1000
