"""Example inputs and the module, as they are traced: float32, on the CPU, and no symbolic axis of size 1."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fp8np.errors import DTypeError, InputError

__all__ = ["Dynamic", "Example", "asked_sizes", "evaluation_copy", "example_of", "leaf_names"]

Dynamic = Mapping[str, Mapping[int, str]] | None
"""Which sizes are symbolic: for each input its axes with a name for the size of each; None: the batch, where that works."""

AxisNames = dict[tuple[str, int], str]


@dataclass(frozen=True)
class Example:
    """A call of a module: positional and keyword arguments, and a name for each leaf of them, in order."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The inputs that are tensors, with their names."""
        for name, leaf in zip(self.names, pytree.tree_leaves((self.args, self.kwargs)), strict=True):
            if isinstance(leaf, torch.Tensor):
                yield name, leaf

    def doubled(self, sizes: AxisNames) -> Example:
        """The same call with the named axes of size 1 repeated to 2.

        A tracer takes sizes of 0 and 1 for what they are, and only others for examples of any size.
        """
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        for i, name in enumerate(self.names):
            for axis in (axis for key, axis in sizes if key == name):
                if leaves[i].shape[axis] == 1:
                    leaves[i] = leaves[i].repeat_interleave(2, axis)
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return Example(args, kwargs, self.names)


def evaluation_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, float32, on the CPU; the caller's module stays as it is."""
    return copy.deepcopy(module).cpu().float().eval()


def example_of(module: nn.Module, inputs: Any) -> Example:
    """The call that example inputs mean.

    Args:
        module: to be called.
        inputs: a tuple or list of positional arguments, a dict of keyword arguments, or a single tensor or array.

    Raises:
        InputError: they do not fit the signature of ``forward``.
        DTypeError: a tensor is complex.
    """
    signature = inspect.signature(module.forward)
    if inputs is None:
        raise InputError(
            f"{_called(module)} cannot be traced without example inputs: pass a tuple, or a dict by name, for forward{signature}"
        )
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the example inputs do not fit {_called(module)}.forward{signature}: {error}") from None
    names = leaf_names(args, kwargs, _positional_names(signature, len(args)))
    args, kwargs = pytree.tree_map_only((torch.Tensor, np.ndarray), _tensor, (args, kwargs))
    example = Example(args, kwargs, names)
    for name, tensor in example.tensors():
        if tensor.dtype.is_complex:
            raise DTypeError(f"input {name!r}: expected real numbers, got {tensor.dtype}; pass the real and imaginary parts as two inputs")
    return example


def _called(module: nn.Module) -> str:
    return type(module).__name__


def _positional_names(signature: inspect.Signature, count: int) -> list[str]:
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += (f"{parameter.name}.{i}" for i in range(count - len(names)))
        else:
            names.append(parameter.name)
    return names[:count]


def _tensor(value: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach().cpu()
    return tensor.float() if tensor.dtype.is_floating_point else tensor


def leaf_names(args: tuple[Any, ...], kwargs: Mapping[str, Any], positional: list[str]) -> tuple[str, ...]:
    """A name for each leaf of a call: that of the parameter, with the path inside it after a dot ("state.0", "batch.ids")."""
    roots = [*zip(positional, args, strict=True), *kwargs.items()]
    return tuple(".".join((root, *map(_key, path))) for root, value in roots for path, _ in pytree.tree_flatten_with_path(value)[0])


def _key(entry: Any) -> str:
    return str(next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name)))


def asked_sizes(dynamic: Dynamic, example: Example) -> AxisNames:
    """The axes that shall be symbolic, by input and axis, with the names of their sizes.

    Raises:
        InputError: `dynamic` names an input or axis that is not there, or one size twice with different values.
    """
    tensors = dict(example.tensors())
    leading = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor.ndim}
    batch = {(name, 0): "B" for name, size in leading.items() if size == next(iter(leading.values()))}
    if dynamic is None:
        return batch
    named: AxisNames = {}
    values: dict[str, tuple[str, int]] = {}
    for name, axes in dynamic.items():
        if name not in tensors:
            raise InputError(f"dynamic: {name!r} is not an input that is a tensor; expected one of {', '.join(tensors)}")
        for axis, size in axes.items():
            shape = tuple(tensors[name].shape)
            if not -len(shape) <= axis < len(shape):
                raise InputError(f"dynamic: input {name!r} has no axis {axis}, its example has the shape {shape}")
            axis %= len(shape)
            place, value = values.setdefault(size, (name, shape[axis]))
            if value != shape[axis]:
                raise InputError(f"dynamic: {size!r} is {value} in the example for {place!r}, but {shape[axis]} in that for {name!r}")
            named[name, axis] = size
    # Inputs that `dynamic` does not mention go with the batch where they look like it.
    sizes = {size: value for size, (_, value) in values.items()}
    return {key: size for key, size in batch.items() if key[0] not in dynamic and leading[key[0]] == sizes.get("B")} | named
