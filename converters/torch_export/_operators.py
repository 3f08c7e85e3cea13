"""Operators of a traced graph: which op of ours each is, with what arguments, and what is said when there is none."""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fp8np.dims import symbol
from fp8np.errors import UnsupportedOperatorError
from fp8np.layers._op import OPS, Foreign, Op

from ._sizes import ARITHMETIC, SHAPE_OPERATORS, is_size

__all__ = ["Missing", "bind", "code_place", "live_nodes", "missing", "module_path", "operators", "refusal"]

_PLACES = 3  # shown for each missing operator
_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+), in .*\n\s*(?P<code>.*)')

_ADVICE = (
    (
        ("item", "_local_scalar_dense", "nonzero", "masked_select", "unique"),
        "its result depends on the data, not on shapes alone: move it out of the model, or compute with a mask instead",
    ),
    (("fft", "complex", "view_as_real", "real", "imag"), "complex numbers are not supported: write it with real matrices or convolutions"),
    (("rand", "normal", "bernoulli", "multinomial"), "it draws random numbers: make them an input of the model"),
    (("higher_order",), "control flow cannot be traced into a graph: split the model there, or take one branch"),
)
_DEFAULT_ADVICE = "rewrite it with supported operators, or add the op: one file in fp8np/layers (CONTRIBUTING.md says how)"


@dataclass(frozen=True)
class Missing:
    """A node for which there is no op, or whose arguments the op refuses for `reason`."""

    node: fx.Node
    reason: str = ""


@lru_cache(maxsize=1)
def operators() -> Mapping[str, tuple[Op, Foreign]]:
    """Every operator of PyTorch that has an op of ours, by its name, such as ``aten.conv2d.default``."""
    return {foreign.name: (row, foreign) for row in OPS.values() for foreign in row.torch}


def live_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The calls that the outputs need, in order. Assertions are not among them: nothing reads what they return."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed and node.op == "call_function"]


def bind(node: fx.Node, foreign: Foreign, resolve: Callable[[Any], Any]) -> dict[str, Any]:
    """The arguments of an operator under our names: inputs and attributes together, those left out left out.

    Args:
        node: a call of an operator.
        foreign: its row.
        resolve: what stands for a node of the traced graph: a value's name, or a size.

    Raises:
        ValueError: the op does not support the arguments; the message says why.
    """
    parameters = node.target._schema.arguments  # type: ignore[union-attr]
    given = {parameter.name: value for parameter, value in zip(parameters, node.args, strict=False)} | dict(node.kwargs)
    named = {
        ours: _resolved(given[parameter.name], resolve)
        for ours, parameter in zip(foreign.args, parameters, strict=False)
        if ours and parameter.name in given
    }
    named |= foreign.attrs
    return named if foreign.convert is None else foreign.convert(named)


def _resolved(value: Any, resolve: Callable[[Any], Any]) -> Any:
    if isinstance(value, fx.Node):
        return resolve(value)
    return tuple(_resolved(v, resolve) for v in value) if isinstance(value, list | tuple) else value


def missing(nodes: Iterable[fx.Node]) -> list[Missing]:
    """The nodes that cannot be expressed."""
    found = []
    for node in nodes:
        name = str(node.target)
        if name in operators():
            try:
                bind(node, operators()[name][1], _stand_in)
                if _is_complex(node.meta["val"]):
                    raise ValueError("it computes complex numbers")
            except ValueError as error:
                found.append(Missing(node, str(error)))
        elif name not in SHAPE_OPERATORS and node.target not in ARITHMETIC and node.target is not operator.getitem:
            found.append(Missing(node))
    return found


def _stand_in(node: fx.Node) -> Any:
    # Enough for a `convert` to decide: a name for a tensor, some size for a size.
    value = node.meta["val"]
    return value if isinstance(value, int) else symbol(node.name) if is_size(value) else node.name


def _is_complex(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_complex, value))
    return isinstance(value, torch.Tensor) and value.dtype.is_complex


def refusal(found: Iterable[Missing]) -> UnsupportedOperatorError:
    """The error that lists everything that is missing: operator, count, places, and what to do."""
    groups: dict[tuple[str, str], list[fx.Node]] = defaultdict(list)
    for one in found:
        groups[_operator_name(one.node), one.reason].append(one.node)
    lines = [f"the model uses {_count(len(groups), 'operator')} that fp8np cannot run:"]
    for (name, reason), nodes in groups.items():
        lines.append(f"  {name}, {_count(len(nodes), 'time')}")
        if reason:
            lines.append(f"    why: {reason}")
        places = list(dict.fromkeys(map(_place, nodes)))
        lines += [f"    at: {place}" for place in places[:_PLACES]]
        if len(places) > _PLACES:
            lines.append(f"    and {len(places) - _PLACES} more")
        if not reason:
            lines.append(f"    what to do: {_advice(name)}")
    return UnsupportedOperatorError("\n".join(lines))


def _operator_name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, torch._ops.OperatorBase) else getattr(node.target, "__name__", str(node.target))


def _advice(name: str) -> str:
    parts = name.replace(".", "_").split("_")
    for words, advice in _ADVICE:
        if any(word in name if "_" in word else any(part.startswith(word) for part in parts) for word in words):
            return advice
    return _DEFAULT_ADVICE


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _place(node: fx.Node) -> str:
    return ", ".join(part for part in (module_path(node), code_place(node, with_code=True)) if part) or "an unknown place"


def module_path(node: fx.Node) -> str:
    """Where in the tree of modules a node stands, such as ``layer1.0.conv1``; "" for the outermost module."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]).split("@")[0] if stack else ""


def code_place(node: fx.Node, *, with_code: bool = False) -> str:
    """The user's line that a node comes from, such as ``model.py:31``: the innermost one outside of PyTorch."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    package = Path(torch.__file__).parent
    frames = [f for f in frames if package not in Path(f["file"]).parents] or frames
    if not frames:
        return ""
    frame = frames[-1]
    place = f"{Path(frame['file']).name}:{frame['line']}"
    return f"{place}: {frame['code'].strip()}" if with_code else place
