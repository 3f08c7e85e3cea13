"""`make_plan`: binds every node of a graph at known sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fp8np.check import infer
from fp8np.dims import evaluate
from fp8np.errors import GraphError, InputError
from fp8np.graph import Graph, Node, Value, constant_value, leaves
from fp8np.interpret import evaluated
from fp8np.kernels._program import Program, Task
from fp8np.kernels._threads import get_num_threads
from fp8np.layers._op import OPS
from fp8np.plan.builder import Builder, Host
from fp8np.plan.lowerings import LOWERINGS
from fp8np.plan.run import Plan
from fp8np.plan.storage import At, Buffer, Stored, assign, dense, places, resolved
from fp8np.plan.weights import Weights
from fp8np.tensor import QTensor

__all__ = ["make_plan"]


def make_plan(graph: Graph, sizes: Mapping[str, int], weights: Weights) -> Plan:
    """Binds every node of a checked and fused graph at the given sizes.

    Raises:
        InputError: the model cannot run at these sizes; the message names the node that cannot.
    """
    facts = {v.name: _concrete(v, sizes) for v in graph.inputs}
    facts |= {name: constant_value(name, constant) for name, constant in graph.constants.items()}
    full: dict[str, dict[str, Any]] = {}
    for node in graph.nodes:
        full[node.name] = attrs = evaluated(OPS[node.op].filled(node.attrs), sizes)
        try:
            specs = infer(node.replace(attrs=attrs), facts.__getitem__)
        except GraphError as error:
            raise InputError(f"the model cannot run at {_describe(sizes)}: {error}") from error
        for name, spec in zip(node.outputs, specs, strict=True):
            declared = _concrete(graph.values[name], sizes)
            if declared.shape != spec.shape:
                raise InputError(f"the model cannot run at {_describe(sizes)}: {node.place} gives {spec}, the model expects {declared}")
            facts[name] = declared
    builder = Builder(graph, facts, weights, get_num_threads())
    for value in graph.inputs:
        stored = dense(facts[value.name].shape, value.dtype)  # type: ignore[arg-type]
        builder.stored[value.name] = dataclasses.replace(stored, at=At(value.name))
    owners: list[str] = []
    for node in graph.nodes:
        _lower(builder, node, full[node.name])
        owners += [node.name] * (len(builder.steps) - len(owners))
    outputs = {name: _kept(builder, name) for name in leaves(graph.outputs)}
    owners += [""] * (len(builder.steps) - len(owners))
    return _finished(builder, outputs, tuple(owners))


def _lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> None:
    if node.op == "quantize":
        if node.outputs[0] not in b.quantized:
            b.quantize(node)
        return
    if node.op in LOWERINGS and LOWERINGS[node.op](b, node, attrs):
        return
    if not _as_view(b, node, attrs):
        _as_defined(b, node, attrs)


# Ops that give the elements of their first input, in another order or fewer of them.
_VIEWS = frozenset(
    {
        "broadcast_to", "chunk", "expand", "flatten", "narrow", "permute", "reshape", "select", "slice", "split", "squeeze", "transpose",
        "unbind", "unflatten", "unsqueeze", "view",
    }
)  # fmt: skip


def _as_view(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
    """Tries the definition on an array of the same strides: if it gives views, they are views here, too."""
    if node.op not in _VIEWS or not all(name is None or b.constant(name) is not None for name in node.inputs[1:]):
        return False
    name = str(node.inputs[0])
    if name not in b.stored:
        return False
    stored = b.stored[name]
    if 0 in stored.shape:
        return False
    span = sum((n - 1) * s for n, s in zip(stored.shape, stored.strides, strict=True)) + stored.dtype.itemsize
    memory = np.empty(span, np.uint8)
    like: Any = np.ndarray(stored.shape, stored.dtype, memory, 0, stored.strides)
    others = [None if n is None else np.asarray(b.constant(n)) for n in node.inputs[1:]]
    result = OPS[node.op].define(like, *others, **attrs)
    results = result if isinstance(result, tuple) else (result,)
    start = memory.ctypes.data
    if not all(isinstance(r, np.ndarray) and r.dtype == stored.dtype and start <= r.ctypes.data < start + span for r in results):
        return False
    for output, r in zip(node.outputs, results, strict=True):
        b.stored[output] = Stored(stored.at.plus(r.ctypes.data - start), r.shape, r.strides, stored.dtype)
    return True


def _as_defined(b: Builder, node: Node, attrs: Mapping[str, Any]) -> None:
    inputs: list[Any] = []
    for name in node.inputs:
        constant = b.constant(name)
        # Small constants are arrays as they are; FP8 ones become floats once.
        inputs.append(None if name is None else constant if constant is not None and not isinstance(constant, QTensor) else b.value(name))
    outputs = [b.new(name) for name in node.outputs]
    define = OPS[node.op].define
    b.host(node, lambda *args: define(*args, **attrs), inputs, outputs)


def _kept(b: Builder, name: str) -> Stored:
    stored = b.value(name)
    if isinstance(stored.at.base, Buffer):
        # Read after the last step.
        stored.at.base.used(len(b.steps))
    return stored


def _finished(b: Builder, outputs: Mapping[str, Stored], owners: tuple[str, ...]) -> Plan:
    buffers = {id(buffer): buffer for buffer in _buffers(b.steps)}
    for stored in outputs.values():
        if isinstance(stored.at.base, Buffer):
            stored.at.base.used(len(b.steps))
            buffers[id(stored.at.base)] = stored.at.base
    arena, zeroed = assign(buffers.values())
    tasks = [dataclasses.replace(step, words=tuple(resolved(w) for w in step.words)) for step in b.steps if isinstance(step, Task)]
    segments: list[tuple[int, int] | Host] = []
    first = done = 0
    for step in b.steps:
        if isinstance(step, Host):
            if done > first:
                segments.append((first, done))
            segments.append(step)
            first = done
        else:
            done += 1
    if done > first:
        segments.append((first, done))
    return Plan(Program(tasks, arena, zeroed, b.weights.arenas), tuple(segments), outputs, b.graph.outputs, owners)


def _buffers(steps: list[Task | Host]) -> list[Buffer]:
    found: list[Buffer] = []
    for step in steps:
        if isinstance(step, Task):
            found += places(step)
        else:
            found += [v.at.base for v in (*step.inputs, *step.outputs) if isinstance(v, Stored) and isinstance(v.at.base, Buffer)]
    return found


def _concrete(value: Value, sizes: Mapping[str, int]) -> Value:
    return Value(value.name, tuple(evaluate(size, sizes) for size in value.shape), value.dtype)


def _describe(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={n}" for name, n in sizes.items()) or "its sizes"
