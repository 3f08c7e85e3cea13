"""Files of `torch.save`: the zip format of torch 1.6 and later, and the legacy format before it.

Zip, every member stored uncompressed (``name`` is any one folder):

    name/data.pkl      the object; a tensor in it is a call of a rebuild function on a persistent id of a storage
    name/data/<key>    the bytes of a storage, at a multiple of 64 bytes in files of torch itself
    name/byteorder     "little" or "big"; older files have none and are little-endian

Legacy, one after the other:

    pickle of 0x1950a86a20f9469cfc6c, pickle of 1001, pickle of a dict about the machine that wrote it
    pickle of the object
    pickle of the list of storage keys
    for each key: int64 number of elements, then the elements; little-endian on every machine
"""

from __future__ import annotations

import mmap
import zlib
from functools import cache
from io import BytesIO
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from fp8np.errors import CheckpointError

from ._pickle import build, survey
from ._tensors import Storage, StorageId

__all__ = ["read_pickle_file", "read_torch_zip"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name (APPNOTE.TXT 6.3.10, section 4.3.7)


def read_torch_zip(data: mmap.mmap, archive: ZipFile) -> Any:
    """The object of a zip file of `torch.save`; its arrays are views of `data`.

    Raises:
        UnsafeCheckpointError: the pickle names something else than tensors and plain containers.
        CheckpointError: the file is damaged, or is another kind of archive.
    """
    members = {info.filename: info for info in archive.infolist()}
    root = next((name[: -len("data.pkl")] for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in members):
        raise CheckpointError("this is a program of torch.export (.pt2), not a checkpoint; convert it as one, which needs torch")
    if root is None:
        raise CheckpointError("a zip archive without data.pkl: not a file of torch.save, nor an .npz")
    if f"{root}constants.pkl" in members or any(name.startswith(f"{root}code/") for name in members):
        raise CheckpointError(
            "this is a TorchScript archive, which holds code. With torch, save its weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    big_endian = False
    if f"{root}byteorder" in members:
        order = bytes(_member(data, members[f"{root}byteorder"]))
        if order not in (b"little", b"big"):
            raise CheckpointError(f"byteorder: expected little or big, got {order[:16]!r}")
        big_endian = order == b"big"

    @cache
    def member(key: str) -> memoryview:
        name = f"{root}data/{key}"
        if name not in members:
            raise CheckpointError(f"storage {key!r} is missing from the archive ({name})")
        return _member(data, members[name])

    @cache
    def load(wanted: StorageId) -> Storage:
        return _storage(member(wanted.key), wanted, big_endian)

    program = BytesIO(_member(data, members[f"{root}data.pkl"]))
    survey(program)
    program.seek(0)
    return build(program, load)


def _storage(data: memoryview, wanted: StorageId, big_endian: bool) -> Storage:
    size = wanted.itemsize
    if wanted.count * size > len(data):
        raise CheckpointError(
            f"storage {wanted.key!r} is shorter than declared: {len(data)} bytes, for {wanted.count} elements of {size} bytes"
        )
    first, length = wanted.view or (0, wanted.count)
    if first + length > wanted.count:
        raise CheckpointError(f"storage {wanted.key!r}: a view of elements {first} to {first + length}, of {wanted.count}")
    return Storage(wanted.key, wanted.element, data[first * size : (first + length) * size], big_endian)


def _member(data: mmap.mmap, info: ZipInfo) -> memoryview:
    # The bytes of a stored member where they lie in the file. `ZipFile.read` would copy them.
    if info.compress_type != ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise CheckpointError(f"{info.filename} is compressed or encrypted; torch.save stores members as they are. Save the file again")
    header = data[info.header_offset : info.header_offset + _LOCAL_HEADER]
    if info.header_offset < 0 or len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"damaged archive: no header where {info.filename} should be")
    start = info.header_offset + _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if start + info.file_size > len(data):
        raise CheckpointError(f"the archive ends before {info.filename} does; is the download complete?")
    found = memoryview(data)[start : start + info.file_size]
    if zlib.crc32(found) != info.CRC:
        raise CheckpointError(f"damaged archive: the checksum of {info.filename} does not match")
    return found


def read_pickle_file(data: mmap.mmap) -> Any:
    """The object of a legacy file of `torch.save`, or of a plain pickle of NumPy arrays.

    Raises:
        UnsafeCheckpointError: a pickle names something else than tensors and plain containers.
        CheckpointError: the file is damaged.
    """
    first = _next_pickle(data)
    if not (isinstance(first, int) and first == _LEGACY_MAGIC):
        if data.tell() != len(data):
            raise CheckpointError(f"{len(data) - data.tell()} bytes follow the pickle: neither a file of torch.save nor a plain pickle")
        return first
    protocol = _next_pickle(data)
    if not (isinstance(protocol, int) and protocol == _LEGACY_PROTOCOL):
        raise CheckpointError(f"legacy torch file: expected protocol {_LEGACY_PROTOCOL}, got another {type(protocol).__name__}")
    _next_pickle(data)
    start = data.tell()
    declared = survey(data).storages
    keys = _next_pickle(data)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise CheckpointError("legacy torch file: the list of storages is missing")

    stored: dict[str, memoryview] = {}
    position = data.tell()
    for key in keys:
        if key not in declared:
            raise CheckpointError(f"legacy torch file: storage {key!r} belongs to no tensor")
        wanted = declared[key]
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        begin = position + 8
        position = begin + count * wanted.itemsize
        if count < wanted.count or position > len(data):
            raise CheckpointError(
                f"legacy torch file: storage {key!r} is declared as {wanted.count} elements of {wanted.itemsize} bytes and stored as "
                f"{count}, and {max(len(data) - begin, 0)} bytes are left; is the download complete?"
            )
        stored[key] = memoryview(data)[begin:position]

    @cache
    def load(wanted: StorageId) -> Storage:
        if wanted.key not in stored:
            raise CheckpointError(f"legacy torch file: storage {wanted.key!r} is not in the file")
        return _storage(stored[wanted.key], wanted, big_endian=False)

    data.seek(start)
    return build(data, load)


def _next_pickle(data: mmap.mmap) -> Any:
    start = data.tell()
    survey(data)
    data.seek(start)
    return build(data, _no_storage)


def _no_storage(wanted: StorageId) -> Storage:
    raise CheckpointError(f"storage {wanted.key!r} is mentioned in a pickle outside a torch file")
