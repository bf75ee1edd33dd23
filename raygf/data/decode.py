"""Image files in memory to pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def decode_rgb(file: bytes) -> NDArray[np.uint8]:
    """The pixels of an image file as RGB: uint8 (3, H, W). Grey and CMYK are converted, alpha is dropped.

    Raises:
        ValueError: the bytes are no whole image.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            return np.asarray(_eight_bits(image).convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise errors of many kinds.
        raise ValueError("the image can't be decoded: it is damaged or of an unknown format") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (PNG, TIFF) scaled to 8: Pillow's own conversion would clip it at 255."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
