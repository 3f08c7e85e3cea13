"""ResNet-20 (arXiv 1512.03385, section 4.2; weights of akamaster/pytorch_resnet_cifar10, BSD-2) on CIFAR-10 pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fp8np.metrics import accuracy
from fp8np_converters.checkpoint import read_state_dict
from fp8np_converters.torch_export import from_module
from workloads import Workload, need

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


def workload(shared: Path, models: Path) -> Workload:
    checkpoint = need(shared / "models" / "resnet20_cifar10.th", "ResNet-20 weights")
    with np.load(need(shared / "data" / "cifar10_jpeg_test_2000.npz", "CIFAR-10 pictures")) as data:
        pictures, labels = data["x"], data["y"]
    x = np.ascontiguousarray(((pictures / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)

    def module() -> nn.Module:
        model = ResNet20().eval()
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in read_state_dict(checkpoint).items()})
        return model

    def batches(rows: slice) -> Iterator[Any]:
        for start in range(*rows.indices(len(x)))[::100]:
            yield x[start : start + 100]

    return Workload(
        name="ResNet-20, CIFAR-10",
        metric="accuracy",
        module=module,
        graph=lambda: from_module(module(), (x[:2],), name="resnet20"),
        # There is no training set at hand: calibration sees the first 300 test pictures without their labels.
        calibration=lambda: batches(slice(0, 300)),
        batches=lambda: batches(slice(0, None)),
        score=lambda outputs: accuracy(np.concatenate(outputs), labels),
        logits=lambda output: output,
    )
