"""VGG-16 with BatchNorm for small images, as a Shallow-Deep Network with seven exits.

Simonyan, Zisserman: "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015; the
exits, and two fully connected layers of 512, as Kaya, Hong, Dumitras (ICML 2019) published them.
"""

from __future__ import annotations

import math

from torch import nn

from raygf.data.base import InputSpec
from raygf.models.initialise import he_fan_out, zero_biases
from raygf.models.sdn import ShallowDeepNetwork, Shape

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOLED = (2, 4, 7, 10, 13)
EXITS_AFTER = (2, 4, 6, 7, 9, 10)
FULLY_CONNECTED = 512


class VGG16SDN(ShallowDeepNetwork):
    """Thirteen convolutions; internal classifiers at 15, 30, 45, 60, 75 and 90 % of the operations.

    Args:
        spec: The images (32x32 as published) and the number of classes.

    Raises:
        ConfigError: the images are smaller than 32x32.
    """

    def __init__(self, spec: InputSpec) -> None:
        incoming = (spec.channels, *WIDTHS[:-1])
        blocks = [
            _block(channels, width, pool=number in POOLED)
            for number, (channels, width) in enumerate(zip(incoming, WIDTHS, strict=True), 1)
        ]
        super().__init__(blocks, EXITS_AFTER, lambda shape: _classifier(shape, spec.classes), spec)
        _initialise(self)


def _block(channels: int, width: int, pool: bool) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU, (B, C, H, W) to (B, width, H, W); halved after that with ``pool``."""
    layers = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


def _classifier(shape: Shape, classes: int) -> nn.Sequential:
    """As published, without a ReLU between the last two linear layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), FULLY_CONNECTED),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(FULLY_CONNECTED, FULLY_CONNECTED),
        nn.Dropout(0.5),
        nn.Linear(FULLY_CONNECTED, classes),
    )


def _initialise(network: nn.Module) -> None:
    """Convolutions after He, linear layers normal with deviation 0.01, all biases zero."""
    he_fan_out(network)
    zero_biases(network, nn.Conv2d, nn.Linear)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
