"""The graph as data, the builder that writes it, and what it means."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from fp8np.build import GraphBuilder
from fp8np.dims import symbol
from fp8np.errors import GraphError
from fp8np.graph import Graph, Node, Value, leaves, map_structure, pruned
from fp8np.interpret import interpret
from fp8np.scaling import quantize


def small() -> Graph:
    """y = relu(x @ w^T), and x @ w^T beside it."""
    b = GraphBuilder()
    x = b.input("x", ("B", 2), "float32")
    w = b.constant("w", np.array([[1.0, -1.0], [2.0, 0.5]]))
    h = b.node("linear", (x, w), name="fc", origin="model.py:3")
    y = b.node("relu", (h,))
    return b.finish({"y": y, "parts": [h, None, (x,)]}, {"source": "test"})


def test_printing() -> None:
    assert str(small()).splitlines() == [
        "input   x: float32[B, 2]",
        "const   w: float32[2, 2]",
        "fc: float32[B, 2] = linear(x, w, None)  # model.py:3",
        "relu: float32[B, 2] = relu(fc)",
        "return  {'y': 'relu', 'parts': ['fc', None, ('x',)]}",
    ]


def test_facts() -> None:
    graph = small()
    assert graph.facts("x") == Value("x", (symbol("B"), 2), "float32")
    assert graph.facts("w") == Value("w", (2, 2), "float32")
    assert graph.facts("fc") == Value("fc", (symbol("B"), 2), "float32")
    with pytest.raises(KeyError, match="nothing"):
        graph.facts("nothing")


def test_facts_of_fp8_constants() -> None:
    b = GraphBuilder()
    x = b.node("quantize", (b.input("x", (1, 2), "float32"),), {"format": "float8_e5m2", "scale": 1.0})
    w = b.constant("w", quantize(np.ones((3, 2), np.float32), "e4m3fn", axis=0))
    graph = b.finish(b.node("linear", (x, w)))
    assert graph.facts("w") == Value("w", (3, 2), "float8_e4m3fn")
    assert graph.facts("quantize").dtype == "float8_e5m2"


def test_consumers() -> None:
    b = GraphBuilder()
    x = b.input("x", (2,), "float32")
    y = b.node("add", (x, x))
    z = b.node("mul", (x, y))
    readers = b.finish(z).consumers()
    assert {name: [node.name for node in nodes] for name, nodes in readers.items()} == {"x": ["add", "mul"], "add": ["mul"]}


def test_replace_leaves_the_original_alone() -> None:
    graph = small()
    changed = graph.replace(outputs="fc")
    assert (graph.outputs["y"], changed.outputs) == ("relu", "fc")
    assert graph.nodes[0].replace(name="other").inputs == graph.nodes[0].inputs


def test_pruned_drops_what_no_output_needs() -> None:
    b = GraphBuilder()
    x, unused = b.input("x", (2,), "float32"), b.input("unused", (1,), "int64")
    c, d = b.constant("c", np.ones(2, np.float32)), b.constant("d", np.ones(2, np.float32))
    y = b.node("add", (x, c), name="kept")
    b.node("mul", (y, d), name="dropped")
    graph = b.finish(y)
    assert [node.name for node in graph.nodes] == ["kept"]
    assert set(graph.constants) == {"c"}
    assert set(graph.values) == {"kept"}
    assert [value.name for value in graph.inputs] == [x, unused]
    assert pruned(graph) == graph


def test_pruned_keeps_a_constant_that_is_returned() -> None:
    b = GraphBuilder()
    b.input("x", (2,), "float32")
    graph = b.finish((b.constant("c", np.ones(2, np.float32)),))
    assert set(graph.constants) == {"c"}


STRUCTURES = [
    ("a", ["a"]),
    (None, []),
    ((), []),
    (("a", None, ["b", {"k": "c", "j": ("a",)}]), ["a", "b", "c", "a"]),
    ({"k": [], "j": {}}, []),
]


@pytest.mark.parametrize(("structure", "names"), STRUCTURES)
def test_structures(structure: object, names: list[str]) -> None:
    assert list(leaves(structure)) == names
    mapped = map_structure(str.upper, structure)
    assert list(leaves(mapped)) == [name.upper() for name in names]
    assert map_structure(str.lower, mapped) == structure


def test_structures_keep_their_kinds_and_the_order_of_keys() -> None:
    mapped = map_structure(len, {"z": ("a", None), "b": ["cc"]})
    assert list(mapped.items()) == [("z", (1, None)), ("b", [2])]


class TestBuilder:
    def test_names_are_made_unique(self) -> None:
        b = GraphBuilder()
        x = b.input("x", (2,), "float32")
        assert b.constant("x", np.ones(2, np.float32)) == "x_1"
        assert b.node("relu", (x,), name="x_1") == "x_1_1"
        assert [b.node("relu", (x,)) for _ in range(3)] == ["relu", "relu_1", "relu_2"]
        assert b.input("relu", (1,), "int64") == "relu_3"

    def test_several_outputs_are_numbered(self) -> None:
        b = GraphBuilder()
        x = b.input("x", (5, 2), "float32")
        taken = b.constant("parts.1", np.ones(2, np.float32))
        parts = b.node("split", (x,), {"split_size": 2}, name="parts")
        assert parts == ("parts.0", f"{taken}_1", "parts.2")
        assert [b.facts(part).shape for part in parts] == [(2, 2), (2, 2), (1, 2)]

    def test_an_op_of_several_outputs_may_give_one(self) -> None:
        b = GraphBuilder()
        assert b.node("split", (b.input("x", (2, 2), "float32"),), {"split_size": 2}) == "split"

    def test_floats_become_float32_and_others_stay(self) -> None:
        b = GraphBuilder()
        for dtype, expected in (("float64", "float32"), ("float16", "float32"), ("int64", "int64"), ("bool", "bool"), ("uint8", "uint8")):
            assert b.facts(b.constant(dtype, np.ones(3, dtype))).dtype == expected
        array = np.ones(3, np.float32)
        name = b.constant("same", array)
        b.input("x", (3,), "float32")
        assert b.finish(name).constants[name] is array

    def test_shapes_are_inferred_with_symbols(self) -> None:
        b = GraphBuilder()
        x = b.input("x", ("B", "T", 4), "float32")
        assert b.facts(x).shape == (symbol("B"), symbol("T"), 4)
        flat = b.node("flatten", (x,), {"start_dim": 0, "end_dim": 1})
        assert str(b.facts(flat).shape[0]) == "B*T"

    def test_unknown_names(self) -> None:
        b = GraphBuilder()
        with pytest.raises(GraphError, match="'y' has not been built yet"):
            b.facts("y")
        with pytest.raises(GraphError, match=r"model.py:3: unknown op 'nonsense'"):
            b.node("nonsense", (), origin="model.py:3")
        with pytest.raises(GraphError, match="'y' has not been built yet"):
            b.node("relu", ("y",))

    def test_refusals_name_the_node_and_its_origin(self) -> None:
        b = GraphBuilder()
        x = b.input("x", (2, 3), "float32")
        w = b.constant("w", np.ones((4, 5), np.float32))
        with pytest.raises(GraphError, match=r"node 'fc' \(from model.py:3\): linear: expected x"):
            b.node("linear", (x, w), name="fc", origin="model.py:3")
        with pytest.raises(GraphError, match=r"node 'relu'.*takes"):
            b.node("relu", (x, x))
        with pytest.raises(GraphError, match="unknown attribute 'inplace'"):
            b.node("relu", (x,), {"inplace": True})

    def test_a_failed_node_leaves_no_trace(self) -> None:
        b = GraphBuilder()
        x = b.input("x", (2, 3), "float32")
        with pytest.raises(GraphError):
            b.node("linear", (x, x, x), name="fc")
        assert b.node("relu", (x,), name="fc") == "fc"

    def test_finish_checks(self) -> None:
        b = GraphBuilder()
        b.input("x", (2,), "float32")
        with pytest.raises(GraphError, match="'nothing' does not exist"):
            b.finish("nothing")
        with pytest.raises(GraphError, match="no output"):
            b.finish(())


def test_interpret() -> None:
    x = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 0.0]], np.float32)
    seen = {}
    result = interpret(small(), {"x": x}, observe=lambda name, value: seen.update({name: value}))
    h = x @ np.array([[1, -1], [2, 0.5]], np.float32).T
    assert result["y"].tolist() == np.maximum(h, 0).tolist()
    assert result["y"].dtype == np.float32
    assert result["parts"][0].tolist() == h.tolist()
    assert result["parts"][1] is None
    assert result["parts"][2][0].tolist() == x.tolist()
    assert set(seen) == {"x", "fc", "relu"}


def test_interpret_in_float64() -> None:
    result = interpret(small(), {"x": np.array([[1.0, 1e-12]])}, dtype=np.float64)
    assert result["y"].dtype == np.float64
    assert result["y"].tolist() == [[1 - 1e-12, 2 + 0.5e-12]]


def test_interpret_evaluates_sizes_and_dequantizes() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 2), "float32")
    w = b.constant("w", quantize(np.array([[1.0, 2.0], [-4.0, 0.5]], np.float32), "e4m3fn", scale=0.5))
    y = b.node("reshape", (b.node("linear", (x, w)),), {"shape": (symbol("B") * 2,)})
    assert interpret(b.finish(y), {"x": np.array([[1, 1], [2, 0]], np.float32)}).tolist() == [3, -3.5, 2, -8]
    q = b.node("quantize", (x,), {"format": "float8_e5m2", "scale": 2.0}, name="q")
    seen: dict[str, Any] = {}
    interpret(b.finish(b.node("linear", (q, w))), {"x": np.array([[3.0, -8.0]], np.float32)}, observe=seen.__setitem__)
    tensor = seen["q"]
    assert (tensor.format.name, float(tensor.scale), tensor.codes.tolist()) == ("float8_e5m2", 2.0, [[0x3E, 0xC4]])


def test_nodes_need_no_attributes() -> None:
    assert Node("n", "relu", ("x",), ("n",)).attrs == MappingProxyType({})
