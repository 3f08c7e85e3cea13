from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fp8np.build import GraphBuilder
from fp8np.calibrate import MANY, OUTLIER, Range, calibrate, warnings_of
from fp8np.data import load_batches
from fp8np.errors import CalibrationError, InputError
from fp8np.formats import get_format
from fp8np.graph import Graph
from fp8np.integers import INT8
from fp8np.interpret import interpret
from fp8np.observers import Calibrator
from fp8np.scheme import Scheme

rng = np.random.default_rng(0)
DATA = rng.standard_normal((10, 3)).astype(np.float32)
E4M3 = Scheme(get_format("e4m3fn"))


def _mlp(weight: Any = None, *axes: str) -> Graph:
    b = GraphBuilder()
    x = b.input("x", ("B", *axes, 3), "float32")
    w = b.constant("w", np.eye(4, 3) if weight is None else weight)
    h = b.node("linear", (x, w), name="fc", origin="net.fc")
    return b.finish(b.node("relu", (h,), name="act"))


def _needs(*names: str, scheme: Scheme = E4M3) -> list[tuple[str, Scheme]]:
    return [(name, scheme) for name in names]


def test_ranges_are_the_extremes_over_all_batches() -> None:
    graph = _mlp(rng.standard_normal((4, 3)))
    ranges = calibrate(graph, load_batches(DATA, inputs=graph.inputs, batch_size=3), _needs("fc", "x"))
    hidden = interpret(graph.replace(outputs="fc"), {"x": DATA})
    assert list(ranges) == _needs("fc", "x")
    x = ranges["x", E4M3]
    assert (x.minimum, x.maximum, x.samples) == (float(DATA.min()), float(DATA.max()), 10)
    assert ranges["fc", E4M3].amax == pytest.approx(float(np.abs(hidden).max()), rel=1e-6)


def test_the_plan_sees_what_the_interpreter_shows() -> None:
    graph = _mlp(rng.standard_normal((4, 3)))
    batches = load_batches(DATA, inputs=graph.inputs, batch_size=3)
    planned = calibrate(graph, batches, _needs("x", "fc", "act"))
    interpreted = calibrate(graph, batches, _needs("x", "fc", "act"), execute=interpret)
    for need, r in planned.items():
        np.testing.assert_allclose(list(vars(r).values()), list(vars(interpreted[need]).values()), rtol=0.02)


def test_the_loudest_sample_is_told_by_its_number() -> None:
    graph = _mlp()
    order = np.argsort(np.abs(DATA).max(axis=1))
    r = calibrate(graph, load_batches(DATA, inputs=graph.inputs, batch_size=4), _needs("x"))["x", E4M3]
    loud = np.abs(DATA).max(axis=1)
    assert (r.at, r.loudest, r.others) == (order[-1], loud[order[-1]], loud[order[-2]])
    assert r.bulk == pytest.approx(r.loudest, rel=0.02)


def test_each_scheme_of_a_value_has_its_range() -> None:
    graph = _mlp()
    data = np.random.default_rng(1).standard_t(4, (100000, 3)).astype(np.float32)
    integers = Scheme(INT8)
    batches = load_batches(data, inputs=graph.inputs, batch_size=5000)
    ranges = calibrate(graph, batches, [("x", E4M3), ("x", integers)], calibrator=Calibrator("mse"))
    # An even grid has to choose: reaching for the rarest numbers would cost all others precision.
    assert ranges["x", integers].amax < 0.8 * ranges["x", E4M3].amax
    assert {r.samples for r in ranges.values()} == {100000}


def test_samples_stop_after_whole_batches_and_progress_is_told() -> None:
    graph = _mlp()
    told: list[tuple[str, int, int | None]] = []
    batches = load_batches(DATA, inputs=graph.inputs, batch_size=3)
    r = calibrate(graph, batches, _needs("x"), samples=4, progress=lambda *args: told.append(args))["x", E4M3]
    assert (r.minimum, r.maximum, r.samples) == (float(DATA[:6].min()), float(DATA[:6].max()), 6)
    assert told == [("calibrating", 1, 2), ("calibrating", 2, 2)]
    told.clear()
    calibrate(graph, load_batches(lambda: [DATA], inputs=graph.inputs), _needs("x"), progress=lambda *args: told.append(args))
    assert told == [("calibrating", 1, None)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("execute", [None, interpret])
def test_values_that_are_not_finite_are_refused_with_their_node(bad: float, execute: Any) -> None:
    weight = np.eye(4, 3)
    weight[1] = bad
    graph = _mlp(weight)
    batches = load_batches(np.abs(DATA), inputs=graph.inputs, batch_size=5)
    with pytest.raises(CalibrationError, match=r"'fc', computed by node 'fc' \(linear, from net.fc\), holds NaN or infinity in batch 0"):
        calibrate(graph, batches, _needs("act", "fc"), execute=execute)
    assert calibrate(graph, batches, _needs("x"), execute=execute)["x", E4M3].samples == 10


def test_minus_infinity_in_a_value_that_nobody_quantizes_is_fine() -> None:
    # Attention masks are full of it.
    b = GraphBuilder()
    x = b.input("x", ("B", 3), "float32")
    masked = b.node("add", (x, b.constant("mask", np.array([0, 0, -np.inf]))), name="masked")
    y = b.node("softmax", (masked,), {"dim": -1}, name="weights")
    graph = b.finish(b.node("linear", (y, b.constant("w", np.ones((2, 3))))))
    assert calibrate(graph, load_batches(DATA, inputs=graph.inputs), _needs("weights"))["weights", E4M3].maximum <= 1
    with pytest.raises(CalibrationError, match="masked"):
        calibrate(graph, load_batches(DATA, inputs=graph.inputs), _needs("masked"))


def test_no_data_an_unknown_name_and_an_empty_value_are_refused() -> None:
    graph = _mlp()
    with pytest.raises(CalibrationError, match="no samples"):
        calibrate(graph, [], _needs("x"))
    for name in ("w", "nothing"):
        with pytest.raises(CalibrationError, match=f"no activation {name!r}"):
            calibrate(graph, load_batches(DATA, inputs=graph.inputs), _needs(name))
    graph = _mlp(None, "T")
    with pytest.raises(CalibrationError, match=r"'fc', computed by .* is empty in every batch"):
        calibrate(graph, load_batches([np.zeros((2, 0, 3), np.float32)], inputs=graph.inputs), _needs("fc"))


def test_a_node_that_fails_is_named_with_the_batch() -> None:
    b = GraphBuilder()
    ids = b.input("ids", ("B",), "int64")
    graph = b.finish(b.node("embedding", (b.constant("table", np.ones((4, 3))), ids), name="rows"))
    batches = load_batches([np.array([0, 3]), np.array([0, 4])], inputs=graph.inputs)
    with pytest.raises(InputError, match=r"calibration, batch 1: node 'rows' \(embedding\) failed"):
        calibrate(graph, batches, _needs("rows"))


# -- warnings ---------------------------------------------------------------------------------------------------------


def _with_outlier(samples: int, factor: float) -> Any:
    """Samples of which each but one reaches from -1 to 1, and number 12 `factor` times as far."""
    data = rng.uniform(-1, 1, (samples, 3)).astype(np.float32)
    data[:, 0] = 1
    data[12] *= np.float32(factor)
    return data


@pytest.mark.parametrize(("samples", "factor", "warned"), [(100, 1.9, 0), (100, 2.1, 1), (100, 57, 1), (MANY - 1, 57, 0)])
def test_one_sample_that_stretches_a_range_is_worth_a_warning(samples: int, factor: float, warned: int) -> None:
    graph = _mlp()
    data = _with_outlier(samples, factor)
    ranges = calibrate(graph, load_batches(data, inputs=graph.inputs), [*_needs("x"), ("x", Scheme(INT8))])
    found = warnings_of(graph, ranges)
    # One for a value, however many schemes it has. Of a few samples, no more than 10,000 numbers, nobody knows what is usual.
    assert len(found) == warned
    if warned:
        assert "activation 'x' (read by node 'fc' (linear, from net.fc))" in found[0]
        assert f"{factor:.3g} in sample 12, while the other {samples - 1} go up to 1 and 99.99 % of all numbers are at most" in found[0]
        assert "look at that sample, or try calibrator = 'percentile 99.99' or 'mse'" in found[0]


def test_who_clips_the_outlier_is_not_warned() -> None:
    graph = _mlp()
    batches = load_batches(_with_outlier(400, 57), inputs=graph.inputs)
    assert len(warnings_of(graph, calibrate(graph, batches, _needs("x")))) == 1
    assert not warnings_of(graph, calibrate(graph, batches, _needs("x"), calibrator=Calibrator("percentile", 99)))


def test_outliers_in_many_samples_are_how_the_value_is() -> None:
    graph = _mlp()
    data = rng.uniform(-1, 1, (100, 3)).astype(np.float32)
    data[::10, 1] = 50
    assert not warnings_of(graph, calibrate(graph, load_batches(data, inputs=graph.inputs), _needs("x")))


def test_one_sample_has_no_others() -> None:
    assert Range(-4, 1, 1, loudest=4, bulk=1).outlier == 4 > OUTLIER
    graph = _mlp()
    (sentence,) = warnings_of(graph, {("x", E4M3): Range(-4, 1, 1, loudest=4, bulk=1)})
    assert "4 in sample 0, while 99.99 % of all numbers are at most 1" in sentence
    assert Range(0, 0, 1).outlier == 1
