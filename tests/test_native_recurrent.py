"""Native LSTM and GRU against the cells of their layers in float64, step by step, within bounds that are derived."""

from __future__ import annotations

import os

import numpy as np
import pytest
from _native import EPS, check_threads, check_tier, floats, run, sizes

from fp8np.codec import decode, encode
from fp8np.formats import get_format
from fp8np.kernels import recurrent as module
from fp8np.kernels._grid import round_words
from fp8np.kernels._jit import compiled
from fp8np.kernels.recurrent import Side, Steps, gru_task, lstm_task, pack_gates, state_scale_task
from fp8np.layers.gru import _cell as gru_cell
from fp8np.layers.lstm import _cell as lstm_cell
from fp8np.scaling import quantize, scale_for

GATES = {"lstm": 4, "gru": 3}
E4M3 = "float8_e4m3fn"
# T, B, H
SHAPES = [(1, 1, 1), (3, 2, 5), (0, 2, 8), (2, 0, 8), (4, 3, 37), (3, 17, 48), (2, 70, 33), (30, 1, 256), (3, 33, 100)]


def at(x):
    """Rows (B, H), or with steps (T, B, H), H dense."""
    return Steps(x, x.strides[-2], x.strides[0] if x.ndim == 3 else 0)


class Layer:
    """Directions of a layer with random weights; `run` leaves y, h and c of each."""

    def __init__(self, kind, T, B, H, *, fmt=E4M3, directions=1, given=True, strided=False, seed=0):
        self.kind, self.shape, self.fmt = kind, (T, B, H), fmt and get_format(fmt)
        self.scale = np.ones(1, np.float32)
        if fmt:
            self.scale[:] = 1.0 if self.fmt.exponent_bits >= 5 else scale_for(2.0, self.fmt)
        rows = GATES[kind] * H
        self.sides, self.references = [], []
        for d in range(directions):
            w, bias = floats(rows, H, seed=seed + d, scale=H**-0.5), floats(rows, seed=seed + d + 10, scale=0.3)
            packed, w = self.packed(w, bias)
            # Steps and rows with something between them, as one direction of two has.
            around = np.full((T, B, rows + 7) if strided else (T, B, rows), np.nan, np.float32)
            x = around[:, :, 3 : 3 + rows] if strided else around
            x[:] = floats(T, B, rows, seed=seed + d + 20)
            y = np.full((B, T, H + 5), 77, np.float32).transpose(1, 0, 2)[:, :, 2 : 2 + H]
            h0, c0 = (floats(B, H, seed=seed + d + i, scale=0.7) for i in (30, 40)) if given else (np.zeros((B, H), np.float32),) * 2
            h, c = np.empty((B, H), np.float32), np.empty((B, H), np.float32)
            lstm = kind == "lstm"
            starts = {"h0": at(h0), "c0": at(c0) if lstm else None} if given else {}
            self.sides.append(Side(at(x), packed, at(y), **starts, h=at(h), c=at(c) if lstm else None, backward=bool(d)))
            self.references.append((x, w, bias, y, h0, c0, h, c))

    def packed(self, w, bias):
        """As the task takes them; weights as they are after rounding, f64."""
        if self.fmt is None:
            return pack_gates(w, GATES[self.kind], bias=bias, fp8=False), w.astype(np.float64)
        q = quantize(w, self.fmt, axis=0)
        values = decode(q.codes, self.fmt)
        exact = values.astype(np.float64) * q.scale
        return pack_gates(values.astype(np.float32), GATES[self.kind], scale=q.scale, bias=bias, fp8=True), exact

    def task(self, threads=1):
        T, B, H = self.shape
        rounding = round_words(self.fmt, self.scale) if self.fmt else ()
        make = lstm_task if self.kind == "lstm" else gru_task
        return make(self.sides, steps=T, batch=B, hidden=H, rounding=rounding, threads=threads)

    def multiplied(self, h):
        """h as weight_hh multiplies it."""
        if self.fmt is None:
            return h.astype(np.float64)
        with np.errstate(invalid="ignore"):
            codes = encode(h * (np.float32(1) / self.scale), self.fmt)
        return decode(codes, self.fmt).astype(np.float64) * np.float64(self.scale[0])

    def check(self):
        """Each h against what the cell makes of the h before, as it was computed."""
        T, B, H = self.shape
        for d, (x, w, bias, y, h0, c0, h_last, c_last) in enumerate(self.references):
            h, c, c_error = h0, c0.astype(np.float64), np.zeros(c0.shape)
            for t in (reversed(range(T)) if d else range(T)) if B else ():
                left = self.multiplied(h)
                # Sums of H products, of values that are exact in FP8; two scales, a bias and x: a rounding of everything for each.
                sums, size = left @ w.T, np.abs(left) @ np.abs(w).T + np.abs(bias) + np.abs(x[t])
                error = (H + 6) * EPS * size
                if self.kind == "lstm":
                    exact, c, bound, c_error = lstm_step(x[t], sums + bias, error, h, c, c_error)
                else:
                    exact, bound = gru_step(x[t], sums + bias, error, h)
                assert (np.abs(y[t] - exact) <= bound).all(), (d, t, np.nanmax(np.abs(y[t] - exact) / bound))
                h = y[t]
            np.testing.assert_array_equal(h_last, h)
            if self.kind == "lstm":
                assert (np.abs(c_last - c) <= c_error + EPS * np.abs(c)).all()


def lstm_step(x, sums, error, h, c, c_error):
    """The next h and c, and how far off they may be: a sigmoid bends by 1/4 at most, and has an error of 3 roundings, as tanh."""
    exact, c_next = lstm_cell(x, sums, (h, c))
    i, f, g, o = np.abs(np.stack(np.split(error, 4, axis=1)) * np.array([0.25, 0.25, 1, 0.25])[:, None, None]) + 3 * EPS
    # c = f c + i g, with i and f within 0 .. 1, g within -1 .. 1; two roundings, and one of i g.
    size = np.abs(c)
    c_error = c_error + f * (size + c_error) + i + g + 3 * EPS * (size + 1)
    return exact, c_next, o + c_error + 5 * EPS, c_error


def gru_step(x, sums, error, h):
    """The next h and how far off it may be."""
    (exact,) = gru_cell(x, sums, (h,))
    r, z, n = np.split(error, 3, axis=1)
    r, z = r / 4 + 3 * EPS, z / 4 + 3 * EPS
    inner = np.abs(np.split(sums, 3, axis=1)[2])
    fresh = n * 2 + r * inner + 5 * EPS
    return exact, z * (np.abs(h) + 1) + fresh + 4 * EPS * (np.abs(h) + 1)


@pytest.mark.parametrize("fmt", [E4M3, None])
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("shape", sizes(*SHAPES, elements=500))
def test_shapes(kind, shape, fmt):
    layer = Layer(kind, *shape, fmt=fmt)
    run(layer.task())
    layer.check()


@pytest.mark.parametrize("fmt", ["float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e3m4", "float8_e4m3b11fnuz"])
@pytest.mark.parametrize("kind", GATES)
def test_formats(kind, fmt):
    layer = Layer(kind, 4, 3, 20, fmt=fmt)
    run(layer.task())
    layer.check()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", GATES)
def test_two_directions_in_strides(kind, given):
    layer = Layer(kind, 5, 4, 19, directions=2, given=given, strided=True)
    run(layer.task())
    layer.check()
    for _, _, _, y, *_ in layer.references:
        around = y.base if y.base is not None else y
        assert (around[:, :, :2] == 77).all()
        assert (around[:, :, -3:] == 77).all()


@pytest.mark.parametrize("order", ["floats", "brain"])
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("shape", sizes((3, 1, 40), (2, 7, 21), (2, 20, 32), elements=450))
def test_orders(kind, shape, order, monkeypatch):
    """Orders of weights that size and CPU would not choose."""
    monkeypatch.setattr(module, "HAS_TILES", False)
    monkeypatch.setattr(module, "_CACHED", 0 if order == "brain" else 1 << 40)
    layer = Layer(kind, *shape)
    assert layer.sides[0].gates.order == {"floats": module.FLOATS, "brain": module.BRAIN}[order]
    run(layer.task())
    layer.check()


@pytest.mark.parametrize("kind", GATES)
def test_state_in_place_and_nothing_else_wanted(kind):
    layer = Layer(kind, 3, 2, 9)
    run(layer.task())
    x, *_, h0, c0, h, c = layer.references[0]
    side = layer.sides[0]
    places = {"h0": at(h0), "h": at(h0)} | ({"c0": at(c0), "c": at(c0)} if kind == "lstm" else {})
    layer.sides = [Side(at(x), side.gates, **places)]
    run(layer.task())
    np.testing.assert_array_equal(h0, h)
    if kind == "lstm":
        np.testing.assert_array_equal(c0, c)


@pytest.mark.parametrize("fmt", [E4M3, None])
@pytest.mark.parametrize("kind", GATES)
def test_not_finite(kind, fmt):
    """A NaN stays in its row of the batch and spreads from its step on; an infinity is an open or a closed gate."""
    layer = Layer(kind, 4, 3, 20, fmt=fmt)
    x, *_, y, _, _, _, _ = layer.references[0]
    x[1, 2, 3] = np.nan
    x[2, 1, 5] = np.inf
    run(layer.task())
    assert np.isnan(y[1, 2, 3])
    assert np.isnan(y[2:, 2]).all()
    assert np.isfinite(y[:, :2]).all()
    assert np.isfinite(y[0]).all()


@pytest.mark.parametrize("fmt", [E4M3, None])
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("shape", sizes((5, 37, 48), elements=1))
def test_threads(kind, shape, fmt):
    """However the batch is cut, and whoever takes the pieces."""
    results = []
    for threads in (1, 2, 3, 16, 100):
        layer = Layer(kind, *shape, fmt=fmt, directions=2)
        check_threads(layer.task(threads), *(r[6] for r in layer.references))
        results.append([np.array(a).tobytes() for r in layer.references for a in (r[3], r[6])])
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("count", sizes(1, 16, 37, 1000, elements=50))
def test_state_scale(count):
    fmt = get_format(E4M3)
    for scale in (0.1, 30.0):
        h0, out = floats(count, scale=scale), np.empty(1, np.float32)
        run(state_scale_task(h0, count, out, fmt.max))
        np.testing.assert_array_equal(out, scale_for(max(1.0, np.abs(h0).max()), fmt))
    h0[0], h0[-1] = np.inf, np.nan
    run(state_scale_task(h0, count, out, fmt.max))
    np.testing.assert_array_equal(out, scale_for(max(1.0, np.abs(h0[np.isfinite(h0)]).max(initial=0)), fmt))


FEW = "test_formats and e5m2 or test_two or test_orders or test_not_finite or test_threads or test_shapes and (shape4 or shape5 or shape7)"


@pytest.mark.skipif("FP8NP_CPU" in os.environ or not compiled(), reason="is what this test starts")
@pytest.mark.parametrize("tier", ["plain", "avx2", "avx512", "uncompiled"])
def test_tiers(tier):
    check_tier(__file__, tier, FEW)
