"""MobileNet of width 1 for small images, as a Shallow-Deep Network with six exits.

Howard et al.: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017;
the strides and exits as Kaya, Hong, Dumitras (ICML 2019) published them, with five internal classifiers
instead of six. Weights keep PyTorch's initialisation, as published.
"""

from __future__ import annotations

from torch import nn

from raygf.data.base import InputSpec
from raygf.models.sdn import ShallowDeepNetwork, Shape

STEM = 32
WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
HALVED = (2, 4, 6, 12)
EXITS_AFTER = (3, 5, 7, 9, 12)


class MobileNetSDN(ShallowDeepNetwork):
    """Thirteen depthwise separable blocks, five internal classifiers.

    Args:
        spec: The images (32x32 as published) and the number of classes.
    """

    def __init__(self, spec: InputSpec) -> None:
        incoming = (STEM, *WIDTHS[:-1])
        blocks = [
            _separable(channels, width, stride=2 if number in HALVED else 1)
            for number, (channels, width) in enumerate(zip(incoming, WIDTHS, strict=True), 1)
        ]
        stem = nn.Sequential(*_bn_relu(nn.Conv2d(spec.channels, STEM, 3, padding=1, bias=False)))
        first = nn.Sequential(stem, blocks[0])
        super().__init__(
            [first, *blocks[1:]], EXITS_AFTER, lambda shape: _classifier(shape, spec.classes), spec
        )


def _separable(channels: int, width: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution on every channel alone, then a 1x1 one across them."""
    depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(*_bn_relu(depthwise), *_bn_relu(nn.Conv2d(channels, width, 1, bias=False)))


def _bn_relu(conv: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)


def _classifier(shape: Shape, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))
