"""What a network sees of a large image: a random part while training, the centre in evaluation.

Both work on decoded images, uint8 (3, H, W), with torchvision's own kernels, so the pixels are those of
``torchvision.transforms.v2``. JPEGs are always decoded at full size: libjpeg could halve them on the way,
which is faster, but that is another filter and gives other pixels.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch

SCALE = (0.08, 1.0)
"""Share of the image's area that a random part has, as in Szegedy et al., CVPR 2015."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a random part."""
TRIES = 10


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def training_view(image: torch.Tensor, size: int, flip: bool, stream: random.Random) -> torch.Tensor:
    """A random part of ``image`` scaled to ``size`` pixels a side: torchvision's RandomResizedCrop.

    Args:
        image: uint8 (3, H, W).
        size: pixels a side of the result.
        flip: mirror it left to right in half of all cases.
        stream: where the draws come from; the same ones whatever ``flip`` is.

    Returns:
        uint8 (3, size, size).
    """
    from torchvision.transforms.v2 import functional

    box = draw_box(image.shape[1], image.shape[2], stream)
    mirrored = stream.random() < 0.5
    view: torch.Tensor = functional.resized_crop(image, *box, [size, size], antialias=True)
    return view.flip(2) if flip and mirrored else view


def evaluation_view(image: torch.Tensor, resize: int, size: int) -> torch.Tensor:
    """The centre of ``image``: torchvision's Resize and CenterCrop.

    Args:
        image: uint8 (3, H, W).
        resize: what its shorter side is scaled to, in pixels.
        size: pixels a side that are then cut out.

    Returns:
        uint8 (3, size, size).
    """
    from torchvision.transforms.v2 import functional

    scaled = functional.resize(image, [resize], antialias=True)
    view: torch.Tensor = functional.center_crop(scaled, [size, size])
    return view


def draw_box(height: int, width: int, stream: random.Random) -> Box:
    """A random part of an image, drawn as torchvision's RandomResizedCrop draws it."""
    lowest, highest = (math.log(ratio) for ratio in RATIO)
    for _ in range(TRIES):
        area = height * width * stream.uniform(*SCALE)
        ratio = math.exp(stream.uniform(lowest, highest))
        box_width = round(math.sqrt(area * ratio))
        box_height = round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = stream.randint(0, height - box_height)
            left = stream.randint(0, width - box_width)
            return Box(top, left, box_height, box_width)
    return central_box(height, width)


def central_box(height: int, width: int) -> Box:
    """The largest central part with an allowed ratio; for images too narrow or too flat for a random one."""
    box_height, box_width = height, width
    if width / height < RATIO[0]:
        box_height = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        box_width = round(height * RATIO[1])
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
