"""Products and convolutions of quantized tensors by the engine: one short program a call."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._packing import Filters, Pads, filters, grouped_filters, kind_of, singles, spread_filters, taps_of
from fp8np.formats import FloatFormat
from fp8np.kernels._ending import Ending, Left, View, per_column
from fp8np.kernels._engine import decode_tables
from fp8np.kernels._grid import PARTS, Image, matrix, round_words
from fp8np.kernels._program import Arena, External, Program, Task, Word, aligned_array, rounded_up
from fp8np.kernels._threads import get_num_threads
from fp8np.kernels.depthwise import depthwise_task
from fp8np.kernels.pack import pack_task, packed_size
from fp8np.kernels.product import Packed, product_task
from fp8np.kernels.widen import quantize_task, scale_tasks, split_task, widen_task
from fp8np.packed import PackedTensor
from fp8np.tensor import Codes, Floats, QTensor

__all__ = ["engine_convolution", "engine_floats", "engine_matmul", "engine_product"]

_ONE = np.ones(1, np.float32)


def engine_product(a: Codes, a_format: FloatFormat, b: Codes, b_format: FloatFormat) -> Floats:
    """f32 (Z, M, N) of codes a (Z|1, M, K) and b (Z|1, N, K), without scales. NaN is 0x7FC00000."""
    Z, (M, K), N = max(len(a), len(b)) if len(a) and len(b) else 0, a.shape[1:], b.shape[1]
    out = aligned_array((Z, M, N))
    if out.size == 0 or K == 0:
        out[:] = 0
        return out
    rows = np.ascontiguousarray(a)
    # One program: each b is packed into a place of its own, each a widened, both where the batch shares them once.
    image, size = matrix(M, K), packed_size(N, 1, K)
    tables = decode_tables(a_format), decode_tables(b_format)
    codes = aligned_array((len(b), *size), np.uint8)
    scale = per_column(size[0], np.ones(N))
    offsets = np.array([image.offset(s) for s in range(image.steps)], np.int64)
    tasks = [widen_task(View(rows, M * K, 0, K), View(Arena(0), image.size, 0, image.pitch), image.panel, (len(a), 1, M, K), tables[0])]
    tasks += [pack_task(m, (m.strides[0], 0, m.strides[1]), N, 1, K, codes[z]) for z, m in enumerate(b)]
    for z in range(Z):
        view = View(Arena(z * image.size if len(a) > 1 else 0), 0, 0, image.pitch)
        left = Left(view, 1, 1, M, M, _ONE)
        ending = Ending(scale, per_column(size[0]), out=View(out[z], 0, 0, 4 * N), one_nan=True)
        packed = Packed(codes[z if len(b) > 1 else 0], tables[1], N)
        tasks.append(product_task(left, packed, offsets, ending, threads=get_num_threads()))
    program = Program(tasks, len(a) * image.size)
    program.memory().run()
    return out


def engine_matmul(a: QTensor, b: PackedTensor) -> Floats:
    """f32 (M, N) of a (M, K), scaled per tensor or row, and a packed matrix; both scales multiply."""
    rows = a.scale.size > 1
    key = "codes", a.shape, a.format, rows, get_num_threads()
    out = aligned_array((a.shape[0], b.shape[1]))
    if out.size == 0:
        return out
    run = _kept(b, key, lambda: _codes_program(b, a.shape, a.format, rows))
    run.run(np.ascontiguousarray(a.codes), np.ascontiguousarray(a.scale.reshape(-1)), out)
    return out


class _Run:
    """A program that multiplies what it is given: arrays a, scale and out."""

    def __init__(self, tasks: list[Task], arena: int, b: PackedTensor) -> None:
        self.program = Program(tasks, arena, arenas=b.arenas)

    def run(self, a: npt.NDArray[Any], scale: Floats, out: Floats) -> None:
        memory = self.program.memory()
        for name, array in (("a", a), ("scale", scale), ("out", out)):
            if name in self.program.externals:
                memory.bind(name, array.ctypes.data)
        memory.run()
        self.program.release(memory)


_MOST = 64
"""Programs that a packed matrix keeps: one for each number of rows that it meets."""

_lock = threading.Lock()


def _kept(b: PackedTensor, key: Any, make: Callable[[], _Run]) -> _Run:
    """The program of a key, made where it is new; the oldest goes where they are many."""
    run = b.programs.get(key)
    if run is None:
        run = make()
        with _lock:
            b.programs[key] = run
            while len(b.programs) > _MOST:
                del b.programs[next(iter(b.programs))]
    return run


def _codes_program(b: PackedTensor, shape: tuple[int, ...], fmt: FloatFormat, rows: bool) -> _Run:
    """a (M, K) codes -> out (M, N). rows: whether `scale` has a number for each row."""
    m, k = shape
    image = matrix(m, k)
    at = View(Arena(0), 0, 0, image.pitch)
    widen = widen_task(View(External("a"), 0, 0, k), at, image.panel, (1, 1, m, k), decode_tables(fmt))
    return _Run([widen, _product(image, at, b.packed, b.scale, External("scale"), rows)], image.size, b)


def _product(image: Image, at: View, packed: Packed, scale: Floats, a_scale: Word, rows: bool) -> Task:
    m, n = image.width, packed.columns
    left = Left(at, 1, 1, m, m, a_scale, row_scale=a_scale if rows else None, part=image.part if image.parts > 1 else 0)
    offsets = np.array([image.offset(s) for s in range(image.steps)], np.int64)
    ending = Ending(scale, per_column(packed.blocks), out=View(External("out"), 0, 0, 4 * n), one_nan=True)
    return product_task(left, packed, offsets, ending, threads=get_num_threads())


def engine_floats(x: Floats, b: PackedTensor, fmt: FloatFormat | None, scale: Floats | None) -> Floats:
    """f32 (M, N) of float32 x (M, K) and a packed matrix: each float exactly, or rounded to `fmt`, by `scale` or by the largest of x."""
    m, k = x.shape
    out = aligned_array((m, b.shape[1]))
    if out.size == 0:
        return out
    key = "floats", x.shape, fmt, scale is None, get_num_threads()
    run = _kept(b, key, lambda: _floats_program(b, m, k, fmt, scale is None))
    run.run(np.ascontiguousarray(x), _ONE if scale is None else scale, out)
    return out


def _floats_program(b: PackedTensor, m: int, k: int, fmt: FloatFormat | None, dynamic: bool) -> _Run:
    """a (M, K) float32 -> out (M, N). dynamic: the scale of `fmt` is found from a."""
    image = matrix(m, k, 1 if fmt else PARTS)
    at = View(Arena(0), 0, 0, image.pitch)
    source, sizes, end = View(External("a"), 0, 0, 4 * k), (1, 1, m, k), rounded_up(image.size)
    tasks: list[Task] = []
    scale: Word = External("scale")
    if fmt is None:
        tasks.append(split_task(source, at, image.panel, image.part, sizes))
    else:
        if dynamic:
            scale, parts = Arena(end), Arena(end + 64)
            tasks += scale_tasks(External("a"), m * k, fmt.max, parts, scale)
            end += 64 + 4 * (m * k // (1 << 15) + 1)
        tasks.append(quantize_task(source, at, image.panel, sizes, round_words(fmt, scale)))
    tasks.append(_product(image, at, b.packed, b.scale, scale, rows=False))
    return _Run(tasks, end, b)


def engine_convolution(
    x: Codes,
    x_format: FloatFormat,
    w: QTensor,
    pads: Pads,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    size: tuple[int, int],
) -> Floats | None:
    """f32 (B, O, Ho, Wo) of codes (B, C, H, W), without scales; pads not negative. None where groups are cut as the engine cannot."""
    kind = kind_of(groups, w.shape)
    # Where groups share a product, others than its own meet a number with the weight zero, which a NaN would survive.
    if kind is None or (kind in ("grouped", "spread") and x.size and (x & 0x7F).max() > x_format.max_magnitude):
        return None
    B, C, H, W = x.shape
    O = w.shape[0]  # noqa: E741 - the alphabet
    bare = QTensor(w.codes, w.format)
    image = Image(B, H, W, C, *pads)
    target = View(Arena(image.origin), image.image, image.row, image.pitch)
    pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    source = View(pixels, H * W * C, W * C, C)
    widen = widen_task(source, target, image.panel, (B, H, W, C), decode_tables(x_format))
    taps = taps_of(image, (w.shape[2], w.shape[3]), stride, dilation, pads)
    left = Left(View(Arena(taps.first), image.image, taps.row, taps.pixel), B, *size, taps.raster, _ONE)
    out = aligned_array((B, *size, O))
    if out.size == 0 or C == 0:
        out[:] = 0
        return out.transpose(0, 3, 1, 2)
    where = View(out, math.prod(size) * O * 4, size[1] * O * 4, O * 4)
    threads = get_num_threads()
    if kind == "depthwise":
        single = singles(bare)
        ending = Ending(single.scale, per_column(len(single.scale) // 32), out=where, one_nan=True)
        task = depthwise_task(left, single.values, O, image.panel, np.array(taps.offsets, np.int64), ending, threads=threads)
    else:
        if kind == "dense":
            made: Filters = filters(bare)
        else:
            made = grouped_filters(bare) if kind == "grouped" else spread_filters(bare, groups)
        steps = 1 if kind == "grouped" else image.steps
        offsets = np.array([t + image.offset(s) for t in taps.offsets for s in range(steps)], np.int64)
        ending = Ending(made.scale, per_column(made.packed.blocks), out=where, one_nan=True)
        panel = image.panel if kind == "grouped" else None
        task = product_task(left, made.packed, offsets, ending, threads=threads, panel=panel)
    program = Program([widen, task], image.size, image.size if image.padded else 0)
    program.memory().run()
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))
