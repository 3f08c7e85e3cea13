"""`fp8np diff`: where two artifacts part is found, and equal ones are called so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _inspected import W2, X, float32_graph, fp8_graph
from click.testing import CliRunner

from fp8np.artifact import save
from fp8np.build import GraphBuilder
from fp8np.cli import main
from fp8np.data import load_batches
from fp8np.difference import Difference, compare
from fp8np.errors import InputError
from fp8np.graph import Graph
from fp8np.model import Model


def difference(a: Graph, b: Graph, data: Any = X, **options: Any) -> Difference:
    return compare(Model(a), Model(b), load_batches(data, inputs=a.inputs), **options)


def with_constant(name: str, value: Any) -> Graph:
    graph = float32_graph()
    return graph.replace(constants={**graph.constants, name: value})


def test_an_artifact_equals_itself() -> None:
    found = difference(fp8_graph(), fp8_graph())
    assert found.equal
    assert found.first is None
    assert [gap.name for gap in found.nodes] == ["first", "middle", "second"]
    assert all(gap.largest == gap.relative == 0 and gap.structure == () for gap in found.nodes)
    assert found.outputs[0].name == "y"


def test_the_first_node_and_by_how_much() -> None:
    moved = W2.copy()
    moved[2, 1] += 0.5
    found = difference(float32_graph(), with_constant("w2", moved))
    assert not found.equal
    assert found.first is not None
    assert found.first.name == "second"
    # The second output of the first layer, at most 500 and a little, times half.
    middle = np.maximum(X @ np.array([[1.0, 0.3], [500.0, 2.0**-11]], np.float32).T, 0)
    assert found.first.largest == pytest.approx(middle[:, 1].max() / 2, rel=1e-6)
    assert found.first.relative == pytest.approx(found.first.largest / np.abs(middle @ moved.T).max(), rel=1e-6)
    assert found.first.structure == ("weight: numbers differ by up to 0.5",)
    assert found.outputs[0].largest == found.first.largest


def test_a_tolerance_is_in_parts_of_the_largest_magnitude() -> None:
    other = with_constant("w2", W2 * np.float32(1.01))
    apart = difference(float32_graph(), other, tolerance=0.009)
    assert not apart.equal
    assert apart.first is not None
    assert difference(float32_graph(), other, tolerance=0.011).equal
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="finite tolerance from 0 on"):
            difference(float32_graph(), other, tolerance=wrong)


def test_formats_and_nodes_that_differ_are_named() -> None:
    found = difference(fp8_graph(), fp8_graph("e5m2", scale=2.0))
    assert found.first is not None
    assert found.first.structure == (
        "x: float8_e4m3fn direct 1 against float8_e5m2 static 2",
        "weight: float8_e4m3fn direct against float8_e5m2 direct",
    )
    found = difference(fp8_graph(), float32_graph())
    assert found.first is not None
    assert "x: float8_e4m3fn direct 1 against float32" in found.first.structure

    def graph(op: str, name: str) -> Graph:
        b = GraphBuilder()
        h = b.node(op, (b.input("x", ("B", 2), "float32"),), name="shared")
        return b.finish({"y": b.node("neg", (h,), name=name)})

    found = difference(graph("relu", "a"), graph("exp", "b"))
    assert (found.only_first, found.only_second) == (("a",), ("b",))
    assert found.nodes[0].structure == ("op: relu against exp",)


def test_a_nan_is_a_difference_unless_both_have_it() -> None:
    nan = with_constant("w2", np.full_like(W2, np.nan))
    assert difference(nan, nan).equal
    found = difference(float32_graph(), nan)
    assert found.first is not None
    assert (found.first.name, found.first.largest) == ("second", float("inf"))
    json.dumps(found.as_dict(), allow_nan=False)


def test_outputs_that_only_one_has_are_a_difference() -> None:
    graph = float32_graph()
    more = graph.replace(outputs={"y": graph.outputs["y"], "h": "middle"})
    assert not difference(graph, more).equal
    assert not difference(more, graph).equal


def test_artifacts_of_other_inputs_are_refused() -> None:
    b = GraphBuilder()
    other = b.finish(b.node("relu", (b.input("x", ("B", 3), "float32"),)))
    with pytest.raises(InputError, match=r"different inputs: x: float32\[B, 2\]; and x: float32\[B, 3\]"):
        difference(float32_graph(), other)


def test_the_command(tmp_path: Path) -> None:
    for name, graph in (("a", fp8_graph()), ("b", float32_graph())):
        save(graph, tmp_path / f"{name}.safetensors")
    np.save(tmp_path / "x.npy", X)
    a, b, data = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "x.npy"))
    run = CliRunner().invoke
    result = run(main, ["diff", a, b, "--data", data])
    assert result.exit_code == 0, result.output
    assert "they part at first (linear), on 4 samples; nothing that both have comes before it" in result.output
    assert "output y" in result.output
    assert "equal: 3 nodes and the outputs, on 4 samples" in run(main, ["diff", a, a, "--data", data]).output
    document = json.loads(run(main, ["diff", a, b, "--data", data, "--json"]).output)
    assert (document["equal"], document["first"]["name"], len(document["nodes"])) == (False, "first", 3)
    assert run(main, ["diff", a, b]).exit_code == 2
    assert run(main, ["diff", a, b, "--data", data, "--tolerance", "-1"]).exit_code == 2
