"""From image files to what a network sees of them: a random part while training, the centre in evaluation.

Views are made with torchvision's own kernels, so the pixels are those of ``torchvision.transforms.v2``. JPEGs
are always decoded at full size: libjpeg could halve them on the way, which is faster, but that is another
filter and gives other pixels.
"""

import io
import math
import random
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

SCALE = (0.08, 1.0)
"""Share of the image's area that a random part has, as in Szegedy et al., CVPR 2015."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a random part."""
TRIES = 10
JPEG = b"\xff\xd8\xff"

Box = tuple[int, int, int, int]
"""A part of an image in pixels: top, left, height, width."""


def training_view(image: torch.Tensor, size: int, flip: bool, stream: random.Random) -> torch.Tensor:
    """A random part of ``image`` scaled to ``size`` pixels a side: torchvision's RandomResizedCrop.

    ``image``: uint8 (3, H, W); the result: uint8 (3, size, size). With ``flip`` it is mirrored left to right
    in half of all cases; the draws from ``stream`` are the same whatever ``flip`` is.
    """
    from torchvision.transforms.v2 import functional

    top, left, height, width = draw_box(image.shape[1], image.shape[2], stream)
    mirrored = stream.random() < 0.5
    part = image[None, :, top : top + height, left : left + width]
    # Channels last, as they are decoded and batched: a cut-out is scaled slower otherwise, to the same bits.
    part = part.contiguous(memory_format=torch.channels_last)
    view: torch.Tensor = functional.resize(part, [size, size], antialias=True)[0]
    return view.flip(2) if flip and mirrored else view


def evaluation_view(image: torch.Tensor, resize: int, size: int) -> torch.Tensor:
    """The centre of ``image``: torchvision's Resize and CenterCrop.

    ``image``: uint8 (3, H, W), whose shorter side is scaled to ``resize`` pixels; the result: uint8 (3, size,
    size).
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
            return top, left, box_height, box_width
    return central_box(height, width)


def central_box(height: int, width: int) -> Box:
    """The largest central part with an allowed ratio; for images too narrow or too flat for a random one."""
    box_height, box_width = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def decode_rgb(file: bytes) -> NDArray[np.uint8]:
    """The pixels of an image file as RGB: uint8 (3, H, W). Grey and CMYK are converted, alpha is dropped.

    Raises ValueError: the bytes are no whole image.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            if image.mode.startswith("I;16"):  # grey of 16 bits, which Pillow clips at 255
                scaled = np.rint(np.asarray(image) / 257).astype(np.uint8)
                return np.broadcast_to(scaled, (3, *scaled.shape))
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise errors of many kinds.
        raise ValueError("the image can't be decoded: it is damaged or of an unknown format") from error


def decode_tensor(file: NDArray[np.uint8]) -> torch.Tensor:
    """The pixels of an image file as RGB: uint8 (3, H, W).

    Torchvision's decoder takes two thirds of Pillow's time and gives the same pixels (both wrap
    libjpeg-turbo). What it refuses, Pillow decides: a file that one of them can read is an image. So does
    Pillow with JPEGs in CMYK, whose conversion is its own.

    ``file``: uint8 (bytes,), writable.

    Raises ValueError: the bytes are no whole image.
    """
    decode_jpeg = _torchvision_decoder()
    if decode_jpeg is not None and file[: len(JPEG)].tobytes() == JPEG:
        with suppress(RuntimeError):  # it is damaged
            pixels = decode_jpeg(torch.from_numpy(file))
            if len(pixels) in (1, 3):
                return pixels if len(pixels) == 3 else pixels.repeat(3, 1, 1)
    return torch.tensor(decode_rgb(file.tobytes()))


@cache
def _torchvision_decoder() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Torchvision's JPEG decoder, if it has one: version 0.29 announces that a later one will not."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        return None
    return partial(decode_jpeg, mode=ImageReadMode.UNCHANGED)
