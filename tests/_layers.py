"""How every op is tested: its NumPy definition against PyTorch, and its shape rule against the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from _graphs import one_node

from fp8np.dims import Size, evaluate, symbol
from fp8np.graph import leaves
from fp8np.layers._op import OPS, Spec
from fp8np.model import Model

torch = pytest.importorskip("torch")

Symbolic = Mapping[int, Mapping[int, str]]
"""For an input's position, for an axis: the name of its size. ``{0: {0: "B"}}`` makes the first axis of the first input symbolic."""


def check_op(
    name: str,
    inputs: tuple[Any, ...],
    attrs: Mapping[str, Any],
    torch_fn: Callable[..., Any],
    *,
    symbolic: Symbolic | None = None,
    rtol: float = 1e-10,
    rtol32: float = 1e-4,
) -> None:
    """Checks an op on one example.

    The definition agrees with `torch_fn` in float64 (`rtol`, of the largest magnitude) and float32 (`rtol32`), keeps the
    precision of its arguments, and has the shape and type that the rule gives, for numbers and for symbolic sizes. A plan of the op
    agrees with `torch_fn`, too.

    Args:
        inputs: arrays (floats as float64), None for an optional one left out.
        torch_fn: the same in PyTorch, on tensors by position (None as None); attributes are up to the caller.
    """
    row = OPS[name]
    full = row.filled(attrs)
    expected = _tuple(torch_fn(*(None if a is None else torch.from_numpy(np.array(a)) for a in inputs)))
    for dtype, tolerance in ((np.float64, rtol), (np.float32, rtol32)):
        arrays = tuple(_cast(a, dtype) for a in inputs)
        results = _tuple(row.define(*arrays, **full))
        assert len(results) == len(expected)
        for got, want in zip(results, (e.numpy() for e in expected), strict=True):
            if want.dtype.kind == "f":
                assert got.dtype == dtype, f"{name}: {got.dtype} from {dtype}"
                finite = np.abs(want[np.isfinite(want)])
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * finite.max(initial=0), strict=dtype == np.float64)
            else:
                np.testing.assert_array_equal(got, want, strict=True)
    check_plan(name, arrays, attrs, expected, rtol32)
    specs = tuple(None if a is None else Spec(a.shape, a.dtype.name) for a in arrays)
    actual = tuple(Spec(r.shape, r.dtype.name) for r in results)
    assert _tuple(row.shape(*specs, **full)) == actual
    if symbolic:
        check_symbolic_shape(name, specs, full, symbolic, actual)


def check_plan(name: str, inputs: tuple[Any, ...], attrs: Mapping[str, Any], expected: tuple[Any, ...], tolerance: float) -> None:
    """Checks what a plan of the op gives for float32 inputs: all of them given, and all but the first weights."""
    for constants in {(), tuple(range(1, len(inputs)))}:
        graph, given = one_node(name, inputs, constants, attrs)
        for got, tensor in zip(leaves(Model(graph).run(given)), expected, strict=True):
            want = tensor.numpy()
            if want.dtype.kind == "f":
                assert got.dtype == np.float32
                finite = np.abs(want[np.isfinite(want)])
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * finite.max(initial=0))
            else:
                np.testing.assert_array_equal(got, want, strict=True)


def check_symbolic_shape(
    name: str, specs: tuple[Spec | None, ...], attrs: Mapping[str, Any], symbolic: Symbolic, actual: tuple[Spec, ...]
) -> None:
    """Checks that the shape rule with some sizes symbolic, evaluated at the true sizes, gives the `actual` specs."""
    sizes: dict[str, int] = {}
    renamed = list(specs)
    for i, axes in symbolic.items():
        spec = specs[i]
        assert spec is not None
        shape: list[Size] = list(spec.shape)
        for axis, size in axes.items():
            sizes[size] = evaluate(shape[axis], {})
            shape[axis] = symbol(size)
        renamed[i] = Spec(tuple(shape), spec.dtype)
    results = _tuple(OPS[name].shape(*renamed, **attrs))
    assert tuple(Spec(tuple(evaluate(s, sizes) for s in r.shape), r.dtype) for r in results) == actual


def _tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _cast(array: Any, dtype: Any) -> Any:
    return None if array is None else array.astype(dtype) if array.dtype.kind == "f" else array
