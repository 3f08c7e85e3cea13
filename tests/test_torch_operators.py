"""Operators of traced programs: each becomes the op that means it, and what has none is refused, all at once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from _traced import assert_same  # noqa: E402
from torch import nn  # noqa: E402

from fp8np.errors import GraphError, UnsupportedOperatorError  # noqa: E402
from fp8np.interpret import interpret  # noqa: E402
from fp8np.layers._op import OPS, Foreign  # noqa: E402
from fp8np_converters.torch_export import _walk, from_module  # noqa: E402
from fp8np_converters.torch_export._operators import operators  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Everything(nn.Module):
    """In-place changes, constants made in forward, a region without gradients, several results, numbers of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.arange(4))
        self.register_buffer("unused", torch.ones(3))

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            x = x * torch.tensor([1.0, 2.0, 3.0, 4.0])
        x = x.clone().mul_(0.5).add_(self.steps)
        a, b = x.to(torch.float64).chunk(2, 1)
        values, places = x.max(1)
        y = torch.where(x > 1, 0.0, x) / x.shape[0]
        return [a.half() - b, values, places, y, x.size(1), x.masked_fill(x < 0, -1e9), 2 - x, x.flatten().shape[0] * values]


def test_in_place_changes_constants_and_numbers() -> None:
    module = Everything()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = from_module(module, torch.randn(1, 4))
    assert graph.constants["steps"].dtype == np.int64
    assert "unused" not in graph.constants
    x = torch.randn(3, 4)
    got = interpret(graph, {"x": x.numpy()})
    with torch.no_grad():
        expected = module(x)
    for i, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        # The half precision of the first is computed in float32.
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-2 if i == 0 else 1e-6, atol=1e-2 if i == 0 else 1e-6)
    assert graph.outputs[4] in graph.constants


def test_modules_used_twice_and_several_operators_in_one_have_unique_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(3, 3), nn.GELU()

        def forward(self, x: Any) -> Any:
            return self.act(self.fc(self.act(self.fc(x))))

    graph = from_module(Twice(), torch.randn(2, 3))
    assert [node.name for node in graph.nodes] == ["fc.linear", "act.gelu", "fc.linear_1", "act.gelu_1"]
    assert {node.origin for node in graph.nodes} == {"fc", "act"}
    assert len(graph.constants) == 2


def test_an_operator_without_an_op_is_decomposed_alone() -> None:
    class Mish(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(3)

        def forward(self, x: Any) -> Any:
            return torch.addcmul(nn.functional.mish(self.norm(x)), x, x, value=0.5)

    assert not {"aten.addcmul.default"} & operators().keys()
    graph = from_module(Mish(), torch.randn(2, 3))
    assert "layer_norm" in [node.op for node in graph.nodes]
    assert_same(graph, Mish(), torch.randn(5, 3))


class Mixer(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.fft.fft(x).real


class Refused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.Sequential(Mixer(), Mixer())
        self.bn = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Any) -> Any:
        return torch.bernoulli(self.bn(self.mixers(x)).sigmoid())


def test_all_missing_operators_are_listed_at_once_with_their_places() -> None:
    with pytest.raises(UnsupportedOperatorError) as caught:
        from_module(Refused(), torch.randn(2, 4))
    text = str(caught.value)
    lines = text.splitlines()
    assert "_fft_r2c" in text or "_fft_c2c" in text
    assert any(line.endswith(", 2 times") for line in lines)
    assert "mixers.0, test_torch_operators.py:" in text
    assert "mixers.1, test_torch_operators.py:" in text
    assert "return torch.fft.fft(x).real" in text
    assert "complex numbers are not supported" in text
    assert "bernoulli" in text
    assert "draws random numbers" in text
    assert "batch_norm" in text


def test_control_flow_on_data_is_refused() -> None:
    class Branches(nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedOperatorError, match=r"torch.export cannot trace Branches"):
        from_module(Branches(), torch.randn(2, 4))


def test_changed_buffers_are_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return x + self.calls

    with pytest.raises(UnsupportedOperatorError, match=r"changes its buffers while it runs \(calls\)"):
        from_module(Counter(), torch.randn(2, 4))


def test_a_rule_that_differs_from_pytorch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Foreign("aten.relu.default", ("x",), {"dim": 0})
    monkeypatch.setattr(_walk, "operators", lambda: {**operators(), "aten.relu.default": (OPS["unsqueeze"], wrong)})
    with pytest.raises(
        GraphError, match=r"(?s)'1'.*aten.relu.default gives float32\[.*, 2\] in PyTorch, .*rule gives 1: float32\[1, B, 2\]"
    ):
        from_module(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.randn(2, 3))


# --- the table


def test_rows_fit_the_schemas_of_pytorch() -> None:
    """Names are those of operators, and no more parameters are named than there are; attributes and inputs exist."""
    for name, (row, foreign) in operators().items():
        if not hasattr(torch.ops.aten, name.split(".")[1]):
            continue  # of another version of PyTorch
        _, packet, overload = name.split(".")
        parameters = getattr(getattr(torch.ops.aten, packet), overload)._schema.arguments
        assert len(foreign.args) <= len(parameters), name
        if foreign.convert is None:
            ours = {*row.input_names, *row.attrs}
            assert {*foreign.args, *foreign.attrs} - {""} <= ours, name


def test_defaults_are_those_of_pytorch() -> None:
    """An argument left out of a call means the same to PyTorch and to the op."""
    different = []
    for name, (row, foreign) in operators().items():
        _, packet, overload = name.split(".")
        parameters = getattr(getattr(torch.ops.aten, packet), overload)._schema.arguments
        if foreign.convert is not None:
            continue
        for ours, parameter in zip(foreign.args, parameters, strict=False):
            # A missing value to pad with is zero.
            if ours not in row.attrs or not parameter.has_default_value() or (row.name, ours) == ("pad", "value"):
                continue
            if _plain(row.attrs[ours]) != _plain(parameter.default_value):
                different.append(f"{name}: {ours} is {row.attrs[ours]}, PyTorch has {parameter.default_value}")
    assert not different, different


def _plain(value: Any) -> Any:
    """Empty means none; one for all axes is one for each; "valid" is no padding."""
    value = 0 if value == "valid" else value
    if isinstance(value, list | tuple):
        return None if not value else value[0] if len(set(value)) == 1 else tuple(value)
    return value


def test_no_operator_means_two_ops() -> None:
    names = [foreign.name for row in OPS.values() for foreign in row.torch]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
