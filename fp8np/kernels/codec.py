"""Kernels of the codec: float32 and float64 to codes, codes to float32, scaling to codes, and the largest magnitude.

`rule` is the int64[13] of `fp8np.kernels._rule`. In the 32-bit kernels every intermediate is forced back to uint32: Numba widens
``uint32 + uint32`` to 64 bits, and one 64-bit value in the loop halves its speed (measured: 2.2 against 3.4 Gelem/s for one
unwrapped ``&``). For the same reason nothing branches, and no shift has a variable count: LLVM would make it a 64-bit one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels import _rule
from fp8np.kernels._arrays import read_only
from fp8np.kernels._bits import float32_bits, float32_of
from fp8np.kernels._jit import exact
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for
from fp8np.kernels.encode import LEAST, encode_vectors

__all__ = ["amax", "code_of_steps", "decode_f32", "encode_f32", "encode_f64", "encode_parameters", "quantize_f32"]

# Elements of one work item where an array has no rows of its own to hand out.
BLOCK = 1 << 16

_U = np.uint32
_NO_RANDOM_BITS = np.empty(0, np.uint32)


def _by_addition(fmt: Any) -> bool:
    # The addition that rounds needs float32 exponents up to 24 - m above the largest value, and an even number of magnitudes in a
    # binade, for ties to go to even ones; zero is where the subnormals end.
    return bool(fmt.has_zero) and fmt.mantissa_bits > 0 and fmt.max_exponent + 24 - fmt.mantissa_bits <= 127


def _signed_bytes(fmt: Any) -> bool:
    return bool(fmt.signed) and fmt.bits == 8


# -- float32 to codes, to nearest even --------------------------------------------------------------------------------
#
# The addition rounds, as the FPU does unless told otherwise: to nearest, ties to even. With E the exponent of |x|, not below
# that of the smallest normal value, and G = 2^(E + 23 - m), here for m = 3:
#
#     G           1 0000000000000000000 0 000|             24 bits, the last of which weighs 2^(E - m), a step of the format at E
#     |x|                               1 fff|ffff...      where E is the exponent of |x|; 0 fff|ffff... below the normal values
#     G + |x|     1 0000000000000000000 n nnn|
#
# so bits(G + |x|) - bits(G) is |x| in steps, n = 2^m .. 2^(m+1) for normal values and 0 .. 2^m for subnormal ones, and
# the magnitude is n + (E - min_exponent) * 2^m. A carry to n = 2^(m+1) is the next binade, as wanted. E stops one above
# the format's largest: whatever is beyond gives a magnitude beyond the top.


@exact
def encode_parameters(rule: Any) -> Any:
    """What the loops over float32 keep in registers of a rule, int64[13]."""
    m = rule[_rule.MANTISSA_BITS]
    smallest = (rule[_rule.MIN_EXPONENT] + 127) << 23
    beyond = (rule[_rule.MAX_EXPONENT] + 1 + 127) << 23
    return (
        _U(1 << m),
        _U(smallest),
        _U(beyond),
        _U((23 - m) << 23),
        _U((smallest >> 23) << m),
        _U(rule[_rule.TOP]),
        _U(rule[_rule.OVERFLOW]),
        _U(rule[_rule.INFINITY]),
        _U(rule[_rule.NAN]),
        _U(rule[_rule.NAN] ^ rule[_rule.NAN_NEGATIVE]),
        _U(rule[_rule.SIGN]),
        _U(rule[_rule.ZERO_SIGN]),
    )


@exact
def code_of_steps(bits: Any, n: Any, e: Any, parameters: Any) -> Any:
    """u8 code of a float32 (its u32 bits) of which n steps were kept, in the binade of the float32 with the bits e."""
    binade, _, _, _, base, top, overflow, infinity, nan, nan_sign, sign_bit, zero_sign = parameters
    a = _U(bits & _U(0x7FFFFFFF))
    negative = _U(0xFFFFFFFF) if bits > _U(0x7FFFFFFF) else _U(0)  # a mask
    magnitude = _U(n + _U(_U(_U(e >> _U(23)) * binade) - base))
    magnitude = overflow if magnitude > top else magnitude
    magnitude = infinity if a == _U(0x7F800000) else magnitude
    nan_code = _U(nan ^ _U(negative & nan_sign))
    sign = _U(negative & (zero_sign if magnitude == _U(0) else sign_bit))
    return np.uint8(nan_code if a > _U(0x7F800000) else _U(magnitude | sign))


@exact
def _encoded(bits: Any, parameters: Any) -> Any:
    # bits: u32 of a float32 -> u8 code.
    smallest, beyond, lift = parameters[1], parameters[2], parameters[3]
    a = _U(bits & _U(0x7FFFFFFF))
    e = _U(max(a, smallest))
    e = _U(min(e, beyond))
    g = _U(_U(e & _U(0x7F800000)) + lift)
    n = _U(float32_bits(float32_of(a) + float32_of(g)) - g)
    return code_of_steps(bits, n, e, parameters)


@exact
def _encode_f32(x: Any, rule: Any, out: Any) -> None:
    # x: u32 (n,) bits of float32; out: u8 (n,)
    parameters = encode_parameters(rule)
    for i in range(x.size):
        out[i] = _encoded(x[i], parameters)


def encode_f32(x: Any, rule: Any, out: Any) -> None:
    """x f32 (n,) -> out u8 (n,); rounds to nearest even, whatever the rule says. Unsigned formats get the code of |x|."""
    if x.size >= LEAST:
        encode_vectors(x, rule, out)
        return
    (bits,) = read_only(x.view(np.uint32))
    _encode_f32(bits, rule, out)


# -- float32 over a scale to codes ------------------------------------------------------------------------------------


@exact
def _quantize_rows(x: Any, length: Any, scale: Any, rule: Any, start: Any, stop: Any, out: Any) -> None:
    # x: f32 (n,), cut into rows of `length`, the last one perhaps shorter; scale: f32 (C,), row r takes scale[r % C];
    # out: u8 (n,)
    parameters = encode_parameters(rule)
    for r in range(start, stop):
        s = scale[r % scale.size]
        row = x[r * length : (r + 1) * length]
        codes = out[r * length : (r + 1) * length]
        for i in range(row.size):
            codes[i] = _encoded(float32_bits(row[i] / s), parameters)


@exact
def _quantize_columns(x: Any, scale: Any, rule: Any, start: Any, stop: Any, out: Any) -> None:
    # x: f32 (R, C); scale: f32 (C,); out: u8 (R, C)
    parameters = encode_parameters(rule)
    for r in range(start, stop):
        row = x[r]
        codes = out[r]
        for c in range(row.size):
            codes[c] = _encoded(float32_bits(row[c] / scale[c]), parameters)


def quantize_f32(x: Any, scale: Any, rule: Any, out: Any) -> None:
    """x f32 (outer, C, inner), scale f32 (C,) -> out u8 (outer, C, inner), the codes of x / scale, to nearest even."""
    outer, channels, inner = x.shape
    x, scale = read_only(x, scale)
    if inner == 1 and channels > 1:
        x, out = x.reshape(outer, channels), out.reshape(outer, channels)
        parallel_for(lambda start, stop: _quantize_columns(x, scale, rule, start, stop, out), outer, x.size)
        return
    flat, codes = x.reshape(-1), out.reshape(-1)
    rows, length = _rows(outer, channels, inner)
    parallel_for(lambda start, stop: _quantize_rows(flat, length, scale, rule, start, stop, codes), rows, x.size)


# -- the largest finite magnitude -------------------------------------------------------------------------------------


@exact
def _amax_rows(x: Any, length: Any, start: Any, stop: Any, out: Any) -> None:
    # x: u32 (n,) bits of float32, cut into rows of `length`; out: u32 (rows,). Positive floats sort as their bits do.
    for r in range(start, stop):
        row = x[r * length : (r + 1) * length]
        largest = _U(0)
        for i in range(row.size):
            a = _U(row[i] & _U(0x7FFFFFFF))
            a = _U(0) if a >= _U(0x7F800000) else a
            largest = _U(max(largest, a))
        out[r] = largest


@exact
def _amax_columns(x: Any, start: Any, stop: Any, out: Any) -> None:
    # x: u32 (R, C) bits of float32; out: u32 (C,), columns start .. stop are written
    largest = out[start:stop]
    largest[:] = _U(0)
    for r in range(x.shape[0]):
        row = x[r, start:stop]
        for c in range(row.size):
            a = _U(row[c] & _U(0x7FFFFFFF))
            a = _U(0) if a >= _U(0x7F800000) else a
            largest[c] = _U(max(largest[c], a))


def amax(x: Any, out: Any) -> None:
    """x f32 (outer, C, inner) -> out f32 (C,), the largest finite magnitude of each channel: NaN and infinities are left out."""
    outer, channels, inner = x.shape
    (bits,) = read_only(x.view(np.uint32))
    largest = out.view(np.uint32)
    if x.size == 0:
        largest[:] = 0
        return
    if inner == 1 and channels > 1:
        columns = bits.reshape(outer, channels)
        parallel_for(lambda start, stop: _amax_columns(columns, start, stop, largest), channels, x.size)
        return
    flat = bits.reshape(-1)
    rows, length = _rows(outer, channels, inner)
    parts = np.zeros(rows, np.uint32)
    parallel_for(lambda start, stop: _amax_rows(flat, length, start, stop, parts), rows, x.size)
    largest[:] = parts.reshape(-1, channels).max(axis=0, initial=0)


def _rows(outer: int, channels: int, inner: int) -> tuple[int, int]:
    # Rows and their length, so that row r belongs to channel r % channels. A single channel is cut into blocks instead.
    if channels == 1:
        return -(-outer * inner // BLOCK), BLOCK
    return outer * channels, inner


# -- float64 to codes, every rounding ---------------------------------------------------------------------------------
#
# |x| = significand * 2^(exponent - 52) is cut at the weight of the format's last bit, 2^(grid - m), where grid is the
# exponent, not below that of the smallest normal value:
#
#     significand    1ffff|fffffffffff       cut = 52 - m + grid - exponent bits to the right of |
#                 +       |addend            the rounding: what is added before the cut
#
#     nearest, ties away       10000000000   half a step
#     nearest, ties to even    0111111111o   the same, one less where the last bit kept is even
#     away from zero           11111111111
#     toward zero              00000000000
#     to odd                   eeeeeeeeeee   away from zero where the last bit kept is even
#     stochastic A, N bits     RRRR0000000   R, left-aligned
#     stochastic B             RRRR1000000   R and a half
#     stochastic C             RRRR0000000   R, after the significand was rounded to even there
#
# A number far below the smallest step has a cut of up to a thousand bits. From 62 on the significand is moved right instead; a
# bit lost on the way leaves its mark in the last place, far below the half and the random bits.


@exact
def _cut(bits: Any, m: Any, min_exponent: Any, base: Any) -> Any:
    # bits: i64 of a positive float64 -> significand, cut, and what to add to the bits kept to get a magnitude
    field = bits >> 52
    exponent = max(field, np.int64(1)) - 1023
    significand = (bits & np.int64(0xFFFFFFFFFFFFF)) | (min(field, np.int64(1)) << 52)
    grid = max(exponent, min_exponent)
    drop = 52 - m + grid - exponent
    cut = min(drop, np.int64(62))
    beyond = min(drop - cut, np.int64(63))
    moved = significand >> beyond
    moved |= np.int64((moved << beyond) != significand)
    return moved, cut, ((grid - min_exponent) << m) - base


@exact
def _limits(rule: Any) -> Any:
    # rule: int64[13] -> what `_finished` keeps in registers: read in the loop, it could alias the codes written there.
    return (
        rule[_rule.TOP],
        rule[_rule.OVERFLOW],
        rule[_rule.OVERFLOW_NEGATIVE],
        rule[_rule.INFINITY],
        rule[_rule.NAN],
        rule[_rule.NAN_NEGATIVE],
        rule[_rule.SIGN],
        rule[_rule.ZERO_SIGN],
    )


@exact
def _finished(bits: Any, magnitude: Any, limits: Any) -> Any:
    # bits: i64 of the float64; magnitude: rounded, the exponent unbounded -> u8 code
    top, overflow, overflow_negative, infinity, nan, nan_negative, sign, zero_sign = limits
    negative = bits < 0
    a = bits & np.int64(0x7FFFFFFFFFFFFFFF)
    infinite = np.int64(0x7FF0000000000000)
    magnitude = max(magnitude, np.int64(0))
    beyond = overflow_negative if negative else overflow
    magnitude = beyond if magnitude > top else magnitude
    magnitude = infinity if a == infinite else magnitude
    sign = zero_sign if magnitude == 0 else sign
    code = magnitude | (sign if negative else np.int64(0))
    nan = nan_negative if negative else nan
    return np.uint8(nan if a > infinite else code)


@exact
def _encode_f64(x: Any, rule: Any, out: Any) -> None:
    # x: i64 (n,) bits of float64; out: u8 (n,)
    m, min_exponent, base = rule[_rule.MANTISSA_BITS], rule[_rule.MIN_EXPONENT], rule[_rule.BASE]
    mode = rule[_rule.ROUNDING_MODE]
    to_even = np.int64(mode == _rule.NEAREST_EVEN)
    nearest = to_even == 1 or mode == _rule.NEAREST_AWAY
    up = np.int64(mode == _rule.UP)
    down = np.int64(mode == _rule.DOWN)
    to_odd = np.int64(mode == _rule.ODD)
    limits = _limits(rule)
    for i in range(x.size):
        significand, cut, rest = _cut(x[i] & np.int64(0x7FFFFFFFFFFFFFFF), m, min_exponent, base)
        step = np.int64(1) << cut
        even = ~((significand >> cut) + rest) & 1
        away = (down if x[i] < 0 else up) | (to_odd & even)
        addend = (step >> 1) - (to_even & even) if nearest else (step - 1) * away
        out[i] = _finished(x[i], ((significand + addend) >> cut) + rest, limits)


@exact
def _encode_f64_stochastic(x: Any, rule: Any, random: Any, width: Any, out: Any) -> None:
    # x: i64 (n,) bits of float64; random: u32 (n,), integers below 2^width; width: at most 32; out: u8 (n,)
    m, min_exponent, base = rule[_rule.MANTISSA_BITS], rule[_rule.MIN_EXPONENT], rule[_rule.BASE]
    half = np.int64(rule[_rule.ROUNDING_MODE] == _rule.STOCHASTIC_B)
    pre_round = np.int64(rule[_rule.ROUNDING_MODE] == _rule.STOCHASTIC_C)
    limits = _limits(rule)
    for i in range(x.size):
        significand, cut, rest = _cut(x[i] & np.int64(0x7FFFFFFFFFFFFFFF), m, min_exponent, base)
        unit = np.int64(1) << (cut - width)  # the weight of the last random bit
        rounded = (significand + (unit >> 1) - 1 + ((significand >> (cut - width)) & 1)) & -unit
        significand = rounded if pre_round else significand
        addend = np.int64(random[i]) * unit + (unit >> 1) * half
        out[i] = _finished(x[i], ((significand + addend) >> cut) + rest, limits)


def encode_f64(x: Any, rule: Any, random: Any, width: int, out: Any) -> None:
    """x f64 (n,) -> out u8 (n,), rounded as the rule says. Unsigned formats get the code of |x|.

    random: u32 (n,), integers below 2**width; read only for stochastic rounding.
    """
    bits, random = read_only(x.view(np.int64), random)

    def run(start: int, stop: int) -> None:
        if rule[_rule.ROUNDING_MODE] >= _rule.STOCHASTIC_A:
            _encode_f64_stochastic(bits[start:stop], rule, random[start:stop], width, out[start:stop])
        else:
            _encode_f64(bits[start:stop], rule, out[start:stop])

    parallel_for(run, x.size, x.size)


def encode_f32_any(x: Any, rule: Any, out: Any) -> None:
    """As `encode_f32`, for every format; ten times slower."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = x.astype(np.float64)
    encode_f64(wide, rule, _NO_RANDOM_BITS, 0, out)


def quantize_f32_any(x: Any, scale: Any, rule: Any, out: Any) -> None:
    """As `quantize_f32`, for every format."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        quotient = x / scale[:, None]
    encode_f32_any(quotient.reshape(-1), rule, out.reshape(-1))


# -- codes to float32 -------------------------------------------------------------------------------------------------
#
#     magnitude, normal     0.. 0eeee mmm                     code without its sign
#     float32               eeeeeeee mmm00000000000000000000  moved up by 23 - m bits, exponent re-biased
#
# A subnormal magnitude n is n steps of 2^(min_exponent - m): it is put into the last bits of G = 2^(min_exponent - m + 23),
# whose last bit weighs just that, and G is subtracted. No operand is a subnormal float32: those trap to microcode
# on many CPUs (measured: 0.33 Gelem/s for the multiplication by a power of two that suggests itself).


@exact
def _decode_f32(codes: Any, rule: Any, out: Any) -> None:
    # codes: u8 (n,); out: u32 (n,) bits of float32
    m = rule[_rule.MANTISSA_BITS]
    up = _U(np.int64(1) << (23 - m))
    first_normal = _U(np.int64(1) << m)
    rebias = _U((rule[_rule.MIN_EXPONENT] - 1 + 127) << 23)
    g = _U((rule[_rule.MIN_EXPONENT] - m + 23 + 127) << 23)
    infinity = _U(rule[_rule.INFINITY] if rule[_rule.INFINITY] != rule[_rule.NAN] else 0x100)
    top = _U(rule[_rule.TOP])
    lone_nan = _U(rule[_rule.NAN] if rule[_rule.ZERO_SIGN] == 0 else 0x100)
    for i in range(codes.size):
        code = _U(codes[i])
        magnitude = _U(code & _U(0x7F))
        sign = _U(_U(code & _U(0x80)) << _U(24))
        normal = _U(_U(magnitude * up) + rebias)
        subnormal = float32_bits(float32_of(_U(g + magnitude)) - float32_of(g))
        bits = subnormal if magnitude < first_normal else normal
        special = _U(0x7F800000) if magnitude == infinity else _U(0x7FC00000)
        bits = special if magnitude > top else bits
        bits = _U(0x7FC00000) if code == lone_nan else bits
        out[i] = _U(bits | sign)


def decode_f32(codes: Any, rule: Any, out: Any) -> None:
    """codes u8 (n,) -> out f32 (n,); a NaN keeps its sign. `rule` has ``overflow="ieee"``. Signed formats of 8 bits."""
    (codes,) = read_only(codes)
    bits = out.view(np.uint32)
    parallel_for(lambda start, stop: _decode_f32(codes[start:stop], rule, bits[start:stop]), codes.size, codes.size)


kernel("encode_f32", encode_f32, takes=_by_addition, order="one rounding to nearest even", reproducible=True)
kernel("encode_f32", encode_f32_any, order="one rounding to nearest even", reproducible=True)
kernel("encode_f64", encode_f64, order="one rounding", reproducible=True)
kernel("quantize_f32", quantize_f32, takes=_by_addition, order="x / scale rounded to float32, then to nearest even", reproducible=True)
kernel("quantize_f32", quantize_f32_any, order="x / scale rounded to float32, then to nearest even", reproducible=True)
kernel("decode_f32", decode_f32, takes=_signed_bytes, order="exact", reproducible=True)
kernel("amax", amax, order="exact", reproducible=True)
