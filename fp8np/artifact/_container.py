"""The container: a safetensors file, read strictly and written so that the same tensors give the same bytes.

    [n: uint64][header: n bytes][data]

The header is JSON, padded with spaces so that the data start at a multiple of 8: for each tensor its element type, its
shape and where its bytes begin and end in the data. Tensors are written by falling element size, so each starts at a
multiple of its element size, with no holes. All numbers are little-endian.

The safetensors package gives these same bytes for the same input (a test holds us to that). It is not used to write since
it needs every tensor in contiguous memory at once, reports a full disk as an error that is no `OSError`, and makes files
that only their owner can read; nor to read, since its NumPy side knows no FP8 and checks nothing of what follows.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fp8np.artifact._json import parse_json
from fp8np.errors import ArtifactError

__all__ = ["ELEMENTS", "ELEMENT_OF", "KEY", "Stored", "read_container", "write_container"]

KEY = "fp8np"
"""The key of the metadata under which the graph is. Without it a safetensors file is not a converted model."""

ELEMENTS: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        name: np.dtype(kind)
        for name, kind in {
            "U64": "<u8",
            "I64": "<i8",
            "F64": "<f8",
            "F32": "<f4",
            "U32": "<u4",
            "I32": "<i4",
            "F16": "<f2",
            "U16": "<u2",
            "I16": "<i2",
            "F8_E8M0": "u1",
            "F8_E4M3": "u1",
            "F8_E5M2": "u1",
            "I8": "i1",
            "U8": "u1",
            "BOOL": "?",
        }.items()
    }
)
"""Element types and the arrays they become, in the order in which tensors are written. A converted model holds fewer (`fp8np.check`)."""

ELEMENT_OF: Mapping[str, str] = MappingProxyType({d.name: e for e, d in ELEMENTS.items() if not e.startswith("F8_")})
"""The element type for an array, by the name of its dtype."""

_MAX_HEADER = 32 << 20
"""Bytes. Parsing takes some thirty times as much memory, so this is what a hostile file can cost; MiniLM needs 0.1 MiB."""

_METADATA = "__metadata__"
_MAX_RANK = 64
"""As in NumPy."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it is in the file: a name of ELEMENTS, and the array (codes, for FP8)."""

    element: str
    array: npt.NDArray[Any]


def write_container(file: BinaryIO, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """Writes tensors, by falling element size and then by name.

    Raises:
        ArtifactError: the header would be larger than a reader accepts, or a name cannot be written.
    """
    rank = {element: i for i, element in enumerate(ELEMENTS)}
    names = sorted(tensors, key=lambda name: (rank[tensors[name].element], name))
    if _METADATA in tensors:
        raise ArtifactError(f"a tensor cannot be named {_METADATA!r} in a safetensors file: rename it")
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))}
    begin = 0
    for name in names:
        element, array = tensors[name].element, tensors[name].array
        end = begin + array.size * ELEMENTS[element].itemsize
        header[name] = {"dtype": element, "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    try:
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ArtifactError(f"a name or a text is not valid Unicode: {error}") from None
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _MAX_HEADER:
        raise ArtifactError(f"expected a graph of at most {_MAX_HEADER} bytes, got {len(encoded)}")
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for name in names:
        file.write(_payload(tensors[name]))


def _payload(stored: Stored) -> memoryview:
    # One contiguous copy at a time, and only where the array is a transposed view or of the other byte order.
    array = np.ascontiguousarray(stored.array, ELEMENTS[stored.element])
    return array.reshape(-1).view(np.uint8).data


def read_container(path: Path) -> tuple[dict[str, str], dict[str, Stored]]:
    """The metadata and, as views of the mapped file, the tensors.

    Raises:
        ArtifactError: the file is not a safetensors file, not one of ours, or breaks a rule of the format.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _read_header(file, size)
        metadata = _metadata(header)
        extents = {name: _extent(name, entry) for name, entry in header.items()}
        _check_layout(extents, size - start)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return metadata, {name: extent.view(name, mapped, start) for name, extent in extents.items()}


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    start = 8 + length
    if len(prefix) < 8 or length > _MAX_HEADER or length % 8:
        raise ArtifactError(
            f"not a file of fp8np: expected the length of a header first, a multiple of 8 and at most {_MAX_HEADER}, got {length}; "
            "`fp8np convert` makes a model of a checkpoint"
        )
    if start > size:
        raise ArtifactError(f"header: expected {length} bytes, the file has {size - 8}: truncated")
    try:
        text = file.read(length).decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"header: not UTF-8 at byte {error.start}") from None
    header = parse_json(text, "header")
    if not isinstance(header, dict):
        raise ArtifactError(f"header: expected an object, got {short(header)}")
    return header, start


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError(f"{_METADATA}: expected an object of strings")
    if KEY not in metadata:
        raise ArtifactError(
            f"a safetensors file, but not one of fp8np (no {KEY!r} in its metadata); `fp8np convert` makes a model of a checkpoint"
        )
    return metadata


@dataclass(frozen=True)
class _Extent:
    element: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def view(self, name: str, mapped: mmap.mmap, start: int) -> Stored:
        array: npt.NDArray[Any] = np.ndarray(self.shape, ELEMENTS[self.element], mapped, start + self.begin)
        if self.element == "BOOL" and array.size and array.view(np.uint8).max() > 1:
            raise ArtifactError(f"tensor {name!r}: expected bytes 0 and 1 in a BOOL tensor")
        return Stored(self.element, array)


def _extent(name: str, entry: Any) -> _Extent:
    place = f"tensor {short(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{place}: expected an object with dtype, shape and data_offsets, got {short(entry)}")
    element, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(element, str) or element not in ELEMENTS:
        raise ArtifactError(f"{place}: expected a dtype of {', '.join(ELEMENTS)}, got {short(element)}")
    if not _is_counts(shape) or len(shape) > _MAX_RANK:
        raise ArtifactError(f"{place}: expected a shape of at most {_MAX_RANK} sizes, got {short(shape)}")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ArtifactError(f"{place}: expected data_offsets [begin, end], got {short(offsets)}")
    begin, end = offsets
    itemsize = ELEMENTS[element].itemsize
    # NumPy multiplies in 64 bits, leaving out zeros.
    if math.prod(s or 1 for s in shape) * itemsize >= 2**63:
        raise ArtifactError(f"{place}: the shape {short(shape)} has more elements than 64 bits can count")
    if math.prod(shape) * itemsize != end - begin:
        raise ArtifactError(f"{place}: {element}{short(shape)} needs {math.prod(shape) * itemsize} bytes, data_offsets give {end - begin}")
    if begin % itemsize:
        raise ArtifactError(f"{place}: expected a start at a multiple of {itemsize} bytes, got {begin}")
    return _Extent(element, tuple(shape), begin, end)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_layout(extents: Mapping[str, _Extent], size: int) -> None:
    reached, before = 0, "the header"
    for name, extent in sorted(extents.items(), key=lambda item: (item[1].begin, item[1].end)):
        if extent.begin != reached:
            what = "overlaps" if extent.begin < reached else f"leaves a hole of {extent.begin - reached} bytes after"
            raise ArtifactError(f"tensor {short(name)}: begins at {extent.begin} and {what} {before}, which ends at {reached}")
        reached, before = extent.end, f"tensor {short(name)}"
    if reached != size:
        raise ArtifactError(f"data: expected {reached} bytes, the file has {size}: truncated, or with something appended")
