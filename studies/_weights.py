"""Weights read without PyTorch, in a module that is defined here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["pretrained"]


def pretrained(module: Any, path: Path, *, key: str | None = None, name: Callable[[str], str | None] = str) -> Any:
    """`module` in eval mode with the weights of a checkpoint.

    Args:
        module: an nn.Module.
        path: of a checkpoint.
        key: where the weights are in it, as for `read_state_dict`.
        name: what the module calls a tensor of that name in the checkpoint; None where it has none.

    Raises:
        CheckpointError: the file is not readable, or the weights do not fit the module.
    """
    from fp8np_converters.checkpoint import read_state_dict
    from fp8np_converters.torch_export import load_weights

    stored = {name(old): array for old, array in read_state_dict(path, key=key).items()}
    load_weights(module, {new: array for new, array in stored.items() if new is not None}, origin=str(path))
    return module.eval()
