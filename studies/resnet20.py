"""ResNet-20 (arXiv 1512.03385, section 4.2; weights of akamaster/pytorch_resnet_cifar10, BSD-2) on 2000 CIFAR-10 test pictures.

The pictures are JPEG copies, which costs the network ten points against the original files. There is no training set at hand:
calibration sees the first 300 without their labels, and `held_out` are the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fp8np_studies._batches import cut
from fp8np_studies._folders import Folders, find

__all__ = ["calibration", "data", "held_out", "network", "normalized"]

CALIBRATION = 300
BATCH = 100
# Of ImageNet, which the network was trained with.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def network(folders: Folders) -> Any:
    """x (B, 3, 32, 32), normalized -> logits (B, 10)"""
    from fp8np_studies._weights import pretrained
    from fp8np_studies.networks.resnet20 import ResNet20

    return pretrained(ResNet20(), find(folders, "shared", "models/resnet20_cifar10.th", "ResNet-20's weights"))


def data(folders: Folders) -> Iterator[Any]:
    """All 2000 pictures, with labels."""
    return cut(BATCH, *_labelled(folders))


def held_out(folders: Folders) -> Iterator[Any]:
    """The 1700 that calibration does not see, with labels."""
    pictures, labels = _labelled(folders)
    return cut(BATCH, pictures[CALIBRATION:], labels[CALIBRATION:])


def calibration(folders: Folders) -> Iterator[Any]:
    """The first 300, without labels."""
    return cut(BATCH, _labelled(folders)[0][:CALIBRATION])


def normalized(pictures: Any) -> Any:
    """uint8 (B, 32, 32, 3) -> float32 (B, 3, 32, 32)"""
    return np.ascontiguousarray(((pictures / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)


def _labelled(folders: Folders) -> tuple[Any, Any]:
    with np.load(find(folders, "shared", "data/cifar10_jpeg_test_2000.npz", "the CIFAR-10 pictures")) as file:
        return normalized(file["x"]), file["y"]
