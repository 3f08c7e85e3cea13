"""An implementation written from the formats' definitions alone, and planted bugs: each a small change of it.

Nothing here knows `fp8np.verify.suspects`: a bug is made the way a person makes it, by a wrong line of arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Layout:
    """A format as a person would type it in: mantissa bits, bias, code of the largest value, of infinity and of NaN, and of NaN and -0."""

    m: int
    bias: int
    top: int
    inf: int | None
    nan: int
    one_nan: bool = False


LAYOUTS = {
    "float8_e4m3fn": Layout(3, 7, 0x7E, None, 0x7F),
    "float8_e5m2": Layout(2, 15, 0x7B, 0x7C, 0x7E),
    "float8_e3m4fn": Layout(4, 3, 0x7E, None, 0x7F),
    "float8_e4m3fnuz": Layout(3, 8, 0x7F, None, 0x80, one_nan=True),
}


class Plain:
    """Conversions and products in plain NumPy, float64. Every method below `encode`, `decode` and `matmul` is there to be spoiled."""

    def encode(self, x: np.ndarray, fmt: str, *, overflow: str, rounding: str, nan: str) -> np.ndarray:
        f = self.layout(fmt)
        if nan == "payload":
            raise NotImplementedError("payloads")
        with np.errstate(all="ignore"):
            x = self.source(x.astype(np.float64))
            minus = np.signbit(x)
            finite = np.isfinite(x)
            magnitude = np.abs(np.where(finite, x, 1))
            lowest = 1 - f.bias
            exponent = np.where(magnitude > 0, np.maximum(np.frexp(magnitude)[1] - 1, lowest), lowest)
            quanta = self.rounded(np.ldexp(magnitude, f.m - exponent), rounding, minus, exponent == lowest)
            codes = self.assembled(quanta.astype(np.int64), exponent - lowest, f)
        over = self.beyond(codes, magnitude, f, overflow) & finite
        codes = self.flushed(codes, magnitude, f)
        inward = (rounding == "toward_zero") | ((rounding == "down") & ~minus) | ((rounding == "up") & minus)
        limit = f.nan & 0x7F if f.inf is None else f.inf
        ieee = np.full(x.shape, f.nan if f.one_nan else limit)
        clamped = np.full(x.shape, self.largest(f))
        keep = (overflow in ("saturate", "propagate")) | inward
        codes = np.where(over, np.where(keep, self.over(codes, clamped), ieee), codes)
        codes = np.where(np.isinf(x), np.where(overflow == "saturate", self.infinity(clamped), ieee), codes)
        codes = np.where(minus, codes | 0x80, codes)
        codes = self.zero(codes, x, f)
        return self.last(self.nans(codes, x, f, nan).astype(np.uint8), x)

    def decode(self, codes: np.ndarray, fmt: str) -> np.ndarray:
        f = self.layout(fmt)
        exponent, mantissa = np.divmod(codes.astype(np.int64) & 0x7F, 1 << f.m)
        values = self.value(exponent, mantissa, f)
        magnitude = codes & 0x7F
        values = np.where(magnitude > f.top, self.not_numbers(values), values)
        if f.inf is not None:
            values = np.where(magnitude == f.inf, np.inf, values)
        values = np.where(codes & 0x80, -values, values)
        if f.one_nan:
            values = np.where(codes == 0x80, np.nan, values)
        return values.astype(np.float32)

    def matmul(self, a, a_format, b, b_format, *, accumulate, promote_every, init):
        c = np.zeros((a.shape[0], b.shape[1])) if init is None else init.astype(np.float64)
        if accumulate == "hopper":
            return self.hopper(a, a_format, b, b_format, promote_every, c)
        if accumulate == "sequential":
            return self.sequential(a, a_format, b, b_format, c)
        raise NotImplementedError(accumulate)

    # -- conversions ----------------------------------------------------------------------------------------------

    def layout(self, fmt: str) -> Layout:
        if fmt not in LAYOUTS:
            raise NotImplementedError(fmt)
        return LAYOUTS[fmt]

    def source(self, x):
        return x

    def rounded(self, q, rounding, minus, lowest):
        up = rounding == "up"
        match rounding:
            case "nearest_even":
                return np.rint(q)
            case "nearest_away":
                return np.floor(q) + (q - np.floor(q) >= 0.5)  # floor(q + 0.5) would round q + 0.5 first
            case "toward_zero":
                return np.floor(q)
            case "odd":
                return np.floor(q) + ((np.floor(q) != q) & (np.floor(q) % 2 == 0))
        return np.where(minus != up, np.ceil(q), np.floor(q))

    def assembled(self, quanta, steps, f):
        return (steps << f.m) + quanta

    def beyond(self, codes, magnitude, f, overflow):
        over = codes > f.top
        if overflow == "ieee_early":
            largest = np.ldexp((1 << f.m) + (f.top & ((1 << f.m) - 1)), (f.top >> f.m) - f.bias - f.m)
            over |= magnitude > largest
        return over

    def flushed(self, codes, magnitude, f):
        return codes

    def largest(self, f):
        return f.top

    def over(self, codes, clamped):
        return clamped

    def infinity(self, clamped):
        return clamped

    def zero(self, codes, x, f):
        return np.where((codes == 0x80) & (np.abs(x) < 1), 0, codes) if f.one_nan else codes

    def nans(self, codes, x, f, nan):
        bits = f.top if nan == "max" else f.nan
        if nan in ("all_ones", "positive") and not f.one_nan:
            bits = 0x7F
        keeps = nan != "positive" and not (f.one_nan and nan != "max")
        return np.where(np.isnan(x), np.where(np.signbit(x) & keeps, bits | 0x80, bits), codes)

    def last(self, codes, x):
        return codes

    def value(self, exponent, mantissa, f):
        normal = np.ldexp(1 + mantissa / (1 << f.m), exponent - f.bias)
        return np.where(exponent > 0, normal, np.ldexp(mantissa / (1 << f.m), 1 - f.bias))

    def not_numbers(self, values):
        return np.full_like(values, np.nan)

    # -- products -------------------------------------------------------------------------------------------------

    fraction_bits = 13
    output_bits = 13
    group = 32
    nan_code = 0x7FFFFFFF

    def operand(self, codes, fmt):
        return Plain.decode(self, codes, fmt).astype(np.float64)

    def exponents(self, values, fmt):
        return np.maximum(np.frexp(values)[1] - 1, 1 - LAYOUTS[fmt].bias)

    def cut(self, q):
        return np.trunc(q)

    def cut_output(self, q):
        return np.trunc(q)

    def interval(self, every):
        return every

    def hopper(self, a, a_format, b, b_format, every, c):
        if not a.shape[1]:
            return c.astype(np.float32)
        x, y = self.operand(a, a_format), self.operand(b, b_format)
        ex, ey = self.exponents(x, a_format), self.exponents(y, b_format)
        every, K = self.interval(every), a.shape[1]
        total, c = (c, np.zeros_like(c)) if every else (None, c)
        with np.errstate(all="ignore"):
            for start in self.groups(K):
                stop = min(start + self.group, K)
                ks = range(start, stop) if every is None else range(start, min(stop, start - start % every + every))
                c = self.step(c, [x[:, k, None] * y[None, k, :] for k in ks], [ex[:, k, None] + ey[None, k, :] for k in ks])
                if every and (stop % every == 0 or stop == K):
                    total, c = (total + c).astype(np.float32).astype(np.float64), np.zeros_like(c)
            return self.finished(c if total is None else total)

    def groups(self, K):
        return range(0, K, self.group)

    def step(self, c, products, exponents):
        tops = [np.where(p != 0, e, -999) for p, e in zip(products, exponents, strict=True)]
        top = self.top(np.max(tops, axis=0), c)
        unit = np.exp2(np.where(top > -999, top - self.fraction_bits, 0.0))
        plain = sum(products) + c
        s = sum(self.cut(p / unit) for p in products) * unit
        s = self.with_c(s, c, unit)
        fine = np.exp2(np.maximum(np.frexp(s)[1] - 1, -126) - float(self.output_bits))
        return np.where(np.isfinite(plain), self.cut_output(s / fine) * fine + 0.0, plain)

    def top(self, top, c):
        return np.maximum(top, np.where(c != 0, np.frexp(c)[1] - 1, -999))

    def with_c(self, s, c, unit):
        return s + self.cut(c / unit) * unit

    def finished(self, c):
        result = (c + 0.0).astype(np.float32)
        result.view(np.uint32)[np.isnan(result)] = self.nan_code
        return result

    def sequential(self, a, a_format, b, b_format, c):
        x, y = self.operand(a, a_format).astype(np.float32), self.operand(b, b_format).astype(np.float32)
        c = c.astype(np.float32)
        with np.errstate(all="ignore"):
            for k in self.order(a.shape[1]):
                c = self.added(c, x[:, k, None] * y[None, k, :])
        return c

    def order(self, K):
        return range(K)

    def added(self, c, p):
        return c + p


@dataclass(frozen=True)
class Mutant:
    """A planted bug.

    Attributes:
        name: what was done.
        kind: what the diagnosis must say, a regular expression.
        suite: where it must be caught.
        format: for which format.
        change: name -> method, put into `Plain`.
    """

    name: str
    kind: str
    suite: str
    format: str
    change: dict[str, Any]

    def implementation(self) -> Plain:
        """`Plain` with the bug."""
        return type(self.name, (Plain,), self.change)()


def _bfloat16(self, x):
    bits = x.astype(np.float32).view(np.uint32)
    even = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, even.view(np.float32).astype(np.float64))


def _rne(fix: Callable[..., Any]) -> Callable[..., Any]:
    """A wrong way to round to nearest even; other roundings stay."""

    def rounded(self, q, rounding, minus, lowest):
        right = Plain.rounded(self, q, rounding, minus, lowest)
        return np.where(rounding == "nearest_even", fix(q, minus, lowest), right)

    return rounded


def _no_carry(self, quanta, steps, f):
    full = quanta == 2 << f.m
    return np.where(full, (steps << f.m) + (1 << f.m), (steps << f.m) + quanta)


def _nan_by_sign_only(self, codes, x, f, nan):
    return np.where(np.isnan(x), 0x7C | np.signbit(x) * 0x80, codes)


def _away_and_unsigned_nan() -> dict[str, Any]:
    def nans(self, codes, x, f, nan):
        return np.where(np.isnan(x), Plain.nans(self, codes, x, f, nan) & 0x7F, codes)

    return {"rounded": _rne(lambda q, *_: np.floor(q + 0.5)), "nans": nans}


def _late_c(self, s, c, unit):
    fine = np.exp2(np.maximum(np.frexp(s)[1] - 1, -126) - float(self.output_bits))
    return (np.trunc(s / fine) * fine + c).astype(np.float32).astype(np.float64)


def _swapped(self, a, a_format, b, b_format, *, accumulate, promote_every, init):
    return Plain.matmul(self, a, b_format, b, a_format, accumulate=accumulate, promote_every=promote_every, init=init)


def _short(self, a, a_format, b, b_format, **options):
    return Plain.matmul(self, a[:, :-1], a_format, b[:-1], b_format, **options)


def _from_zero(self, a, a_format, b, b_format, *, init, **options):
    return Plain.matmul(self, a, a_format, b, b_format, init=None, **options)


def _minus_zero(self, c):
    result = Plain.finished(self, c)
    return np.where(result == 0, np.float32(-0.0), result)


E4, E5, UZ = "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"

CONVERSIONS = (
    Mutant(
        "through_float16", "double rounding.*float16", "float32", E4, {"source": lambda self, x: x.astype(np.float16).astype(np.float64)}
    ),
    Mutant(
        "through_float32", "double rounding.*float32", "float64", E4, {"source": lambda self, x: x.astype(np.float32).astype(np.float64)}
    ),
    Mutant("through_bfloat16", "double rounding.*bfloat16", "float32", E5, {"source": _bfloat16}),
    Mutant("ties_away", "^ties go away from zero$", "float32", E4, {"rounded": _rne(lambda q, *_: np.floor(q + 0.5))}),
    Mutant(
        "half_up", "half up", "float32", E4, {"rounded": _rne(lambda q, minus, _: np.where(minus, np.ceil(q - 0.5), np.floor(q + 0.5)))}
    ),
    Mutant("truncation", "^truncation", "float32", E4, {"rounded": _rne(lambda q, *_: np.floor(q))}),
    Mutant(
        "coarse_subnormals",
        "subnormals alone: truncation",
        "float32",
        E4,
        {"rounded": _rne(lambda q, _, lowest: np.where(lowest & (q < 8), np.floor(q), np.rint(q)))},
    ),
    Mutant("no_sticky", "sticky bit", "float32", E4, {"rounded": _rne(lambda q, *_: np.rint(np.floor(2 * q) / 2))}),
    Mutant("flushed", "flushed to zero", "float32", E4, {"flushed": lambda self, c, m, f: np.where(c < 1 << f.m, 0, c)}),
    Mutant(
        "flushed_early",
        "below the smallest normal",
        "float32",
        E5,
        {"flushed": lambda self, c, m, f: np.where(m < 2.0 ** (1 - f.bias), 0, c)},
    ),
    Mutant(
        "no_tiny",
        "below the smallest value",
        "float32",
        E4,
        {"flushed": lambda self, c, m, f: np.where(m < 2.0 ** (1 - f.bias - f.m), 0, c)},
    ),
    Mutant("largest_one_less", "saturation off by one", "float32", E4, {"largest": lambda self, f: f.top - 1}),
    Mutant("wraps", "wraps around", "float32", E4, {"over": lambda self, codes, clamped: codes & 0x7F}),
    Mutant("no_carry", "carry of rounding.*is lost", "float32", E4, {"assembled": _no_carry}),
    Mutant(
        "early_overflow", "before rounding", "float32", E4, {"beyond": lambda self, c, m, f, o: Plain.beyond(self, c, m, f, "ieee_early")}
    ),
    Mutant("infinity_is_nan", "infinity (gives|does not)|but infinity", "float32", E4, {"infinity": lambda self, clamped: clamped + 1}),
    Mutant("unsigned_zero", "sign of zero", "float32", E4, {"zero": lambda self, c, x, f: np.where(c == 0x80, 0, c)}),
    Mutant("zero_is_nan", "sign of zero.*0x80", "float32", UZ, {"zero": lambda self, c, x, f: c}),
    Mutant("nan_is_infinity", "NaN gives .*0x7c", "float32", E5, {"nans": _nan_by_sign_only}),
    Mutant(
        "unsigned_nan",
        "NaN.*sign",
        "float32",
        E4,
        {"nans": lambda self, c, x, f, n: np.where(np.isnan(x), f.top if n == "max" else 0x7F, c)},
    ),
    Mutant("one_code", "wrong code: 0x38.*0x39", "float32", E4, {"last": lambda self, c, x: np.where(c == 0x38, 0x39, c).astype(np.uint8)}),
    Mutant("bias", "exponent off by one", "float32", E5, {"source": lambda self, x: x * 2}),
    Mutant("wrong_format", "wrong format.*e4m3fnuz", "float32", E4, {"layout": lambda self, fmt: LAYOUTS[UZ]}),
    Mutant("absolute", "sign is lost", "float32", E4, {"source": lambda self, x: np.abs(x)}),
    Mutant("daz", "subnormal float16", "float32", E5, {"source": lambda self, x: np.where(np.abs(x) < 2.0**-14, x * 0, x)}),
    Mutant("two_bugs", "ties go away from zero; and .*NaN|NaN.*; and ties go away", "float32", E4, _away_and_unsigned_nan()),
)

VALUES = (
    Mutant(
        "hidden_bit",
        "subnormals get a hidden bit",
        "decode",
        E4,
        {"value": lambda self, e, m, f: np.where(e + m > 0, np.ldexp(1 + m / 8, e - 7), 0)},
    ),
    Mutant("nan_is_480", "NaN codes are read as numbers", "decode", E4, {"not_numbers": lambda self, v: v}),
    Mutant(
        "subnormal_exponent",
        "exponent one too small",
        "decode",
        E5,
        {"value": lambda self, e, m, f: Plain.value(self, e, m, f) * np.where(e, 1, 0.5)},
    ),
    Mutant(
        "one_value",
        "wrong code: 0x01",
        "decode",
        E4,
        {"value": lambda self, e, m, f: Plain.value(self, e, m, f) + (e == 0) * (m == 1) / 1024},
    ),
)

PRODUCTS = (
    Mutant("one_bit_short", "one bit|1 bit too short", "gemm", E4, {"fraction_bits": 12, "output_bits": 12}),
    Mutant("alignment_one_bit_long", "1 bit too long.*14 fraction bits after alignment", "gemm", E4, {"fraction_bits": 14}),
    Mutant("sums_kept_wide", "kept as a whole float32|bits? too long: .*kept", "gemm", E4, {"output_bits": 23}),
    Mutant("aligned_to_nearest", "aligned terms are rounded to nearest", "gemm", E4, {"cut": lambda self, q: np.rint(q)}),
    Mutant("aligned_by_floor", "toward -infinity", "gemm", E4, {"cut": lambda self, q: np.floor(q)}),
    Mutant("output_to_nearest", "sum of a step is rounded to nearest", "gemm", E4, {"cut_output": lambda self, q: np.rint(q)}),
    Mutant("promoted_late", "wrong promotion interval", "gemm", E4, {"interval": lambda self, n: n and 2 * n}),
    Mutant("never_promoted", "promotion is missing", "gemm", E4, {"interval": lambda self, n: None}),
    Mutant(
        "c_not_aligned",
        "c is not aligned",
        "gemm",
        E4,
        {"with_c": _late_c, "top": lambda self, top, c: top, "cut_output": lambda self, q: q},
    ),
    Mutant("c_below_top", "c does not take part", "gemm", E4, {"top": lambda self, t, c: np.where(t > -999, t, Plain.top(self, t, c))}),
    Mutant("group_of_16", "wrong group: 16", "gemm", E4, {"group": 16}),
    Mutant(
        "normalised", "normalised", "gemm", E4, {"step": lambda self, c, ps, _: Plain.step(self, c, ps, [np.frexp(p)[1] - 1 for p in ps])}
    ),
    Mutant("nan_bits", "wrong NaN code: 0x7fc00000", "gemm", E4, {"nan_code": 0x7FC00000}),
    Mutant("minus_zero", "sign of zero", "gemm", E4, {"finished": _minus_zero}),
    Mutant("last_k", "last term of K is missing", "gemm", E4, {"matmul": _short}),
    Mutant("no_init", "init is ignored", "gemm", E4, {"matmul": _from_zero}),
    Mutant("groups_backwards", "order reversed|order", "gemm", E4, {"groups": lambda self, K: list(Plain.groups(self, K))[::-1]}),
    Mutant("backwards", "order reversed", "gemm", E4, {"order": lambda self, K: range(K)[::-1]}),
    Mutant(
        "in_float64",
        "exactly \\(or in float64\\)",
        "gemm",
        E4,
        {"sequential": lambda self, a, f, b, g, c: np.float32(self.operand(a, f) @ self.operand(b, g) + c)},
    ),
    Mutant(
        "daz_operands",
        "subnormal operands",
        "gemm",
        E4,
        {"operand": lambda self, c, f: np.where(np.abs(v := Plain.operand(self, c, f)) < 2.0**-6, 0.0, v)},
    ),
)
