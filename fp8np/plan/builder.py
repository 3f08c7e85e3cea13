"""From a fused graph at known sizes to steps: what lowerings build with.

A lowering (`fp8np.plan.lowerings`) turns a node into tasks, native code; a node without one, or whose lowering declines, runs as its
op is defined, in NumPy, on views of the same memory. Values are stored as whoever computes them finds best; a reader that needs
another order, a widened image or plain floats asks for it, and it is made once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fp8np._packing import Pads
from fp8np.formats import get_format
from fp8np.graph import Constant, Graph, Node, Value, leaves
from fp8np.kernels._ending import View
from fp8np.kernels._grid import Image, holds, round_words
from fp8np.kernels._program import Task, Word
from fp8np.kernels.rearrange import permute_task
from fp8np.kernels.rounding import round_task, round_tokens_task, rounds
from fp8np.kernels.widen import quantize_planes_task, quantize_task, scale_tasks
from fp8np.layers._op import OPS
from fp8np.plan.integers import Integers
from fp8np.plan.steps import Grid, Host, Quantized, attrs_of, token_task, word
from fp8np.plan.storage import At, Buffer, Stored, dense, places
from fp8np.plan.weights import Weights
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor

__all__ = ["NO_PADS", "Builder", "Grid", "Host", "floats_of", "word"]

NO_PADS: Pads = (0, 0, 0, 0)


@dataclass
class Builder:
    """The steps of a plan in the making.

    Attributes:
        graph: fused.
        facts: shape and type of each value and constant, sizes known.
        weights: what is made of constants once.
        threads: for how many threads work is cut.
        steps: so far.
        stored: the values computed so far that are not FP8.
        quantized: FP8 values with one scale, of formats that the engine holds.
        tokens: FP8 values with a scale for each index of all axes but the last, of formats that the engine holds.
        rounded: FP8 values of other formats: nobody reads their codes.
        integers: codes of integers.
    """

    graph: Graph
    facts: Mapping[str, Value]
    weights: Weights
    threads: int
    steps: list[Task | Host] = field(default_factory=list)
    stored: dict[str, Stored] = field(default_factory=dict)
    quantized: dict[str, Quantized] = field(default_factory=dict)
    tokens: dict[str, Quantized] = field(default_factory=dict)
    rounded: dict[str, Quantized] = field(default_factory=dict)
    integers: dict[str, Integers] = field(default_factory=dict)
    _copies: dict[tuple[str, str], Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.readers = self.graph.consumers()
        self.kept = set(leaves(self.graph.outputs))

    def wanted(self, reader: Node, name: str) -> Pads | None:
        """The zeros that a reader wants around an FP8 value; None where it reads floats."""
        from fp8np.plan.lowerings.products import wanted_pads

        return wanted_pads(self, reader, name)

    # -- steps --------------------------------------------------------------------------------------------------------

    def emit(self, *tasks: Task) -> None:
        """Appends native steps. A task without units is none."""
        for task in tasks:
            if task.units:
                for buffer in places(task):
                    buffer.used(len(self.steps))
                self.steps.append(task)

    def host(self, node: Node, function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Stored]) -> None:
        """Appends a step in Python."""
        for value in (*inputs, *outputs):
            if isinstance(value, Stored) and isinstance(value.at.base, Buffer):
                value.at.base.used(len(self.steps))
        self.steps.append(Host(node, function, tuple(inputs), tuple(outputs)))

    # -- values -------------------------------------------------------------------------------------------------------

    def shape(self, name: str | None) -> tuple[int, ...]:
        """The shape of a value."""
        return self.facts[str(name)].shape  # type: ignore[return-value]

    def constant(self, name: str | None) -> Constant | None:
        """The weight of a name, None where it is computed."""
        return None if name is None else self.weights.constants.get(name)

    def new(self, name: str, *, channels_last: bool = False) -> Stored:
        """A buffer for a value that a lowering computes."""
        fact = self.facts[name]
        stored = dense(self.shape(name), fact.dtype, channels_last=channels_last)
        self.stored[name] = stored
        return stored

    def value(self, name: str | None) -> Stored:
        """A value that is not FP8, as it is stored; floats of an FP8 value or weight."""
        assert name is not None
        if name in self.stored:
            return self.stored[name]
        constant = self.weights.constants.get(name)
        if constant is not None:
            array = (
                self.weights.prepare("", name, "float32", floats_of) if isinstance(constant, QTensor) else np.ascontiguousarray(constant)
            )
            stored = Stored(At(array), array.shape, array.strides, array.dtype)
        else:
            stored = self._through_format(name)
        self.stored[name] = stored
        return stored

    def _through_format(self, name: str) -> Stored:
        """What the codes of an FP8 value stand for."""
        q = self.quantized.get(name) or self.tokens.get(name) or self.rounded[name]
        shape = self.shape(name)
        if not rounds(q.format) or 0 in shape:
            attrs = OPS["quantize"].filled(q.node.attrs)
            out = dense(shape)
            self.host(q.node, lambda x: dequantize(OPS["quantize"].define(x, **attrs)), [self.value(q.source)], [out])
            return out
        if attrs_of(q.node)["granularity"] == "token":
            source, rows, stride = self.matrix(q.source)
            out = dense(shape)
            sizes = rows, shape[-1]
            self.emit(round_tokens_task(word(source.at), stride, word(out.at), sizes, q.format, power_of_two=q.power_of_two))
            return out
        source = self.flat(q.source)
        out = Stored(At(Buffer(source.size * 4)), source.shape, source.strides)
        self.emit(round_task(word(source.at), word(out.at), source.size, q.format, q.scale))
        return out

    def flat(self, name: str | None) -> Stored:
        """A value without gaps, in any order of its axes."""
        stored = self.value(name)
        expected = stored.dtype.itemsize
        for stride, n in sorted(zip(stored.strides, stored.shape, strict=True)):
            if n != 1:
                if stride != expected:
                    return self.plain(name)
                expected *= n
        return stored

    def plain(self, name: str | None) -> Stored:
        """A value in the order of its axes."""
        stored = self.value(name)
        return stored if stored.contiguous else self._copy(str(name), stored, channels_last=False)

    def last(self, name: str | None) -> Stored:
        """A value (B, C, H, W) with its channels last."""
        stored = self.value(name)
        return stored if stored.channels_last else self._copy(str(name), stored, channels_last=True)

    def _copy(self, name: str, stored: Stored, *, channels_last: bool) -> Stored:
        key = name, "last" if channels_last else "plain"
        if key not in self._copies:
            out = dense(stored.shape, stored.dtype, channels_last=channels_last)
            self.copy(stored, out)
            self._copies[key] = out
        return self._copies[key]

    def copy(self, source: Stored, target: Stored) -> None:
        """Copies a value into another order."""
        if source.size == 0:
            return
        axes = sorted(_merged(source, target), key=lambda axis: -axis[2])
        item = source.dtype.itemsize
        strides = [axis[1] for axis in axes]
        gaps = any(axis[2] != math.prod(a[0] for a in axes[i + 1 :]) * item for i, axis in enumerate(axes))
        if not gaps and item in (1, 4) and 0 < len(axes) <= 4 and item in strides and all(s % item == 0 for s in strides):
            missing = 4 - len(axes)
            shape = (*(1,) * missing, *(axis[0] for axis in axes))
            self.emit(permute_task(word(source.at), word(target.at), shape, (*(0,) * missing, *(s // item for s in strides)), item))
        else:
            self.host(_COPY, lambda x: x, [source], [target])

    def matrix(self, name: str | None) -> tuple[Stored, int, int]:
        """A value (..., K) as M rows of K side by side: where, M, and bytes from row to row."""
        stored = self.value(name)
        k = stored.shape[-1]
        rows = math.prod(stored.shape[:-1])
        item = stored.dtype.itemsize
        axes = _merged(stored, stored)
        if not axes or (len(axes) == 1 and (axes[0][1] == item or stored.size == 1)):
            return stored, rows, k * item
        if len(axes) == 2 and axes[1][1] == item and axes[1][0] == k:
            return stored, rows, axes[0][1]
        if len(axes) == 1 and k == 1:
            return stored, rows, axes[0][1]
        return self.plain(name), rows, k * item

    # -- FP8 ----------------------------------------------------------------------------------------------------------

    def quantize(self, node: Node) -> None:
        """A quantize node: notes what it is; the image is made when a reader asks for it."""
        name, attrs = node.outputs[0], attrs_of(node)
        fmt, power_of_two = get_format(attrs["format"]), attrs["power_of_two"]
        if attrs["granularity"] == "token":
            scales = word(At(Buffer(4 * math.prod(self.shape(name)[:-1]))))
            (self.tokens if holds(fmt) else self.rounded)[name] = Quantized(node, fmt, scales, power_of_two=power_of_two)
            return
        noted = self.quantized if holds(fmt) else self.rounded
        if attrs["scale"] is not None:
            noted[name] = Quantized(node, fmt, np.array([attrs["scale"]], np.float32), attrs["scale"])
            return
        at = At(Buffer(4))
        noted[name] = q = Quantized(node, fmt, word(at))
        size = math.prod(self.shape(name))
        parts = At(Buffer(4 * max(1, -(-size // (1 << 15)))))
        # The order does not matter for a maximum, but gaps would.
        stored = self.flat(q.source)
        self.emit(*scale_tasks(word(stored.at), size, fmt.max, word(parts), word(at), power_of_two=power_of_two))

    def grid(self, name: str) -> Grid:
        """The widened image of an FP8 value: (B, C, H, W) as pixels of C channels, (..., K) as one row of pixels of K."""
        q = self.quantized[name]
        if q.grid is None:
            q.grid = self.new_grid(name)
            self._fill(name, q, q.grid)
        return q.grid

    def rows(self, name: str) -> Grid:
        """The widened image of an FP8 value (..., K) as one row of pixels of K, whoever else reads it."""
        if not self.picture(name):
            return self.grid(name)
        q, shape = self.quantized[name], self.shape(name)
        image = Image(1, 1, math.prod(shape[:-1]), shape[-1])
        grid = Grid(image, self.image_memory(image))
        self._fill_rows(q, grid)
        return grid

    def token_rows(self, name: str) -> Grid:
        """The widened image of an FP8 value (..., K) whose rows have scales of their own, as one row of pixels of K."""
        q = self.tokens[name]
        if q.grid is None:
            stored, rows, stride = self.matrix(q.source)
            image = Image(1, 1, rows, stored.shape[-1])
            q.grid = Grid(image, self.image_memory(image))
            self.emit(token_task(word(stored.at), stride, q, q.grid))
        return q.grid

    def picture(self, name: str) -> bool:
        """Whether an FP8 value is read as pixels of channels, not by its last axis."""
        return len(self.shape(name)) == 4 and any(reader.op == "fused_conv2d" for reader in self.readers.get(name, []))

    def pads_of(self, name: str) -> Pads | None:
        """The most zeros that readers want around an FP8 value; None where none reads it widened."""
        wanted = [pads for reader in self.readers.get(name, []) if (pads := self.wanted(reader, name)) is not None]
        return tuple(map(max, zip(*wanted, strict=True))) if wanted else None

    def floats_wanted(self, name: str) -> bool:
        """Whether a reader of an FP8 value runs on floats."""
        return any(self.wanted(reader, name) is None for reader in self.readers.get(name, []))

    def new_grid(self, name: str) -> Grid:
        """Memory for it, with the zeros around that its readers want."""
        shape = self.shape(name)
        if self.picture(name):
            b, c, h, w = shape
            image = Image(b, h, w, c, *(self.pads_of(name) or NO_PADS))
        else:
            image = Image(1, 1, math.prod(shape[:-1]), shape[-1])
        return Grid(image, self.image_memory(image))

    def image_memory(self, image: Image) -> At:
        """Memory for an image, zero where its padding is."""
        return At(Buffer(image.size, zero=repr(image) if image.padded else ""))

    def rounding(self, name: str) -> tuple[Word, ...]:
        """The words by which a task rounds to an FP8 value's format."""
        q = self.quantized[name]
        return round_words(q.format, q.scale)

    def _fill(self, name: str, q: Quantized, grid: Grid) -> None:
        if not self.picture(name):
            self._fill_rows(q, grid)
            return
        image, shape = grid.image, self.shape(name)
        rounding = round_words(q.format, q.scale)
        sizes = image.images, image.height, image.width, image.channels
        stored = self.value(q.source)
        if stored.strides[1] == 4 or shape[1] == 1:
            b, _, y, x = stored.strides
            self.emit(quantize_task(View(word(stored.at), b, y, x), grid.view, image.panel, sizes, rounding))
        else:
            stored = stored if stored.strides[3] == 4 or shape[3] == 1 else self.plain(q.source)
            b, plane, y, x = stored.strides
            self.emit(quantize_planes_task(View(word(stored.at), b, y, x), plane, grid.view, image.panel, sizes, rounding))

    def _fill_rows(self, q: Quantized, grid: Grid) -> None:
        stored, rows, stride = self.matrix(q.source)
        source = View(word(stored.at), 0, 0, stride)
        sizes = 1, 1, rows, grid.image.channels
        self.emit(quantize_task(source, grid.view, grid.image.panel, sizes, round_words(q.format, q.scale)))


_COPY = Node("copy", "clone", ("x",), ("y",))


def floats_of(constant: Constant) -> Any:
    """The numbers that a weight stands for."""
    return dequantize(constant) if isinstance(constant, QTensor) else constant


def _merged(source: Stored, target: Stored) -> tuple[tuple[int, int, int], ...]:
    """Axes (size, source stride, target stride) with those joined that lie one after the other in both, and those of one left out."""
    axes: list[tuple[int, int, int]] = []
    for n, s, t in zip(source.shape, source.strides, target.strides, strict=True):
        if n == 1:
            continue
        if axes and axes[-1][1] == n * s and axes[-1][2] == n * t:
            axes[-1] = (axes[-1][0] * n, s, t)
        else:
            axes.append((n, s, t))
    return tuple(axes)
