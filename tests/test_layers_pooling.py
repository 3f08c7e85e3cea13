"""Pooling, padding, interpolation and sliding windows against PyTorch, over every small geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from _layers import check_op
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8np.dims import symbol
from fp8np.errors import DTypeError, Fp8npError, GraphError, ShapeError
from fp8np.layers._op import OPS, Spec

torch = pytest.importorskip("torch")
F = torch.nn.functional

B, H, W = symbol("B"), symbol("H"), symbol("W")


def x(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape)


def torch_gives(torch_fn: Any) -> bool:
    try:
        torch_fn()
    except RuntimeError:
        return False
    return True


geometry = st.tuples(*(st.tuples(*[st.integers(low, high)] * 2) for low, high in ((1, 9), (1, 4), (1, 4), (0, 2), (1, 2))))


@settings(max_examples=60, deadline=None)
@given(geometry, st.booleans())
def test_max_pool2d(geometry: Any, ceil_mode: bool) -> None:
    sizes, kernel, stride, padding, dilation = geometry
    attrs = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    data = x(2, 3, *sizes)
    if torch_gives(lambda: F.max_pool2d(torch.from_numpy(data), **attrs)):
        check_op("max_pool2d", (data,), attrs, lambda t: F.max_pool2d(t, **attrs), symbolic={0: {0: "B", 1: "C"}}, rtol32=1e-6)
    elif dilation == (1, 1):
        # A dilated window may have more padding than PyTorch lets it.
        with pytest.raises(ShapeError, match=r"^max_pool2d: expected"):
            OPS["max_pool2d"].shape(Spec(data.shape), **attrs)


@settings(max_examples=60, deadline=None)
@given(geometry, st.booleans(), st.booleans(), st.sampled_from([None, 3, -2]))
def test_avg_pool2d(geometry: Any, ceil_mode: bool, count_include_pad: bool, divisor: int | None) -> None:
    sizes, kernel, stride, padding, _ = geometry
    attrs = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    attrs |= {"count_include_pad": count_include_pad, "divisor_override": divisor}
    data = x(2, 3, *sizes)
    if torch_gives(lambda: F.avg_pool2d(torch.from_numpy(data), **attrs)):
        check_op("avg_pool2d", (data,), attrs, lambda t: F.avg_pool2d(t, **attrs), symbolic={0: {0: "B", 1: "C"}}, rtol32=1e-6)
    else:
        with pytest.raises(ShapeError, match=r"^avg_pool2d: expected"):
            OPS["avg_pool2d"].shape(Spec(data.shape), **attrs)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_pooling_in_other_ranks(n: int, batch: tuple[int, ...]) -> None:
    data = x(*batch, 3, *(7, 6, 5)[:n])
    symbolic = {0: dict.fromkeys(range(len(batch)), "B")} if batch else None
    for attrs in ({"kernel_size": 3}, {"kernel_size": (2,), "stride": (), "padding": 1, "ceil_mode": True}):
        for kind in ("max", "avg"):
            torch_fn = getattr(F, f"{kind}_pool{n}d")
            check_op(f"{kind}_pool{n}d", (data,), attrs, lambda t: torch_fn(t, **{**attrs, "stride": None}), symbolic=symbolic, rtol32=1e-6)  # noqa: B023
    for size in (1, 3, (4,) * n, (None, *(2,) * (n - 1)), 9):
        torch_fn = getattr(F, f"adaptive_avg_pool{n}d")
        ours = size if n > 1 or size != (None,) else 7
        check_op(f"adaptive_avg_pool{n}d", (data,), {"output_size": ours}, lambda t: torch_fn(t, ours), symbolic=symbolic, rtol32=1e-6)  # noqa: B023
        torch_max = getattr(F, f"adaptive_max_pool{n}d_with_indices")
        check_op(f"adaptive_max_pool{n}d", (data,), {"output_size": ours}, lambda t: torch_max(t, ours), symbolic=symbolic, rtol32=1e-6)  # noqa: B023


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 14))
def test_adaptive_windows(size: int, out: int) -> None:
    data = np.arange(size, dtype=np.float64).reshape(1, 1, size)
    check_op("adaptive_avg_pool1d", (data,), {"output_size": out}, lambda t: F.adaptive_avg_pool1d(t, out), symbolic={0: {0: "B"}})


def test_pooling_of_nan_and_infinity() -> None:
    data = np.array([[[1.0, np.nan, 2.0, np.inf, -np.inf, -np.inf, -np.inf, 3.0]]])
    check_op("max_pool1d", (data,), {"kernel_size": 2}, lambda t: F.max_pool1d(t, 2))
    check_op("avg_pool1d", (data,), {"kernel_size": 2, "stride": 1}, lambda t: F.avg_pool1d(t, 2, 1))
    check_op("adaptive_avg_pool1d", (data,), {"output_size": 3}, lambda t: F.adaptive_avg_pool1d(t, 3))
    check_op("adaptive_max_pool1d", (data,), {"output_size": 4}, lambda t: F.adaptive_max_pool1d_with_indices(t, 4))


def rule(name: str, *specs: Spec, **attrs: Any) -> Any:
    result = OPS[name].shape(*specs, **OPS[name].filled(attrs))
    return result[0].shape if isinstance(result, tuple) else result.shape


PICTURE, FIXED = Spec((B, 3, H, W)), Spec((2, 3, 8, 8))


def test_symbolic_pictures() -> None:
    assert rule("max_pool2d", PICTURE, kernel_size=3, stride=2, padding=1) == (B, 3, (H - 1) // 2 + 1, (W - 1) // 2 + 1)
    assert rule("max_pool2d", PICTURE, kernel_size=2) == (B, 3, (H - 2) // 2 + 1, (W - 2) // 2 + 1)
    assert rule("max_pool2d", PICTURE, kernel_size=3, stride=2, ceil_mode=True) == (B, 3, (H - 2) // 2 + 1, (W - 2) // 2 + 1)
    assert rule("avg_pool2d", Spec((B, 3, H * 4, 8)), kernel_size=4) == (B, 3, (H * 4 - 4) // 4 + 1, 2)
    assert rule("adaptive_avg_pool2d", PICTURE, output_size=(1, 1)) == (B, 3, 1, 1)
    assert rule("adaptive_avg_pool2d", PICTURE, output_size=(None, 2)) == (B, 3, H, 2)
    assert rule("pad", PICTURE, pad=(1, 2, 3, 4), mode="reflect") == (B, 3, H + 7, W + 3)
    assert rule("pad", Spec((B, 7)), pad=(0, H)) == (B, H + 7)
    assert rule("interpolate", PICTURE, scale_factor=2.0) == (B, 3, H * 2, W * 2)
    assert rule("interpolate", PICTURE, scale_factor=(0.5, 1.5), mode="linear") == (B, 3, H // 2, W * 3 // 2)
    assert rule("interpolate", PICTURE, size=(W, 7)) == (B, 3, W, 7)
    assert rule("im2col", PICTURE, kernel_size=3, padding=1) == (B, 27, H * W)
    assert rule("col2im", Spec((B, 27, 64)), output_size=8, kernel_size=3, padding=1) == (B, 3, 8, 8)
    assert rule("pixel_shuffle", Spec((B, 12, H, W)), upscale_factor=2) == (B, 3, H * 2, W * 2)
    assert rule("pixel_unshuffle", Spec((B, 3, H * 2, 8)), downscale_factor=2) == (B, 12, H, 4)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.lists(st.integers(-2, 3), min_size=4, max_size=4))
def test_pad(mode: str, sizes: tuple[int, int], pads: list[int]) -> None:
    data = x(2, 3, *sizes)
    # Other modes that also cut are PyTorch's alone; where circular padding does, it returns memory that was never written.
    attrs = {"pad": tuple(pads if mode == "constant" else map(abs, pads)), "mode": mode}
    cut = sum(n for n in pads[:2] if n < 0) < -sizes[1] or sum(n for n in pads[2:] if n < 0) < -sizes[0]
    if torch_gives(lambda: F.pad(torch.from_numpy(data), **attrs)) and not (mode == "constant" and cut):
        check_op("pad", (data,), attrs, lambda t: F.pad(t, **attrs), symbolic={0: {0: "B", 2: "H", 3: "W"}}, rtol32=1e-6)
    else:
        with pytest.raises(ShapeError, match=r"^pad: expected"):
            OPS["pad"].shape(Spec(data.shape), **OPS["pad"].filled(attrs))


def test_pad_with_a_value_and_of_other_types() -> None:
    check_op("pad", (x(2, 3),), {"pad": (1, 0, 0, 2), "value": -np.inf}, lambda t: F.pad(t, (1, 0, 0, 2), value=-np.inf))
    check_op("pad", (x(2, 3),), {"pad": ()}, lambda t: t)
    check_op("pad", (np.ones((2, 3), np.int64),), {"pad": (1, -2), "value": 5.0}, lambda t: F.pad(t, (1, -2), value=5))
    check_op("pad", (np.ones((2, 3), bool),), {"pad": (1, 1)}, lambda t: F.pad(t, (1, 1), value=False))
    check_op("pad", (x(0, 3),), {"pad": (1, 1)}, lambda t: F.pad(t, (1, 1)))


MODES = [
    ("nearest", {"mode": "nearest"}, (1, 2, 3)),
    ("nearest-exact", {"mode": "nearest-exact"}, (1, 2, 3)),
    ("linear", {"align_corners": False}, (1, 2, 3)),
    ("linear", {"align_corners": True}, (1, 2, 3)),
    ("cubic", {"align_corners": False}, (2,)),
    ("cubic", {"align_corners": True}, (2,)),
]
NAMES = {"linear": (None, "linear", "bilinear", "trilinear"), "cubic": (None, None, "bicubic", None)}


@pytest.mark.parametrize(("mode", "torch_attrs", "ranks"), MODES, ids=str)
def test_interpolate(mode: str, torch_attrs: dict[str, Any], ranks: tuple[int, ...]) -> None:
    for n in ranks:
        options = {**torch_attrs, "mode": NAMES[mode][n]} if mode in NAMES else torch_attrs
        attrs = {"mode": mode, "align_corners": options.get("align_corners", False)}
        data = x(2, 3, *(7, 5, 4)[:n])
        for size in (1, 4, 7, 10, 14, (3, 8, 5)[:n]):
            check_op("interpolate", (data,), {**attrs, "size": size}, lambda t: F.interpolate(t, size, **options), rtol32=1e-5)  # noqa: B023
        for factor in (2.0, 0.5, 1.5, 3.0, 0.7, 2.3, (2.0, 0.5, 1.3)[:n]):
            asked = {**attrs, "scale_factor": factor}
            symbolic = {0: {0: "B", 2: "H"}} if factor in (2.0, 0.5, 1.5, 3.0) else None
            check_op("interpolate", (data,), asked, lambda t: F.interpolate(t, None, factor, **options), symbolic=symbolic, rtol32=1e-5)  # noqa: B023


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_nearest_picks_the_same_elements(size: int, out: int) -> None:
    data = np.arange(size, dtype=np.float64).reshape(1, 1, 1, size)
    for mode in ("nearest", "nearest-exact"):
        check_op("interpolate", (data,), {"size": (1, out), "mode": mode}, lambda t: F.interpolate(t, (1, out), mode=mode))  # noqa: B023
        if size * (factor := out / 16) >= 1:
            attrs = {"scale_factor": (1.0, factor), "mode": mode}
            check_op("interpolate", (data,), attrs, lambda t: F.interpolate(t, None, (1.0, factor), mode=mode))  # noqa: B023


windows = st.tuples(*(st.tuples(*[st.integers(low, high)] * 2) for low, high in ((2, 7), (1, 3), (1, 2), (0, 2), (1, 3))))


@settings(max_examples=60, deadline=None)
@given(windows, st.sampled_from([(), (2,)]))
def test_im2col_and_col2im(geometry: Any, batch: tuple[int, ...]) -> None:
    sizes, kernel, dilation, padding, stride = geometry
    attrs = {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride}
    data = x(*batch, 3, *sizes)
    if not torch_gives(lambda: F.unfold(torch.from_numpy(data), **attrs)):
        with pytest.raises(ShapeError, match=r"^im2col: expected"):
            OPS["im2col"].shape(Spec(data.shape), **attrs)
        return
    check_op("im2col", (data,), attrs, lambda t: F.unfold(t, **attrs), symbolic={0: {0: "B"}}, rtol32=1e-6)
    columns = F.unfold(torch.from_numpy(data), **attrs).numpy()
    check_op("col2im", (columns,), {"output_size": sizes, **attrs}, lambda t: F.fold(t, sizes, **attrs), rtol32=1e-5)


def test_pixels() -> None:
    for shape in ((2, 12, 3, 5), (12, 2, 2), (1, 2, 12, 0, 3)):
        check_op(
            "pixel_shuffle",
            (x(*shape),),
            {"upscale_factor": 2},
            lambda t: F.pixel_shuffle(t, 2),
            symbolic={0: {0: "B"}} if len(shape) > 3 else None,
        )
    for shape in ((2, 3, 6, 4), (3, 2, 2), (1, 2, 3, 2, 4)):
        check_op("pixel_unshuffle", (x(*shape),), {"downscale_factor": 2}, lambda t: F.pixel_unshuffle(t, 2), symbolic={0: {0: "B"}})


REFUSED: list[tuple[str, Spec, dict[str, Any], type[Fp8npError]]] = [
    ("max_pool2d", Spec((8, 8)), {"kernel_size": 2}, ShapeError),
    ("max_pool2d", FIXED, {"kernel_size": 9}, ShapeError),
    ("max_pool2d", FIXED, {"kernel_size": 2, "padding": 2}, ShapeError),
    ("max_pool2d", FIXED, {"kernel_size": (2, 2, 2)}, ShapeError),
    ("max_pool2d", FIXED, {"kernel_size": 2, "stride": 0}, ShapeError),
    ("max_pool2d", PICTURE, {"kernel_size": 1, "stride": 3, "ceil_mode": True}, ShapeError),
    ("max_pool2d", Spec((2, 3, 8, 8), "int64"), {"kernel_size": 2}, DTypeError),
    ("avg_pool2d", FIXED, {"kernel_size": 2, "divisor_override": 0}, ShapeError),
    ("avg_pool2d", Spec((2, 3, 8, 8), "float8_e4m3fn"), {"kernel_size": 2}, DTypeError),
    ("adaptive_avg_pool2d", FIXED, {"output_size": -1}, ShapeError),
    ("adaptive_avg_pool2d", Spec((2, 3, 0, 8)), {"output_size": 1}, ShapeError),
    ("adaptive_max_pool2d", Spec((2, 3, 8, 8), "bool"), {"output_size": 1}, DTypeError),
    ("pad", FIXED, {"pad": (1,)}, ShapeError),
    ("pad", FIXED, {"pad": (0, 0) * 5}, ShapeError),
    ("pad", FIXED, {"pad": (-5, -4)}, ShapeError),
    ("pad", FIXED, {"pad": (8, 0), "mode": "reflect"}, ShapeError),
    ("pad", FIXED, {"pad": (2, -1), "mode": "replicate"}, ShapeError),
    ("pad", FIXED, {"pad": (9, 0), "mode": "circular"}, ShapeError),
    ("pad", Spec((2, 0)), {"pad": (1, 0), "mode": "replicate"}, ShapeError),
    ("pad", FIXED, {"pad": (1, 1), "mode": "mirror"}, GraphError),
    ("pad", Spec((2, 3), "float8_e5m2"), {"pad": (1, 1)}, DTypeError),
    ("interpolate", FIXED, {}, ShapeError),
    ("interpolate", FIXED, {"size": 2, "scale_factor": 2.0}, ShapeError),
    ("interpolate", Spec((2, 3)), {"size": 2}, ShapeError),
    ("interpolate", FIXED, {"size": (2, 2, 2)}, ShapeError),
    ("interpolate", FIXED, {"scale_factor": 0.01}, ShapeError),
    ("interpolate", PICTURE, {"scale_factor": 0.7}, ShapeError),
    ("interpolate", FIXED, {"size": 2, "mode": "area"}, GraphError),
    ("interpolate", Spec((2, 3, 8), "int64"), {"size": 2}, DTypeError),
    ("im2col", FIXED, {"kernel_size": 9}, ShapeError),
    ("im2col", Spec((2, 3, 8, 8), "float8_e5m2"), {"kernel_size": 1}, DTypeError),
    ("col2im", Spec((2, 12, 8)), {"output_size": 4, "kernel_size": 2}, ShapeError),
    ("col2im", Spec((2, 11, 9)), {"output_size": 4, "kernel_size": 2}, ShapeError),
    ("col2im", Spec((12,)), {"output_size": 4, "kernel_size": 2}, ShapeError),
    ("pixel_shuffle", FIXED, {"upscale_factor": 2}, ShapeError),
    ("pixel_unshuffle", FIXED, {"downscale_factor": 3}, ShapeError),
    ("pixel_unshuffle", PICTURE, {"downscale_factor": 2}, ShapeError),
]


@pytest.mark.parametrize(("name", "spec", "attrs", "error"), REFUSED, ids=str)
def test_wrong_arguments_are_refused_by_name(name: str, spec: Spec, attrs: dict[str, Any], error: type[Fp8npError]) -> None:
    with pytest.raises(error, match=f"^{name}: ") as caught:
        rule(name, spec, **attrs)
    assert type(caught.value) is error
