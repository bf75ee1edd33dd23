"""Networks that two CPU cores can train to the end, in the shapes of the paper's."""

from __future__ import annotations

from torch import nn

from raygf.config.run import ModelConfig, MSDNetConfig
from raygf.data.base import InputSpec
from raygf.models.sdn import VGG16SDN, ShallowDeepNetwork, Shape


class SmallVGG(VGG16SDN):
    """Eight convolutions of VGG-16's kind, five internal classifiers: 5.4 M operations, 0.2 M parameters."""

    widths = (8, 16, 32, 32, 64, 64, 64, 64)
    pooled = (1, 3, 5, 8)
    exits_after = (2, 3, 4, 5, 6)

    def classifier(self, shape: Shape, classes: int) -> nn.Sequential:
        """A mean over places and one linear layer: there are too few images for three."""
        return ShallowDeepNetwork.classifier(self, shape, classes)


def small_vgg(spec: InputSpec) -> SmallVGG:
    """The network that ``--model.name small_networks:small_vgg`` names."""
    return SmallVGG(spec)


VGG = ModelConfig("small_networks:small_vgg")
MSDNET = ModelConfig(
    "msdnet",
    MSDNetConfig("conv7", exits=5, base=2, step=1, channels=16, growth=16, factors=(1, 2), head_channels=32),
)
"""With ImageNet's first layer, so that its finest scale has 8x8 places: 3.7 M operations."""
