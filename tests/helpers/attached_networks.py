"""Small networks to attach exits to, each with one habit of real ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raygf.data.base import InputSpec
from raygf.errors import ConfigError

SPEC = InputSpec(channels=3, height=8, width=8, classes=4)
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def refusal(call):
    """The text of the ConfigError that the call raises: one line."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


class Block(nn.Module):
    """A residual block whose activation writes in place."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)) + x)


class Blocks(nn.Module):
    """A stem, four equal blocks in a list, the classifier."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(Block(6) for _ in range(4))
        self.spare = nn.Linear(5, 5)
        self.classifier = nn.Linear(6, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))


class Functional(nn.Module):
    """Dropout as a function: the modes have different graphs. Parameters and buffers without a module."""

    def __init__(self):
        super().__init__()
        self.into = nn.Conv2d(3, 6, 3)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 2.0))
        self.register_buffer("shift", torch.ones(6, 1, 1))
        self.register_buffer("kept_out", torch.ones(1), persistent=False)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.into(x), inplace=True)
        if self.training:
            x = x + 0.0
        x = F.dropout(x * self.scale + self.shift * self.kept_out, 0.5, self.training)
        return self.classifier((x * self.scale).mean((2, 3)))


class Skips(nn.Module):
    """The image and the first features are read again at the end."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.classifier = nn.Linear(9, 4)

    def forward(self, x):
        one = self.first(x)
        two = self.second(one)
        three = self.third(two) + one
        return self.classifier(torch.cat([three, x], dim=1).mean((2, 3)))


class PlainRow(nn.Module):
    """Leaf layers in one Sequential, as in VGG."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (3, 6, 6):
            layers += [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Tokens(nn.Module):
    """Tokens (B, T, C) without a class token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU())
        self.classifier = nn.Linear(6, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.classifier(self.layers(tokens).mean(1))


class Branches(nn.Module):
    """Control flow that depends on the image: can't be traced."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x, x
