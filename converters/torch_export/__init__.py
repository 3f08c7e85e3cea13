"""Any `torch.nn.Module`, or a program saved by `torch.export.save`, as a graph.

`torch.export` records what the module does with its example inputs. The record is made functional (no operator changes a
tensor in place) but not decomposed, so that a linear layer stays one operator; each operator is then looked up among the names
that our ops have in PyTorch. An operator without one is decomposed by PyTorch, alone; what remains is refused, all at once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fp8np.errors import CheckpointError, InputError, MissingDependencyError, UnsupportedOperatorError
from fp8np.graph import Graph

try:
    import torch
except ImportError as error:
    raise MissingDependencyError("tracing a model needs PyTorch: pip install 'fp8np[torch]'") from error

import inspect

from torch import nn
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.utils import _pytree as pytree

from ._example import Dynamic, Example, asked_sizes, evaluation_copy, example_of, leaf_names
from ._operators import live_nodes, missing, refusal
from ._recurrent import whole_recurrent_layers
from ._sizes import fixed
from ._walk import Walk
from ._weights import load_weights

__all__ = ["Dynamic", "from_exported", "from_module", "load_weights"]


def from_module(module: nn.Module, example_inputs: Any, *, dynamic: Dynamic = None, name: str = "") -> Graph:
    """Traces a module into a graph.

    The module is copied: it may be in training mode, on a GPU or in half precision, and stays so. The graph computes what it
    computes in evaluation mode in float32; every floating constant and cast becomes float32.

    Args:
        module: any module that `torch.export` can trace.
        example_inputs: tensors or arrays that ``forward`` takes: a tuple by position, a dict by name, or one alone. Their
            values do not matter, their types do, and so do the sizes that are not symbolic.
        dynamic: the symbolic sizes. None: the first axis of each input that has the size of the first input's, as "B", where
            the model allows; a warning says where it does not. A mapping ``{"ids": {0: "B", 1: "T"}}``: these axes, and with
            "B" also the first axes, of that size, of inputs it leaves out; so ``{}`` fixes all sizes. Symbolic sizes stand
            for any size from 1; an example of size 1 will do.
        name: kept in the graph's meta data; the module's class by default.

    Returns:
        The checked graph. Inputs have the names of forward's parameters ("state.0" inside of a structure), constants those
        of the state dict, nodes those of their modules; the outputs have the module's own structure.

    Raises:
        InputError: the example inputs do not fit, or `dynamic` names what is not there or what the model fixes.
        UnsupportedOperatorError: the module cannot be traced, or uses operators that have no op; it lists all of them.
        DTypeError: an input or a constant is complex.
        GraphError: a shape differs from PyTorch's.

    >>> graph = from_module(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), torch.ones(1, 3))
    >>> print(graph)
    input   input: float32[B, 3]
    const   0.weight: float32[2, 3]
    const   0.bias: float32[2]
    0: float32[B, 2] = linear(input, 0.weight, 0.bias)  # 0
    1: float32[B, 2] = relu(0)  # 1
    return  1
    """
    example = example_of(module, example_inputs)
    sizes = asked_sizes(dynamic, example)
    copied = evaluation_copy(module)
    with _quietly(), whole_recurrent_layers():
        program = _traced(copied, example, sizes, fall_back=dynamic is None)
        walk = Walk(_expressible(program), example.names, sizes)
    _check_symbolic(program, example.names, sizes, required=dynamic is not None)
    return walk.graph(_meta(name or type(module).__name__))


def from_exported(program: ExportedProgram | str | os.PathLike[str], *, name: str = "") -> Graph:
    """Converts what `torch.export.export` returned, or the ``.pt2`` file that `torch.export.save` wrote.

    Symbolic sizes stay symbolic: the first on a first axis is "B", others are named after their input and axis. Open only
    files that you trust: PyTorch reads them. A recurrent layer exported by PyTorch alone has a fixed number of steps.

    Raises:
        CheckpointError: the file is not such a program.
        UnsupportedOperatorError, DTypeError, GraphError: as for `from_module`.
    """
    if not isinstance(program, ExportedProgram):
        program = _loaded(program)
    args, kwargs = pytree.tree_unflatten(list(range(program.call_spec.in_spec.num_leaves)), program.call_spec.in_spec)
    signature = program.module_call_graph[0].signature
    positional = list(signature.forward_arg_names or ())[: len(args)] if signature is not None else []
    positional += [f"input.{i}" for i in range(len(positional), len(args))]
    with _quietly(), whole_recurrent_layers():
        walk = Walk(_expressible(program), leaf_names(args, kwargs, positional), {})
    return walk.graph(_meta(name))


def _loaded(path: str | os.PathLike[str]) -> ExportedProgram:
    try:
        with _quietly():
            return torch.export.load(path)
    except OSError:
        raise
    except Exception as error:  # PyTorch raises whatever its parser stumbles over
        raise CheckpointError(f"{os.fspath(path)}: expected a program written by torch.export.save: {error}") from error


def _meta(name: str) -> dict[str, str]:
    return {"source": "torch.export", "torch": torch.__version__} | ({"name": name} if name else {})


@contextmanager
def _quietly() -> Iterator[None]:
    """PyTorch's own warnings while it traces are about its internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _traced(module: nn.Module, example: Example, sizes: Mapping[tuple[str, int], str], *, fall_back: bool) -> ExportedProgram:
    try:
        return _export(module, example.doubled(dict(sizes)), sizes)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        if fall_back and sizes:
            try:
                return _export(module, example, {})
            except Exception:  # the first error is the better one to show
                pass
        try:
            with torch.no_grad():
                module(*example.args, **example.kwargs)
        except Exception as own:
            raise InputError(f"{type(module).__name__} itself fails on the example inputs: {_first_lines(own)}") from own
        raise UnsupportedOperatorError(
            f"torch.export cannot trace {type(module).__name__}: {_first_lines(error)}\n"
            "Its control flow may depend on data, or on a size that `dynamic` makes symbolic. Models of transformers often need "
            "use_cache=False."
        ) from error


def _first_lines(error: Exception, most: int = 12) -> str:
    return "\n".join(f"{type(error).__name__}: {error}".splitlines()[:most])


def _export(module: nn.Module, example: Example, sizes: Mapping[tuple[str, int], str]) -> ExportedProgram:
    axes: dict[int, dict[int, Any]] = {}
    for name, tensor in example.tensors():
        axes[id(tensor)] = {axis: Dim.AUTO for key, axis in sizes if key == name}
    # By parameter, as PyTorch binds them; AUTO lets it find out which sizes the model fixes or ties together.
    bound = inspect.signature(module.forward).bind(*example.args, **example.kwargs).arguments
    shapes = pytree.tree_map(lambda leaf: axes.get(id(leaf)), dict(bound))
    return torch.export.export(module, example.args, example.kwargs, dynamic_shapes=shapes)


def _expressible(program: ExportedProgram) -> ExportedProgram:
    """The program in functional form, with every operator that we lack decomposed as far as that helps."""
    program = program.run_decompositions({})
    tried: set[Any] = set()
    while found := missing(live_nodes(program.graph)):
        table = default_decompositions()
        lacking = {one.node.target for one in found if not one.reason and one.node.target in table} - tried
        if not lacking:
            raise refusal(found)
        tried |= lacking
        program = program.run_decompositions({target: table[target] for target in lacking})
    return program


def _check_symbolic(program: ExportedProgram, names: tuple[str, ...], sizes: Mapping[tuple[str, int], str], *, required: bool) -> None:
    """Says which sizes that should be symbolic are fixed by the model."""
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    values = [nodes.get(spec.arg.name) for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    numbers = [
        f"{size!r} (input {name!r}, axis {axis}) is {value.shape[axis]}"
        for name, value in zip(names, values, strict=True)
        for (key, axis), size in sizes.items()
        if key == name and isinstance(value, torch.Tensor) and fixed(value.shape[axis]) is not None
    ]
    if numbers and required:
        raise InputError(f"the model works only with the sizes of the example: {'; '.join(numbers)}; leave these axes out of `dynamic`")
    if numbers:
        warnings.warn(f"sizes fixed by the model: {'; '.join(numbers)}", stacklevel=3)
