"""The file of a converted model: what goes in comes out, the same bytes each time, and nothing bad gets through."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import hashlib
import io
import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.artifact import _container, load_graph, save
from fp8np.artifact._container import ELEMENTS, Stored
from fp8np.artifact._graph import decode_graph, encode_graph, scale_names
from fp8np.build import GraphBuilder
from fp8np.check import DTYPES
from fp8np.dims import Dim, parse, symbol
from fp8np.errors import ArtifactError, ArtifactVersionError, GraphError
from fp8np.formats import FORMATS
from fp8np.graph import Graph, Node, Value
from fp8np.interpret import interpret
from fp8np.tensor import QTensor

ALL_FORMATS = (*FORMATS, "float8_e4m3@11", "float8_e4m3@3")


def tiny() -> Graph:
    """A graph with a bit of everything. Its bytes are held by a digest below."""
    b = GraphBuilder()
    x = b.input("x", ("B", "T", 2), "float32")
    w = b.constant("w", QTensor(np.array([[0x38, 0xB8], [0x40, 0x00], [0x7E, 0x01]], np.uint8), "e4m3fn", [[0.5], [0.25], [2.0]]))
    q = b.node("quantize", (x,), {"format": "float8_e4m3fn", "scale": 0.1}, name="q")
    h = b.node("linear", (q, w, b.constant("b", np.array([0.0, -0.0, np.inf], np.float32))), name="fc", origin="model.py:7")
    y = b.node("reshape", (h,), {"shape": (symbol("B"), symbol("T") * 3)}, name="y")
    mask = b.constant("mask", np.array([True, False]))
    return b.finish({"z": y, "a": (h, None, [mask])}, {"source": "tests", "größe": "klein"})


def every_constant() -> Graph:
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    b.input("x", (2,), "float32")
    names = []
    for dtype in sorted(DTYPES):
        for shape in ((), (3,), (2, 0, 4), (2, 3, 5)):
            array = rng.integers(0, 2, shape) if dtype == "bool" else rng.integers(-100, 100, shape)
            names.append(b.constant(f"{dtype}{len(shape)}", np.asarray(array).astype(dtype)))
    for fmt in ALL_FORMATS:
        codes = rng.integers(0, 256, (4, 6), np.uint8)
        names.append(b.constant(f"{fmt} tensor", QTensor(codes, fmt, 0.125)))
        names.append(b.constant(f"{fmt} channel", QTensor(codes, fmt, rng.uniform(0.1, 2, (4, 1)))))
        names.append(b.constant(f"{fmt} transposed", QTensor(codes, fmt, rng.uniform(0.1, 2, (4, 1))).T))
        names.append(b.constant(f"{fmt} empty", QTensor(codes[:0], fmt, np.ones((0, 1)))))
        names.append(b.constant(f"{fmt} scalar", QTensor(codes[0, 0], fmt, 3.0)))
    return b.finish(tuple(names))


def plain(value: Any) -> Any:
    """Data that compare equal only if they are the same, types, signs of zeros and NaN included."""
    if isinstance(value, Graph):
        return [
            plain(value.inputs),
            {name: plain(c) for name, c in value.constants.items()},
            plain(value.nodes),
            dict(value.values),
            plain(value.outputs),
            dict(value.meta),
        ]
    if isinstance(value, Node):
        return [value.name, value.op, value.inputs, value.outputs, plain(dict(value.attrs)), value.origin]
    if isinstance(value, QTensor):
        return [value.format.name, plain(value.codes), plain(value.scale)]
    if isinstance(value, np.ndarray):
        return [value.dtype.name, value.shape, value.tobytes()]
    if isinstance(value, dict):
        return [(key, plain(v)) for key, v in value.items()]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(plain, value)]
    return [type(value).__name__, repr(value)]


def bytes_of(graph: Graph, folder: Path) -> bytes:
    save(graph, folder / "bytes.safetensors")
    return (folder / "bytes.safetensors").read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("make", [tiny, every_constant])
def test_round_trip(make: Callable[[], Graph], path: Path) -> None:
    graph = make()
    save(graph, path)
    loaded = load_graph(path)
    assert plain(loaded.replace(constants=dict(sorted(loaded.constants.items())))) == plain(
        graph.replace(
            constants=dict(sorted(graph.constants.items())),
            nodes=tuple(n.replace(attrs=dict(sorted(n.attrs.items()))) for n in graph.nodes),
        )
    )
    assert bytes_of(loaded, path.parent) == path.read_bytes()


def test_a_loaded_graph_means_the_same(path: Path) -> None:
    graph = tiny()
    save(graph, path)
    x = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    expected, got = interpret(graph, {"x": x}), interpret(load_graph(str(path)), {"x": x})
    assert list(got) == ["z", "a"]
    assert plain(got) == plain(expected)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
dims = st.sampled_from(["B", "B*T + 1", "(T - 1)//2 + 1", "2*(T//3)", "-T", "5//T"]).map(parse)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5) | dims
attrs = st.dictionaries(names, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6), max_size=4)
structures = st.recursive(
    st.none() | names,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
shapes = st.lists(st.integers(0, 2**63 - 1) | dims, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(names, shapes, names, attrs, names), max_size=4, unique_by=lambda v: v[0]),
    structures,
    st.dictionaries(names, st.text(max_size=9)),
)
def test_any_graph_survives_the_text(parts: list[Any], outputs: Any, meta: dict[str, str]) -> None:
    values = {name: Value(name, shape, dtype) for name, shape, dtype, _, _ in parts}
    nodes = tuple(Node(op, op, (None, name), (name,), dict(sorted(a.items())), dtype) for name, _, dtype, a, op in parts)
    graph = Graph(tuple(values.values()), {}, nodes, values, outputs, meta)
    text = encode_graph(graph, {})
    decoded = decode_graph(text, {})
    assert plain(decoded.replace(meta=meta)) == plain(graph)
    assert dict(decoded.meta) == meta
    assert encode_graph(decoded, {}) == text
    json.loads(text, parse_constant=pytest.fail)


def test_arrays_are_read_only_views_of_the_file(path: Path) -> None:
    save(every_constant(), path)
    for constant in load_graph(path).constants.values():
        for array in (constant.codes, constant.scale) if isinstance(constant, QTensor) else (constant,):
            assert type(array) is np.ndarray
            assert array.flags.aligned
            assert not array.flags.writeable
            assert not array.flags.owndata
            with pytest.raises(ValueError, match="read-only|WRITEABLE"):
                array.flags.writeable = True


def test_a_loaded_graph_outlives_its_file(path: Path) -> None:
    save(tiny(), path)
    loaded = load_graph(path)
    before = plain(loaded)
    save(every_constant(), path)
    assert plain(loaded) == before
    path.unlink()
    assert plain(loaded) == before


def test_saving_over_the_file_a_graph_came_from(path: Path) -> None:
    save(tiny(), path)
    before = path.read_bytes()
    save(load_graph(path), path)
    assert path.read_bytes() == before


def backwards(mapping: Any) -> Any:
    return MappingProxyType(dict(reversed(mapping.items())))


def test_bytes_do_not_depend_on_the_order_of_mappings(tmp_path: Path) -> None:
    for graph in (tiny(), every_constant()):
        other = graph.replace(
            constants=backwards(graph.constants),
            values=backwards(graph.values),
            meta=backwards(graph.meta),
            nodes=tuple(node.replace(attrs=backwards(node.attrs)) for node in graph.nodes),
        )
        assert bytes_of(other, tmp_path) == bytes_of(graph, tmp_path)


def test_bytes_do_not_depend_on_memory_layout(tmp_path: Path) -> None:
    graph = tiny()
    w = graph.constants["w"]
    other = {
        "w": QTensor(np.asfortranarray(w.codes), w.format, np.asfortranarray(w.scale)),
        "b": np.repeat(graph.constants["b"], 2)[::2].astype(">f4"),
        "mask": graph.constants["mask"].view(np.uint8).view(bool),
    }
    assert bytes_of(graph.replace(constants=other), tmp_path) == bytes_of(graph, tmp_path)


def test_what_a_caller_sees_is_in_the_bytes(tmp_path: Path) -> None:
    graph = tiny()
    for change in (
        {"outputs": backwards(graph.outputs) | {}},
        {"outputs": (graph.outputs["z"],)},
        {"outputs": [graph.outputs["z"]]},
        {"meta": {}},
        {"constants": {**graph.constants, "mask": np.array([False, False])}},
    ):
        assert bytes_of(graph.replace(**change), tmp_path) != bytes_of(graph, tmp_path)


def test_golden_bytes(tmp_path: Path) -> None:
    # A change of this digest is a change of the format: raise VERSION if older readers would misread the new file.
    content = bytes_of(tiny(), tmp_path)
    assert hashlib.sha256(content).hexdigest() == "4b0b2eeb8340a1aee36b3a02273aca1330a9657c22f61edf2cce80c734e84eb0"


@pytest.mark.parametrize("make", [tiny, every_constant])
def test_the_safetensors_package_writes_the_same_bytes(make: Callable[[], Graph], path: Path) -> None:
    save(make(), path)
    content = path.read_bytes()
    names = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
    metadata, tensors = _container.read_container(path)
    keep = {name: np.array(stored.array) for name, stored in tensors.items()}
    specs = {
        name: safetensors.TensorSpec(
            dtype=names.get(tensors[name].element, array.dtype.name), shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
        )
        for name, array in keep.items()
    }
    assert bytes(safetensors.serialize(specs, metadata)) == content


def test_torch_reads_the_tensors(path: Path) -> None:
    torch = pytest.importorskip("torch")
    graph = tiny()
    save(graph, path)
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.keys()) == {"w", "w_scale", "b", "mask"}
        assert json.loads(file.metadata()["fp8np"])["version"] == 1
        w = file.get_tensor("w")
        assert w.dtype == torch.float8_e4m3fn
        assert w.view(torch.uint8).numpy().tolist() == graph.constants["w"].codes.tolist()
        assert file.get_tensor("w_scale").tolist() == [[0.5], [0.25], [2.0]]
        assert file.get_tensor("mask").tolist() == [True, False]


def test_names_of_scales_collide_with_no_constant(path: Path) -> None:
    b = GraphBuilder()
    b.input("x", (1,), "float32")
    q = QTensor(np.zeros((1,), np.uint8), "e5m2", 2.0)
    names = [b.constant(name, q) for name in ("w", "w_scale", "w_scale_")] + [b.constant("w_scale_scale", np.ones(1, np.float32))]
    graph = b.finish(tuple(names))
    assert scale_names(graph.constants) == {"w": "w_scale__", "w_scale": "w_scale_scale_", "w_scale_": "w_scale__scale"}
    save(graph, path)
    assert plain(load_graph(path).constants["w_scale"]) == plain(q)


def test_a_bad_graph_is_not_written(path: Path) -> None:
    with pytest.raises(GraphError, match="does not exist"):
        save(tiny().replace(outputs="nothing"), path)
    graph = tiny()
    with pytest.raises(ArtifactError, match="cannot be named '__metadata__'"):
        save(graph.replace(constants={**graph.constants, "__metadata__": np.ones(1, np.float32)}), path)
    with pytest.raises(ArtifactError, match="not valid Unicode"):
        save(graph.replace(meta={"a": "\ud800"}), path)
    assert os.listdir(path.parent) == []


def test_a_graph_that_no_reader_takes_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_container, "_MAX_HEADER", 1000)
    with pytest.raises(ArtifactError, match="expected a graph of at most 1000 bytes"):
        save(tiny(), path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_failure_while_writing(path: Path, where: str, failure: BaseException, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        save(tiny(), path)
    before = path.read_bytes() if old else None
    payload, calls = _container._payload, []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if where == "write" and len(calls) < 3:
            return payload(*args)
        raise failure

    monkeypatch.setattr(*{"write": (_container, "_payload"), "fsync": (os, "fsync")}[where], fail)
    with pytest.raises(type(failure)):
        save(every_constant(), path)
    assert calls
    assert os.listdir(path.parent) == ([path.name] if old else [])
    assert not old or path.read_bytes() == before


def test_a_full_disk(path: Path) -> None:
    # The system itself refuses to let the file grow: the error is as real as that of a full disk.
    save(tiny(), path)
    before = path.read_bytes()
    b = GraphBuilder()
    b.input("x", (1,), "float32")
    large = b.finish(b.constant("c", np.ones(1 << 16, np.float32)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before


def good_bytes() -> bytes:
    graph, scales = tiny(), {"w": "w_scale"}
    w = graph.constants["w"]
    tensors = {"w": Stored("F8_E4M3", w.codes), "w_scale": Stored("F32", w.scale)}
    tensors |= {"b": Stored("F32", graph.constants["b"]), "mask": Stored("BOOL", graph.constants["mask"])}
    file = io.BytesIO()
    _container.write_container(file, tensors, {"fp8np": encode_graph(graph, scales)})
    return file.getvalue()


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
    "empty": (b"", "header: expected 0 bytes, the file has 0: not a safetensors file"),
    "cut in the length": (GOOD[:5], "not a safetensors file, or a truncated one"),
    "cut in the header": (GOOD[:100], "not a safetensors file, or a truncated one"),
    "cut in the data": (GOOD[:-1], "data: expected .* bytes, the file has .*: truncated"),
    "no data": (GOOD[:START], "data: expected .* bytes, the file has 0"),
    "something appended": (GOOD + b"\0", "or with something appended"),
    "a zip": (b"PK\x03\x04" + bytes(1000), "`fp8np convert` makes a model of a checkpoint"),
    "a huge header": ((2**63).to_bytes(8, "little") + GOOD[8:], "header: expected 9223372036854775808 bytes"),
    "a header of 40 MiB": ((40 << 20).to_bytes(8, "little") + b"[" * (40 << 20), "header: expected a multiple of 8 and at most"),
    "a header of odd length": (int(START - 8 + 1).to_bytes(8, "little") + GOOD[8:], "header: expected a multiple of 8"),
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
    "someone else's": (in_header(lambda h: h.update(__metadata__={"format": "pt"})), "not a converted model .*`fp8np convert` makes one"),
    "no metadata": (in_header(lambda h: h.pop("__metadata__")), "not a converted model"),
    "metadata of numbers": (in_header(set_in("__metadata__", "fp8np", 3)), "__metadata__: expected an object of strings"),
    "metadata not an object": (in_header(set_in("__metadata__", [])), "__metadata__: expected an object of strings"),
    "a tensor that is no object": (in_header(set_in("b", 3)), "tensor 'b': expected an object with dtype"),
    "a tensor with more to say": (in_header(set_in("b", "more", 3)), "tensor 'b': expected an object with dtype"),
    "an unknown dtype": (in_header(set_in("b", "dtype", "F4")), "tensor 'b': expected a dtype of I64.*got 'F4'"),
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
    "a weight's scale NaN": (data_of("w_scale", f32(1, np.nan, 1)), "constant 'w': QTensor: expected finite and positive scales"),
    "a weight's scale infinite": (data_of("w_scale", f32(1, np.inf, 1)), "constant 'w': QTensor: expected finite and positive scales"),
    "a weight's scale negative": (data_of("w_scale", f32(1, -1, 1)), "constant 'w': QTensor: expected finite and positive scales"),
    "a weight's scale zero": (data_of("w_scale", f32(1, 0, 1)), "constant 'w': QTensor: expected finite and positive scales"),
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
    start = time.process_time()
    with pytest.raises(ArtifactError, match=place) as error:
        load_graph(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 2000
    assert type(error.value) is ArtifactError
    assert time.process_time() - start < 5, "what a file can cost must be bounded"


def test_a_version_from_the_future(path: Path) -> None:
    # Nothing else of such a file is looked at: it may be quite different.
    for content in (in_graph(set_in("version", 2)), graph_text('{"version": 7, "other": []}')):
        path.write_bytes(content)
        with pytest.raises(ArtifactVersionError, match="written by a newer fp8np .*reads 1.*upgrade") as error:
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
    with pytest.raises(ArtifactError, match="a safetensors file, but not a converted model .*`fp8np convert`"):
        load_graph(path)


def test_failures_leak_no_file(path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    gc.collect()
    before = len(os.listdir(folder))
    for content in (GOOD, *(content for content, _ in BAD.values() if len(content) < 1 << 16)):
        path.write_bytes(content)
        with contextlib.suppress(ArtifactError):
            load_graph(path)
        assert len(os.listdir(folder)) == before


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
            loaded += 1
        except ArtifactError as error:
            assert len(str(error)) < 5000
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
            loaded += 1
        except ArtifactError as error:
            assert len(str(error)) < 5000
    assert 0 < loaded < 1000


def test_every_element_type_is_written_by_falling_size() -> None:
    sizes = [dtype.itemsize for dtype in ELEMENTS.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert {fmt.stored_as for fmt in FORMATS.values()} <= set(ELEMENTS)
    assert isinstance(symbol("B"), Dim)
