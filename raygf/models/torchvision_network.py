"""torchvision's classification networks with exits, by a name such as "torchvision:resnet18@0.3,0.6"."""

from __future__ import annotations

import difflib
from typing import Any

import torchvision
from torch import nn

from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.attach import AttachedNetwork, attach_exits

PREFIX = "torchvision:"


def build_torchvision(name: str, spec: InputSpec, weights: str | None = None) -> AttachedNetwork:
    """The network that ``name`` describes: "torchvision:", torchvision's name, "@", the exits with commas.

    An exit is a share of the network's operations or the name of a node (see ``attach.attach_exits``).

    Args:
        name: As in "torchvision:vit_b_16@0.5,encoder.layers.encoder_layer_8".
        spec: The images, of three channels, and the number of classes.
        weights: A file with the network's state dict; by default weights are drawn.

    Raises:
        ConfigError: there is no such network or place, or the network can't be built for ``spec``.
    """
    network_name, _, places = name.removeprefix(PREFIX).partition("@")
    at = [_place(text.strip()) for text in places.split(",") if text.strip()]
    try:
        if not at:
            raise ConfigError(f'exits must follow "@", as in {PREFIX}resnet18@0.3,0.6')
        return attach_exits(_build(network_name, spec), spec, at, weights=weights)
    except ConfigError as error:
        raise ConfigError(f"model.name = {name!r}: {error}") from error


def _place(text: str) -> float | str:
    """A share if it reads like a number, else a name."""
    try:
        return float(text) if text[0] in "0123456789.-+" else text
    except ValueError:
        return text


def _build(name: str, spec: InputSpec) -> nn.Module:
    """torchvision's network ``name`` without its pretrained weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.3)) or "none"
        raise ConfigError(f"torchvision has no classification network {name}; close matches: {close}")
    if spec.channels != 3:
        raise ConfigError(f"torchvision's networks take images of 3 channels, not {spec.channels}")
    try:
        network: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=spec.classes, **_options(name, spec)
        )
    except Exception as error:  # torchvision asserts, or raises ValueError, for what does not fit
        cause = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"can't be built: {type(error).__name__}: {cause}") from error
    return network


def _options(name: str, spec: InputSpec) -> dict[str, Any]:
    """What a network must be told besides the number of classes."""
    if name.startswith("vit_"):
        return {"image_size": spec.height}
    if name.startswith("maxvit"):
        return {"input_size": (spec.height, spec.width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}
