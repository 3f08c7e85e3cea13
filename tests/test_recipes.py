"""Recipes: as files, on the command line, and what they decide for each node where several of their parts speak of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fp8np._toml import Document, read_document
from fp8np.build import GraphBuilder
from fp8np.cli import main
from fp8np.errors import FormatError, RecipeError
from fp8np.formats import FORMATS
from fp8np.graph import Graph
from fp8np.ptq.assign import Decision, decide, overridden
from fp8np.ptq.recipe import APPROACHES, COVERAGE, EXTENDED_OPS, RECIPES, STANDARD_OPS, Override, Recipe, get_recipe
from fp8np.ptq.recipe_file import find_recipe, read_recipe, recipe_table, recipe_text, with_settings
from fp8np.ptq.workflow import quantize_model
from fp8np.scheme import PerBlock, PerChannel, PerTensor, PerToken

RNG = np.random.default_rng(0)


def read(folder: Path, text: str, name: str = "mine.toml") -> Recipe:
    (folder / name).write_text(text, encoding="utf-8")
    return read_recipe(folder / name)


# -- files ------------------------------------------------------------------------------------------------------------

NAMED = [*RECIPES, *(f"{name}-{how}" for name in RECIPES for how in ("static", "dynamic") if name != "fp32")]
signed = st.sampled_from(["e4m3", "e3m4", "e5m2", "int8", "float8_e4m3@11", *(f.name for f in FORMATS.values() if f.signed)])
granularities = st.one_of(
    st.sampled_from(["tensor", "channel"]),
    st.integers(1, 4096).map("group {}".format),
    st.tuples(st.integers(1, 999), st.integers(1, 999)).map(lambda nm: f"block {nm[0]}x{nm[1]}"),
)
words = st.text(min_size=1, max_size=12)
calibrators = st.one_of(
    st.sampled_from(["max", "mse", "kl", "percentile", "moving_average"]),
    st.floats(1e-3, 100).map("percentile {}".format),
    st.floats(0, 0.999).map("moving_average {}".format),
)


@st.composite
def overrides(draw: st.DrawFn) -> Override:
    about = draw(st.sampled_from([{"match": draw(words)}, {"op": draw(st.sampled_from(sorted(EXTENDED_OPS)))}]))
    if draw(st.booleans()):
        return Override(**about, keep=True)
    approach = draw(st.sampled_from([None, *APPROACHES]))
    weights = draw(st.none() | signed | st.just("fp32"))
    said = {
        "keep": draw(st.sampled_from([None, False])),
        "weights": weights,
        "activations": draw(st.none() | st.just("fp32") | (st.nothing() if weights == "fp32" else signed)),
        "approach": approach,
        "weight_granularity": draw(st.none() | granularities),
        "activation_granularity": draw(st.sampled_from(["tensor", None] + ["token"] * (approach not in ("static", "direct")))),
    }
    if not any(value is not None for value in said.values()):
        said["keep"] = False
    return Override(**about, **said)  # type: ignore[arg-type]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    approach = draw(st.sampled_from(APPROACHES))
    weights = draw(st.none() | signed)
    return Recipe(
        name=draw(words),
        weights=weights,  # type: ignore[arg-type]
        activations=None if weights is None else draw(st.none() | signed),  # type: ignore[arg-type]
        approach=approach,
        ops=frozenset(draw(st.sampled_from([*COVERAGE.values(), *(frozenset({op, "lstm"}) for op in sorted(EXTENDED_OPS)), frozenset()]))),
        keep_first_last=draw(st.sampled_from(["auto", True, False])),
        skip=tuple(draw(st.lists(words, max_size=3))),
        overrides=tuple(draw(st.lists(overrides(), max_size=3))),
        weight_granularity=draw(granularities),
        activation_granularity=draw(st.sampled_from(["tensor"] + ["token"] * (approach not in ("static", "direct")))),
        calibrator=draw(calibrators),
        weight_calibrator=draw(st.sampled_from(["max", "mse"])),
        power_of_two=draw(st.booleans()),
        samples=draw(st.none() | st.integers(1, 10**6)),
        batch_norm=draw(st.integers(0, 10**6)),
        batch_norm_paired=draw(st.booleans()),
        equalize=draw(st.booleans()),
        smooth=draw(st.none() | st.just("auto") | st.floats(0, 1) | st.integers(0, 1)),
        rounding=draw(st.sampled_from(["nearest", "adaptive"])),
        correct_bias=draw(st.booleans()),
        candidates=tuple(draw(st.lists(signed.filter(lambda name: name != "int8"), max_size=3))),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", NAMED)
def test_a_named_recipe_is_the_file_that_shows_it(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    assert read(tmp_path, recipe_text(recipe), "other.toml") == recipe
    assert read(tmp_path, json.dumps(recipe_table(recipe)), "other.json") == recipe
    assert recipe.name == name


@settings(deadline=None, max_examples=80)
@example(recipe=Recipe('\x7f \\ "quoted"\n\u2028', None, None))
@given(recipe=recipes())
def test_a_recipe_is_the_file_that_shows_it(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = recipe_text(recipe)
    again = read(folder, text)
    assert again == recipe
    assert recipe_text(again) == text
    assert read(folder, json.dumps(recipe_table(recipe)), "mine.json") == recipe


def test_a_file_says_what_differs_from_its_base(tmp_path: Path) -> None:
    text = """
base = "mixed-dynamic"
activation_granularity = "token"
weight_granularity = "group 64"
ops = ["+matmul", "-embedding"]
skip = ["head*"]
samples = false

[[override]]   # one node
match = "encoder.0"
keep = true

[[override]]
op = "matmul"
weights = "e5m2"
"""
    recipe = read(tmp_path, text)
    base = RECIPES["mixed"]
    assert recipe == base.replace(
        name="mine",
        approach="dynamic",
        activation_granularity="token",
        weight_granularity="group 64",
        ops=STANDARD_OPS - {"embedding"} | {"matmul"},
        skip=("head*",),
        samples=None,
        overrides=(Override(match="encoder.0", keep=True), Override(op="matmul", weights="e5m2")),
    )
    assert [o.place for o in recipe.overrides] == ["mine.toml:9", "mine.toml:13"]
    # Without a base nothing is quantized, unless it says so; and a byte order mark is no part of a key.
    assert read(tmp_path, "\ufeffequalize = true\n") == RECIPES["fp32"].replace(name="mine", equalize=True)
    assert read(tmp_path, 'name = "a"\nweights = "e3m4"\n') == Recipe("a", RECIPES["e3m4"].weights, None)


def test_json_says_the_same_and_null_is_nothing(tmp_path: Path) -> None:
    text = """{"base": "e4m3", "smooth": null, "samples": null, "override": [
        {"match": "a", "keep": true},
        {"op": "linear", "approach": "dynamic"}]}"""
    recipe = read(tmp_path, text, "mine.json")
    assert (recipe.smooth, recipe.samples) == (None, None)
    assert [(o.subject, o.place) for o in recipe.overrides] == [("'a'", "mine.json:2"), ("op linear", "mine.json:3")]


BASE = 'base = "e4m3"\n'
WRONG = [
    ("weihgts = 'e4m3'", 1, "unknown key 'weihgts'; known: activation_granularity, activations, approach, base"),
    (BASE + "a.b = 1", 2, "unknown key 'a'"),
    (BASE + "[a]\nb = 1", 2, "unknown key 'a'"),
    ("base = 'e4m4'", 1, "unknown recipe 'e4m4'; did you mean e4m3"),
    ("base = 3", 1, "expected base to be a text, got 3"),
    (BASE + "name = ''", 2, "expected name to be a text, it is empty"),
    (BASE + "weights = 'e4m9'", 2, "weights: unknown format 'e4m9'; did you mean float8_e4m3"),
    (BASE + "weights = ['e4m3']", 2, "weights: unknown format"),
    (BASE + "activations = 8", 2, "activations: unknown format '8'"),
    (BASE + "weights = 'fp32'", 2, "weights has no format"),
    (BASE + "weights = 'float8_e8m0fnu'", 2, "weights need a format with a sign and a zero"),
    (BASE + "approach = 'sometimes'", 2, "expected approach to be one of static, dynamic, direct, auto, got 'sometimes'"),
    (BASE + "approach = ['static']", 2, "expected approach to be one of"),
    (BASE + "ops = 'linear'", 2, "expected ops to be a list, got 'linear'"),
    (BASE + "ops = [\n'linear',\n'linaer']", 2, "'linaer' is not an op that can be quantized; these can: .*did you mean linear"),
    (BASE + "ops = ['relu']", 2, "'relu' is not an op that can be quantized"),
    (BASE + "ops = ['linear', '+matmul']", 2, "either every name has"),
    (BASE + "keep_first_last = 1", 2, "expected keep_first_last to be 'auto', True or False, got 1"),
    (BASE + "skip = [3]", 2, "expected skip to be a text, got 3"),
    (
        BASE + "weight_granularity = 'group 0'",
        2,
        "expected weight_granularity to be 'tensor', 'channel', 'group N' or 'block NxM', got 'group 0'",
    ),
    (BASE + "weight_granularity = 'block 2'", 2, "'block NxM', got 'block 2'"),
    (BASE + "activation_granularity = 'channel'", 2, "expected activation_granularity to be 'tensor' or 'token'"),
    (BASE + "samples = 10\nactivation_granularity = 'token'", 3, "'token' needs approach = 'dynamic'"),
    (BASE + "calibrator = 'max'\nweight_calibrator = 'kl'", 3, "expected weight_calibrator to be 'max' or 'mse', got 'kl'"),
    (BASE + "calibrator = 'max'\nweight_calibrator = 'best'", 3, "weight_calibrator: unknown calibrator 'best'"),
    (BASE + "calibrator = 'percentile 101'", 2, "calibrator: .*out of range"),
    (BASE + "power_of_two = 1", 2, "expected power_of_two to be true or false, got 1"),
    (BASE + "samples = 0", 2, "expected samples to be a whole number from 1 on, got 0"),
    (BASE + "samples = true", 2, "expected samples to be a whole number from 1 on, got True"),
    (BASE + "batch_norm = -1", 2, "expected batch_norm to be a whole number from 0 on"),
    (BASE + "batch_norm_paired = 'no'", 2, "expected batch_norm_paired to be true or false"),
    (BASE + "equalize = 'yes'", 2, "expected equalize to be true or false"),
    (BASE + "smooth = 1.5", 2, "expected smooth to be a number from 0 to 1, or 'auto', got 1.5"),
    (BASE + "smooth = nan", 2, "expected smooth"),
    (BASE + "smooth = true", 2, "expected smooth"),
    (BASE + "rounding = 'up'", 2, "expected rounding to be 'nearest' or 'adaptive', got 'up'"),
    (BASE + "correct_bias = 'all'", 2, "expected correct_bias to be true or false"),
    (BASE + "candidates = ['e4m3', 'fp32']", 2, "expected candidates to be formats"),
    (BASE + "candidates = ['e4m3', 'int8']", 2, "candidates are formats of floats"),
    (BASE + "candidates = ['e4m3', 'e9']", 2, "candidates: unknown format 'e9'"),
    (BASE + "override = 'fc'", 2, "expected override to be a list"),
    (BASE + "override = ['fc']", 2, "expected override to be a table, got 'fc'"),
    (BASE + "override = [\n{match = 'fc'}]", 2, "says nothing about 'fc'"),
    (BASE + "\n[[override]]\nmatch = 'fc'\nwieghts = 'e4m3'", 5, "unknown key 'wieghts'; known: activation_granularity"),
    (BASE + "[[override]]\nmatch = 'fc'", 2, "says nothing about 'fc'; give keep = true, or one of weights"),
    (BASE + "[[override]]\nkeep = true", 2, "expected either match = 'PATTERN' or op = 'OP'"),
    (BASE + "[[override]]\nkeep = true\nop = 'linear'\nmatch = 'fc'", 5, "expected either match = 'PATTERN' or op = 'OP'"),
    (BASE + "[[override]]\nmatch = 'fc'\nkeep = 'yes'", 4, "expected keep to be true or false, got 'yes'"),
    (
        BASE + "[[override]]\nmatch = 'fc'\nkeep = true\nweights = 'e4m3'",
        4,
        "contradicts itself: keep = true leaves 'fc' in float32, weights",
    ),
    (BASE + "[[override]]\nmatch = 'a'\nkeep = true\n[[override]]\nmatch = 'fc'\nweights = 'e4m9'", 7, "weights: unknown format 'e4m9'"),
    (BASE + "[[override]]\nmatch = 'fc'\nweights = 'fp32'\nactivations = 'e4m3'", 5, "activations are quantized where they meet quantized"),
    (BASE + "[[override]]\nop = 'linaer'\nkeep = true", 3, "'linaer' is not an op that can be quantized"),
    (BASE + "[[override]]\nmatch = 'fc'\nweight_granularity = 'rows'", 4, "expected weight_granularity to be"),
    (BASE + "[[override]]\nmatch = 'fc'\napproach = 'static'\nactivation_granularity = 'token'", 5, "needs approach = 'dynamic'"),
    ("base = 'e4m3", 1, "not TOML: "),
    (BASE + BASE, 2, "not TOML: "),
]


@pytest.mark.parametrize(("text", "line", "message"), WRONG, ids=range(len(WRONG)))
def test_a_message_begins_with_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^mine.toml:{line}: .*{message}"):
        read(tmp_path, text)
    # A file whose name is a key's is not taken for that key.
    with pytest.raises(RecipeError, match=f"^base.toml:{line}: "):
        read(tmp_path, text, "base.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"base": "e4m3",\n "approach": null}', "mine.json:2: .*expected approach to be one of .* got None"),
        ('{"base": "e4m3",\n\n "weight_granularity": null}', "mine.json:3: .*expected weight_granularity .* got None"),
        (
            '{"base": "e4m3",\n "override": [{"match": "a",\n "keep": true}, {"op": "linear",\n "keep": null}]}',
            "mine.json:4: expected keep",
        ),
        ('{"base": "e4m3",\n "smooth": NaN}', "mine.json:2: .*expected smooth"),
        ('{"base": "e4m3",\n}', "mine.json:2: not JSON: "),
        ("[1]", "mine.json: expected an object, got list"),
        ("[" * 100_000, "mine.json: tables within tables too deep"),
    ],
)
def test_json_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}"):
        read(tmp_path, text, "mine.json")


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    for name in ("nothing.toml", "nothing.json"):
        with pytest.raises(RecipeError, match=f"{name}: No such file"):
            find_recipe(str(tmp_path / name))
        (tmp_path / name).write_bytes(b"base = '\xff'")
        with pytest.raises(RecipeError, match=f"^{name}: not text in UTF-8"):
            find_recipe(str(tmp_path / name))
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        with pytest.raises(RecipeError, match=f"{name}: Is a directory"):
            find_recipe(str(tmp_path / name))


def document(folder: Path, text: str, name: str = "a.toml") -> Document:
    (folder / name).write_text(text, encoding="utf-8")
    return read_document(folder / name, RecipeError)


def test_lines_of_keys(tmp_path: Path) -> None:
    # U+2028 in a comment ends no line in TOML.
    found = document(
        tmp_path,
        'a = 1  # \u2028\n"b.c" = 2\nd.e = 3\n[ f . g ]  # h\nh = [\n  ["i"],\n]\n'
        "[[j]]\nk = 1\n[j.l]\nm = 1\n[[j]]\n[[j.n]]\no = 1\n[[j.n]]\no = 2\n",
    )
    lines = {
        ("a",): 1,
        ("b.c",): 2,
        ("d",): 3,
        ("d", "e"): 3,
        ("f",): 4,
        ("f", "g"): 4,
        ("f", "g", "h"): 5,
        ("j",): 8,
        ("j", 0): 8,
        ("j", 0, "k"): 9,
        ("j", 0, "l"): 10,
        ("j", 0, "l", "m"): 11,
        ("j", 1): 12,
        ("j", 1, "n"): 13,
        ("j", 1, "n", 0): 13,
        ("j", 1, "n", 0, "o"): 14,
        ("j", 1, "n", 1): 15,
        ("j", 1, "n", 1, "o"): 16,
    }
    assert found.lines == lines
    for path in lines:
        value: Any = found.data
        for part in path:
            value = value[part]
    assert found.place("j", 1, "n", 1, "p") == "a.toml:15"
    assert found.place("z") == found.place() == "a.toml"


def test_lines_of_keys_in_json(tmp_path: Path) -> None:
    found = document(tmp_path, '{"a": "\\"b\\": 1",\n"b": [1,\n {"c": 1,\n "a": {"\\u00e9": 2}},\n {}]}', "a.json")
    assert found.lines == {("a",): 1, ("b",): 2, ("b", 1): 3, ("b", 1, "c"): 3, ("b", 1, "a"): 4, ("b", 1, "a", "é"): 4}


# -- names and settings -----------------------------------------------------------------------------------------------


def test_a_name_with_an_approach() -> None:
    for name in ("e4m3", "e3m4", "mixed", "e5m2", "int8", "w8", "auto"):
        for approach in APPROACHES:
            assert get_recipe(f"{name}-{approach}") == RECIPES[name].replace(name=f"{name}-{approach}", approach=approach)
    for wrong in ("fp32-dynamic", "e4m3-sometimes", "-dynamic", "e4m3-dynamic-static"):
        with pytest.raises(RecipeError, match=f"unknown recipe '{wrong}'"):
            get_recipe(wrong)


def test_settings_of_a_command_line() -> None:
    recipe = with_settings(
        get_recipe("e4m3"),
        {
            "smooth": "0.5",
            "ops": "+matmul, -embedding",
            "calibrator": "percentile 99.9",
            "samples": "false",
            "activations": "fp32",
            "skip": "a,b*",
            "candidates": "",
            "equalize": "true",
            "batch_norm": "100",
        },
    )
    assert recipe == RECIPES["e4m3"].replace(
        smooth=0.5,
        ops=STANDARD_OPS - {"embedding"} | {"matmul"},
        calibrator="percentile 99.9",
        samples=None,
        activations=None,
        skip=("a", "b*"),
        equalize=True,
        batch_norm=100,
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("smoothe", "1", "--set smoothe: unknown key 'smoothe'; known: activation_granularity"),
        ("smooth", "2", "expected smooth to be a number from 0 to 1"),
        ("smooth", "half", "expected smooth .* got 'half'"),
        ("ops", "linear,+matmul", "--set ops: .*either every name has"),
        ("ops", "+matmull", "--set ops: 'matmull' is not an op that can be quantized; .*did you mean matmul"),
        ("name", "mine", "--set name: write a recipe file"),
        ("base", "e4m3", "--set base: write a recipe file"),
        ("override", "[]", "--set override: write a recipe file"),
        ("weights", "[1]", r"weights: unknown format '\[1\]'"),
        ("calibrator", "1", "calibrator: expected a calibrator, got 1"),
    ],
)
def test_settings_that_make_no_sense(key: str, value: str, message: str) -> None:
    with pytest.raises((RecipeError, FormatError), match=message):
        with_settings(get_recipe("e4m3"), {key: value})


def invoke(*args: Any) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def test_the_command_lists_recipes() -> None:
    table = invoke("recipe", "list").stdout
    assert all(name in table for name in RECIPES)
    assert "e4m3 or e3m4 or e5m2" in table
    assert [row["name"] for row in json.loads(invoke("recipe", "list", "--json").stdout)] == list(RECIPES)


def test_the_command_writes_a_recipe_that_others_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = with_settings(get_recipe("mixed-dynamic"), {"smooth": "0.5", "ops": "extended"})
    arguments = ("recipe", "show", "mixed-dynamic", "--set", "smooth=0.5", "--set", "ops=extended")
    assert invoke(*arguments, "-o", "mine.toml").output == "wrote mine.toml\n"
    assert find_recipe("mine.toml") == wanted
    assert invoke(*arguments).stdout == Path("mine.toml").read_text() == recipe_text(wanted)
    assert "SmoothQuant: 0 to 1" in recipe_text(wanted)
    assert 'ops = ["extended"]' in recipe_text(wanted)
    Path("mine.json").write_text(invoke(*arguments, "--json").stdout)
    assert find_recipe("mine.json") == wanted
    assert json.loads(invoke("recipe", "show", "mine.toml", "--json").stdout) == recipe_table(wanted)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "e4m4"), "unknown recipe 'e4m4'; did you mean e4m3"),
        (("show", "gone.toml"), "recipe gone.toml: No such file"),
        (("show", "bad.toml"), "bad.toml:2: .*expected rounding"),
        (("show", "e4m3", "--set", "smooth"), "expected KEY=VALUE, e.g. calibrator=mse, got 'smooth'"),
        (("show", "e4m3", "--set", "=1"), "expected KEY=VALUE"),
        (("show", "e4m3", "--set", "depth=1"), "--set depth: unknown key"),
        (("show", "e4m3", "-o", "no/such/folder.toml"), "no/such"),
    ],
)
def test_the_command_fails_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("base = 'e4m3'\nrounding = 'up'\n")
    result = invoke("recipe", *args)
    assert result.exit_code != 0
    assert re.search(message, " ".join(result.stderr.split())), result.stderr


def test_convert_takes_a_recipe_file_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = RNG.standard_normal((20, 4)).astype(np.float32)
    np.save("x.npy", x)
    Path("mine.toml").write_text("base = 'e4m3'\n[[override]]\nmatch = 'second'\nweights = 'e5m2'\n")
    # What the converters read is another test's business.
    monkeypatch.setitem(sys.modules, "fp8np_converters.source", SimpleNamespace(read_source=lambda *_, **__: layers()))
    arguments = ("convert", "net", "-o", "net.safetensors", "--calibration", "x.npy", "--json", "report.json", "--recipe", "mine.toml")
    result = invoke(*arguments, "--set", "weights=e3m4", "--set", "power_of_two=true")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("report.json").read_text())
    assert [layer["weights"] for layer in report["layers"][:2]] == ["float8_e3m4fn", "float8_e5m2"]
    assert report["recipe"] == "mine"
    assert report["layers"][0]["activation_scales"] == "static 2^n"
    Path("mine.toml").write_text("base = 'e4m3'\n\n[[override]]\nmatch = 'thrid'\nweights = 'e5m2'\n")
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "mine.toml:3: no quantizable node matches 'thrid'" in " ".join(result.stderr.split())


# -- decisions --------------------------------------------------------------------------------------------------------


def layers() -> Graph:
    """Three linear layers, two of which come from one module, and a product."""
    b = GraphBuilder()
    x = b.input("x", ("B", 4), "float32")
    for name, origin in (("first", "net.block"), ("second", "net.block"), ("third", "net.layers[2]")):
        x = b.node("linear", (x, b.constant(f"{name}.w", RNG.standard_normal((4, 4)))), name=name, origin=origin)
    return b.finish(b.node("matmul", (x, b.constant("product.w", RNG.standard_normal((4, 4)))), name="product", origin="net.product"))


def decided(graph: Graph, recipe: Recipe, *said: Override) -> dict[str, Decision]:
    return {d.node: d for d in decide(graph, recipe.replace(overrides=said))}


def formats(decision: Decision) -> list[str]:
    return [scheme.format.name.removeprefix("float8_") for scheme in decision.schemes.values()]


def test_a_name_counts_before_an_origin_before_a_pattern_before_an_op() -> None:
    graph, e4m3 = layers(), RECIPES["e4m3"]
    said = [
        Override(op="linear", weights="float8_e4m3", activations="float8_e4m3", approach="dynamic"),
        Override(match="net.*", weights="e5m2", weight_granularity="tensor"),
        Override(match="net.block", weights="e3m4"),
        Override(match="second", weights="float8_e4m3fnuz"),
    ]
    # In whatever order they are written.
    for order in (said, said[::-1], said[2:] + said[:2]):
        found = decided(graph, e4m3, *order)
        assert {name: formats(d) for name, d in found.items()} == {
            "first": ["e4m3", "e3m4fn"],
            "second": ["e4m3", "e4m3fnuz"],
            "third": ["e4m3", "e5m2"],
            "product": ["e4m3fn", "e5m2"],
        }
        # What a stronger one does not speak of, a weaker one says; and what none says, the recipe.
        for name, d in found.items():
            x, w = d.schemes.values()
            assert w.granularity == PerTensor()
            assert x.dynamic == (name != "product")


def test_overrides_that_contradict_each_other() -> None:
    graph, e4m3 = layers(), RECIPES["e4m3"]
    one, other = (Override(match=p, weights=f, place=f"a.toml:{i}") for p, f, i in (("f*", "e5m2", 3), ("*t", "e3m4", 7)))
    with pytest.raises(
        RecipeError, match=r"^a.toml:7: '\*t' says weights = 'e3m4' of node 'first'.*but 'f\*' \(a.toml:3\) says 'e5m2'; name"
    ):
        decided(graph, e4m3, one, other)
    # Unless something stronger decides... which does not make them agree.
    with pytest.raises(RecipeError, match="first"):
        decided(graph, e4m3, one, other, Override(match="second", weights="e5m2"))
    assert decided(graph, e4m3, one, Override(match="*t", weights="e5m2"))["first"].schemes
    with pytest.raises(RecipeError, match=r"^a.toml:3: 'f\*' quantizes node 'first'.*but '\*t' \(b.toml:2\) keeps it in float32; drop one"):
        decided(graph, e4m3, one, Override(match="*t", keep=True, place="b.toml:2"))
    with pytest.raises(RecipeError, match=r"override: op linear says keep = False of node 'first'.*but op linear says True"):
        decided(graph, e4m3, Override(op="linear", keep=True), Override(op="linear", keep=False))


def test_keeping_and_quantizing_by_rank() -> None:
    graph, e4m3 = layers(), RECIPES["e4m3"]
    keep, back = Override(op="linear", keep=True), Override(match="second", weights="e5m2")
    found = decided(graph, e4m3, keep, back)
    assert {n: d.reason for n, d in found.items() if d.reason} == {
        "first": "kept in float32 by an override",
        "third": "kept in float32 by an override",
        "product": "recipe e4m3 does not cover matmul",
    }
    assert formats(found["second"]) == ["e4m3fn", "e5m2"]
    # The other way round: a name keeps what a type of op quantizes.
    found = decided(graph, e4m3, Override(op="linear", weights="e5m2"), Override(match="second", keep=True))
    assert [n for n, d in found.items() if d.schemes] == ["first", "third"]
    # How scales are found says nothing about whether there are any.
    found = decided(graph, e4m3, Override(match="f*", keep=True), Override(match="*", approach="dynamic"))
    assert found["first"].reason == "kept in float32 by an override"
    assert found["second"].schemes[0].dynamic
    assert not found["product"].schemes


def test_naming_a_format_covers_what_the_recipe_leaves_alone() -> None:
    graph = layers()
    for recipe in (RECIPES["e4m3"].replace(skip=("*",), keep_first_last=True), RECIPES["e4m3"].replace(ops=frozenset({"lstm"}))):
        assert not any(d.schemes for d in decided(graph, recipe).values())
        for said in (Override(match="third", weights="e4m3"), Override(match="net.layers[2]", keep=False)):
            assert [n for n, d in decided(graph, recipe, said).items() if d.schemes] == ["third"]
        assert not any(d.schemes for d in decided(graph, recipe, Override(match="third", weight_granularity="tensor")).values())
    said = Override(op="matmul", weights="e4m3", activations="e5m2")
    assert formats(decided(graph, RECIPES["fp32"], said)["product"]) == ["e5m2", "e4m3fn"]
    assert formats(decided(graph, RECIPES["fp32"], Override(op="matmul", weights="e4m3"))["product"]) == ["e4m3fn"]
    assert decided(graph, RECIPES["e4m3"], Override(match="first", weights="fp32"))["first"].reason == "kept in float32 by an override"
    with pytest.raises(RecipeError, match=r"^a.toml:2: quantizes activations of node 'product'.* whose weights have no format"):
        decided(graph, RECIPES["fp32"], Override(op="matmul", activations="e4m3", place="a.toml:2"))


def test_overrides_and_patterns_that_match_nothing() -> None:
    graph, e4m3 = layers(), RECIPES["e4m3"]
    with pytest.raises(RecipeError, match=r"^a.toml:4: no quantizable node matches 'fourth'; `fp8np inspect --graph` lists"):
        decided(graph, e4m3, Override(match="fourth", keep=True, place="a.toml:4"))
    with pytest.raises(RecipeError, match=r"^recipe 'e4m3': no quantizable node matches '\*\.x' \(to be skipped\)"):
        decided(graph, e4m3.replace(skip=("*.x",)))
    with pytest.raises(RecipeError, match=r"^recipe 'e4m3': 'lniear' is not an op"):
        decided(graph, e4m3.replace(ops=frozenset({"lniear"})))
    with pytest.raises(RecipeError, match=r"^recipe 'e4m3': 'lniear' is not an op"):
        decided(graph, e4m3, Override(op="lniear", keep=True))
    # A recipe for many models may speak of ops that this one has not.
    assert decided(graph, e4m3, Override(op="lstm", weights="e4m3"))["first"].schemes


def test_patterns_know_stars_and_question_marks_alone() -> None:
    graph = layers()

    def matched(pattern: str) -> list[str]:
        return [d.node for d in decide(graph, RECIPES["e4m3"].replace(ops=EXTENDED_OPS, skip=(pattern,))) if "skipped" in d.reason]

    assert matched("net.layers[2]") == matched("net.layers[?]") == matched("*[2]") == ["third"]
    assert matched("?ir?t") == ["first"]
    assert matched("net.*") == ["first", "second", "third", "product"]
    assert matched("net.block") == ["first", "second"]
    with pytest.raises(RecipeError, match="no quantizable node matches"):
        matched("[fs]*")
    assert overridden(graph.nodes[2], (Override(match="net.layers[2]", weights="e5m2"),)) == {"weights": "e5m2"}


def test_first_and_last_layers_and_overrides() -> None:
    graph = layers()
    kept = RECIPES["e4m3"].replace(keep_first_last=True)
    assert decided(graph, kept)["third"].reason == "last linear, kept in float32"
    assert formats(decided(graph, kept, Override(match="third", activations="e5m2"))["third"]) == ["e5m2", "e4m3fn"]
    assert decided(graph, kept, Override(match="third", approach="dynamic"))["third"].reason == "last linear, kept in float32"
    assert decided(graph, RECIPES["e4m3"])["third"].schemes


def test_scales_of_tokens_need_each_run() -> None:
    graph, tokens = layers(), Override(op="linear", activation_granularity="token", place="a.toml:5")
    with pytest.raises(RecipeError, match=r"^a.toml:5: node 'first'.*: a token's scale is found at each run.* which is 'static'"):
        decided(graph, RECIPES["e4m3"], tokens)
    found = decided(graph, get_recipe("e4m3-dynamic"), tokens)
    assert [d.schemes[0].granularity for d in found.values() if d.schemes] == [PerToken()] * 3
    both = Override(match="first", approach="dynamic", activation_granularity="token")
    found = decided(graph, RECIPES["e4m3"], both)
    assert [d.schemes[0].dynamic for d in found.values() if d.schemes] == [True, False, False]
    for wrong in ("static", "direct"):
        with pytest.raises(RecipeError, match="override: a token's scale"):
            Override(match="first", approach=wrong, activation_granularity="token")
    # auto: dynamic where there is attention, static in a convolutional network.
    assert decided(graph, RECIPES["e4m3"].replace(approach="auto", activation_granularity="token"))["first"].schemes[0].dynamic


def test_granularities_of_weights() -> None:
    b = GraphBuilder()
    x, w = b.input("x", ("B", 8, 6), "float32"), RNG.standard_normal
    nodes = [
        b.node("linear", (x, b.constant("w", w((5, 6)))), name="linear"),
        b.node("matmul", (x, b.constant("w", w((6, 5)))), name="product"),
        b.node("conv1d", (x, b.constant("w", w((5, 8, 3)))), name="conv"),
        b.node("conv_transpose1d", (x, b.constant("w", w((8, 5, 3)))), name="turned"),
        b.node("conv1d", (x, b.constant("w", w((8, 1, 3)))), {"groups": 8}, name="depthwise"),
    ]
    graph = b.finish(nodes)
    wanted: dict[str, list[Any]] = {
        "tensor": [PerTensor()] * 5,
        "channel": [PerChannel(0), PerChannel(-1), PerChannel(0), PerChannel(1), PerChannel(0)],
        "group 2": [PerBlock((1, 2)), PerBlock((2, 1)), PerBlock((1, 2, 0)), PerBlock((2, 1, 0)), PerChannel(0)],
        "group 8": [PerChannel(0), PerChannel(-1), PerChannel(0), PerChannel(1), PerChannel(0)],
        "block 4x2": [PerBlock((4, 2)), PerBlock((2, 4)), PerChannel(0), PerChannel(1), PerChannel(0)],
    }
    for words, cuts in wanted.items():
        recipe = RECIPES["e4m3"].replace(ops=EXTENDED_OPS, keep_first_last=False, weight_granularity=words)
        assert [list(d.schemes.values())[-1].granularity for d in decide(graph, recipe)] == cuts, words
        report = quantize_model(graph, recipe.replace(approach="dynamic"), w((3, 8, 6)).astype(np.float32)).report
        assert all(layer.weight_sqnr is not None and layer.weight_sqnr > 25 for layer in report.layers)
    # Direct casts have one scale, which is 1.
    assert {s.granularity for d in decide(graph, recipe.replace(approach="direct")) for s in d.schemes.values()} == {PerTensor()}


def test_groups_of_a_stack_of_matrices_have_a_scale_for_each_column() -> None:
    b = GraphBuilder()
    x = b.input("x", (2, "B", 8), "float32")
    graph = b.finish(b.node("matmul", (x, b.constant("w", RNG.standard_normal((2, 8, 5)))), name="product"))
    (decision,) = decide(graph, RECIPES["e4m3"].replace(ops=EXTENDED_OPS, weight_granularity="group 4"))
    assert decision.schemes[1].granularity == PerBlock((0, 4, 1))


def test_integers_meet_integers_only() -> None:
    graph, int8 = layers(), RECIPES["int8"]
    assert {name: formats(d) for name, d in decided(graph, int8).items() if d.schemes} == dict.fromkeys(
        ("first", "second", "third"), ["int8"] * 2
    )
    for mixed in (int8.replace(activations="e4m3"), int8.replace(weights="e4m3"), int8.replace(activations=None)):
        with pytest.raises(
            RecipeError, match=r"^recipe 'int8': node 'first'.*: integers meet integers only: expected weights and activations"
        ):
            decided(graph, mixed)
    with pytest.raises(RecipeError, match=r"^a.toml:8: node 'first'.*integers meet integers only.* got float8_e4m3fn and int8"):
        decided(graph, int8, Override(match="first", weights="e4m3", place="a.toml:8"))
    found = decided(graph, int8, Override(match="first", weights="e4m3", activations="e4m3"))
    assert formats(found["first"]) == ["e4m3fn"] * 2
    for finer in ({"weight_granularity": "group 2"}, {"power_of_two": True}, {"approach": "dynamic", "activation_granularity": "token"}):
        with pytest.raises(RecipeError, match="int8 has one scale"):
            quantize_model(graph, int8.replace(**finer), RNG.standard_normal((5, 4)).astype(np.float32))


def test_a_table_of_embeddings_has_a_format_of_its_own() -> None:
    b = GraphBuilder()
    ids = b.input("ids", ("B",), "int64")
    x = b.node("embedding", (b.constant("table.w", RNG.standard_normal((9, 4))), ids), name="table")
    graph = b.finish(b.node("linear", (x, b.constant("w", RNG.standard_normal((3, 4)))), name="fc"))
    found = decided(graph, RECIPES["int8"], Override(op="embedding", weights="e4m3"))
    assert {name: formats(d) for name, d in found.items()} == {"table": ["e4m3fn"], "fc": ["int8", "int8"]}
    found = decided(graph, RECIPES["e4m3"], Override(op="embedding", weights="int8"))
    assert {name: formats(d) for name, d in found.items()} == {"table": ["int8"], "fc": ["e4m3fn", "e4m3fn"]}


def test_ops_without_a_counterpart_in_integers_stay() -> None:
    b = GraphBuilder()
    x = b.input("x", ("B", 4, 6), "float32")
    graph = b.finish(b.node("conv_transpose1d", (x, b.constant("w", RNG.standard_normal((4, 3, 2)))), name="turned"))
    int8 = RECIPES["int8"].replace(keep_first_last=False)
    assert decided(graph, int8)["turned"].reason == "int8 does not cover conv_transpose1d"
    with pytest.raises(RecipeError, match="integers meet integers only"):
        decided(graph, int8, Override(match="turned", weights="e4m3"))


def test_coverage_by_names() -> None:
    assert COVERAGE["standard"] == STANDARD_OPS < EXTENDED_OPS == COVERAGE["extended"]
    assert get_recipe("e4m3").replace(ops={"extended"}).ops == EXTENDED_OPS
    assert get_recipe("e4m3").adjusted(ops="standard,lstm").ops == STANDARD_OPS | {"lstm"}
    assert get_recipe("e4m3").adjusted(ops="+extended,-standard").ops == EXTENDED_OPS - STANDARD_OPS
