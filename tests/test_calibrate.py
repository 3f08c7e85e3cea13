from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fp8np.build import GraphBuilder
from fp8np.calibrate import Range, calibrate
from fp8np.data import load_batches
from fp8np.errors import CalibrationError
from fp8np.graph import Graph
from fp8np.interpret import interpret

rng = np.random.default_rng(0)
DATA = rng.standard_normal((10, 3)).astype(np.float32)


def _mlp(weight: Any = None, *axes: str) -> Graph:
    b = GraphBuilder()
    x = b.input("x", ("B", *axes, 3), "float32")
    w = b.constant("w", np.eye(4, 3) if weight is None else weight)
    h = b.node("linear", (x, w), name="fc", origin="net.fc")
    return b.finish(b.node("relu", (h,), name="act"))


def test_ranges_are_the_extremes_over_all_batches() -> None:
    graph = _mlp(rng.standard_normal((4, 3)))
    ranges = calibrate(graph, load_batches(DATA, inputs=graph.inputs, batch_size=3), ["x", "fc"])
    hidden = interpret(graph.replace(outputs="fc"), {"x": DATA})
    assert list(ranges) == ["x", "fc"]
    assert ranges["x"] == Range(float(DATA.min()), float(DATA.max()), 10)
    assert ranges["fc"].amax == pytest.approx(float(np.abs(hidden).max()), rel=1e-6)


def test_samples_stop_after_whole_batches_and_progress_is_told() -> None:
    graph = _mlp()
    told: list[tuple[str, int, int | None]] = []
    batches = load_batches(DATA, inputs=graph.inputs, batch_size=3)
    ranges = calibrate(graph, batches, ["x"], samples=4, progress=lambda *args: told.append(args))
    assert ranges["x"] == Range(float(DATA[:6].min()), float(DATA[:6].max()), 6)
    assert told == [("calibrating", 1, 2), ("calibrating", 2, 2)]
    told.clear()
    calibrate(graph, load_batches(lambda: [DATA], inputs=graph.inputs), ["x"], progress=lambda *args: told.append(args))
    assert told == [("calibrating", 1, None)]


def test_another_observer_decides_which_range_counts() -> None:
    class Median:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def update(self, array: Any) -> None:
            self.seen.extend(np.abs(array).ravel())

        def limits(self) -> tuple[float, float]:
            m = float(np.median(self.seen))
            return -m, m

    graph = _mlp()
    ranges = calibrate(graph, load_batches(DATA, inputs=graph.inputs), ["x"], observer=Median)
    assert ranges["x"].amax == pytest.approx(float(np.median(np.abs(DATA))))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_node(bad: float) -> None:
    weight = np.eye(4, 3)
    weight[1] = bad
    graph = _mlp(weight)
    batches = load_batches(np.abs(DATA), inputs=graph.inputs, batch_size=5)
    with pytest.raises(CalibrationError, match=r"'fc', computed by node 'fc' \(linear, from net.fc\), holds NaN or infinity in batch 0"):
        calibrate(graph, batches, ["fc"])
    assert calibrate(graph, batches, ["x"])["x"].samples == 10


def test_minus_infinity_in_a_value_that_nobody_quantizes_is_fine() -> None:
    # Attention masks are full of it.
    b = GraphBuilder()
    x = b.input("x", ("B", 3), "float32")
    masked = b.node("add", (x, b.constant("mask", np.array([0, 0, -np.inf]))), name="masked")
    y = b.node("softmax", (masked,), {"dim": -1}, name="weights")
    graph = b.finish(b.node("linear", (y, b.constant("w", np.ones((2, 3))))))
    assert calibrate(graph, load_batches(DATA, inputs=graph.inputs), ["weights"])["weights"].maximum <= 1
    with pytest.raises(CalibrationError, match="masked"):
        calibrate(graph, load_batches(DATA, inputs=graph.inputs), ["masked"])


def test_no_data_an_unknown_name_and_an_empty_value_are_refused() -> None:
    graph = _mlp()
    with pytest.raises(CalibrationError, match="no samples"):
        calibrate(graph, [], ["x"])
    with pytest.raises(CalibrationError, match="'w'"):
        calibrate(graph, load_batches(DATA, inputs=graph.inputs), ["w"])
    graph = _mlp(None, "T")
    with pytest.raises(CalibrationError, match=r"'fc', computed by .* is empty in every batch"):
        calibrate(graph, load_batches([np.zeros((2, 0, 3), np.float32)], inputs=graph.inputs), ["fc"])
