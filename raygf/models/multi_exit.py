"""A network that answers at several depths."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiExitNetwork(nn.Module):
    """Stages in a row, each followed by a classifier head.

    The state that stage ``k`` hands to head ``k`` and to stage ``k + 1`` is whatever the stage returns: a
    tensor, or a tuple or list of tensors. So a caller may walk the stages itself and stop at any exit.

    Args:
        stages: The parts of the backbone, shallow to deep. The first one gets the images.
        heads: One classifier per stage, from its state to logits (B, classes).

    Raises ValueError: there are no stages, or not as many heads as stages.
    """

    branch: int = -1
    """Which part of a state of several tensors the heads read; the other parts only go on."""
    onward: int | None = None
    """Which part the next stage reads in its place, if it is another function of the same features."""
    frozen: bool = False
    """Whether the backbone keeps its weights and BatchNorm statistics."""
    stages: nn.ModuleList
    heads: nn.ModuleList

    def __init__(self, stages: Iterable[nn.Module], heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        if not len(self.stages) or len(self.stages) != len(self.heads):
            raise ValueError(
                f"{len(self.stages)} stages and {len(self.heads)} heads: there must be one head per stage"
            )

    def freeze_backbone(self, classes: int) -> None:
        """Leave only the exits' classifiers to be trained; the stages stay in evaluation mode from now on.

        Where the last head has no weights, the classifier is what ends the last stage, one row a class.
        """
        self.stages.requires_grad_(False)
        if next(self.heads[-1].parameters(), None) is None:
            last = reversed([*self.stages[-1].parameters()])
            for parameter in takewhile(lambda parameter: parameter.shape[:1] == (classes,), last):
                parameter.requires_grad_(True)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module``, but for a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.stages.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to logits (B, classes) of every exit, shallow to deep."""
        state: Any = x
        logits = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            state = stage(state)
            logits.append(head(state))
        return logits


def trainable_parameters(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and tensors that need a gradient and are not empty, in the network's order, each once.

    Raises ValueError: there is none, or one is not float32.
    """
    found = [(name, p) for name, p in network.named_parameters() if p.requires_grad and p.numel()]
    for name, parameter in found:
        if parameter.dtype != torch.float32:
            raise ValueError(f"parameter {name} is {parameter.dtype}: raygf trains float32 weights")
    if not found:
        raise ValueError("the network has no trainable parameter")
    return found


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside; modes and buffers are put back after."""
    with unchanged(network), torch.no_grad():
        network.eval()
        yield


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Whatever happens to modes and buffers inside, they are put back after."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                buffer.copy_(content)
                setattr(module, name, buffer)


def he_fan_out(network: nn.Module) -> None:
    """Every convolution's weight normal with variance 2 / (kernel area · output channels); biases stay.

    He, Zhang, Ren, Sun: "Delving Deep into Rectifiers", ICCV 2015, in the backward form.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def zero_biases(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """The biases of all layers of these kinds set to zero."""
    for module in network.modules():
        if isinstance(module, kinds) and module.bias is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class ChannelsFirst(nn.Module):
    """Puts the channels where convolutions have them."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, C, H, W)."""
        return x.permute(0, 3, 1, 2)


class StridedConv2d(nn.Conv2d):
    """Where features are smaller than the stride, every place is computed and the strided ones are taken."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, out, H', W'), as ``nn.Conv2d``."""
        down, right = self.stride
        if self.padding_mode != "zeros" or input.shape[-2] >= down or input.shape[-1] >= right:
            return super().forward(input)
        whole = F.conv2d(input, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        return whole if whole.shape[-2:] == (1, 1) else whole[..., ::down, ::right]


def mend_strides(network: nn.Module) -> None:
    """Make every strided ``nn.Conv2d`` of ``network`` a ``StridedConv2d``, in place; weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1:
            module.__class__ = StridedConv2d
