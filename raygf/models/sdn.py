"""Shallow-Deep Networks: a plain network with internal classifiers at fixed shares of its operations.

Kaya, Hong, Dumitras: "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML 2019.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import nn

from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.evaluating import evaluating
from raygf.models.mixed_pool import InternalClassifier
from raygf.models.multi_exit import MultiExitNetwork

Shape = tuple[int, int, int]
"""Channels, height and width of features."""


class ShallowDeepNetwork(MultiExitNetwork):
    """Blocks in a row with an internal classifier after some of them, the network's own at the end.

    Args:
        blocks: The network up to its classifier, each (B, C, H, W) to (B, C', H', W').
        after: Numbers of the blocks, from 1, that an internal classifier follows, increasing.
        classifier: Called with the shape of the last block's features: the network's own classifier.
        spec: The images and the number of classes.

    Raises:
        ConfigError: the images are too small for the blocks.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        after: Sequence[int],
        classifier: Callable[[Shape], nn.Module],
        spec: InputSpec,
    ) -> None:
        bounds = [0, *after, len(blocks)]
        stages = [nn.Sequential(*blocks[begin:end]) for begin, end in itertools.pairwise(bounds)]
        *inner, last = _feature_shapes(stages, spec)
        heads = [InternalClassifier(shape, spec.classes) for shape in inner]
        super().__init__(stages, [*heads, classifier(last)])


def _feature_shapes(stages: Sequence[nn.Module], spec: InputSpec) -> list[Shape]:
    """The shape of every stage's features, from one black image."""
    features = spec.blank(1)
    shapes = []
    with evaluating(nn.ModuleList(stages)):
        for stage in stages:
            try:
                features = stage(features)
            except RuntimeError as error:
                size = f"{spec.height}x{spec.width}"
                raise ConfigError(
                    f"images of {size} are too small for this network, which is made for 32x32: set "
                    "--data.image-size 32 or another --model.name"
                ) from error
            _, channels, height, width = features.shape
            shapes.append((channels, height, width))
    return shapes
