"""Reductions against PyTorch: over one axis, several and all, of every type, of nothing, of NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _layers import check_op

from fp8np.dims import symbol
from fp8np.errors import DTypeError, Fp8npError, ShapeError
from fp8np.layers._op import OPS, Spec

torch = pytest.importorskip("torch")

X = np.random.default_rng(0).normal(size=(2, 3, 4))
SYMBOLIC = {0: {0: "B", 1: "T"}}
OVER_ALL: tuple[Any, ...] = (None, (), 0, -1, (0, 2), (-2,), (2, 1, 0))

# Each takes a tensor, dim (None for all, or a tuple) and keepdim.
SEVERAL_AXES: dict[str, Callable[..., Any]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "amax": lambda t, d, k: torch.amax(t, d, k),
    "amin": lambda t, d, k: torch.amin(t, d, k),
    "any": torch.any,
    "all": torch.all,
    "logsumexp": torch.logsumexp,
    "var": lambda t, d, k: torch.var(t, d, keepdim=k),
    "std": lambda t, d, k: torch.std(t, d, keepdim=k),
    "var_mean": lambda t, d, k: torch.var_mean(t, d, keepdim=k),
    "std_mean": lambda t, d, k: torch.std_mean(t, d, keepdim=k),
    "linalg_vector_norm": lambda t, d, k: torch.linalg.vector_norm(t, 2, d, k),
}
ONE_AXIS: dict[str, Callable[..., Any]] = {
    "prod": torch.prod,
    "argmax": torch.argmax,
    "argmin": torch.argmin,
    "max_dim": torch.max,
    "min_dim": torch.min,
}


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", OVER_ALL, ids=str)
@pytest.mark.parametrize("name", SEVERAL_AXES)
def test_over_several_axes(name: str, dim: Any, keepdim: bool) -> None:
    over = tuple(range(3)) if dim in (None, ()) else dim
    torch_fn = SEVERAL_AXES[name]
    check_op(name, (X,), {"dim": dim, "keepdim": keepdim}, lambda t: torch_fn(t, over, keepdim), symbolic=SYMBOLIC, rtol32=1e-6)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", ONE_AXIS)
def test_over_one_axis(name: str, dim: int, keepdim: bool) -> None:
    torch_fn = ONE_AXIS[name]
    check_op(name, (X,), {"dim": dim, "keepdim": keepdim}, lambda t: torch_fn(t, dim, keepdim), symbolic=SYMBOLIC, rtol32=1e-6)


def test_over_the_whole_tensor_and_without_axes() -> None:
    for data in (X, np.array(3.5), X[:0]):
        for name in ("sum", "prod", "any", "all", "mean"):
            check_op(name, (data,), {}, getattr(torch, name), rtol32=1e-6)
    for data in (X, np.array(3.5)):
        for name in ("amax", "amin", "argmax", "argmin"):
            check_op(name, (data,), {}, getattr(torch, name))
        check_op("linalg_vector_norm", (data,), {}, torch.linalg.vector_norm, rtol32=1e-6)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 0.5, -1, math.inf, -math.inf])
def test_norms(order: float) -> None:
    data = np.round(X, 1)
    for dim in (None, 1, (0, 2)):
        check_op("linalg_vector_norm", (data,), {"ord": order, "dim": dim}, lambda t: torch.linalg.vector_norm(t, order, dim), rtol32=1e-5)  # noqa: B023


@pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")
@pytest.mark.parametrize("correction", [0, 1, 2, 3, 5])
def test_corrections(correction: int) -> None:
    for name in ("var", "std", "var_mean"):
        torch_fn = getattr(torch, name)
        check_op(name, (X,), {"dim": 1, "correction": correction}, lambda t: torch_fn(t, 1, correction=correction), rtol32=1e-6)  # noqa: B023


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_running(dim: int) -> None:
    for name in ("cumsum", "cumprod"):
        torch_fn = getattr(torch, name)
        for data in (X, X[:, :0], np.arange(6).reshape(2, 3), X > 0):
            check_op(name, (data,), {"dim": dim}, lambda t: torch_fn(t, dim), symbolic={0: {0: "B"}}, rtol32=1e-6)  # noqa: B023


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64"])
def test_integers(dtype: str) -> None:
    data = np.array([[3, 0, 2], [1, 5, 4]]).astype(dtype)
    for name in ("sum", "prod", "cumsum"):
        dim = 1
        check_op(name, (data,), {"dim": dim}, lambda t: getattr(torch, name)(t, dim))  # noqa: B023
        row, attrs = OPS[name], {"dim": 1, "dtype": "float32"}
        y = row.define(data, **row.filled(attrs))
        want = getattr(torch, name)(torch.from_numpy(data), 1, dtype=torch.float32)
        np.testing.assert_array_equal(y, want.numpy(), strict=True)
        assert row.shape(Spec(data.shape, dtype), **row.filled(attrs)) == Spec(y.shape, "float32")
    for name in ("amax", "any", "all"):
        # PyTorch keeps uint8 for any and all of uint8, which stands for bool in its old code.
        check_op(name, (data,), {"dim": 1}, lambda t: getattr(torch, name)(t, 1).to(torch.bool if name != "amax" else t.dtype))  # noqa: B023
    if dtype != "bool":
        check_op("max_dim", (data,), {"dim": 0}, lambda t: torch.max(t, 0))
        check_op("argmin", (data,), {}, torch.argmin)
    y = OPS["mean"].define(data, dim=None, keepdim=False, dtype="float32")
    np.testing.assert_array_equal(y, torch.from_numpy(data).mean(dtype=torch.float32).numpy(), strict=True)


@pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")
@pytest.mark.parametrize("name", SEVERAL_AXES)
def test_nan_infinity_and_nothing(name: str) -> None:
    odd = np.array([[1, np.nan, 2], [np.inf, 1, np.inf], [-np.inf, -np.inf, -np.inf], [np.inf, -np.inf, 0], [1e30, -1e30, 800]])
    # The squares of the last row are too large for float32; with a variance, PyTorch's mean of infinities is NaN, ours is their mean.
    rows = odd[:1] if name.endswith("_mean") else odd[:4] if name in ("var", "std", "linalg_vector_norm") else odd
    check_op(name, (rows,), {"dim": 1}, lambda t: SEVERAL_AXES[name](t, 1, False), rtol32=1e-6)
    if name not in ("amax", "amin"):
        check_op(name, (X[:, :0],), {"dim": 1}, lambda t: SEVERAL_AXES[name](t, 1, False))


@pytest.mark.parametrize("name", ONE_AXIS)
def test_nan_along_one_axis(name: str) -> None:
    odd = np.array([[1, np.nan, 2, np.nan], [np.inf, 1, -np.inf, 2]])
    check_op(name, (odd,), {"dim": 1}, lambda t: ONE_AXIS[name](t, 1))


I64, EMPTY = Spec((2, 3), "int64"), Spec((0, 3))
REFUSED: list[tuple[str, Spec, dict[str, Any], type[Fp8npError]]] = [
    *((name, Spec((2, 3)), {"dim": 2}, ShapeError) for name in (*SEVERAL_AXES, *ONE_AXIS, "cumsum", "cumprod")),
    *((name, Spec((2, 3)), {"dim": (0, -2)}, ShapeError) for name in SEVERAL_AXES),
    *((name, Spec((2, 3), "float8_e4m3fn"), {"dim": 0}, DTypeError) for name in (*SEVERAL_AXES, *ONE_AXIS, "cumsum", "cumprod")),
    *((name, EMPTY, {"dim": 0}, ShapeError) for name in ("amax", "amin", "argmax", "argmin", "max_dim", "min_dim")),
    *((name, I64, {}, DTypeError) for name in ("mean", "var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm")),
    ("mean", Spec((2, 3)), {"dtype": "int64"}, DTypeError),
    ("linalg_vector_norm", EMPTY, {"ord": math.inf}, ShapeError),
]


@pytest.mark.parametrize(("name", "spec", "attrs", "error"), REFUSED, ids=str)
def test_wrong_arguments_are_refused_by_name(name: str, spec: Spec, attrs: dict[str, Any], error: type[Fp8npError]) -> None:
    with pytest.raises(error, match=f"^{name}: ") as caught:
        OPS[name].shape(spec, **OPS[name].filled(attrs))
    assert type(caught.value) is error


def test_symbolic_sizes_stay() -> None:
    batch, tokens = symbol("B"), symbol("T")
    spec = Spec((batch, tokens * 2, 4))
    row = OPS["mean"]
    assert row.shape(spec, **row.filled({"dim": -1})) == Spec((batch, tokens * 2))
    assert row.shape(spec, **row.filled({"dim": 1, "keepdim": True})) == Spec((batch, 1, 4))
    assert OPS["max_dim"].shape(spec, dim=1, keepdim=False) == (Spec((batch, 4)), Spec((batch, 4), "int64"))


def test_foreign_corrections_and_orders_become_ours() -> None:
    def converted(name: str, **args: Any) -> dict[str, Any]:
        entry = next(f for row in OPS.values() for f in row.torch if f.name == name)
        assert entry.convert is not None
        result: dict[str, Any] = entry.convert(args)
        return result

    assert converted("aten.var.default", x="v") == {"x": "v", "correction": 1}
    assert converted("aten.var.dim", x="v", dim=(1,), correction=False) == {"x": "v", "dim": (1,), "correction": 0}
    assert converted("aten.std.correction", x="v", correction=None) == {"x": "v", "correction": 1}
    assert converted("aten.linalg_vector_norm.default", x="v", ord=1) == {"x": "v", "ord": 1}
    with pytest.raises(ValueError, match="norm"):
        converted("aten.linalg_vector_norm.default", x="v", dtype=torch.int64)
