"""ResNet-20 for CIFAR-10 (arXiv 1512.03385, section 4.2): the network and its data, for the command line.

    fp8np convert examples/data/resnet20_cifar10.th -o out/resnet20-e4m3.safetensors \\
        --module examples.resnet20:network --calibration examples.resnet20:calibration
    fp8np evaluate out/resnet20-e4m3.safetensors --data examples.resnet20:labelled --metric accuracy
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parent / "data"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: every second pixel, new channels padded with zeros."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra = (channels - channels_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """19 convolutions and a linear layer. x (B, 3, 32, 32), normalized -> logits (B, 10)."""

    # What `fp8np convert` traces the network with.
    example_inputs = (torch.zeros(2, 3, 32, 32),)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def network() -> nn.Module:
    """The network; its weights come from the checkpoint."""
    return ResNet20()


def normalized(pictures: Any) -> Any:
    """uint8 (B, 32, 32, 3) -> float32 (B, 3, 32, 32)"""
    return np.ascontiguousarray(((pictures / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)


def calibration() -> Iterator[Any]:
    """100 pictures in batches of 50."""
    with np.load(DATA / "cifar10_300.npz") as data:
        x = normalized(data["x"][200:])
    yield from (x[:50], x[50:])


def labelled() -> Iterator[tuple[Any, Any]]:
    """200 other pictures with their labels, in batches of 50."""
    with np.load(DATA / "cifar10_300.npz") as data:
        x, y = normalized(data["x"][:200]), data["y"][:200]
    for start in range(0, 200, 50):
        yield x[start : start + 50], y[start : start + 50]
