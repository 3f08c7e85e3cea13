"""Element types of the ops: how they mix, and what other frameworks' types become.

There are five: bool, uint8, int32, int64 and float32. float64 in a definition is float32 computed in more precision, so it is
never named; every other floating type of a model becomes float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.dims import Dim
from fp8np.errors import DTypeError
from fp8np.layers._op import Spec

Scalar = bool | int | float | Dim
"""A number among the operands: an attribute, not a tensor."""

TYPES = ("bool", "uint8", "int32", "int64", "float32")
_KIND = {"bool": 0, "uint8": 1, "int32": 1, "int64": 1, "float32": 2}

_STORED = {name: name for name in TYPES} | {
    "float64": "float32",
    "float16": "float32",
    "bfloat16": "float32",
    "int16": "int32",
    "int8": "int32",
}


def checked(op: str, *specs: Spec, kinds: tuple[str, ...] = TYPES) -> None:
    """Raises DTypeError where a tensor's element type is not among `kinds`."""
    for spec in specs:
        if spec.dtype not in kinds:
            raise DTypeError(f"{op}: expected {' or '.join(kinds)}, got {spec}")


def checked_index(op: str, spec: Spec) -> None:
    """Raises DTypeError where a tensor cannot serve as an index."""
    checked(op, spec, kinds=("int32", "int64"))


def promoted(op: str, *operands: Spec | Scalar) -> str:
    """The type in which operands meet, as PyTorch has it.

    float32 wins over integers and integers over bool. Within a kind, tensors with axes decide, then 0-d tensors, then
    numbers; among equals the wider type: uint8 (3,) + int64 () is uint8, and int64 (3,) * 0.5 is float32.
    """
    ranks = []
    for operand in operands:
        if isinstance(operand, Spec):
            checked(op, operand)
            dtype, weight = operand.dtype, 2 if operand.ndim else 1
        else:
            dtype, weight = number_type(operand), 0
        ranks.append((_KIND[dtype], weight, TYPES.index(dtype)))
    return TYPES[max(ranks)[2]]


def number_type(value: Scalar) -> str:
    """The type of the tensor that a bare number makes."""
    if isinstance(value, bool):
        return "bool"
    return "float32" if isinstance(value, float) else "int64"


def together(*operands: Any) -> list[npt.NDArray[Any]]:
    """Arrays and numbers as arrays of the type in which they meet, float64 where one of them is float64."""
    arrays = [value for value in operands if isinstance(value, np.ndarray)]
    name = promoted("", *(_spec(v) if isinstance(v, np.ndarray) else v for v in operands))
    dtype = np.result_type(*(a.dtype for a in arrays if a.dtype.kind == "f"), name) if name == "float32" else np.dtype(name)
    return [np.asarray(value).astype(dtype, copy=False) for value in operands]


def _spec(array: npt.NDArray[Any]) -> Spec:
    return Spec(array.shape, "float32" if array.dtype.kind == "f" else array.dtype.name)


def as_float(x: Any) -> Any:
    """Floating arrays as they are, others as float32."""
    return x if x.dtype.kind == "f" else x.astype(np.float32)


def as_type(x: Any, dtype: str) -> Any:
    """x in a named type; a floating array that shall be float32 keeps its own precision. NaN and Inf become some integer."""
    if dtype == "float32":
        return as_float(x)
    with np.errstate(invalid="ignore"):
        return x.astype(dtype, copy=False)


def stored_type(dtype: object) -> str | None:
    """The type of ours for one of PyTorch's (``torch.float16`` or its name); None stays None.

    Raises:
        ValueError: there is none, as for complex numbers.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in _STORED:
        raise ValueError(f"element type {name}: expected one of {', '.join(_STORED)}")
    return _STORED[name]


def typed(args: dict[str, Any]) -> dict[str, Any]:
    """The `convert` of operators whose ``dtype`` is one of PyTorch's types."""
    return {**args, "dtype": stored_type(args.get("dtype"))}
