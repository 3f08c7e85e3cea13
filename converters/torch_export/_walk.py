"""From a traced program to our graph: one pass over its nodes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from fp8np.build import GraphBuilder
from fp8np.check import infer
from fp8np.dims import Dim, Size, evaluate
from fp8np.errors import DTypeError, GraphError, UnsupportedOperatorError
from fp8np.graph import Graph, Node, Structure
from fp8np.layers._op import Op
from fp8np.layers._types import stored_type

from ._operators import bind, code_place, live_nodes, module_path, operators
from ._sizes import ARITHMETIC, SHAPE_OPERATORS, computed, fixed, hint

__all__ = ["Walk"]

# Ops that do nothing where shape and type stay what they are: of these only those that do something are kept.
_MAY_DO_NOTHING = frozenset({"cast", "expand", "identity", "reshape", "slice"})


class Walk:
    """Builds the graph of one program. Use it once: ``Walk(program, input_names, size_names).graph(meta)``."""

    def __init__(self, program: ExportedProgram, input_names: Sequence[str], size_names: Mapping[tuple[str, int], str]) -> None:
        """
        Args:
            program: functionalized, with no operator missing.
            input_names: a name for each leaf of the arguments, in order.
            size_names: names of symbolic sizes, by input and axis; others are made up.
        """
        self._program = program
        self._input_names = input_names
        self._size_names = size_names
        self._builder = GraphBuilder()
        self._values: dict[fx.Node, Any] = {}  # a name, a tuple of names, or a size
        self._symbols: dict[Any, str] = {}  # of PyTorch's, to our names
        self._hints: dict[str, int] = {}  # what the sizes are for the example inputs
        # PyTorch's expression for a size of a tensor, to ours. It simplifies further than we do: a size that it computes from
        # others must be the very expression that the shape rules found, or they would not recognize it.
        self._sizes: dict[Any, Size] = {}
        self._nodes = live_nodes(program.graph)
        self._calls = Counter(module_path(node) for node in self._nodes if str(node.target) in operators())

    def graph(self, meta: Mapping[str, str]) -> Graph:
        """The finished, checked graph."""
        self._add_inputs()
        self._add_constants()
        for node in self._nodes:
            if node.target in ARITHMETIC:
                self._values[node] = self._computed(node)
            elif node.target is operator.getitem:
                self._values[node] = self._item(node)
            elif str(node.target) in SHAPE_OPERATORS:
                self._values[node] = self._size(node)
            else:
                self._values[node] = self._call(node)
        return self._builder.finish(self._outputs(), meta)

    # --- inputs and constants

    def _add_inputs(self) -> None:
        placeholders = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        specs = [spec for spec in self._program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
        for name, spec in zip(self._input_names, specs, strict=True):
            if not isinstance(spec.arg, TensorArgument):
                continue  # a number, a string or None: part of the program
            node = placeholders[spec.arg.name]
            tensor = node.meta["val"]
            shape = tuple(self._input_size(name, axis, size) for axis, size in enumerate(tensor.shape))
            self._values[node] = self._builder.input(name, shape, _dtype(tensor.dtype, f"input {name!r}"))

    def _input_size(self, name: str, axis: int, size: int | torch.SymInt) -> int | str:
        number = fixed(size)
        if number is not None:
            return number
        expression = size.node.expr  # type: ignore[union-attr]
        if not expression.is_Symbol:
            raise GraphError(
                f"input {name!r}, axis {axis}: the model needs a size of the form {expression}, which cannot be declared; "
                "leave this axis out of `dynamic`, so that its size is fixed"
            )
        asked = self._size_names.get((name, axis))
        known = self._symbols.setdefault(expression, asked or self._new_size_name(name, axis))
        if asked is not None and asked != known:
            raise GraphError(
                f"input {name!r}, axis {axis}: the model needs {asked!r} to equal {known!r}; give both the same name in `dynamic`"
            )
        value = hint(size)
        if value is not None:
            self._hints.setdefault(known, value)
        return known

    def _new_size_name(self, name: str, axis: int) -> str:
        taken = set(self._symbols.values())
        return "B" if axis == 0 and "B" not in taken else f"{name.replace('.', '_')}_{axis}"

    def _add_constants(self) -> None:
        placeholders = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        # Tied weights are one tensor under several names; the first is kept.
        first = {_identity(tensor): name for name, tensor in reversed(self._program.state_dict.items())}
        names: dict[Any, str] = {}
        used = {argument for node in self._nodes for argument in node.all_input_nodes} | set(self._output_nodes())
        for spec in self._program.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT:
                continue
            node = placeholders[spec.arg.name]
            if node not in used:
                continue
            target = str(spec.target)
            tensor = self._program.state_dict.get(target)
            if tensor is None:
                tensor = self._program.constants.get(target)
            if not isinstance(tensor, torch.Tensor):
                raise UnsupportedOperatorError(f"{target}: expected a tensor, got {type(tensor).__name__}; the model keeps its data in it")
            key = _identity(tensor)
            if key not in names:
                names[key] = self._builder.constant(first.get(key, target), _array(tensor, target))
            self._values[node] = names[key]

    # --- nodes

    def _item(self, node: fx.Node) -> Any:
        arguments: Any = node.args
        source, i = arguments
        outputs = self._values[source]
        if i >= len(outputs):
            raise UnsupportedOperatorError(
                f"{_origin(node)}: result {i} of {source.target} is not available, only the first {len(outputs)}"
            )
        return outputs[i]

    def _size(self, node: fx.Node) -> Size:
        arguments: tuple[Any, ...] = node.args
        shape = self._builder.facts(self._values[arguments[0]]).shape
        if len(arguments) > 1:  # aten.sym_size
            axis: int = arguments[1]
            return shape[axis]
        total: Size = 1
        for size in shape:
            total = total * size
        return total

    def _computed(self, node: fx.Node) -> Size:
        value = node.meta["val"]
        if isinstance(value, torch.SymInt) and value.node.expr in self._sizes:
            return self._sizes[value.node.expr]
        arguments = tuple(self._values[a] if isinstance(a, fx.Node) else a for a in node.args)
        return computed(node, arguments, _origin(node))

    def _call(self, node: fx.Node) -> Any:
        row, foreign = operators()[str(node.target)]
        path, origin = module_path(node), _origin(node)
        # A module that is one node gives it its name; where it is several, each is named after its op.
        name = path if path and self._calls[path] == 1 else ".".join(part for part in (path, row.name) if part)
        inputs, attrs = self._arranged(row, bind(node, foreign, self._values.__getitem__), name)
        if row.name in _MAY_DO_NOTHING and self._does_nothing(Node(name, row.name, inputs, (name,), attrs, origin)):
            return inputs[0]
        result = self._builder.node(row.name, inputs, attrs, name=name, origin=origin)
        expected = node.meta["val"]
        if isinstance(expected, list | tuple):
            # PyTorch may return more than we compute; what is asked for is seen when it is asked for.
            result = result if isinstance(result, tuple) else (result,)
            for ours, theirs in zip(result, expected, strict=False):
                self._compare(ours, theirs, node)
        else:
            self._compare(result, expected, node)
        return result

    def _arranged(self, row: Op, named: dict[str, Any], name: str) -> tuple[tuple[str | None, ...], dict[str, Any]]:
        """Inputs in the op's order, and the attributes that differ from its defaults."""
        inputs: list[str | None] = []
        for mark, key in zip(row.inputs, row.input_names, strict=True):
            value = named.pop(key, None)
            if mark.endswith("*"):
                inputs += value
            elif value is None or isinstance(value, str):
                inputs.append(value)
            elif "scalar" in row.attrs:
                named["scalar"] = value
                inputs.append(None)
            else:
                inputs.append(self._builder.constant(f"{name}.{key}", _number(value, name)))
        attrs = {key: stored_type(value) if isinstance(value, torch.dtype) else value for key, value in named.items()}
        defaults = row.attrs
        return tuple(inputs), {k: v for k, v in attrs.items() if k not in defaults or (v, type(v)) != (defaults[k], type(defaults[k]))}

    def _does_nothing(self, node: Node) -> bool:
        (spec,) = infer(node, self._builder.facts)
        before = self._builder.facts(node.inputs[0] or "")
        return (spec.shape, spec.dtype) == (before.shape, before.dtype)

    def _compare(self, name: str, expected: Any, node: fx.Node) -> None:
        """Our shape and type rules against PyTorch's, at the sizes of the example."""
        if not isinstance(expected, torch.Tensor):
            return
        ours = self._builder.facts(name)
        shape: tuple[Any, ...] = tuple(expected.shape)
        sizes = [hint(size) for size in shape]
        same = len(sizes) == len(ours.shape) and all(
            size is None or evaluate(mine, self._hints) == size for mine, size in zip(ours.shape, sizes, strict=True)
        )
        dtype = _dtype(expected.dtype, _origin(node))
        if not same or ours.dtype != dtype:
            theirs = f"{dtype}[{', '.join(map(str, shape))}]"
            raise GraphError(
                f"node {name!r} (from {_origin(node)}): {node.target} gives {theirs} in PyTorch, but the op's rule gives {ours}"
            )
        for mine, size in zip(ours.shape, shape, strict=True):
            if isinstance(size, torch.SymInt):
                self._sizes.setdefault(size.node.expr, mine)

    # --- outputs

    def _output_nodes(self) -> list[fx.Node]:
        return list(self._program.graph.output_node().all_input_nodes)

    def _outputs(self) -> Structure:
        signature = self._program.graph_signature
        if signature.buffers_to_mutate:
            changed = ", ".join(sorted(set(signature.buffers_to_mutate.values())))
            raise UnsupportedOperatorError(
                f"the model changes its buffers while it runs ({changed}), but a converted model has no state; "
                "make the state an input and an output of forward()"
            )
        results: Any = self._program.graph.output_node().args[0]
        leaves = [
            self._leaf(result, i)
            for i, (spec, result) in enumerate(zip(signature.output_specs, results, strict=True))
            if spec.kind is OutputKind.USER_OUTPUT
        ]
        return _structure(self._program.call_spec.out_spec, iter(leaves))

    def _leaf(self, result: Any, i: int) -> str | None:
        value = self._values[result] if isinstance(result, fx.Node) else result
        if value is None or isinstance(value, str):
            return value
        return self._builder.constant(f"output.{i}", _number(value, f"output {i}"))


def _origin(node: fx.Node) -> str:
    return module_path(node) or code_place(node) or str(node.target)


def _dtype(dtype: torch.dtype, what: str) -> str:
    try:
        return str(stored_type(dtype))
    except ValueError as error:
        raise DTypeError(f"{what}: {error}") from None


def _identity(tensor: torch.Tensor) -> Any:
    """Equal for two tensors that are the same numbers in the same memory."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _array(tensor: torch.Tensor, name: str) -> np.ndarray[Any, Any]:
    """A copy, so that training on does not change a converted model."""
    dtype = _dtype(tensor.dtype, name)
    return np.array(tensor.detach().cpu().to(getattr(torch, dtype)).numpy())


def _number(value: Any, what: str) -> np.ndarray[Any, Any]:
    if isinstance(value, Dim):
        raise UnsupportedOperatorError(f"{what}: a symbolic size ({value}) cannot be a tensor here; leave its axis out of `dynamic`")
    if not isinstance(value, bool | int | float):
        raise UnsupportedOperatorError(f"{what}: expected a tensor or a number, got {type(value).__name__}")
    return np.asarray(value, np.float32 if isinstance(value, float) else np.bool_ if isinstance(value, bool) else np.int64)


def _structure(spec: Any, leaves: Any) -> Structure:
    """What the model returns, as PyTorch's tree of it says, with our names as leaves."""
    if spec.is_leaf():
        return next(leaves)
    parts = [_structure(child, leaves) for child in spec.children()]
    if issubclass(spec.type, tuple):
        return tuple(parts)
    if issubclass(spec.type, list):
        return parts
    # Dicts, and the classes of outputs that transformers has, keep their keys as the context of the tree.
    keys = spec.context[-1] if spec.context and isinstance(spec.context[-1], list) else spec.context
    if not isinstance(keys, list) or len(keys) != len(parts):
        raise UnsupportedOperatorError(f"the model returns a {spec.type.__name__}; expected tensors in tuples, lists and dicts")
    return dict(zip(map(str, keys), parts, strict=True))
