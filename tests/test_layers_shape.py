"""Ops that move, repeat, cut, join and make elements, against PyTorch; their rules for symbolic sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from _layers import check_op
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.dims import evaluate, symbol
from fp8np.errors import DTypeError, Fp8npError, GraphError, ShapeError
from fp8np.layers._op import OPS, Spec

torch = pytest.importorskip("torch")

B, T, H = symbol("B"), symbol("T"), symbol("H")
rng = np.random.default_rng(0)
Case = tuple[str, tuple[Any, ...], Mapping[str, Any], Callable[..., Any], Any]


def x(*shape: int) -> Any:
    return rng.normal(size=shape)


def ints(limit: int, *shape: int) -> Any:
    return rng.integers(0, limit, shape)


def indexed(t: Any, *indices: Any) -> Any:
    # Not t[...]: Python's brackets take tensors without axes for numbers.
    return torch.ops.aten.index.Tensor(t, indices)


X234, BT = x(2, 3, 4), {0: {0: "B", 1: "T"}}

CASES: list[Case] = [
    ("reshape", (X234,), {"shape": (6, 4)}, lambda t: t.reshape(6, 4), None),
    ("reshape", (X234,), {"shape": (-1, 4)}, lambda t: t.reshape(-1, 4), BT),
    ("reshape", (X234,), {"shape": (4, -1, 2)}, lambda t: t.reshape(4, -1, 2), None),
    ("reshape", (X234,), {"shape": (-1,)}, lambda t: t.view(-1), {0: {0: "B", 1: "T", 2: "C"}}),
    ("reshape", (x(0, 3),), {"shape": (-1, 3, 1)}, lambda t: t.reshape(-1, 3, 1), None),
    ("reshape", (x(),), {"shape": (1, 1)}, lambda t: t.reshape(1, 1), None),
    ("reshape", (x(1, 1),), {"shape": ()}, lambda t: t.reshape(()), None),
    ("reshape", (ints(9, 2, 3), x(3, 2)), {}, lambda t, u: t.reshape_as(u), None),
    ("flatten", (X234,), {}, lambda t: t.flatten(), BT),
    ("flatten", (x(2, 3, 4, 5),), {"start_dim": 1}, lambda t: t.flatten(1), {0: {0: "B", 1: "C", 3: "W"}}),
    ("flatten", (x(2, 3, 4, 5),), {"start_dim": -3, "end_dim": -2}, lambda t: t.flatten(-3, -2), None),
    ("flatten", (x(),), {}, lambda t: t.flatten(), None),
    ("flatten", (x(0, 3, 2),), {"start_dim": 1}, lambda t: t.flatten(1), None),
    ("unflatten", (x(2, 12),), {"dim": -1, "sizes": (3, -1)}, lambda t: t.unflatten(-1, (3, -1)), {0: {0: "B"}}),
    ("unflatten", (x(12, 2),), {"dim": 0, "sizes": (3, 2, 2)}, lambda t: t.unflatten(0, (3, 2, 2)), None),
    ("squeeze", (x(1, 2, 1),), {}, lambda t: t.squeeze(), None),
    ("squeeze", (x(1, 2, 1),), {"dim": -1}, lambda t: t.squeeze(-1), {0: {0: "B"}}),
    ("squeeze", (x(1, 2, 1),), {"dim": 1}, lambda t: t.squeeze(1), None),
    ("squeeze", (x(1, 2, 1),), {"dim": (0, -1)}, lambda t: t.squeeze((0, -1)), {0: {1: "T"}}),
    ("squeeze", (x(1, 2, 1),), {"dim": ()}, lambda t: t.squeeze(()), None),
    ("unsqueeze", (X234,), {"dim": 0}, lambda t: t.unsqueeze(0), BT),
    ("unsqueeze", (X234,), {"dim": -1}, lambda t: t.unsqueeze(-1), BT),
    ("unsqueeze", (x(),), {"dim": 0}, lambda t: t.unsqueeze(0), None),
    ("permute", (X234,), {"dims": (2, 0, 1)}, lambda t: t.permute(2, 0, 1), BT),
    ("permute", (X234,), {"dims": (-1, 0, -2)}, lambda t: t.permute(-1, 0, -2), BT),
    ("permute", (x(),), {"dims": ()}, lambda t: t.permute(()), None),
    ("transpose", (X234,), {"dim0": 0, "dim1": -1}, lambda t: t.transpose(0, -1), BT),
    ("movedim", (X234,), {"source": 0, "destination": -1}, lambda t: t.movedim(0, -1), BT),
    ("movedim", (x(2, 3, 4, 5),), {"source": (3, 0), "destination": (0, 2)}, lambda t: t.movedim((3, 0), (0, 2)), BT),
    ("flip", (X234,), {"dims": (0, -1)}, lambda t: t.flip(0, -1), BT),
    ("roll", (X234,), {"shifts": (1, -2), "dims": (0, 2)}, lambda t: t.roll((1, -2), (0, 2)), BT),
    ("roll", (X234,), {"shifts": (5,)}, lambda t: t.roll(5), BT),
    ("expand", (x(3, 1),), {"size": (2, -1, 4)}, lambda t: t.expand(2, -1, 4), {0: {0: "T"}}),
    ("expand", (x(3, 1), x(2, 3, 4)), {}, lambda t, u: t.expand_as(u), {0: {0: "T"}, 1: {1: "T"}}),
    ("expand", (x(),), {"size": (2, 0)}, lambda t: t.expand(2, 0), None),
    ("repeat", (x(3, 2),), {"repeats": (2, 1, 3)}, lambda t: t.repeat(2, 1, 3), {0: {0: "T"}}),
    ("repeat", (x(3, 2),), {"repeats": (2,)}, lambda t: t.tile((2,)), {0: {1: "T"}}),
    ("repeat", (x(3, 2),), {"repeats": (0, 2)}, lambda t: t.repeat(0, 2), None),
    ("repeat_interleave", (X234,), {"repeats": 2, "dim": -2}, lambda t: t.repeat_interleave(2, -2), BT),
    ("repeat_interleave", (X234,), {"repeats": 2}, lambda t: t.repeat_interleave(2), BT),
    ("slice", (X234,), {}, lambda t: t, BT),
    ("slice", (X234,), {"dim": 2, "start": 1, "end": -1}, lambda t: t[..., 1:-1], BT),
    ("slice", (X234,), {"dim": 1, "start": 1, "end": 2**63 - 1}, lambda t: t[:, 1:], BT),
    ("slice", (X234,), {"dim": -2, "start": -2}, lambda t: t[:, -2:], BT),
    ("slice", (X234,), {"dim": 1, "end": 2}, lambda t: t[:, :2], BT),
    ("slice", (X234,), {"dim": 1, "end": -1, "step": 2}, lambda t: t[:, :-1:2], BT),
    ("slice", (X234,), {"dim": 2, "start": 3, "end": 1}, lambda t: t[..., 3:1], None),
    ("slice", (X234,), {"dim": 2, "start": -9, "end": 9, "step": 3}, lambda t: t[..., -9:9:3], None),
    ("narrow", (X234,), {"dim": -1, "start": 1, "length": 2}, lambda t: t.narrow(-1, 1, 2), BT),
    ("narrow", (X234,), {"dim": 1, "start": -2, "length": 2}, lambda t: t.narrow(1, -2, 2), BT),
    ("select", (X234,), {"dim": 1, "index": -1}, lambda t: t.select(1, -1), BT),
    ("select", (x(3),), {"dim": 0, "index": 2}, lambda t: t[2], {0: {0: "T"}}),
    ("split", (x(7, 2),), {"split_size": 3}, lambda t: t.split(3), None),
    ("split", (x(2, 6),), {"split_size": 3, "dim": -1}, lambda t: t.split(3, -1), {0: {0: "B"}}),
    ("split", (x(2, 6),), {"split_size": (1, 0, 5), "dim": 1}, lambda t: t.split((1, 0, 5), 1), {0: {0: "B"}}),
    ("split", (x(0, 2),), {"split_size": 3}, lambda t: t.split(3), None),
    ("split", (x(3, 2),), {"split_size": 3}, lambda t: t.split(3), None),
    *(("chunk", (x(n, 2),), {"chunks": 4}, lambda t: t.chunk(4), {0: {1: "T"}}) for n in (0, 1, 4, 5, 6, 8, 9)),
    ("unbind", (X234,), {"dim": -1}, lambda t: t.unbind(-1), BT),
    ("unbind", (x(3),), {}, lambda t: t.unbind(), None),
    ("concat", (x(2, 3), x(2, 1), x(2, 0)), {"dim": -1}, lambda *t: torch.cat(t, -1), {0: {0: "B", 1: "T"}, 1: {0: "B"}, 2: {0: "B"}}),
    ("concat", (x(2, 3), ints(5, 4, 3)), {}, lambda *t: torch.cat(t), None),
    ("concat", (np.ones((2, 3), bool), ints(5, 4, 3)), {}, lambda *t: torch.cat(t), None),
    ("stack", (x(2, 3), x(2, 3)), {"dim": -1}, lambda *t: torch.stack(t, -1), {0: {0: "B", 1: "T"}, 1: {0: "B", 1: "T"}}),
    ("stack", (x(),), {}, lambda *t: torch.stack(t), None),
    ("gather", (X234, ints(3, 2, 5, 4)), {"dim": 1}, lambda t, i: t.gather(1, i), {0: {0: "B", 1: "T"}, 1: {0: "B", 1: "N"}}),
    ("gather", (X234, ints(4, 1, 2, 6)), {"dim": -1}, lambda t, i: t.gather(-1, i), None),
    ("index_select", (X234, ints(3, 5)), {"dim": 1}, lambda t, i: t.index_select(1, i), {0: {0: "B", 1: "T"}, 1: {0: "N"}}),
    ("index_select", (X234, ints(3)), {"dim": 1}, lambda t, i: t.index_select(1, i), BT),
    ("index_select", (X234, ints(3, 5).astype(np.int32)), {"dim": -2}, lambda t, i: t.index_select(-2, i), BT),
    ("index", (X234, ints(2, 5)), {}, indexed, {0: {1: "T"}, 1: {0: "N"}}),
    ("index", (X234, None, ints(3, 5, 1), ints(4, 6)), {}, indexed, {0: {0: "B"}, 2: {0: "N"}, 3: {0: "M"}}),
    ("index", (X234, ints(2, 5), None, ints(4, 5)), {}, indexed, {0: {1: "T"}, 1: {0: "N"}, 3: {0: "N"}}),
    ("index", (x(2, 3, 4, 5), None, ints(3, 6), None, ints(5, 6)), {}, indexed, {0: {0: "B", 2: "C"}}),
    ("index", (X234, None, ints(3), None), {}, indexed, BT),
    ("index", (X234, ints(2), None, ints(4, 6)), {}, indexed, BT),
    ("index", (X234, None, np.array([-1, 0])), {}, indexed, BT),
    ("tril", (X234,), {"diagonal": -1}, lambda t: t.tril(-1), BT),
    ("triu", (np.ones((3, 4), bool),), {"diagonal": 1}, lambda t: t.triu(1), {0: {0: "T"}}),
    ("full", (X234,), {"fill_value": 2}, lambda t: torch.full_like(t, 2), BT),
    ("full", (X234,), {"fill_value": 2.5, "dtype": "int64"}, lambda t: torch.full_like(t, 2.5, dtype=torch.int64), BT),
    ("full", (X234,), {"fill_value": 1, "dtype": "bool"}, lambda t: torch.ones_like(t, dtype=torch.bool), BT),
    ("full", (ints(3, 2),), {"fill_value": 1, "shape": (2, 0)}, lambda t: t.new_ones(2, 0), None),
    ("full", (X234,), {"fill_value": -1e30, "shape": ()}, lambda t: t.new_full((), -1e30), None),
    ("fill", (X234, np.array(3)), {}, lambda t, v: t.fill_(v), BT),
    ("fill", (ints(3, 2), np.array(1)), {}, lambda t, v: t.fill_(v), None),
    ("cast", (X234 * 9,), {"dtype": "int64"}, lambda t: t.long(), BT),
    ("cast", (X234,), {"dtype": "bool"}, lambda t: t.bool(), BT),
    ("cast", (X234,), {"dtype": "float32"}, lambda t: t, BT),
    ("cast", (X234, ints(3, 1)), {}, lambda t, u: t.type_as(u), BT),
    ("cast", (ints(300, 5), np.zeros(1, np.uint8)), {}, lambda t, u: t.to(u), None),
    ("cast", (ints(3, 5),), {}, lambda t: t, None),
    ("identity", (X234,), {}, lambda t: t, BT),
    ("identity", (ints(3, 5),), {}, lambda t: t, None),
    ("diff", (X234,), {}, lambda t: t.diff(), BT),
    ("diff", (X234, x(2, 1, 4), None), {"dim": 1, "n": 2}, lambda t, p, _: t.diff(2, 1, p), {0: {1: "T"}}),
    ("diff", (ints(9, 4), ints(9, 1), ints(9, 2)), {}, lambda t, p, a: t.diff(1, 0, p, a), {0: {0: "T"}}),
    ("diff", (ints(9, 4) > 4,), {"n": 2}, lambda t: t.diff(2), None),
    ("diff", (x(2),), {"n": 5}, lambda t: t.diff(5), None),
    ("meshgrid", (x(2), x(3), x(4)), {}, lambda *t: torch.meshgrid(t, indexing="ij"), {0: {0: "T"}, 1: {0: "S"}}),
    ("meshgrid", (x(2), x(3), x()), {"indexing": "xy"}, lambda *t: torch.meshgrid(t, indexing="xy"), {0: {0: "T"}, 1: {0: "S"}}),
    ("meshgrid", (x(2),), {"indexing": "xy"}, lambda *t: torch.meshgrid(t, indexing="xy"), None),
    ("weight_norm", (x(4, 3, 2), x(4, 1, 1)), {}, lambda v, g: torch._weight_norm(v, g, 0), None),
    ("weight_norm", (x(4, 3, 2), x(1, 1, 2)), {"dim": 2}, lambda v, g: torch._weight_norm(v, g, 2), None),
    ("weight_norm", (x(4, 3), x()), {"dim": -1}, lambda v, g: torch._weight_norm(v, g, -1), None),
]


@pytest.mark.parametrize(("name", "inputs", "attrs", "torch_fn", "symbolic"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_against_pytorch(name: str, inputs: tuple[Any, ...], attrs: Mapping[str, Any], torch_fn: Any, symbolic: Any) -> None:
    check_op(name, inputs, attrs, torch_fn, symbolic=symbolic, rtol32=1e-6)


MADE: list[tuple[str, dict[str, Any], Callable[[], Any]]] = [
    ("full", {"shape": (2, 3), "fill_value": 0.0}, lambda: torch.zeros(2, 3)),
    ("full", {"shape": (), "fill_value": 3}, lambda: torch.full((), 3)),
    ("full", {"shape": (0,), "fill_value": True}, lambda: torch.full((0,), True)),
    ("full", {"shape": (2,), "fill_value": 3, "dtype": "float32"}, lambda: torch.full((2,), 3, dtype=torch.float32)),
    ("arange", {"end": 5}, lambda: torch.arange(5)),
    ("arange", {"end": 0}, lambda: torch.arange(0)),
    ("arange", {"start": 2, "end": 9, "step": 3}, lambda: torch.arange(2, 9, 3)),
    ("arange", {"start": 9, "end": 2, "step": -3}, lambda: torch.arange(9, 2, -3)),
    ("arange", {"end": 2.5}, lambda: torch.arange(2.5)),
    ("arange", {"end": 1.0, "step": 0.25}, lambda: torch.arange(0, 1.0, 0.25)),
    ("arange", {"end": 4, "dtype": "float32"}, lambda: torch.arange(4, dtype=torch.float32)),
    ("arange", {"end": 4, "dtype": "int32"}, lambda: torch.arange(4, dtype=torch.int32)),
    *(
        (name, {"row": r, "col": c, "offset": o}, lambda name=name, r=r, c=c, o=o: getattr(torch, name)(r, c, o))
        for name in ("tril_indices", "triu_indices")
        for r, c, o in ((3, 3, 0), (3, 5, 1), (5, 3, -1), (2, 2, 4), (0, 3, 0))
    ),
]


@pytest.mark.parametrize(("name", "attrs", "torch_fn"), MADE, ids=str)
def test_tensors_made_from_numbers(name: str, attrs: dict[str, Any], torch_fn: Callable[[], Any]) -> None:
    full = OPS[name].filled(attrs)
    y = OPS[name].define(**full)
    np.testing.assert_array_equal(y, torch_fn().numpy(), strict=True)
    assert OPS[name].shape(**full) == Spec(y.shape, y.dtype.name)


def rule(name: str, *specs: Spec | None, **attrs: Any) -> Any:
    row = OPS[name]
    result = row.shape(*specs, **row.filled(attrs))
    return tuple(r.shape for r in result) if isinstance(result, tuple) else result.shape


SYMBOLIC: list[tuple[Any, Any]] = [
    (rule("reshape", Spec((B, T, 6)), shape=(B, -1, 2)), (B, T * 3, 2)),
    (rule("reshape", Spec((B, T + 1, 6)), shape=(-1, T + 1, 2, 3)), (B, T + 1, 2, 3)),
    (rule("reshape", Spec((B, T * 2 + 2)), shape=(-1, 2, T + 1)), (B, 2, T + 1)),
    (rule("reshape", Spec((B * T, 6)), shape=(B, T, 2, 3)), (B, T, 2, 3)),
    (rule("reshape", Spec((B, T, H)), shape=(B * T, -1)), (B * T, H)),
    (rule("reshape", Spec((B, T, 4)), shape=(B, 2, 2, -1)), (B, 2, 2, T)),
    (rule("reshape", Spec((B, 4, 3)), shape=(B, 2, 6)), (B, 2, 6)),
    (rule("flatten", Spec((B, T, 4))), (B * T * 4,)),
    (rule("unflatten", Spec((B, T * 4)), dim=1, sizes=(4, -1)), (B, 4, T)),
    (rule("expand", Spec((1, 1, 4)), size=(B, T, -1)), (B, T, 4)),
    (rule("expand", Spec((T,)), size=(B, T)), (B, T)),
    (rule("repeat", Spec((1, T, 4)), repeats=(B, 1, 1)), (B, T, 4)),
    (rule("slice", Spec((1, 512)), dim=1, end=T), (1, T)),
    (rule("slice", Spec((B, T)), dim=1, end=T), (B, T)),
    (rule("slice", Spec((B, T)), dim=1, start=1), (B, T - 1)),
    (rule("slice", Spec((B, T)), dim=1, start=-1), (B, 1)),
    (rule("slice", Spec((B, T)), dim=1, end=-1), (B, T - 1)),
    (rule("slice", Spec((B, T + H)), dim=1, start=T), (B, H)),
    (rule("slice", Spec((B, T)), dim=1, start=-H), (B, H)),
    (rule("slice", Spec((B, T)), dim=1, step=2), (B, (T + 1) // 2)),
    (rule("slice", Spec((B, T)), dim=1, start=2, end=7), (B, 5)),
    (rule("narrow", Spec((512,)), dim=0, start=0, length=T), (T,)),
    (rule("select", Spec((B, T, 4)), dim=1, index=T - 1), (B, 4)),
    (rule("concat", Spec((B, T)), Spec((B, 3)), Spec((B, T)), dim=1), (B, T * 2 + 3)),
    (rule("split", Spec((B, T * 3)), split_size=T, dim=1), ((B, T),) * 3),
    (rule("split", Spec((B, T * 3 + 1)), split_size=(T * 2, T + 1), dim=1), ((B, T * 2), (B, T + 1))),
    (rule("chunk", Spec((B, T * 3)), chunks=3, dim=1), ((B, T),) * 3),
    (rule("unbind", Spec((B, 2, T)), dim=1), ((B, T),) * 2),
    (rule("index", Spec((T, 4)), Spec((B, T), "int64")), (B, T, 4)),
    (rule("full", shape=(B, 1, T, T), fill_value=0.0), (B, 1, T, T)),
    (rule("arange", end=T), (T,)),
    (rule("arange", start=H, end=T + H), (T,)),
    (rule("arange", end=T, step=2), ((T + 1) // 2,)),
    (rule("squeeze", Spec((B, 1, T)), dim=1), (B, T)),
]


@pytest.mark.parametrize(("shape", "expected"), SYMBOLIC, ids=str)
def test_symbolic_sizes(shape: Any, expected: Any) -> None:
    at = {"B": 3, "T": 5, "H": 2}
    assert shape == expected or ([evaluate(s, at) for s in shape] == [evaluate(s, at) for s in expected] and "//" in str(shape))


I64, MASK = Spec((2, 3), "int64"), Spec((2, 3), "bool")
X, BTX = Spec((2, 3)), Spec((B, T))
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Fp8npError]]] = [
    ("reshape", (X,), {"shape": (4, 2)}, ShapeError),
    ("reshape", (X,), {"shape": (-1, 4)}, ShapeError),
    ("reshape", (X,), {"shape": (-1, -1)}, ShapeError),
    ("reshape", (Spec((0, 3)),), {"shape": (-1, 0)}, ShapeError),
    ("reshape", (BTX,), {"shape": (B, 4)}, ShapeError),
    ("reshape", (BTX,), {"shape": (-1, 4)}, ShapeError),
    ("reshape", (X,), {}, GraphError),
    ("reshape", (X, X), {"shape": (6,)}, GraphError),
    ("flatten", (X,), {"start_dim": 1, "end_dim": 0}, ShapeError),
    ("flatten", (X,), {"start_dim": 2}, ShapeError),
    ("unflatten", (X,), {"dim": 1, "sizes": (2, 2)}, ShapeError),
    ("squeeze", (BTX,), {}, ShapeError),
    ("squeeze", (BTX,), {"dim": 1}, ShapeError),
    ("unsqueeze", (X,), {"dim": 3}, ShapeError),
    ("permute", (X,), {"dims": (0, 0)}, ShapeError),
    ("permute", (X,), {"dims": (0,)}, ShapeError),
    ("permute", (X,), {"dims": ()}, ShapeError),
    ("transpose", (X,), {"dim0": 0, "dim1": 2}, ShapeError),
    ("movedim", (X,), {"source": (0, 1), "destination": 0}, ShapeError),
    ("flip", (X,), {"dims": (0, -2)}, ShapeError),
    ("roll", (X,), {"shifts": (1, 2), "dims": (0,)}, ShapeError),
    ("expand", (X,), {"size": (2, 4)}, ShapeError),
    ("expand", (X,), {"size": (3,)}, ShapeError),
    ("expand", (X,), {"size": (-1, 2, 3)}, ShapeError),
    ("expand", (X,), {"size": (1, 3)}, ShapeError),
    ("expand", (BTX,), {"size": (B, 4)}, ShapeError),
    ("expand", (X,), {}, GraphError),
    ("repeat", (X,), {"repeats": (1, -1)}, ShapeError),
    ("repeat_interleave", (X,), {"repeats": -1}, ShapeError),
    ("slice", (X,), {"step": 0}, ShapeError),
    ("slice", (X,), {"dim": 2}, ShapeError),
    ("narrow", (X,), {"dim": 0, "start": 1, "length": 2}, ShapeError),
    ("select", (X,), {"dim": 0, "index": 2}, ShapeError),
    ("split", (X,), {"split_size": (1, 1), "dim": 1}, ShapeError),
    ("split", (X,), {"split_size": 0}, ShapeError),
    ("split", (BTX,), {"split_size": 2}, ShapeError),
    ("chunk", (BTX,), {"chunks": 2}, ShapeError),
    ("chunk", (X,), {"chunks": 0}, ShapeError),
    ("unbind", (BTX,), {}, ShapeError),
    ("concat", (X, Spec((2, 4))), {"dim": 0}, ShapeError),
    ("concat", (X, Spec((2,))), {"dim": 0}, ShapeError),
    ("concat", (BTX, X), {"dim": 1}, ShapeError),
    ("concat", (), {}, ShapeError),
    ("stack", (X, Spec((3, 2))), {}, ShapeError),
    ("gather", (X, Spec((2,), "int64")), {"dim": 0}, ShapeError),
    ("gather", (X, Spec((2, 4), "int64")), {"dim": 0}, ShapeError),
    ("gather", (BTX, Spec((B, 4), "int64")), {"dim": 0}, ShapeError),
    ("gather", (X, X), {"dim": 0}, DTypeError),
    ("index_select", (X, I64), {"dim": 0}, ShapeError),
    ("index_select", (X, X), {"dim": 0}, DTypeError),
    ("index", (X, I64, I64, I64), {}, ShapeError),
    ("index", (X, I64, Spec((4,), "int64")), {}, ShapeError),
    ("index", (X, MASK), {}, DTypeError),
    ("tril", (Spec((3,)),), {}, ShapeError),
    ("full", (), {"fill_value": 0}, GraphError),
    ("full", (), {"fill_value": 0, "shape": (-1,)}, ShapeError),
    ("fill", (X, Spec((1,))), {}, ShapeError),
    ("arange", (), {"end": 5, "step": -1}, ShapeError),
    ("arange", (), {"end": 5, "step": 0}, ShapeError),
    ("arange", (), {"end": T, "step": 0.5}, ShapeError),
    ("cast", (X,), {"dtype": "float64"}, DTypeError),
    ("cast", (X, X), {"dtype": "bool"}, GraphError),
    ("diff", (X, Spec((2,))), {}, ShapeError),
    ("diff", (X,), {"n": -1}, GraphError),
    ("meshgrid", (X, X), {}, ShapeError),
    ("meshgrid", (), {}, ShapeError),
    ("meshgrid", (Spec((3,)),), {"indexing": "ji"}, GraphError),
    ("weight_norm", (X, Spec((2,))), {}, ShapeError),
]


@pytest.mark.parametrize(("name", "specs", "attrs", "error"), REFUSED, ids=str)
def test_wrong_arguments_are_refused_by_name(name: str, specs: Any, attrs: dict[str, Any], error: type[Fp8npError]) -> None:
    with pytest.raises(error, match=f"^{name}: ") as caught:
        rule(name, *specs, **attrs)
    assert type(caught.value) is error


@pytest.mark.parametrize("name", sorted({case[0] for case in CASES} - {"identity", "weight_norm"}))
def test_fp8_is_refused_by_name(name: str) -> None:
    specs, attrs = next((case[1], case[2]) for case in CASES if case[0] == name)
    with pytest.raises(DTypeError, match=f"^{name}: expected "):
        rule(name, *(None if s is None else Spec(s.shape, "float8_e5m2") for s in specs), **attrs)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    factors = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))

    def grouped() -> tuple[int, ...]:
        order = draw(st.permutations(factors))
        cuts = sorted(draw(st.sets(st.integers(0, len(order)))) | {0, len(order)})
        return tuple(math.prod(order[a:b]) for a, b in itertools.pairwise(cuts))

    target = list(grouped())
    if draw(st.booleans()):
        target[draw(st.integers(0, len(target) - 1))] = -1
    return grouped(), tuple(target)


@settings(deadline=None)
@given(reshapes())
def test_any_reshape(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    source, target = shapes
    y = np.zeros(source).reshape(target)
    assert rule("reshape", Spec(source), shape=target) == y.shape


bounds = st.one_of(st.none(), st.integers(-12, 12))


@settings(deadline=None)
@given(st.integers(0, 9), bounds, bounds, st.integers(1, 4))
def test_any_slice(size: int, start: int | None, end: int | None, step: int) -> None:
    y = OPS["slice"].define(np.arange(size), dim=0, start=start, end=end, step=step)
    assert y.tolist() == list(range(size))[start:end:step]
    assert rule("slice", Spec((size,)), start=start, end=end, step=step) == y.shape


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 9))
def test_any_chunk(size: int, chunks: int) -> None:
    parts = torch.zeros(size).chunk(chunks)
    assert rule("chunk", Spec((size,)), chunks=chunks) == tuple(tuple(p.shape) for p in parts)


@settings(deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(-4, 4).filter(bool))
def test_any_arange(start: int, end: int, step: int) -> None:
    if (end - start) * step >= 0:
        assert rule("arange", start=start, end=end, step=step) == (len(range(start, end, step)),)


def test_results_are_arrays_even_without_axes() -> None:
    one = np.ones(1, np.float32)
    for name, attrs in (("select", {"dim": 0, "index": 0}), ("squeeze", {}), ("reshape", {"shape": ()})):
        y = OPS[name].define(one, **OPS[name].filled(attrs))
        assert isinstance(y, np.ndarray)
        assert y.shape == ()
    assert all(isinstance(y, np.ndarray) for y in OPS["unbind"].define(one, dim=0))
    assert isinstance(OPS["index"].define(one, np.array(0)), np.ndarray)


def test_nan_and_infinity_become_integers_without_a_warning() -> None:
    y = OPS["cast"].define(np.array([np.nan, np.inf, 1.9, -1.9]), dtype="int64")
    assert y[2:].tolist() == [1, -1]


def foreign(name: str) -> Any:
    return next(f for row in OPS.values() for f in row.torch if f.name == name)


def converted(name: str, **args: Any) -> dict[str, Any]:
    entry = foreign(name)
    return {**entry.attrs, **(entry.convert(args) if entry.convert else args)}


def test_foreign_types_become_ours() -> None:
    assert converted("aten.to.dtype", x="v", dtype=torch.float16) == {"x": "v", "dtype": "float32"}
    assert converted("aten.to.dtype_layout", x="v") == {"x": "v", "dtype": None}
    assert converted("aten.zeros.default", shape=(2,)) == {"shape": (2,), "dtype": "float32", "fill_value": 0}
    assert converted("aten.ones.default", shape=(2,), dtype=torch.int64) == {"shape": (2,), "dtype": "int64", "fill_value": 1}
    assert converted("aten.new_ones.default", like="v", shape=(2,)) == {"like": "v", "shape": (2,), "dtype": None, "fill_value": 1}
    assert converted("aten.arange.default", end=3, dtype=torch.int16) == {"end": 3, "dtype": "int32"}
    with pytest.raises(ValueError, match="complex64"):
        converted("aten.to.dtype", x="v", dtype=torch.complex64)


def test_dropout_is_the_identity_only_when_evaluating() -> None:
    assert converted("aten.dropout.default", x="v", p=0.5, train=False) == {"x": "v"}
    assert converted("aten.dropout.default", x="v", p=0.0, train=True) == {"x": "v"}
    with pytest.raises(ValueError, match=r"model\.eval"):
        converted("aten.dropout.default", x="v", p=0.5, train=True)


def parameters(name: str) -> list[str]:
    operator, overload = name.removeprefix("aten.").rsplit(".", 1)
    return [a.name for a in getattr(getattr(torch.ops.aten, operator), overload)._schema.arguments]


def test_every_operator_named_exists_and_takes_these_parameters() -> None:
    seen: set[str] = set()
    for row in OPS.values():
        for entry in row.torch:
            assert entry.name not in seen
            seen.add(entry.name)
            assert len(entry.args) <= len(parameters(entry.name)), entry.name
            ours = {*row.input_names, *row.attrs}
            assert set(entry.attrs) <= ours, entry.name
            # What is not ours by name, `convert` takes out.
            assert entry.convert is not None or set(entry.args) - {""} <= ours, entry.name


def test_parameters_stand_where_the_schema_has_them() -> None:
    shared = {"dim", "keepdim", "dtype", "shifts", "alpha", "rounding_mode", "kernel_size", "stride", "dilation", "ceil_mode", "mode"}
    for row in OPS.values():
        for entry in row.torch:
            for ours, theirs in zip(entry.args, parameters(entry.name), strict=False):
                if theirs in shared:
                    assert ours in ("", theirs), (entry.name, theirs, ours)
