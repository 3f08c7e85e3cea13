"""Modules traced by PyTorch compute what PyTorch computes, at sizes other than those of the example, and keep their names."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from _traced import assert_same, exported, randomized  # noqa: E402
from torch import nn  # noqa: E402

from fp8np.dims import symbol  # noqa: E402
from fp8np.errors import CheckpointError, DTypeError, GraphError, InputError, UnsupportedOperatorError  # noqa: E402
from fp8np_converters.torch_export import from_exported, from_module, load_weights  # noqa: E402

B, T = symbol("B"), symbol("T")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# --- networks


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.stride, self.extra = stride, (cout - cin) // 2

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(nn.functional.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.stride != 1:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        y += x
        return nn.functional.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 8, 2))
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.fc(self.pool(self.layer1(self.stem(x))).mean((2, 3)))


class SameDepthwise(nn.Module):
    """Padding computed from the size of the input, as TensorFlow pads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 5, stride=2, groups=4)

    def forward(self, x: Any) -> Any:
        h, w = (max((-(-n // 2) - 1) * 2 + 5 - n, 0) for n in x.shape[2:])
        return nn.functional.hardswish(self.conv(nn.functional.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))))


def test_residual_network_with_padded_shortcut() -> None:
    module = randomized(ResNet())
    graph = from_module(module, torch.randn(1, 3, 8, 8))
    assert graph.inputs[0].shape == (B, 3, 8, 8)
    for batch in (1, 3):
        assert_same(graph, module, torch.randn(batch, 3, 8, 8))
    names = [node.name for node in graph.nodes]
    assert names[:3] == ["stem", "layer1.0.conv1", "layer1.0.bn1"]
    assert {"layer1.1.pad", "layer1.1.add", "pool", "mean", "fc"} <= set(names)
    assert next(node for node in graph.nodes if node.name == "layer1.0.conv1").origin == "layer1.0.conv1"
    assert "layer1.0.conv1.weight" in graph.constants
    assert [node.attrs["dim"] for node in graph.nodes if node.op == "slice"] == [2, 3]  # not the axes taken whole


def test_depthwise_with_padding_from_the_size() -> None:
    module = SameDepthwise().eval()
    graph = from_module(module, torch.randn(2, 4, 9, 6))
    assert_same(graph, module, torch.randn(3, 4, 9, 6))


def test_padding_that_needs_a_maximum_of_symbolic_sizes_is_refused_with_the_place() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"(?s)sym_max of the size.*dynamic"):
        from_module(SameDepthwise().eval(), torch.randn(2, 4, 9, 6), dynamic={"x": {0: "B", 2: "H", 3: "W"}})


def test_image_of_any_size() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)).eval()
    graph = from_module(module, torch.randn(2, 1, 16, 12), dynamic={"input": {0: "B", 2: "H", 3: "W"}})
    for shape in ((1, 1, 16, 12), (2, 1, 21, 9)):
        assert_same(graph, module, torch.randn(shape))


def test_sizes_that_pytorch_simplifies_further() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv1d(1, 4, 10, 5), nn.Conv1d(4, 4, 3, 2)

        def forward(self, x: Any) -> Any:
            y = self.conv2(self.conv1(x)).transpose(1, 2)
            return y.reshape(y.shape[0], y.shape[1], -1, 2).transpose(1, 2) + torch.arange(y.shape[1])[:, None]

    module = Frames()
    graph = from_module(module, torch.randn(1, 1, 60), dynamic={"x": {0: "B", 2: "T"}})
    for length in (30, 47):
        assert_same(graph, module, torch.randn(2, 1, length))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = {
            "lstm": lambda: nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True),
            "gru": lambda: nn.GRU(5, 8, batch_first=True),
        }[kind]()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        y, state = self.rnn(x)
        return self.head(y), state


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_network_of_any_batch_and_length(kind: str) -> None:
    module = Recurrent(kind).eval()
    graph = from_module(module, torch.randn(1, 6, 5), dynamic={"x": {0: "B", 1: "T"}})
    assert graph.inputs[0].shape == (B, T, 5)
    assert [node.op for node in graph.nodes].count(kind) == 1
    for shape in ((1, 1, 5), (3, 9, 5)):
        assert_same(graph, module, torch.randn(shape))


def test_torch_itself_still_unrolls_recurrent_layers() -> None:
    from_module(Recurrent("lstm"), torch.randn(2, 3, 5))
    x = torch.randn(2, 3, 5)
    module = Recurrent("lstm").eval()
    before = module(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,)).run_decompositions()
        assert "aten.lstm.input" not in {str(node.target) for node in program.graph.nodes}
        torch.testing.assert_close(program.module()(x)[0], before)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("positions", torch.randn(20, 8))

    def forward(self, ids: Any, mask: Any = None, *, scale: float = 1.0) -> Any:
        x = self.embed(ids) * scale + self.positions[: ids.shape[1]]
        padding = None if mask is None else ~mask
        x = self.norm(self.encoder(x, src_key_padding_mask=padding))
        return {"logits": self.out(x), "rest": (x, None, [x[:, 0], ids])}


@pytest.mark.parametrize("frozen", [False, True])
def test_transformer_with_tied_weights_mask_and_nested_outputs(frozen: bool) -> None:
    module = Transformer().eval().requires_grad_(not frozen)  # frozen: PyTorch would take its fused path

    def example(batch: int, length: int) -> dict[str, Any]:
        mask = torch.ones(batch, length, dtype=torch.bool)
        mask[0, length // 2 + 1 :] = False
        return {"ids": torch.randint(0, 11, (batch, length)), "mask": mask}

    graph = from_module(module, {**example(1, 6), "scale": 2.0}, dynamic={name: {0: "B", 1: "T"} for name in ("ids", "mask")})
    assert [str(value) for value in graph.inputs] == ["ids: int64[B, T]", "mask: bool[B, T]"]
    logits, rest = graph.outputs["logits"], graph.outputs["rest"]
    assert isinstance(logits, str)
    assert isinstance(rest, tuple)
    assert rest[1] is None
    assert rest[2][1] == "ids"
    assert [name for name in graph.constants if name in ("embed.weight", "out.weight")] == ["embed.weight"]
    for batch, length in ((1, 1), (3, 9)):
        assert_same(graph, module, **example(batch, length), scale=2.0)


def test_transformers_bert_of_any_batch_and_length() -> None:
    transformers = pytest.importorskip("transformers")
    for attention in ("sdpa", "eager"):
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40, max_position_embeddings=32
        )
        config._attn_implementation = attention
        module = transformers.BertModel(config).eval()

        def example(batch: int, length: int) -> dict[str, Any]:
            mask = torch.ones(batch, length, dtype=torch.int64)
            mask[-1, length // 2 + 1 :] = 0
            ids = torch.randint(0, 50, (batch, length))
            return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.randint(0, 2, (batch, length))}

        inputs = example(1, 8)
        graph = from_module(module, inputs, dynamic={name: {0: "B", 1: "T"} for name in inputs})
        assert list(graph.outputs) == ["last_hidden_state", "pooler_output"]
        assert all(value.shape == (B, T) for value in graph.inputs)
        assert "encoder.layer.0.attention.self.query" in [node.name for node in graph.nodes]
        for batch, length in ((1, 1), (3, 13), (2, 32)):
            assert_same(graph, module, **example(batch, length))


# --- inputs and sizes


class Nested(nn.Module):
    def forward(self, x: Any, state: Any, *more: Any) -> Any:
        return x + state["h"][0] * state["h"][1] + more[0]


def test_nested_inputs_have_dotted_names() -> None:
    a, b, c, d = (torch.randn(2, 3) for _ in range(4))
    args = (a, {"h": [b, c]}, d)
    graph = from_module(Nested(), args, dynamic={"state.h.1": {0: "B"}})
    assert [value.name for value in graph.inputs] == ["x", "state.h.0", "state.h.1", "more.0"]
    assert all(value.shape == (B, 3) for value in graph.inputs)
    assert_same(graph, Nested(), *args)
    saved = from_exported(exported(Nested(), args))
    assert [str(value) for value in saved.inputs][1:3] == ["state.h.0: float32[2, 3]", "state.h.1: float32[2, 3]"]


def test_inputs_left_out_of_dynamic_go_with_the_batch() -> None:
    class Add(nn.Module):
        def forward(self, x: Any, y: Any, table: Any) -> Any:
            return x + y + table[0]

    examples = (torch.randn(1, 4), torch.randn(1, 1), torch.randn(5, 4))
    graph = from_module(Add(), examples, dynamic={"x": {0: "B", 1: "C"}, "table": {1: "C"}})
    assert [value.shape for value in graph.inputs] == [(B, symbol("C")), (B, 1), (5, symbol("C"))]
    assert_same(graph, Add(), torch.randn(3, 6), torch.randn(3, 1), torch.randn(5, 6))


def test_a_batch_that_the_model_fixes_is_fixed_with_a_warning() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.reshape(2, 6)

    with pytest.warns(UserWarning, match=r"fixed by the model: 'B' \(input 'x', axis 0\) is 3"):
        graph = from_module(Fixed(), torch.randn(3, 4))
    assert graph.inputs[0].shape == (3, 4)
    with pytest.raises(InputError, match=r"'B' \(input 'x', axis 0\) is 3"):
        from_module(Fixed(), torch.randn(3, 4), dynamic={"x": {0: "B"}})
    assert from_module(Fixed(), torch.randn(3, 4), dynamic={}).inputs[0].shape == (3, 4)


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": {0: "B"}}, "'y' is not an input"),
        ({"x": {2: "B"}}, "no axis 2"),
        ({"x": {0: "B", 1: "B"}}, "'B' is 2 in the example for 'x', but 3"),
    ],
)
def test_dynamic_that_does_not_fit(dynamic: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_module(Doubled(), torch.randn(2, 3), dynamic=dynamic)


class Doubled(nn.Module):
    def forward(self, x: Any) -> Any:
        return 2 * x


def test_sizes_that_the_model_ties_need_one_name() -> None:
    class Dot(nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return x + y

    with pytest.raises(GraphError, match=r"needs 'N' to equal 'B'"):
        from_module(Dot(), (torch.randn(4), torch.randn(4)), dynamic={"x": {0: "B"}, "y": {0: "N"}})


@pytest.mark.parametrize("inputs", [None, (), (1, 2, 3), {"z": 1}])
def test_example_inputs_that_do_not_fit(inputs: Any) -> None:
    with pytest.raises(InputError, match=r"Doubled.*\(x: 'Any'\)"):
        from_module(Doubled(), inputs)


def test_a_module_that_fails_by_itself() -> None:
    with pytest.raises(InputError, match=r"Linear itself fails on the example inputs"):
        from_module(nn.Linear(3, 2), torch.ones(2, 4))


def test_complex_inputs_are_refused() -> None:
    with pytest.raises(DTypeError, match=r"input 'x': expected real numbers, got torch.complex64"):
        from_module(Doubled(), torch.zeros(2, dtype=torch.complex64))


def test_arrays_halves_and_doubles_are_float32() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).half()
    graph = from_module(module, np.ones((2, 3)))
    assert {value.dtype for value in graph.inputs} == {"float32"}
    assert {array.dtype.name for array in graph.constants.values()} == {"float32"}
    assert_same(graph, copy.deepcopy(module).float().eval(), torch.randn(4, 3))


def test_the_module_stays_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)).double()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    graph = from_module(module, torch.randn(4, 3))
    assert [part.training for part in module] == [True, False, True]
    assert module[0].weight.dtype == torch.float64
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    with torch.no_grad():
        module[0].weight.zero_()
    assert np.any(graph.constants["0.weight"])
    assert [node.op for node in graph.nodes] == ["linear", "batch_norm"]


# --- saved programs and weights


def test_saved_program(tmp_path: Path) -> None:
    module = randomized(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)))
    dims = ({0: torch.export.Dim("batch"), 1: None},)
    torch.export.save(exported(module, (torch.randn(2, 3),), dynamic_shapes=dims), tmp_path / "net.pt2")
    graph = from_exported(tmp_path / "net.pt2")
    assert str(graph.inputs[0]) == "input: float32[B, 3]"
    assert [node.op for node in graph.nodes] == ["linear", "batch_norm", "relu"]
    assert_same(graph, module, torch.randn(5, 3))


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"not a program")
    with pytest.raises(CheckpointError, match=r"net.pt2: expected a program"):
        from_exported(tmp_path / "net.pt2")
    with pytest.raises(OSError, match=r"none.pt2"):
        from_exported(tmp_path / "none.pt2")


def test_weights_into_a_module() -> None:
    module = Transformer()
    state = {name: tensor.numpy() + 1 for name, tensor in module.state_dict().items() if name != "out.weight"}
    load_weights(module, state)
    np.testing.assert_array_equal(module.out.weight.detach().numpy(), state["embed.weight"])
    with pytest.warns(UserWarning, match=r"left out.*optimizer"):
        load_weights(module, {**state, "optimizer": np.zeros(1)})
    state["norm.bias"] = np.zeros(3, np.float32)
    state["normm.weight"] = state.pop("norm.weight")
    with pytest.raises(
        CheckpointError, match=r"(?s)a.pt.*norm.weight: missing.*norm.bias: expected \(8,\), got \(3,\).*normm.weight: not in"
    ):
        load_weights(module, state, origin="a.pt")


def test_without_pytorch_the_extra_is_named() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport fp8np_converters.torch_export"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in result.stderr
    assert "pip install 'fp8np[torch]'" in result.stderr
