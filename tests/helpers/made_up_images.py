"""Small made-up images and data sets."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from raygf.compute import Compute
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.data.in_memory import ImageSet
from raygf.data.splits import Split

CPU = Compute("cpu", "fp32", "contiguous")


def make_split(count: int, shape: tuple[int, ...] = (3, 6, 6), seed: int = 0) -> Split:
    """Random images that can be told apart, with labels 0 … 9 in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % 10)


def make_set(train: int = 20, val: int = 5, test: int = 7, **fields: Any) -> ImageSet:
    """An image set of random 6x6 images; without augmentation unless ``fields`` say otherwise."""
    values: dict[str, Any] = {
        "name": "made up",
        "spec": InputSpec(3, 6, 6, 10),
        "class_names": tuple("abcdefghij"),
        "train": make_split(train, seed=1),
        "val": make_split(val, seed=2),
        "test": make_split(test, seed=3),
        "statistics": ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.25, 0.5)),
        "pad": 0,
        "flip": False,
    }
    return ImageSet(**{**values, **fields})


def encode(pixels: np.ndarray, format: str = "PNG", mode: str | None = None) -> bytes:
    """Pixels uint8 (H, W, 3) or (H, W) as an image file, converted to ``mode`` first."""
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format)
    return file.getvalue()


def random_pixels(count: int, size: int = 5, seed: int = 0) -> list[np.ndarray]:
    """``count`` RGB images uint8 (size, size, 3)."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))
