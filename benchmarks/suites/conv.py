"""Convolutions of ResNet and MobileNet as models of one layer, float32 pictures in and out: quantizing them is part of the time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fp8np.build import GraphBuilder
from fp8np.interpret import interpret
from fp8np.model import Model
from fp8np.ptq.recipe import get_recipe
from fp8np.ptq.workflow import quantize_model
from fp8np_benchmarks.case import OURS, Case, Ready, Setting
from fp8np_benchmarks.machine import roof
from fp8np_benchmarks.peers import find
from fp8np_benchmarks.suites._likeness import likeness

RECIPE = get_recipe("e4m3").replace(keep_first_last=False)

# What it is: input channels, height and width, output channels, kernel, stride, groups.
SHAPES = {
    "3x3, 64 of 56 x 56": (64, 56, 64, 3, 1, 1),
    "3x3, 256 of 14 x 14": (256, 14, 256, 3, 1, 1),
    "3x3 stride 2, 128 of 56 x 56": (128, 56, 128, 3, 2, 1),
    "1x1, 256 of 56 x 56 to 64": (256, 56, 64, 1, 1, 1),
    "1x1, 1024 of 14 x 14 to 256": (1024, 14, 256, 1, 1, 1),
    "depthwise 3x3, 144 of 56 x 56": (144, 56, 144, 3, 1, 144),
    "depthwise 3x3 stride 2, 96 of 112 x 112": (96, 112, 96, 3, 2, 96),
}


def cases(setting: Setting) -> list[Case]:
    """One picture; the smoke test takes a quarter of the channels."""
    found = []
    for name, (inputs, size, outputs, kernel, stride, groups) in SHAPES.items():
        part = 4 if setting.quick else 1
        c, o, g = inputs // part, outputs // part, max(1, groups // part)
        out = (size - 1) // stride + 1
        work = 2.0 * o * (c // g) * kernel**2 * out**2
        traffic = 4.0 * (c * size**2 + o * out**2) + o * (c // g) * kernel**2
        ceiling = partial(roof, work, traffic, setting.threads)
        prepare = partial(one_layer, c, size, o, kernel, stride, g)
        found.append(Case("conv", name, setting.threads, prepare, work, "flop", traffic, ceiling))
    return found


def one_layer(c: int, size: int, o: int, kernel: int, stride: int, groups: int) -> Ready:
    """A convolution with its bias, quantized by the standard recipe."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, c, size, size)).astype(np.float32)
    inner = c // groups * kernel**2
    w = (rng.standard_normal((o, c // groups, kernel, kernel)) / np.sqrt(inner)).astype(np.float32)
    bias = rng.standard_normal(o).astype(np.float32)
    b = GraphBuilder()
    attributes = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2), "groups": groups}
    layer = b.node("conv2d", (b.input("x", ("B", c, size, size), "float32"), b.constant("w", w), b.constant("bias", bias)), attributes)
    graph = b.finish(layer)
    quantized = quantize_model(graph, RECIPE, [x], report_batches=1).graph
    model = Model(quantized)
    absent: dict[str, str] = {}
    entries: dict[str, Any] = {OURS: lambda: model.run(x)}
    if torch := find("torch", absent, "torch f32", "torch f32 channels_last", "torch bf16 channels_last"):
        convolve = partial(torch.nn.functional.conv2d, stride=stride, padding=kernel // 2, groups=groups)
        given = [torch.from_numpy(array) for array in (x, w, bias)]
        last = [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in given]
        half = [t.bfloat16() for t in last[1:]]
        entries["torch f32"] = lambda: convolve(*given)
        entries["torch f32 channels_last"] = lambda: convolve(*last)
        # Within a network in bfloat16 its neighbours would have made and would take bfloat16.
        entries["torch bf16 channels_last"] = lambda: convolve(last[0].bfloat16(), *half).float()
    return Ready(entries, likeness(interpret(quantized, {"x": x}), interpret(graph, {"x": x})), absent)
