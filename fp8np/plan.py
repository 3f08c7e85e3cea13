"""A plan: a graph bound to concrete sizes, as a frozen list of steps. Making one decides everything; running it decides nothing.

Here layers (what an op means) and kernels (how fast) meet. A plan holds no scratch memory and no state, so any number of
threads may run one at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8np.check import infer
from fp8np.dims import evaluate
from fp8np.errors import GraphError, InputError
from fp8np.graph import Constant, Graph, Node, Structure, Value, constant_value, leaves, map_structure
from fp8np.interpret import evaluated, failure
from fp8np.kernels._arrays import read_only
from fp8np.kernels._table import select
from fp8np.layers._op import OPS, Call, Op, Spec, Step
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor

__all__ = ["Plan", "Weights", "make_plan"]


class Weights:
    """The constants of a graph, and what kernels made of them: computed once, shared by the plans of all sizes."""

    def __init__(self, constants: Mapping[str, Constant]) -> None:
        self.constants = {name: c if isinstance(c, QTensor) else read_only(c)[0] for name, c in constants.items()}
        self._made: dict[tuple[str, str, str], Any] = {}
        self._lock = threading.Lock()

    def prepare(self, op: str, name: str, key: str, make: Callable[[Constant], Any]) -> Any:
        """``make(constant)``, remembered under the op's name, the constant's name and `key`."""
        with self._lock:
            if (op, name, key) not in self._made:
                self._made[op, name, key] = make(self.constants[name])
            return self._made[op, name, key]


@dataclass(frozen=True)
class _PlanStep:
    node: Node
    run: Step
    inputs: tuple[str | None, ...]
    releases: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Steps in order. Values live in a dictionary by name and are released after their last reader."""

    steps: tuple[_PlanStep, ...]
    constants: Mapping[str, Any]
    outputs: Structure

    def execute(self, inputs: Mapping[str, Any]) -> Structure:
        """Runs the steps on arrays of the planned shapes.

        Raises:
            InputError, ExecutionError: a step refused the values it got, or failed; the message names its node.
        """
        env = {**self.constants, **inputs}
        # Infinity and NaN are data here, as on the hardware; NumPy's warnings about them would hit users as errors.
        with np.errstate(all="ignore"):
            for step in self.steps:
                try:
                    result = step.run(*[None if name is None else env[name] for name in step.inputs])
                except Exception as error:
                    raise failure(step.node, error) from error
                env.update(zip(step.node.outputs, result if isinstance(result, tuple) else (result,), strict=True))
                for name in step.releases:
                    del env[name]
        return map_structure(lambda name: _owned(env[name], inputs), self.outputs)


def _owned(array: Any, inputs: Mapping[str, Any]) -> Any:
    # An output that is an input or a weight, or a view of one, is copied: a caller may write into what is returned. Weights
    # are read-only, and so is every view of them.
    given = not array.flags.writeable or any(np.may_share_memory(array, x) for x in inputs.values())
    return array.copy() if given else array


def make_plan(graph: Graph, sizes: Mapping[str, int], weights: Weights) -> Plan:
    """Binds every node of a checked graph at the given sizes.

    Raises:
        InputError: the model cannot run at these sizes; the message names the node that cannot.
    """
    facts = {v.name: _concrete(v, sizes) for v in graph.inputs}
    facts |= {name: constant_value(name, constant) for name, constant in graph.constants.items()}
    released = _released(graph)
    steps: list[_PlanStep] = []
    dequantized: dict[str, Any] = {}
    for i, node in enumerate(graph.nodes):
        row = OPS[node.op]
        attrs = evaluated(row.filled(node.attrs), sizes)
        try:
            specs = infer(node.replace(attrs=attrs), facts.__getitem__)
        except GraphError as error:
            raise InputError(f"the model cannot run at {_describe(sizes)}: {error}") from error
        for name, spec in zip(node.outputs, specs, strict=True):
            declared = _concrete(graph.values[name], sizes)
            if declared.shape != spec.shape:
                raise InputError(f"the model cannot run at {_describe(sizes)}: {node.place} gives {spec}, the model expects {declared}")
            facts[name] = declared
        step = _bind(row, node, attrs, facts, weights)
        inputs = node.inputs
        if step is None:
            inputs = tuple(_floats(n, weights, dequantized) for n in node.inputs)
            step = _as_defined(row, attrs)
        steps.append(_PlanStep(node, step, inputs, tuple(released.get(i, ()))))
    return Plan(tuple(steps), {**weights.constants, **dequantized}, graph.outputs)


def _bind(row: Op, node: Node, attrs: Mapping[str, Any], facts: Mapping[str, Value], weights: Weights) -> Step | None:
    if row.bind is None:
        return None

    def prepare(i: int, key: str, make: Callable[[Constant], Any]) -> Any:
        name = node.inputs[i]
        if name is None:
            raise LookupError(f"{row.name}: input {i} is left out, so there is nothing to prepare")
        return weights.prepare(row.name, name, key, make)

    return row.bind(
        Call(
            tuple(None if n is None else Spec(facts[n].shape, facts[n].dtype) for n in node.inputs),
            tuple(None if n is None else weights.constants.get(n) for n in node.inputs),
            attrs,
            prepare,
        ),
        select,
    )


def _floats(name: str | None, weights: Weights, dequantized: dict[str, Any]) -> str | None:
    # An FP8 weight that no kernel takes as it is becomes float32 once, under a name that no graph can contain.
    if name is None or not isinstance(weights.constants.get(name), QTensor):
        return name
    alias = f"{name}\0float32"
    dequantized[alias] = weights.prepare("", name, "float32", _dequantized)
    return alias


def _dequantized(constant: Constant) -> Any:
    return dequantize(constant) if isinstance(constant, QTensor) else constant


def _as_defined(row: Op, attrs: Mapping[str, Any]) -> Step:
    define = row.define

    def step(*args: Any) -> Any:
        return define(*[_dequantized(a) for a in args], **attrs)

    return step


def _released(graph: Graph) -> dict[int, list[str]]:
    """For the position of a node, the values that nothing after it reads."""
    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for name in (*node.outputs, *node.inputs):
            if name is not None and name in graph.values:
                last[name] = i
    for name in leaves(graph.outputs):
        last.pop(name, None)
    released: dict[int, list[str]] = {}
    for name, i in last.items():
        released.setdefault(i, []).append(name)
    return released


def _concrete(value: Value, sizes: Mapping[str, int]) -> Value:
    return Value(value.name, tuple(evaluate(size, sizes) for size in value.shape), value.dtype)


def _describe(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={n}" for name, n in sizes.items()) or "its sizes"
