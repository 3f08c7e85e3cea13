"""A pickle interpreter that cannot run code: Python's `pickle` is not involved, only the opcode table of `pickletools`.

A pickle is a program for a stack machine. Its danger lies in two instructions: GLOBAL imports any name, and REDUCE calls
what was imported. Here GLOBAL pushes a `Global`, which is a string and stays one, and REDUCE looks that string up in the
table of `_builders.py`. No function, class or module is ever a value on the stack, so there is nothing that an instruction
could call, or whose attributes it could set.

Every pickle is read twice. The *survey* executes the stack instructions alone: nothing is built, every name is collected,
and a file with a name outside the table is refused with the complete list. Only then the *build* makes values.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from types import MappingProxyType
from typing import Any

from fp8np.errors import CheckpointError, UnsafeCheckpointError

from ._builders import KNOWN_NAMES, Global, Pending, call, plain_dict, plain_set
from ._tensors import Storage, StorageId, storage_id

__all__ = ["Survey", "build", "survey"]

Stream = BytesIO | mmap.mmap

# One instruction takes about 1 µs and up to some hundred bytes. The largest language models need about a million.
_MAX_INSTRUCTIONS = 10_000_000
# Bytes and items that calls may take, beyond four times those of the file: one argument taken by many calls would fill the memory.
_FREE_WORK = 1_000_000
_MAX_INT_BYTES = 64  # the longest real integers are 128-bit random-number states; Python cannot print huge ones
_OPAQUE = object()  # stands for every value that the survey does not build


@dataclass
class Survey:
    """What a pickle speaks of, found without building anything.

    Attributes:
        names: the globals outside the table, as "module.name", in order of appearance.
        storages: every storage by key, as first mentioned.
        problem: a storage that cannot be read, reported only where no name is refused.
    """

    names: list[str] = field(default_factory=list)
    storages: dict[str, StorageId] = field(default_factory=dict)
    problem: CheckpointError | None = None


def survey(stream: Stream) -> Survey:
    """Reads the pickle at the stream's position, which is left behind its end. Builds nothing.

    Raises:
        UnsafeCheckpointError: the pickle names something else than tensors and plain containers; all such names are listed.
        CheckpointError: the pickle is damaged.
    """
    found = Survey()
    try:
        _Machine(None, found).run(stream)
    except CheckpointError as error:
        if not found.names:
            raise
        raise _unsafe(found.names) from error
    if found.names:
        raise _unsafe(found.names)
    if found.problem is not None:
        raise found.problem
    return found


def build(stream: Stream, load: Callable[[StorageId], Storage]) -> Any:
    """The object of the pickle at the stream's position. Call `survey` first.

    Args:
        stream: left behind the end of the pickle.
        load: finds the bytes of a storage.

    Raises:
        CheckpointError: the pickle is damaged, or holds what has no plain counterpart.
    """
    value = _Machine(load, Survey()).run(stream)
    _check_plain(value)
    return value


def _unsafe(names: Iterable[str]) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"the pickle asks for {', '.join(dict.fromkeys(names))}; only tensors and plain containers are read. Nothing was executed. "
        "If you trust the file, load it where it was made and save the weights alone: torch.save(model.state_dict(), path)"
    )


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(f"damaged pickle: {why}")


def _check_plain(root: Any) -> None:
    # Torch's own files always finish an array before using it, and never hold a storage outside a tensor.
    seen: set[int] = set()
    todo = [root]
    while todo:
        value = todo.pop()
        if isinstance(value, Storage):
            raise CheckpointError(f"storage {value.key!r} is kept as a bare storage; save it as a tensor")
        if isinstance(value, Pending):
            raise _damaged("an object is used before its state is set")
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)


class _Machine:
    """The stack machine. Without `load` it surveys: containers stay empty and calls give `_OPAQUE`."""

    def __init__(self, load: Callable[[StorageId], Storage] | None, found: Survey) -> None:
        self._load = load
        self._found = found
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each open MARK
        self._memo: dict[int, Any] = {}
        self._work_left = _FREE_WORK

    def run(self, stream: Stream) -> Any:
        try:
            last = stream.tell()
            for count, (opcode, arg, position) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
                if count >= _MAX_INSTRUCTIONS:
                    raise CheckpointError(f"the pickle has more than {_MAX_INSTRUCTIONS:,} instructions")
                self._work_left += 4 * ((position or 0) - last)
                last = position or 0
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise _damaged(f"the instruction {opcode.name}, which no checkpoint needs")
                step(self, arg)
            return self._stack.pop()
        except CheckpointError:
            raise
        except IndexError:
            raise _damaged("an instruction finds the stack empty") from None
        except (ValueError, DeprecationWarning) as error:
            # pickletools: unknown opcode, end of data, malformed number or string. The warning is its report of a bad
            # escape in a quoted string, where warnings are errors.
            raise _damaged(str(error)) from None

    # -- constants and the stack ----------------------------------------------------------------------------------

    def skip(self, _: Any) -> None:
        pass

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_int(self, value: int) -> None:
        if value.bit_length() > 8 * _MAX_INT_BYTES:
            raise _damaged(f"an integer of {value.bit_length()} bits")
        self._stack.append(value)

    def push_bytearray(self, value: bytearray) -> None:
        self._stack.append(bytes(value))

    def pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._below.pop()

    def dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop_mark(self, _: Any) -> list[Any]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    # -- memo -----------------------------------------------------------------------------------------------------

    def put(self, index: int | None) -> None:
        value = self._stack[-1]
        key = len(self._memo) if index is None else index
        self._memo[key] = value
        if isinstance(value, Pending):
            value.memo_keys.append(key)

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise _damaged(f"memo entry {index} is used before it is set")
        self._stack.append(self._memo[index])

    # -- containers -----------------------------------------------------------------------------------------------

    def tuple_of_mark(self, _: Any) -> None:
        self.push(tuple(self.pop_mark(None)))

    def small_tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def list_of_mark(self, _: Any) -> None:
        items = self.pop_mark(None)
        self.push(items if self._load is not None else [])

    def dict_of_mark(self, _: Any) -> None:
        items = self.pop_mark(None)
        self._stack.append(_pairs(items) if self._load is not None else {})

    def frozenset_of_mark(self, _: Any) -> None:
        items = self.pop_mark(None)
        self._stack.append(frozenset(plain_set(items)) if self._load is not None else frozenset())

    def append(self, _: Any) -> None:
        self._extend(list, [self._stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(list, self.pop_mark(None))

    def set_item(self, _: Any) -> None:
        value = self._stack.pop()
        self._extend(dict, [self._stack.pop(), value])

    def set_items(self, _: Any) -> None:
        self._extend(dict, self.pop_mark(None))

    def add_items(self, _: Any) -> None:
        self._extend(set, self.pop_mark(None))

    def _extend(self, kind: type, items: list[Any]) -> None:
        target = self._stack[-1]
        if self._load is None:
            return
        if not isinstance(target, kind):
            raise _damaged(f"items are added to a {type(target).__name__}, not a {kind.__name__}")
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, dict):
            target.update(_pairs(items))
        elif isinstance(target, set):
            target.update(plain_set(items))

    # -- names and calls ------------------------------------------------------------------------------------------

    def global_by_text(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self._push_global(module, name)

    def global_by_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if isinstance(module, str) and isinstance(name, str):
            self._push_global(module, name)
        else:
            self._found.names.append("a computed name")
            self._stack.append(_OPAQUE)

    def _push_global(self, module: str, name: str) -> None:
        # The pair is looked up as it stands: a dotted name is not walked into, so it is never found.
        known = KNOWN_NAMES.get((module, name))
        if known is None:
            self._found.names.append(f"{module}.{name}")
        self._stack.append(known or Global(f"{module}.{name}"))

    def instance(self, arg: str) -> None:
        # INST and OBJ: instances of Python 2 classes, none of which is in the table.
        self.pop_mark(None)
        self._found.names.append(arg.replace(" ", "."))
        self._stack.append(_OPAQUE)

    def object_of_mark(self, _: Any) -> None:
        items = self.pop_mark(None)
        self._found.names.append(str(items[0]) if items and isinstance(items[0], str) else "an instance of a computed class")
        self._stack.append(_OPAQUE)

    def extension(self, code: int) -> None:
        self._found.names.append(f"copyreg extension {code}")
        self._stack.append(_OPAQUE)

    def new_with_keywords(self, _: Any) -> None:
        if self._load is not None:
            raise _damaged("a call with keyword arguments, which no checkpoint needs")
        self.small_tuple(3)

    def reduce(self, _: Any) -> None:
        args = self._stack.pop()
        function = self._stack.pop()
        if self._load is not None:
            self._charge(args)
        self._stack.append(_OPAQUE if self._load is None else call(function, args))

    def _charge(self, args: Any) -> None:
        if isinstance(args, tuple):
            self._work_left -= _size(args) + sum(_size(arg) for arg in args if isinstance(arg, tuple))
        if self._work_left < 0:
            raise CheckpointError("the pickle builds far more than it holds; it is made to exhaust memory")

    def set_state(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if self._load is None:
            return
        if isinstance(target, Pending):
            self._charge(state)
            value = target.finish(state)
            self._stack[-1] = value
            for key in target.memo_keys:
                self._memo[key] = value
        elif not isinstance(target, dict):
            raise _damaged(f"the state of a {type(target).__name__} is set")
        # Else: attributes of an OrderedDict, such as the `_metadata` of a state dict. Not needed.

    def persistent_id(self, _: Any) -> None:
        pid = self._stack.pop()
        if self._load is not None:
            self._stack.append(self._load(storage_id(pid)))
            return
        try:
            found = storage_id(pid)
            self._found.storages.setdefault(found.key, found)
        except CheckpointError as error:
            self._found.problem = self._found.problem or error
        self._stack.append(_OPAQUE)


def _size(items: tuple[Any, ...]) -> int:
    return sum(len(item) for item in items if isinstance(item, (str, bytes, list, tuple, dict)))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise _damaged("a key without a value")
    return plain_dict(zip(items[::2], items[1::2], strict=True))


_Step = Callable[[_Machine, Any], object]


def _constant(make: Callable[[], Any]) -> _Step:
    return lambda machine, _: machine.push(make())


def _tuple_of(size: int) -> _Step:
    return lambda machine, _: machine.small_tuple(size)


def _all(names: str, step: _Step) -> dict[str, _Step]:
    return dict.fromkeys(names.split(), step)


_STEPS: Mapping[str, _Step] = MappingProxyType(
    {
        **_all("PROTO FRAME STOP", _Machine.skip),
        **_all("BININT BININT1 BININT2 FLOAT BINFLOAT", _Machine.push),
        **_all("INT LONG LONG1 LONG4", _Machine.push_int),
        **_all("STRING BINSTRING SHORT_BINSTRING", _Machine.push),
        **_all("UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8", _Machine.push),
        **_all("BINBYTES SHORT_BINBYTES BINBYTES8", _Machine.push),
        "BYTEARRAY8": _Machine.push_bytearray,
        "NONE": _constant(lambda: None),
        "NEWTRUE": _constant(lambda: True),
        "NEWFALSE": _constant(lambda: False),
        "EMPTY_TUPLE": _constant(tuple),
        "EMPTY_LIST": _constant(list),
        "EMPTY_DICT": _constant(dict),
        "EMPTY_SET": _constant(set),
        "POP": _Machine.pop,
        "DUP": _Machine.dup,
        "MARK": _Machine.mark,
        "POP_MARK": _Machine.pop_mark,
        **_all("PUT BINPUT LONG_BINPUT MEMOIZE", _Machine.put),
        **_all("GET BINGET LONG_BINGET", _Machine.get),
        "TUPLE": _Machine.tuple_of_mark,
        "TUPLE1": _tuple_of(1),
        "TUPLE2": _tuple_of(2),
        "TUPLE3": _tuple_of(3),
        "LIST": _Machine.list_of_mark,
        "DICT": _Machine.dict_of_mark,
        "FROZENSET": _Machine.frozenset_of_mark,
        "APPEND": _Machine.append,
        "APPENDS": _Machine.appends,
        "SETITEM": _Machine.set_item,
        "SETITEMS": _Machine.set_items,
        "ADDITEMS": _Machine.add_items,
        "GLOBAL": _Machine.global_by_text,
        "STACK_GLOBAL": _Machine.global_by_stack,
        "INST": _Machine.instance,
        "OBJ": _Machine.object_of_mark,
        **_all("EXT1 EXT2 EXT4", _Machine.extension),
        **_all("REDUCE NEWOBJ", _Machine.reduce),
        "NEWOBJ_EX": _Machine.new_with_keywords,
        "BUILD": _Machine.set_state,
        "BINPERSID": _Machine.persistent_id,
    }
)
