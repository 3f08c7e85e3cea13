"""Laws of the passes that make quantization cost less: what they leave the same, and what they promise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.artifact import save
from fp8np.build import GraphBuilder
from fp8np.calibrate import calibrate
from fp8np.data import Batches, load_batches
from fp8np.errors import CalibrationError, RecipeError
from fp8np.formats import get_format
from fp8np.graph import Graph
from fp8np.interpret import interpret
from fp8np.metrics import sqnr
from fp8np.ptq._matrix import Layer, layer_of
from fp8np.ptq.assign import decide, needs
from fp8np.ptq.batch_norm import recalibrate_batch_norm
from fp8np.ptq.bias import correct_bias
from fp8np.ptq.equalize import equalize
from fp8np.ptq.fold import fold_batch_norm
from fp8np.ptq.insert import insert
from fp8np.ptq.recipe import EXTENDED_OPS, RECIPES, Override, Recipe, get_recipe
from fp8np.ptq.rounding import adapted_weights, rounded_to_fit
from fp8np.ptq.smooth import smooth
from fp8np.ptq.workflow import Result, quantize_model
from fp8np.scaling import dequantize
from fp8np.scheme import PerBlock, PerChannel, PerTensor, Scheme
from fp8np.tensor import QTensor, code_values

E4M3, E5M2 = get_format("e4m3fn"), get_format("e5m2")
seeds = st.integers(0, 10**6)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def spread(*shape: int, seed: int = 0, octaves: float = 3) -> Any:
    """A weight whose output channels differ by some octaves, and its inputs, too."""
    rng = np.random.default_rng([seed, *shape])
    rows = np.exp2(rng.uniform(-octaves, octaves, (shape[0], *(1,) * (len(shape) - 1))))
    columns = np.exp2(rng.uniform(-octaves, octaves, (1, *shape[1:2], *(1,) * (len(shape) - 2))))
    return (rng.standard_normal(shape) * rows * columns).astype(np.float32)


def same_function(graph: Graph, other: Graph, inputs: dict[str, Any]) -> None:
    """Two graphs agree, computed in float64: what differs is how their constants were rounded, which a few sums that cancel magnify."""
    exact, got = (interpret(g, inputs, dtype=np.float64) for g in (graph, other))
    errors = np.abs(got - exact) / np.abs(exact).max()
    assert np.median(errors) < 1e-6
    assert errors.max() < 1e-4


def quality(result: Result) -> float:
    (db,) = result.report.output_sqnr.values()
    return db


def one_linear(w: Any, bias: Any = None, width: int | None = None) -> Graph:
    b = GraphBuilder()
    x = b.input("x", ("B", width or w.shape[1]), "float32")
    return b.finish(b.node("linear", (x, b.constant("w", w), None if bias is None else b.constant("b", bias)), name="fc"))


def batches(graph: Graph, data: Any, size: int = 16) -> Batches:
    return load_batches(data, inputs=graph.inputs, batch_size=size)


# -- equalization -----------------------------------------------------------------------------------------------------


def norm_of(b: GraphBuilder, x: str, channels: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=channels), rng.uniform(0.1, 2, channels), rng.uniform(-2, 2, channels), rng.normal(size=channels)
    return str(b.node("batch_norm", (x, *(b.constant("norm", a) for a in arrays)), {"eps": 0.1}))


def chain(kind: str, norms: list[bool], activations: list[str], seed: int = 0) -> Graph:
    """Three layers, an activation after each; the second convolution is depthwise."""
    b = GraphBuilder()
    axes = {"linear": 0, "conv1d": 1, "conv2d": 2}[kind]
    x = b.input("x", ("B", 3, *(6,) * axes), "float32")
    depthwise = kind != "linear"
    shapes = [(6, 3), (6, 1) if depthwise else (6, 6), (4, 6)]
    for i, (shape, norm, activation) in enumerate(zip(shapes, norms, activations, strict=True)):
        w = spread(*shape, *(3,) * axes, seed=seed + i)
        bias = b.constant(f"b{i}", normal(shape[0], seed=seed)) if i != 1 else None
        attrs = {"padding": (1,) * axes, "groups": 6 if i == 1 else 1} if axes else {}
        x = b.node(kind, (x, b.constant(f"w{i}", w), bias), attrs, name=f"layer{i}")
        x = norm_of(b, x, shape[0], seed + i) if norm else x
        x = b.node(activation, (x,)) if activation else x
    return b.finish(x)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["linear", "conv1d", "conv2d"]),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.sampled_from(["", "relu", "leaky_relu", "relu6"]), min_size=2, max_size=2),
    seeds,
)
def test_equalization_leaves_the_function_the_same(kind: str, norms: list[bool], activations: list[str], seed: int) -> None:
    graph = chain(kind, norms, [*activations, ""], seed)
    even = equalize(graph)
    same_function(graph, even, {"x": 4 * normal(5, 3, *(6,) * {"linear": 0, "conv1d": 1, "conv2d": 2}[kind], seed=seed)})
    # And it did something.
    assert any(not np.array_equal(even.constants[name], graph.constants[name]) for name in ("w0", "w1", "w2"))
    assert sum(node.op == "clamp" for node in even.nodes) == activations.count("relu6")


def test_statistics_are_still_those_of_what_a_norm_reads() -> None:
    graph, data = two_norms(), normal(40, 3, 6)
    graph = recalibrate_batch_norm(graph, FLOAT, {}, batches(graph, data, 40), samples=40, paired=False)
    even = equalize(graph)
    again = recalibrate_batch_norm(even, FLOAT, {}, batches(even, data, 40), samples=40, paired=False)
    for name, array in statistics(even).items():
        assert name.endswith("1") or not np.allclose(array, graph.constants[name], rtol=0.01)
        np.testing.assert_allclose(again.constants[name], array, rtol=1e-3, atol=1e-5)


def test_equalized_ranges_are_even() -> None:
    graph = equalize(chain("conv2d", [False] * 3, ["relu", "relu6", ""]))
    w0, w1, w2 = (np.abs(graph.constants[f"w{i}"]) for i in range(3))
    # Each channel leaves a layer with the range with which the next one reads it.
    np.testing.assert_allclose(w0.max(axis=(1, 2, 3)), w1.max(axis=(1, 2, 3)), rtol=0.02)
    np.testing.assert_allclose(w1.max(axis=(1, 2, 3)), w2.max(axis=(0, 2, 3)), rtol=0.02)


def test_equalization_helps_where_one_scale_is_for_all() -> None:
    graph = chain("conv2d", [False] * 3, ["relu", "relu", ""])
    data = normal(32, 3, 6, 6)
    recipe = RECIPES["int8"].replace(keep_first_last=False, weight_granularity="tensor")
    without, with_it = (quality(quantize_model(graph, recipe.replace(equalize=e), data)) for e in (False, True))
    assert with_it > without + 6


def test_channels_of_nothing_keep_their_scale_and_factors_have_bounds() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 2), "float32")
    first, second = np.array([[0, 0], [1e-9, 0], [1, 2]]), np.array([[5.0, 1e9, 0.0]])
    h = b.node("relu", (b.node("linear", (x, b.constant("w", first), b.constant("b", np.ones(3)))),))
    even = equalize(b.finish(b.node("linear", (h, b.constant("v", second)))))
    np.testing.assert_array_equal(even.constants["b"], np.float32([1, 64, 1]))
    np.testing.assert_array_equal(even.constants["w"], np.float32([[0, 0], [64e-9, 0], [1, 2]]))


def left_alone(case: str) -> Graph:
    b = GraphBuilder()
    x = b.input("x", ("B", 4, 4) if case == "another axis" else ("B", 4), "float32")
    w = b.constant("w", spread(4, 4, seed=1))
    v = w if case == "tied" else b.constant("v", spread(4, 4, seed=2))
    h = b.node("linear", (x, w, None))
    if case == "another axis":
        h = norm_of(b, h, 4, 0)
    h = b.node("tanh" if case == "not homogeneous" else "relu", (h,))
    y = b.node("linear", (h, v))
    outputs = {
        "read twice": [b.node("add", (y, h))],
        "an output": [y, h],
        "weight read elsewhere": [y, b.node("relu", (v,))],
        "weight an output": [y, v],
    }
    return b.finish(outputs.get(case, y))


@pytest.mark.parametrize(
    "case", ["tied", "another axis", "not homogeneous", "read twice", "an output", "weight read elsewhere", "weight an output"]
)
def test_what_cannot_be_evened_out_stays(case: str) -> None:
    graph = left_alone(case)
    even = equalize(graph)
    assert str(even) == str(graph)
    assert all(np.array_equal(even.constants[name], c) for name, c in graph.constants.items())


# -- SmoothQuant ------------------------------------------------------------------------------------------------------


def loud(*shape: int, seed: int = 0, channel: int = 3, factor: float = 100) -> Any:
    """Activations with a channel far beyond all others."""
    x = normal(*shape, seed=seed)
    x[..., channel] *= factor
    return x


def block(kind: str, seed: int = 0, *, shared: bool = False) -> Graph:
    """What computes an activation with a loud channel, and two layers that read it; or, with `shared`, a sum, too."""
    b = GraphBuilder()
    x = b.input("x", ("B", 5, 8), "float32")
    gain = np.where(np.arange(8) == 3, 100, 1) * np.random.default_rng(seed).uniform(0.5, 2, 8)
    if kind in ("layer_norm", "rms_norm"):
        parameters = [b.constant("gain", gain), b.constant("shift", normal(8, seed=seed))][: 1 + (kind == "layer_norm")]
        h = b.node(kind, (x, *parameters), {"normalized_shape": (8,)}, name="norm")
    elif kind == "linear":
        h = b.node("linear", (x, b.constant("u", gain[:, None] * normal(8, 8, seed=seed)), b.constant("shift", gain)), name="before")
    else:
        h = x
    w, v = (b.constant(n, normal(8, 8, seed=seed + i)) for i, n in enumerate("wv", 1))
    y = b.node("linear", (h, w, b.constant("bias", normal(8))), name="one")
    z = b.node("matmul", (h, v), name="other")
    y = b.node("add", (y, z))
    return b.finish(b.node("add", (y, h)) if shared else y)


WIDE = RECIPES["int8"].replace(ops=EXTENDED_OPS - {"add"}, approach="static")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["layer_norm", "rms_norm", "linear", "input"]), st.booleans(), st.sampled_from([0.0, 0.3, 0.5, 1.0, "auto"]), seeds)
def test_smoothing_leaves_the_function_the_same(kind: str, shared: bool, alpha: Any, seed: int) -> None:
    graph = block(kind, seed, shared=shared)
    data = loud(24, 5, 8, seed=seed)
    even = smooth(graph, WIDE.replace(smooth=alpha), batches(graph, data))
    same_function(graph, even, {"x": data})
    assert alpha == "auto" or any(not np.array_equal(even.constants[name], graph.constants[name]) for name in "wv")
    # The division went into what computes the activation, unless that is none of these or something else reads it.
    factors = {node.inputs[0] for node in even.nodes if node.op == "mul"}
    computed = graph.nodes[0].name
    expected = {"x"} if kind in ("linear", "input") else set()
    assert alpha == "auto" or factors == expected | ({computed} if shared and kind != "input" else set())


@pytest.mark.parametrize("kind", ["layer_norm", "linear", "input"])
def test_smoothing_takes_an_outlier_channel_into_the_weights(kind: str) -> None:
    graph, data = block(kind, shared=kind == "layer_norm"), loud(64, 5, 8)
    found = {alpha: quality(quantize_model(graph, WIDE.replace(smooth=alpha), data)) for alpha in (None, 0.25, 0.5, 0.75, "auto")}
    assert found[0.5] > found[None] + 6, found
    # The search is by layer, and by the error that counts.
    assert found["auto"] > max(found.values()) - 0.5, found


def test_smoothing_is_left_out_where_no_alpha_helps() -> None:
    # Weights and activations that are exact as they are.
    graph = one_linear(np.eye(4) * 448)
    recipe = get_recipe("e4m3").replace(smooth="auto")
    again = smooth(graph, recipe, batches(graph, np.array([[448, 1, 2, 4], [1, -448, 0.5, 0]], np.float32)))
    assert str(again) == str(graph)
    assert np.array_equal(again.constants["w"], graph.constants["w"])


def test_smoothing_leaves_tied_weights_and_unquantized_layers() -> None:
    b = GraphBuilder()
    ids = b.input("ids", ("B",), "int64")
    table = b.constant("table", normal(9, 8))
    h = b.node("embedding", (table, ids), name="embed")
    y = b.node("linear", (h, b.constant("w", normal(8, 8))), name="kept")
    graph = b.finish(b.node("linear", (y, table), name="head"))
    data = [{"ids": np.arange(9)}]
    recipe = get_recipe("e4m3").replace(smooth=0.5, skip=("kept",))
    assert str(smooth(graph, recipe, batches(graph, data))) == str(graph)
    # Weights alone: there is no activation to be made easier.
    assert smooth(graph, get_recipe("w8").replace(smooth=0.5), batches(graph, data)) is graph
    # A weight that is an output of the model stays what it is.
    w = one_linear(normal(4, 4))
    w = w.replace(outputs=[w.outputs, "w"])
    assert smooth(w, get_recipe("e4m3").replace(smooth=0.5), batches(w, normal(5, 4))).constants["w"] is w.constants["w"]


def test_with_extended_coverage_an_activation_is_smoothed_before_it_is_rounded() -> None:
    graph, data = block("layer_norm", shared=True), loud(32, 5, 8)
    recipe = RECIPES["e4m3"].replace(ops=EXTENDED_OPS, smooth=0.5)
    result = quantize_model(graph, recipe, data)
    (factor,) = (node for node in result.graph.nodes if node.op == "mul")
    assert factor.inputs[0] == "norm"
    assert result.recipe == recipe


# -- BatchNorm re-calibration -----------------------------------------------------------------------------------------


def two_norms(seed: int = 0) -> Graph:
    """conv - BatchNorm - relu - conv - BatchNorm, with the statistics of nothing."""
    b = GraphBuilder()
    x = b.input("x", ("B", 3, 6), "float32")
    for i, (n, k) in enumerate([(4, 3), (5, 4)]):
        x = b.node("conv1d", (x, b.constant(f"w{i}", normal(n, k, 3, seed=seed)), b.constant(f"c{i}", normal(n))), name=f"conv{i}")
        arrays = normal(n), np.abs(normal(n, seed=1)) + 0.5, normal(n, seed=2), normal(n, seed=3)
        names = (f"mean{i}", f"var{i}", f"gain{i}", f"shift{i}")
        x = b.node("batch_norm", (x, *(b.constant(m, a) for m, a in zip(names, arrays, strict=True))), name=f"norm{i}")
        x = b.node("relu", (x,)) if i == 0 else x
    return b.finish(x)


def statistics(graph: Graph) -> dict[str, Any]:
    return {name: graph.constants[name] for name in ("mean0", "var0", "mean1", "var1")}


FLOAT = RECIPES["fp32"]


def test_against_itself_a_model_keeps_its_statistics() -> None:
    graph = two_norms()
    again = recalibrate_batch_norm(graph, FLOAT, {}, batches(graph, normal(20, 3, 6)), samples=20)
    for name, array in graph.constants.items():
        np.testing.assert_array_equal(again.constants[name], array)


def test_plain_statistics_are_those_of_training_mode_by_hand() -> None:
    graph, data = two_norms(), 3 * normal(20, 3, 6) + 1
    again = recalibrate_batch_norm(graph, FLOAT, {}, batches(graph, data, 8), samples=20, paired=False)
    c = {name: np.asarray(array, np.float64) for name, array in graph.constants.items()}

    def conv(x: Any, i: int) -> Any:
        windows = np.lib.stride_tricks.sliding_window_view(x, 3, axis=2)
        return np.einsum("bclk,ock->bol", windows, c[f"w{i}"]) + c[f"c{i}"][:, None]

    hidden = []
    for part in (data[:8], data[8:16], data[16:]):
        y = conv(part.astype(np.float64), 0)
        # Each batch by its own statistics, as in training.
        centred = (y - y.mean(axis=(0, 2), keepdims=True)) / np.sqrt(y.var(axis=(0, 2), keepdims=True) + 1e-5)
        hidden.append((y, conv(np.maximum(centred * c["gain0"][:, None] + c["shift0"][:, None], 0), 1)))
    for i in (0, 1):
        everything = np.concatenate([pair[i] for pair in hidden])
        np.testing.assert_allclose(again.constants[f"mean{i}"], everything.mean(axis=(0, 2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(again.constants[f"var{i}"], everything.var(axis=(0, 2)), rtol=1e-4)
    assert {name for name, array in again.constants.items() if array is not graph.constants[name]} == set(statistics(graph))


def test_samples_are_counted_in_whole_batches() -> None:
    graph, data = two_norms(), normal(20, 3, 6)
    told: list[tuple[Any, ...]] = []

    def calibrated(samples: int, part: Any) -> dict[str, Any]:
        return statistics(
            recalibrate_batch_norm(
                graph, FLOAT, {}, batches(graph, part, 4), samples=samples, paired=False, progress=lambda *a: told.append(a)
            )
        )

    few, first, everything = calibrated(5, data), calibrated(100, data[:8]), calibrated(100, data)
    assert [t[:2] for t in told] == [("re-calibrating BatchNorm", i) for n in (2, 2, 5) for i in range(1, n + 1)]
    for name in few:
        np.testing.assert_array_equal(few[name], first[name])
        assert not np.array_equal(few[name], everything[name])


def shifting(seed: int = 0) -> Graph:
    """A layer whose weights all lie just below the middle between two values of E5M2, a BatchNorm, and a layer."""
    b = GraphBuilder()
    x = b.input("x", ("B", 6, 4), "float32")
    w = np.where(np.arange(6) == 0, 1.75, 1.1) * np.exp2(np.random.default_rng(seed).integers(-3, 3, (5, 1)))
    y = b.node("conv1d", (x, b.constant("w", w[..., None])), name="conv")
    y = norm_of(b, y, 5, seed)
    return b.finish(b.node("relu", (y,)))


@pytest.mark.parametrize("paired", [True, False])
def test_re_calibration_takes_back_a_shift_and_a_shrinking(paired: bool) -> None:
    graph, data = shifting(), np.abs(normal(64, 6, 4)) + 1
    # The statistics that training would have found.
    graph = recalibrate_batch_norm(graph, FLOAT, {}, batches(graph, data), samples=64, paired=False)
    recipe = Recipe("coarse", E5M2, None, keep_first_last=False)
    before, after = (quality(quantize_model(graph, recipe.replace(batch_norm=n, batch_norm_paired=paired), data)) for n in (0, 64))
    assert before < 15
    assert after > before + 10


@pytest.mark.parametrize(
    "change",
    [{"approach": "direct"}, {"weight_granularity": "tensor"}, {"weight_granularity": "channel"}, {"rounding": "adaptive"}],
    ids=str,
)
def test_statistics_hold_for_the_codes_that_are_written(change: dict[str, Any]) -> None:
    """Folding multiplies weights by factors; where scales do not follow these, other factors would mean other codes, and other errors."""
    recipe = get_recipe("e5m2-static").replace(keep_first_last=False, **change)
    gains = []
    for seed in range(4):
        data = np.abs(normal(64, 3, 6, seed=seed)) + 1
        graph = two_norms(seed)
        graph = recalibrate_batch_norm(graph, FLOAT, {}, batches(graph, data), samples=64, paired=False)
        before, after = (quantize_model(graph, recipe.replace(batch_norm=n), data) for n in (0, 64))
        gains.append(quality(after) - quality(before))
        for name, codes in before.graph.constants.items():
            if isinstance(codes, QTensor):
                np.testing.assert_array_equal(after.graph.constants[name].codes, codes.codes)  # type: ignore[union-attr]
    assert np.mean(gains) > 0.3, gains


def test_scales_stay_powers_of_two() -> None:
    graph, data = two_norms(), normal(64, 3, 6)
    recipe = get_recipe("e4m3").replace(keep_first_last=False, power_of_two=True, batch_norm=64, rounding="adaptive")
    weights = [c for c in quantize_model(graph, recipe, data).graph.constants.values() if isinstance(c, QTensor)]
    assert len(weights) == 2
    assert all((np.frexp(w.scale)[0] == 0.5).all() for w in weights)


def test_a_weight_that_folding_copies_is_re_calibrated_too() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 4, 6), "float32")
    w = b.constant("w", normal(4, 4, 1))
    for i in range(2):
        x = norm_of(b, b.node("conv1d", (x, w), name=f"conv{i}"), 4, i)
    graph, data = b.finish(x), normal(64, 4, 6)
    recipe = get_recipe("e4m3").replace(keep_first_last=False, batch_norm=64, rounding="adaptive")
    assert quality(quantize_model(graph, recipe, data)) > 20


def test_a_channel_without_any_spread_keeps_its_variance() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 2, 3), "float32")
    w = b.constant("w", np.array([[[0.0], [0.0]], [[1.0], [2.0]]]))
    names = [b.constant(n, np.array(a)) for n, a in (("mean", [1.0, 2]), ("var", [3.0, 4]))]
    graph = b.finish(b.node("batch_norm", (b.node("conv1d", (x, w)), *names)))
    recipe = Recipe("coarse", E5M2, E5M2, "direct", keep_first_last=False)
    # What is below the smallest value of the format becomes zero in the quantized model alone.
    for scale in (1.0, 1e-9):
        data = batches(graph, np.float32(scale) * normal(16, 2, 3))
        again = recalibrate_batch_norm(graph, recipe, {}, data, samples=16)
        assert again.constants["var"][0] == 3
        assert again.constants["var"][1] == pytest.approx(4, rel=0.2)
        assert np.isfinite(again.constants["mean"]).all()


def test_other_data_can_re_calibrate() -> None:
    graph, data, other = two_norms(), normal(20, 3, 6), normal(20, 3, 6, seed=5)
    recipe = RECIPES["e5m2"].replace(keep_first_last=False, batch_norm=100)
    for calibration in (None, data):
        alone = quantize_model(graph, recipe, calibration, recalibration=other, report_batches=0)
        same = quantize_model(graph, recipe, other, report_batches=0)
        assert str(alone.graph) == str(same.graph)
        for name, constant in same.graph.constants.items():
            assert isinstance(constant, QTensor) or np.array_equal(constant, alone.graph.constants[name])
    assert not any(node.op == "batch_norm" for node in alone.graph.nodes)


# -- bias correction --------------------------------------------------------------------------------------------------


def layer_with_bias(kind: str, *, bias: bool) -> tuple[Graph, Any]:
    b = GraphBuilder()
    shape = {"linear": (8,), "tokens": (3, 8), "conv1d": (8, 5), "conv2d": (8, 5, 5), "depthwise": (8, 5, 5)}[kind]
    x = b.input("x", ("B", *shape), "float32")
    w = {"conv1d": (6, 8, 3), "conv2d": (6, 8, 3, 3), "depthwise": (8, 1, 3, 3)}.get(kind, (6, 8))
    c = b.constant("b", normal(w[0], seed=9)) if bias else None
    op = {"tokens": "linear", "depthwise": "conv2d"}.get(kind, kind)
    y = b.node(op, (x, b.constant("w", normal(*w)), c), {"groups": 8} if kind == "depthwise" else {}, name="layer")
    # All positive, as after a ReLU: errors of weights are shifts of the mean.
    return b.finish(y), np.abs(normal(400, *shape)) + 1


@pytest.mark.parametrize("kind", ["linear", "tokens", "conv1d", "conv2d", "depthwise"])
@pytest.mark.parametrize("name", ["e5m2", "e4m3-dynamic", "int8"])
@pytest.mark.parametrize("bias", [True, False])
def test_corrected_biases_leave_no_mean_error(kind: str, name: str, bias: bool) -> None:
    graph, data = layer_with_bias(kind, bias=bias)
    recipe = get_recipe(name).replace(keep_first_last=False)
    exact = interpret(graph, {"x": data})
    others = tuple(i for i in range(exact.ndim) if i != (1 if "conv" in kind or kind == "depthwise" else exact.ndim - 1))

    def mean_error(correct: bool) -> Any:
        result = quantize_model(graph, recipe.replace(correct_bias=correct), data, samples=400)
        # In the batches that the data are cut into: dynamic scales depend on them.
        got = np.concatenate([interpret(result.graph, batch.inputs) for batch in batches(graph, data)])
        return np.abs((got - exact).mean(axis=others))

    before, after = mean_error(False), mean_error(True)
    # As far as the samples agree on them.
    assert after.max() < 0.1 * before.max()


def test_each_layer_is_corrected_for_its_own_error() -> None:
    """Of two layers, the second sees what the first will give once it is corrected."""
    b = GraphBuilder()
    x = b.input("x", ("B", 16), "float32")
    h = b.node("relu", (b.node("linear", (x, b.constant("w", normal(16, 16)), b.constant("c", np.full(16, 2.0))), name="first"),))
    graph = b.finish(b.node("linear", (h, b.constant("v", np.abs(normal(4, 16)))), name="second"))
    data = np.abs(normal(500, 16)) + 1
    recipe = RECIPES["e5m2"].replace(correct_bias=True)
    exact = interpret(graph, {"x": data})
    errors = []
    for correct in (False, True):
        result = quantize_model(graph, recipe.replace(correct_bias=correct), data, samples=500)
        errors.append(np.abs((interpret(result.graph, {"x": data}) - exact).mean(axis=0)).max())
    assert errors[1] < 0.1 * errors[0]


def test_a_shared_bias_is_corrected_for_each_layer() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 8), "float32")
    c = b.constant("c", normal(8))
    outputs = [b.node("linear", (x, b.constant("w", normal(8, 8, seed=i)), c), name=f"fc{i}") for i in range(2)]
    graph = b.finish([*outputs, c])
    data = np.abs(normal(300, 8)) + 1
    result = quantize_model(graph, RECIPES["e5m2"].replace(correct_bias=True), data)
    first, second = (node.inputs[2] for node in result.graph.nodes if node.op == "linear")
    assert first != second
    np.testing.assert_array_equal(result.graph.constants["c"], graph.constants["c"])
    exact, got = (interpret(g, {"x": data}) for g in (graph, result.graph))
    for right, made in zip(exact[:2], got[:2], strict=True):
        assert np.abs((made - right).mean(axis=0)).max() < 0.02 * np.abs(right).mean()


def test_nothing_to_correct_is_left_as_it_is() -> None:
    graph, data = layer_with_bias("linear", bias=True)
    decisions = decide(graph, RECIPES["fp32"])
    assert correct_bias(graph, graph, decisions, batches(graph, data)) is graph


# -- adaptive rounding ------------------------------------------------------------------------------------------------


def layer_in(op: str, w: Any, x_shape: tuple[Any, ...], **attrs: Any) -> tuple[Graph, Layer]:
    b = GraphBuilder()
    x = b.input("x", x_shape, "float32")
    graph = b.finish(b.node(op, (x, b.constant("w", w)), attrs, name="layer"))
    layer = layer_of(graph, graph.nodes[0])
    assert layer is not None
    return graph, layer


def costs(layer: Layer, w: Any, codes: QTensor, squares: Any) -> Any:
    """|(w - w') x|² of each output channel, (G, O)."""
    error = layer.matrix(dequantize(codes, dtype=np.float64) - w.astype(np.float64))
    return np.einsum("gok,gkl,gol->go", error, squares.astype(np.float64), error)


CASES: dict[str, tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    "linear": ("linear", (7, 90), ("B", 90), {}),
    "matmul": ("matmul", (20, 7), ("B", 20), {}),
    "conv1d": ("conv1d", (6, 4, 3), ("B", 4, 9), {"stride": (2,)}),
    "groups": ("conv2d", (6, 2, 3, 3), ("B", 4, 7, 7), {"groups": 2, "padding": (1, 1)}),
    "depthwise": ("conv2d", (8, 1, 3, 3), ("B", 8, 7, 7), {"groups": 8, "dilation": (2, 2)}),
}
CUTS: dict[str, Callable[[int], Any]] = {
    "channel": lambda ndim: PerChannel(0),
    "tensor": lambda ndim: PerTensor(),
    "group": lambda ndim: PerBlock((1, 2, *(0,) * (ndim - 2))),
}


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(CASES)), st.sampled_from(sorted(CUTS)), st.sampled_from(["e5m2", "e4m3fn", "e3m4fn"]), seeds)
def test_rounding_to_fit_never_costs_more_than_to_the_nearest(case: str, cut: str, fmt: str, seed: int) -> None:
    op, shape, x_shape, attrs = CASES[case]
    w = spread(*shape, seed=seed, octaves=1)
    _, layer = layer_in(op, w, x_shape, **attrs)
    granularity = PerChannel(-1) if case == "matmul" and cut == "channel" else CUTS[cut](len(shape))
    scheme = Scheme(get_format(fmt), granularity)
    # Inputs that go together, as those of networks do.
    x = np.random.default_rng(seed).standard_normal((32, *x_shape[1:])).astype(np.float32)
    x = x + 2 * x.mean(axis=1, keepdims=True)
    rows = layer.rows(x, shape, 4096)
    squares = rows.transpose(0, 2, 1) @ rows
    fitted = rounded_to_fit(layer, w, scheme, squares)
    nearest = rounded_to_fit(layer, w, scheme, np.zeros_like(squares))
    # Where nothing is known of the inputs, the nearest is best.
    codes = code_values(scheme.format)
    assert np.isfinite(codes[nearest.codes]).all()
    np.testing.assert_array_equal(fitted.scale, nearest.scale)
    assert (costs(layer, w, fitted, squares) <= costs(layer, w, nearest, squares) * (1 + 1e-6)).all()


def test_tiny_layers_are_rounded_nearly_as_well_as_can_be() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((30, 8)).astype(np.float32)
    _, layer = layer_in("linear", w, ("B", 8))
    x = (rng.standard_normal((64, 8)) + 1.5 * rng.standard_normal((64, 1))).astype(np.float32)
    squares = (x.T @ x)[None]
    scheme = Scheme(E5M2, PerChannel(0))
    fitted, nearest = (rounded_to_fit(layer, w, scheme, s) for s in (squares, np.zeros_like(squares)))
    values = code_values(E5M2)
    grid = np.unique(values[np.isfinite(values)])
    sums = np.zeros(3)
    for i in range(30):
        exact = w[i].astype(np.float64) / float(nearest.scale[i, 0])
        above = np.minimum(np.searchsorted(grid, exact), len(grid) - 1)
        choices = np.stack([grid[above - 1], grid[above]])
        every = np.array([[choices[c, k] for k, c in enumerate(bits)] for bits in itertools.product((0, 1), repeat=8)])
        errors = (every - exact) * float(nearest.scale[i, 0])
        best = np.einsum("nk,kl,nl->n", errors, squares[0].astype(np.float64), errors).min()
        got, plain = (costs(layer, w, codes, squares)[0, i] for codes in (fitted, nearest))
        assert got <= plain
        sums += best, got, plain
    best, got, plain = sums
    # Most of what the best choice between the two neighbours of each weight would gain.
    assert got - best <= 0.35 * (plain - best), sums


def test_rounding_to_fit_serves_the_whole_model() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 8, 6, 6), "float32")
    for shape, groups in (((12, 8, 3, 3), 1), ((12, 1, 3, 3), 12), ((6, 12, 1, 1), 1)):
        x = b.node("conv2d", (x, b.constant("w", normal(*shape)), b.constant("b", normal(shape[0]))), {"padding": (1, 1), "groups": groups})
        x = b.node("relu", (x,))
    graph = b.finish(x)
    data = np.abs(normal(64, 8, 6, 6)) + 1
    recipe = RECIPES["e5m2"].replace(keep_first_last=False, approach="static", activations=None)
    nearest, adaptive = (quality(quantize_model(graph, recipe.replace(rounding=r), data)) for r in ("nearest", "adaptive"))
    assert adaptive > nearest + 3


def test_weights_that_two_layers_read_are_rounded_to_the_nearest() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 8), "float32")
    w = b.constant("w", normal(8, 8))
    h = b.node("linear", (x, w))
    graph = b.finish(b.node("linear", (b.node("linear", (h, w)), b.constant("u", normal(8, 8))), name="last"))
    recipe = get_recipe("e4m3-dynamic")
    decisions = decide(graph, recipe)
    assert [name for name, _ in adapted_weights(graph, decisions, {}, batches(graph, normal(20, 8)))] == ["u"]
    # Integers have their own codes.
    int8 = decide(graph, RECIPES["int8"])
    ranges = calibrate(graph, batches(graph, normal(20, 8)), needs(graph, int8))
    assert adapted_weights(graph, int8, ranges, batches(graph, normal(20, 8))) == {}
    result = insert(graph, int8, ranges)
    assert [node.op for node in result.nodes].count("integer_linear") == 3


# -- automatic choice -------------------------------------------------------------------------------------------------


def chosen(result: Result) -> dict[str, tuple[str | None, str | None]]:
    return {o.match: (o.weights, o.activations) for o in result.recipe.overrides}


def over_octaves(octaves: int, seed: int = 0) -> tuple[Graph, Any]:
    """A product of which each channel gives as much, from inputs that span so many octaves and weights that span as many the other way."""
    rng = np.random.default_rng(seed)
    columns = np.exp2(-np.linspace(0, octaves, 64))
    w = rng.standard_normal((16, 64)) / columns
    return one_linear(w), (rng.standard_normal((256, 64)) * columns).astype(np.float32)


@pytest.mark.parametrize(("octaves", "name"), [(0, "e3m4"), (13, "e4m3"), (26, "e5m2")])
def test_precision_and_range_choose_the_format(octaves: int, name: str) -> None:
    graph, data = over_octaves(octaves)
    result = quantize_model(graph, "auto", data)
    assert chosen(result)["fc"] == (name, name)
    (layer,) = result.report.layers
    assert "weights e4m3 " in layer.note
    assert "e5m2 " in layer.note
    assert "SQNR of the outputs in dB: " in result.report.note


def test_weights_and_activations_are_chosen_apart() -> None:
    rng = np.random.default_rng(0)
    columns = np.exp2(-np.linspace(0, 26, 64))
    x = (rng.standard_normal((256, 64)) * columns).astype(np.float32)
    # Each weight has a scale of its own channel; those of one channel are alike.
    b = GraphBuilder()
    source = b.input("x", ("B", 64), "float32")
    w = np.diag(1 / columns)
    h = b.node("linear", (source, b.constant("w", w)), name="first")
    graph = b.finish(b.node("linear", (h, b.constant("v", rng.standard_normal((8, 64)))), name="second"))
    found = chosen(quantize_model(graph, "auto", x))
    assert found["first"][1] == "e5m2"
    assert found["second"] == ("e3m4", "e3m4")


@pytest.mark.filterwarnings("ignore::fp8np.errors.CalibrationWarning")
@settings(deadline=None, max_examples=8)
@given(seeds)
def test_what_is_chosen_is_at_least_as_good_as_any_one_format(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = GraphBuilder()
    x = b.input("x", ("B", 24), "float32")
    for i in range(3):
        x = b.node("linear", (x, b.constant("w", normal(24, 24, seed=seed + i) * np.exp2(rng.uniform(0, 12, 24)))), name=f"fc{i}")
        x = b.node("relu" if i < 2 else "tanh", (b.node("mul", (x, None), {"scalar": 2.0**-4}),))
    graph = b.finish(x)
    data = normal(48, 24, seed=seed) * np.exp2(rng.uniform(0, 12, 24)).astype(np.float32)
    # The same batches as those that the choice was made on.
    results = {name: quality(quantize_model(graph, name, data)) for name in ("auto", "e4m3", "e3m4", "mixed", "e5m2-static")}
    assert results["auto"] >= max(results.values()) - 1e-6, results


@pytest.mark.parametrize("approach", ["static", "dynamic"])
def test_the_recipe_of_a_choice_gives_the_same_model_again(approach: str, tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 5, 16), "float32")
    h = b.node("layer_norm", (x, b.constant("g", np.exp2(normal(16) * 4)), b.constant("s", normal(16))), {"normalized_shape": (16,)})
    y = b.node("gelu", (b.node("linear", (h, b.constant("w", spread(32, 16))), name="up"),))
    graph = b.finish(b.node("linear", (y, b.constant("v", spread(16, 32))), name="down"))
    data = spread(40, 5, 16)
    result = quantize_model(graph, f"auto-{approach}", data)
    assert result.recipe.candidates == ()
    assert result.recipe.name == f"auto-{approach}"
    again = quantize_model(graph, result.recipe, data)
    assert file_of(again.graph, tmp_path) == file_of(result.graph, tmp_path)
    assert again.recipe == result.recipe


def test_nodes_that_stay_in_float32_are_not_chosen_for() -> None:
    graph, data = over_octaves(0)
    recipe = get_recipe("auto").replace(overrides=(Override(match="fc", keep=True),))
    result = quantize_model(graph, recipe, data)
    assert result.report.quantized == 0
    weights = quantize_model(graph, get_recipe("auto").replace(activations=None), data)
    assert chosen(weights)["fc"] == ("e3m4", None)
    assert [node.op for node in weights.graph.nodes] == ["linear"]


# -- the workflow -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "purpose"),
    [
        ({"smooth": 0.5}, "SmoothQuant"),
        ({"smooth": "auto"}, "SmoothQuant"),
        ({"batch_norm": 10}, "BatchNorm re-calibration"),
        ({"rounding": "adaptive"}, "adaptive rounding"),
        ({"correct_bias": True}, "bias correction"),
        ({"candidates": ("e4m3", "e5m2")}, "choosing formats"),
    ],
)
def test_what_measures_needs_data(change: dict[str, Any], purpose: str) -> None:
    recipe = get_recipe("e4m3-dynamic").replace(**change)
    with pytest.raises(CalibrationError, match=f"recipe 'e4m3-dynamic': {purpose} needs calibration data, and there are none: give some"):
        quantize_model(two_norms(), recipe)
    quantize_model(two_norms(), get_recipe("e4m3-dynamic").replace(equalize=True))


def file_of(graph: Graph, folder: Path) -> bytes:
    save(graph, folder / "model.safetensors")
    return (folder / "model.safetensors").read_bytes()


EVERYTHING: dict[str, dict[str, Any]] = {
    "e5m2": {"approach": "static", "equalize": True, "batch_norm": 50, "rounding": "adaptive", "correct_bias": True},
    "auto": {"smooth": 0.5, "equalize": True, "rounding": "adaptive", "correct_bias": True, "weight_calibrator": "mse"},
    "int8": {"smooth": "auto", "equalize": True, "batch_norm": 50, "batch_norm_paired": False, "correct_bias": True, "calibrator": "kl"},
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_all_at_once_gives_the_same_file_twice(name: str, tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 3, 8, 8), "float32")
    for i, (shape, groups) in enumerate([((8, 3, 3, 3), 1), ((8, 1, 3, 3), 8), ((6, 8, 1, 1), 1)]):
        x = b.node("conv2d", (x, b.constant("w", spread(*shape, seed=i))), {"padding": (1, 1), "groups": groups}, name=f"conv{i}")
        x = b.node("relu6", (norm_of(b, x, shape[0], i),))
    x = b.node("mean", (x,), {"dim": (2, 3)})
    x = b.node("relu", (b.node("linear", (x, b.constant("v", normal(9, 6)), b.constant("c", normal(9))), name="fc"),))
    graph = b.finish(b.node("linear", (x, b.constant("u", normal(4, 9))), name="head"))
    data = normal(48, 3, 8, 8)
    recipe = get_recipe(name).replace(keep_first_last=False, **EVERYTHING[name])
    before = {n: np.array(c) for n, c in graph.constants.items()}
    first, second = (quantize_model(graph, recipe, data) for _ in range(2))
    assert file_of(first.graph, tmp_path) == file_of(second.graph, tmp_path)
    assert first.report == second.report
    assert first.recipe == second.recipe
    # What came in is untouched, and what came out is close to it.
    assert all(np.array_equal(graph.constants[n], c) for n, c in before.items())
    exact, got = (interpret(g, {"x": data}) for g in (fold_batch_norm(graph), first.graph))
    assert sqnr(got, exact) > 8
    assert not any(node.op == "batch_norm" for node in first.graph.nodes)


def test_integers_take_the_scale_with_the_least_error_too() -> None:
    graph, data = one_linear(np.random.default_rng(0).laplace(size=(400, 250)).astype(np.float32)), normal(64, 250)
    recipe = RECIPES["int8"].replace(weight_granularity="tensor")
    reports = [quantize_model(graph, recipe.replace(weight_calibrator=how), data).report for how in ("max", "mse")]
    largest, least = (layer.weight_sqnr for report in reports for layer in report.layers)
    assert largest is not None
    assert least is not None
    assert least > largest + 0.5


def test_what_a_recipe_says_of_a_node_is_not_chosen_otherwise() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 16), "float32")
    rng = np.random.default_rng(3)
    h = b.node("linear", (x, b.constant("v", rng.standard_normal((8, 16)))), name="first")
    graph = b.finish(b.node("linear", (h, b.constant("w", rng.standard_normal((4, 8)))), name="second"))
    data = [rng.standard_normal((32, 16)).astype(np.float32)]
    for said in (Override(match="first", weights="e5m2"), Override(match="f*", weights="e5m2"), Override(op="linear", weights="e5m2")):
        result = quantize_model(graph, get_recipe("auto").replace(overrides=(said,)), data)
        formats = {layer.name: (layer.weights, layer.activations) for layer in result.report.layers}
        assert formats["first"] == ("float8_e5m2", "float8_e3m4fn")
        assert formats["second"][0] == ("float8_e5m2" if said.op else "float8_e3m4fn")


def test_formats_of_embeddings_are_chosen_by_their_weights() -> None:
    b = GraphBuilder()
    ids = b.input("ids", ("B", "T"), "int64")
    rng = np.random.default_rng(4)
    h = b.node("embedding", (b.constant("table", rng.standard_normal((11, 16))), ids), name="embed")
    graph = b.finish(b.node("linear", (h, b.constant("w", rng.standard_normal((8, 16)))), name="fc"))
    result = quantize_model(graph, "auto", [{"ids": rng.integers(0, 11, (4, 5))} for _ in range(2)])
    (embed,) = (layer for layer in result.report.layers if layer.name == "embed")
    assert embed.weights == "float8_e3m4fn"
    assert embed.note.startswith("weights e4m3 3")


def test_integers_are_no_candidates() -> None:
    with pytest.raises(RecipeError, match="int8 meets itself only"):
        get_recipe("auto").replace(candidates=("e4m3", "int8"))
