"""Every name that a checkpoint may mention, and what a call of it builds. Nothing outside this table is ever called.

A builder takes the tuple of arguments found in the file and returns a plain value: a container, a number, a string, a NumPy
array, a `QTensor`. It trusts none of its arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

import numpy as np

from fp8np.errors import CheckpointError, UnsafeCheckpointError
from fp8np.tensor import QTensor

from ._tensors import BY_STORAGE_CLASS, BY_TORCH_NAME, Array, Storage, as_array, checked_shape

__all__ = ["KNOWN_NAMES", "Global", "Pending", "call", "plain_dict", "plain_set"]

Builder = Callable[[tuple[Any, ...]], Any]


class Global(str):
    """A name mentioned in a pickle, "module.name". It is text: it gives access to nothing.

    Where a checkpoint keeps a class or a dtype as a value (``torch.float32``), this string is what comes out.
    """

    __slots__ = ()


class Pending:
    """An object whose content comes with a later BUILD instruction, and the memo entries that wait for it."""

    __slots__ = ("finish", "memo_keys")

    def __init__(self, finish: Callable[[Any], Any]) -> None:
        self.finish: Final = finish
        self.memo_keys: list[int] = []


def call(function: Any, args: Any) -> Any:
    """What the call of a name builds.

    Raises:
        CheckpointError: the name only names something, or the arguments are not those it is written with.
    """
    builder = _BUILDERS.get(function) if isinstance(function, Global) else None
    if builder is None or not isinstance(args, tuple):
        raise CheckpointError(f"damaged pickle: a call of {function if isinstance(function, Global) else type(function).__name__}")
    value = builder(args)
    if value is NotImplemented:
        raise CheckpointError(f"damaged pickle: {function} is called with ({', '.join(type(a).__name__ for a in args)})")
    return value


# -- plain containers -------------------------------------------------------------------------------------------------


def _plain_key(key: Any) -> Any:
    # Only what hashes in constant time: the hash of a tuple whose two items are one tuple, and so on 40 times, never ends.
    items = key if isinstance(key, tuple) else (key,)
    if not all(item is None or isinstance(item, (str, bytes, int, float, np.generic)) for item in items):
        raise CheckpointError(f"damaged pickle: a {type(key).__name__} as a key; expected a string, a number or a tuple of these")
    return key


def plain_dict(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict whose keys are strings, numbers, or flat tuples of these."""
    return {_plain_key(key): value for key, value in pairs}


def plain_set(items: Iterable[Any]) -> set[Any]:
    """A set of strings, numbers, or flat tuples of these."""
    return {_plain_key(item) for item in items}


def _ordered_dict(args: tuple[Any, ...]) -> Any:
    match args:
        case ():
            return {}
        case ([*pairs],) if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            return plain_dict(tuple(pair) for pair in pairs)
    return NotImplemented


def _default_dict(args: tuple[Any, ...]) -> Any:
    match args:
        case () | (None | Global(),):
            return {}
    return NotImplemented


def _counter(args: tuple[Any, ...]) -> Any:
    match args:
        case ():
            return {}
        case (dict() as counts,):
            return dict(counts)
    return NotImplemented


def _set(args: tuple[Any, ...]) -> Any:
    match args:
        case ([*items],):
            return plain_set(items)
    return NotImplemented


def _frozenset(args: tuple[Any, ...]) -> Any:
    match args:
        case ([*items],):
            return frozenset(plain_set(items))
    return NotImplemented


def _slice(args: tuple[Any, ...]) -> Any:
    match args:
        case (int() | None, int() | None, int() | None):
            return slice(*args)
    return NotImplemented


def _complex(args: tuple[Any, ...]) -> Any:
    match args:
        case (int() | float() as real, int() | float() as imaginary):
            return complex(float(real), float(imaginary))
    return NotImplemented


def _bytes(args: tuple[Any, ...]) -> Any:
    match args:
        case ():
            return b""
        case (bytes(data),):
            return data
        case (str(), str()):
            return _encode(args)
    return NotImplemented


def _encode(args: tuple[Any, ...]) -> Any:
    # How protocol 2, the one of torch.save, writes bytes.
    match args:
        case (str(text), "latin1" | "latin-1"):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise CheckpointError("damaged pickle: a byte string holds characters above 255") from None
    return NotImplemented


def _namespace(args: tuple[Any, ...]) -> Any:
    def finish(state: Any) -> Any:
        if not isinstance(state, dict):
            raise CheckpointError("damaged pickle: the state of an argparse.Namespace is not a dict")
        return state

    return NotImplemented if args else Pending(finish)


# -- torch ------------------------------------------------------------------------------------------------------------


def _tensor(args: tuple[Any, ...]) -> Any:
    # (storage, offset, size, stride) and, since v2, requires_grad, backward_hooks and metadata, which have no use here.
    match args:
        case (Storage(element=element) as storage, offset, (tuple() | list()) as size, (tuple() | list()) as stride, *_):
            if element is not None:
                return storage.tensor(element, offset, size, stride)
    return NotImplemented


def _tensor_v3(args: tuple[Any, ...]) -> Any:
    # As v2, over raw bytes, with the dtype as argument 6: for dtypes that have no storage class.
    match args:
        case (Storage(element=None) as storage, offset, tuple(size), tuple(stride), _, _, Global() as dtype, *_):
            element = BY_TORCH_NAME.get(dtype.removeprefix("torch."))
            if element is None:
                raise CheckpointError(f"a tensor of {dtype}, which has no NumPy counterpart; convert it before saving")
            return storage.tensor(element, offset, size, stride)
    return NotImplemented


def _parameter(args: tuple[Any, ...]) -> Any:
    match args:
        case (np.ndarray() | QTensor() as data, *_):
            return data
    return NotImplemented


def _tensor_of_type(args: tuple[Any, ...]) -> Any:
    # (function, class, its arguments, attributes): a tensor to which Python attributes were given. They are dropped.
    match args:
        case (Global() as function, Global(), tuple() as inner, *_) if function in _TENSOR_BUILDERS:
            return call(function, inner)
    return NotImplemented


def _size(args: tuple[Any, ...]) -> Any:
    match args:
        case ((tuple() | list()) as sizes,) if all(type(n) is int for n in sizes):
            return tuple(sizes)
    return NotImplemented


def _device(args: tuple[Any, ...]) -> Any:
    match args:
        case (str(kind),):
            return str(kind)
        case (str(kind), int(index)):
            return f"{kind}:{index}"
    return NotImplemented


def _layout(args: tuple[Any, ...]) -> Any:
    match args:
        case (str(name),):
            return str(name)
    return NotImplemented


def _refusal(what: str, remedy: str) -> Builder:
    def refuse(_: tuple[Any, ...]) -> NoReturn:
        raise CheckpointError(f"the file holds {what}, which has no NumPy counterpart; save {remedy} instead")

    return refuse


# -- NumPy ------------------------------------------------------------------------------------------------------------

# Booleans, integers, floats, complex numbers, bytes and text. Neither records nor dates.
_PLAIN_DTYPE = re.compile(r"[biufcSU]\d{1,6}")


def _dtype(args: tuple[Any, ...]) -> Any:
    match args:
        case (str(code), *_) if code.startswith("O"):
            raise UnsafeCheckpointError(
                "the file holds a NumPy array of Python objects (dtype object), which can be anything; nothing was executed. "
                "Save arrays of numbers"
            )
        case (str(code), *_) if _PLAIN_DTYPE.fullmatch(code):
            try:
                dtype = np.dtype(str(code))
            except TypeError:
                return NotImplemented
            return Pending(lambda state: _with_byte_order(dtype, state))
    code = args[0] if args and isinstance(args[0], str) else "without a name"
    raise CheckpointError(f"a NumPy dtype {code[:40]} is not read; expected numbers or strings")


def _with_byte_order(dtype: np.dtype[Any], state: Any) -> np.dtype[Any]:
    match state:
        case (int(), "<" | ">" | "=" | "|" as order, *_):
            return dtype.newbyteorder(order)
    raise CheckpointError("damaged pickle: the state of a NumPy dtype")


def _empty_array(args: tuple[Any, ...]) -> Any:
    match args:
        case ("numpy.ndarray", *_):
            return Pending(_filled_array)
    return NotImplemented


def _filled_array(state: Any) -> Array:
    match state:
        # Python 2 wrote the bytes as a string.
        case (int(), tuple(shape), np.dtype() as dtype, fortran, (bytes() | str()) as data):
            raw = data if isinstance(data, bytes) else _encode((data, "latin1"))
            return _array_of(raw, dtype, shape, "F" if fortran else "C")
    raise CheckpointError("damaged pickle: the state of a NumPy array")


def _array_from_buffer(args: tuple[Any, ...]) -> Any:
    match args:
        case (bytes(raw), np.dtype() as dtype, tuple(shape), "C" | "F" as order):
            return _array_of(raw, dtype, shape, order)
    return NotImplemented


def _numpy_scalar(args: tuple[Any, ...]) -> Any:
    match args:
        case (np.dtype() as dtype, bytes(raw)):
            return _array_of(raw, dtype, (), "C")[()]
    return NotImplemented


def _array_of(raw: bytes, dtype: np.dtype[Any], shape: tuple[Any, ...], order: Any) -> Array:
    sizes = checked_shape(shape, dtype.itemsize, "NumPy array")
    expected = math.prod(sizes) * dtype.itemsize
    if dtype.itemsize == 0 or len(raw) != expected:
        raise CheckpointError(f"NumPy array of {dtype} {list(sizes)}: expected {expected} bytes, got {len(raw)}")
    return as_array(raw, dtype).reshape(sizes, order=order)


# -- the table --------------------------------------------------------------------------------------------------------

_TENSOR_BUILDERS: Mapping[str, Builder] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
    }
)

_SPARSE = _refusal("a sparse tensor", "x.to_dense()")
_BUILDERS: Mapping[str, Builder] = MappingProxyType(
    {
        **_TENSOR_BUILDERS,
        "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
        "torch._utils._rebuild_sparse_tensor": _SPARSE,
        "torch._utils._rebuild_sparse_csr_tensor": _SPARSE,
        "torch._utils._rebuild_qtensor": _refusal("a quantized tensor", "x.dequantize()"),
        "torch._utils._rebuild_nested_tensor": _refusal("a nested tensor", "its parts, x.unbind(),"),
        "torch._utils._rebuild_meta_tensor_no_storage": _refusal("a tensor on the meta device (without data)", "one with data"),
        "torch._utils._rebuild_wrapper_subclass": _refusal("a tensor subclass without data of its own", "a plain tensor"),
        "torch.serialization._get_layout": _layout,
        "torch.Size": _size,
        "torch.device": _device,
        "collections.OrderedDict": _ordered_dict,
        "collections.defaultdict": _default_dict,
        "collections.Counter": _counter,
        "argparse.Namespace": _namespace,
        "builtins.set": _set,
        "builtins.frozenset": _frozenset,
        "builtins.slice": _slice,
        "builtins.complex": _complex,
        "builtins.bytes": _bytes,
        "builtins.bytearray": _bytes,
        "_codecs.encode": _encode,
        "numpy.dtype": _dtype,
        "numpy._core.multiarray._reconstruct": _empty_array,
        "numpy._core.multiarray.scalar": _numpy_scalar,
        "numpy._core.numeric._frombuffer": _array_from_buffer,
    }
)

# Names that are mentioned and never called: types of storages and tensors, dtypes, the argument of a defaultdict.
_MENTIONED: tuple[tuple[str, str], ...] = (
    *(("torch", name) for name in (*BY_TORCH_NAME, "complex32", "qint8", "quint8", "qint32", "quint4x2")),
    *((module, name) for module in ("torch", "torch.cuda") for name in BY_STORAGE_CLASS),
    *(("torch", name) for name in ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "ComplexHalfStorage")),
    ("torch.storage", "UntypedStorage"),
    ("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.nn.parameter", "Buffer"),
    ("torch", "per_tensor_affine"),
    ("torch", "per_channel_affine"),
    ("numpy", "ndarray"),
    *(("builtins", name) for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
)


def _spellings(name: str) -> list[tuple[str, str]]:
    # Older Pythons and NumPys had other module names.
    module, _, last = name.rpartition(".")
    older = {"builtins": "__builtin__", "numpy._core.multiarray": "numpy.core.multiarray", "numpy._core.numeric": "numpy.core.numeric"}
    return [(module, last), *([(older[module], last)] if module in older else [])]


KNOWN_NAMES: Mapping[tuple[str, str], Global] = MappingProxyType(
    {pair: Global(name) for name in (*_BUILDERS, *(f"{module}.{last}" for module, last in _MENTIONED)) for pair in _spellings(name)}
)
"""The names that are not refused: (module, name) as written in the file -> the one spelling used here."""
