"""Multi-Scale Dense Network: several resolutions side by side, so that early exits see coarse features.

Huang, Chen, Li, Wu, van der Maaten, Weinberger: "Multi-Scale Dense Networks for Resource Efficient Image
Classification", ICLR 2018. Scales are numbered from 0, the finest; the features of a layer are a list with
one tensor (B, C_s, H_s, W_s) per scale kept, finest first.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from raygf.config import fields as checks
from raygf.config.run import MSDNetConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.multi_exit import MultiExitNetwork, StridedConv2d, he_fan_out, zero_biases

Features = list[Tensor]


class MSDNet(MultiExitNetwork):
    """MSDNet with bottlenecks, pruned "max": the finest scale is dropped at equal intervals of depth.

    Raises ConfigError: the images are too small for the scales, or a width is no whole number of channels.
    """

    def __init__(self, config: MSDNetConfig, spec: InputSpec) -> None:
        _check_fits(config, spec)
        scales = len(config.factors)
        total = config.base + (config.exits - 1) * config.step
        interval = math.ceil(total / scales)
        channels = config.channels  # of a scale with factor 1, like all below
        stages, heads = [], []
        stage: list[nn.Module] = [FirstLayer(config, spec.channels)]
        for layer in range(1, total + 1):
            in_scales = scales - max(0, layer - 2) // interval
            out_scales = scales - (layer - 1) // interval
            stage.append(DenseLayer(channels, config.growth, config.factors, in_scales, out_scales))
            channels += config.growth
            if in_scales > out_scales:
                grown, channels = channels, math.floor(config.reduction * channels)
                if channels < 1:
                    allowed = f"more: it leaves none of {grown} channels"
                    raise checks.refuse("model.msdnet.reduction", config.reduction, allowed)
                stage.append(Transition(grown, channels, config.factors[-out_scales:]))
            if layer >= config.base and (layer - config.base) % config.step == 0:
                stages.append(nn.Sequential(*stage))
                heads.append(Head(channels * config.factors[-1], config.head_channels, spec.classes))
                stage = []
        super().__init__(stages, heads)
        # The published programs mean this, too, but reach no convolution: PyTorch's default stays there.
        he_fan_out(self)
        zero_biases(self, nn.Linear)


class FirstLayer(nn.Module):
    """From the image to all scales, each made from the one before with stride 2."""

    def __init__(self, config: MSDNetConfig, in_channels: int) -> None:
        super().__init__()
        widths = [config.channels * factor for factor in config.factors]
        if config.stem == "conv3":
            stem = _conv_bn_relu(in_channels, widths[0], kernel=3)
        else:
            pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
            stem = nn.Sequential(*_conv_bn_relu(in_channels, widths[0], kernel=7, stride=2), pool)
        self.scales = nn.ModuleList([stem])
        self.scales.extend(
            _conv_bn_relu(finer, width, kernel=3, stride=2) for finer, width in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Features:
        """Images (B, C, H, W) to the features of every scale."""
        features: Features = []
        for scale in self.scales:
            x = scale(x)
            features.append(x)
        return features


class DenseLayer(nn.Module):
    """One layer: every kept scale keeps its features and adds new ones.

    Args:
        channels: Channels that come in, at factor 1.
        growth: Channels to add, at factor 1.
        factors: Width of each scale of the network.
        in_scales: Scales that come in: the coarsest ones.
        out_scales: Scales to keep: ``in_scales``, or one less, and then the finest is only read.
    """

    def __init__(
        self, channels: int, growth: int, factors: tuple[int, ...], in_scales: int, out_scales: int
    ) -> None:
        super().__init__()
        first = len(factors) - out_scales
        self.drops = in_scales > out_scales
        self.scales = nn.ModuleList(
            DenseUnit(
                channels, growth, factors[scale], factors[scale - 1] if self.drops or scale > first else None
            )
            for scale in range(first, len(factors))
        )

    def forward(self, x: Features) -> Features:
        """Features of ``in_scales`` scales to features of ``out_scales`` scales."""
        finer: list[Tensor | None] = [*x[:-1]] if self.drops else [None, *x[:-1]]
        same = x[1:] if self.drops else x
        return [unit(*inputs) for unit, *inputs in zip(self.scales, finer, same, strict=True)]


class DenseUnit(nn.Module):
    """New features of one scale: half from the next finer scale, if there is one, the rest from its own."""

    down: nn.Module | None

    def __init__(self, channels: int, growth: int, factor: int, finer_factor: int | None) -> None:
        super().__init__()
        new = growth * factor
        if finer_factor is None:
            self.down = None
        else:
            new //= 2
            self.down = _bottleneck(channels * finer_factor, new, finer_factor, stride=2)
        self.same = _bottleneck(channels * factor, new, factor, stride=1)

    def forward(self, finer: Tensor | None, same: Tensor) -> Tensor:
        """Features (B, C, 2H, 2W) of the finer scale and (B, C', H, W) of its own to (B, C' + new, H, W)."""
        if self.down is None:
            return torch.cat([same, self.same(same)], dim=1)
        return torch.cat([same, self.down(finer), self.same(same)], dim=1)


class Transition(nn.Module):
    """A 1x1 convolution on every scale, to fewer channels."""

    def __init__(self, channels: int, kept: int, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            _conv_bn_relu(channels * factor, kept * factor, kernel=1) for factor in factors
        )

    def forward(self, x: Features) -> Features:
        """Features of the scales kept, narrowed."""
        return [scale(features) for scale, features in zip(self.scales, x, strict=True)]


class Head(nn.Module):
    """Classifier on the coarsest scale: two convolutions of stride 2, the mean over all places, a linear one.

    The published head pools 2x2 places, which is all that is left of 32x32 (or 224x224) images. The mean over
    whatever is left is the same there, and also works for smaller and larger images.
    """

    def __init__(self, channels: int, inner: int | None, classes: int) -> None:
        super().__init__()
        inner = inner or channels
        self.conv1 = _conv_bn_relu(channels, inner, kernel=3, stride=2)
        self.conv2 = _conv_bn_relu(inner, inner, kernel=3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: Features) -> Tensor:
        """Features of all scales kept to logits (B, classes)."""
        pooled: Tensor = self.pool(self.conv2(self.conv1(x[-1])))
        logits: Tensor = self.linear(pooled.flatten(1))
        return logits


def _conv_bn_relu(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (stride 1) or halves it, rounding up (stride 2), without a bias."""
    conv = StridedConv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _bottleneck(channels: int, out: int, width: int, stride: int) -> nn.Sequential:
    """A 1x1 convolution to at most ``width * out`` channels, then a 3x3 one to ``out``."""
    inner = min(channels, width * out)
    return nn.Sequential(
        *_conv_bn_relu(channels, inner, kernel=1), *_conv_bn_relu(inner, out, kernel=3, stride=stride)
    )


def _check_fits(config: MSDNetConfig, spec: InputSpec) -> None:
    """Refuse scales that would not get smaller any more, and new channels that can't be halved."""
    side = min(spec.height, spec.width)
    possible = (side - 1).bit_length()  # how often a side can be halved, rounding up, until it is 1
    stem = 2 if config.stem == "conv7" else 0
    if stem + len(config.factors) - 1 > possible:
        most = max(0, possible - stem + 1)
        raise ConfigError(
            f"model.msdnet.factors = {config.factors!r}: {len(config.factors)} scales with stem "
            f"{config.stem} need larger images than {spec.height}x{spec.width}, which have room for {most}"
        )
    if any(config.growth * factor % 2 for factor in config.factors[1:]):
        raise checks.refuse(
            "model.msdnet.growth",
            config.growth,
            f"even when multiplied by each factor after the first of {config.factors!r}",
        )
