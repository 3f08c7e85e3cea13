"""lstm, gru and their cells: one product for the inputs of all steps, then one task for the whole sequence of a layer.

With FP8 x and matrices, what multiplies weight_hh, and from the second layer on weight_ih, is rounded to the format of x with one
fixed scale, which no calibration needs to find: after the first step |h| <= max(1, |initial h|), since o * tanh(c) is within 1, and a
mean of tanh(...) and h within the larger of them. Five exponent bits hold [-1, 1] down to 2**-14 as it stands, so the scale is 1
then: a direct cast, as the paper's E5M2 is. h is rounded for the product alone: a GRU's mean with the old h takes h itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp8np._packing import filters, packable
from fp8np.codec import decode
from fp8np.formats import FloatFormat, get_format
from fp8np.graph import Constant, Node
from fp8np.kernels._ending import Ending, Left, View
from fp8np.kernels._grid import PARTS, Image, round_words, takes
from fp8np.kernels._program import Word
from fp8np.kernels.product import product_task
from fp8np.kernels.recurrent import Gates, Side, Steps, gru_task, lstm_task, pack_gates, state_scale_task
from fp8np.kernels.widen import quantize_task, split_task
from fp8np.plan.builder import Builder, Grid, word
from fp8np.plan.storage import At, Buffer, Stored
from fp8np.scaling import scale_for
from fp8np.tensor import QTensor

__all__ = ["LOWERINGS"]

_ONE = np.ones(1, np.float32)


@dataclass(frozen=True)
class _Network:
    """A recurrent node: sizes, weights by cell, and what h is rounded to."""

    node: Node
    gates: int
    steps: int
    batch: int
    hidden: int
    directions: int
    batch_first: bool
    cells: tuple[tuple[str | None, ...], ...]  # weight_ih, weight_hh, bias_ih, bias_hh
    format: FloatFormat | None
    scale: Word

    def rows(self, at: At, whole: int) -> Steps:
        """A row of each step and sample, `whole` numbers apart, as x is ordered."""
        step, row = (whole, self.steps * whole) if self.batch_first else (self.batch * whole, whole)
        return Steps(word(at), row * 4, step * 4)

    @property
    def rounding(self) -> tuple[Word, ...]:
        """The words of h's rounding; none for floats."""
        return () if self.format is None else round_words(self.format, self.scale)


def _gates(b: Builder, net: _Network, cell: tuple[str | None, ...]) -> Gates:
    _, name, _, bias = cell
    values = None if bias is None else b.constant(bias)

    def make(w: Constant) -> Gates:
        if isinstance(w, QTensor):
            return pack_gates(decode(w.codes, w.format), net.gates, scale=w.scale, bias=values, fp8=True)
        return pack_gates(w, net.gates, bias=values, fp8=False)

    made: Gates = b.weights.prepare("recurrent", str(name), str(bias), make)
    return made


def _inputs(b: Builder, net: _Network, grid: Grid, scale: Word, row_scale: Word | None, cell: tuple[str | None, ...]) -> At:
    """x @ weight_ih^T + bias_ih of all steps: f32 (rows, gates * H). row_scale: of x, where each of its rows has its own."""
    made = b.weights.prepare("product", str(cell[0]), "recurrent", filters)
    bias = np.zeros(len(made.scale), np.float32)
    if cell[2] is not None:
        given = np.asarray(b.constant(cell[2]))
        bias[: len(given)] = given
    image, rows, n = grid.image, net.steps * net.batch, net.gates * net.hidden
    out = At(Buffer(rows * n * 4))
    part = image.part if image.parts > 1 else 0
    left = Left(View(grid.view.address, 0, 0, image.pitch), 1, 1, rows, rows, scale, row_scale, part)
    offsets = np.array([image.offset(s) for s in range(image.steps)], np.int64)
    ending = Ending(made.scale, bias, out=View(word(out), 0, 0, n * 4))
    b.emit(product_task(left, made.packed, offsets, ending, threads=b.threads))
    return out


def _widened(b: Builder, net: _Network, source: View, width: int) -> Grid:
    rows = net.steps * net.batch
    image = Image(1, 1, rows, width, parts=1 if net.format else PARTS)
    grid = Grid(image, b.image_memory(image))
    if net.format is None:
        b.emit(split_task(source, grid.view, image.panel, image.part, (1, 1, rows, width)))
    else:
        b.emit(quantize_task(source, grid.view, image.panel, (1, 1, rows, width), net.rounding))
    return grid


def _run(b: Builder, net: _Network, states: list[Stored | None], outputs: list[Stored], y: Stored | None) -> None:
    """All layers; states and outputs: h, and c of an lstm, (cells, B, H)."""
    name = str(net.node.inputs[0])
    row_scale: Word | None = None
    if net.format is None:
        stored, _, stride = b.matrix(name)
        grid = _widened(b, net, View(word(stored.at), 0, 0, stride), stored.shape[-1])
        scale: Word = _ONE
    elif name in b.tokens:
        grid, scale, row_scale = b.token_rows(name), _ONE, b.tokens[name].scale
    else:
        grid, scale = b.rows(name), b.quantized[name].scale
    hidden, wide = net.hidden, net.hidden * net.directions
    n = net.gates * hidden
    for layer in range(len(net.cells) // net.directions):
        last = layer == len(net.cells) // net.directions - 1
        place = y.at if last and y is not None else At(Buffer(net.steps * net.batch * wide * 4))
        sides = []
        for d in range(net.directions):
            i = layer * net.directions + d
            cell = net.cells[i]
            x = _inputs(b, net, grid, scale, row_scale, cell)
            at = [None if s is None else Steps(word(s.at.plus(i * net.batch * hidden * 4)), hidden * 4) for s in (*states, *outputs)]
            h0, c0, h, c = at if len(at) == 4 else (at[0], None, at[1], None)
            result = None if last and y is None else net.rows(place.plus(d * hidden * 4), wide)
            sides.append(Side(net.rows(x, n), _gates(b, net, cell), result, h0, c0, h, c, backward=bool(d)))
        task = lstm_task if net.gates == 4 else gru_task
        b.emit(task(sides, steps=net.steps, batch=net.batch, hidden=hidden, rounding=net.rounding, threads=b.threads))
        if not last:
            grid = _widened(b, net, View(word(place), 0, 0, wide * 4), wide)
            scale, row_scale = _ONE if net.format is None else net.scale, None


def _format(b: Builder, name: str, matrices: list[Constant | None]) -> FloatFormat | bool | None:
    """The format of x, None for floats; False where x and matrices are not of one kind that the engine multiplies."""
    if any(not packable(m) for m in matrices):
        return False
    fp8 = {isinstance(m, QTensor) for m in matrices} | {name in b.quantized or name in b.tokens}
    if len(fp8) > 1:
        return False
    if not fp8.pop():
        return None
    fmt = get_format(b.facts[name].dtype)
    return fmt if takes(fmt) else False


def _scale(b: Builder, fmt: FloatFormat | None, h0: Stored | None) -> Word:
    if fmt is None or fmt.exponent_bits >= 5:
        return _ONE
    if h0 is None:
        return np.array([scale_for(1.0, fmt)], np.float32)
    at = At(Buffer(4))
    b.emit(state_scale_task(word(h0.at), h0.size, word(at), fmt.max))
    return word(at)


def _sequence(gates: int) -> Callable[[Builder, Node, Mapping[str, Any]], bool]:
    def lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
        count = 2 if gates == 4 else 1
        weights = node.inputs[1 + count :]
        each, directions = 4 if attrs["bias"] else 2, 2 if attrs["bidirectional"] else 1
        cells = tuple((*weights[i : i + each], *(None,) * (4 - each)) for i in range(0, len(weights), each))
        constants = [b.constant(w) for w in weights]
        shape = b.shape(node.inputs[0])
        if any(c is None for c in constants) or 0 in shape or not all(b.shape(c[1])[1] for c in cells):
            return False
        fmt = _format(b, str(node.inputs[0]), [b.constant(w) for c in cells for w in c[:2]])
        if fmt is False:
            return False
        states = [None if name is None else b.plain(name) for name in node.inputs[1 : 1 + count]]
        batch, steps = (shape[0], shape[1]) if attrs["batch_first"] else (shape[1], shape[0])
        hidden = b.shape(cells[0][1])[1]
        scale = _scale(b, fmt, states[0])  # type: ignore[arg-type]
        net = _Network(node, gates, steps, batch, hidden, directions, attrs["batch_first"], cells, fmt, scale)  # type: ignore[arg-type]
        y, *finals = (b.new(name) for name in node.outputs)
        _run(b, net, states, finals, y)
        return True

    return lower


def _cell(gates: int) -> Callable[[Builder, Node, Mapping[str, Any]], bool]:
    def lower(b: Builder, node: Node, attrs: Mapping[str, Any]) -> bool:
        count = 2 if gates == 4 else 1
        weights = (*node.inputs[1 + count :], None, None)[:4]
        shape = b.shape(node.inputs[0])
        if any(w is not None and b.constant(w) is None for w in weights) or 0 in shape or 0 in b.shape(node.outputs[0]):
            return False
        fmt = _format(b, str(node.inputs[0]), [b.constant(w) for w in weights[:2]])
        if fmt is False:
            return False
        states: list[Stored | None] = [b.plain(name) for name in node.inputs[1 : 1 + count]]
        hidden = b.shape(node.outputs[0])[1]
        net = _Network(node, gates, 1, shape[0], hidden, 1, False, (weights,), fmt, _scale(b, fmt, states[0]))  # type: ignore[arg-type]
        _run(b, net, states, [b.new(name) for name in node.outputs], None)
        return True

    return lower


LOWERINGS = {"lstm": _sequence(4), "gru": _sequence(3), "lstm_cell": _cell(4), "gru_cell": _cell(3)}
