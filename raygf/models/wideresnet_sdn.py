"""WideResNet-32-4 for small images, as a Shallow-Deep Network with seven exits.

Zagoruyko, Komodakis: "Wide Residual Networks", BMVC 2016; the exits, and the stride in the second convolution
of a block, as Kaya, Hong, Dumitras (ICML 2019) published them.
"""

from __future__ import annotations

from torch import Tensor, nn

from raygf.data.base import InputSpec
from raygf.models.initialise import he_fan_out, zero_biases
from raygf.models.sdn import ShallowDeepNetwork, Shape

STEM = 16
WIDTHS = (64, 128, 256)
BLOCKS_A_WIDTH = 5
DROPOUT = 0.3
EXITS_AFTER = (3, 5, 7, 9, 11, 13)


class WideResNet32x4SDN(ShallowDeepNetwork):
    """15 wide residual blocks; internal classifiers at 15, 30, 45, 60, 75 and 90 % of the operations.

    Args:
        spec: The images (32x32 as published) and the number of classes.
    """

    def __init__(self, spec: InputSpec) -> None:
        blocks: list[nn.Module] = []
        channels = STEM
        for width in WIDTHS:
            for number in range(BLOCKS_A_WIDTH):
                stride = 2 if number == 0 and width > WIDTHS[0] else 1
                blocks.append(WideBlock(channels, width, stride))
                channels = width
        first = nn.Sequential(nn.Conv2d(spec.channels, STEM, 3, padding=1), blocks[0])
        super().__init__(
            [first, *blocks[1:]], EXITS_AFTER, lambda shape: _classifier(shape, spec.classes), spec
        )
        he_fan_out(self)
        zero_biases(self, nn.Linear)


class WideBlock(nn.Module):
    """BatchNorm and ReLU come before each of the two 3x3 convolutions, dropout between them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, width, 3, padding=1),
            nn.Dropout(DROPOUT),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, padding=1),
        )
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels, H, W) to (B, width, H / stride, W / stride), rounded up."""
        out: Tensor = self.convs(x) + self.shortcut(x)
        return out


def _classifier(shape: Shape, classes: int) -> nn.Sequential:
    channels = shape[0]
    norm = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
