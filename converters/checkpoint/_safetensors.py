"""safetensors files, read strictly: a file is as the format says in every respect, or it is refused.

    8 bytes   n, the length of the header, little-endian
    n bytes   JSON: {name: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}
    rest      the tensors, little-endian and C-contiguous, each from `begin` to `end`, without gaps and overlaps

The package of this name is not used: its NumPy side has neither bfloat16 nor 8-bit floats.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

from fp8np.artifact import KEY
from fp8np.errors import CheckpointError

from ._tensors import BY_SAFETENSORS_NAME, as_array, checked_shape, wrap

__all__ = ["looks_like_safetensors", "parse_json", "read_safetensors", "shard_names"]

_MAX_HEADER = 100_000_000  # the limit of the format's own implementation


def looks_like_safetensors(data: mmap.mmap) -> bool:
    """Whether the file starts as a safetensors file does: a length, then a JSON object."""
    return len(data) > 8 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= _MAX_HEADER


def read_safetensors(data: mmap.mmap) -> dict[str, Any]:
    """Every tensor by name: a read-only array over `data`, or a `QTensor` for 8-bit floats.

    Raises:
        CheckpointError: the header is not as the format says, or does not describe the rest of the file exactly.
    """
    length = int.from_bytes(data[:8], "little")
    if 8 + length > len(data):
        raise CheckpointError(f"the header is declared as {length} bytes, but the file ends before; is the download complete?")
    header = parse_json(data[8 : 8 + length], "the header")
    metadata = header.pop("__metadata__", None)
    if isinstance(metadata, dict) and KEY in metadata:
        raise CheckpointError("this is a converted model, not a checkpoint; `fp8np run` runs it, `fp8np inspect` shows what is in it")
    body = memoryview(data)[8 + length :]

    tensors: dict[str, Any] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if len(entry) == 3:
                pass
            case _:
                raise CheckpointError(f"tensor {name!r}: expected dtype, shape and data_offsets in the header")
        element = BY_SAFETENSORS_NAME.get(dtype)
        if element is None:
            raise CheckpointError(f"tensor {name!r}: dtype {dtype} is not read; known: {', '.join(BY_SAFETENSORS_NAME)}")
        sizes = checked_shape(shape, max(element.itemsize, 4), f"tensor {name!r}")
        if not 0 <= begin <= end <= len(body):
            raise CheckpointError(f"tensor {name!r}: bytes {begin} to {end}, of {len(body)} in the file; is the download complete?")
        if math.prod(sizes) * element.itemsize != end - begin:
            raise CheckpointError(f"tensor {name!r}: {dtype} {list(sizes)} does not fill {end - begin} bytes")
        spans.append((begin, end, name))
        array = as_array(body[begin:end], element.dtype, widened=element.widened)
        tensors[name] = wrap(array.reshape(sizes), element)

    covered = 0
    for begin, end, name in sorted(spans):
        if begin != covered:
            raise CheckpointError(f"tensor {name!r} starts at byte {begin}, expected {covered}: tensors overlap or leave a gap")
        covered = end
    if covered != len(body):
        raise CheckpointError(f"{len(body) - covered} bytes behind the last tensor belong to none")
    return tensors


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object without repeated keys.

    Raises:
        CheckpointError: it is not one.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise CheckpointError(f"{what} names a key twice")
        return found

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{what}: expected a JSON object, got {type(found).__name__}")
    return found


def shard_names(index: Path) -> dict[str, str]:
    """The shard that holds each tensor, from an index file (``*.index.json``).

    Raises:
        CheckpointError: the index is malformed, or names a file that is not a plain name: it could be anywhere on the disk.
    """
    found = parse_json(index.read_bytes(), "the index").get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(shard, str) for shard in found.values()):
        raise CheckpointError("the index has no weight_map from tensor names to files")
    for shard in set(found.values()):
        if shard in ("", ".", "..") or any(character in shard for character in "/\\:\0"):
            raise CheckpointError(f"the index names {shard!r}; expected the plain name of a file beside it")
    return found
