"""Other libraries as references: what each converts, under which presets, in one table.

A library takes part if it is installed. What it gives is compared with the implementation under the preset that describes it; where
it is known to depart from that, `fp8np.verify.known` says how.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.errors import MissingDependencyError
from fp8np.formats import FORMATS, FloatFormat
from fp8np.policy import PRESETS, Policy

__all__ = ["REFERENCES", "Conversion", "Reference"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Conversion:
    """One way in which a library converts to a format.

    Attributes:
        fmt: the format.
        name: how the report calls it: the preset, or the library's own options.
        policy: the conversion in terms of `fp8np.policy`.
        preset: the preset that has this policy, or "".
        encode: u8 codes of float16, float32 or float64, one axis.
        takes_nan: whether `encode` takes NaN.
    """

    fmt: FloatFormat
    name: str
    policy: Policy
    preset: str
    encode: Callable[[Array], Array]
    takes_nan: bool = True


@dataclass(frozen=True)
class Reference:
    """A library.

    Attributes:
        name: of its distribution.
        conversions: all of its ways of converting.
        decoders: format -> function of all codes, uint8, to float32 values.
    """

    name: str
    conversions: Callable[[], Iterator[Conversion]]
    decoders: Callable[[], Iterator[tuple[FloatFormat, Callable[[Array], Array]]]]

    def version(self) -> str:
        """The installed version.

        Raises:
            MissingDependencyError: it is not installed.
        """
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            raise MissingDependencyError(f"{self.name} is not installed") from None


@lru_cache(maxsize=16)
def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(f"{name} cannot be imported: {error}") from error


def _presets(*names: str) -> Iterator[tuple[str, FloatFormat, Policy]]:
    for preset in names:
        for name, policy in PRESETS[preset].items():
            yield preset, FORMATS[name], policy


# -- ml_dtypes --------------------------------------------------------------------------------------------------------


def _cast(dtype: Any, x: Array) -> Array:
    with np.errstate(all="ignore"):
        return x.astype(dtype).view(np.uint8)


def _ml_dtypes() -> Iterator[Conversion]:
    types = _module("ml_dtypes")
    for preset, fmt, policy in _presets("ml_dtypes"):
        if hasattr(types, fmt.name):  # older versions have fewer
            dtype = np.dtype(getattr(types, fmt.name))
            yield Conversion(fmt, preset, policy, preset, lambda x, dtype=dtype: _cast(dtype, x))  # type: ignore[misc]


def _ml_dtypes_decoders() -> Iterator[tuple[FloatFormat, Callable[[Array], Array]]]:
    types = _module("ml_dtypes")
    for fmt in FORMATS.values():
        if hasattr(types, fmt.name):
            dtype = np.dtype(getattr(types, fmt.name))
            yield fmt, lambda codes, dtype=dtype: codes.view(dtype).astype(np.float32)  # type: ignore[misc]


# -- torch ------------------------------------------------------------------------------------------------------------


def _torch_cast(dtype: Any, x: Array) -> Array:
    torch = _module("torch")
    codes: Array = torch.from_numpy(np.array(x)).to(dtype).view(torch.uint8).numpy()
    return codes


def _torch() -> Iterator[Conversion]:
    torch = _module("torch")
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    for preset, fmt, policy in _presets("torch" if version >= (2, 12) else "torch<2.12"):
        if hasattr(torch, fmt.name):
            dtype = getattr(torch, fmt.name)
            yield Conversion(fmt, preset, policy, preset, lambda x, dtype=dtype: _torch_cast(dtype, x))  # type: ignore[misc]


def _torch_decoders() -> Iterator[tuple[FloatFormat, Callable[[Array], Array]]]:
    torch = _module("torch")

    def decode(codes: Array, dtype: Any) -> Array:
        values: Array = torch.from_numpy(codes.copy()).view(dtype).to(torch.float32).numpy()
        return values

    for fmt in FORMATS.values():
        if fmt.bits == 8 and hasattr(torch, fmt.name):
            dtype = getattr(torch, fmt.name)
            yield fmt, lambda codes, dtype=dtype: decode(codes, dtype)  # type: ignore[misc]


# -- onnx: the reference implementation of Cast -----------------------------------------------------------------------

_ROUND_MODES = {"onnx_sat": "up", "onnx_nosat": "up", "onnx_down_sat": "down", "onnx_down_nosat": "down"} | {
    f"onnx_nearest_{mode}": "nearest" for mode in ("sat", "nosat")
}


def _onnx_type(fmt: FloatFormat) -> int | None:
    # TensorProto.FLOAT8E4M3FN, and FLOAT8E8M0 for what ml_dtypes calls float8_e8m0fnu.
    names = _module("onnx").TensorProto.DataType
    spelled = fmt.name.upper().replace("_", "")
    for name in (spelled, spelled.removesuffix("FNU"), spelled.removesuffix("FN")):
        if name in names.keys():  # noqa: SIM118 - a protobuf enum is no mapping
            return int(names.Value(name))
    return None


def _onnx() -> Iterator[Conversion]:
    cast_to = _module("onnx.reference.ops.op_cast").cast_to

    def encode(x: Array, to: int, preset: str) -> Array:
        with np.errstate(all="ignore"):
            result: Array = cast_to(x, to, not preset.endswith("nosat"), _ROUND_MODES[preset])
        return result.view(np.uint8)

    for preset, fmt, policy in _presets(*_ROUND_MODES):
        to = _onnx_type(fmt)
        if to is not None:
            yield Conversion(fmt, preset, policy, preset, lambda x, to=to, preset=preset: encode(x, to, preset))  # type: ignore[misc]


def _onnx_decoders() -> Iterator[tuple[FloatFormat, Callable[[Array], Array]]]:
    onnx, cast = _module("onnx"), _module("onnx.reference.ops.op_cast")

    def decode(codes: Array, to: int) -> Array:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(to)
        values: Array = cast.cast_to(codes.view(dtype), onnx.TensorProto.FLOAT, True)
        return values

    for fmt in FORMATS.values():
        to = _onnx_type(fmt)
        if to is not None:
            yield fmt, lambda codes, to=to: decode(codes, to)  # type: ignore[misc]


# -- gfloat -----------------------------------------------------------------------------------------------------------

_GFLOAT_ROUNDINGS = {
    "nearest_even": "TiesToEven",
    "nearest_away": "TiesToAway",
    "toward_zero": "TowardZero",
    "up": "TowardPositive",
    "down": "TowardNegative",
}


@lru_cache(maxsize=1)
def _gfloat_formats() -> dict[str, Any]:
    """Our names -> gfloat's descriptions: found by their parameters, since the names differ."""
    gfloat, rows = _module("gfloat"), _module("gfloat.formats")
    theirs = [row for name, row in vars(rows).items() if name.startswith("format_info_ocp_") and not row.is_twos_complement]
    for signedness in gfloat.types.Signedness:
        for domain in gfloat.Domain:
            precisions = range(1, 8 + (signedness == gfloat.types.Signedness.Unsigned))
            theirs += [rows.format_info_p3109(8, precision, signedness, domain) for precision in precisions]
    found: dict[str, Any] = {}
    for fmt in FORMATS.values():
        key = (fmt.bits, fmt.mantissa_bits + 1, fmt.bias, fmt.signed, fmt.has_zero, fmt.has_inf, fmt.has_negative_zero, len(fmt.nan_codes))
        for row in theirs:
            inf = row.num_posinfs > 0
            if key == (row.bits, row.precision, row.bias, row.is_signed, row.has_zero, inf, row.has_nz, row.num_nans):
                found[fmt.name] = row
    return found


def _gfloat() -> Iterator[Conversion]:
    gfloat = _module("gfloat")

    def encode(x: Array, info: Any, rounding: str, saturate: bool) -> Array:
        mode = getattr(gfloat.RoundMode, _GFLOAT_ROUNDINGS[rounding])
        with np.errstate(all="ignore"):
            rounded = gfloat.round_ndarray(info, x.astype(np.float64), mode, saturate)
            codes: Array = gfloat.encode_ndarray(info, rounded)
        return codes.astype(np.uint8)

    for name, info in _gfloat_formats().items():
        # Without a NaN there is nothing that overflow could become but the largest value.
        for overflow in ("saturate", "ieee") if info.num_nans else ("saturate",):
            for rounding in _GFLOAT_ROUNDINGS:
                policy = Policy(overflow, rounding, "all_ones")
                what = f"sat={overflow == 'saturate'}, {_GFLOAT_ROUNDINGS[rounding]}"
                yield Conversion(
                    FORMATS[name],
                    what,
                    policy,
                    "",
                    lambda x, i=info, r=rounding, o=overflow: encode(x, i, r, o == "saturate"),  # type: ignore[misc]
                    takes_nan=info.num_nans > 0,
                )


def _gfloat_decoders() -> Iterator[tuple[FloatFormat, Callable[[Array], Array]]]:
    gfloat = _module("gfloat")
    for name, info in _gfloat_formats().items():
        yield FORMATS[name], lambda codes, info=info: gfloat.decode_ndarray(info, codes.astype(np.int64)).astype(np.float32)  # type: ignore[misc]


REFERENCES: tuple[Reference, ...] = (
    Reference("ml_dtypes", _ml_dtypes, _ml_dtypes_decoders),
    Reference("torch", _torch, _torch_decoders),
    Reference("onnx", _onnx, _onnx_decoders),
    Reference("gfloat", _gfloat, _gfloat_decoders),
)
"""The libraries, each used if it is installed."""
