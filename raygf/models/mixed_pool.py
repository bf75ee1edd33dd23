"""Pooling that learns how much maximum and how much average it wants, and the classifier built on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MixedPool(nn.Module):
    """``p·max + (1 − p)·mean`` of every window, ``p = sigmoid(alpha)``; windows do not overlap.

    Lee, Gallagher, Tu: "Generalizing Pooling Functions in Convolutional Neural Networks: Mixed, Gated, and
    Tree", AISTATS 2016. ``p`` starts uniform in (0, 1). The published program of the Shallow-Deep Networks
    learns ``p`` itself, unbounded; the sigmoid keeps it a proportion.

    Args:
        kernel: Height and width of the windows.
    """

    def __init__(self, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.max = nn.MaxPool2d(kernel)
        self.mean = nn.AvgPool2d(kernel)
        self.alpha = nn.Parameter(torch.logit(torch.rand(1), eps=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, C, H // kernel height, W // kernel width)."""
        share = self.alpha.sigmoid()
        mixed: Tensor = share * self.max(x) + (1 - share) * self.mean(x)
        return mixed


class InternalClassifier(nn.Module):
    """Mixed pooling to about 4x4 places, then one linear layer.

    Kaya, Hong, Dumitras: "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML
    2019. As published, features of exactly 4x4 places go through pooling windows of one place, and smaller
    ones are not pooled at all.

    Args:
        features: Channels, height and width of what comes in.
        classes: Number of classes.
    """

    def __init__(self, features: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = features
        kernel = max(1, height // 4), max(1, width // 4)
        self.pool = MixedPool(kernel) if max(height, width) >= 4 else nn.Identity()
        self.linear = nn.Linear(channels * (height // kernel[0]) * (width // kernel[1]), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to logits (B, classes)."""
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits
