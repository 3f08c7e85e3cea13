"""VDSR (arXiv 1511.04587; weights of twtygqyy/pytorch-vdsr, MIT): super-resolution x2 of the luminance of ImageNet pictures.

The centres (128 x 128) of 42 pictures are halved and enlarged again by bicubic interpolation, and the network is to give back what
was lost. Set5 and its like, which papers quote, are not at hand; the pictures were compressed as JPEG, which is part of what is to
be given back. Calibration sees 12 other pictures. The figure is the mean of the PSNR of each picture; interpolation alone has
29.28 dB, so that a recipe that loses 1 % of the PSNR has lost an eighth of what the network gains (31.83 dB in FP32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fp8np.metrics import psnr
from fp8np_studies import _imagenet
from fp8np_studies._batches import cut
from fp8np_studies._folders import Folders, find

__all__ = ["calibration", "data", "interpolated", "luminance", "mean_psnr", "network"]

STRIDE = 12
CALIBRATION = 12
BATCH = 6
SIZE = 128
SCALE = 2


def network(folders: Folders) -> Any:
    """x (B, 1, 128, 128), luminance in [0, 1] -> the same, sharpened"""
    from fp8np_studies._weights import pretrained
    from fp8np_studies.networks.vdsr import VDSR

    def name(stored: str) -> str:
        return stored.replace("residual_layer.", "hidden.").replace(".conv.", ".")

    return pretrained(VDSR(), find(folders, "shared", "models/vdsr.pt", "VDSR's weights"), name=name)


def data(folders: Folders) -> Iterator[Any]:
    """Every 12th picture, interpolated, with what it was."""
    return _pairs(folders, _imagenet.names(folders)[::STRIDE])


def calibration(folders: Folders) -> Iterator[Any]:
    """12 of those between, interpolated."""
    return (x for x, _ in _pairs(folders, _imagenet.names(folders)[STRIDE // 2 :: STRIDE][:CALIBRATION]))


def mean_psnr(pictures: Any, truth: Any) -> float:
    """In dB, of values cut to [0, 1]; as many pixels as the scale are left out along each border, as is usual."""
    inner = (0, slice(SCALE, -SCALE), slice(SCALE, -SCALE))
    return float(np.mean([psnr(np.clip(x[inner], 0, 1), y[inner]) for x, y in zip(pictures, truth, strict=True)]))


def luminance(image: Any) -> Any:
    """Of an RGB picture, ITU-R BT.601, in steps of 8 bits: float32 (H, W) within [16, 235]"""
    return np.round(np.asarray(image, np.float32) @ np.array([65.481, 128.553, 24.966], np.float32) / 255 + 16)


def interpolated(values: Any) -> Any:
    """Halved, rounded to 8 bits and enlarged again, by bicubic interpolation: (H, W) as before."""
    from PIL import Image

    bicubic = Image.Resampling.BICUBIC
    height, width = values.shape
    small = Image.fromarray(values).resize((width // SCALE, height // SCALE), bicubic)
    rounded = np.clip(np.round(np.asarray(small)), 0, 255)
    return np.asarray(Image.fromarray(rounded).resize((width, height), bicubic))


def _pairs(folders: Folders, names: Sequence[str]) -> Iterator[Any]:
    for chosen in cut(BATCH, names):
        sharp = [_centre(luminance(image)) for image in _imagenet.pictures(folders, chosen)]
        blurred = [interpolated(values) for values in sharp]
        yield tuple(np.stack(part)[:, None].astype(np.float32) / 255 for part in (blurred, sharp))


def _centre(values: Any) -> Any:
    top, left = ((size - SIZE) // 2 for size in values.shape)
    return np.ascontiguousarray(values[top : top + SIZE, left : left + SIZE])
