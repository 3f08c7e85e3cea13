"""A trained model, whatever it comes as, to a `Graph`: decides by what the source is which converter reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp8np.data import imported, read_file, user_code, with_folders
from fp8np.errors import CheckpointError, InputError
from fp8np.graph import Graph

__all__ = ["read_source"]

DynamicAxes = Mapping[str, Mapping[int, str]]


def read_source(
    source: str,
    *,
    module: str | None = None,
    key: str | None = None,
    example_inputs: Path | None = None,
    dynamic: DynamicAxes | None = None,
    pooling: str | None = None,
    folders: Mapping[str, Path] | None = None,
) -> Graph:
    """The graph of a trained model.

    Args:
        source: a Hugging Face folder; a ``.pt2`` file; a checkpoint, with `module`; or ``pkg.mod:factory`` itself.
        module: ``pkg.mod:factory``, a function that returns the nn.Module the checkpoint belongs to.
        key: where the weights are inside the checkpoint.
        example_inputs: npz or npy with inputs to trace the module with; by default the factory's module says them itself in
            an attribute ``example_inputs`` (a tuple of tensors or a dict by name).
        dynamic: names of the axes that may vary, by input name and axis.
        pooling: for a BERT folder, "mean" gives sentence embeddings.
        folders: what a factory that takes a parameter is called with; see `fp8np.data.with_folders`.

    Raises:
        CheckpointError: the source is none of these, or its weights do not fit the module.
        InputError: a module needs example inputs, and there are none; the factory fails or gives no module; an argument does
            not apply to the source.
    """
    options = {"--module": module, "--key": key, "--example-inputs": example_inputs, "--dynamic-axis": dynamic, "--pooling": pooling}
    path = Path(source)
    if module is None and not path.exists() and ":" in source:
        _refuse_all_but(("--example-inputs", "--dynamic-axis"), options, f"{source}, a function,")
        return _from_factory(source, None, None, example_inputs, dynamic, folders)
    if not path.exists():
        raise CheckpointError(f"{source}: no such file or folder")
    if path.suffix == ".pt2":
        from .torch_export import from_exported

        _refuse_all_but((), options, f"{source}, a program with its weights,")
        return from_exported(path)
    if module is not None:
        _refuse_all_but(("--module", "--key", "--example-inputs", "--dynamic-axis"), options, f"{source}, a checkpoint,")
        return _from_factory(module, path, key, example_inputs, dynamic, folders)
    if path.is_dir():
        from .bert import from_folder

        _refuse_all_but(("--pooling",), options, f"{source}, a folder,")
        return from_folder(path, pooling=pooling)
    from .checkpoint import read_checkpoint

    read_checkpoint(path)  # says what the file is, where it is no checkpoint
    raise CheckpointError(
        f"{source}: a checkpoint holds weights, not the network; name the function that builds it with --module pkg.mod:factory"
    )


def _refuse_all_but(allowed: tuple[str, ...], options: Mapping[str, Any], what: str) -> None:
    unused = [name for name, value in options.items() if value is not None and name not in allowed]
    if unused:
        raise InputError(f"{what} does not go with {', '.join(unused)}")


def _from_factory(
    module: str,
    checkpoint: Path | None,
    key: str | None,
    example_inputs: Path | None,
    dynamic: DynamicAxes | None,
    folders: Mapping[str, Path] | None,
) -> Graph:
    from .torch_export import from_module, load_weights

    network = _network(module, folders)
    if checkpoint is not None:
        from .checkpoint import read_state_dict

        load_weights(network, read_state_dict(checkpoint, key=key), origin=str(checkpoint))
    examples = getattr(network, "example_inputs", None) if example_inputs is None else read_file(example_inputs)
    if examples is None:
        raise InputError(
            f"{module}: inputs are needed to trace the network: pass --example-inputs FILE.npz with an array for each input, "
            "or give the module an attribute example_inputs"
        )
    return from_module(network, examples, dynamic=dynamic, name=module.rpartition(":")[2])


def _network(module: str, folders: Mapping[str, Path] | None) -> Any:
    from torch import nn

    factory = imported(module)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InputError(f"{module}: expected a function that returns an nn.Module, got a {type(factory).__name__}")
    with user_code(module):
        network = with_folders(factory, folders)()
    if not isinstance(network, nn.Module):
        raise InputError(f"{module}: expected a function that returns an nn.Module, it returned a {type(network).__name__}")
    return network
