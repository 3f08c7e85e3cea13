"""ResNet-50 (arXiv 1512.03385, table 1; the stride is in the 3x3 convolution, as everywhere since), for timing: random weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fp8np_benchmarks.workloads.random_weights import quiet, settled

# (channels inside, repeats, stride) of each stage: table 1 of the paper, 50 layers.
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
WIDENING = 4


def convolution(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and the way past them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = channels * WIDENING
        self.down = convolution(channels_in, channels, 1)
        self.middle = convolution(channels, channels, 3, stride)
        self.up = convolution(channels, wide, 1)
        quiet(self.up[1])
        self.past = convolution(channels_in, wide, 1, stride) if stride != 1 or channels_in != wide else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.middle(F.relu(self.down(x))))
        return F.relu(self.up(y) + self.past(x))


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 64, 7, 2)
        blocks: list[nn.Module] = []
        channels_in = 64
        for channels, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(Bottleneck(channels_in, channels, stride if i == 0 else 1))
                channels_in = channels * WIDENING
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels_in, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, padding=1)
        return self.classifier(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


def module(size: int = 224) -> nn.Module:
    """For pictures of `size` pixels."""
    return settled(ResNet50(), size)
