"""ResNet-56 for small images, as a Shallow-Deep Network with seven exits.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016; the exits, and the 1x1
convolutions with BatchNorm where a shortcut changes shape, as Kaya, Hong, Dumitras (ICML 2019) published
them.
"""

from __future__ import annotations

from torch import Tensor, nn

from raygf.data.base import InputSpec
from raygf.models.initialise import he_fan_out
from raygf.models.sdn import ShallowDeepNetwork, Shape

WIDTHS = (16, 32, 64)
BLOCKS_A_WIDTH = 9
EXITS_AFTER = (4, 8, 12, 16, 20, 24)


class ResNet56SDN(ShallowDeepNetwork):
    """27 residual blocks; internal classifiers at 15, 30, 45, 60, 75 and 90 % of the operations.

    Args:
        spec: The images (32x32 as published) and the number of classes.
    """

    def __init__(self, spec: InputSpec) -> None:
        stem = nn.Sequential(*_conv_bn(spec.channels, WIDTHS[0], kernel=3), nn.ReLU(inplace=True))
        blocks: list[nn.Module] = []
        channels = WIDTHS[0]
        for width in WIDTHS:
            for number in range(BLOCKS_A_WIDTH):
                stride = 2 if number == 0 and width > WIDTHS[0] else 1
                blocks.append(BasicBlock(channels, width, stride))
                channels = width
        first = nn.Sequential(stem, blocks[0])
        super().__init__(
            [first, *blocks[1:]], EXITS_AFTER, lambda shape: _classifier(shape, spec.classes), spec
        )
        he_fan_out(self)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *_conv_bn(channels, width, kernel=3, stride=stride),
            nn.ReLU(inplace=True),
            *_conv_bn(width, width, kernel=3),
        )
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_bn(channels, width, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels, H, W) to (B, width, H / stride, W / stride), rounded up."""
        out: Tensor = self.relu(self.convs(x) + self.shortcut(x))
        return out


def _conv_bn(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(width)


def _classifier(shape: Shape, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))
