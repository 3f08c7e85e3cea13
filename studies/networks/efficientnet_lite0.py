"""EfficientNet-Lite0: arXiv 1905.11946 without squeeze-and-excitation, with ReLU6."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["EfficientNetLite0", "MBConv"]

# (expansion, channels, repeats, kernel, stride) of each stage: table 1 of the paper, B0.
STAGES = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1))


class SameConv2d(nn.Conv2d):
    """TensorFlow's "same" padding: the odd pixel goes to the bottom and the right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [half for p in pads for half in (p // 2, p - p // 2)]))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class MBConv(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise, 1x1 projection."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(channels_in, wide, 1, bias=False), norm(wide), nn.ReLU6()]
        layers += [SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False), norm(wide), nn.ReLU6()]
        layers += [nn.Conv2d(wide, channels, 1, bias=False), norm(channels)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
    """x (B, 3, 224, 224), (pixel - 127) / 128 -> logits (B, 1000)"""

    example_inputs = (torch.zeros(2, 3, 224, 224),)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv2d(3, 32, 3, 2, bias=False), norm(32), nn.ReLU6())
        blocks: list[nn.Module] = []
        channels_in = 32
        for expansion, channels, repeats, kernel, stride in STAGES:
            for i in range(repeats):
                blocks.append(MBConv(channels_in, channels, kernel, stride if i == 0 else 1, expansion))
                channels_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), norm(1280), nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))
