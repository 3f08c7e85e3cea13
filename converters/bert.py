"""A BERT model in a Hugging Face folder as a graph, without PyTorch.

The folder holds ``config.json`` and the weights (``model.safetensors`` or ``pytorch_model.bin``, sharded or not). The graph is
the encoder, the nodes have the names of transformers' modules: what `torch_export` makes of the same model computes the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fp8np.build import GraphBuilder
from fp8np.dims import symbol
from fp8np.errors import CheckpointError, InputError, UnsupportedOperatorError
from fp8np.graph import Graph

from .checkpoint import read_state_dict

__all__ = ["from_folder"]

_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")

# An op and its attributes, for each `hidden_act`.
_ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "gelu": ("gelu", {}),
    "gelu_new": ("gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("gelu", {"approximate": "tanh"}),
    "relu": ("relu", {}),
    "silu": ("silu", {}),
    "swish": ("silu", {}),
}

# What else the config may say, and must not: the value that the graph computes, also where the config is silent.
_FIXED: Mapping[str, Any] = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}

# Heads on top of the encoder, and buffers that are not weights.
_LEFT_OUT = ("cls.", "classifier.", "qa_outputs.", "embeddings.position_ids", "embeddings.token_type_ids")

_B, _T = symbol("B"), symbol("T")

Weights = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def from_folder(folder: str | os.PathLike[str], *, pooling: str | None = None, token_type_ids: bool = True) -> Graph:
    """Reads a BERT encoder.

    Args:
        folder: with ``config.json`` and the weights. Names may have the prefix "bert.", as in models with a head; heads are
            left out.
        pooling: "mean" adds the sentence embedding of sentence-transformers, float32 (B, C): the mean of the last hidden
            states where attention_mask is 1, divided by its Euclidean norm.
        token_type_ids: False: no such input; all are taken to be 0.

    Returns:
        A graph of the inputs input_ids, attention_mask (1, or 0 for padding) and token_type_ids, all int64 (B, T) with T up to
        max_position_embeddings; the outputs are a dict: last_hidden_state (B, T, C), pooler_output (B, C) where the weights
        have a pooler, and sentence_embedding (B, C) if asked for.

    Raises:
        CheckpointError: config.json or the weights are missing or damaged, or tensors are missing, unknown or of another
            shape than the config says; all are listed.
        InputError: another `pooling`.
        UnsupportedOperatorError: another kind of model, or a variant of BERT that is not known here; all reasons are listed.
    """
    if pooling not in (None, "mean"):
        raise InputError(f'pooling: expected None or "mean", got {pooling!r}')
    folder = Path(folder)
    config = _Config.read(folder / "config.json")
    weights, left_out = _encoder_weights(folder)
    has_pooler = any(name.startswith("pooler.") for name in weights)
    _check_shapes(weights, config.shapes(has_pooler), folder)
    meta = {"source": "bert", "name": folder.resolve().name}
    if left_out:
        meta["left_out"] = ", ".join(left_out)
    return _Builder(config, weights).graph(has_pooler, pooling == "mean", token_type_ids, meta)


@dataclass(frozen=True)
class _Config:
    """The fields of config.json that shape the graph, with the defaults of transformers."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    @classmethod
    def read(cls, path: Path) -> _Config:
        if not path.is_file():
            raise CheckpointError(f"{path}: expected a Hugging Face folder with a config.json")
        try:
            fields = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from None
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        if kind != "bert":
            raise UnsupportedOperatorError(
                f"{path}: model_type {kind!r} has no reader here, only 'bert' has one; trace it with --module pkg.mod:factory"
            )
        problems = [f"{k}: expected {v!r}, got {fields[k]!r}" for k, v in _FIXED.items() if fields.get(k, v) != v]
        found = {name: fields.get(name, default) for name, default in vars(cls()).items()}
        for name, value in found.items():
            if name == "hidden_act":
                if value not in _ACTIVATIONS:
                    problems.append(f"{name}: expected one of {', '.join(_ACTIVATIONS)}, got {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int | float if name == "layer_norm_eps" else int) or value <= 0:
                problems.append(f"{name}: expected a positive number, got {value!r}")
        config = cls(**found)
        if not problems and config.hidden_size % config.num_attention_heads:
            problems.append(
                f"hidden_size: expected a multiple of num_attention_heads ({config.num_attention_heads}), got {config.hidden_size}"
            )
        if problems:
            raise UnsupportedOperatorError(f"{path}: " + "; ".join(problems))
        return config

    def shapes(self, has_pooler: bool) -> Shapes:
        """The shape of every weight by name. C hidden size, F intermediate size."""
        c, f = self.hidden_size, self.intermediate_size
        shapes: Shapes = {
            "embeddings.word_embeddings.weight": (self.vocab_size, c),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, c),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, c),
            **_layer_norm("embeddings.LayerNorm", c),
        }
        for i in range(self.num_hidden_layers):
            layer = f"encoder.layer.{i}"
            for part in ("query", "key", "value"):
                shapes |= _linear(f"{layer}.attention.self.{part}", c, c)
            shapes |= _linear(f"{layer}.attention.output.dense", c, c) | _layer_norm(f"{layer}.attention.output.LayerNorm", c)
            shapes |= _linear(f"{layer}.intermediate.dense", f, c)
            shapes |= _linear(f"{layer}.output.dense", c, f) | _layer_norm(f"{layer}.output.LayerNorm", c)
        return shapes | _linear("pooler.dense", c, c) if has_pooler else shapes


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _layer_norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _encoder_weights(folder: Path) -> tuple[Weights, list[str]]:
    """The weights of the encoder without their prefix, and the names of those left out."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: expected one of {', '.join(_FILES)}")
    state = read_state_dict(path)
    prefix = "bert." if any(name.startswith("bert.") for name in state) else ""
    weights: Weights = {}
    left_out = []
    for name, array in state.items():
        short = name.removeprefix(prefix)
        if short.startswith(_LEFT_OUT):
            left_out.append(name)
        else:
            # The first BERTs were converted from TensorFlow with its names.
            weights[short.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = array
    return weights, left_out


def _check_shapes(weights: Weights, shapes: Shapes, folder: Path) -> None:
    problems = list(_problems(weights, shapes))
    if problems:
        raise CheckpointError(f"{folder}: the weights do not fit config.json:\n  " + "\n  ".join(problems))


def _problems(weights: Weights, shapes: Shapes) -> Iterator[str]:
    for name, shape in shapes.items():
        if name not in weights:
            yield f"{name}: missing, expected {shape}"
        elif not isinstance(weights[name], np.ndarray) or weights[name].dtype.kind != "f":
            yield f"{name}: expected floating-point numbers, got {getattr(weights[name], 'dtype', type(weights[name]).__name__)}"
        elif weights[name].shape != shape:
            yield f"{name}: expected {shape}, got {weights[name].shape}"
    for name in weights.keys() - shapes.keys():
        yield f"{name}: unknown, {weights[name].shape}"


class _Builder:
    """Writes the graph down. B batch, T tokens, C hidden size, H heads, D = C/H."""

    def __init__(self, config: _Config, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self.b = GraphBuilder()

    def graph(self, has_pooler: bool, mean: bool, token_types: bool, meta: Mapping[str, str]) -> Graph:
        ids = self.b.input("input_ids", (_B, _T), "int64")
        attention = self.b.input("attention_mask", (_B, _T), "int64")
        types = self.b.input("token_type_ids", (_B, _T), "int64") if token_types else None
        x = self.embeddings(ids, types)
        mask = self.mask(attention)
        for i in range(self.config.num_hidden_layers):
            x = self.layer(f"encoder.layer.{i}", x, mask)
        outputs = {"last_hidden_state": x}
        if has_pooler:
            first = self.node("select", (x,), "pooler", dim=1, index=0)
            outputs["pooler_output"] = self.node("tanh", (self.linear("pooler.dense", first),), "pooler.activation")
        if mean:
            outputs["sentence_embedding"] = self.sentence_embedding(x, attention)
        return self.b.finish(outputs, meta)

    def node(self, op: str, inputs: tuple[str | None, ...], name: str, **attrs: Any) -> str:
        result: str = self.b.node(op, inputs, attrs, name=name, origin=name)
        return result

    def weight(self, name: str) -> str:
        return self.b.constant(name, self.weights[name])

    def linear(self, name: str, x: str) -> str:
        return self.node("linear", (x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")), name)

    def layer_norm(self, name: str, x: str) -> str:
        c, eps = self.config.hidden_size, float(self.config.layer_norm_eps)
        weights = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("layer_norm", (x, *weights), name, normalized_shape=(c,), eps=eps)

    def embedding(self, name: str, indices: str) -> str:
        return self.node("embedding", (self.weight(f"embeddings.{name}.weight"), indices), f"embeddings.{name}")

    def embeddings(self, ids: str, types: str | None) -> str:
        """(B, T) -> (B, T, C)"""
        positions = self.node("unsqueeze", (self.node("arange", (), "embeddings.arange", end=_T),), "embeddings.unsqueeze", dim=0)
        if types is None:
            types = self.node("full", (ids,), "embeddings.full", fill_value=0)
        words = self.embedding("word_embeddings", ids)
        x = self.node("add", (words, self.embedding("token_type_embeddings", types)), "embeddings.add")
        x = self.node("add", (x, self.embedding("position_embeddings", positions)), "embeddings.add")
        return self.layer_norm("embeddings.LayerNorm", x)

    def mask(self, attention: str) -> str:
        """(B, T) -> (B, 1, 1, T), bool: which keys are seen"""
        mask = self.node("cast", (attention, None), "attention_mask.cast", dtype="bool")
        for dim in (1, 2):
            mask = self.node("unsqueeze", (mask,), "attention_mask.unsqueeze", dim=dim)
        return mask

    def layer(self, name: str, x: str, mask: str) -> str:
        """(B, T, C) -> (B, T, C)"""
        attended = self.linear(f"{name}.attention.output.dense", self.attention(f"{name}.attention.self", x, mask))
        x = self.node("add", (attended, x), f"{name}.attention.output")
        x = self.layer_norm(f"{name}.attention.output.LayerNorm", x)
        op, attrs = _ACTIVATIONS[self.config.hidden_act]
        y = self.node(op, (self.linear(f"{name}.intermediate.dense", x),), f"{name}.intermediate.intermediate_act_fn", **attrs)
        x = self.node("add", (self.linear(f"{name}.output.dense", y), x), f"{name}.output")
        return self.layer_norm(f"{name}.output.LayerNorm", x)

    def attention(self, name: str, x: str, mask: str) -> str:
        """(B, T, C) -> (B, T, C), by way of (B, H, T, D)"""
        c, h = self.config.hidden_size, self.config.num_attention_heads
        split = []
        for part in ("query", "key", "value"):
            heads = self.node("reshape", (self.linear(f"{name}.{part}", x), None), f"{name}.reshape", shape=(_B, _T, h, c // h))
            split.append(self.node("transpose", (heads,), f"{name}.transpose", dim0=1, dim1=2))
        y = self.node("scaled_dot_product_attention", (*split, mask), f"{name}.scaled_dot_product_attention")
        y = self.node("transpose", (y,), f"{name}.transpose", dim0=1, dim1=2)
        return self.node("reshape", (y, None), f"{name}.reshape", shape=(_B, _T, c))

    def sentence_embedding(self, x: str, attention: str) -> str:
        """(B, T, C), (B, T) -> (B, C): the mean over the tokens that are seen, of length 1"""
        seen = self.node("cast", (attention, None), "pooling.cast", dtype="float32")
        seen = self.node("unsqueeze", (seen,), "pooling.unsqueeze", dim=2)
        total = self.node("sum", (self.node("mul", (x, seen), "pooling.mul"),), "pooling.sum", dim=(1,))
        count = self.node("clamp", (self.node("sum", (seen,), "pooling.count", dim=(1,)), None, None), "pooling.clamp", min=1e-9)
        mean = self.node("div", (total, count), "pooling.mean")
        norm = self.node("linalg_vector_norm", (mean,), "normalize.norm", dim=(1,), keepdim=True)
        norm = self.node("clamp", (norm, None, None), "normalize.clamp", min=1e-12)
        return self.node("div", (mean, norm), "normalize")
