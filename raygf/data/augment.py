"""Random crop and flip of whole batches, on the device that holds them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional


class EpochDraws(NamedTuple):
    """Every random number of one epoch; entry ``i`` belongs to the ``i``-th image of the epoch."""

    order: torch.Tensor
    """The images, shuffled: int64 (N,)."""
    corners: torch.Tensor | None
    """Top and left edge of each crop in the padded image: int64 (N, 2) in 0 … 2·pad. None: no crop."""
    flips: torch.Tensor | None
    """Which images are flipped: bool (N,). None: no flip."""

    def to(self, device: str) -> EpochDraws:
        """The same numbers on ``device``."""
        corners, flips = (None if draw is None else draw.to(device) for draw in (self.corners, self.flips))
        return EpochDraws(self.order.to(device), corners, flips)


def draw_epoch(count: int, pad: int, flip: bool, stream: torch.Generator) -> EpochDraws:
    """The draws of one epoch of ``count`` images, made on the CPU so that all devices get the same."""
    order = torch.randperm(count, generator=stream)
    corners = torch.randint(0, 2 * pad + 1, (count, 2), generator=stream) if pad else None
    flips = torch.randint(0, 2, (count,), generator=stream).bool() if flip else None
    return EpochDraws(order, corners, flips)


def crop(images: torch.Tensor, corners: torch.Tensor, pad: int) -> torch.Tensor:
    """Each image zero-padded by ``pad`` pixels a side and cut back to its size, as torchvision's RandomCrop.

    Args:
        images: (B, C, H, W).
        corners: int64 (B, 2), top and left edge of each cut in 0 … 2·pad.
        pad: pixels of padding on each side.
    """
    batch, _, height, width = images.shape
    padded = functional.pad(images, (pad, pad, pad, pad))
    # All (2·pad + 1)² cuts of every image as one view (B, C, top, left, H, W): a single gather picks from it.
    cuts = padded.unfold(2, height, 1).unfold(3, width, 1)
    tops, lefts = corners.unbind(1)
    return cuts[torch.arange(batch, device=images.device), :, tops, lefts]


def mirror(images: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """``images`` (B, C, H, W) with those flipped left to right where ``flips``, bool (B,), says so."""
    return torch.where(flips[:, None, None, None], images.flip(3), images)
