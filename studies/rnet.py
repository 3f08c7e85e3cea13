"""R-Net of MTCNN (arXiv 1604.02878; wheel facenet-pytorch, MIT) on scikit-image's lfw_subset.npy: 100 faces and 100 others, grey.

As they are, all are told right, and nothing could be compared. So each is shown five times: as it is, in noise of two levels, and with
two thirds and half of its resolution. A face is what the network gives at least 0.7, as MTCNN does at this stage. What is resampled for
the interval is a picture in all its conditions. The mistakes are missed faces, none of the others is taken for one: a recipe that makes
the network bolder gains. Hence `auc`, which no threshold moves, beside `detected`. Calibration sees every fifth picture, and the
figures are of the other 160.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fp8np_studies._batches import cut
from fp8np_studies._folders import Folders, find

__all__ = ["auc", "calibration", "conditions", "data", "detected", "network", "pictures"]

STRIDE, BATCH = 5, 20
SIZE = 24
FACES = 100
"""So many of the file's pictures are faces, and come first."""
THRESHOLD = 0.7
NOISE = 10, 20
RESOLUTION = 16, 12


def network(folders: Folders) -> Any:
    """x (B, 3, 24, 24) -> box: offsets (B, 4); face: probabilities of no and yes (B, 2)"""
    from fp8np_studies._weights import pretrained
    from fp8np_studies.networks.rnet import RNet

    return pretrained(RNet(), find(folders, "models", "facenet_pytorch/data/rnet.pt", "R-Net's weights"))


def data(folders: Folders) -> Iterator[Any]:
    """The pictures that calibration does not see, in all conditions, labelled with whether each is a face."""
    shown, truth = _shown(folders)
    chosen = np.arange(len(shown)) % STRIDE > 0
    return _flat(shown[chosen], truth[chosen])


def calibration(folders: Folders) -> Iterator[Any]:
    """Every fifth picture, in all conditions."""
    return (x for x, _ in _flat(*(part[::STRIDE] for part in _shown(folders))))


def pictures(outputs: Sequence[Any], labels: Sequence[Any]) -> tuple[Any, Any]:
    """A picture each: the probabilities of a face in all its conditions, and whether it is one (n, conditions), twice."""
    count = 1 + len(NOISE) + len(RESOLUTION)
    return np.concatenate(outputs)[:, 1].reshape(-1, count), np.concatenate(labels).reshape(-1, count)


def detected(probabilities: Any, truth: Any) -> float:
    """The share told right at a threshold of 0.7."""
    return float(np.mean((np.asarray(probabilities) >= THRESHOLD) == truth))


def auc(probabilities: Any, truth: Any) -> float:
    """How often a face has the higher probability than something else: the area under the ROC curve."""
    scores, faces = np.ravel(probabilities), np.ravel(truth)
    ours, others = scores[faces][:, None], scores[~faces]
    return float(np.mean((ours > others) + 0.5 * (ours == others)))


def conditions(picture: Any, rng: np.random.Generator) -> Any:
    """A picture in each condition: (24, 24), within [0, 255] -> (conditions, 24, 24)"""
    from PIL import Image

    bilinear, image = Image.Resampling.BILINEAR, Image.fromarray(picture)
    noisy = [np.clip(picture + rng.normal(0, level, picture.shape), 0, 255) for level in NOISE]
    coarse = [np.asarray(image.resize((size, size), bilinear).resize(picture.shape, bilinear)) for size in RESOLUTION]
    return np.stack([picture, *noisy, *coarse]).astype(np.float32)


def _shown(folders: Folders) -> tuple[Any, Any]:
    stored = np.load(find(folders, "shared", "data/lfw_subset.npy", "the pictures of faces"))
    rng = np.random.default_rng(0)
    cropped = (stored[:, :SIZE, :SIZE] * 255).astype(np.float32)
    shown = np.stack([conditions(picture, rng) for picture in cropped])
    return shown, np.repeat((np.arange(len(shown)) < FACES)[:, None], shown.shape[1], axis=1)


def _flat(shown: Any, truth: Any) -> Iterator[Any]:
    x = np.repeat((shown.reshape(-1, 1, SIZE, SIZE) - 127.5) / 128, 3, axis=1).astype(np.float32)
    return cut(BATCH * shown.shape[1], x, truth.reshape(-1))
