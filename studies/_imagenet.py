"""500 ImageNet pictures, every second class in order, one of each: centres of 260 x 260 pixels, JPEG. For non-commercial research."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from fp8np_studies._folders import Folders, find

__all__ = ["label", "names", "pictures"]


def names(folders: Folders) -> list[str]:
    """Of the pictures, in the order of their classes."""
    with zipfile.ZipFile(find(folders, "shared", "data/imagenet_even500.zip", "the ImageNet pictures")) as files:
        return sorted(name for name in files.namelist() if name.endswith(".jpg"))


def label(name: str) -> int:
    """The class of a picture, which its name starts with."""
    return int(name.rpartition("/")[2].partition("_")[0])


def pictures(folders: Folders, chosen: Sequence[str]) -> Iterator[Any]:
    """The chosen pictures as PIL has them, RGB."""
    from PIL import Image

    with zipfile.ZipFile(find(folders, "shared", "data/imagenet_even500.zip", "the ImageNet pictures")) as files:
        for name in chosen:
            with files.open(name) as file:
                yield Image.open(file).convert("RGB")
