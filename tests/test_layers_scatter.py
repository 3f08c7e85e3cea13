"""Ops that replace some elements, against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from _layers import check_op  # noqa: E402
from _traced import assert_same  # noqa: E402
from torch import nn  # noqa: E402

from fp8np.errors import DTypeError, ShapeError  # noqa: E402
from fp8np.layers._op import OPS, Spec  # noqa: E402
from fp8np_converters.torch_export import from_module  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5, 3))


@pytest.mark.parametrize(
    ("dim", "start", "end", "step", "count"), [(1, 1, 4, 1, 3), (-2, None, None, 2, 3), (1, -2, 2**63 - 1, 1, 2), (1, 3, 3, 1, 0)]
)
def test_slice_scatter(dim: int, start: int | None, end: int | None, step: int, count: int) -> None:
    src = RNG.normal(size=(4, count, 3))
    attrs = {"dim": dim, "start": start, "end": end, "step": step}
    check_op(
        "slice_scatter",
        (X, src),
        attrs,
        lambda x, s: torch.slice_scatter(x, s, dim, start, end, step),
        symbolic={0: {0: "B"}, 1: {0: "B"}},
    )


@pytest.mark.parametrize(("dim", "index"), [(0, 2), (-1, -1)])
def test_select_scatter(dim: int, index: int) -> None:
    src = RNG.normal(size=np.delete(X.shape, dim))
    check_op("select_scatter", (X, src), {"dim": dim, "index": index}, lambda x, s: torch.select_scatter(x, s, dim, index))


def test_copy_expands_and_casts() -> None:
    check_op("copy", (X, RNG.normal(size=(5, 1))), {}, lambda x, s: torch.ops.aten.copy(x, s), symbolic={0: {0: "B"}})
    check_op("copy", (X, np.arange(3)), {}, lambda x, s: torch.ops.aten.copy(x, s))
    check_op("copy", (np.arange(3), RNG.normal(size=3) * 5), {}, lambda x, s: torch.ops.aten.copy(x, s))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("indices", "values"),
    [
        ((np.array([0, 2, 2]),), np.ones((5, 3))),
        ((None, np.array([[1], [4]]), np.array([0, 2])), RNG.normal(size=(4, 2, 2))),
        ((X > 0.5,), np.array(7.0)),
    ],
)
def test_index_put(indices: Any, values: Any, accumulate: bool) -> None:
    check_op(
        "index_put",
        (X, values, *indices),
        {"accumulate": accumulate},
        lambda x, v, *i: torch.ops.aten.index_put(x, list(i), v, accumulate),
        symbolic={0: {1: "T"}} if indices[0] is not None and indices[0].dtype != bool else None,
    )


@pytest.mark.parametrize(
    ("name", "specs", "attrs", "error"),
    [
        ("slice_scatter", (Spec((4, 5)), Spec((4, 3))), {"dim": 1, "end": 2}, ShapeError),
        ("select_scatter", (Spec((4, 5)), Spec((5,))), {"dim": 1, "index": 0}, ShapeError),
        ("copy", (Spec((4, 1)), Spec((4, 5))), {}, ShapeError),
        ("copy", (Spec((4,)), Spec((4,), "float8_e4m3fn")), {}, DTypeError),
        ("index_put", (Spec((4, 5)), Spec((2,)), Spec((4, 5), "bool")), {}, ShapeError),
        ("index_put", (Spec((4,)), Spec(()), Spec((2,), "int64"), Spec((2,), "int64")), {}, ShapeError),
        ("index_put", (Spec((4,)), Spec(()), Spec((2,), "float32")), {}, DTypeError),
    ],
)
def test_arguments_that_do_not_fit(name: str, specs: tuple[Spec, ...], attrs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        OPS[name].shape(*specs, **OPS[name].filled(attrs))


def test_assignments_in_a_model() -> None:
    class Assigns(nn.Module):
        def forward(self, x: Any) -> Any:
            y = x * 2
            y[:, 1:3] = x[:, :2]
            y[:, 0] = 1.0
            y[0, 0] += 3
            y[..., -1] = x[..., 0]
            y[y > 1.5] = -1.0
            return y

    graph = from_module(Assigns(), torch.randn(1, 5))
    assert graph.inputs[0].shape[0] != 1
    assert_same(graph, Assigns(), torch.randn(3, 5))
