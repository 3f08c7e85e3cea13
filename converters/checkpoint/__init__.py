"""Checkpoints of PyTorch and NumPy into NumPy arrays, without PyTorch, and without executing anything found in the file.

- `read_checkpoint`: the object in a file, as it was saved.
- `read_state_dict`: the mapping from parameter names to arrays in it, wherever it is.

What a file is, is decided by its content, never by the ending of its name. ``docs/checkpoints.md`` has the layouts.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from fp8np.errors import CheckpointError, UnsafeCheckpointError
from fp8np.tensor import QTensor

from ._npz import read_npz
from ._safetensors import looks_like_safetensors, read_safetensors, shard_names
from ._torch import read_pickle_file, read_torch_zip

__all__ = ["read_checkpoint", "read_state_dict"]

# Keys under which training scripts keep the state dict of a model.
_WRAPPERS = frozenset(
    {"state_dict", "model_state_dict", "model_state", "model", "module", "params", "params_ema", "weights", "net", "network", "ema"}
)
_CONTEXT = "checkpoint"  # how every message starts
_MAX_DEPTH = 4  # of dicts in dicts, where a state dict is looked for

# What wrappers around the model itself put before every name: DataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")

# Files that are often taken for checkpoints, by how they start.
_MISTAKEN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file it stands for; fetch it with `git lfs pull`"),
    (0, b"<", "a web page or XML, not a checkpoint; was the download refused?"),
    (0, b"GGUF", "a GGUF file; convert the original safetensors or torch checkpoint instead"),
    (0, b"\x89HDF", "an HDF5 (Keras) file; save the weights with numpy.savez instead"),
    (0, b"\x93NUMPY", "a single NumPy array without a name; save it with numpy.savez instead"),
    *((0, bytes([8, version, 18]), "an ONNX model, which is not read; convert the PyTorch model") for version in range(1, 32)),
    (257, b"ustar", "a tar file, as torch wrote before version 0.1.10; load it with torch and save it again"),
)


def read_checkpoint(path: str | Path) -> Any:
    """The object in a checkpoint, as it was saved: dicts, lists, tuples, sets, numbers, strings and arrays.

    Reads files of `torch.save` (zip and legacy; ``.pt``, ``.pth``, ``.bin``, ``.th``, ``.ckpt``), ``.safetensors``, NumPy's
    ``.npz``, and a folder or an ``*.index.json`` of safetensors or torch shards.

    Tensors and parameters become NumPy arrays of the same dtype and shape. They are read-only, and most are views of the
    memory-mapped file: nothing is read before it is used, except for the checksum of a torch file. Two exceptions:

    - bfloat16, which NumPy lacks, becomes float32; every value is kept exactly.
    - 8-bit floats become a `QTensor` with their codes and scale 1.

    Device, gradient and hooks are dropped. OrderedDict, defaultdict, Counter and argparse.Namespace become a dict; torch.Size
    a tuple; torch.device, torch.dtype and the name of a known class a string.

    Args:
        path: the file or folder.

    Returns:
        For torch files whatever was saved, most often a dict. For all others a dict from names to arrays.

    Raises:
        UnsafeCheckpointError: the file asks for anything else, which could run code; all such names are listed.
        CheckpointError: the file is missing, damaged, truncated or of another kind, or holds sparse, quantized or other
            tensors without a NumPy counterpart.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/net.npz", weight=np.eye(2, dtype=np.float32))
    ...     read_checkpoint(f"{folder}/net.npz")["weight"].dtype
    dtype('float32')
    """
    path = Path(path)
    try:
        if path.is_dir():
            return read_checkpoint(_main_file(path))
        if path.name.endswith(".json"):
            return _read_shards(path)
        with path.open("rb") as file:
            if not file.read(1):
                raise CheckpointError("the file is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _read_file(data, path)
    except CheckpointError as error:
        if str(error).startswith(_CONTEXT):
            raise  # from a file inside a folder, or a shard
        raise type(error)(f"{_context(path)}{error}") from error.__cause__
    except OSError as error:
        raise CheckpointError(f"{_context(path)}cannot be read: {error.strerror or error}") from error


def read_state_dict(path: str | Path, *, key: str | None = None) -> dict[str, Any]:
    """The parameters in a checkpoint: a flat mapping from names to arrays.

    The mapping is the whole file, or it is found inside: under a usual name ("state_dict", "model", "model_state", "params",
    "ema", ...; also one in another), or else as the only one there is. A prefix "module." (DataParallel) or "_orig_mod."
    (torch.compile) is removed where all names have it.

    Args:
        path: as for `read_checkpoint`.
        key: where the mapping is, with dots between the keys of nested dicts: "ema.model".

    Returns:
        Name -> read-only `numpy.ndarray`, or `QTensor` where the file has 8-bit floats.

    Raises:
        CheckpointError: there is none or more than one (all are listed), or `key` leads elsewhere; and as `read_checkpoint`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/net.npz", **{"module.fc.weight": np.ones((2, 3)), "module.fc.bias": np.ones(2)})
    ...     {name: array.shape for name, array in read_state_dict(f"{folder}/net.npz").items()}
    {'fc.weight': (2, 3), 'fc.bias': (2,)}
    """
    checkpoint = read_checkpoint(path)
    try:
        found = _at_key(checkpoint, key) if key is not None else _only_state_dict(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{_context(Path(path))}{error}") from None
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): array for name, array in found.items()}
    return found


def _context(path: Path) -> str:
    return f"{_CONTEXT} {path}: "


# -- files ------------------------------------------------------------------------------------------------------------


def _read_file(data: mmap.mmap, path: Path) -> Any:
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _read_zip(data, path)
    if looks_like_safetensors(data):
        return read_safetensors(data)
    for offset, start, what in _MISTAKEN:
        if data[offset : offset + len(start)] == start:
            raise CheckpointError(f"this is {what}")
    try:
        return read_pickle_file(data)
    except UnsafeCheckpointError:
        raise
    except CheckpointError as error:
        # A pickle has no signature before protocol 2, so anything may be one.
        if data[:1] == b"\x80":
            raise
        raise CheckpointError(f"no checkpoint of a known kind: not zip, safetensors, nor pickle ({error})") from None


def _read_zip(data: mmap.mmap, path: Path) -> Any:
    try:
        archive = ZipFile(path)
    except (BadZipFile, NotImplementedError, OverflowError, struct.error, ValueError) as error:
        raise CheckpointError(f"damaged or incomplete archive ({error}); is the download complete?") from None
    with archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise CheckpointError("the archive holds two members of one name")
        if names and all(name.endswith(".npy") for name in names):
            return read_npz(archive)
        return read_torch_zip(data, archive)


def _main_file(folder: Path) -> Path:
    # An index names its shards, so it goes before files; safetensors go before pickles.
    for pattern in ("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.bin", "*.pt", "*.pth", "*.npz"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(f"the folder holds {len(found)} files {pattern}: {_listed(p.name for p in found)}; name one of them")
    raise CheckpointError("the folder holds no checkpoint (*.safetensors, *.bin, *.pt, *.pth, *.npz)")


def _read_shards(index: Path) -> dict[str, Any]:
    wanted = shard_names(index)
    shards: dict[str, dict[str, Any]] = {}
    for shard in sorted(set(wanted.values())):
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"shard {shard} is missing beside the index")
        shards[shard] = read_state_dict(index.parent / shard)
    missing = [name for name, shard in wanted.items() if name not in shards[shard]]
    if missing:
        raise CheckpointError(f"the index puts {_listed(missing)} into {wanted[missing[0]]}, where it is not")
    return {name: shards[shard][name] for name, shard in wanted.items()}


# -- state dicts ------------------------------------------------------------------------------------------------------


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(array, (np.ndarray, QTensor)) for name, array in value.items())
    )


def _state_dicts(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if not isinstance(value, dict) or id(value) in seen:
        return
    seen.add(id(value))
    if _is_state_dict(value):
        yield path, value
    elif len(path) < _MAX_DEPTH:
        for name, inner in value.items():
            yield from _state_dicts(inner, (*path, str(name)), seen)


def _only_state_dict(checkpoint: Any) -> dict[str, Any]:
    found = list(_state_dicts(checkpoint, (), set()))
    usual = [(path, tensors) for path, tensors in found if _WRAPPERS.issuperset(path)]
    candidates = usual or found
    if len(candidates) == 1:
        return candidates[0][1]
    if candidates:
        places = _listed(f"{'.'.join(path)} ({len(tensors)} tensors)" for path, tensors in candidates)
        raise CheckpointError(f"more than one state dict: {places}; choose one with key=")
    raise CheckpointError(
        f"no mapping from names to tensors alone was found; the file holds {_summary(checkpoint)}; choose a part with key="
    )


def _at_key(checkpoint: Any, key: str) -> dict[str, Any]:
    value = checkpoint
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise CheckpointError(f"key {key!r}: there is no {part!r} in {_summary(value)}")
        value = value[part]
    if _is_state_dict(value):
        return dict(value)
    if isinstance(value, dict):
        others = [str(name) for name, array in value.items() if not isinstance(array, (np.ndarray, QTensor))]
        raise CheckpointError(f"key {key!r}: expected tensors only, but these are not: {_listed(others) or 'it is empty'}")
    raise CheckpointError(f"key {key!r}: expected a dict of tensors, got {_summary(value)}")


def _summary(value: Any) -> str:
    if isinstance(value, dict):
        return "a dict of " + (_listed(f"{str(name)!r} ({type(inner).__name__})" for name, inner in value.items()) or "nothing")
    return f"a {type(value).__name__}"


def _listed(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
