"""Scaled FP8: `quantize` and `dequantize`, and the scales that they use.

Scales multiply on the way out: ``x ≈ decode(codes) * scale``. One scale may serve the whole tensor, a channel, or a block; the
scales are float32 numbers or, as those of MX, values of a format of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._sources import exact_floats, to_odd
from fp8np.codec import decode, delivered, encode, encode_exact_floats, float_type
from fp8np.errors import DTypeError, FormatError, PolicyError, ShapeError
from fp8np.formats import FloatFormat, get_format
from fp8np.kernels._rule import conversion_rule
from fp8np.kernels._table import select
from fp8np.policy import SATURATE
from fp8np.scheme import MX
from fp8np.tensor import Floats, QTensor, block_of, blocks_of, float32_scale

__all__ = ["SCALE_RULES", "dequantize", "quantize", "rounded_up_to_power_of_two", "scale_for"]

_Array = npt.NDArray[Any]

SCALE_RULES = ("floor", "ceil", "even", "rceil")
"""How scales that are powers of two follow from the largest magnitude; see `scale_for`."""

_SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)
_LARGEST_SCALE = float(np.finfo(np.float32).max)


def scale_for(amax: Any, fmt: Any, *, scale_format: Any = None, scale_rule: str | None = None, power_of_two: bool = False) -> Floats:
    """The scales that bring magnitudes up to `amax` into the range of a format: amax / max, finite and positive.

    Args:
        amax: the largest magnitude of a tensor, or of each channel or block; any shape.
        fmt: the format.
        scale_format: None for float32 scales, or the format that the scales are values of. ``amax / max`` is rounded to it, to nearest
            even and at least to its smallest positive value. If it has powers of two only (E8M0), `scale_rule` takes the place of that.
        scale_rule: with `emax` the exponent of the format's largest value:
            ``"floor"`` (default; OCP MX 1.0, section 6.3): ``2**(floor(log2(amax)) - emax)``; magnitudes above max * scale saturate.
            ``"ceil"``: ``2**(ceil(log2(amax)) - emax)``.
            ``"even"``: as floor, amax first rounded to the format's mantissa, ties up.
            ``"rceil"`` (NVIDIA cuBLAS): the smallest power of two that is at least ``amax / max``.
            All four are clipped to the scale format's range. The names are those of torchao's ``ScaleCalculationMode``.
        power_of_two: whether float32 scales are rounded up to powers of two; those of a format follow its rule.

    Returns:
        float32 of amax's shape. For float32 scales: 1 where amax is 0, negative, NaN or infinite; never below 2**-126, since a
        subnormal scale would lose bits, and never above the largest float32; what is beyond saturates. For powers of two: the
        smallest where amax is 0, negative, NaN or infinite.

    Raises:
        FormatError: a format is unknown. PolicyError: the rule is unknown, or the scales are not powers of two.

    >>> scale_for([448.0, 0.0, np.nan, 1e-45], "e4m3fn").tolist() == [1, 1, 1, 2.0**-126]
    True
    >>> [float(scale_for(449.0, "e4m3fn", scale_format="e8m0fnu", scale_rule=rule)) for rule in SCALE_RULES]
    [1.0, 2.0, 1.0, 2.0]
    """
    f = get_format(fmt)
    kept = None if scale_format is None else get_format(scale_format)
    largest = np.asarray(amax, np.float64)
    usable = (largest > 0) & (largest < np.inf)
    if kept is not None and kept.mantissa_bits == 0:
        return _power_of_two(largest, usable, f, kept, scale_rule)
    if scale_rule is not None:
        scales = "float32" if kept is None else kept
        raise PolicyError(f"scale_for: scale_rule={scale_rule!r} is for scales that are powers of two, these are {scales}")
    # float64 in between is harmless: a quotient of two float32 rounded to 53 and then to 24 bits is rounded correctly.
    with np.errstate(over="ignore"):
        ratio = np.where(usable, largest, f.max) / f.max
    if kept is None:
        found = np.minimum(np.maximum(ratio, _SMALLEST_SCALE), _LARGEST_SCALE).astype(np.float32)
        return rounded_up_to_power_of_two(found) if power_of_two else found
    return np.asarray(np.maximum(decode(encode(ratio, kept), kept), np.float32(kept.smallest_subnormal)), np.float32)


def _power_of_two(largest: _Array, usable: npt.NDArray[np.bool_], f: FloatFormat, kept: FloatFormat, rule: str | None) -> Floats:
    # frexp's fraction is in [1/2, 1): the number is fraction * 2^exponent, its floor(log2) one less than the exponent.
    top = math.frexp(f.max)[1]
    fraction, exponent = np.frexp(np.where(usable, largest, 1.0))
    match rule or SCALE_RULES[0]:
        case "floor":
            raised = np.zeros_like(usable)
        case "ceil":
            raised = fraction > 0.5
        case "even":
            # Adding half of the last mantissa bit carries into the exponent.
            raised = fraction >= 1 - 2.0 ** -(f.mantissa_bits + 2)
        case "rceil":
            # amax and max as fractions of their binades: above max's, the next power of two is needed.
            raised = fraction > math.frexp(f.max)[0]
        case _:
            raise PolicyError(f"scale_for: unknown scale_rule {rule!r}; known: {', '.join(SCALE_RULES)}")
    powers = np.where(usable, exponent - top + raised, kept.min_exponent)
    return np.ldexp(np.float32(1), np.clip(powers, kept.min_exponent, kept.max_exponent).astype(np.int32))


def rounded_up_to_power_of_two(scale: Any) -> Floats:
    """float32 of scale's shape: the smallest powers of two that are at least as large, 2**127 at most; so what fitted before still fits.

    >>> rounded_up_to_power_of_two([0.75, 1.0, 1.5]).tolist()
    [1.0, 1.0, 2.0]
    """
    fraction, exponent = np.frexp(np.asarray(scale, np.float32))
    return np.asarray(np.ldexp(np.float32(1), np.minimum(exponent - (fraction == 0.5), 127)), np.float32)


def quantize(
    x: Any,
    fmt: Any,
    *,
    axis: int | None = None,
    scale: Any = None,
    block: int | Sequence[int] | None = None,
    scale_format: Any = None,
    scale_rule: str | None = None,
) -> QTensor:
    """Scaled FP8: ``codes = encode(x / scale)``, saturating, so that ``x ≈ decode(codes) * scale``.

    Without a scale, the largest finite magnitude of x (of each channel, where `axis` is given; of each block) becomes the format's
    largest value; `scale_for` has the details, and the rules for scales that are powers of two. Zeros alone give scale 1. NaN stays
    NaN and infinity becomes the largest value; neither has a say in the scale. Where `fmt` has no NaN, it becomes the largest value;
    but if block scales have one (MXFP4 and MXFP6), a block with a NaN gets a NaN scale: all of it is NaN. The division is in float32, in
    float64 for sources that float32 cannot hold.

    Args:
        x: what `encode` takes.
        fmt: a signed format; or the name of an MX format (`fp8np.scheme.MX`): ``"mxfp8_e4m3"``, ``"mxfp8_e5m2"``, ``"mxfp6_e2m3"``,
            ``"mxfp6_e3m2"``, ``"mxfp4"``, which means groups of 32 along `axis` (the last by default) with E8M0 scales.
        axis: the axis of the channels, each with its own scale; with a `block` of one number, the axis that is cut into groups.
            Negative counts from the end. None: one scale.
        scale: finite and positive: a number; an array of one axis, along `axis`; or an array with as many axes as x, each of
            length 1 or x's. With `block`: an array with one scale for each block.
        block: lengths of a block along the last axes, such as (128, 128) or (1, 32): see `QTensor`. One number: that many along
            `axis`, each on its own along all others.
        scale_format: of the scales; None for float32.
        scale_rule: for scales that are powers of two: a name of `SCALE_RULES`.

    Returns:
        A `QTensor` of x's shape. Its scale has shape (), or as many axes as x.

    Raises:
        FormatError: a format is unknown, or `fmt` unsigned. DTypeError: x is not of real numbers. ScaleError: a scale is not
        finite and positive, or not of its format. ShapeError: scale or block do not fit, or x has no such axis. PolicyError: a rule
        is unknown or has no use.

    >>> q = quantize([[1.0, -2.0], [0.0, 0.0]], "e4m3fn", axis=0)
    >>> q.codes.tolist(), (q.scale * 448).tolist()
    ([[118, 254], [0, 0]], [[2.0], [448.0]])
    >>> quantize(np.arange(64.0), "mxfp4").scale
    array([4., 8.], dtype=float32)
    >>> quantize(np.ones((300, 200)), "e4m3fn", block=(128, 128)).scale.shape
    (3, 2)
    """
    if isinstance(fmt, str) and fmt.lower().startswith("mx"):
        fmt = fmt.lower()
        if fmt not in MX:
            raise FormatError(f"quantize: unknown MX format {fmt!r}; known: {', '.join(MX)}")
        if block is not None or scale_format is not None:
            raise PolicyError(f"quantize: {fmt!r} has its own block and scale format; name the element format to choose others")
        fmt, blocks = MX[fmt]
        axis, block, scale_format = -1 if axis is None else axis, blocks.shape[-1], blocks.scale_format
    f = get_format(fmt)
    if not f.signed:
        raise FormatError(f"quantize: {f} has no sign; it is made for scales or probabilities. Use encode()")
    kept = None if scale_format is None else get_format(scale_format)
    values = exact_floats("quantize", x)
    if axis is not None:
        if not isinstance(axis, int | np.integer) or not -values.ndim <= axis < values.ndim:
            raise ShapeError(f"quantize: expected axis to be None or one axis of x of shape {values.shape}, got {axis!r}")
        axis = int(axis) % values.ndim
    if scale is not None and scale_rule is not None:
        raise PolicyError("quantize: scale_rule has no use with a given scale; leave one out")
    if block is not None:
        return _quantize_blocks(values, f, _lengths(block, axis, values.shape), scale, kept, scale_rule)
    if scale is None:
        scales = scale_for(_amax(values, axis), f, scale_format=kept, scale_rule=scale_rule)
    else:
        scales, axis = _checked_scales(scale, axis, values.shape, kept)

    codes = np.empty(values.shape, np.uint8)
    if values.dtype == np.float32 and (axis is not None or scales.size == 1):
        channels = _channels(values.shape, None if scales.size == 1 else axis)
        rule = conversion_rule(f, SATURATE)
        select("quantize_f32", f)(values.reshape(channels), scales.reshape(-1), rule, codes.reshape(channels))
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            quotient = np.asarray(values / scales.astype(values.dtype))
        encode_exact_floats(quotient, f, SATURATE, codes)
    return QTensor(codes, f, scales, scale_format=kept)


def dequantize(q: QTensor, *, dtype: Any = np.float32) -> _Array:
    """``decode(codes) * scale``, rounded once, to nearest even.

    Args:
        q: codes, scale and format.
        dtype: float32, float64 (exact), float16, or ml_dtypes.bfloat16.

    Raises:
        DTypeError: q is not a QTensor, or dtype is another one.

    >>> dequantize(quantize([1.0, 0.5, -0.25], "e4m3fn")).tolist()
    [1.0, 0.5, -0.25]
    """
    if not isinstance(q, QTensor):
        raise DTypeError(f"dequantize: expected a QTensor, got {type(q).__name__}; use decode() for bare codes")
    wanted = float_type("dequantize", dtype)
    with np.errstate(over="ignore", under="ignore"):
        if wanted == np.float32:
            return delivered(_multiply(np.asarray(decode(q.codes, q.format)), q), None)
        # 8 bits times 24 bits are exact in float64. bfloat16 would be reached through float32: to odd, so that bits fall once.
        product = _multiply(np.asarray(decode(q.codes, q.format, dtype=np.float64)), q)
        if wanted.name == "bfloat16":
            return delivered(to_odd(product, np.dtype(np.float32)).astype(wanted), None)
        return delivered(product.astype(wanted, copy=False), None)


# -- blocks -----------------------------------------------------------------------------------------------------------


def _lengths(block: int | Sequence[int], axis: int | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    # The lengths of a block along every axis.
    if isinstance(block, int | np.integer) and not isinstance(block, bool):
        if axis is None:
            raise ShapeError(f"quantize: block={block} is a length along one axis: name it with axis=, or give a length for each axis")
        return block_of("quantize", tuple(int(block) if i == axis else 1 for i in range(len(shape))), shape)
    if axis is not None:
        raise ShapeError(f"quantize: axis={axis} has no use with block={block!r}, which has a length for each axis; leave one out")
    return block_of("quantize", block, shape)


def _quantize_blocks(
    values: _Array, f: FloatFormat, block: tuple[int, ...], scale: Any, kept: FloatFormat | None, rule: str | None
) -> QTensor:
    count = blocks_of(values.shape, block)
    if scale is None:
        scales = np.asarray(scale_for(_amax_blocks(values, block), f, scale_format=kept, scale_rule=rule))
        # The maximum is NaN if any value is, and needs no array of its own.
        if kept is not None and kept.nan_codes and not f.nan_codes and np.isnan(values.max(initial=0)):
            scales = np.where(_any_nan(values, block), np.float32(np.nan), scales)
    else:
        scales = float32_scale("quantize", scale, kept)
        if scales.shape != count:
            raise ShapeError(
                f"quantize: expected scales of shape {count}, one for each block of {block} in {values.shape}; got {scales.shape}"
            )
    codes = np.empty(values.shape, np.uint8)
    quotient = np.empty_like(values)
    layout = _layout(values.shape, block) if values.dtype == np.float32 else None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if layout:
            shape, (p, i) = layout
            grid = blocks_of(shape, (1, p, i))
            select("divide_blocks")(values.reshape(shape), np.ascontiguousarray(scales).reshape(grid), p, i, quotient.reshape(shape))
        else:
            for part, cut, one in _parts(values.shape, block):
                quotient[part] = (values[part].reshape(cut) / _spread(scales[one]).astype(values.dtype)).reshape(values[part].shape)
    encode_exact_floats(quotient, f, SATURATE, codes)
    return QTensor(codes, f, scales, block=block, scale_format=kept)


def _amax_blocks(values: _Array, block: tuple[int, ...]) -> _Array:
    # The largest finite magnitude of each block.
    count = blocks_of(values.shape, block)
    layout = _layout(values.shape, block) if values.dtype == np.float32 else None
    if layout:
        shape, (p, i) = layout
        largest = np.empty(blocks_of(shape, (1, p, i)), np.float32)
        select("amax_blocks")(values.reshape(shape), p, i, largest)
        return largest.reshape(count)
    amax = np.zeros(count, values.dtype)
    for part, cut, one in _parts(values.shape, block):
        finite = np.where(np.isfinite(values[part]), np.abs(values[part]), 0)
        amax[one] = finite.reshape(cut).max(axis=tuple(range(1, len(cut), 2)))
    return amax


def _any_nan(values: _Array, block: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    found = np.zeros(blocks_of(values.shape, block), np.bool_)
    for part, cut, one in _parts(values.shape, block):
        found[one] = np.isnan(values[part]).reshape(cut).any(axis=tuple(range(1, len(cut), 2)))
    return found


def _multiply(values: _Array, q: QTensor) -> _Array:
    # values *= scale, where values is C-contiguous.
    if q.block is None:
        return np.asarray(np.multiply(values, q.scale, out=values, casting="same_kind"))
    layout = _layout(q.shape, q.block) if values.dtype == np.float32 else None
    if layout:
        shape, (p, i) = layout
        scales = np.ascontiguousarray(q.scale).reshape(blocks_of(shape, (1, p, i)))
        select("multiply_blocks")(scales, p, i, values.reshape(shape))
    else:
        for part, cut, one in _parts(q.shape, q.block):
            values[part] = (values[part].reshape(cut) * _spread(q.scale[one])).reshape(values[part].shape)
    return values


_Layout = tuple[tuple[int, int, int], tuple[int, int]]


def _layout(shape: tuple[int, ...], block: tuple[int, ...]) -> _Layout | None:
    """The same elements and blocks as (O, P, I) in blocks of (1, p, i), for the kernels; None if there is no such view.

    Neighbouring axes are joined where each index of both is a block of its own, or where the second is whole in a block.

    >>> _layout((4, 256, 3, 3), (1, 32, 3, 3)), _layout((8, 100), (1, 32)), _layout((4, 4, 4), (2, 2, 2))
    (((1, 4, 2304), (1, 288)), ((1, 8, 100), (1, 32)), None)
    """
    joined: list[tuple[int, int]] = []
    for n, b in zip(shape, block, strict=True):
        if n == 1:
            continue
        if joined and (b >= n or b == joined[-1][1] == 1):
            before, length = joined.pop()
            joined.append((before * n, length * (n if b >= n else 1)))
        else:
            joined.append((n, b))
    joined = [(1, 1)] * (3 - len(joined)) + joined
    if len(joined) > 3 or joined[0][1] > 1 or not all(n for n, _ in joined):
        return None
    (O, _), (P, p), (I, i) = joined  # noqa: E741 - as in the kernels
    return (O, P, I), (min(p, P), min(i, I))


_Part = tuple[tuple[slice, ...], tuple[int, ...], tuple[slice, ...]]


def _parts(shape: tuple[int, ...], block: tuple[int, ...]) -> Iterator[_Part]:
    """A tensor without its ragged edge, and the pieces of that edge: index, shape with each axis cut in (blocks, length), and the
    index of the scales. At most 2**ndim of them, and nothing is padded.

    >>> [(cut, one) for _, cut, one in _parts((100,), (32,))]
    [((3, 32), (slice(0, 3, None),)), ((1, 4), (slice(3, 4, None),))]
    """
    choices = []
    for n, b in zip(shape, block, strict=True):
        full = n // b
        along = [(slice(0, full * b), (full, b), slice(0, full))] if full else []
        if full * b < n:
            along.append((slice(full * b, n), (1, n - full * b), slice(full, full + 1)))
        choices.append(along)
    for combination in itertools.product(*choices):
        cut = tuple(itertools.chain.from_iterable(c[1] for c in combination))
        yield tuple(c[0] for c in combination), cut, tuple(c[2] for c in combination)


def _spread(scales: Floats) -> Floats:
    # (a, b) -> (a, 1, b, 1), to meet a part whose axes are cut.
    return scales.reshape(tuple(itertools.chain.from_iterable((n, 1) for n in scales.shape)))


# -- one scale, or one for each channel -------------------------------------------------------------------------------


def _checked_scales(scale: Any, axis: int | None, shape: tuple[int, ...], kept: FloatFormat | None) -> tuple[Floats, int | None]:
    # The scales with as many axes as x (or none), and the one axis along which they differ (None: there is none, or several).
    scales = float32_scale("quantize", scale, kept)
    if scales.ndim == 1 and axis is not None and len(shape) > 1:
        scales = scales.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    if scales.ndim not in (0, len(shape)) or any(s not in (1, n) for s, n in zip(scales.shape, shape, strict=False)):
        hint = "" if axis is not None or scales.ndim != 1 else "; name the axis of the channels with axis="
        raise ShapeError(f"quantize: a scale of shape {np.shape(scale)} does not fit x of shape {shape}{hint}")
    varying = [i for i, n in enumerate(scales.shape) if n > 1]
    if axis is not None and varying not in ([], [axis]):
        raise ShapeError(f"quantize: the scale of shape {scales.shape} varies along other axes than axis={axis}")
    return scales, varying[0] if len(varying) == 1 else None


def _channels(shape: tuple[int, ...], axis: int | None) -> tuple[int, int, int]:
    # (outer, channels, inner) around the axis; no axis is one channel.
    if axis is None:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _amax(values: _Array, axis: int | None) -> _Array:
    # The largest finite magnitude: shape () for no axis, else with as many axes as values.
    shape = () if axis is None else tuple(n if i == axis else 1 for i, n in enumerate(values.shape))
    channels = values.reshape(_channels(values.shape, axis))
    if values.dtype == np.float32:
        largest = np.zeros(channels.shape[1], np.float32)
        select("amax")(channels, largest)
        return largest.reshape(shape)
    finite = np.where(np.isfinite(channels), np.abs(channels), 0)
    return np.asarray(finite.max(axis=(0, 2), initial=0)).reshape(shape)
