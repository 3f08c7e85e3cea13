"""The verifier of graphs: a table of invariants, checked after every converter, every pass and every load.

A new invariant is a row; a bug report about a bad graph starts with the row that would have caught it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from fp8np.dims import Dim, symbols
from fp8np.errors import Fp8npError, GraphError
from fp8np.formats import FORMATS
from fp8np.graph import Graph, Node, Value, constant_value, leaves, named_leaves
from fp8np.layers._op import OPS, Spec
from fp8np.scheme import PerChannel
from fp8np.tensor import QTensor

__all__ = ["DTYPES", "INVARIANTS", "Invariant", "check", "infer"]

DTYPES = frozenset({"float32", "int8", "uint8", "int16", "int32", "int64", "bool"})
"""Element types of values that are not FP8."""

MAX_DEPTH = 16
"""How deep tuples in attributes, and tuples, lists and dicts in outputs, may be nested."""

_FORMAT_NAME = re.compile(r"(?P<base>float8_[a-z0-9]+)(@\d{1,3})?")

Problems = Iterator[str]


@dataclass(frozen=True)
class Invariant:
    """One thing that holds for every graph: `problems` yields a message for each place where it does not."""

    name: str
    problems: Callable[[Graph], Problems]


def check(graph: Graph) -> Graph:
    """Returns `graph` if it keeps every invariant of INVARIANTS.

    Raises:
        GraphError: the first invariant that does not hold, with the place. Invariants are checked in the order of the
            table, since later ones rely on earlier ones.
    """
    for invariant in INVARIANTS:
        for problem in invariant.problems(graph):
            raise GraphError(f"{invariant.name}: {problem}")
    return graph


def infer(node: Node, facts: Callable[[str], Value]) -> tuple[Spec, ...]:
    """Shape and type of a node's outputs, by its op's rule.

    Raises:
        GraphError: the op's rule refuses the inputs or the attributes, or makes of them what is no shape or type; the message
            names the node and its origin.
    """
    row = OPS[node.op]
    inputs = [None if name is None else Spec(facts(name).shape, facts(name).dtype) for name in row.padded(node.inputs)]
    try:
        result = row.shape(*inputs, **row.filled(node.attrs))
    except Fp8npError as error:
        raise GraphError(f"{_place(node)}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A rule is a pure function of what the graph says: attributes of a wrong kind are the graph's fault.
        raise GraphError(f"{_place(node)}: {node.op} cannot take these inputs and attributes: {error}") from error
    specs = result if isinstance(result, tuple) else (result,)
    for spec in specs:
        # Rules compute with attributes as they find them: a hostile one can come out as a size.
        if not _is_type(spec.dtype) or not all(isinstance(size, Dim) or (type(size) is int and 0 <= size < 2**63) for size in spec.shape):
            raise GraphError(f"{_place(node)}: {node.op} cannot take these attributes: it would give {short(spec)}")
    return specs


def _place(node: Node) -> str:
    return f"node {node.name!r}" + (f" (from {node.origin})" if node.origin else "")


def _defined(graph: Graph) -> Iterator[tuple[str, str]]:
    for value in graph.inputs:
        yield value.name, "an input"
    for name in graph.constants:
        yield name, "a constant"
    for node in graph.nodes:
        for name in node.outputs:
            yield name, f"an output of {_place(node)}"


def _unique_names(graph: Graph) -> Problems:
    seen: dict[str, str] = {}
    for name, kind in _defined(graph):
        if not isinstance(name, str) or not name:
            yield f"expected a non-empty name, got {name!r} for {kind}"
        elif name in seen:
            yield f"{name!r} is both {seen[name]} and {kind}"
        else:
            seen[name] = kind
    for name, value in graph.values.items():
        if value.name != name:
            yield f"the value listed as {name!r} is named {value.name!r}"
    for name, count in Counter(node.name for node in graph.nodes).items():
        if not isinstance(name, str) or not name:
            yield f"expected a non-empty name, got {name!r} for a node"
        if count > 1:
            yield f"{count} nodes are named {name!r}"


def _known_ops(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op not in OPS:
            yield f"{_place(node)}: unknown op {node.op!r}"


def _arity(graph: Graph) -> Problems:
    for node in graph.nodes:
        row = OPS[node.op]
        variadic = bool(row.inputs) and row.inputs[-1].endswith("*")
        if len(node.inputs) != len(row.inputs) and not (variadic and len(node.inputs) >= len(row.inputs) - 1):
            yield f"{_place(node)}: {node.op} takes ({', '.join(row.inputs)}), got {len(node.inputs)} inputs (None stands for one left out)"
        for i, name in enumerate(node.inputs):
            mark = row.inputs[min(i, len(row.inputs) - 1)]
            if name is None and mark[-1] not in "?*":
                yield f"{_place(node)}: input {mark!r} of {node.op} is required"
        if not node.outputs:
            yield f"{_place(node)}: a node needs at least one output"


def _attributes(graph: Graph) -> Problems:
    for node in graph.nodes:
        try:
            OPS[node.op].filled(node.attrs)
        except GraphError as error:
            yield f"{_place(node)}: {error}"
        for name, value in node.attrs.items():
            problem = _not_plain(value, MAX_DEPTH)
            if problem:
                yield f"{_place(node)}: attribute {name!r}: {problem}"


def _not_plain(value: object, depth: int) -> str:
    # Plain data can be written to a file and read back as the same thing.
    if isinstance(value, tuple):
        if not depth:
            return f"tuples nested more than {MAX_DEPTH} deep"
        return next(filter(None, (_not_plain(part, depth - 1) for part in value)), "")
    if isinstance(value, int) and not isinstance(value, bool):
        return "" if -(2**63) <= value < 2**63 else "expected an integer of 64 bits"
    if value is None or isinstance(value, bool | float | str | Dim):
        return ""
    return f"expected None, bool, int, float, str, a size or a tuple of these, got {type(value).__name__}"


def _outputs(graph: Graph) -> Problems:
    problem = _not_structure(graph.outputs, MAX_DEPTH)
    if problem:
        yield problem
    elif not any(True for _ in leaves(graph.outputs)):
        yield "the model has no output"


def _not_structure(part: object, depth: int) -> str:
    if isinstance(part, dict | list | tuple):
        if not depth:
            return f"nested more than {MAX_DEPTH} deep"
        if isinstance(part, dict):
            key = next((key for key in part if not isinstance(key, str)), "")
            if key != "":
                return f"expected str keys, got {key!r}"
        parts = part.values() if isinstance(part, dict) else part
        return next(filter(None, (_not_structure(p, depth - 1) for p in parts)), "")
    if part is None or isinstance(part, str):
        return ""
    return f"expected names, None, tuples, lists or dicts, got {type(part).__name__}"


def _meta(graph: Graph) -> Problems:
    meta: Mapping[Any, Any] = graph.meta
    for key, value in meta.items():
        if not isinstance(key, str) or not isinstance(value, str):
            yield f"expected str, got {key!r}: {type(value).__name__}"


def _order(graph: Graph) -> Problems:
    known = {value.name for value in graph.inputs} | set(graph.constants)
    everything = {name for name, _ in _defined(graph)}
    for node in graph.nodes:
        for name in node.inputs:
            if name is not None and name not in known:
                why = "is computed by it or after it (a cycle)" if name in everything else "does not exist"
                yield f"{_place(node)} reads {name!r}, which {why}"
        known.update(node.outputs)
    for name in leaves(graph.outputs):
        if name not in known:
            yield f"the output {name!r} does not exist"


def _types(graph: Graph) -> Problems:
    for value in (*graph.inputs, *graph.values.values()):
        if not _is_type(value.dtype):
            yield f"{value.name!r}: unknown element type {value.dtype!r}"
    for value in graph.inputs:
        if value.dtype not in DTYPES:
            yield f"input {value.name!r}: expected one of {', '.join(sorted(DTYPES))}, got {value.dtype!r}"
    for name, constant in graph.constants.items():
        if isinstance(constant, QTensor):
            if constant.scale_format is not None:
                yield f"constant {name!r}: expected scales in float32, got {constant.scale_format}"
        elif constant.dtype.name not in DTYPES:
            yield f"constant {name!r}: expected one of {', '.join(sorted(DTYPES))} or FP8, got {constant.dtype}"


def _is_type(name: object) -> bool:
    if not isinstance(name, str):
        return False
    if name in DTYPES:
        return True
    match = _FORMAT_NAME.fullmatch(name)
    return match is not None and match["base"] in FORMATS


def _sizes(graph: Graph) -> Problems:
    named: set[str] = set()
    for value in graph.inputs:
        for size in value.shape:
            if isinstance(size, Dim):
                if str(size) not in symbols(size):
                    yield f"input {value.name!r}: expected integers and plain names as sizes, got {size}"
                named |= symbols(size)
            elif size < 0:
                yield f"input {value.name!r}: negative size {size}"
    for value in graph.values.values():
        for size in value.shape:
            if isinstance(size, Dim):
                if not symbols(size) <= named:
                    yield f"{value.name!r}: size {size} depends on a name that no input has"
            elif size < 0:
                yield f"{value.name!r}: negative size {size}"
    for node in graph.nodes:
        for size in _sizes_within(tuple(node.attrs.values())):
            if not symbols(size) <= named:
                yield f"{_place(node)}: size {size} depends on a name that no input has"


def _sizes_within(attr: Any) -> Iterator[Dim]:
    if isinstance(attr, tuple):
        for part in attr:
            yield from _sizes_within(part)
    elif isinstance(attr, Dim):
        yield attr


def _facts(graph: Graph) -> dict[str, Value]:
    constants = {name: constant_value(name, constant) for name, constant in graph.constants.items()}
    return {value.name: value for value in graph.inputs} | constants | dict(graph.values)


def _shapes(graph: Graph) -> Problems:
    outputs = [name for node in graph.nodes for name in node.outputs]
    for name in sorted(set(graph.values) - set(outputs)):
        yield f"{name!r} has a shape but no node computes it"
    facts = _facts(graph)
    for node in graph.nodes:
        for name in node.outputs:
            if name not in graph.values:
                yield f"{_place(node)}: its output {name!r} has no shape"
                return
        try:
            specs = infer(node, facts.__getitem__)
        except GraphError as error:
            yield str(error)
            return
        if len(specs) != len(node.outputs):
            yield f"{_place(node)}: {node.op} gives {len(specs)} outputs, {len(node.outputs)} are named"
            return
        for name, spec in zip(node.outputs, specs, strict=True):
            declared = graph.values[name]
            if (declared.shape, declared.dtype) != (spec.shape, spec.dtype):
                yield f"{_place(node)}: {name!r} is declared {Spec(declared.shape, declared.dtype)}, but {node.op} gives {spec}"


def _quantized_inputs(graph: Graph) -> Problems:
    facts = _facts(graph)
    for node in graph.nodes:
        row = OPS[node.op]
        for i, name in enumerate(node.inputs):
            if name is None or facts[name].dtype in DTYPES:
                continue
            if row.input_name(i) not in row.quantizable:
                yield f"{_place(node)}: input {row.input_name(i)!r} of {node.op} cannot be FP8, but {name!r} is"
                continue
            constant = graph.constants.get(name)
            # A weight whose standard is a scale for each channel may have finer ones; what is read as a whole has no use for them.
            if isinstance(constant, QTensor) and constant.block and not isinstance(row.quantizable[row.input_name(i)], PerChannel):
                yield (
                    f"{_place(node)}: input {row.input_name(i)!r} of {node.op} takes one scale, or one for each channel; "
                    f"{name!r} has one for each block of {constant.block}"
                )


def _float_outputs(graph: Graph) -> Problems:
    facts = _facts(graph)
    for path, name in named_leaves(graph.outputs):
        if facts[name].dtype not in DTYPES:
            yield f"the output {path!r} is {facts[name]}: a model returns arrays, not codes"


INVARIANTS: tuple[Invariant, ...] = (
    Invariant("names are unique", _unique_names),
    Invariant("ops are known", _known_ops),
    Invariant("nodes have the inputs that their op takes", _arity),
    Invariant("attributes are known, complete and plain data", _attributes),
    Invariant("outputs are a structure of names", _outputs),
    Invariant("meta is text", _meta),
    Invariant("everything is computed before it is read", _order),
    Invariant("element types are known", _types),
    Invariant("sizes depend on the inputs alone", _sizes),
    Invariant("declared shapes are what the ops give", _shapes),
    Invariant("only quantizable inputs are FP8", _quantized_inputs),
    Invariant("outputs are not FP8", _float_outputs),
)
"""Every invariant, in the order in which they are checked."""
