"""Looking at a network without leaving traces in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
