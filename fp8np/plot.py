"""Pictures of formats and tensors, with matplotlib: ``pip install 'fp8np[plot]'``.

Each function draws into `ax`, or a new figure, and returns the Axes: ``value_grid(["e4m3fn", "e5m2"]).figure.savefig("grid.svg")``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fp8np._sources import exact_floats
from fp8np.codec import decode, encode
from fp8np.errors import DTypeError, FormatError, MissingDependencyError, ScaleError
from fp8np.explain import finite_values
from fp8np.formats import FloatFormat, get_format
from fp8np.scaling import dequantize, scale_for
from fp8np.tensor import QTensor
from fp8np.verify.picture import error_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["error_curve", "histogram", "value_grid"]

# Okabe and Ito's colours that stay apart for every kind of sight, dark enough for white paper; dashes tell lines apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D00")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
_GREY = "#8A9199"
# As many bins for each factor of 2 as show the shape of a distribution, few enough that each is well filled.
_BINS_PER_BINADE = 4


def value_grid(formats: Any, *, ax: Axes | None = None) -> Axes:
    """The positive values of formats as marks on a log axis, one row for each format; subnormal ones shorter and grey.

    Args:
        formats: a format or several: names, dtypes or `FloatFormat`.
        ax: where to draw.

    Raises:
        FormatError: a format is unknown, or none is given. MissingDependencyError: matplotlib is not installed.
    """
    fmts = _formats("value_grid", formats)
    axes = _axes(ax, 7.5, 1.0 + 0.42 * len(fmts))
    for row, fmt in enumerate(fmts):
        values = np.array([float(value) for value, _ in finite_values(fmt) if value > 0])
        normal = (values >= fmt.smallest_normal) | (not fmt.has_zero)
        colour = _COLOURS[row % len(_COLOURS)]
        axes.vlines(values[~normal], row - 0.2, row + 0.2, color=_GREY, linewidth=0.9)
        axes.vlines(values[normal], row - 0.32, row + 0.32, color=colour, linewidth=0.9)
        axes.annotate(f"{fmt.max:g}", (values[-1], row), (5, 0), textcoords="offset points", va="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(fmts)), [fmt.name for fmt in fmts])
    axes.set_ylim(len(fmts) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    _log2(axes)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.06)  # room for the numbers on the right
    axes.set_xlabel("positive values (subnormal: grey)")
    axes.grid(visible=False, axis="y")
    return axes


def error_curve(formats: Any, *, ax: Axes | None = None) -> Axes:
    """The relative error of saturating round to nearest against the input, on log axes: teeth filled, their tops joined by a line.

    Args:
        formats: a format or several: names, dtypes or `FloatFormat`.
        ax: where to draw.

    Raises:
        FormatError: a format is unknown, or none is given. MissingDependencyError: matplotlib is not installed.
    """
    fmts = _formats("error_curve", formats)
    axes = _axes(ax, 7.5, 4.2)
    for index, fmt in enumerate(fmts):
        points = [(float(x), float(error)) for x, error in error_profile(fmt)]
        x, error = np.array(points).T
        top = np.ones(len(x), np.bool_)
        top[1:-1] = ((error[1:-1] >= error[:-2]) & (error[1:-1] >= error[2:])) | (x[1:-1] > fmt.max)
        colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
        axes.fill_between(x, np.maximum(error, 2.0**-12), 2.0**-12, color=colour, alpha=0.13, linewidth=0)
        axes.plot(x[top], error[top], color=colour, linestyle=dash, linewidth=1.5, label=fmt.name)
    _log2(axes)
    axes.set_yscale("log", base=2)
    axes.set_ylim(2.0**-9, 1.4)
    axes.set_xlabel("input")
    axes.set_ylabel("relative error")
    axes.legend(frameon=False, fontsize=9)
    return axes


def histogram(tensor: Any, fmt: Any = None, *, scale: float | None = None, ax: Axes | None = None) -> Axes:
    """The magnitudes of a tensor on a log axis, above the grid of a format scaled as `fp8np.quantize` would: what is lost, and where.

    Args:
        tensor: real numbers of any shape, or a `QTensor`. Of one with several scales the codes' own values are drawn, without scales.
        fmt: the format; may be left out for a QTensor.
        scale: of the format's grid. None means that of the largest magnitude, or the QTensor's own.
        ax: where to draw.

    Raises:
        DTypeError: the tensor is not of real numbers, or empty of finite nonzero ones. FormatError: the format is unknown or missing.
        ScaleError: scale is not finite and positive. MissingDependencyError: matplotlib is not installed.
    """
    if isinstance(tensor, QTensor):
        fmt = tensor.format if fmt is None else fmt
        single = tensor.scale.size == 1
        values = (dequantize(tensor) if single else decode(tensor.codes, tensor.format)).astype(np.float64)
        scale = (float(tensor.scale.reshape(())) if single else 1.0) if scale is None else scale
    else:
        values = exact_floats("histogram", tensor, None).astype(np.float64)
    if fmt is None:
        raise FormatError("histogram: the format is needed, e.g. histogram(x, 'e4m3fn')")
    f = get_format(fmt)
    values = values[np.isfinite(values)]
    magnitudes = np.abs(values[values != 0])
    if not magnitudes.size:
        raise DTypeError("histogram: expected finite numbers other than zero, got none")
    step = float(scale_for(magnitudes.max(), f)) if scale is None else float(scale)
    if not 0 < step < np.inf:
        raise ScaleError(f"histogram: expected a finite positive scale, got {scale}")

    axes = _axes(ax, 7.5, 4.0)
    grid = step * np.array([float(value) for value, _ in finite_values(f) if value > 0])
    low = np.floor(np.log2(max(magnitudes.min(), grid[0] / 2**8)))
    high = np.ceil(np.log2(max(magnitudes.max(), grid[-1]))) + 0.5
    edges = np.exp2(np.arange(low, high + 1 / _BINS_PER_BINADE, 1 / _BINS_PER_BINADE))
    shares = np.histogram(np.maximum(magnitudes, edges[0]), edges)[0] / values.size
    axes.stairs(shares, edges, fill=True, color=_COLOURS[0], alpha=0.55)
    height = shares.max()
    normal = (grid >= step * f.smallest_normal) | (not f.has_zero)
    for mask, colour in ((normal, _COLOURS[1]), (~normal, _GREY)):
        axes.vlines(grid[mask], -0.09 * height, -0.015 * height, color=colour, linewidth=0.8)
    smallest = grid[0] / 2 if f.has_zero else grid[0]
    axes.axvspan(edges[0], smallest, color=_GREY, alpha=0.14, linewidth=0)
    axes.axvspan(grid[-1], edges[-1], color=_GREY, alpha=0.14, linewidth=0)
    _log2(axes)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(-0.11 * height, 1.12 * height)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %" if share >= 0 else "")
    axes.set_xlabel(f"magnitude; below the axis the values of {f.name}" + (f" x {step:.3g}" if step != 1 else ""))
    axes.set_ylabel(f"share of {values.size:,} numbers")
    axes.set_title(_losses(values, f, step, smallest, grid[-1]), fontsize=9, loc="left")
    return axes


def _losses(values: npt.NDArray[np.float64], fmt: FloatFormat, scale: float, smallest: float, largest: float) -> str:
    magnitudes = np.abs(values)
    # Half a step above the largest value a number still rounds to it.
    clamped = largest + scale * 2.0 ** (fmt.max_exponent - fmt.mantissa_bits - 1)
    lost = np.mean((magnitudes > 0) & (magnitudes <= smallest)) if fmt.has_zero else 0.0
    parts = [f"to zero: {100 * lost:.2g} %", f"clamped: {100 * np.mean(magnitudes > clamped):.2g} %"]
    kept = values if fmt.signed else magnitudes
    noise = np.sum(np.square(decode(encode(kept / scale, fmt), fmt, dtype=np.float64) * scale - kept))
    if noise:
        parts.append(f"signal to noise: {10 * np.log10(np.sum(np.square(kept)) / noise):.1f} dB")
    return "    ".join(parts)


def _formats(what: str, formats: Any) -> list[FloatFormat]:
    several = isinstance(formats, Iterable) and not isinstance(formats, str | FloatFormat)
    fmts = [get_format(fmt) for fmt in (formats if several else [formats])]
    if not fmts:
        raise FormatError(f"{what}: expected at least one format")
    return fmts


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingDependencyError("pictures need matplotlib: pip install 'fp8np[plot]'") from error
    axes: Axes = plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E3E6E9", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _log2(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
