"""The file of a converted model: what goes in comes out, the same bytes each time, and never half a file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import safetensors
from _artifacts import bytes_of, every_constant, files, plain, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.artifact import _container, load_graph, save
from fp8np.artifact._container import ELEMENTS
from fp8np.artifact._graph import decode_graph, encode_graph, scale_names
from fp8np.build import GraphBuilder
from fp8np.dims import Dim, parse, symbol
from fp8np.errors import ArtifactError, GraphError
from fp8np.formats import FORMATS
from fp8np.graph import Graph, Node, Value
from fp8np.interpret import interpret
from fp8np.tensor import QTensor


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
            with pytest.raises(ValueError, match="WRITEABLE"):
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
    q = QTensor(np.zeros((1,), np.uint8), "e5m2", 2.0)
    weights = {"w": q, "w_scale": q, "w_scale_": q, "w_scale_scale": np.ones(1, np.float32)}
    graph = b.finish(b.input("x", (1,), "float32")).replace(constants=weights)
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
    assert files(path.parent) == []


def test_a_graph_that_no_reader_takes_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_container, "_MAX_HEADER", 1000)
    with pytest.raises(ArtifactError, match="expected a graph of at most 1000 bytes"):
        save(tiny(), path)
    assert files(path.parent) == []


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
    assert files(path.parent) == ([path.name] if old else [])
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
    assert files(path.parent) == [path.name]
    assert path.read_bytes() == before


def test_every_element_type_is_written_by_falling_size() -> None:
    sizes = [dtype.itemsize for dtype in ELEMENTS.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert {fmt.stored_as for fmt in FORMATS.values()} <= set(ELEMENTS)
    assert isinstance(symbol("B"), Dim)
