"""MobileNet-V2 (arXiv 1801.04381, table 2, width 1), for timing: random weights."""

from __future__ import annotations

import torch
from torch import nn

from fp8np_benchmarks.workloads.random_weights import quiet, settled

# (expansion, channels, repeats, stride) of each stage: table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def convolution(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise, 1x1 projection."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        layers = [*convolution(channels_in, wide, 1), nn.ReLU6()] if expansion != 1 else []
        layers += [*convolution(wide, wide, 3, stride, groups=wide), nn.ReLU6(), *convolution(wide, channels, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels
        if self.residual:
            quiet(layers[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, 32, 3, 2), nn.ReLU6())
        blocks: list[nn.Module] = []
        channels_in = 32
        for expansion, channels, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(channels_in, channels, stride if i == 0 else 1, expansion))
                channels_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*convolution(channels_in, 1280, 1), nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))


def module(size: int = 224) -> nn.Module:
    """For pictures of `size` pixels."""
    return settled(MobileNetV2(), size)
