"""Networks and images for benchmarks: the sizes are real, the pixels are noise."""

from __future__ import annotations

import torch
from torch import nn

from raygf.compute import Compute, generator
from raygf.config.run import ModelConfig, MSDNetConfig
from raygf.data.base import Batch, InputSpec
from raygf.models.build import build_model
from raygf.training.network import BoundNetwork

CIFAR = InputSpec(channels=3, height=32, width=32, classes=100)


def cifar_msdnet() -> nn.Module:
    """The 7-exit MSDNet of the paper's Table 1, CIFAR-100."""
    return build_model(ModelConfig("msdnet", msdnet=MSDNetConfig()), CIFAR, seed=0)


def bind(compute: Compute) -> BoundNetwork:
    """That network, bound, on ``compute``."""
    return BoundNetwork(cifar_msdnet(), compute)


def batches(compute: Compute, size: int, count: int) -> list[Batch]:
    """``count`` batches of noise on the device."""
    noise = generator(0, "images")
    made = []
    for _ in range(count):
        images = torch.randn(size, 3, 32, 32, generator=noise).to(
            compute.device, memory_format=compute.layout
        )
        labels = torch.randint(100, (size,), generator=noise).to(compute.device)
        made.append((images, labels))
    return made
