"""What a conversion to FP8 does with numbers that have no code: overflow, rounding and NaN policies, and vendors' presets.

**overflow**, decided after rounding with an unbounded exponent:

=============  ==================================  =====================================================
name           finite value beyond the largest     infinity
=============  ==================================  =====================================================
``saturate``   the largest value, sign kept        the largest value, sign kept
``ieee``       infinity; NaN where there is none   infinity; NaN where there is none
``propagate``  the largest value, sign kept        infinity; NaN where there is none
=============  ==================================  =====================================================

Under ``ieee`` a rounding that points towards zero stops at the largest value (IEEE 754-2019, section 7.4). A NaN made by
overflow keeps the sign of its source, whatever the NaN policy.

**rounding**: ``nearest_even``, ``nearest_away``, ``toward_zero``, ``up`` (to +infinity), ``down``, and ``stochastic`` (IEEE P3109 v4.0
StochasticA: with N random bits R and discarded fraction nu, away from zero if ``floor(nu * 2**N) + R >= 2**N``).

**nan**: the code of a NaN source.

=============  =====================================  ====  ==========
name           meaning                                e5m2  e4m3fn
=============  =====================================  ====  ==========
``keep_sign``  sign kept, only the quiet bit set      7E/FE  7F/FF
``all_ones``   sign kept, every mantissa bit set      7F/FF  7F/FF
``positive``   all ones, the sign dropped             7F     7F
=============  =====================================  ====  ==========

Formats with a single NaN code use it under every policy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from fp8np.errors import PolicyError
from fp8np.formats import FloatFormat, Specials

__all__ = ["IEEE", "NAN", "OVERFLOW", "PRESETS", "ROUNDING", "SATURATE", "Policy", "infinity_magnitude", "nan_code", "resolve"]

OVERFLOW = ("saturate", "ieee", "propagate")
ROUNDING = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "stochastic")
NAN = ("keep_sign", "all_ones", "positive")


@dataclass(frozen=True)
class Policy:
    """A complete conversion rule. The default is the saturating conversion of OFP8."""

    overflow: str = "saturate"
    rounding: str = "nearest_even"
    nan: str = "keep_sign"

    def __post_init__(self) -> None:
        for name, known in (("overflow", OVERFLOW), ("rounding", ROUNDING), ("nan", NAN)):
            value = getattr(self, name)
            if value not in known:
                raise PolicyError(f"unknown {name} {value!r}{_hint(value, known)}")


SATURATE = Policy()
IEEE = Policy("ieee")


def _preset(policy: Policy, *formats: str) -> dict[str, Policy]:
    return {f"float8_{name}": policy for name in formats}


_FNUZ = ("e5m2fnuz", "e4m3fnuz")
_OCP = ("e5m2", "e4m3fn")
_TORCH = _preset(Policy("ieee", nan="all_ones"), "e5m2") | _preset(IEEE, *_FNUZ)

PRESETS: Mapping[str, Mapping[str, Policy]] = MappingProxyType(
    {
        "ml_dtypes": _preset(IEEE, *_OCP, *_FNUZ, "e4m3", "e4m3b11fnuz", "e3m4"),
        # The CPU casts of torch saturate e4m3fn, and only that, since 2.12 (pytorch#178817).
        "torch": _TORCH | _preset(SATURATE, "e4m3fn"),
        "torch<2.12": _TORCH | _preset(IEEE, "e4m3fn"),
        "cuda_satfinite": _preset(Policy("saturate", nan="positive"), *_OCP),
        "cuda_nosat": _preset(Policy("ieee", nan="positive"), *_OCP),
        "ocp_sat": _preset(SATURATE, *_OCP),
        "ocp_nonsat": _preset(IEEE, *_OCP),
        "onnx_sat": _preset(SATURATE, *_OCP, *_FNUZ),
        "onnx_nosat": _preset(IEEE, *_OCP, *_FNUZ),
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
    >>> resolve(get_format("e5m2"), preset="torch")
    Policy(overflow='ieee', rounding='nearest_even', nan='all_ones')
    """
    given = {name: value for name, value in (("overflow", overflow), ("rounding", rounding), ("nan", nan)) if value is not None}
    wanted = Policy(**given) if given else SATURATE
    if preset is None:
        return wanted
    if not isinstance(preset, str) or preset not in PRESETS:
        raise PolicyError(f"unknown preset {preset!r}{_hint(preset, tuple(PRESETS))}")
    rows = PRESETS[preset]
    if fmt.name not in rows:
        raise PolicyError(f"preset {preset!r} does not define {fmt}; it defines {', '.join(rows)}. Name overflow, rounding and nan instead")
    policy = rows[fmt.name]
    for field in fields(Policy):
        if field.name in given and given[field.name] != getattr(policy, field.name):
            raise PolicyError(
                f"preset {preset!r} means {field.name}={getattr(policy, field.name)!r} for {fmt}, "
                f"but {field.name}={given[field.name]!r} was given too: leave one out"
            )
    return policy


def nan_code(fmt: FloatFormat, nan: str, negative: bool) -> int:
    """The code of a NaN source under the NaN policy.

    >>> from fp8np.formats import get_format
    >>> [f"{nan_code(get_format('e3m4'), nan, negative=True):02X}" for nan in NAN]
    ['F8', 'FF', '7F']
    """
    if fmt.specials is Specials.NAN_AT_NEGATIVE_ZERO:
        return 0x80
    magnitude = fmt.magnitude_mask
    if fmt.inf_magnitude is not None and nan == "keep_sign":
        magnitude = fmt.inf_magnitude | 1 << (fmt.mantissa_bits - 1)
    return magnitude | (fmt.sign_bit if negative and nan != "positive" else 0)


def infinity_magnitude(fmt: FloatFormat) -> int:
    """The magnitude that ``ieee`` overflow gives: infinity, or NaN where there is none. The sign bit is or-ed to it.

    >>> from fp8np.formats import get_format
    >>> [f"{infinity_magnitude(get_format(f)):02X}" for f in ("e5m2", "e4m3fn", "e4m3fnuz", "e8m0fnu")]
    ['7C', '7F', '80', 'FF']
    """
    return nan_code(fmt, "keep_sign", negative=False) if fmt.inf_magnitude is None else fmt.inf_magnitude


def _hint(value: object, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(value), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(map(repr, known))}"
