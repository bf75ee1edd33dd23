"""What training does to images beyond crop and flip, by torchvision.transforms.v2.

RandAugment (Cubuk et al., NeurIPS 2020), TrivialAugment (Müller, Hutter, ICCV 2021) and random erasing (Zhong
et al., AAAI 2020) draw for every image; MixUp (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019)
for every batch. Torchvision is loaded when one of them is first used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from raygf.compute import call_own, seeded_globals
from raygf.config.run import RunConfig
from raygf.data.base import Batch, BatchSource, round_batches
from raygf.errors import ConfigError


class Augmentation(NamedTuple):
    """What is done to training images, uint8 (B, C, H, W), after crop and flip; see ``DataConfig``.

    ``key``: the run's seed, and the names of the random stream of it that is drawn from.
    """

    augment: str = "none"
    erasing: float = 0.0
    transform: str = ""

    def each(self, images: torch.Tensor, *key: str | int) -> torch.Tensor:
        """Every image changed by itself (``augment``, ``erasing``), by draws of its own."""
        if self.augment == "none" and not self.erasing:
            return images
        from torchvision.transforms import v2

        kinds = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide, "none": v2.Identity}
        change = v2.Compose([kinds[self.augment](), v2.RandomErasing(self.erasing)])
        with seeded_globals(int(key[0]), *key[1:], "each"):
            return torch.stack([change(image) for image in images])

    def batch(self, images: torch.Tensor, *key: str | int) -> torch.Tensor:
        """The batch as the user's ``transform`` changes it.

        Raises ConfigError: it can't be imported, fails, or returns other than uint8 images of the same size.
        """
        if not self.transform:
            return images
        with seeded_globals(int(key[0]), *key[1:], "transform"):
            changed, wanted = call_own("data.transform", self.transform, images), (torch.uint8, images.shape)
        if not isinstance(changed, torch.Tensor) or (changed.dtype, changed.shape) != wanted:
            must = f"must return a batch uint8 {tuple(images.shape)}"
            raise ConfigError(f"data.transform = {self.transform!r}: {must}")
        return changed


def mixed(
    source: BatchSource, config: RunConfig, purpose: str, round: int, *key: str | int
) -> Iterator[Batch]:
    """``round_batches`` of ``source`` mixed as ``data.mixup`` and ``data.cutmix`` say.

    Labels become probabilities (B, classes), float32. A batch is mixed as a whole, before it is divided into
    shares, by draws that depend on its number: all who take part in a training get the same.
    """
    batches = round_batches(source, config, purpose, round, *key)
    mixup, cutmix = config.data.mixup, config.data.cutmix
    if not mixup and not cutmix:
        yield from batches
        return
    from torchvision.transforms import v2

    kinds, classes = ((v2.MixUp, mixup), (v2.CutMix, cutmix)), source.dataset.spec.classes
    mix = v2.RandomChoice([kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha])
    for number, batch in enumerate(batches):
        with seeded_globals(config.seed, purpose, round, *key, "mix", number):
            images, labels = mix(*batch)
        yield images, labels
