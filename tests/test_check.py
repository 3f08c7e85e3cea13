"""Each invariant of the verifier, broken once and more, and the place that the message names."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from fp8np.build import GraphBuilder
from fp8np.check import INVARIANTS, MAX_DEPTH, check, infer
from fp8np.dims import symbol
from fp8np.errors import GraphError
from fp8np.graph import Graph, Node, Value
from fp8np.layers._op import Spec
from fp8np.scaling import quantize


def good() -> Graph:
    b = GraphBuilder()
    x = b.input("x", ("B", "T", 4), "float32")
    ids = b.input("ids", ("B", 3), "int64")
    w = b.constant("w", quantize(np.ones((5, 4), np.float32), "e4m3fn", axis=0))
    q = b.node("quantize", (x,), {"format": "float8_e5m2"}, name="q")
    h = b.node("linear", (q, w, None), name="fc", origin="model.py:7")
    flat = b.node("reshape", (h,), {"shape": (symbol("B"), symbol("T") * 5)}, name="flat")
    parts = b.node("split", (ids,), {"split_size": 2, "dim": 1}, name="parts")
    return b.finish({"flat": flat, "parts": list(parts)}, {"source": "test"})


def node(which: str, **changes: Any) -> Callable[[Graph], Graph]:
    """The graph with some fields of a node changed."""
    return lambda g: g.replace(nodes=tuple(n.replace(**changes) if n.name == which else n for n in g.nodes))


def value(which: str, **changes: Any) -> Callable[[Graph], Graph]:
    """The graph with some fields of an input or of a declared value changed."""

    def change(v: Value) -> Value:
        fields = {"name": v.name, "shape": v.shape, "dtype": v.dtype}
        return Value(**(fields | changes)) if v.name == which else v

    return lambda g: g.replace(inputs=tuple(map(change, g.inputs)), values={key: change(v) for key, v in g.values.items()})


def constant(name: str, array: Any) -> Callable[[Graph], Graph]:
    return lambda g: g.replace(constants={**g.constants, name: array})


def moved_first(name: str) -> Callable[[Graph], Graph]:
    return lambda g: g.replace(nodes=tuple(sorted(g.nodes, key=lambda n: n.name != name)))


def nested(leaf: Any, depth: int) -> Any:
    for _ in range(depth):
        leaf = (leaf,)
    return leaf


def fp8_into_identity(graph: Graph) -> Graph:
    # Most shape rules refuse FP8 by themselves; that of identity takes any type.
    graph = node("flat", op="identity", inputs=("q",), attrs={})(graph)
    return value("flat", shape=graph.values["q"].shape, dtype=graph.values["q"].dtype)(graph)


f32 = np.ones(3, np.float32)

BROKEN: dict[str, list[tuple[Callable[[Graph], Graph], str]]] = {
    "names are unique": [
        (constant("x", f32), "'x' is both an input and a constant"),
        (constant("", f32), "non-empty name"),
        (node("flat", outputs=("q",)), "'q' is both an output of node 'q' and an output of node 'flat'"),
        (node("parts", outputs=("p", "p")), "'p' is both"),
        (node("flat", name="fc"), "2 nodes are named 'fc'"),
        (node("flat", name=""), "non-empty name"),
        (lambda g: g.replace(inputs=(*g.inputs, g.inputs[0])), "'x' is both an input and an input"),
        (value("fc", name="other"), "the value listed as 'fc' is named 'other'"),
    ],
    "ops are known": [(node("flat", op="eval"), "node 'flat': unknown op 'eval'")],
    "nodes have the inputs that their op takes": [
        (node("fc", inputs=("q", "w")), r"node 'fc' \(from model.py:7\): linear takes \(x, weight, bias\?\), got 2 inputs"),
        (node("fc", inputs=("q", "w", None, None)), "linear takes .*, got 4 inputs"),
        (node("fc", inputs=(None, "w", None)), "node 'fc' .*: input 'x' of linear is required"),
        (node("flat", op="arange", attrs={"end": 1}), "arange takes"),
        (node("flat", outputs=()), "node 'flat': a node needs at least one output"),
    ],
    "attributes are known, complete and plain data": [
        (node("fc", attrs={"transposed": True}), "node 'fc' .*: linear: unknown attribute 'transposed'; known: none"),
        (node("q", attrs={}), "node 'q': quantize: attribute 'format' is required"),
        (node("flat", attrs={"shape": [1, 2]}), "node 'flat': attribute 'shape': expected .*, got list"),
        (node("flat", attrs={"shape": (1, (2, np.int64(3)))}), "attribute 'shape': expected .*, got int64"),
        (node("flat", attrs={"shape": (np.bool_(1),)}), "attribute 'shape': expected .*, got bool"),
        (node("flat", attrs={"shape": (1, 2**63)}), "attribute 'shape': expected an integer of 64 bits"),
        (node("flat", attrs={"shape": (-(2**63) - 1,)}), "attribute 'shape': expected an integer of 64 bits"),
        (node("flat", attrs={"shape": nested(1, MAX_DEPTH + 1)}), f"attribute 'shape': tuples nested more than {MAX_DEPTH} deep"),
        (node("flat", attrs={"shape": nested(1, 100_000)}), "nested more than"),
        (node("flat", attrs={"shape": print}), "got builtin_function_or_method"),
    ],
    "outputs are a structure of names": [
        (lambda g: g.replace(outputs=()), "the model has no output"),
        (lambda g: g.replace(outputs=None), "the model has no output"),
        (lambda g: g.replace(outputs={"a": (None, [])}), "the model has no output"),
        (lambda g: g.replace(outputs=("flat", 3)), "got int"),
        (lambda g: g.replace(outputs={1: "flat"}), "expected str keys, got 1"),
        (lambda g: g.replace(outputs={"flat"}), "got set"),
        (lambda g: g.replace(outputs=nested("flat", MAX_DEPTH + 1)), f"nested more than {MAX_DEPTH} deep"),
    ],
    "meta is text": [
        (lambda g: g.replace(meta={"size": 3}), "got 'size': int"),
        (lambda g: g.replace(meta={3: "size"}), "got 3: str"),
    ],
    "everything is computed before it is read": [
        (node("fc", inputs=("q", "v", None)), r"node 'fc' \(from model.py:7\) reads 'v', which does not exist"),
        (node("q", inputs=("fc",)), r"node 'q' reads 'fc', which is computed by it or after it \(a cycle\)"),
        (node("q", inputs=("q",)), r"node 'q' reads 'q', which is computed by it or after it \(a cycle\)"),
        (moved_first("flat"), "node 'flat' reads 'fc', which is computed by it or after it"),
        (lambda g: g.replace(outputs={"y": ("flat", "gone")}), "the output 'gone' does not exist"),
        (lambda g: g.replace(constants={}), "reads 'w', which does not exist"),
    ],
    "element types are known": [
        (value("fc", dtype="float31"), "'fc': unknown element type 'float31'"),
        (value("fc", dtype="float8_e9m9"), "'fc': unknown element type"),
        (value("fc", dtype="float8_e4m3@1000"), "'fc': unknown element type"),
        (value("x", dtype="float64"), "'x': unknown element type 'float64'"),
        (value("x", dtype="float8_e5m2"), "input 'x': expected one of .*, got 'float8_e5m2'"),
        (constant("w", np.ones((5, 4))), "constant 'w': expected one of .*, got float64"),
        (constant("w", np.array(["a"])), "constant 'w': expected one of"),
    ],
    "sizes depend on the inputs alone": [
        (value("fc", shape=(symbol("B"), symbol("Z"), 5)), "'fc': size Z depends on a name that no input has"),
        (value("x", shape=(symbol("B"), symbol("T") * 2, 4)), r"input 'x': expected integers and plain names as sizes, got 2\*T"),
        (value("ids", shape=(symbol("B"), -3)), "input 'ids': negative size -3"),
        (value("fc", shape=(symbol("B"), -1, 5)), "'fc': negative size -1"),
        (node("flat", attrs={"shape": (symbol("B"), (symbol("Z"),))}), "node 'flat': size Z depends on a name that no input has"),
    ],
    "declared shapes are what the ops give": [
        (
            value("fc", shape=(symbol("B"), symbol("T"), 6)),
            r"node 'fc' .*: 'fc' is declared float32\[B, T, 6\], but linear gives float32\[B, T, 5\]",
        ),
        (value("fc", dtype="int32"), "'fc' is declared int32"),
        (value("q", dtype="float8_e4m3fn"), "'q' is declared float8_e4m3fn"),
        (node("flat", attrs={"shape": (symbol("B"), symbol("T") * 6)}), "node 'flat': reshape"),
        (constant("w", quantize(np.ones((5, 3), np.float32), "e4m3fn")), "node 'fc' .*: linear: expected"),
        (lambda g: g.replace(values={**g.values, "more": Value("more", (2,), "int64")}), "'more' has a shape but no node computes it"),
        (node("parts", attrs={"split_size": 1, "dim": 1}), "node 'parts': split gives 3 outputs, 2 are named"),
        (node("parts", attrs={"split_size": "two"}), "node 'parts'.*split"),
        (node("parts", attrs={"split_size": 0, "dim": 1}), "node 'parts'.*split"),
        (node("parts", attrs={"split_size": 2, "dim": 9}), "node 'parts'.*split"),
        (lambda g: g.replace(values={k: v for k, v in g.values.items() if k != "fc"}), "node 'fc' .*: its output 'fc' has no shape"),
        (node("q", attrs={"format": "float8_e9m9"}), "node 'q': unknown format"),
        (node("q", attrs={"format": "float8_e5m2", "scale": float("nan")}), "node 'q': quantize: expected a finite and positive scale"),
        (node("q", attrs={"format": "float8_e5m2", "scale": -1.0}), "finite and positive scale, or None; got -1.0"),
        (node("q", attrs={"format": "float8_e5m2", "scale": "1"}), "finite and positive scale"),
    ],
    "only quantizable inputs are FP8": [
        (fp8_into_identity, "node 'flat': input 'x' of identity cannot be FP8, but 'q' is"),
    ],
    "outputs are not FP8": [
        (lambda g: g.replace(outputs={"y": "fc", "codes": ["q"]}), "the output 'codes.0' is q: float8_e5m2"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda i: i.name)
def test_each_invariant_broken(invariant: Any) -> None:
    assert invariant.name in BROKEN, "a new invariant needs examples that break it"
    for change, place in BROKEN[invariant.name]:
        broken = change(good())
        with pytest.raises(GraphError, match=place) as error:
            check(broken)
        assert str(error.value).startswith(f"{invariant.name}: ")


def test_no_example_outlives_its_invariant() -> None:
    assert list(BROKEN) == [invariant.name for invariant in INVARIANTS]


def test_a_good_graph_is_returned() -> None:
    graph = good()
    assert check(graph) is graph
    for invariant in INVARIANTS:
        assert not list(invariant.problems(graph))


def test_depths_that_are_allowed() -> None:
    graph = good()
    assert check(graph.replace(outputs=nested("flat", MAX_DEPTH)))
    attrs = next(n for n in graph.nodes if n.name == "flat").attrs
    assert attrs["shape"] == (symbol("B"), symbol("T") * 5)


def test_a_variadic_op_takes_any_number() -> None:
    b = GraphBuilder()
    xs = [b.input(f"x{i}", (2,), "float32") for i in range(5)]
    for n in (1, 2, 5):
        assert b.facts(b.node("concat", tuple(xs[:n]))).shape == (2 * n,)


def test_infer_does_not_run_anything() -> None:
    huge = Value("x", (2**40, 2**40), "float32")
    assert infer(Node("n", "relu", ("x",), ("n",)), lambda _: huge) == (Spec((2**40, 2**40), "float32"),)


def test_time_does_not_explode() -> None:
    # Names are looked up, never searched for: a hundred thousand inputs would take hours otherwise.
    n = 20_000
    inputs = tuple(Value(f"x{i}", (2,), "float32") for i in range(n))
    nodes = tuple(Node(f"n{i}", "relu", (f"x{i}",), (f"n{i}",)) for i in range(n))
    values = {f"n{i}": Value(f"n{i}", (2,), "float32") for i in range(n)}
    assert check(Graph(inputs, MappingProxyType({}), nodes, values, tuple(values)))
