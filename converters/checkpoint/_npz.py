"""NumPy's .npz archives: a zip of .npy members. Arrays of Python objects are refused: they are pickles."""

from __future__ import annotations

import math
import zlib
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np

from fp8np.errors import CheckpointError, UnsafeCheckpointError

from ._tensors import Array, as_array, checked_shape

__all__ = ["read_npz"]

_MAX_DEFLATE_RATIO = 1032  # deflate cannot do better; zlib's technical notes, "Maximum Compression Factor"


def read_npz(archive: ZipFile) -> dict[str, Array]:
    """Every array by name, as `numpy.load` with ``allow_pickle=False``, read-only and in this machine's byte order.

    Raises:
        UnsafeCheckpointError: a member holds Python objects.
        CheckpointError: a member is damaged, or declares more data than it can hold.
    """
    arrays: dict[str, Array] = {}
    for info in archive.infolist():
        try:
            with archive.open(info) as member:
                arrays[info.filename.removesuffix(".npy")] = _read_npy(member, info)
        except CheckpointError as error:
            raise type(error)(f"{info.filename}: {error}") from None
        except (BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError, zlib.error) as error:
            raise CheckpointError(f"{info.filename} is damaged: {error}") from None
    return arrays


def _read_npy(member: IO[bytes], info: ZipInfo) -> Array:
    possible = info.compress_size * (_MAX_DEFLATE_RATIO if info.compress_type == ZIP_DEFLATED else 1)
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or info.file_size > possible:
        raise CheckpointError(f"{info.file_size} bytes cannot come out of {info.compress_size}")
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise CheckpointError(f"version {version} of the .npy format is for records, which are not read")
    read_header: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(member)
    if dtype.hasobject:
        raise UnsafeCheckpointError("an array of Python objects, which can be anything; nothing was executed. Save arrays of numbers")
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0:
        raise CheckpointError(f"dtype {dtype} is not read; expected numbers or strings")
    sizes = checked_shape(shape, dtype.itemsize, "array")
    expected = math.prod(sizes) * dtype.itemsize
    if info.file_size - member.tell() != expected:
        raise CheckpointError(f"{dtype} {list(sizes)} needs {expected} bytes, but {info.file_size - member.tell()} are there")
    return as_array(member.read(expected), dtype).reshape(sizes, order="F" if fortran else "C")
