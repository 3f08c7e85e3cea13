"""The networks of the suites `models` and `startup`: what PyTorch runs, the graph that is made of it, and what it is given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fp8np.errors import InputError
from fp8np.graph import Graph
from fp8np_benchmarks.case import Setting, SkipCase
from fp8np_benchmarks.peers import quiet

__all__ = [
    "SENTENCES",
    "Network",
    "bert_base",
    "efficientnet_lite0",
    "mini_sentence",
    "minilm",
    "mobilenet_v2",
    "resnet50",
    "sentences",
    "size",
    "tokens",
]

Inputs = Mapping[str, Any]
SENTENCES = 32
"""Of MiniLM in a batch."""
MINI = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
"""The shape of MiniLM-L6."""


@dataclass(frozen=True)
class Network:
    """What is run.

    Attributes:
        module: float32 nn.Module in eval mode, called with its inputs by name, that returns one tensor.
        graph: made of the same weights.
        batches: that one call of an entry runs; all of one shape.
        calibration: batches of the same shape.
        output: picks that tensor from what the graph gives.
        pictures: whether its inputs are pictures.
    """

    module: Any
    graph: Graph
    batches: Sequence[Inputs]
    calibration: Sequence[Inputs]
    output: Callable[[Any], Any]
    pictures: bool


def size(setting: Setting) -> int:
    """Height and width of pictures."""
    return 64 if setting.quick else 224


def tokens(setting: Setting) -> int:
    """Of the sentence that BERT-base reads."""
    return 16 if setting.quick else 128


def sentences(setting: Setting) -> int:
    """That MiniLM reads in a call, in batches."""
    return SENTENCES * (1 if setting.quick else 8)


def resnet50(setting: Setting, batch: int) -> Network:
    from fp8np_benchmarks.workloads import resnet50 as made

    return _pictures(made.module(size(setting)), setting, batch)


def mobilenet_v2(setting: Setting, batch: int) -> Network:
    from fp8np_benchmarks.workloads import mobilenet_v2 as made

    return _pictures(made.module(size(setting)), setting, batch)


def efficientnet_lite0(setting: Setting, batch: int) -> Network:
    from fp8np_benchmarks.workloads.random_weights import quiet as quiet_norm
    from fp8np_benchmarks.workloads.random_weights import settled
    from fp8np_studies import efficientnet_lite0 as given
    from fp8np_studies.networks.efficientnet_lite0 import EfficientNetLite0, MBConv

    try:
        module = given.network({} if setting.models is None else {"models": setting.models})
    except InputError:  # the weights are not there
        module = EfficientNetLite0()
        for block in module.modules():
            if isinstance(block, MBConv) and block.residual:
                quiet_norm(block.layers[-1])
        module = settled(module, size(setting))
    return _pictures(module, setting, batch)


def bert_base(setting: Setting) -> Network:
    layers = {"num_hidden_layers": 2} if setting.quick else {}
    return _random_bert(layers, [_sentence(tokens(setting), seed) for seed in range(5)])


def minilm(setting: Setting) -> Network:
    """Over sentences of STS-B, padded to the longest of them."""
    if setting.models is None or setting.shared is None:
        raise SkipCase("needs the weights of MiniLM and STS-B: --models DIR --shared DIR")
    from fp8np_benchmarks.workloads.bert import HiddenStates
    from fp8np_converters.bert import from_folder
    from fp8np_studies import minilm as given

    folders = {"models": setting.models, "shared": setting.shared}
    batches = _cut((batch for batch, _ in given.sts_test(folders)), sentences(setting) // SENTENCES)
    calibration = _cut(given.sts_test_calibration(folders), 4, batches[0]["input_ids"].shape[1])
    with quiet():
        module = HiddenStates(given.network(folders).bert).eval()
    return Network(module, from_folder(given.folder(folders)), batches, calibration, _hidden, pictures=False)


def mini_sentence(setting: Setting) -> tuple[str, Network]:
    """One short sentence through MiniLM, or a random network of its shape; and which of the two it is."""
    from fp8np_benchmarks.workloads.bert import HiddenStates
    from fp8np_converters.bert import from_folder
    from fp8np_studies import minilm as given

    short = [_sentence(16, seed) for seed in range(3)]
    try:
        folders = {} if setting.models is None else {"models": setting.models}
        folder = given.folder(folders)
    except InputError:  # the weights are not there
        return "a random network of MiniLM's shape", _random_bert(MINI, short)
    with quiet():
        module = HiddenStates(given.network(folders).bert).eval()
    return "MiniLM", Network(module, from_folder(folder), short[:1], short[1:], _hidden, pictures=False)


def _pictures(module: Any, setting: Setting, batch: int) -> Network:
    from fp8np_converters.torch_export import from_module

    rng = np.random.default_rng(0)
    shape = 3, size(setting), size(setting)
    batches = [{"x": rng.standard_normal((batch, *shape), np.float32)} for _ in range(1 + max(1, 4 // batch))]
    graph = from_module(module, (np.zeros((2, *shape), np.float32),))
    return Network(module, graph, batches[:1], batches[1:], lambda output: output, pictures=True)


def _random_bert(config: Mapping[str, int], given: Sequence[Inputs]) -> Network:
    from fp8np_benchmarks.workloads.bert import random_module, saved
    from fp8np_converters.bert import from_folder

    module = random_module(config)
    with tempfile.TemporaryDirectory() as folder:
        graph = from_folder(saved(module, Path(folder)))
        # The weights are memory-mapped; the folder goes.
        graph = graph.replace(constants={name: np.array(array) for name, array in graph.constants.items()})
    return Network(module, graph, given[:1], given[1:], _hidden, pictures=False)


def _sentence(length: int, seed: int) -> Inputs:
    ids = np.random.default_rng(seed).integers(1000, 30000, (1, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _hidden(output: Any) -> Any:
    return output["last_hidden_state"]


def _cut(given: Any, count: int, length: int = 0) -> list[Inputs]:
    """The first `count` batches of SENTENCES each, all padded or cut to the same number of tokens: 0 for that of the longest."""
    taken: list[Inputs] = []
    for batch in given:
        rows = len(batch["input_ids"])
        taken += [{k: v[i : i + SENTENCES] for k, v in batch.items()} for i in range(0, rows - SENTENCES + 1, SENTENCES)]
        if len(taken) >= count:
            break
    length = length or max(batch["input_ids"].shape[1] for batch in taken[:count])
    return [{k: _padded(v, length) for k, v in batch.items()} for batch in taken[:count]]


def _padded(ids: Any, length: int) -> Any:
    return np.pad(ids[:, :length], ((0, 0), (0, max(0, length - ids.shape[1]))))
