"""A trained model, whatever it comes as, to a `Graph`: decides by what the source is which converter reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp8np.data import imported
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
) -> Graph:
    """The graph of a trained model.

    Args:
        source: a Hugging Face folder; a ``.pt2`` file; a checkpoint, with `module`; or ``pkg.mod:factory`` itself.
        module: ``pkg.mod:factory``, a function without arguments that returns the nn.Module the checkpoint belongs to.
        key: where the weights are inside the checkpoint.
        example_inputs: npz or npy with inputs to trace the module with; by default the factory's module says them itself in
            an attribute ``example_inputs`` (a tuple of tensors or a dict by name).
        dynamic: names of the axes that may vary, by input name and axis.
        pooling: for a BERT folder, "mean" gives sentence embeddings.

    Raises:
        CheckpointError: the source is none of these, or its weights do not fit the module.
        InputError: a module needs example inputs, and there are none.
    """
    path = Path(source)
    if path.is_dir():
        from .bert import from_folder

        return from_folder(path, pooling=pooling)
    if path.suffix == ".pt2":
        from .torch_export import from_exported

        return from_exported(path)
    if module is None and not path.exists() and ":" in source:
        module, source = source, ""
    if module is None:
        if not path.exists():
            raise CheckpointError(f"{source}: no such file or folder")
        raise CheckpointError(
            f"{source}: a checkpoint holds weights, not the network; name the function that builds it with --module pkg.mod:factory"
        )
    return _from_factory(module, Path(source) if source else None, key, example_inputs, dynamic)


def _from_factory(module: str, checkpoint: Path | None, key: str | None, example_inputs: Path | None, dynamic: DynamicAxes | None) -> Graph:
    from .torch_export import from_module, load_weights

    network = imported(module)()
    if checkpoint is not None:
        from .checkpoint import read_state_dict

        load_weights(network, read_state_dict(checkpoint, key=key), origin=str(checkpoint))
    examples = _examples(example_inputs) if example_inputs is not None else getattr(network, "example_inputs", None)
    if examples is None:
        raise InputError(
            f"{module}: inputs are needed to trace the network: pass --example-inputs FILE.npz with an array for each input, "
            "or give the module an attribute example_inputs"
        )
    return from_module(network, examples, dynamic=dynamic, name=module.rpartition(":")[2])


def _examples(path: Path) -> Any:
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: expected an npz or npy file of example inputs: {error}") from error
    if isinstance(loaded, np.ndarray):
        return (loaded,)
    with loaded:
        return {name: loaded[name] for name in loaded.files}
