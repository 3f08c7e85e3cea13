from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fp8np.build import GraphBuilder
from fp8np.calibrate import Range, calibrate
from fp8np.check import check
from fp8np.data import load_batches
from fp8np.errors import CalibrationError, FormatError, RecipeError
from fp8np.formats import get_format
from fp8np.graph import Graph
from fp8np.interpret import interpret
from fp8np.metrics import sqnr
from fp8np.ptq.assign import decide, is_convolutional, needs
from fp8np.ptq.fold import fold_batch_norm
from fp8np.ptq.insert import insert
from fp8np.ptq.recipe import RECIPES, Recipe, get_recipe
from fp8np.ptq.workflow import quantize_graph, quantize_model
from fp8np.scaling import dequantize, scale_for
from fp8np.tensor import QTensor


def _random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _norm(b: GraphBuilder, x: str, channels: int, name: str, **attrs: Any) -> str:
    rng = np.random.default_rng(channels)
    arrays = rng.normal(size=channels), rng.uniform(0.5, 2, channels), rng.uniform(0.5, 2, channels), rng.normal(size=channels)
    inputs = tuple(b.constant(f"{name}.{i}", a) for i, a in enumerate(arrays))
    return str(b.node("batch_norm", (x, *inputs), attrs, name=name))


def _cnn(*, norms: bool = True) -> Graph:
    """conv1 - bn1 - relu - conv2 (grouped) - bn2 - relu - flatten - fc1 - relu - fc2"""
    b = GraphBuilder()
    x = b.input("image", ("B", 3, 8, 8), "float32")
    for i, (channels, groups) in enumerate([(4, 1), (6, 2)], 1):
        inputs = {1: 3, 2: 4}[i]
        w = b.constant(f"conv{i}.weight", _random(channels, inputs // groups, 3, 3))
        bias = b.constant("conv2.bias", _random(6)) if i == 2 else None
        x = b.node("conv2d", (x, w, bias), {"padding": (1, 1), "groups": groups}, name=f"conv{i}", origin=f"features.{i}")
        x = _norm(b, x, channels, f"bn{i}", eps=1e-3) if norms else x
        x = b.node("relu", (x,), name=f"relu{i}")
    x = b.node("mean", (x,), {"dim": (-2, -1)}, name="pool")
    for i, (n, k) in enumerate([(5, 6), (3, 5)], 1):
        x = b.node("linear", (x, b.constant(f"fc{i}.weight", _random(n, k)), b.constant(f"fc{i}.bias", _random(n))), name=f"fc{i}")
    return b.finish(x)


IMAGES = _random(12, 3, 8, 8)


def _attention() -> Graph:
    """An embedding, and q, k, v that read the same value; the head is tied to the embedding."""
    b = GraphBuilder()
    ids = b.input("ids", ("B", "T"), "int64")
    table = b.constant("table", _random(11, 8))
    x = b.node("embedding", (table, ids), name="embed")
    q, k, v = (b.node("linear", (x, b.constant(f"{n}.weight", _random(8, 8, seed=i))), name=n) for i, n in enumerate("qkv"))
    a = b.node("scaled_dot_product_attention", (q, k, v), name="attend")
    y = b.node("add", (a, x), name="residual")
    return b.finish({"hidden": y, "logits": b.node("linear", (y, table), name="head")})


IDS = np.random.default_rng(3).integers(0, 11, (6, 5))


def _quantized(graph: Graph, recipe: Recipe | str, data: Any) -> Graph:
    return quantize_model(graph, recipe, data).graph


def _close(graph: Graph, other: Graph, inputs: dict[str, Any], tolerance: float) -> None:
    exact, got = (interpret(g, inputs, dtype=np.float64) for g in (graph, other))
    np.testing.assert_allclose(got, exact, rtol=0, atol=tolerance * np.abs(exact).max())


# -- folding -----------------------------------------------------------------------------------------------------------


def test_folding_removes_batch_norm_and_keeps_the_outputs() -> None:
    graph = _cnn()
    folded = check(fold_batch_norm(graph))
    assert not any(node.op == "batch_norm" for node in folded.nodes)
    assert [n.name for n in folded.nodes] == ["conv1", "relu1", "conv2", "relu2", "pool", "fc1", "fc2"]
    assert folded.nodes[0].outputs == ("bn1",)
    assert not any(name.startswith("bn") for name in folded.constants)
    # Weights are rounded to float32 once more.
    _close(graph, folded, {"image": IMAGES}, 4 * 2**-24)


@pytest.mark.parametrize(
    ("op", "x_shape", "weight_shape", "channels", "attrs"),
    [
        ("conv1d", (2, 4, 9), (6, 2, 3), 6, {"groups": 2}),
        ("conv2d", (2, 4, 5, 5), (4, 1, 3, 3), 4, {"groups": 4}),
        ("conv_transpose1d", (2, 4, 5), (4, 3, 2), 3, {}),
        ("conv_transpose2d", (2, 4, 5, 5), (4, 3, 2, 2), 6, {"groups": 2, "stride": (2, 2)}),
        ("linear", (5, 4), (3, 4), 3, {}),
    ],
)
def test_every_layer_that_takes_a_batch_norm_in_folds_exactly(
    op: str, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], channels: int, attrs: dict[str, Any]
) -> None:
    # Small integers and powers of two: folding rounds nothing, so the two graphs agree to float64's own rounding.
    rng = np.random.default_rng(5)
    b = GraphBuilder()
    x = b.input("x", x_shape, "float32")
    w, bias = b.constant("w", rng.integers(-8, 8, weight_shape) * 1.0), b.constant("b", rng.integers(-8, 8, channels) * 1.0)
    y = b.node(op, (x, w, bias), attrs, name="layer")
    mean, var = rng.integers(-8, 8, channels) * 1.0, 4.0 ** rng.integers(-2, 3, channels)
    gamma, beta = 2.0 ** rng.integers(-2, 3, channels), rng.integers(-8, 8, channels) * 1.0
    names = [b.constant(n, a) for n, a in zip("mvgb", (mean, var, gamma, beta), strict=True)]
    graph = b.finish(b.node("batch_norm", (y, *names), {"eps": 0.0}, name="norm"))
    folded = check(fold_batch_norm(graph))
    assert [n.op for n in folded.nodes] == [op]
    _close(graph, folded, {"x": rng.standard_normal(x_shape)}, 1e-12)


def test_folding_without_parameters_and_without_bias() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    y = b.node("linear", (x, b.constant("w", _random(3, 4))), name="fc")
    mean, var = b.constant("mean", _random(3)), b.constant("var", np.ones(3))
    graph = b.finish(b.node("batch_norm", (y, mean, var, None, None)))
    folded = check(fold_batch_norm(graph))
    assert folded.nodes[0].inputs == ("x", "w", "fc.bias")
    _close(graph, folded, {"x": _random(5, 4)}, 4 * 2**-24)


def test_a_weight_that_others_read_is_copied_before_folding() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    w = b.constant("w", _random(4, 4))
    first = _norm(b, b.node("linear", (x, w), name="fc1"), 4, "bn")
    graph = b.finish(b.node("linear", (first, w), name="fc2"))
    folded = check(fold_batch_norm(graph))
    assert [n.inputs[1] for n in folded.nodes] == ["w_1", "w"]
    np.testing.assert_array_equal(folded.constants["w"], graph.constants["w"])
    _close(graph, folded, {"x": _random(5, 4)}, 8 * 2**-24)


def _unfoldable(case: str) -> Graph:
    b = GraphBuilder()
    x = b.input("x", ("B", 4, 4) if case == "channels elsewhere" else ("B", 4), "float32")
    w = b.input("w", (4, 4), "float32") if case == "computed weight" else b.constant("w", _random(4, 4))
    before = b.node("relu", (x,)) if case == "no layer" else b.node("linear", (x, w), name="fc")
    if case == "variance zero":
        zeros = b.constant("zeros", np.zeros(4))
        norm = b.node("batch_norm", (before, zeros, zeros), {"eps": 0.0}, name="bn")
    else:
        norm = _norm(b, before, 4, "bn")
    outputs = [norm, before] if case == "output of the model" else [norm]
    return b.finish(outputs + ([b.node("relu", (before,))] if case == "read elsewhere" else []))


@pytest.mark.parametrize(
    "case", ["no layer", "read elsewhere", "output of the model", "computed weight", "channels elsewhere", "variance zero"]
)
def test_what_cannot_be_folded_stays(case: str) -> None:
    graph = _unfoldable(case)
    assert fold_batch_norm(graph).nodes == graph.nodes


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_the_recipes_are_the_papers() -> None:
    rows = {n: (r.weights and r.weights.name, r.activations and r.activations.name, r.approach) for n, r in RECIPES.items()}
    assert rows == {
        "fp32": (None, None, "static"),
        "e4m3": ("float8_e4m3fn", "float8_e4m3fn", "static"),
        "e3m4": ("float8_e3m4fn", "float8_e3m4fn", "static"),
        "mixed": ("float8_e3m4fn", "float8_e4m3fn", "static"),
        "e5m2": ("float8_e5m2", "float8_e5m2", "direct"),
        "int8": ("int8", "int8", "auto"),
        "w8": ("float8_e3m4fn", None, "static"),
        "auto": ("float8_e4m3fn", "float8_e4m3fn", "static"),
    }


def test_recipes_are_adjusted_as_a_command_line_does() -> None:
    recipe = get_recipe("e3m4").adjusted(approach="dynamic", ops="-linear,+lstm", skip=["head*"], keep_first_last="no")
    assert (recipe.approach, recipe.keep_first_last, recipe.skip) == ("dynamic", False, ("head*",))
    assert recipe.ops == RECIPES["e3m4"].ops - {"linear"} | {"lstm"}
    assert get_recipe("e3m4").adjusted() == RECIPES["e3m4"]
    assert get_recipe(recipe) is recipe
    mixed = Recipe("mixed", "e3m4fn", "e4m3fn")  # type: ignore[arg-type]
    assert (str(mixed.weights), str(mixed.activations)) == ("float8_e3m4fn", "float8_e4m3fn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.adjusted(ops="linear,+lstm"), "every name has"),
        (lambda r: r.adjusted(keep_first_last="maybe"), "auto, yes, no"),
        (lambda r: r.replace(approach="guess"), "static, dynamic, direct"),
        (lambda r: r.replace(keep_first_last="yes"), "'auto', True or False"),
        (lambda r: r.replace(weights=None), "weights has no format"),
        (lambda r: r.replace(weights="e8m0fnu"), "sign"),
        (lambda r: get_recipe("e4m4"), "did you mean e4m3"),
        (lambda r: get_recipe("?"), "known: fp32, e4m3"),
        (lambda r: decide(_cnn(), r.replace(ops={"conv3d"})), "'conv3d' is not an op that can be quantized; these can: .*conv2d"),
        (lambda r: decide(_cnn(), r.replace(ops={"relu"})), "'relu'"),
        (lambda r: decide(_cnn(), r.replace(skip=("head",))), "no quantizable node matches 'head'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(change: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        change(RECIPES["e4m3"])


def test_a_recipe_with_an_unknown_format_is_refused() -> None:
    with pytest.raises(FormatError):
        RECIPES["e4m3"].replace(weights="e9m9")


# -- decisions ---------------------------------------------------------------------------------------------------------


def _reasons(graph: Graph, recipe: Recipe) -> dict[str, str]:
    return {d.node: d.reason for d in decide(graph, recipe)}


def test_first_convolution_and_last_linear_of_a_convolutional_network_stay() -> None:
    graph, recipe = _cnn(norms=False), RECIPES["e4m3"]
    assert is_convolutional(graph)
    kept = {"conv1": "first convolution, kept in float32", "conv2": "", "fc1": "", "fc2": "last linear, kept in float32"}
    assert _reasons(graph, recipe) == _reasons(graph, recipe.replace(keep_first_last=True)) == kept
    assert set(_reasons(graph, recipe.replace(keep_first_last=False)).values()) == {""}


def test_networks_with_attention_or_recurrence_are_not_convolutional() -> None:
    assert not is_convolutional(_attention())
    assert _reasons(_attention(), RECIPES["e4m3"])["head"] == ""
    assert _reasons(_attention(), RECIPES["e4m3"].replace(keep_first_last=True))["head"] == "last linear, kept in float32"
    for kind in ("attention", "attention by hand", "a product with a weight", "lstm"):
        b = GraphBuilder()
        x = b.input("x", ("B", 4, 4), "float32")
        y = b.node("conv1d", (x, b.constant("w", _random(4, 4, 1))))
        if kind == "lstm":
            y = b.node("lstm", (y, None, None, b.constant("ih", _random(8, 4)), b.constant("hh", _random(8, 2))), {"bias": False})[0]
        elif kind == "attention":
            y = b.node("scaled_dot_product_attention", (y, y, y))
        else:
            y = b.node("matmul", (y, y if kind == "attention by hand" else b.constant("m", _random(4, 4))))
        assert is_convolutional(b.finish(y)) == (kind == "a product with a weight")


def test_every_node_left_alone_has_a_reason() -> None:
    b = GraphBuilder()
    x, w = b.input("x", ("B", 4), "float32"), b.input("w", (4, 4), "float32")
    bad = b.constant("bad", np.full((4, 4), np.nan))
    computed = b.node("linear", (x, w), name="computed")
    nan = b.node("linear", (computed, bad), name="nan")
    skipped = b.node("linear", (nan, b.constant("w1", np.eye(4))), name="skipped", origin="block.3.skip")
    product = b.node("matmul", (skipped, b.constant("w2", np.eye(4))), name="product")
    graph = b.finish(b.node("linear", (product, b.constant("w3", np.eye(4))), name="plain"))
    assert _reasons(graph, RECIPES["e4m3"].replace(skip=("*.skip",))) == {
        "computed": "its weight 'w' is computed at run time",
        "nan": "its weight 'bad' holds NaN or infinity",
        "skipped": "skipped by '*.skip'",
        "product": "recipe e4m3 does not cover matmul",
        "plain": "",
    }
    assert set(_reasons(graph, RECIPES["fp32"]).values()) == {"recipe fp32 quantizes nothing"}


def test_extended_coverage_quantizes_both_operands_of_a_product() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 4, 4), "float32")
    weight = b.constant("w", _random(4, 3))
    graph = b.finish([b.node("matmul", (x, x), name="square"), b.node("matmul", (x, weight), name="product")])
    recipe = RECIPES["e4m3"].adjusted(ops="+matmul")
    result = _quantized(graph, recipe, _random(5, 4, 4))
    assert [n.op for n in result.nodes] == ["quantize", "matmul", "matmul"]
    assert result.nodes[1].inputs == ("x.e4m3fn", "x.e4m3fn")
    w = result.constants["w"]
    assert isinstance(w, QTensor)
    assert w.scale.shape == (1, 3)
    assert "none of its inputs is a weight" in _reasons(graph, recipe.replace(activations=None)).values()


def test_of_an_lstm_the_matrices_are_quantized_and_the_biases_are_not() -> None:
    b = GraphBuilder()
    x = b.input("x", ("T", "B", 3), "float32")
    arrays = {"ih": _random(8, 3), "hh": _random(8, 2), "b_ih": _random(8), "b_hh": _random(8)}
    y = b.node("lstm", (x, None, None, *(b.constant(n, a) for n, a in arrays.items())), name="rnn")
    graph = b.finish(y[0])
    assert _reasons(graph, RECIPES["e4m3"]) == {"rnn": "recipe e4m3 does not cover lstm"}
    result = _quantized(graph, RECIPES["e4m3"].adjusted(ops="+lstm"), [_random(5, 2, 3)])
    assert {n: isinstance(c, QTensor) for n, c in result.constants.items()} == {"ih": True, "hh": True, "b_ih": False, "b_hh": False}
    assert result.constants["ih"].scale.shape == (8, 1)


# -- insertion ---------------------------------------------------------------------------------------------------------


def test_a_value_read_by_several_layers_is_quantized_once() -> None:
    graph = _attention()
    result = _quantized(graph, "e4m3", {"ids": IDS})
    quantizes = [node for node in result.nodes if node.op == "quantize"]
    assert [n.inputs[0] for n in quantizes] == ["embed", "residual"]
    by_name = {n.name: n for n in result.nodes}
    assert [by_name[n].inputs[0] for n in "qkv"] == ["embed.e4m3fn"] * 3
    # The residual still reads float32.
    assert by_name["residual"].inputs == ("attend", "embed")
    assert [n.name for n in result.nodes][:3] == ["embed", "embed.e4m3fn", "q"]


def test_scales_are_those_of_the_ranges_and_exactly_float32() -> None:
    graph = _attention()
    batches = load_batches({"ids": IDS}, inputs=graph.inputs)
    ranges = calibrate(graph, batches, needs(graph, decide(graph, RECIPES["e3m4"])))
    assert [name for name, _ in ranges] == ["embed", "residual"]
    by_name = {name: found for (name, _), found in ranges.items()}
    result = quantize_graph(graph, "e3m4", ranges).graph
    for node in result.nodes:
        if node.op == "quantize":
            scale = node.attrs["scale"]
            assert type(scale) is float
            assert scale == float(np.float32(scale)) == float(scale_for(by_name[str(node.inputs[0])].amax, "e3m4fn"))
            assert node.attrs["format"] == result.values[node.outputs[0]].dtype == "float8_e3m4fn"


def test_a_tied_weight_is_quantized_once_for_embedding_and_head() -> None:
    result = _quantized(_attention(), "e4m3", {"ids": IDS})
    assert isinstance(result.constants["table"], QTensor)
    assert set(result.constants) == {"table", "q.weight", "k.weight", "v.weight"}
    assert result.constants["table"].scale.shape == (11, 1)


def test_a_weight_that_is_also_read_as_float32_is_kept_twice() -> None:
    graph = _attention()
    result = quantize_model(graph, RECIPES["e4m3"].replace(skip=("head",)), {"ids": IDS}).graph
    assert isinstance(result.constants["table"], np.ndarray)
    assert isinstance(result.constants["table.e4m3fn"], QTensor)
    by_name = {n.name: n for n in result.nodes}
    assert (by_name["embed"].inputs[0], by_name["head"].inputs[1]) == ("table.e4m3fn", "table")


def test_a_weight_that_is_an_output_keeps_its_float32_form() -> None:
    b = GraphBuilder()
    x, w = b.input("x", ("B", 4), "float32"), b.constant("w", _random(3, 4))
    graph = b.finish([b.node("linear", (x, w), name="fc"), w])
    result = _quantized(graph, "e4m3", _random(5, 4))
    assert result.nodes[-1].inputs[1] == "w.e4m3fn"
    np.testing.assert_array_equal(result.constants["w"], graph.constants["w"])


def test_two_layers_that_scale_a_weight_differently_get_one_each() -> None:
    b = GraphBuilder()
    x, w = b.input("x", ("B", 4, 4), "float32"), b.constant("w", _random(4, 4, 1))
    outputs = [b.node(op, (x, w), name=op) for op in ("conv1d", "conv_transpose1d")]
    result = _quantized(b.finish(outputs), RECIPES["e4m3"].replace(keep_first_last=False), _random(3, 4, 4))
    assert {n: c.scale.shape for n, c in result.constants.items()} == {"w.e4m3fn": (4, 1, 1), "w.e4m3fn_1": (1, 4, 1)}


def test_names_that_are_taken_are_avoided() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    taken = b.input("x.e4m3fn", ("B", 4), "float32")
    y = b.node("linear", (x, b.constant("w", _random(4, 4))), name="fc")
    result = _quantized(b.finish(b.node("add", (y, taken))), "e4m3", {"x": _random(2, 4), "x.e4m3fn": _random(2, 4)})
    assert result.nodes[0].name == "x.e4m3fn_1"


def test_an_activation_without_a_range_is_refused() -> None:
    graph = _attention()
    with pytest.raises(CalibrationError, match="'residual' has not been calibrated"):
        quantize_graph(
            graph, "e4m3", {need: Range(-1, 1, 1) for need in needs(graph, decide(graph, RECIPES["e4m3"])) if need[0] == "embed"}
        )


def test_weights_have_a_scale_for_each_channel() -> None:
    result = _quantized(_cnn(norms=False), "e4m3", IMAGES)
    original = _cnn(norms=False)
    for name in ("conv2.weight", "fc1.weight"):
        codes = result.constants[name]
        assert isinstance(codes, QTensor)
        weight = original.constants[name]
        amax = np.abs(weight).reshape(len(weight), -1).max(1)
        np.testing.assert_array_equal(codes.scale.reshape(-1), scale_for(amax, codes.format))


# -- the workflow ------------------------------------------------------------------------------------------------------


def test_static_and_dynamic_scales_agree_on_the_calibration_batch_itself() -> None:
    graph = _cnn()
    data = load_batches([IMAGES], inputs=graph.inputs)
    fixed, found = (quantize_model(graph, RECIPES["e4m3"].replace(approach=a), data).graph for a in ("static", "dynamic"))
    assert {n.attrs["scale"] for n in found.nodes if n.op == "quantize"} == {None}
    # The first quantized layer sees the very values it was calibrated with; later ones see what quantization left of them.
    conv2 = [interpret(g.replace(outputs="bn2"), {"image": IMAGES}) for g in (fixed, found)]
    np.testing.assert_array_equal(*conv2)
    exact, static, dynamic = (interpret(g, {"image": IMAGES}) for g in (graph, fixed, found))
    assert sqnr(static, exact) > 20
    assert sqnr(dynamic, exact) > 20
    assert sqnr(static, dynamic) > 20


@pytest.mark.parametrize("name", ["e5m2", "e4m3", "e3m4"])
def test_noise_is_what_the_mantissa_gives(name: str) -> None:
    # Numbers spread evenly over a binade [1, 2): x² is 7/3 on average, the squared error 4**-m / 12: 14.5 + 6 m dB. Normal ones
    # lie lower in their binades: a dB less. Of a product, each factor adds as much noise, which takes 3 dB.
    b = GraphBuilder()
    x = b.input("x", ("B", 256), "float32")
    graph = b.finish(b.node("linear", (x, b.constant("w", _random(64, 256)))))
    (layer,) = quantize_model(graph, name, _random(100, 256)).report.layers
    mantissa = get_format(layer.weights).mantissa_bits
    assert layer.weight_sqnr == pytest.approx(13.7 + 6.02 * mantissa, abs=0.5)
    assert layer.output_sqnr == pytest.approx(10.7 + 6.02 * mantissa, abs=0.7)


def test_weights_that_are_exact_in_the_format_have_infinite_sqnr() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    graph = b.finish(b.node("linear", (x, b.constant("w", 448.0 * np.eye(4))), name="fc"))
    result = quantize_model(graph, "e4m3", np.array([[448.0, 1.0, 0.5, -2.0]], np.float32))
    (layer,) = result.report.layers
    assert layer.weight_sqnr == layer.output_sqnr == math.inf
    assert result.report.as_dict()["layers"][0]["output_sqnr"] == "inf"


def test_e5m2_is_a_direct_cast_that_needs_no_data() -> None:
    graph = _cnn()
    result = quantize_model(graph, RECIPES["e5m2"].replace(keep_first_last=False)).graph
    codes = [c for c in result.constants.values() if isinstance(c, QTensor)]
    assert len(codes) == 4
    assert all(c.scale.shape == () and c.scale == 1 and c.format.name == "float8_e5m2" for c in codes)
    assert [n.attrs["scale"] for n in result.nodes if n.op == "quantize"] == [1.0] * 4
    np.testing.assert_allclose(dequantize(codes[-1]), graph.constants["fc2.weight"], rtol=2**-3)
    assert result.meta["approach"] == "direct"


def test_weights_alone_can_be_quantized() -> None:
    result = quantize_model(_cnn(), RECIPES["e4m3"].replace(activations=None)).graph
    assert not any(n.op == "quantize" for n in result.nodes)
    assert Counter(isinstance(c, QTensor) for c in result.constants.values())[True] == 2


def test_fp32_folds_and_does_nothing_else() -> None:
    graph = _cnn()
    result = quantize_model(graph, "fp32", IMAGES)
    folded = fold_batch_norm(graph)
    assert result.graph.nodes == folded.nodes
    assert result.graph.meta == {"recipe": "fp32"}
    assert result.report.quantized == 0
    assert result.report.output_sqnr == {}


def test_missing_data_and_data_with_nan_are_refused() -> None:
    graph = _cnn()
    with pytest.raises(
        CalibrationError, match=r"scales of activations \(2 here\) on calibration data, and there are none: give some .* --approach dynamic"
    ):
        quantize_model(graph, "e4m3")
    quantize_model(graph, RECIPES["e4m3"].replace(approach="dynamic"))
    bad = IMAGES.copy()
    bad[3, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match=r"input 'image': expected finite numbers, got nan at \[3, 0, 0, 0\]"):
        quantize_model(graph, "e4m3", bad)


def test_meta_says_how_the_model_was_made_and_keeps_what_was_there() -> None:
    graph = _cnn()
    graph = graph.replace(meta={"source": "test"})
    result = quantize_model(graph, "e4m3", load_batches(IMAGES, inputs=graph.inputs, batch_size=4), samples=5)
    assert result.graph.meta == {
        "source": "test",
        "recipe": "e4m3",
        "weights": "float8_e4m3fn",
        "activations": "float8_e4m3fn",
        "approach": "static",
        "calibration_samples": "8",
    }


def test_the_same_input_gives_the_same_graph_and_leaves_the_old_one_alone() -> None:
    graph = _cnn()
    text, weights = str(graph), {n: np.array(c) for n, c in graph.constants.items()}
    first, second = (quantize_model(graph, "e4m3", IMAGES) for _ in range(2))
    assert str(first.graph) == str(second.graph)
    assert first.report == second.report
    assert str(graph) == text
    for name, array in weights.items():
        np.testing.assert_array_equal(graph.constants[name], array)


def test_a_quantized_graph_is_not_quantized_again() -> None:
    once = _quantized(_attention(), "e4m3", {"ids": IDS})
    decisions = decide(once, RECIPES["e4m3"])
    assert {d.reason for d in decisions} == {
        "its weight 'table' is float8_e4m3fn, not float32",
        "its x 'embed.e4m3fn' is float8_e4m3fn, not float32",
        "its x 'residual.e4m3fn' is float8_e4m3fn, not float32",
        "recipe e4m3 does not cover scaled_dot_product_attention",
        "recipe e4m3 does not cover add",
    }
    assert insert(once, decisions, {}).nodes == once.nodes


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_says_it_all() -> None:
    told: list[tuple[str, int, int | None]] = []
    graph = _cnn()
    batches = load_batches(IMAGES, inputs=graph.inputs, batch_size=4)
    result = quantize_model(graph, "e4m3", batches, report_batches=2, progress=lambda *a: told.append(a))
    report = result.report
    assert told == [("calibrating", i, 3) for i in (1, 2, 3)] + [("comparing", i, 2) for i in (1, 2)]
    assert report.samples == 8
    conv1, conv2, _, fc2 = report.layers
    assert (conv2.name, conv2.op, conv2.origin, conv2.reason) == ("conv2", "conv2d", "features.2", "")
    assert (conv2.weights, conv2.weight_scales) == ("float8_e4m3fn", "channel 0")
    assert (conv2.activations, conv2.activation_scales) == ("float8_e4m3fn", "static")
    # 6 x 2 x 3 x 3 weights and 6 biases; then a byte each, and 6 scales.
    assert (conv2.bytes_before, conv2.bytes_after) == (108 * 4 + 24, 108 + 24 + 24)
    assert (conv1.weights, conv1.weight_sqnr, conv1.bytes_before) == ("", None, conv1.bytes_after)
    # Nothing is quantized before the first layer's output; everything is before the last one's.
    assert conv1.output_sqnr == math.inf
    folded = fold_batch_norm(graph)
    exact, got = (interpret(g, {"image": IMAGES[:8]}) for g in (folded, result.graph))
    assert fc2.output_sqnr == pytest.approx(sqnr(got, exact), abs=0.05)
    assert report.output_sqnr == {"output": fc2.output_sqnr}
    assert report.quantized == 2
    constants = [folded.constants, result.graph.constants]
    assert [report.bytes_before, report.bytes_after] == [sum(c.nbytes for c in cs.values()) for cs in constants]


def test_the_report_can_be_read_by_people_and_machines() -> None:
    report = quantize_model(_cnn(), "e4m3", IMAGES).report
    # What looks like markup to the terminal library is a name like any other.
    last = dataclasses.replace(report.layers[-1], name="head[red]")
    report = dataclasses.replace(report, layers=(*report.layers[:-1], last))
    plain = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert plain["quantized"] == 2
    assert [layer["name"] for layer in plain["layers"]] == ["conv1", "conv2", "fc1", "head[red]"]
    assert plain["layers"][0]["weight_sqnr"] is None
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(report.table())
    text = capture.get()
    for word in (
        "recipe e4m3: 2 of 4 layers quantized",
        "e4m3fn channel 0 x e4m3fn static",
        "first convolution",
        "exact",
        "whole model",
        "head[red]",
    ):
        assert word in text


def test_shared_weights_count_once_in_the_total() -> None:
    report = quantize_model(_attention(), RECIPES["e4m3"].replace(approach="dynamic")).report
    table = 11 * 8 * 4
    assert report.bytes_before == table + 3 * 8 * 8 * 4
    assert [layer.bytes_before for layer in report.layers if layer.name in ("embed", "head")] == [table, table]
    assert all(layer.output_sqnr is None for layer in report.layers)
    assert {layer.activation_scales for layer in report.layers} == {"", "dynamic"}
