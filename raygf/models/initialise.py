"""He's initialisation, as the networks for CIFAR use it."""

from __future__ import annotations

from torch import nn


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
