"""Shallow-Deep Networks: a plain network with internal classifiers at fixed shares of its operations.

Kaya, Hong, Dumitras: "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML 2019.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.multi_exit import MultiExitNetwork, evaluating, he_fan_out, zero_biases


class MixedPool(nn.Module):
    """``p·max + (1 − p)·mean`` of every window, ``p = sigmoid(alpha)``; windows do not overlap.

    Lee, Gallagher, Tu: "Generalizing Pooling Functions in Convolutional Neural Networks: Mixed, Gated, and
    Tree", AISTATS 2016. ``p`` starts uniform in (0, 1). The published program of the Shallow-Deep Networks
    learns ``p`` itself, unbounded; the sigmoid keeps it a proportion.

    Args:
        kernel: Height and width of the windows.
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

    Kaya, Hong, Dumitras: "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML
    2019. As published, features of exactly 4x4 places go through pooling windows of one place, and smaller
    ones are not pooled at all.

    Args:
        features: Channels, height and width of what comes in.
        classes: Number of classes.
    """

    def __init__(self, features: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = features
        kernel = max(1, height // 4), max(1, width // 4)
        self.pool = MixedPool(kernel) if max(height, width) >= 4 else nn.Identity()
        self.linear = nn.Linear(channels * (height // kernel[0]) * (width // kernel[1]), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to logits (B, classes)."""
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


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


MOBILENET_STEM = 32
MOBILENET_WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
MOBILENET_HALVED = (2, 4, 6, 12)
MOBILENET_EXITS_AFTER = (3, 5, 7, 9, 12)


class MobileNetSDN(ShallowDeepNetwork):
    """Thirteen depthwise separable blocks, five internal classifiers.

    Args:
        spec: The images (32x32 as published) and the number of classes.
    """

    def __init__(self, spec: InputSpec) -> None:
        incoming = (MOBILENET_STEM, *MOBILENET_WIDTHS[:-1])
        blocks = [
            _mobilenet_separable(channels, width, stride=2 if number in MOBILENET_HALVED else 1)
            for number, (channels, width) in enumerate(zip(incoming, MOBILENET_WIDTHS, strict=True), 1)
        ]
        stem = nn.Sequential(
            *_mobilenet_bn_relu(nn.Conv2d(spec.channels, MOBILENET_STEM, 3, padding=1, bias=False))
        )
        first = nn.Sequential(stem, blocks[0])
        super().__init__(
            [first, *blocks[1:]],
            MOBILENET_EXITS_AFTER,
            lambda shape: _mobilenet_classifier(shape, spec.classes),
            spec,
        )


def _mobilenet_separable(channels: int, width: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution on every channel alone, then a 1x1 one across them."""
    depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(
        *_mobilenet_bn_relu(depthwise), *_mobilenet_bn_relu(nn.Conv2d(channels, width, 1, bias=False))
    )


def _mobilenet_bn_relu(conv: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)


def _mobilenet_classifier(shape: Shape, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))


RESNET_WIDTHS = (16, 32, 64)
RESNET_BLOCKS_A_WIDTH = 9
RESNET_EXITS_AFTER = (4, 8, 12, 16, 20, 24)


class ResNet56SDN(ShallowDeepNetwork):
    """27 residual blocks; internal classifiers at 15, 30, 45, 60, 75 and 90 % of the operations.

    Args:
        spec: The images (32x32 as published) and the number of classes.
    """

    def __init__(self, spec: InputSpec) -> None:
        stem = nn.Sequential(
            *_resnet_conv_bn(spec.channels, RESNET_WIDTHS[0], kernel=3), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        channels = RESNET_WIDTHS[0]
        for width in RESNET_WIDTHS:
            for number in range(RESNET_BLOCKS_A_WIDTH):
                stride = 2 if number == 0 and width > RESNET_WIDTHS[0] else 1
                blocks.append(BasicBlock(channels, width, stride))
                channels = width
        first = nn.Sequential(stem, blocks[0])
        super().__init__(
            [first, *blocks[1:]],
            RESNET_EXITS_AFTER,
            lambda shape: _resnet_classifier(shape, spec.classes),
            spec,
        )
        he_fan_out(self)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *_resnet_conv_bn(channels, width, kernel=3, stride=stride),
            nn.ReLU(inplace=True),
            *_resnet_conv_bn(width, width, kernel=3),
        )
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_resnet_conv_bn(channels, width, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels, H, W) to (B, width, H / stride, W / stride), rounded up."""
        out: Tensor = self.relu(self.convs(x) + self.shortcut(x))
        return out


def _resnet_conv_bn(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(width)


def _resnet_classifier(shape: Shape, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))


VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_POOLED = (2, 4, 7, 10, 13)
VGG_EXITS_AFTER = (2, 4, 6, 7, 9, 10)
VGG_FULLY_CONNECTED = 512


class VGG16SDN(ShallowDeepNetwork):
    """Thirteen convolutions; internal classifiers at 15, 30, 45, 60, 75 and 90 % of the operations.

    Args:
        spec: The images (32x32 as published) and the number of classes.

    Raises:
        ConfigError: the images are smaller than 32x32.
    """

    def __init__(self, spec: InputSpec) -> None:
        incoming = (spec.channels, *VGG_WIDTHS[:-1])
        blocks = [
            _vgg_block(channels, width, pool=number in VGG_POOLED)
            for number, (channels, width) in enumerate(zip(incoming, VGG_WIDTHS, strict=True), 1)
        ]
        super().__init__(blocks, VGG_EXITS_AFTER, lambda shape: _vgg_classifier(shape, spec.classes), spec)
        _vgg_initialise(self)


def _vgg_block(channels: int, width: int, pool: bool) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU, (B, C, H, W) to (B, width, H, W); halved after that with ``pool``."""
    layers = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


def _vgg_classifier(shape: Shape, classes: int) -> nn.Sequential:
    """As published, without a ReLU between the last two linear layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), VGG_FULLY_CONNECTED),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(VGG_FULLY_CONNECTED, VGG_FULLY_CONNECTED),
        nn.Dropout(0.5),
        nn.Linear(VGG_FULLY_CONNECTED, classes),
    )


def _vgg_initialise(network: nn.Module) -> None:
    """Convolutions after He, linear layers normal with deviation 0.01, all biases zero."""
    he_fan_out(network)
    zero_biases(network, nn.Conv2d, nn.Linear)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)


WIDERESNET_STEM = 16
WIDERESNET_WIDTHS = (64, 128, 256)
WIDERESNET_BLOCKS_A_WIDTH = 5
DROPOUT = 0.3
WIDERESNET_EXITS_AFTER = (3, 5, 7, 9, 11, 13)


class WideResNet32x4SDN(ShallowDeepNetwork):
    """15 wide residual blocks; internal classifiers at 15, 30, 45, 60, 75 and 90 % of the operations.

    Args:
        spec: The images (32x32 as published) and the number of classes.
    """

    def __init__(self, spec: InputSpec) -> None:
        blocks: list[nn.Module] = []
        channels = WIDERESNET_STEM
        for width in WIDERESNET_WIDTHS:
            for number in range(WIDERESNET_BLOCKS_A_WIDTH):
                stride = 2 if number == 0 and width > WIDERESNET_WIDTHS[0] else 1
                blocks.append(WideBlock(channels, width, stride))
                channels = width
        first = nn.Sequential(nn.Conv2d(spec.channels, WIDERESNET_STEM, 3, padding=1), blocks[0])
        super().__init__(
            [first, *blocks[1:]],
            WIDERESNET_EXITS_AFTER,
            lambda shape: _wideresnet_classifier(shape, spec.classes),
            spec,
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


def _wideresnet_classifier(shape: Shape, classes: int) -> nn.Sequential:
    channels = shape[0]
    norm = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
