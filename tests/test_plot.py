"""Pictures are drawn from the values of formats: what is on the axes is checked, not how it looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

import fp8np
from fp8np import plot
from fp8np.errors import DTypeError, FormatError, MissingDependencyError, ScaleError
from fp8np.explain import finite_values
from fp8np.formats import FORMATS, get_format

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    matplotlib.pyplot.close("all")


def marks(axes: object) -> list[float]:
    return sorted(path.vertices[0][0] for collection in axes.collections for path in collection.get_paths() if len(path.vertices) == 2)  # type: ignore[attr-defined]


def test_value_grid_has_a_mark_for_each_positive_value() -> None:
    axes = plot.value_grid(["e4m3fn", "e2m1fn"])
    expected = sorted(float(v) for name in ("e4m3fn", "e2m1fn") for v, _ in finite_values(get_format(name)) if v > 0)
    assert marks(axes) == expected
    assert [label.get_text() for label in axes.get_yticklabels()] == ["float8_e4m3fn", "float4_e2m1fn"]
    low, high = axes.get_xlim()
    assert low < expected[0] < expected[-1] < high


def test_error_curve_has_the_known_tops() -> None:
    axes = plot.error_curve("e4m3fn")
    (line,) = axes.lines
    x, error = line.get_data()
    inside = (x >= 2.0**-6) & (x <= 448)
    assert error[inside].max() == pytest.approx(1 / 17)  # half a step of 1/8 above 1: 0.0625 of 1.0625
    assert error[x < 2.0**-10].tolist() == [1.0]


def test_histogram_counts_everything() -> None:
    x = np.random.default_rng(0).standard_normal(5000)
    x[:10] = 0
    axes = plot.histogram(x, "e4m3fn")
    (stairs,) = [patch for patch in axes.patches if hasattr(patch, "get_data")]
    shares, edges, _ = stairs.get_data()
    assert shares.sum() == pytest.approx(4990 / 5000)
    assert edges[-1] >= np.abs(x).max()
    assert "clamped: 0 %" in axes.get_title(loc="left")
    narrow = plot.histogram(x, "e2m1fn", scale=0.01).get_title(loc="left")
    share = 100 * np.mean(np.abs(x) > 0.07)
    assert f"clamped: {share:.2g} %" in narrow


def test_histogram_of_a_quantized_tensor() -> None:
    q = fp8np.quantize(np.linspace(-3, 3, 101), "e4m3fn")
    assert "float8_e4m3fn" in plot.histogram(q).get_xlabel()
    per_channel = fp8np.quantize(np.arange(1.0, 7.0).reshape(2, 3), "e4m3fn", axis=0)
    assert plot.histogram(per_channel).get_xlabel().endswith("float8_e4m3fn")


def test_an_axes_may_be_given() -> None:
    first, second, third = matplotlib.pyplot.subplots(3)[1]
    assert plot.value_grid("e5m2", ax=first) is first
    assert plot.error_curve("e5m2", ax=second) is second
    assert plot.histogram([1.0, 2.0], "e5m2", ax=third) is third


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].mantissa_bits in (0, 7) or FORMATS[name].bits < 8])
def test_extreme_formats_can_be_drawn(name: str) -> None:
    for axes in (plot.value_grid(name), plot.error_curve(name), plot.histogram([0.5, 1.0, 3.0], name)):
        axes.figure.canvas.draw()


def test_wrong_calls() -> None:
    with pytest.raises(FormatError, match="at least one"):
        plot.value_grid([])
    with pytest.raises(FormatError, match="format is needed"):
        plot.histogram([1.0])
    with pytest.raises(DTypeError, match="got none"):
        plot.histogram([0.0, np.nan], "e4m3fn")
    with pytest.raises(ScaleError, match="finite positive"):
        plot.histogram([1.0], "e4m3fn", scale=-1.0)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingDependencyError, match=r"fp8np\[plot\]"):
        plot.value_grid("e4m3fn")
