"""Elementwise ops and activations against PyTorch: values, special values, element types, broadcasting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.dims import symbol
from fp8np.errors import DTypeError, GraphError, ShapeError
from fp8np.layers._op import OPS, Spec

torch = pytest.importorskip("torch")
F = torch.nn.functional

B, T = symbol("B"), symbol("T")
SPECIAL = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -3.0, 6.0, 7.0, 20.0, 21.0, -21.0, 100.0, -100.0]
GRID = np.array(SPECIAL + np.linspace(-9, 9, 59).tolist())
DTYPES = ("bool", "uint8", "int32", "int64", "float32")

UNARY = {
    **{
        name: getattr(torch, name)
        for name in (
            *("neg", "abs", "sign", "square", "floor", "ceil", "trunc", "round", "exp", "exp2", "expm1", "log", "log2", "log1p"),
            *("sqrt", "rsqrt", "reciprocal", "sin", "cos", "tan", "atan", "erf", "isnan", "isinf", "logical_not", "bitwise_not"),
        )
    },
    **{name: getattr(torch, name) for name in ("relu", "sigmoid", "tanh")},
    **{name: getattr(F, name) for name in ("relu6", "hardsigmoid", "hardswish", "silu", "mish")},
    "log_sigmoid": F.logsigmoid,
}
ACTIVATIONS = ("relu", "relu6", "sigmoid", "log_sigmoid", "tanh", "hardsigmoid", "hardswish", "silu", "mish")
WITH_ATTRS: list[tuple[str, dict[str, Any], Callable[[Any], Any]]] = [
    ("gelu", {}, F.gelu),
    ("gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("leaky_relu", {}, F.leaky_relu),
    ("leaky_relu", {"negative_slope": 0.3}, lambda x: F.leaky_relu(x, 0.3)),
    ("hardtanh", {}, F.hardtanh),
    ("hardtanh", {"min_val": 0.0, "max_val": 6.0}, lambda x: F.hardtanh(x, 0, 6)),
    ("softplus", {}, F.softplus),
    ("softplus", {"beta": 2.0, "threshold": 5.0}, lambda x: F.softplus(x, 2, 5)),
    ("elu", {}, F.elu),
    ("elu", {"alpha": 1.5}, lambda x: F.elu(x, 1.5)),
    ("glu", {"dim": 0}, lambda x: F.glu(x, 0)),
    ("clamp", {"min": -1.0, "max": 2.0}, lambda x: torch.clamp(x, -1, 2)),
    ("clamp", {"min": 0.5}, lambda x: torch.clamp(x, min=0.5)),
    ("clamp", {"max": 0.5}, lambda x: torch.clamp(x, max=0.5)),
]


def run(name: str, *arrays: Any, **attrs: Any) -> Any:
    """The result of an op, once its shape rule agrees with it."""
    row = OPS[name]
    full = row.filled(attrs)
    specs = [None if a is None else Spec(a.shape, "float32" if a.dtype.kind == "f" else a.dtype.name) for a in arrays]
    rule = row.shape(*specs, **full)
    y = row.define(*arrays, **full)
    assert isinstance(y, np.ndarray)
    assert isinstance(rule, Spec)
    assert rule == Spec(y.shape, "float32" if y.dtype.kind == "f" else y.dtype.name)
    return y


def same(got: Any, want: Any, rtol: float) -> None:
    np.testing.assert_allclose(got, want.numpy(), rtol=rtol, atol=rtol * 1e-3, strict=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("name", "attrs", "torch_fn"), [*((n, {}, f) for n, f in UNARY.items() if n != "bitwise_not"), *WITH_ATTRS], ids=str
)
def test_one_operand(name: str, attrs: dict[str, Any], torch_fn: Callable[[Any], Any], dtype: Any) -> None:
    x = GRID.astype(dtype)
    # PyTorch's gelu has an absolute error of 1e-7 in float32, and even in float64 no digits far out: see below.
    x = np.where(x < -5, np.abs(x), x) if name == "gelu" else x
    want = torch_fn(torch.from_numpy(x.astype(np.float64)))
    single = dtype == np.float32
    same(run(name, x, **attrs), want.float() if single and want.is_floating_point() else want, 2e-6 if single else 1e-12)
    for shape in ((0,), (2, 0, 3), (2, 1, 4)) if name == "glu" else ((), (0,), (2, 0, 3), (2, 1, 4)):
        y = run(name, np.full(shape, 0.25, dtype), **attrs)
        same(y, torch_fn(torch.full(shape, 0.25, dtype=torch.from_numpy(x).dtype)), 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNARY)
def test_one_operand_of_every_type(name: str, dtype: str) -> None:
    x = np.array([[0, 1, 2], [3, 5, 1]]).astype(dtype)
    if not takes(name, dtype):
        with pytest.raises(DTypeError, match=f"^{name}: expected "):
            run(name, x)
    else:
        same(run(name, x), UNARY[name](torch.from_numpy(x)), 2e-6)


def takes(name: str, dtype: str) -> bool:
    """What a model may sensibly compute; PyTorch takes a little more, such as the exponential of a mask."""
    if name == "bitwise_not":
        return dtype != "float32"
    if name in ACTIVATIONS:
        return dtype == "float32"
    return (dtype != "bool" and (name, dtype) != ("neg", "uint8")) or name == "logical_not"


def test_gelu_keeps_its_digits_in_the_tail() -> None:
    for dtype in (np.float32, np.float64):
        x = np.array([-6.0, -8.0, -12.0], dtype)
        want = [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()]
        np.testing.assert_allclose(run("gelu", x), want, rtol=1e-6)
        # Out there x * sigmoid(u) is x * e^u.
        want = [v * math.exp(math.sqrt(8 / math.pi) * (v + 0.044715 * v**3)) for v in x.tolist()[:2]]
        np.testing.assert_allclose(run("gelu", x, approximate="tanh")[:2], want, rtol=1e-5)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{name: getattr(torch, name) for name in ("add", "sub", "mul", "div", "pow", "remainder", "minimum", "maximum", "atan2")},
    **{name: getattr(torch, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor")},
    **{name: getattr(torch, name) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")},
}
VALUES = {"bool": [True, False, True], "uint8": [3, 0, 7], "int32": [-3, 4, 2], "int64": [5, -1, 2], "float32": [1.5, -2.0, 0.5]}
NUMBERS = (True, 2, -0.5)


def operand(dtype: str, shape: tuple[int, ...]) -> Any:
    return np.resize(np.array(VALUES[dtype], dtype), shape)


def refused_by_torch(name: str, *operands: Any) -> bool:
    try:
        BINARY[name](*operands)
    except (RuntimeError, TypeError, NotImplementedError):
        return True
    return False


@pytest.mark.parametrize("name", BINARY)
def test_two_tensors_of_every_type(name: str) -> None:
    compared = 0
    for dx, dy in itertools.product(DTYPES, DTYPES):
        for sx, sy in (((2, 3), (3,)), ((2, 3), ()), ((), (2, 1)), ((), ())):
            x, y = operand(dx, sx), operand(dy, sy)
            if name in ("pow", "remainder"):
                y = np.asarray(np.abs(y) + np.ones((), y.dtype))
            tx, ty = torch.from_numpy(x), torch.from_numpy(y)
            if refused_by_torch(name, tx, ty):
                continue
            try:
                z = run(name, x, y)
            except DTypeError:
                # We take only what a model may sensibly hold: no powers, remainders or differences of masks, no angles of integers.
                assert {dx, dy} == {"bool"} or name == "atan2", (dx, dy)
                continue
            want = BINARY[name](tx, ty)
            same(z, want, 1e-6)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", [n for n in BINARY if n not in ("minimum", "maximum", "atan2") and not n.startswith("logical")])
def test_a_number_as_operand(name: str) -> None:
    compared = 0
    for dtype, number, number_first in itertools.product(DTYPES, NUMBERS, (False, True)):
        x = operand(dtype, (2, 3))
        if name == "pow":
            # A negative power of an integer is refused; see below.
            x, number = np.abs(x), abs(number)
        tx = torch.from_numpy(x)
        operands = (number, tx) if number_first else (tx, number)
        if refused_by_torch(name, *operands):
            continue
        try:
            z = run(name, *((None, x) if number_first else (x, None)), scalar=number)
        except DTypeError:
            assert dtype == "bool", (dtype, number)
            continue
        same(z, BINARY[name](*operands), 1e-6)
        compared += 1
    assert compared >= 4


def test_negative_powers_of_integers_are_refused() -> None:
    with pytest.raises(DTypeError, match="pow"):
        run("pow", operand("int64", (3,)), None, scalar=-2)
    same(run("pow", np.array([2, 4]), None, scalar=-0.5), torch.tensor([2, 4]) ** -0.5, 1e-6)


@pytest.mark.parametrize("name", BINARY)
def test_two_tensors_with_special_values(name: str) -> None:
    if name.startswith("bitwise"):
        return
    for dtype in (np.float64, np.float32):
        x, y = (np.ascontiguousarray(a, dtype) for a in np.meshgrid(GRID[:21], GRID[:21]))
        same(run(name, x, y), BINARY[name](torch.from_numpy(x), torch.from_numpy(y)), 1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("mode", [None, "floor", "trunc"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "int32", "uint8"])
def test_div_rounds_as_asked(mode: str | None, dtype: str) -> None:
    numbers = np.array([-7, -6, -1, 0, 1, 6, 7] if dtype != "uint8" else [0, 1, 6, 7])
    numbers = numbers / 2 if dtype.startswith("float") else numbers
    x, y = np.meshgrid(numbers.astype(dtype), numbers[numbers != 0].astype(dtype))
    same(run("div", x, y, rounding_mode=mode), torch.div(torch.from_numpy(x), torch.from_numpy(y), rounding_mode=mode), 1e-6)
    same(run("div", x, None, scalar=2, rounding_mode=mode), torch.div(torch.from_numpy(x), 2, rounding_mode=mode), 1e-6)


@pytest.mark.parametrize("name", ["add", "sub"])
def test_alpha(name: str) -> None:
    for dx, dy, alpha in (("float32", "float32", 0.5), ("int64", "int64", 3), ("float32", "int32", 2), ("int32", "float32", 2.5)):
        x, y = operand(dx, (2, 3)), operand(dy, (3,))
        torch_fn = getattr(torch, name)
        same(run(name, x, y, alpha=alpha), torch_fn(torch.from_numpy(x), torch.from_numpy(y), alpha=alpha), 1e-6)
    # rsub(x, 2, alpha=3) = 2 - 3 x
    x = operand("float32", (3,))
    same(run("sub", None, x, scalar=2, alpha=3), torch.rsub(torch.from_numpy(x), 2, alpha=3), 1e-6)
    with pytest.raises(DTypeError, match=name):
        run(name, operand("int64", (3,)), operand("int64", (3,)), alpha=0.5)


def test_numbers_in_place_of_tensors_in_traced_models() -> None:
    foreign = {entry.name: entry for name in ("add", "sub", "mul", "div", "pow", "eq") for entry in OPS[name].torch}
    for name, traced, expected in (
        ("aten.add.Tensor", {"x": "v", "y": 2, "alpha": 3}, {"x": "v", "scalar": 2, "alpha": 3}),
        ("aten.div.Tensor", {"x": "v", "y": 8.0}, {"x": "v", "scalar": 8.0}),
        ("aten.rsub.Scalar", {"y": "v", "scalar": 1.0}, {"y": "v", "scalar": 1.0}),
        ("aten.mul.Tensor", {"x": T, "y": "v"}, {"scalar": T, "y": "v"}),
        ("aten.eq.Tensor", {"x": "v", "y": "w"}, {"x": "v", "y": "w"}),
        ("aten.floor_divide.default", {"x": "v", "y": 2}, {"x": "v", "scalar": 2}),
    ):
        convert = foreign[name].convert
        assert convert is not None
        assert convert(traced) == expected


def test_numbers_too_large_for_float32_become_infinite() -> None:
    x = np.ones(2, np.float32)
    assert run("mul", x, None, scalar=-1e300).tolist() == [-np.inf] * 2
    assert run("masked_fill", x, np.array([True, False]), None, scalar=-1e300).tolist() == [-np.inf, 1]


def test_where() -> None:
    condition = np.array([[True], [False]])
    for dx, dy in itertools.product(DTYPES, DTYPES):
        x, y = operand(dx, (3,)), operand(dy, ())
        tc, tx, ty = map(torch.from_numpy, (condition, x, y))
        same(run("where", condition, x, y), torch.where(tc, tx, ty), 0)
    for number in NUMBERS:
        x = operand("float32", (2, 3))
        same(run("where", condition, x, y_scalar=number), torch.where(tc, torch.from_numpy(x), number), 0)
        same(run("where", condition, None, x, x_scalar=number), torch.where(tc, number, torch.from_numpy(x)), 0)
    same(run("where", condition, x_scalar=1.0, y_scalar=2.0), torch.where(tc, 1.0, 2.0), 0)
    assert run("where", condition, x.astype(np.float64), y_scalar=np.inf).dtype == np.float64
    with pytest.raises(GraphError, match="where: expected one of y and y_scalar"):
        run("where", condition, x)
    with pytest.raises(DTypeError, match="where"):
        run("where", x, x, x)


def test_masked_fill() -> None:
    mask = np.array([[True], [False]])
    for dtype in DTYPES:
        x = operand(dtype, (3,))
        for value in (0, 1):
            want = torch.masked_fill(torch.from_numpy(x), torch.from_numpy(mask), value)
            same(run("masked_fill", x, mask, None, scalar=value), want, 0)
            same(run("masked_fill", x, mask, np.array(value)), want, 0)
    x = np.ones((2, 3))
    assert run("masked_fill", x, mask, None, scalar=-np.inf).dtype == np.float64
    with pytest.raises(GraphError, match="masked_fill"):
        run("masked_fill", x, mask)
    with pytest.raises(DTypeError, match="masked_fill: expected bool"):
        run("masked_fill", x, x, None, scalar=0)


def test_clamp_by_tensors_and_across_types() -> None:
    for dtype, bound in itertools.product(DTYPES[1:], DTYPES[1:]):
        x, low = operand(dtype, (2, 3)), operand(bound, (3,))
        tx, tlow = torch.from_numpy(x), torch.from_numpy(low)
        same(run("clamp", x, low), torch.clamp(tx, min=tlow), 0)
        same(run("clamp", x, None, low), torch.clamp(tx, max=tlow), 0)
        same(run("clamp", x, low, np.full((), 1, bound)), torch.clamp(tx, tlow, torch.full((), 1, dtype=tlow.dtype)), 0)
    x = operand("int64", (3,))
    same(run("clamp", x, min=0.5), torch.clamp(torch.from_numpy(x), min=0.5), 0)
    same(run("clamp", x, min=3, max=1), torch.clamp(torch.from_numpy(x), min=3, max=1), 0)
    for bad in ({}, {"min": 1, "lower": x}):
        with pytest.raises(GraphError, match="clamp: expected a tensor or a number"):
            run("clamp", x, bad.get("lower"), **{k: v for k, v in bad.items() if k != "lower"})


@pytest.mark.parametrize(
    ("shape", "weights"), [((4,), 1), ((), 1), ((2, 3), 3), ((2, 3), 1), ((2, 3, 4, 5), 3), ((0, 3, 2), 3), ((2, 1, 4), 1)]
)
def test_prelu(shape: tuple[int, ...], weights: int) -> None:
    x, w = np.random.default_rng(1).normal(size=shape), np.linspace(0.1, 0.7, weights)
    for dtype in (np.float64, np.float32):
        y = run("prelu", np.asarray(x, dtype), w.astype(dtype))
        same(y, F.prelu(torch.from_numpy(np.asarray(x, dtype)), torch.from_numpy(w.astype(dtype))), 1e-7)
    with pytest.raises(ShapeError, match="prelu: expected weight"):
        run("prelu", np.asarray(x), np.ones(7))


def test_prelu_and_glu_with_symbolic_sizes() -> None:
    assert OPS["prelu"].shape(Spec((B, T, 3)), Spec((T,))) == Spec((B, T, 3))
    assert OPS["glu"].shape(Spec((B, T * 2)), dim=-1) == Spec((B, T))
    for x in (Spec((B, T)), Spec((B, 3))):
        with pytest.raises(ShapeError, match="glu: expected an even size"):
            OPS["glu"].shape(x, dim=-1)


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_glu(dim: int) -> None:
    x = np.random.default_rng(2).normal(size=(4, 6))
    same(run("glu", x, dim=dim), F.glu(torch.from_numpy(x), dim), 1e-12)


@st.composite
def shapes_that_broadcast(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    whole = draw(st.lists(st.integers(0, 3), max_size=4))
    parts = []
    for _ in range(2):
        cut = draw(st.integers(0, len(whole)))
        parts.append(tuple(draw(st.sampled_from([1, n])) for n in whole[cut:]))
    return parts[0], parts[1]


@settings(deadline=None)
@given(shapes_that_broadcast(), st.sampled_from(["add", "div", "maximum", "lt", "where"]), st.sampled_from([np.float32, np.float64]))
def test_broadcasting(shapes: tuple[tuple[int, ...], tuple[int, ...]], name: str, dtype: Any) -> None:
    x, y = (np.full(shape, 2, dtype) for shape in shapes)
    z = run("where", x > 0, x, y) if name == "where" else run(name, x, y)
    assert z.shape == np.broadcast_shapes(*shapes)
    assert z.dtype == (np.bool_ if name == "lt" else dtype)


def test_broadcasting_of_symbolic_sizes() -> None:
    shape = OPS["mul"].shape
    assert shape(Spec((B, 1, T)), Spec((3, 1)), scalar=None) == Spec((B, 3, T))
    assert shape(Spec((B, T * 2)), Spec((1, T + T)), scalar=None) == Spec((B, T * 2))
    for wrong in (Spec((B, T + 1)), Spec((B, 2)), Spec((T, T))):
        with pytest.raises(ShapeError, match=r"mul: shapes do not broadcast: \(B, T\) and"):
            shape(Spec((B, T)), wrong, scalar=None)
    # A size may serve as a number: it is an integer.
    assert shape(Spec((B,), "int32"), None, scalar=T) == Spec((B,), "int32")
    assert shape(Spec((B,), "bool"), None, scalar=T) == Spec((B,), "int64")


@pytest.mark.parametrize("name", [n for n in (*UNARY, "gelu", "elu", "glu", "prelu") if n not in ("logical_not", "bitwise_not")])
def test_wrong_types_are_refused_by_name(name: str) -> None:
    row = OPS[name]
    for dtype in ("float8_e4m3fn", "complex64"):
        with pytest.raises(DTypeError, match=f"^{name}: expected "):
            row.shape(*[Spec((2, 2), dtype)] * len(row.inputs), **row.filled({}))


@pytest.mark.parametrize("name", [*(name for name in BINARY if not OPS[name].quantizable), "where", "masked_fill", "clamp"])
def test_fp8_operands_are_refused_by_name(name: str) -> None:
    row = OPS[name]
    specs = [Spec((2, 2), "bool")] * (len(row.inputs) - 2) + [Spec((2, 2)), Spec((2, 2), "float8_e5m2")]
    with pytest.raises(DTypeError, match=f"^{name}: expected "):
        row.shape(*specs, **row.filled({}))


def test_wrong_operands_and_attributes_are_refused() -> None:
    x = np.ones(2)
    for arrays, attrs in (((x,), {}), ((x, x), {"scalar": 1}), ((None, None), {"scalar": 1})):
        with pytest.raises(GraphError, match="add: expected two of x, y and scalar"):
            run("add", *arrays, **attrs)
    with pytest.raises(GraphError, match="div: expected rounding_mode"):
        run("div", x, x, rounding_mode="ceil")
    with pytest.raises(GraphError, match="gelu: expected approximate"):
        run("gelu", x, approximate="erf")
    mask = np.ones(2, bool)
    for name, options in (("sub", {}), ("div", {"rounding_mode": "floor"}), ("pow", {})):
        with pytest.raises(DTypeError, match=name):
            run(name, mask, mask, **options)
