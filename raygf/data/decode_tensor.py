"""Image files in memory to tensors: JPEGs by torchvision's decoder, all else by Pillow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from raygf.data.decode import decode_rgb

JPEG = b"\xff\xd8\xff"


def decode_tensor(file: NDArray[np.uint8]) -> torch.Tensor:
    """The pixels of an image file as RGB: uint8 (3, H, W).

    Torchvision's decoder takes two thirds of Pillow's time and gives the same pixels (both wrap
    libjpeg-turbo). What it refuses, Pillow decides: a file that one of them can read is an image.

    Args:
        file: uint8 (bytes,), writable.

    Raises:
        ValueError: the bytes are no whole image.
    """
    if file[: len(JPEG)].tobytes() == JPEG:
        pixels = _decode_jpeg(file)
        if pixels is not None:
            return pixels
    return torch.tensor(decode_rgb(file.tobytes()))


def _decode_jpeg(file: NDArray[np.uint8]) -> torch.Tensor | None:
    """Colour and grey JPEGs; None for those in CMYK, whose conversion is Pillow's, and for damaged ones."""
    decode = _torchvision_decoder()
    if decode is None:
        return None
    try:
        pixels = decode(torch.from_numpy(file))
    except RuntimeError:
        return None
    if len(pixels) == 1:
        return pixels.repeat(3, 1, 1)
    return pixels if len(pixels) == 3 else None


@cache
def _torchvision_decoder() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Torchvision's JPEG decoder, if it has one: version 0.29 announces that a later one will not."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        return None
    return partial(decode_jpeg, mode=ImageReadMode.UNCHANGED)
