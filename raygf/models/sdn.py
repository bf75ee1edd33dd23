"""Shallow-Deep Networks: VGG, ResNet, WideResNet and MobileNet with internal classifiers along the way.

Kaya, Hong, Dumitras: "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML 2019.
Widths, strides, exits and initialisation are those of the published programs, for images of 32x32.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.multi_exit import MultiExitNetwork, evaluating, he_fan_out, zero_biases

Pair = tuple[Tensor, Tensor]
"""A residual block's sum after its ReLU, which goes on, and before it, for its internal classifier."""


class MixedPool(nn.Module):
    """``p·max + (1 − p)·mean`` of every window, ``p = sigmoid(alpha)``; windows do not overlap.

    Lee, Gallagher, Tu: "Generalizing Pooling Functions in Convolutional Neural Networks: Mixed, Gated, and
    Tree", AISTATS 2016. ``p`` starts uniform in (0, 1). The published program of the Shallow-Deep Networks
    learns ``p`` itself, unbounded; the sigmoid keeps it a proportion.
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

    As published, features of exactly 4x4 places go through pooling windows of one place, and smaller ones
    are not pooled at all. ``features``: channels, height and width of what comes in.
    """

    def __init__(self, features: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = features
        kernel = max(1, height // 4), max(1, width // 4)
        self.pool = MixedPool(kernel) if max(height, width) >= 4 else nn.Identity()
        self.linear = nn.Linear(channels * (height // kernel[0]) * (width // kernel[1]), classes)

    def forward(self, x: Tensor | Pair) -> Tensor:
        """Features (B, C, H, W), the second of a pair, to logits (B, classes)."""
        logits: Tensor = self.linear(self.pool(x if isinstance(x, Tensor) else x[1]).flatten(1))
        return logits


Shape = tuple[int, int, int]
"""Channels, height and width of features."""


class ShallowDeepNetwork(MultiExitNetwork):
    """Blocks in a row with an internal classifier after some of them, the network's own at the end.

    The internal classifiers of the published networks are at about 15, 30, 45, 60, 75 and 90 % of the
    operations.

    ``blocks``: the network up to its classifier, each (B, C, H, W) to (B, C', H', W').

    Raises ConfigError: the images are too small for the blocks.
    """

    exits_after: tuple[int, ...]
    """Numbers of the blocks, from 1, that an internal classifier follows, increasing."""

    def __init__(self, blocks: Sequence[nn.Module], spec: InputSpec) -> None:
        bounds = [0, *self.exits_after, len(blocks)]
        stages = [nn.Sequential(*blocks[begin:end]) for begin, end in itertools.pairwise(bounds)]
        *inner, last = _feature_shapes(stages, spec)
        heads = [InternalClassifier(shape, spec.classes) for shape in inner]
        super().__init__(stages, [*heads, self.classifier(last, spec.classes)])

    def classifier(self, shape: Shape, classes: int) -> nn.Sequential:
        """The network's own classifier, for features of ``shape``."""
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))


def _feature_shapes(stages: Sequence[nn.Module], spec: InputSpec) -> list[Shape]:
    """The shape of every stage's features, from one black image."""
    features: Tensor | Pair = spec.blank(1)
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
            _, channels, height, width = (features if isinstance(features, Tensor) else features[1]).shape
            shapes.append((channels, height, width))
    return shapes


class VGG16SDN(ShallowDeepNetwork):
    """VGG-16 with BatchNorm: thirteen convolutions, six internal classifiers.

    Simonyan, Zisserman: "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015; with
    two fully connected layers of 512, as published for small images.

    Raises ConfigError: the images are smaller than 32x32.
    """

    widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    pooled: tuple[int, ...] = (2, 4, 7, 10, 13)
    exits_after: tuple[int, ...] = (2, 4, 6, 7, 9, 10)
    hidden = 512

    def __init__(self, spec: InputSpec) -> None:
        incoming = (spec.channels, *self.widths[:-1])
        blocks = []
        for number, (channels, width) in enumerate(zip(incoming, self.widths, strict=True), 1):
            block = nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            blocks.append(nn.Sequential(*block, *[nn.MaxPool2d(2)] * (number in self.pooled)))
        super().__init__(blocks, spec)
        he_fan_out(self)
        zero_biases(self, nn.Conv2d, nn.Linear)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)

    def classifier(self, shape: Shape, classes: int) -> nn.Sequential:
        """As published, without a ReLU between the last two linear layers."""
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), self.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(self.hidden, self.hidden),
            nn.Dropout(0.5),
            nn.Linear(self.hidden, classes),
        )


class ResNet56SDN(ShallowDeepNetwork):
    """ResNet-56: 27 residual blocks, six internal classifiers.

    He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016; 1x1 convolutions with
    BatchNorm where a shortcut changes shape. As published, an internal classifier reads its block's sum
    before the ReLU.
    """

    branch, onward = 1, 0
    widths = (16, 32, 64)
    blocks_a_width = 9
    exits_after = (4, 8, 12, 16, 20, 24)

    def __init__(self, spec: InputSpec) -> None:
        stem = (*_conv_bn(spec.channels, self.widths[0], kernel=3), nn.ReLU(inplace=True))
        first, *blocks = _residual_blocks(BasicBlock, self.widths[0], self.widths, self.blocks_a_width)
        for number in self.exits_after:
            block = blocks[number - 2]  # the first one stands alone
            assert isinstance(block, BasicBlock)
            block.branches, block.relu.inplace = True, False
        blocks = [nn.Sequential(nn.Sequential(*stem), first), *blocks]
        super().__init__(blocks, spec)
        he_fan_out(self)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    branches = False
    """Whether an internal classifier follows."""

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

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Features (B, channels, H, W) to (B, width, H / stride, W / stride), rounded up."""
        features = x if isinstance(x, Tensor) else x[0]
        total: Tensor = self.convs(features) + self.shortcut(features)
        return (self.relu(total), total) if self.branches else self.relu(total)


class WideResNet32x4SDN(ShallowDeepNetwork):
    """WideResNet-32-4: 15 wide residual blocks, six internal classifiers.

    Zagoruyko, Komodakis: "Wide Residual Networks", BMVC 2016; the stride is in a block's second convolution.
    """

    stem = 16
    widths = (64, 128, 256)
    blocks_a_width = 5
    exits_after = (3, 5, 7, 9, 11, 13)

    def __init__(self, spec: InputSpec) -> None:
        first, *blocks = _residual_blocks(WideBlock, self.stem, self.widths, self.blocks_a_width)
        blocks = [nn.Sequential(nn.Conv2d(spec.channels, self.stem, 3, padding=1), first), *blocks]
        super().__init__(blocks, spec)
        he_fan_out(self)
        zero_biases(self, nn.Linear)

    def classifier(self, shape: Shape, classes: int) -> nn.Sequential:
        """Behind the normalisation that every block begins with."""
        pooled = super().classifier(shape, classes)
        return nn.Sequential(nn.BatchNorm2d(shape[0]), nn.ReLU(inplace=True), *pooled)


class WideBlock(nn.Module):
    """BatchNorm and ReLU come before each of the two 3x3 convolutions, dropout between them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, width, 3, padding=1),
            nn.Dropout(0.3),
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


class MobileNetSDN(ShallowDeepNetwork):
    """MobileNet of width 1: thirteen depthwise separable blocks, five internal classifiers instead of six.

    Howard et al.: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017.
    Weights keep PyTorch's initialisation, as published.
    """

    stem = 32
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    halved = (2, 4, 6, 12)
    exits_after = (3, 5, 7, 9, 12)

    def __init__(self, spec: InputSpec) -> None:
        incoming = (self.stem, *self.widths[:-1])
        first, *blocks = [
            _separable(channels, width, stride=2 if number in self.halved else 1)
            for number, (channels, width) in enumerate(zip(incoming, self.widths, strict=True), 1)
        ]
        stem = nn.Sequential(*_conv_bn(spec.channels, self.stem, kernel=3), nn.ReLU(inplace=True))
        blocks = [nn.Sequential(stem, first), *blocks]
        super().__init__(blocks, spec)


def _separable(channels: int, width: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution on every channel alone, then a 1x1 one across them."""
    depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(
        depthwise,
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        *_conv_bn(channels, width, kernel=1),
        nn.ReLU(inplace=True),
    )


def _residual_blocks(
    block: Callable[[int, int, int], nn.Module], channels: int, widths: Sequence[int], count: int
) -> list[nn.Module]:
    """``count`` blocks of every width; the first of each width but the first halves the features."""
    blocks = []
    for width in widths:
        for number in range(count):
            blocks.append(block(channels, width, 2 if number == 0 and width > widths[0] else 1))
            channels = width
    return blocks


def _conv_bn(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(width)
