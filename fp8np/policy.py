"""What a conversion does with numbers that have no code: overflow, rounding and NaN policies, and vendors' presets.

**overflow**, decided after rounding with an unbounded exponent:

==============  ==================================  =====================================================
name            finite value beyond the largest     infinity
==============  ==================================  =====================================================
``saturate``    the largest value, sign kept        the largest value, sign kept
``ieee``        infinity; NaN where there is none   infinity; NaN where there is none
``propagate``   the largest value, sign kept        infinity; NaN where there is none
``ieee_early``  as ``ieee``, but decided before     infinity; NaN where there is none
                rounding: anything above the
                largest value overflows
==============  ==================================  =====================================================

Formats without infinity and NaN saturate under every policy. Under ``ieee`` a rounding that points towards zero stops at the
largest value (IEEE 754-2019, section 7.4). A NaN made by leaving the range keeps the sign of its source, whatever the NaN policy.

**rounding**: ``nearest_even``, ``nearest_away``, ``toward_zero``, ``up`` (to +infinity), ``down``, ``odd`` (an inexact number
becomes the neighbour whose code is odd), and the three of IEEE P3109 v4.0 that add N random bits R to the discarded fraction nu;
away from zero if

================  ======================================================
``stochastic_a``  ``floor(nu * 2**N) + R >= 2**N``
``stochastic_b``  ``floor(nu * 2**(N + 1)) + 2 * R + 1 >= 2**(N + 1)``
``stochastic_c``  ``round(nu * 2**N) + R >= 2**N``, ties to even
================  ======================================================

**nan**: the code of a NaN source.

================  ===================================================  =====  ======
name              meaning                                              e5m2   e4m3fn
================  ===================================================  =====  ======
``keep_sign``     sign kept, only the quiet bit set                    7E/FE  7F/FF
``all_ones``      sign kept, every mantissa bit set                    7F/FF  7F/FF
``positive``      all ones, the sign dropped                           7F     7F
``payload``       sign and leading payload bits kept, quiet bit set    7E-7F  7F/FF
``max``           not NaN: the largest value, sign kept                7B/FB  7E/FE
``negated_zero``  not NaN: zero of the other sign (formats without NaN only)
================  ===================================================  =====  ======

Formats with a single NaN code use it under the first four. Formats with none give the largest value, its sign dropped
under ``positive``.

**negative**, for formats without a sign, of what is below zero after rounding: ``nan``, ``zero`` (the lowest value),
``magnitude`` (the sign is dropped), or ``range``: the lowest value if overflow clamps and the format has a zero, else NaN; a
rounding that points towards zero stops at zero.

**zero**, for formats without a zero (MX scales): ``smallest`` or ``nan``. **lowest**, for the same: ``value``, or ``zero`` if the
smallest value counts as zero while numbers below the second are rounded, as in code that rounds the exponent field of a float32.

**via**: None, or ``float16``: the source is rounded to float16 (to nearest even) first, as conversions do that exist from float16 only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from fp8np.errors import PolicyError
from fp8np.formats import FORMATS, FloatFormat, Specials

__all__ = [
    "IEEE",
    "NAN",
    "OVERFLOW",
    "PRESETS",
    "ROUNDING",
    "SATURATE",
    "STOCHASTIC",
    "Policy",
    "infinity_magnitude",
    "nan_code",
    "points_inward",
    "resolve",
]

OVERFLOW = ("saturate", "ieee", "propagate", "ieee_early")
STOCHASTIC = ("stochastic_a", "stochastic_b", "stochastic_c")
ROUNDING = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "odd", *STOCHASTIC)
NAN = ("keep_sign", "all_ones", "positive", "payload", "max", "negated_zero")


@dataclass(frozen=True)
class Policy:
    """A complete conversion rule; the module's docstring has the meaning of each name. The default is the saturating conversion of OFP8."""

    overflow: str = "saturate"
    rounding: str = "nearest_even"
    nan: str = "keep_sign"
    negative: str = "range"
    zero: str = "smallest"
    lowest: str = "value"
    via: str | None = None

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            value = getattr(self, name)
            if value not in known:
                raise PolicyError(f"unknown {name} {value!r}{_hint(value, known)}")

    def __str__(self) -> str:
        parts = [str(getattr(self, f.name)) for f in fields(self) if f.name in ("overflow", "rounding", "nan")]
        parts += [f"{f.name}={getattr(self, f.name)}" for f in fields(self)[3:] if getattr(self, f.name) != f.default]
        return ", ".join(parts)


_KNOWN: Mapping[str, tuple[str | None, ...]] = {
    "overflow": OVERFLOW,
    "rounding": ROUNDING,
    "nan": NAN,
    "negative": ("range", "nan", "zero", "magnitude"),
    "zero": ("smallest", "nan"),
    "lowest": ("value", "zero"),
    "via": (None, "float16"),
}

SATURATE = Policy()
IEEE = Policy("ieee")


def _preset(policy: Policy, *formats: str) -> dict[str, Policy]:
    return {f"float8_{name}": policy for name in formats}


_FNUZ = ("e5m2fnuz", "e4m3fnuz")
_OCP = ("e5m2", "e4m3fn")
_TORCH = _preset(Policy("ieee", nan="all_ones"), "e5m2") | _preset(IEEE, *_FNUZ)
_NARROW = [f.name for f in FORMATS.values() if f.specials is Specials.NONE]
_P3109 = [f for f in FORMATS.values() if f.name.startswith("binary8p")]
_EXTENDED = [f.name for f in _P3109 if f.has_inf]
_FINITE = [f.name for f in _P3109 if not f.has_inf]


def _scale(overflow: str, rounding: str, **rest: str) -> dict[str, Policy]:
    return _preset(Policy(overflow, rounding, **({"negative": "magnitude"} | rest)), "e8m0fnu")


PRESETS: Mapping[str, Mapping[str, Policy]] = MappingProxyType(
    {
        "ml_dtypes": _preset(IEEE, *_OCP, *_FNUZ, "e4m3", "e4m3b11fnuz", "e3m4")
        | dict.fromkeys(_NARROW, Policy(nan="negated_zero"))
        | _scale("ieee", "nearest_away", negative="nan", zero="nan", lowest="zero"),
        # The CPU casts of torch saturate e4m3fn, and only that, since 2.12 (pytorch#178817).
        "torch": _TORCH | _preset(SATURATE, "e4m3fn") | _scale("ieee", "nearest_away", lowest="zero"),
        "torch<2.12": _TORCH | _preset(IEEE, "e4m3fn"),
        "cuda_satfinite": _preset(Policy("saturate", nan="positive"), *_OCP) | dict.fromkeys(_NARROW, Policy(nan="positive")),
        "cuda_nosat": _preset(Policy("ieee", nan="positive"), *_OCP),
        "cuda_up_satfinite": _scale("saturate", "up"),
        "cuda_up_nosat": _scale("ieee", "up"),
        "cuda_zero_satfinite": _scale("saturate", "toward_zero"),
        "cuda_zero_nosat": _scale("ieee", "toward_zero"),
        "ocp_sat": _preset(SATURATE, *_OCP),
        "ocp_nonsat": _preset(IEEE, *_OCP),
        # The reference implementation of Cast; Operators.md would have infinity become the largest scale.
        "onnx_sat": _preset(SATURATE, *_OCP, *_FNUZ) | _scale("propagate", "up", lowest="zero"),
        "onnx_nosat": _preset(IEEE, *_OCP, *_FNUZ) | _scale("ieee", "up", lowest="zero"),
        "onnx_down_sat": _scale("propagate", "toward_zero"),
        "onnx_down_nosat": _scale("ieee", "toward_zero"),
        "onnx_nearest_sat": _scale("propagate", "nearest_away", lowest="zero"),
        "onnx_nearest_nosat": _scale("ieee", "nearest_away", lowest="zero"),
        # Numbers of the finite domain clamp in v4.0 of 2026-06-26; drafts since then make them NaN, which is overflow="ieee".
        "p3109_satnone": dict.fromkeys(_EXTENDED, IEEE) | dict.fromkeys(_FINITE, Policy(negative="nan")),
        "p3109_satfinite": dict.fromkeys([*_EXTENDED, *_FINITE], SATURATE),
        "p3109_satpropagate": dict.fromkeys(_EXTENDED, Policy("propagate")) | dict.fromkeys(_FINITE, SATURATE),
        # VCVTPH2HF8 and VCVTPH2BF8, with S, and with BIAS (random_bits of uint8): there is no conversion from float32.
        "avx10": _preset(Policy("ieee", nan="payload", via="float16"), *_OCP),
        "avx10_sat": _preset(Policy("saturate", nan="payload", via="float16"), *_OCP),
        "avx10_bias": _preset(Policy("ieee", "stochastic_a", "payload", via="float16"), *_OCP),
        "avx10_bias_sat": _preset(Policy("saturate", "stochastic_a", "payload", via="float16"), *_OCP),
        # HIP's software casts (amd_hip_fp8.h of 2024-10): clipped, a NaN of the fnuz formats is the largest value.
        "amd_sat": _preset(SATURATE, *_OCP) | _preset(Policy(nan="max"), *_FNUZ),
        "amd_nosat": _preset(Policy("ieee_early"), *_OCP, *_FNUZ),
    }
)
"""What others do: preset -> canonical format name -> policy. A vendor's row holds the formats that the vendor defines."""


def resolve(
    fmt: FloatFormat,
    *,
    overflow: str | None = None,
    rounding: str | None = None,
    nan: str | None = None,
    preset: str | None = None,
) -> Policy:
    """The policy meant by these arguments; None stands for the preset's choice, or the default.

    Raises:
        PolicyError: a name is unknown, the preset has no such format, or an argument contradicts the preset.

    >>> from fp8np.formats import get_format
    >>> resolve(get_format("e5m2"), preset="torch").nan
    'all_ones'
    """
    given = {name: value for name, value in (("overflow", overflow), ("rounding", rounding), ("nan", nan)) if value is not None}
    wanted = Policy(**given) if given else SATURATE
    if wanted.nan == "negated_zero" and fmt.nan_codes:
        raise PolicyError(f"nan='negated_zero' is for formats without NaN, and {fmt} has one")
    if preset is None:
        return wanted
    if not isinstance(preset, str) or preset not in PRESETS:
        raise PolicyError(f"unknown preset {preset!r}{_hint(preset, tuple(PRESETS))}")
    rows = PRESETS[preset]
    if fmt.name not in rows:
        others = [name for name in PRESETS if fmt.name in PRESETS[name]]
        known = f"; for {fmt} there are {', '.join(others)}" if others else ""
        raise PolicyError(
            f"preset {preset!r} does not define {fmt}; it defines {', '.join(rows)}{known}. Or name overflow, rounding and nan instead"
        )
    policy = rows[fmt.name]
    for name in given:
        if given[name] != getattr(policy, name):
            raise PolicyError(
                f"preset {preset!r} means {name}={getattr(policy, name)!r} for {fmt}, "
                f"but {name}={given[name]!r} was given too: leave one out"
            )
    return policy


def points_inward(rounding: str, negative: bool) -> bool:
    """Whether a rounding never goes beyond the range: toward zero, down for positive numbers, up for negative ones.

    >>> points_inward("down", negative=False), points_inward("down", negative=True)
    (True, False)
    """
    return rounding in ("toward_zero", "up" if negative else "down")


def nan_code(fmt: FloatFormat, nan: str, negative: bool) -> int:
    """The code of a NaN source under the NaN policy; for ``payload``, of a NaN whose payload has no leading ones.

    >>> from fp8np.formats import get_format
    >>> [f"{nan_code(get_format('e3m4'), nan, negative=True):02X}" for nan in NAN[:3]]
    ['F8', 'FF', '7F']
    """
    sign = fmt.sign_bit if negative else 0
    if nan == "negated_zero":
        return fmt.sign_bit ^ sign
    if nan == "max" or not fmt.nan_codes:
        return fmt.max_magnitude | (0 if nan == "positive" else sign)
    if len(fmt.nan_codes) == 1:
        return next(iter(fmt.nan_codes))
    magnitude = fmt.magnitude_mask
    if fmt.inf_magnitude is not None and nan in ("keep_sign", "payload"):
        magnitude = fmt.inf_magnitude | 1 << (fmt.mantissa_bits - 1)
    return magnitude | (0 if nan == "positive" else sign)


def infinity_magnitude(fmt: FloatFormat) -> int:
    """The magnitude that ``ieee`` overflow gives: infinity; NaN where there is none; the largest where there is neither.

    The sign bit is or-ed to it.

    >>> from fp8np.formats import get_format
    >>> [f"{infinity_magnitude(get_format(f)):02X}" for f in ("e5m2", "e4m3fn", "e4m3fnuz", "e8m0fnu", "e2m1fn")]
    ['7C', '7F', '80', 'FF', '07']
    """
    return nan_code(fmt, "keep_sign", negative=False) if fmt.inf_magnitude is None else fmt.inf_magnitude


def _hint(value: object, known: tuple[str | None, ...]) -> str:
    names = [name for name in known if name is not None]
    close = difflib.get_close_matches(str(value), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(map(repr, names))}"
