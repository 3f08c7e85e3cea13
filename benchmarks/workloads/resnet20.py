"""ResNet-20 (arXiv 1512.03385, section 4.2; weights of akamaster/pytorch_resnet_cifar10, BSD-2) on CIFAR-10 pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resnet20 import ResNet20, normalized
from torch import nn

from fp8np.metrics import accuracy
from fp8np_benchmarks.workloads import Workload, need
from fp8np_converters.checkpoint import read_state_dict
from fp8np_converters.torch_export import from_module


def workload(shared: Path, models: Path) -> Workload:
    checkpoint = need(shared / "models" / "resnet20_cifar10.th", "ResNet-20 weights")
    with np.load(need(shared / "data" / "cifar10_jpeg_test_2000.npz", "CIFAR-10 pictures")) as data:
        pictures, labels = data["x"], data["y"]
    x = normalized(pictures)

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
