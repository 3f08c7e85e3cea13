"""Quantized tensors in one file: `save_tensors` and `load_tensors`.

The file is safetensors, written and read as that of a converted model (``fp8np.artifact``). Codes have the element type F8_E4M3 or
F8_E5M2 where that is their format, else U8, one code a byte; float32 scales are F32, those of MX F8_E8M0. What these do not say is
in the metadata, under ``fp8np``: the format, the block and the scale's tensor of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._files import replacing
from fp8np.artifact._container import ELEMENT_OF, KEY, Stored, read_container, write_container
from fp8np.artifact._graph import scale_names
from fp8np.artifact._json import fields, items, mapping, parse_json, short, text
from fp8np.errors import ArtifactError, ArtifactVersionError, DTypeError, FormatError, Fp8npError
from fp8np.formats import FloatFormat, get_format
from fp8np.tensor import QTensor

__all__ = ["Tensors", "load_tensors", "save_tensors"]

VERSION = 1

Tensor = QTensor | npt.NDArray[Any]


class Tensors(dict[str, Tensor]):
    """What a file holds: tensors by name, and its metadata.

    Attributes:
        metadata: the strings given to `save_tensors`.
    """

    metadata: dict[str, str]

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors to a file, whole or not at all, without loss. The same tensors give the same bytes.

    Args:
        path: a ``.safetensors`` file; replaced in one step if it exists.
        tensors: by name, `QTensor`s and NumPy arrays.
        metadata: strings of your own.

    Raises:
        DTypeError: `tensors` is no mapping, a tensor is neither, or an array has an element type that the file cannot hold.
        FormatError: a format is not in the table of formats. ArtifactError: a name or the metadata cannot be written. OSError: the
        file cannot be written; what stood at `path` is still there.

    >>> import tempfile
    >>> from fp8np.scaling import quantize
    >>> path = Path(tempfile.mkdtemp()) / "layer.safetensors"
    >>> save_tensors(path, {"w": quantize(np.eye(2), "mxfp4"), "bias": np.zeros(2, np.float32)}, {"epoch": "3"})
    >>> loaded = load_tensors(path)
    >>> loaded["w"], loaded.metadata
    (QTensor([[1., 0.],
             [0., 1.]],
            float4_e2m1fn, shape=(2, 2), scale=float8_e8m0fnu[2, 1] 0.25, block=(1, 32)), {'epoch': '3'})
    """
    if not isinstance(tensors, Mapping):
        raise DTypeError(f"save_tensors: expected a dict of tensors by name, got {type(tensors).__name__}")
    given = dict(metadata or {})
    for key, value in given.items():
        if key == KEY or not isinstance(key, str) or not isinstance(value, str):
            raise ArtifactError(
                f"save_tensors: expected metadata of strings, under keys other than {KEY!r}; got {short(key)}: {short(value)}"
            )
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise ArtifactError(f"save_tensors: expected strings as names, got {short(name)}")
        _check(name, tensor)
    scales = scale_names(tensors)
    stored: dict[str, Stored] = {}
    facts: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, QTensor):
            stored[name] = Stored(ELEMENT_OF[tensor.dtype.name], tensor)
            continue
        stored[name] = Stored(tensor.format.stored_as, tensor.codes)
        kept = tensor.scale_format
        stored[scales[name]] = Stored("F32", tensor.scale) if kept is None else Stored(kept.stored_as, tensor.scale_codes)
        facts[name] = {
            "format": tensor.format.name,
            "scale": scales[name],
            "scale_format": None if kept is None else kept.name,
            "block": None if tensor.block is None else list(tensor.block),
        }
    description = json.dumps({"version": VERSION, "quantized": dict(sorted(facts.items()))}, separators=(",", ":"), ensure_ascii=False)
    with replacing(path) as temporary, temporary.open("wb") as file:
        write_container(file, stored, {**given, KEY: description})


def _check(name: str, tensor: Any) -> None:
    if isinstance(tensor, QTensor):
        for fmt in (tensor.format, tensor.scale_format):
            if fmt is not None and get_format(fmt.name) != fmt:
                raise FormatError(f"save_tensors: {name!r}: {fmt} is not the format of that name in the table, and could not be read back")
    elif not isinstance(tensor, np.ndarray):
        raise DTypeError(f"save_tensors: {name!r}: expected a QTensor or a NumPy array, got {type(tensor).__name__}")
    elif tensor.dtype.name not in ELEMENT_OF:
        hint = "; make it a QTensor(array)" if tensor.dtype.name.startswith("float8") else ""
        raise DTypeError(f"save_tensors: {name!r}: expected an array of {', '.join(ELEMENT_OF)}, got {tensor.dtype}{hint}")


def load_tensors(path: str | os.PathLike[str]) -> Tensors:
    """Reads a file that `save_tensors` wrote.

    The file is not trusted: what `save_tensors` would not write is refused. Codes and arrays are read-only views of the mapped file.

    Returns:
        A dict of tensors by name; its attribute `metadata` has the strings given to `save_tensors`.

    Raises:
        ArtifactError: the file is damaged, or of another kind; the message has the path and the place. ArtifactVersionError: it
        was written by a newer fp8np. OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path}: expected a file that save_tensors wrote, got a folder or a device")
    try:
        metadata, stored = read_container(path)
        return Tensors(_decoded(metadata.pop(KEY), stored), metadata)
    except ArtifactVersionError as error:
        raise ArtifactVersionError(f"{path}: {error}") from error
    except Fp8npError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _decoded(description: str, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    whole = mapping(parse_json(description, "tensors"), "tensors")
    if "graph" in whole or "nodes" in whole:
        raise ArtifactError("this is a converted model; open it with fp8np.load")
    version = whole.get("version")
    if type(version) is not int or version < 1:
        raise ArtifactError(f"tensors: expected a version, got {short(version)}")
    if version > VERSION:
        raise ArtifactVersionError(f"written by a newer fp8np (version {version} of the file, this one reads {VERSION}): upgrade fp8np")
    _, quantized = fields(whole, "tensors", "version", "quantized")
    unused = dict(stored)
    result: dict[str, Tensor] = {}

    def take(name: str, place: str, element: str) -> npt.NDArray[Any]:
        if name not in unused:
            raise ArtifactError(f"{place}: the tensor {short(name)} {'is used twice' if name in stored else 'is not in the file'}")
        tensor = unused.pop(name)
        if tensor.element != element:
            raise ArtifactError(f"{place}: expected a tensor of {element}, {short(name)} is stored as {tensor.element}")
        return tensor.array

    for name, entry in mapping(quantized, "quantized").items():
        place = f"tensor {short(name)}"
        fmt, scale, scale_fmt, block = fields(entry, place, "format", "scale", "scale_format", "block")
        own = _format(fmt, place)
        kept = None if scale_fmt is None else _format(scale_fmt, place)
        codes = take(name, place, own.stored_as)
        scales = take(text(scale, place), f"{place}: scale", "F32" if kept is None else kept.stored_as)
        try:
            lengths = None if block is None else tuple(items(block, place))
            result[name] = QTensor(codes, own, scales, block=lengths, scale_format=kept)
        except Fp8npError as error:
            raise ArtifactError(f"{place}: {error}") from error
    for name, tensor in unused.items():
        if tensor.element.startswith("F8_"):
            raise ArtifactError(f"tensor {short(name)}: {tensor.element} codes of which the metadata know no scale")
        result[name] = tensor.array
    return result


def _format(name: Any, place: str) -> FloatFormat:
    # The length first: get_format looks for names that are close, which takes long for a long name.
    if len(text(name, place)) > 64 or get_format(name).name != name:
        raise ArtifactError(f"{place}: expected the canonical name of a format, got {short(name)}")
    return get_format(name)
