"""Activations and arithmetic of two operands: elements in whatever order they lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fp8np.graph import Node
from fp8np.kernels.pointwise import binary_task, unary_task
from fp8np.plan.builder import Builder, word
from fp8np.plan.storage import At, Buffer, Stored

__all__ = ["LOWERINGS"]

_INF = float("inf")


def _like(b: Builder, name: str, stored: Stored) -> Stored:
    out = Stored(At(Buffer(stored.size * 4)), stored.shape, stored.strides)
    b.stored[name] = out
    return out


def _unary(kind: Callable[[Mapping[str, Any]], tuple[str, float, float] | None]) -> Callable[[Builder, Node, Mapping[str, Any]], bool]:
    def lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
        how = kind(attrs)
        if how is None or b.facts[str(node.inputs[0])].dtype != "float32" or any(name is not None for name in node.inputs[1:]):
            return False
        x = b.flat(node.inputs[0])
        y = _like(b, node.outputs[0], x)
        b.emit(unary_task(word(x.at), word(y.at), x.size, *how))
        return True

    return lower


def _clamp(attrs: Mapping[str, Any]) -> tuple[str, float, float] | None:
    lo, hi = attrs["min"], attrs["max"]
    if not all(v is None or isinstance(v, int | float) for v in (lo, hi)):
        return None
    return "", -_INF if lo is None else float(lo), _INF if hi is None else float(hi)


def _by_name(name: str) -> Callable[[Mapping[str, Any]], tuple[str, float, float]]:
    return lambda attrs: (name, 0.0, 0.0)


_UNARY: dict[str, Callable[[Mapping[str, Any]], tuple[str, float, float] | None]] = {
    "relu": lambda a: ("", 0.0, _INF),
    "relu6": lambda a: ("", 0.0, 6.0),
    "hardtanh": lambda a: ("", float(a["min_val"]), float(a["max_val"])),
    "clamp": _clamp,
    "gelu": lambda a: ("gelu_tanh" if a["approximate"] == "tanh" else "gelu", 0.0, 0.0),
    "leaky_relu": lambda a: ("leaky_relu", float(a["negative_slope"]), 0.0),
    **{name: _by_name(name) for name in ("silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish", "log_sigmoid", "exp")},
}


def _binary(op: str) -> Callable[[Builder, Node, Mapping[str, Any]], bool]:
    def lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
        if any(value not in (None, 1, "") for value in attrs.values()) or len(node.inputs) != 2 or None in node.inputs:
            return False
        names = [str(name) for name in node.inputs]
        facts = [b.facts[name] for name in names]
        out = b.shape(node.outputs[0])
        if any(not f.dtype.startswith("float") for f in facts) or 0 in out:
            return False
        if facts[0].shape == facts[1].shape:
            x = b.flat(names[0])
            v = b.value(names[1])
            if v.strides != x.strides:
                x, v = b.plain(names[0]), b.plain(names[1])
            y = _like(b, node.outputs[0], x)
            b.emit(binary_task(word(x.at), word(v.at), word(y.at), op, (1, 1, x.size), (0, 0, 1)))
            return True
        return _broadcast(b, node, op, names, out)

    return lower


_SWAPPED = {"add": "add", "sub": "rsub", "mul": "mul", "div": "rdiv"}


def _broadcast(b: Builder, node: Node, op: str, names: list[str], out: tuple[int, ...]) -> bool:
    if b.shape(names[0]) != out:
        names, op = names[::-1], _SWAPPED.get(op, "")
    if b.shape(names[0]) != out or not op:
        return False
    shape = (*(1,) * (len(out) - len(b.shape(names[1]))), *b.shape(names[1]))
    v = b.plain(names[1])
    x = b.value(names[0])
    if len(out) == 4 and x.channels_last and shape[1] == out[1] and shape[2:] == (1, 1):
        sizes, strides = (out[0], out[2] * out[3], out[1]), (0 if shape[0] == 1 else out[1], 0, 1)
    else:
        x = b.plain(names[0])
        # The axes of out from which on v repeats, or before which it does.
        inner = next((i for i in range(len(out) + 1) if shape[i:] == out[i:] and all(n == 1 for n in shape[:i])), None)
        outer = next((i for i in range(len(out) + 1) if shape[:i] == out[:i] and all(n == 1 for n in shape[i:])), None)
        if inner is not None:
            n = math.prod(out[inner:])
            sizes, strides = (1, math.prod(out[:inner]), n), (0, 0, 1 if n > 1 else 0)
        elif outer is not None:
            sizes, strides = (1, math.prod(out[:outer]), math.prod(out[outer:])), (0, 1, 0)
        else:
            return False
    y = _like(b, node.outputs[0], x)
    b.emit(binary_task(word(x.at), word(v.at), word(y.at), op, sizes, strides))
    return True


LOWERINGS = {
    **{name: _unary(kind) for name, kind in _UNARY.items()},
    **{name: _binary(name) for name in ("add", "sub", "mul", "div")},
}
