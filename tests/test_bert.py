"""The native reader of BERT folders against transformers, and against what the tracer makes of the same model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from fp8np.dims import symbol  # noqa: E402
from fp8np.errors import CheckpointError, InputError, UnsupportedOperatorError  # noqa: E402
from fp8np.interpret import interpret  # noqa: E402
from fp8np_converters.bert import from_folder  # noqa: E402
from fp8np_converters.torch_export import from_module  # noqa: E402

Arrays = dict[str, Any]


def save(folder: Path, cls: str = "BertModel", **options: Any) -> Any:
    """A tiny model with random weights in a folder."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        **options,
    )
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():  # a fresh model has biases of 0 and norms of 1
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    save(path)
    return path


def batch(size: int, length: int) -> Arrays:
    rng = np.random.default_rng(size + length)
    mask = np.ones((size, length), np.int64)
    mask[-1, length // 2 + 1 :] = 0
    return {
        "input_ids": rng.integers(0, 50, (size, length)),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (size, length)),
    }


def reference(model: Any, inputs: Arrays) -> Arrays:
    with torch.no_grad():
        return {name: tensor.numpy() for name, tensor in model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).items()}


def assert_close(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5 * np.abs(array).max(), rtol=0, strict=True)


SIZES = ((1, 1), (3, 13), (2, 32))


def test_equals_transformers_and_the_traced_model(folder: Path) -> None:
    model = transformers.BertModel.from_pretrained(folder)
    model.train()  # the tracer has to see to that itself
    native = from_folder(folder)
    example = batch(1, 8)
    traced = from_module(model, example, dynamic={name: {0: "B", 1: "T"} for name in example})
    assert native.inputs == traced.inputs
    assert native.inputs[0].shape == (symbol("B"), symbol("T"))
    weights = {name for name in native.constants if not name.startswith("output")}
    assert weights == {name for name in traced.constants if name != "embeddings.position_ids"}
    for graph in (native, traced):
        weighted = {node.name: node.op for node in graph.nodes if any(name in weights for name in node.inputs)}
        assert weighted.keys() == {name.rpartition(".")[0] for name in weights}
    model.eval()
    for sizes in SIZES:
        inputs = batch(*sizes)
        result = interpret(native, inputs)
        assert_close(result, reference(model, inputs))
        assert_close(result, interpret(traced, inputs))


@pytest.mark.parametrize("act", ["relu", "gelu_new", "silu"])
def test_activations(tmp_path: Path, act: str) -> None:
    model = save(tmp_path, hidden_act=act, layer_norm_eps=1e-3)
    assert_close(interpret(from_folder(tmp_path), batch(2, 5)), reference(model, batch(2, 5)))


def test_mean_pooling(folder: Path) -> None:
    model = transformers.BertModel.from_pretrained(folder).eval()
    graph = from_folder(folder, pooling="mean")
    for sizes in SIZES:
        inputs = batch(*sizes)
        hidden = reference(model, inputs)["last_hidden_state"].astype(np.float64)
        mask = inputs["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        got = interpret(graph, inputs)["sentence_embedding"]
        np.testing.assert_allclose(got, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(InputError, match="pooling"):
        from_folder(folder, pooling="max")


def test_without_token_types(folder: Path) -> None:
    graph = from_folder(folder, token_type_ids=False)
    inputs = batch(2, 5)
    del inputs["token_type_ids"]
    assert [value.name for value in graph.inputs] == ["input_ids", "attention_mask"]
    model = transformers.BertModel.from_pretrained(folder).eval()
    assert_close(interpret(graph, inputs), reference(model, inputs))


def test_a_model_with_a_head_gives_its_encoder(tmp_path: Path) -> None:
    model = save(tmp_path, "BertForMaskedLM")
    graph = from_folder(tmp_path)
    assert list(graph.outputs) == ["last_hidden_state"]
    assert "cls.predictions.bias" in graph.meta["left_out"]
    assert_close(interpret(graph, batch(2, 5)), reference(model.bert, batch(2, 5)))


def test_pickled_weights_with_the_names_of_tensorflow(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    old = {
        f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in state.items()
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    expected = interpret(from_folder(folder), batch(2, 5))
    assert_close(interpret(from_folder(tmp_path), batch(2, 5)), expected)


# --- bad folders


def changed(folder: Path, target: Path, config: Arrays | None = None, weights: Arrays | None = None) -> Path:
    """A copy of a folder with fields and tensors replaced, or left out where they are None."""
    fields = json.loads((folder / "config.json").read_text()) | (config or {})
    tensors = load_file(folder / "model.safetensors") | (weights or {})
    (target / "config.json").write_text(json.dumps(fields))
    save_file({k: v for k, v in tensors.items() if v is not None}, target / "model.safetensors")
    return target


def test_every_tensor_that_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    weights = {
        "encoder.layer.1.output.dense.weight": None,
        "embeddings.LayerNorm.bias": torch.zeros(31),
        "pooler.dense.bias": torch.zeros(32, dtype=torch.int64),
        "encoder.layer.2.output.dense.bias": torch.zeros(32),
    }
    with pytest.raises(CheckpointError) as caught:
        from_folder(changed(folder, tmp_path, weights=weights))
    assert "encoder.layer.1.output.dense.weight: missing, expected (32, 40)" in str(caught.value)
    assert "embeddings.LayerNorm.bias: expected (32,), got (31,)" in str(caught.value)
    assert "pooler.dense.bias: expected floating-point numbers, got int64" in str(caught.value)
    assert "encoder.layer.2.output.dense.bias: unknown, (32,)" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "messages"),
    [
        ({"model_type": "roberta"}, ["'roberta' has no reader"]),
        ({"model_type": None}, ["None has no reader"]),
        (
            {"position_embedding_type": "relative_key", "hidden_act": "mish", "is_decoder": True},
            ["position_embedding_type: expected 'absolute'", "hidden_act: expected one of gelu", "is_decoder: expected False"],
        ),
        ({"num_attention_heads": 5}, ["hidden_size: expected a multiple of"]),
        ({"vocab_size": "many", "layer_norm_eps": 0}, ["vocab_size: expected a positive number", "layer_norm_eps: expected a positive"]),
    ],
)
def test_configs_that_are_not_known(folder: Path, tmp_path: Path, config: Arrays, messages: list[str]) -> None:
    with pytest.raises(UnsupportedOperatorError) as caught:
        from_folder(changed(folder, tmp_path, config))
    for message in messages:
        assert re.search(re.escape(message), str(caught.value))


def test_folders_that_are_incomplete(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a Hugging Face folder with a config.json"):
        from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: not JSON"):
        from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnsupportedOperatorError, match=r"None has no reader"):
        from_folder(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"expected one of model.safetensors.index.json"):
        from_folder(tmp_path)


def test_no_pytorch_is_needed(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom fp8np_converters.bert import from_folder\nprint(len(from_folder(sys.argv[1]).nodes))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert int(result.stdout) == len(from_folder(folder).nodes)
