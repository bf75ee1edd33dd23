"""Classifiers for whatever the middle of a network gives: maps, tokens or vectors of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raygf.models.mixed_pool import InternalClassifier

HeadKind = Literal["mean", "mixed"]
HEAD_KINDS = ("mean", "mixed")


@dataclass(frozen=True)
class Features:
    """What a node gives for a batch of images.

    Attributes:
        shape: (B, C, H, W) or (B, H, W, C) maps, (B, T, C) tokens, or (B, C) vectors.
        channels_last: Whether maps are (B, H, W, C).
        class_token: Whether the first token is one that gathers what is needed to classify.
    """

    shape: torch.Size
    channels_last: bool = False
    class_token: bool = False

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[1] if len(self.shape) == 4 and not self.channels_last else self.shape[-1]


def describe_features(network: nn.Module, shape: torch.Size, image: torch.Size) -> Features:
    """What ``shape`` means in ``network`` for images of the size ``image`` (B, C, H, W).

    Maps are (B, H, W, C) if only so their sides are in the proportion of the image's.
    """
    is_map = len(shape) == 4
    last = is_map and _like(shape[1:3], image) and not _like(shape[2:4], image)
    return Features(shape, last, class_token=len(shape) == 3 and hasattr(network, "class_token"))


def _like(sides: torch.Size, image: torch.Size) -> bool:
    """Whether ``sides`` (H, W) are those of the image divided by one number, up to rounding."""
    height, width = image[-2:]
    return abs(sides[0] * width - sides[1] * height) <= max(height, width)


def default_head(features: Features, classes: int, kind: HeadKind) -> nn.Module:
    """The classifier that suits ``features``.

    Maps: the mean over all places, or with ``kind`` "mixed" the internal classifier of the Shallow-Deep
    Networks (more accurate and larger: up to 4x4 places are kept); then one linear layer. Tokens: the class
    token, or else the mean, normalised; then one linear layer. Vectors: one linear layer.
    """
    if len(features.shape) == 2:
        return nn.Linear(features.channels, classes)
    if len(features.shape) == 3:
        return TokenHead(features.channels, classes, features.class_token)
    height, width = features.shape[1:3] if features.channels_last else features.shape[2:]
    if kind == "mixed":
        head: nn.Module = InternalClassifier((features.channels, height, width), classes)
    else:
        head = MapHead(features.channels, classes)
    return nn.Sequential(ChannelsFirst(), head) if features.channels_last else head


class MapHead(nn.Module):
    """The mean over all places, then one linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to logits (B, classes)."""
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


class TokenHead(nn.Module):
    """The class token, or else the mean of all tokens, normalised; then one linear layer."""

    def __init__(self, channels: int, classes: int, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, C) to logits (B, classes)."""
        pooled = x[:, 0] if self.class_token else x.mean(dim=1)
        logits: Tensor = self.linear(self.norm(pooled))
        return logits


class ChannelsFirst(nn.Module):
    """(B, H, W, C) to (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.permute(0, 3, 1, 2)
