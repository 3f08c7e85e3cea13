"""The cells of lstm and gru: from sums of products to the next state, sixteen hidden units of up to sixteen rows at a time.

Sums lie as in `fp8np.kernels._gates`, gate g of row r at sums + 1024 g + 64 r; scales and bias are f32 (gates, 16). x is that of the input,
f32 (rows, gates, H), from unit u on, of which fewer than sixteen may be left. The state of a row is two vectors, h and c.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.kernels._float_blocks import load_to
from fp8np.kernels._functions import exp, expm1
from fp8np.kernels._gates import prefetch
from fp8np.kernels._jit import native
from fp8np.kernels._vector import as_float, as_int, floats, fma, ints, load, select, store

__all__ = ["gru_cells", "lstm_cells"]

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_SIGN = -(1 << 31)

# sigmoid(x) is s / d with e = e^-|x|, d = e + 1 and s = 1 or, where x < 0, e; tanh(x) is t / d with m = e^(-2 |x|) - 1, d = m + 2 and
# t = -m with the sign of x. All d are within 1 .. 2, so a product of two of them needs but one division, which takes as long as half an
# exponential.


@native
def _sigmoid_parts(x: Any) -> Any:
    e = exp(as_float(as_int(x) | ints(_SIGN)))
    return select(x < floats(_ZERO), e, floats(_ONE)), e + floats(_ONE)


@native
def _tanh_parts(x: Any) -> Any:
    m = expm1(as_float(as_int(x + x) | ints(_SIGN)))
    return as_float((as_int(m) & ints(0x7FFFFFFF)) | (as_int(x) & ints(_SIGN))), m + floats(_TWO)


@native
def _gate(x: int, count: int, ahead: int, sums: int, scale: Any, bias: Any) -> Any:
    # A gate before its function: that of x, of which there are `count`, and that of h. x of the next step is fetched, since
    # it is short stretches far apart, which the CPU does not fetch by itself.
    prefetch(x + ahead)
    return load_to(x, count) + fma(load(sums), scale, bias)


@native
def _sigmoids(x: int, row: int, count: int, ahead: int, sums: int, scale: int, bias: int, rows: int) -> None:
    # The sums of a gate become the gate.
    scales, biases = load(scale), load(bias)
    for r in range(rows):
        s, d = _sigmoid_parts(_gate(x + r * row, count, ahead, sums + 64 * r, scales, biases))
        store(sums + 64 * r, s / d)


# A cell from end to end is one chain of 300 cycles, of which the CPU keeps hardly two in flight. So a part of it is computed for all
# rows, then the next: for 32 rows 61 ns a cell of sixteen units against 94.


@native
def lstm_cells(x: int, row: int, ahead: int, H: int, u: int, sums: int, scales: int, bias: int, state: int, rows: int) -> None:
    """Hidden units u .. u + 15: the state becomes the next; x of the next step is `ahead` bytes from this one's."""
    distance, n = (H + 15) // 16 * 128, H - u
    _sigmoids(x + 4 * H, row, n, ahead, sums + 1024, scales + 64, bias + 64, rows)
    si, bi, sg, bg = load(scales), load(bias), load(scales + 128), load(bias + 128)
    for r in range(rows):
        i, d = _sigmoid_parts(_gate(x + r * row, n, ahead, sums + 64 * r, si, bi))
        g, e = _tanh_parts(_gate(x + 8 * H + r * row, n, ahead, sums + 2048 + 64 * r, sg, bg))
        place = state + r * distance + 64
        store(place, fma(load(sums + 1024 + 64 * r), load(place), i * g / (d * e)))
    so, bo = load(scales + 192), load(bias + 192)
    for r in range(rows):
        o, d = _sigmoid_parts(_gate(x + 12 * H + r * row, n, ahead, sums + 3072 + 64 * r, so, bo))
        t, e = _tanh_parts(load(state + r * distance + 64))
        store(state + r * distance, o * t / (d * e))


@native
def gru_cells(x: int, row: int, ahead: int, H: int, u: int, sums: int, scales: int, bias: int, state: int, rows: int) -> None:
    """As `lstm_cells`."""
    distance, n = (H + 15) // 16 * 128, H - u
    for gate in range(2):
        _sigmoids(x + 4 * H * gate, row, n, ahead, sums + 1024 * gate, scales + 64 * gate, bias + 64 * gate, rows)
    scale, biases = load(scales + 128), load(bias + 128)
    for r in range(rows):
        inner = fma(load(sums + 2048 + 64 * r), scale, biases)
        prefetch(x + 8 * H + r * row + ahead)
        t, d = _tanh_parts(fma(load(sums + 64 * r), inner, load_to(x + 8 * H + r * row, n)))
        update, place = load(sums + 1024 + 64 * r), state + r * distance
        store(place, fma(update, load(place), (floats(_ONE) - update) * (t / d)))
