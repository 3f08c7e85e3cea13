"""ResNet-20 for CIFAR-10 (arXiv 1512.03385, section 4.2): the network and its data, for the command line.

The network is defined in studies/networks/resnet20.py; its `example_inputs` say what it is traced with.

    fp8np convert examples/data/resnet20_cifar10.th -o out/resnet20-e4m3.safetensors \\
        --module examples.resnet20:network --calibration examples.resnet20:calibration
    fp8np evaluate out/resnet20-e4m3.safetensors --data examples.resnet20:labelled --metric accuracy
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fp8np_studies.networks.resnet20 import ResNet20
from fp8np_studies.resnet20 import normalized

DATA = Path(__file__).parent / "data"


def network() -> nn.Module:
    """The network; its weights come from the checkpoint."""
    return ResNet20()


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
