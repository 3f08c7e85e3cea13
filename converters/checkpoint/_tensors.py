"""From raw bytes to arrays: the element types that a checkpoint may hold, storages, and strided tensors over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.errors import CheckpointError
from fp8np.formats import FORMATS, FloatFormat
from fp8np.tensor import QTensor

__all__ = [
    "BY_SAFETENSORS_NAME",
    "BY_STORAGE_CLASS",
    "BY_TORCH_NAME",
    "ElementType",
    "Storage",
    "StorageId",
    "as_array",
    "checked_shape",
    "storage_id",
    "wrap",
]

Array = npt.NDArray[Any]

_MAX_AXES = 64  # of torch and of NumPy 2
_MAX_BYTES = 2**63 - 1  # NumPy's limit on the size of an array, views with stride 0 included


@dataclass(frozen=True)
class ElementType:
    """An element type of a checkpoint.

    Attributes:
        name: torch's name of the dtype.
        dtype: NumPy's dtype of the bytes in the file, little-endian.
        storage: torch's class for a storage of this type; empty where torch has none and stores raw bytes.
        safetensors: the name in a safetensors header; empty where there is none.
        format: for 8-bit floats, the format of the codes.
        widened: bfloat16, which NumPy lacks: kept as 16-bit words in the file, float32 in memory.
    """

    name: str
    dtype: np.dtype[Any]
    storage: str = ""
    safetensors: str = ""
    format: FloatFormat | None = None
    widened: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an element in the file."""
        return self.dtype.itemsize


def _row(name: str, dtype: str, storage: str, safetensors: str, *, widened: bool = False) -> ElementType:
    return ElementType(name, np.dtype(dtype), storage, safetensors, widened=widened)


_ELEMENT_TYPES: tuple[ElementType, ...] = (
    _row("float64", "<f8", "DoubleStorage", "F64"),
    _row("float32", "<f4", "FloatStorage", "F32"),
    _row("float16", "<f2", "HalfStorage", "F16"),
    _row("bfloat16", "<u2", "BFloat16Storage", "BF16", widened=True),
    _row("complex128", "<c16", "ComplexDoubleStorage", ""),
    _row("complex64", "<c8", "ComplexFloatStorage", "C64"),
    _row("int64", "<i8", "LongStorage", "I64"),
    _row("int32", "<i4", "IntStorage", "I32"),
    _row("int16", "<i2", "ShortStorage", "I16"),
    _row("int8", "i1", "CharStorage", "I8"),
    _row("uint64", "<u8", "", "U64"),
    _row("uint32", "<u4", "", "U32"),
    _row("uint16", "<u2", "", "U16"),
    _row("uint8", "u1", "ByteStorage", "U8"),
    _row("bool", "?", "BoolStorage", "BOOL"),
    *(
        ElementType(fmt.name, np.dtype(np.uint8), safetensors="" if fmt.stored_as == "U8" else fmt.stored_as, format=fmt)
        for fmt in FORMATS.values()
    ),
)

BY_TORCH_NAME: Mapping[str, ElementType] = MappingProxyType({t.name: t for t in _ELEMENT_TYPES})
"""Element types by torch's dtype name."""
BY_STORAGE_CLASS: Mapping[str, ElementType] = MappingProxyType({t.storage: t for t in _ELEMENT_TYPES if t.storage})
"""Element types by the name of torch's storage class."""
BY_SAFETENSORS_NAME: Mapping[str, ElementType] = MappingProxyType({t.safetensors: t for t in _ELEMENT_TYPES if t.safetensors})
"""Element types by their name in a safetensors header."""


def as_array(raw: Any, dtype: np.dtype[Any], *, widened: bool = False) -> Array:
    """Bytes as a read-only 1-d array in this machine's byte order, without a copy where the bytes can be used in place.

    Args:
        raw: a bytes-like object, a whole number of elements long.
        dtype: the type in the file, byte order included.
        widened: the elements are the upper halves of float32 words (bfloat16); float32 comes out, exactly.
    """
    if dtype == np.bool_:
        # A byte other than 0 and 1 would be neither true nor false to NumPy.
        array: Array = np.frombuffer(raw, np.uint8) != 0
    else:
        array = np.frombuffer(raw, dtype)
    if widened:
        # bfloat16:  [s eeeeeeee mmmmmmm]  ->  float32:  [s eeeeeeee mmmmmmm 0000000000000000]
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    elif not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array


def wrap(array: Array, element: ElementType) -> Array | QTensor:
    """The array itself, or its 8-bit float codes as a `QTensor` of scale 1."""
    return array if element.format is None else QTensor(array, element.format)


def checked_shape(shape: Sequence[Any], itemsize: int, what: str) -> tuple[int, ...]:
    """The shape as a tuple of ints.

    Raises:
        CheckpointError: a size is not an integer or negative, or no array can be as large.
    """
    sizes = tuple(shape)
    if not all(type(n) is int and n >= 0 for n in sizes):
        # The items are not printed: they may be tuples of tuples that would fill the memory.
        raise CheckpointError(f"{what}: expected a shape of non-negative integers")
    if len(sizes) > _MAX_AXES:
        raise CheckpointError(f"{what}: a shape of {len(sizes)} axes; NumPy has at most {_MAX_AXES}")
    if math.prod(max(n, 1) for n in sizes) * itemsize > _MAX_BYTES:
        raise CheckpointError(f"{what}: a shape of {list(sizes)} is too large for any array")
    return sizes


@dataclass(frozen=True)
class StorageId:
    """A persistent id of torch: the storage meant, and what is said about it.

    Attributes:
        key: its name in the file.
        element: the type of its elements; None for raw bytes.
        count: how many elements it has.
        view: None, or (first element, number of elements) of the part that is meant. Only in the legacy format.
    """

    key: str
    element: ElementType | None
    count: int
    view: tuple[int, int] | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 1 if self.element is None else self.element.itemsize


def storage_id(pid: Any) -> StorageId:
    """The storage that a persistent id means.

    Raises:
        CheckpointError: it is not one, or its elements have no NumPy counterpart.
    """
    # Modern: ("storage", class, key, location, count). Legacy adds None or (key of the view, first element, count). The
    # location is the device the tensor lived on; here all arrays are NumPy's.
    match pid:
        case ("storage", str(cls), str(key), _, int(count), *rest) if count >= 0:
            name = cls.rpartition(".")[2]
            if name != "UntypedStorage" and name not in BY_STORAGE_CLASS:
                raise CheckpointError(f"storage {key!r}: {cls} has no NumPy counterpart; dequantize the tensors or convert them to float")
            match rest:
                case [] | [None]:
                    return StorageId(key, BY_STORAGE_CLASS.get(name), count)
                case [(str(), int(first), int(length))] if first >= 0 and length >= 0:
                    return StorageId(key, BY_STORAGE_CLASS.get(name), count, (first, length))
    raise CheckpointError("damaged pickle: a persistent id that is not a storage")


@dataclass
class Storage:
    """A run of bytes that tensors are views of.

    Attributes:
        key: its name in the file, for messages.
        element: the type of all its elements, or None where each tensor names its own.
        data: its bytes.
        big_endian: the byte order of the file.
    """

    key: str
    element: ElementType | None
    data: memoryview
    big_endian: bool = False
    # Arrays over `data` by element type. Kept, since a bfloat16 storage is widened once, however many tensors share it:
    # the memory used stays in proportion to the file.
    _arrays: dict[str, Array] = field(default_factory=dict, repr=False)

    def tensor(self, element: ElementType, offset: Any, shape: Any, strides: Any) -> Array | QTensor:
        """The strided view that torch's rebuild functions describe: read-only, never reaching outside the storage.

        Args:
            element: the type of the tensor's elements.
            offset: index of the first element.
            shape: per axis.
            strides: per axis, in elements.

        Raises:
            CheckpointError: the description is malformed, or an element would lie outside the storage.
        """
        what = f"tensor in storage {self.key!r}"
        sizes = checked_shape(shape, max(element.itemsize, 4), what)
        steps = tuple(strides)
        if type(offset) is not int or offset < 0 or len(steps) != len(sizes) or not all(type(s) is int and s >= 0 for s in steps):
            raise CheckpointError(f"{what}: expected an offset and {len(sizes)} strides, all of them non-negative integers")
        count = len(self.data) // element.itemsize
        if 0 in sizes:
            # Nothing is read, so torch lets offset and strides be anything.
            offset, steps = 0, (0,) * len(sizes)
        else:
            # The stride of an axis of length 1 is never used, and may be too large for NumPy.
            steps = tuple(s if n > 1 else 0 for n, s in zip(sizes, steps, strict=True))
            end = offset + sum((n - 1) * s for n, s in zip(sizes, steps, strict=True)) + 1
            if end > count:
                raise CheckpointError(
                    f"{what}: shape {list(sizes)}, strides {list(steps)} and offset {offset} reach element {end - 1}, "
                    f"but the storage holds {count} of {element.name}"
                )
        flat = self._array(element, count)
        width = flat.itemsize
        view: Array = np.ndarray(sizes, flat.dtype, flat, offset * width, tuple(s * width for s in steps))
        return wrap(view, element)

    def _array(self, element: ElementType, count: int) -> Array:
        if element.name not in self._arrays:
            dtype = element.dtype.newbyteorder(">") if self.big_endian else element.dtype
            self._arrays[element.name] = as_array(self.data[: count * element.itemsize], dtype, widened=element.widened)
        return self._arrays[element.name]
