"""Inputs as a model declares them: given in whatever form is handy, matched by name, checked and converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fp8np.dims import Dim
from fp8np.errors import InputError
from fp8np.graph import Value

__all__ = ["as_declared", "by_name", "declared_arrays", "signature"]


def declared_arrays(declared: Sequence[Value], inputs: Any) -> dict[str, Any]:
    """An array for each declared input, of its shape and type.

    Args:
        declared: what the model takes.
        inputs: an array (one input), a sequence in order, or a mapping by name.

    Raises:
        InputError: an input is missing, unknown, or of a wrong shape or type.

    >>> declared_arrays((Value("x", (2,), "float32"),), [np.array([1, 2])])
    {'x': array([1., 2.], dtype=float32)}
    """
    given = by_name(declared, inputs)
    missing = [str(v) for v in declared if v.name not in given]
    unknown = sorted(set(given) - {v.name for v in declared})
    if missing or unknown:
        problems = [f"missing {', '.join(missing)}"] if missing else []
        problems += [f"unknown {', '.join(unknown)}"] if unknown else []
        raise InputError(f"inputs: {'; '.join(problems)}; expected {signature(declared)}")
    return {value.name: as_declared(value, given[value.name]) for value in declared}


def by_name(declared: Sequence[Value], inputs: Any) -> dict[str, Any]:
    """What was given, by input name; neither complete nor checked.

    Raises:
        InputError: a sequence of another length than `declared`.
    """
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if not isinstance(inputs, tuple | list):
        inputs = (inputs,)
    if len(inputs) != len(declared):
        raise InputError(f"inputs: expected {len(declared)} ({signature(declared)}), got {len(inputs)}")
    return {value.name: array for value, array in zip(declared, inputs, strict=True)}


def as_declared(value: Value, given: Any) -> Any:
    """A C-contiguous array of the declared type. Floats of other widths are converted, integers too where none is lost.

    Raises:
        InputError: the shape or the type does not fit.
    """
    array = np.asarray(given)
    fits = len(array.shape) == len(value.shape) and all(
        isinstance(size, Dim) or size == n for size, n in zip(value.shape, array.shape, strict=True)
    )
    if not fits:
        raise InputError(f"input {value.name!r}: expected {value}, got shape {list(array.shape)}")
    if array.dtype == value.dtype:
        return np.ascontiguousarray(array).reshape(array.shape)
    if not np.can_cast(array.dtype, value.dtype, "same_kind"):
        raise InputError(f"input {value.name!r}: expected {value}, got {array.dtype}")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, value.dtype).reshape(array.shape)
    if array.dtype.kind in "iu" and converted.dtype.kind in "iu" and not np.array_equal(converted, array):
        raise InputError(f"input {value.name!r}: expected {value}, got {array.dtype} values that do not fit")
    return converted


def signature(declared: Sequence[Value]) -> str:
    """The inputs in words."""
    return ", ".join(map(str, declared))
