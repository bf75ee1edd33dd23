"""From pixels to what networks get: centred and scaled channel by channel."""

from __future__ import annotations

import torch

from raygf.compute import Compute
from raygf.data.statistics import ChannelStatistics


class Normaliser:
    """``(x / 255 − mean) / std`` for images on ``compute.device``."""

    def __init__(self, statistics: ChannelStatistics, compute: Compute) -> None:
        self._layout = compute.layout
        # (x / 255 − mean) / std, written for pixels of 0 … 255: (x − 255·mean) · 1 / (255·std).
        pixels = torch.tensor([statistics.mean, statistics.std], dtype=torch.float64) * 255
        self._mean = pixels[0].float().view(-1, 1, 1).to(compute.device)
        self._inverse_std = pixels[1].reciprocal().float().view(-1, 1, 1).to(compute.device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 (B, C, H, W) on the device as float32, in the compute's layout."""
        pixels = images.to(torch.float32, memory_format=self._layout)
        return pixels.sub_(self._mean).mul_(self._inverse_std)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, C, H, W) as the uint8 that they were."""
        return (images / self._inverse_std + self._mean).round_().clamp_(0, 255).to(torch.uint8)
