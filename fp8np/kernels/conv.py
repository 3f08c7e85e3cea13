"""conv2d: out = convolution(x, w) * scale + bias, on codes; products and sums first, then one rounding each for scale and bias.

x u8 (B, C, H, W); x_table f32 (256,), the values of x's codes; w u8 (O, C/G, kh, kw); w_table f32 (256,); geometry i64 (7,):
stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, groups; scale f32 (O,); bias f32 (O,)|(0,); out f32 (B, O, Ho, Wo),
overwritten. Padding counts as the value zero; how far it goes at the bottom and on the right follows from out's shape. Negative
padding crops.

A convolution is a product of the weights, as a matrix (O, K) with K = C/G * kh * kw, and of the pixels that each output pixel
reads, (K, pixels). The latter exists only one panel at a time, gathered from the codes. Pixels are counted through the whole
batch, so small pictures fill a panel together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp8np.kernels._arrays import Codes, Floats, read_only
from fp8np.kernels._jit import exact, fused
from fp8np.kernels._table import kernel
from fp8np.kernels._threads import parallel_for
from fp8np.kernels._tile import (
    DEPTH,
    LANES,
    ORDER,
    ROWS,
    accumulate,
    load_rows,
    padded,
    products_are_exact,
    store_rows,
)
from fp8np.kernels.gemm import gemm

Geometry = npt.NDArray[np.int64]
Offsets = npt.NDArray[np.int64]


@exact
def _gather(
    x: Codes,
    x_table: Floats,
    kernel_width: int,
    kernel_size: int,
    geometry: Geometry,
    plane: tuple[int, int],
    channel: int,
    pixel: int,
    lanes: int,
    k0: int,
    depth: int,
    panel: Floats,
) -> None:
    # panel[k, n] = value of what output pixel `pixel + n` reads at term k0 + k of the group whose first channel is `channel`.
    H, W = x.shape[2:]
    Ho, Wo = plane
    stride_h, stride_w = geometry[0], geometry[1]
    first_b = pixel // (Ho * Wo)
    first_y = pixel % (Ho * Wo) // Wo
    first_x = pixel % Wo
    for k in range(depth):
        c = channel + (k0 + k) // kernel_size
        ky = (k0 + k) % kernel_size // kernel_width
        kx = (k0 + k) % kernel_width
        up = ky * geometry[4] - geometry[2]
        left = kx * geometry[5] - geometry[3]
        # Output columns low .. high read inside the picture; the others read padding.
        low = max(0, -(left // stride_w))
        high = max(low, min(Wo, (W - 1 - left) // stride_w + 1))
        b, oy, ox = first_b, first_y, first_x
        n = 0
        while n < lanes:
            run = min(Wo - ox, lanes - n)
            target = panel[k * LANES + n : k * LANES + n + run]
            iy = oy * stride_h + up
            if 0 <= iy < H:
                start = min(max(low - ox, 0), run)
                end = min(max(high - ox, start), run)
                for j in range(start):
                    target[j] = np.float32(0)
                if end > start:
                    source = x[b, c, iy, (ox + start) * stride_w + left :]
                    inner = target[start:end]
                    if stride_w == 1:
                        for j in range(end - start):
                            inner[j] = x_table[source[j]]
                    else:
                        for j in range(end - start):
                            inner[j] = x_table[source[j * stride_w]]
                for j in range(end, run):
                    target[j] = np.float32(0)
            else:
                for j in range(run):
                    target[j] = np.float32(0)
            n += run
            ox = 0
            oy += 1
            if oy == Ho:
                oy = 0
                b += 1
        for n in range(lanes, padded(lanes)):
            panel[k * LANES + n] = np.float32(0)


@exact
def _scale_rows(row: int, stop: int, scale: Floats, bias: Floats, tile: Floats) -> None:
    for r in range(row, stop):
        line = tile[(r - row) * LANES : (r - row + 1) * LANES]
        shift = bias[r] if bias.size else np.float32(0)
        for n in range(LANES):
            line[n] = line[n] * scale[r] + shift


@exact
def _panels(
    x: Codes,
    x_table: Floats,
    w: Codes,
    w_table: Floats,
    geometry: Geometry,
    scale: Floats,
    bias: Floats,
    kernel_width: int,
    kernel_size: int,
    plane: tuple[int, int],
    out: Floats,
    start: int,
    stop: int,
) -> None:
    # w u8 (O, K); out f32 (B, O, Ho * Wo). An item is ROWS output channels of LANES pixels of a group. Neighbours share
    # pixels, so a range gathers each panel once.
    K = w.shape[1]
    rows = w.shape[0] // geometry[6]
    channels = x.shape[1] // geometry[6]
    pixels = out.shape[0] * out.shape[2]
    blocks = (rows + ROWS - 1) // ROWS
    stripes = (pixels + LANES - 1) // LANES
    panel = np.empty(DEPTH * LANES, np.float32)
    tile = np.empty(ROWS * LANES, np.float32)
    item = start
    while item < stop:
        stripe = item // blocks
        block = item % blocks
        count = min(blocks - block, stop - item)
        group = stripe // stripes
        first = stripe % stripes * LANES
        lanes = min(LANES, pixels - first)
        top = group * rows + block * ROWS
        bottom = group * rows + min((block + count) * ROWS, rows)
        for k0 in range(0, max(K, 1), DEPTH):
            depth = min(DEPTH, K - k0)
            _gather(x, x_table, kernel_width, kernel_size, geometry, plane, group * channels, first, lanes, k0, depth, panel)
            for row in range(top, bottom, ROWS):
                end = min(row + ROWS, bottom)
                if k0 == 0:
                    tile[:] = np.float32(0)
                else:
                    load_rows(out, row, end, first, lanes, tile)
                accumulate(w, w_table, row, k0, depth, panel, padded(lanes), tile)
                if k0 + DEPTH >= K:
                    _scale_rows(row, end, scale, bias, tile)
                store_rows(tile, row, end, first, lanes, out)
        item += count


@exact
def _decode_phases(x: Codes, x_table: Floats, geometry: Geometry, phases: Floats) -> None:
    # phases[p, q, i, j] = value of x[i * stride_h + p - pad_top, j * stride_w + q - pad_left], zero outside of x.
    H, W = x.shape
    stride_h, stride_w, rows, pitch = phases.shape
    for p in range(stride_h):
        for q in range(stride_w):
            left = q - geometry[3]
            low = min(max(0, -(left // stride_w)), pitch)
            high = max(low, min(pitch, (W - 1 - left) // stride_w + 1))
            for i in range(rows):
                y = i * stride_h + p - geometry[2]
                line = phases[p, q, i]
                line[:] = np.float32(0)
                if 0 <= y < H and high > low:
                    source = x[y, low * stride_w + left :]
                    inner = line[low:high]
                    for j in range(high - low):
                        inner[j] = x_table[source[j * stride_w]]


@fused
def _add_taps(pixels: Floats, offsets: Offsets, taps: Floats, line: Floats) -> None:
    # line[n] = sum over t of taps[t] * pixels[offsets[t] + n]. Four taps a pass: up to 1.5 times faster than one.
    line[:] = np.float32(0)
    fours = taps.size // 4 * 4
    for t in range(0, fours, 4):
        t0, t1, t2, t3 = taps[t], taps[t + 1], taps[t + 2], taps[t + 3]
        p0 = pixels[offsets[t] :]
        p1 = pixels[offsets[t + 1] :]
        p2 = pixels[offsets[t + 2] :]
        p3 = pixels[offsets[t + 3] :]
        for n in range(line.size):
            line[n] = line[n] + t0 * p0[n] + t1 * p1[n] + t2 * p2[n] + t3 * p3[n]
    for t in range(fours, taps.size):
        t0 = taps[t]
        p0 = pixels[offsets[t] :]
        for n in range(line.size):
            line[n] += t0 * p0[n]


@exact
def _depthwise(
    x: Codes,
    x_table: Floats,
    w: Codes,
    w_table: Floats,
    geometry: Geometry,
    scale: Floats,
    bias: Floats,
    out: Floats,
    start: int,
    stop: int,
) -> None:
    # w u8 (O, 1, kh, kw). An item is one output channel of one picture; each output channel reads one input channel.
    #
    # The picture is decoded into stride_h * stride_w phases, small pictures in which a stride is a step of one. A tap is then
    # one shift of a whole phase, rows and all, whatever the stride:
    #
    #     x  0 1 2 3 4 5 6     stride 2     phase 0  0 2 4 6     tap kx reads phase kx % 2 from kx // 2 on
    #                                       phase 1  1 3 5 .
    #
    # What is computed past the end of each row is not stored.
    O, _, kh, kw = w.shape  # noqa: E741 - the alphabet
    Ho, Wo = out.shape[2:]
    stride_h, stride_w = geometry[0], geometry[1]
    multiplier = O // x.shape[1]
    reach_h = (kh - 1) * geometry[4] // stride_h
    reach_w = (kw - 1) * geometry[5] // stride_w
    pitch = Wo + reach_w
    # One row more, for what the last rows read past their end.
    phases = np.empty((stride_h, stride_w, Ho + reach_h + 1, pitch), np.float32)
    pixels = phases.reshape(phases.size)
    offsets = np.empty(kh * kw, np.int64)
    taps = np.empty(kh * kw, np.float32)
    for ky in range(kh):
        for kx in range(kw):
            y = ky * geometry[4]
            z = kx * geometry[5]
            phase = y % stride_h * stride_w + z % stride_w
            offsets[ky * kw + kx] = (phase * phases.shape[2] + y // stride_h) * pitch + z // stride_w
    block = max(1, 2048 // pitch)
    line = np.empty(min(block, Ho) * pitch, np.float32)
    for item in range(start, stop):
        b = item // O
        o = item % O
        for ky in range(kh):
            for kx in range(kw):
                taps[ky * kw + kx] = w_table[w[o, 0, ky, kx]]
        _decode_phases(x[b, o // multiplier], x_table, geometry, phases)
        shift = bias[o] if bias.size else np.float32(0)
        for y0 in range(0, Ho, block):
            rows = min(block, Ho - y0)
            _add_taps(pixels[y0 * pitch :], offsets, taps, line[: rows * pitch])
            for i in range(rows):
                source = line[i * pitch : i * pitch + Wo]
                target = out[b, o, y0 + i]
                for n in range(Wo):
                    target[n] = source[n] * scale[o] + shift


def conv2d(
    x: Codes,
    x_table: Floats,
    w: Codes,
    w_table: Floats,
    geometry: Geometry,
    scale: Floats,
    bias: Floats,
    out: Floats,
) -> None:
    """The entry of the row; arguments as in the module's docstring."""
    B, C, H, W = x.shape
    O, per_group, kh, kw = w.shape  # noqa: E741 - the alphabet
    Ho, Wo = out.shape[2:]
    K = per_group * kh * kw
    work = out.size * max(K, 1)
    if (kh, kw, Ho, Wo) == (H, W, 1, 1) and tuple(geometry[2:]) == (0, 0, 1, 1, 1):
        # One window reads all of the picture: a matrix product.
        out[...] = 0
        one = np.ones(1, np.float32)
        gemm(x.reshape(1, B, K), x_table, w.reshape(1, O, K), w_table, one, scale, bias, out.reshape(1, B, O))
        return
    pointwise = (kh, kw, Ho, Wo) == (1, 1, H, W) and tuple(geometry[:4]) == (1, 1, 0, 0)
    # A picture of one long row lets the gather copy whole rows of the panel.
    plane = (1, H * W) if pointwise else (Ho, Wo)
    pictures, filters = x.reshape(B, C, 1, H * W) if pointwise else x, w.reshape(O, K)
    sums = out.reshape(B, O, Ho * Wo)
    x, pictures, x_table, w, filters, w_table, geometry, scale, bias = read_only(
        x, pictures, x_table, w, filters, w_table, geometry, scale, bias
    )
    groups = int(geometry[6])

    def depthwise(start: int, stop: int) -> None:
        _depthwise(x, x_table, w, w_table, geometry, scale, bias, out, start, stop)

    def panels(start: int, stop: int) -> None:
        _panels(pictures, x_table, filters, w_table, geometry, scale, bias, kw, kh * kw, plane, sums, start, stop)

    # A multiply-add takes an eighth of the time of what `parallel_for` counts in; depthwise, half.
    if per_group == 1 and groups > 1:
        parallel_for(depthwise, B * O if out.size else 0, work // 2)
    else:
        parallel_for(panels, groups * -(-B * Ho * Wo // LANES) * -(-(O // groups) // ROWS), work // 8)


kernel("conv2d", conv2d, order=ORDER, reproducible=True, takes=products_are_exact)
kernel("conv2d", conv2d, order=ORDER + ", products fused where the CPU can", reproducible=False)
