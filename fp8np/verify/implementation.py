"""The implementation under test: fp8np's own functions, or anybody's, behind one small protocol.

What is not fp8np's is never trusted: `Checked` gives it copies, and looks at what comes back. An exception, a wrong type or a wrong
shape becomes a row of the report like any other finding, and the run goes on.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fp8np import codec, data, linalg
from fp8np.errors import Fp8npError, InputError
from fp8np.tensor import QTensor

__all__ = ["BadResult", "Checked", "Implementation", "NotOffered", "Ours", "load"]

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

METHODS = ("encode", "encode_preset", "encode_stochastic", "decode", "matmul", "conv2d")


@runtime_checkable
class Implementation(Protocol):
    """What `fp8np verify --implementation` calls. A method may be absent, or raise NotImplementedError for what it does not do."""

    def encode(self, x: npt.NDArray[Any], fmt: str, *, overflow: str, rounding: str, nan: str) -> Codes:
        """u8 codes of x, float16, float32 or float64 of one axis. Names as in `fp8np.encode`."""

    def encode_preset(self, x: npt.NDArray[Any], fmt: str, preset: str) -> Codes:
        """u8 codes of x as a preset of `fp8np.encode` has them; called for rules that the three names of `encode` cannot say."""

    def encode_stochastic(
        self, x: npt.NDArray[Any], fmt: str, *, overflow: str, rounding: str, nan: str, random_bits: npt.NDArray[Any]
    ) -> Codes:
        """u8 codes of x, float32 or float64 (n,), rounded with random_bits, uint8, uint16 or uint32 (n,)."""

    def decode(self, codes: Codes, fmt: str) -> Floats:
        """f32 values of codes (n,)."""

    def matmul(
        self, a: Codes, a_format: str, b: Codes, b_format: str, *, accumulate: str, promote_every: int | None, init: Floats | None
    ) -> Floats:
        """f32 (M, N): init (M, N) + a (M, K) @ b (K, N), summed as `accumulate` says. Names as in `fp8np.matmul`."""

    def conv2d(
        self, x: Codes, x_format: str, w: Codes, w_format: str, *, stride: Pair, padding: Pads, dilation: Pair, groups: int
    ) -> Floats:
        """f32 (B, O, Ho, Wo) of x (B, C, H, W) and w (O, C / groups, kh, kw): exact sums, rounded once.

        padding: zeros ((top, bottom), (left, right)).
        """


class Ours:
    """fp8np itself."""

    def encode(self, x: npt.NDArray[Any], fmt: str, *, overflow: str, rounding: str, nan: str) -> Codes:
        """As `fp8np.encode`."""
        return codec.encode(x, fmt, overflow=overflow, rounding=rounding, nan=nan)

    def encode_preset(self, x: npt.NDArray[Any], fmt: str, preset: str) -> Codes:
        """As `fp8np.encode`."""
        return codec.encode(x, fmt, preset=preset)

    def encode_stochastic(
        self, x: npt.NDArray[Any], fmt: str, *, overflow: str, rounding: str, nan: str, random_bits: npt.NDArray[Any]
    ) -> Codes:
        """As `fp8np.encode`."""
        return codec.encode(x, fmt, overflow=overflow, rounding=rounding, nan=nan, random_bits=random_bits)

    def decode(self, codes: Codes, fmt: str) -> Floats:
        """As `fp8np.decode`."""
        return codec.decode(codes, fmt)

    def matmul(
        self, a: Codes, a_format: str, b: Codes, b_format: str, *, accumulate: str, promote_every: int | None, init: Floats | None
    ) -> Floats:
        """As `fp8np.matmul`."""
        left, right = QTensor(a, a_format), QTensor(b, b_format)
        return linalg.matmul(left, right, accumulate=accumulate, promote_every=promote_every, init=init)

    def conv2d(
        self, x: Codes, x_format: str, w: Codes, w_format: str, *, stride: Pair, padding: Pads, dilation: Pair, groups: int
    ) -> Floats:
        """As `fp8np.conv2d` with ``accumulate="exact"``."""
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return linalg.conv2d(QTensor(x, x_format), QTensor(w, w_format), accumulate="exact", **options)


class NotOffered(Fp8npError, NotImplementedError):  # noqa: N818 - not a failure
    """The implementation does not do what was asked: the check is skipped."""


class BadResult(Fp8npError, RuntimeError):  # noqa: N818 - of somebody else's code
    """The implementation failed, or gave no array that could be compared."""


def load(text: str) -> Any:
    """What ``package.module:object`` names; a class is called without arguments.

    Raises:
        InputError: there is no such object, importing or making it fails, or it has none of the protocol's methods.

    >>> load("fp8np.verify.implementation:Ours")  # doctest: +ELLIPSIS
    <fp8np.verify.implementation.Ours object at ...>
    """
    if ":" not in text:
        raise InputError(f"expected package.module:object, got {text!r}")
    try:
        found = data.imported(text)
        if isinstance(found, type):
            with data.user_code(text):
                found = found()
    except SystemExit as error:  # a script without a guard of its main part
        raise InputError(f"{text} ended the program: SystemExit({error.code!r})") from error
    if not any(callable(getattr(found, name, None)) for name in METHODS):
        raise InputError(f"{text}: expected an object with at least one of the methods {', '.join(METHODS)}, got {type(found).__name__}")
    return found


class Checked:
    """An implementation, called with copies, and with everything that it returns looked at.

    Args:
        implementation: any object with some of the methods of `Implementation`.
        name: what reports call it; None for the name of its class.

    Every method raises NotOffered for what the implementation lacks or declines, and BadResult if it fails or returns something
    else than the protocol says.

    >>> class Lists:
    ...     def decode(self, codes, fmt):
    ...         return [0.0 for _ in codes]
    >>> Checked(Lists()).decode(np.zeros(3, np.uint8), "e5m2")
    Traceback (most recent call last):
    fp8np.verify.implementation.BadResult: Lists.decode: expected a float32 array (3,), got list
    """

    def __init__(self, implementation: Any, name: str | None = None) -> None:
        self.implementation = implementation
        self.name = name or type(implementation).__name__

    def encode(self, x: npt.NDArray[Any], fmt: str, *, overflow: str, rounding: str, nan: str) -> Codes:
        """As `Implementation.encode`."""
        options = {"overflow": overflow, "rounding": rounding, "nan": nan}
        return self._call("encode", np.dtype(np.uint8), x.shape, np.array(x), fmt, **options)

    def encode_preset(self, x: npt.NDArray[Any], fmt: str, preset: str) -> Codes:
        """As `Implementation.encode_preset`."""
        return self._call("encode_preset", np.dtype(np.uint8), x.shape, np.array(x), fmt, preset)

    def encode_stochastic(
        self, x: npt.NDArray[Any], fmt: str, *, overflow: str, rounding: str, nan: str, random_bits: npt.NDArray[Any]
    ) -> Codes:
        """As `Implementation.encode_stochastic`."""
        options = {"overflow": overflow, "rounding": rounding, "nan": nan, "random_bits": np.array(random_bits)}
        return self._call("encode_stochastic", np.dtype(np.uint8), x.shape, np.array(x), fmt, **options)

    def decode(self, codes: Codes, fmt: str) -> Floats:
        """As `Implementation.decode`."""
        return self._call("decode", np.dtype(np.float32), codes.shape, np.array(codes), fmt)

    def matmul(
        self, a: Codes, a_format: str, b: Codes, b_format: str, *, accumulate: str, promote_every: int | None, init: Floats | None
    ) -> Floats:
        """As `Implementation.matmul`."""
        options = {"accumulate": accumulate, "promote_every": promote_every, "init": None if init is None else np.array(init)}
        shape = (a.shape[0], b.shape[1])
        return self._call("matmul", np.dtype(np.float32), shape, np.array(a), a_format, np.array(b), b_format, **options)

    def conv2d(
        self, x: Codes, x_format: str, w: Codes, w_format: str, *, stride: Pair, padding: Pads, dilation: Pair, groups: int
    ) -> Floats:
        """As `Implementation.conv2d`."""
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
        size = [(n + sum(p) - r) // s + 1 for n, p, r, s in zip(x.shape[2:], padding, reach, stride, strict=True)]
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        shape = (x.shape[0], w.shape[0], *size)
        return self._call("conv2d", np.dtype(np.float32), shape, np.array(x), x_format, np.array(w), w_format, **options)

    def _method(self, name: str) -> Any:
        method = getattr(self.implementation, name, None)
        if not callable(method):
            raise NotOffered(f"{self.name} has no {name}")
        return method

    def _call(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], *arguments: Any, **options: Any) -> npt.NDArray[Any]:
        method = self._method(name)
        try:
            # The cases hold signalling NaN and overflow on purpose; NumPy's warnings about them would be noise, or, as errors, failures.
            with np.errstate(all="ignore"):
                got = method(*arguments, **options)
        except NotImplementedError as error:
            raise NotOffered(f"{self.name}.{name}: {error or 'NotImplementedError'}") from error
        except (Exception, SystemExit) as error:
            raise BadResult(f"{self.name}.{name} failed{_place(error)}: {type(error).__name__}: {error}") from error
        if not isinstance(got, np.ndarray):
            raise BadResult(f"{self.name}.{name}: expected a {dtype} array {shape}, got {_kind(got)}")
        if got.dtype != dtype or got.shape != shape:
            raise BadResult(f"{self.name}.{name}: expected a {dtype} array {shape}, got {got.dtype} {got.shape}")
        return got


def _kind(got: Any) -> str:
    return "None: does it return its result?" if got is None else type(got).__name__


def _place(error: BaseException) -> str:
    # Where in the implementation's own code, not in the libraries that it called.
    libraries = sys.prefix, sys.base_prefix, "<frozen", __file__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(libraries)]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
