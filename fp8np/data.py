"""Batches of a model's inputs, from files, from a Python factory or from any iterable, for calibration and evaluation.

| source | meaning |
|---|---|
| ``data.npz`` | an array for each input, by name; axis 0 counts samples, and is cut into batches |
| ``data.npy`` | the same for a model with one input |
| a folder | all its npz and npy files, in the order of their names |
| ``"pkg.mod:factory"`` | imported (the current directory counts too) and called anew for each pass; gives an iterable of batches |
| a callable | the same |
| an array or a mapping of arrays | as npy, npz |
| any other iterable | its items are batches; a one-shot iterator is kept in memory |

A batch is an array, a tuple of arrays in the order of the inputs, or a mapping by name; ``(batch, label)`` adds a label,
and so does an array named ``label`` or ``labels`` that no input claims.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._files import replacing
from fp8np.errors import CalibrationError, Fp8npError, InputError
from fp8np.graph import Value
from fp8np.inputs import by_name, declared_arrays

__all__ = [
    "Batch",
    "Batches",
    "Progress",
    "imported",
    "is_factory",
    "load_batches",
    "read_arrays",
    "read_file",
    "search_here",
    "user_code",
    "with_folders",
    "write_arrays",
]

Progress = Callable[[str, int, int | None], None]
"""Called after each batch with what is being done, how many batches are done, and of how many (None: not known)."""

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_SUFFIXES = (".npz", ".npy")
_LABELS = ("label", "labels")
# What np.savez calls arrays that are given by position.
_POSITIONAL = re.compile(r"arr_\d+")


@dataclass(frozen=True)
class Batch:
    """One call's worth of data.

    Attributes:
        inputs: an array for each input, by name.
        label: what the model should say, in whatever form the source has it; None where it has none.
    """

    inputs: Mapping[str, npt.NDArray[Any]]
    label: Any = None

    @property
    def samples(self) -> int:
        """How many samples: axis 0 of the first input that has one."""
        return next((array.shape[0] for array in self.inputs.values() if array.ndim), 1)


class Batches:
    """Batches that can be gone through any number of times; see `load_batches`.

    Attributes:
        origin: what they were loaded from, for messages.
        count: how many batches there are, where that is known beforehand.
    """

    def __init__(self, origin: str, items: Callable[[], Iterable[Any]], inputs: Sequence[Value] | None, count: int | None) -> None:
        self.origin = origin
        self.count = count
        self._items = items
        self._inputs = inputs

    def __iter__(self) -> Iterator[Batch]:
        """The batches, each checked as it comes.

        Raises:
            InputError: a batch does not fit the inputs, or the user's function fails. CalibrationError: a batch holds NaN or
                infinity, or there is none.
        """
        empty = True
        for i, item in enumerate(self._items()):
            empty = False
            place = f"{self.origin}, batch {i}"
            given, label = _split(item, self._inputs)
            try:
                arrays = _arrays(given, self._inputs)
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
            for name, array in arrays.items():
                _require_finite(f"{place}, input {name!r}", array)
            yield Batch(arrays, label)
        if empty:
            raise CalibrationError(f"{self.origin}: no samples")


def load_batches(
    source: Any,
    *,
    inputs: Sequence[Value] | None = None,
    batch_size: int = 16,
    folders: Mapping[str, Path] | None = None,
) -> Batches:
    """Opens data, to be gone through any number of times.

    Args:
        source: see the module's table.
        inputs: what the model takes; arrays are matched and checked with it. Without it, arrays given by position are
            named "0", "1", ... and nothing is checked but that they are numbers.
        batch_size: samples in a batch where this module cuts them; a model whose batch is fixed gets its own.
        folders: what a factory named as text is called with, if it takes a parameter: see `with_folders`.

    Raises:
        CalibrationError: there is no such file, a file is not readable, or there are no samples.
        InputError: there is no such factory, or arrays that are to be cut disagree about the number of samples.

    >>> batches = load_batches(np.zeros((5, 3), np.float32), inputs=(Value("x", (2, 3), "float32"),))
    Traceback (most recent call last):
    fp8np.errors.InputError: array: the model takes batches of 2, and 5 samples are no whole number of them
    >>> [batch.samples for batch in load_batches(np.zeros((5, 3), np.float32), batch_size=4)]
    [4, 1]
    """
    if isinstance(source, str | os.PathLike):
        return _from_text(os.fspath(source), inputs, batch_size, folders)
    if isinstance(source, np.ndarray):
        return _from_list("array", _cut("array", {"arr_0": source}, inputs, batch_size), inputs)
    if isinstance(source, Mapping):
        return _from_list("arrays", _cut("arrays", source, inputs, batch_size), inputs)
    return _from_object(type(source).__name__, source, inputs)


def _from_text(text: str, inputs: Sequence[Value] | None, batch_size: int, folders: Mapping[str, Path] | None) -> Batches:
    path = Path(text)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
        if not files:
            raise CalibrationError(f"{text}: expected npz or npy files in this folder, found none")
        return Batches(text, lambda: (b for p in files for b in _cut(str(p), _read(p), inputs, batch_size)), inputs, None)
    if path.is_file():
        return _from_list(text, _cut(text, _read(path), inputs, batch_size), inputs)
    if is_factory(text):
        found = imported(text)
        return _from_object(text, with_folders(found, folders) if callable(found) else found, inputs)
    raise CalibrationError(f"{text}: no such file or folder, and not a factory (package.module:function) either")


def _from_list(origin: str, items: Sequence[Any], inputs: Sequence[Value] | None) -> Batches:
    return Batches(origin, lambda: items, inputs, len(items))


def _from_object(origin: str, source: Any, inputs: Sequence[Value] | None) -> Batches:
    if isinstance(source, Iterator):
        return _from_list(origin, list(source), inputs)
    if isinstance(source, Iterable):
        count = len(source) if isinstance(source, Sequence) else None
        return Batches(origin, lambda: source, inputs, count)
    if callable(source):
        return Batches(origin, lambda: _called(origin, source), inputs, None)
    raise CalibrationError(f"{origin}: expected a file, a folder, a factory or an iterable of batches")


def _called(origin: str, factory: Callable[[], Any]) -> Iterator[Any]:
    with user_code(origin):
        items = factory()
        if not isinstance(items, Iterable):
            raise CalibrationError(f"{origin}: expected an iterable of batches, got {type(items).__name__}")
        yield from items


def limited(batches: Iterable[Batch], samples: int | None, what: str, progress: Progress | None = None) -> Iterator[Batch]:
    """Batches until so many samples have been given, the last batch whole; None: all. Tells `progress` of each that has been used.

    >>> data = load_batches(np.zeros((5, 3), np.float32), batch_size=2)
    >>> [batch.samples for batch in limited(data, 3, "reading")]
    [2, 2]
    """
    count: int | None = getattr(batches, "count", None)
    done = 0
    for i, batch in enumerate(batches, 1):
        yield batch
        done += batch.samples
        if progress is not None:
            total = count if count is None or samples is None else min(count, -(-samples // max(batch.samples, 1)))
            progress(what, i, total)
        if samples is not None and done >= samples:
            return


def read_arrays(path: Path, inputs: Sequence[Value]) -> dict[str, npt.NDArray[Any]]:
    """One batch from an npz or npy file, by input name; as it is in the file, for the model to check.

    Raises:
        InputError: the file is not readable, or holds another number of arrays than the model takes.
    """
    return by_name(inputs, read_file(path, inputs))


def read_file(path: Path, inputs: Sequence[Value] | None = None) -> Any:
    """The arrays of an npz or npy file: a dict by name, or a tuple where they have no names.

    Raises:
        InputError: the file is not readable.
    """
    try:
        return _positional(_read(path), inputs)
    except CalibrationError as error:
        raise InputError(str(error)) from error


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes an npz file, whole or not at all. Unlike `numpy.savez`, it takes arrays of any name, "file" included.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def is_factory(text: str) -> bool:
    """Whether a text has the form ``package.module:name``."""
    return _FACTORY.fullmatch(text) is not None


def search_here() -> None:
    """Lets modules be imported from the current directory, as `python -m` does it: the command line alone would not find them."""
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds str
        sys.path.insert(0, os.getcwd())  # noqa: PTH109


def with_folders(factory: Callable[..., Any], folders: Mapping[str, Path] | None) -> Callable[[], Any]:
    """A factory to be called with nothing: one that takes a parameter (of that name, or without a default) is given `folders`.

    >>> with_folders(lambda folders: sorted(folders), {"data": Path(".")})()
    ['data']
    """
    if folders is None:
        return factory
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a built-in
        return factory
    takes = any(
        p.name == "folders" or (p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)) for p in parameters
    )
    return (lambda: factory(folders)) if takes else factory


def imported(text: str) -> Any:
    """What ``package.module:name`` names, the current directory being searched too.

    Raises:
        InputError: the text is of another form, there is no such module or name, or the module fails.
    """
    if not is_factory(text):
        raise InputError(f"expected package.module:function, got {text!r}")
    search_here()
    module_name, _, attribute = text.partition(":")
    with user_code(text):
        found = importlib.import_module(module_name)
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise InputError(f"{text}: {error}") from error
    return found


@contextmanager
def user_code(name: str) -> Iterator[None]:
    """Turns what a user's function or module raises into an `InputError` that says where it failed."""
    try:
        yield
    except Fp8npError:
        raise
    except Exception as error:
        libraries = sys.prefix, sys.base_prefix, "<frozen"
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*libraries, __file__))]
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        raise InputError(f"{name} failed{place}: {type(error).__name__}: {error}") from error


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    if path.suffix not in _SUFFIXES:
        raise CalibrationError(f"{path}: expected an .npz or .npy file")
    try:
        # Opened here: given a path, np.load leaves the file open when it turns out not to be a zip.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"arr_0": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(f"{path}: not readable as NumPy data: {error}") from error


def _cut(origin: str, arrays: Mapping[str, Any], inputs: Sequence[Value] | None, batch_size: int) -> list[Any]:
    """Batches of samples: axis 0 of all arrays, cut."""
    given = {name: np.asarray(array) for name, array in arrays.items()}
    if any(array.ndim == 0 for array in given.values()):
        scalar = next(name for name, array in given.items() if array.ndim == 0)
        raise InputError(f"{origin}: {scalar!r} has no axis 0 to count samples along; use a factory, which gives whole batches")
    counts = {name: len(array) for name, array in given.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{origin}: expected as many samples in each array, got {counts}")
    n = max(counts.values(), default=0)
    if n == 0:
        raise CalibrationError(f"{origin}: no samples")
    fixed = [value.shape[0] for value in inputs or () if value.shape and isinstance(value.shape[0], int)]
    if fixed:
        batch_size = fixed[0]
        if batch_size == 0 or n % batch_size:
            raise InputError(f"{origin}: the model takes batches of {batch_size}, and {n} samples are no whole number of them")
    cuts = [slice(i, i + batch_size) for i in range(0, n, batch_size)]
    return [_positional({name: array[cut] for name, array in given.items()}, inputs) for cut in cuts]


def _positional(arrays: dict[str, Any], inputs: Sequence[Value] | None) -> Any:
    named = {value.name for value in inputs or ()}
    if all(_POSITIONAL.fullmatch(name) for name in arrays) and not named & set(arrays):
        return tuple(arrays[f"arr_{i}"] for i in range(len(arrays)))
    return arrays


def _split(item: Any, inputs: Sequence[Value] | None) -> tuple[Any, Any]:
    """A batch and its label."""
    if isinstance(item, Mapping):
        declared = {value.name for value in inputs or ()}
        label = next((item[name] for name in _LABELS if name in item and name not in declared), None)
        return {name: array for name, array in item.items() if name in declared or name not in _LABELS}, label
    if isinstance(item, tuple | list) and len(item) == 2:
        one_input = inputs is not None and len(inputs) == 1
        if one_input or isinstance(item[0], Mapping | tuple | list):
            return item[0], item[1]
    return item, None


def _arrays(given: Any, inputs: Sequence[Value] | None) -> dict[str, npt.NDArray[Any]]:
    if inputs is None:
        positional = given if isinstance(given, tuple | list) else (given,)
        named = given if isinstance(given, Mapping) else {str(i): array for i, array in enumerate(positional)}
    else:
        named = by_name(inputs, given)
    arrays = {name: np.asarray(array) for name, array in named.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise InputError(f"input {name!r}: expected numbers, got {array.dtype}")
    return arrays if inputs is None else declared_arrays(inputs, arrays)


def _require_finite(place: str, array: npt.NDArray[Any]) -> None:
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise CalibrationError(f"{place}: expected finite numbers, got {array[index]} at {list(index)}")
