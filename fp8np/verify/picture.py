r"""The error picture of a format: relative error against input, both on log2 axes, computed exactly and drawn as SVG text.

Between two neighbouring values a < b of a format, rounding to nearest errs most in the middle, by (b - a) / (b + a) of the input,
and not at all at the values, where a log axis has no bottom::

    error ^     _____      _____
          |    /     \    /     \
          |   |       |  |       |
          +---a-------b----------c---> input
"""

from __future__ import annotations

import html
import math
from fractions import Fraction
from itertools import pairwise

from fp8np.explain import finite_values
from fp8np.formats import FloatFormat

__all__ = ["error_profile", "error_svg", "log2"]

# Errors below this are drawn at it: a value's own error is 0, which no log axis has.
_FLOOR = -10.0
# Where a tooth is drawn, in parts of the way from a value to the middle: enough for its round shape, few enough for a small page.
_STEPS = (Fraction(1, 16), Fraction(1, 4), Fraction(1))
_WIDTH, _HEIGHT = 640, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 24, 32


def log2(x: Fraction) -> float:
    """log2 of a positive fraction, also of one beyond float64.

    >>> log2(Fraction(1, 8)), log2(Fraction(2) ** 2000)
    (-3.0, 2000.0)
    """
    n, d = x.as_integer_ratio()
    return math.log2(n) - math.log2(d)


def error_profile(fmt: FloatFormat, beyond: int = 2) -> list[tuple[Fraction, Fraction]]:
    """Points of the error curve: positive inputs, ascending, and the relative error of each under saturating round to nearest even.

    Args:
        fmt: the format.
        beyond: how many binades to go on above the largest value and below the smallest.

    >>> from fp8np.formats import get_format
    >>> [(str(x), str(e)) for x, e in error_profile(get_format("e2m1fn"))[-6:]]
    [('95/16', '1/95'), ('6', '0'), ('51/8', '1/17'), ('15/2', '1/5'), ('12', '1/2'), ('24', '3/4')]
    """
    values = [value for value, _ in finite_values(fmt) if value > 0]
    smallest, largest = values[0], values[-1]
    if fmt.has_zero:
        # Up to the middle between zero and the smallest value all is lost.
        half = smallest / 2
        points = [(half / 2**beyond, Fraction(1)), (half, Fraction(1))]
        points += [(x, (smallest - x) / x) for x in (smallest - half * step for step in reversed(_STEPS[:-1]))]
    else:
        points = [(smallest / 2**i, Fraction(2**i - 1)) for i in range(beyond, 0, -1)]
    points.append((smallest, Fraction(0)))
    for below, above in pairwise(values):
        half = (above - below) / 2
        inputs = [below + half * step for step in _STEPS] + [above - half * step for step in reversed(_STEPS[:-1])]
        points += [(x, min(x - below, above - x) / x) for x in inputs]
        points.append((above, Fraction(0)))
    inputs = [largest * (1 + step) for step in _STEPS] + [largest * 2**i for i in range(2, beyond + 1)]
    return points + [(x, (x - largest) / x) for x in inputs]


def error_svg(fmt: FloatFormat) -> str:
    """The picture as an SVG element, to be put into a page. Colours are those of the page's ``currentColor`` and ``--accent``."""
    points = error_profile(fmt)
    x_low, x_high = log2(points[0][0]), log2(points[-1][0])
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_at(exponent: float) -> float:
        return _LEFT + (exponent - x_low) / (x_high - x_low) * width

    def y_at(exponent: float) -> float:
        return _TOP + min(max(exponent, _FLOOR), 0.0) / _FLOOR * height

    corners = [(x_at(log2(x)), y_at(log2(e) if e else _FLOOR)) for x, e in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    base = y_at(_FLOOR)
    name = html.escape(fmt.name)
    parts = [
        f'<svg class="errors" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="relative error of {name} against input">',
        f'<text x="{_LEFT}" y="14" class="title">{name}</text>',
    ]
    for title, low, high in _regions(fmt):
        left, right = max(x_at(low), _LEFT), min(x_at(high), _WIDTH - _RIGHT)
        box = f'x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{height}"'
        parts.append(f'<rect {box} class="region"><title>{title}</title></rect>')
    for exponent in range(int(_FLOOR), 1, 2):
        y = y_at(exponent)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        label = "1" if exponent == 0 else f'2<tspan dy="-4" class="power">{exponent}</tspan>'
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{label}</text>')
    for exponent in _ticks(x_low, x_high):
        x = x_at(exponent)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base:.1f}" y2="{base + 4:.1f}" class="tick"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 17:.1f}" text-anchor="middle">2<tspan dy="-4" class="power">{exponent}</tspan></text>')
    parts.append(f'<polygon points="{corners[0][0]:.1f},{base:.1f} {line} {corners[-1][0]:.1f},{base:.1f}" class="curve"/></svg>')
    return "\n".join(parts)


def _regions(fmt: FloatFormat) -> list[tuple[str, float, float]]:
    # Where the format is not normal, to be shaded: (title, from, to) in log2 of the input.
    beyond = ("beyond the largest value", math.log2(fmt.max), math.inf)
    if not fmt.has_zero:
        return [("below the smallest value", -math.inf, float(fmt.min_exponent)), beyond]
    tiny, normal = float(fmt.quantum_exponent), float(fmt.min_exponent)
    return [("smaller than half the smallest value: zero", -math.inf, tiny - 1), ("subnormal", tiny - 1, normal), beyond]


def _ticks(low: float, high: float) -> range:
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if (high - low) / step <= 14)
    return range(math.ceil(low / step) * step, math.floor(high) + 1, step)
