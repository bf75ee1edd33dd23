"""Scaling images to one size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from raygf.data.memory_limit import require_memory


def resize(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """``images`` uint8 (N, C, H, W) as (N, C, size, size): bilinear, smoothed when made smaller.

    An image that is not square is cut to its central square first, so nothing is distorted. ``size`` None
    leaves the images as they are.

    Raises:
        DataError: they would take more memory than a set may.
    """
    if size is None:
        return images
    require_memory(len(images), (images.shape[1], size, size))
    side = min(images.shape[2:])
    top, left = ((length - side) // 2 for length in images.shape[2:])
    square = images[:, :, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    # tensor() copies: the array may be read-only, which from_numpy can't stand for.
    scaled = functional.interpolate(torch.tensor(square), size=(size, size), mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = scaled.contiguous().numpy()
    return pixels
