"""The network of a configuration, with weights drawn from the run's seed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from raygf import checks
from raygf.config import ModelConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.evaluating import evaluating
from raygf.models.mobilenet_sdn import MobileNetSDN
from raygf.models.msdnet import MSDNet
from raygf.models.resnet_sdn import ResNet56SDN
from raygf.models.vgg_sdn import VGG16SDN
from raygf.models.wideresnet_sdn import WideResNet32x4SDN
from raygf.seeding import seeded_globals
from raygf.user_code import import_function, user_error

Builder = Callable[[ModelConfig, InputSpec], nn.Module]

_BUILDERS: dict[str, Builder] = {
    "msdnet": lambda config, spec: MSDNet(config.msdnet, spec),
    "vgg16-sdn": lambda config, spec: VGG16SDN(spec),
    "resnet56-sdn": lambda config, spec: ResNet56SDN(spec),
    "wideresnet32-4-sdn": lambda config, spec: WideResNet32x4SDN(spec),
    "mobilenet-sdn": lambda config, spec: MobileNetSDN(spec),
}
_TORCHVISION = "torchvision:"


def model_names() -> tuple[str, ...]:
    """The names of raygf's own networks."""
    return tuple(_BUILDERS)


def build_model(config: ModelConfig, spec: InputSpec, seed: int) -> nn.Module:
    """The network that ``config.name`` names, on the CPU; equal seeds give equal bits.

    Torch's global generators are left as they were. A function of the user's own is called with ``spec``; its
    forward is tried once, so that what does not fit is found here.

    Raises:
        ConfigError: there is no such network, it can't be built for ``spec``, or its output is not one tensor
            (B, classes) per exit.
    """
    builder = _find_builder(config.name)
    # The trial is inside, too: lazy modules draw their weights then.
    with seeded_globals(seed, "init"):
        network = builder(config, spec)
        _try_forward(config.name, network, spec)
    return network


def _find_builder(name: str) -> Builder:
    if name in _BUILDERS:
        return _BUILDERS[name]
    if name.startswith(_TORCHVISION):
        return _build_torchvision
    if ":" not in name:
        allowed = ", ".join([*_BUILDERS, f'"{_TORCHVISION}network@exits"'])
        raise checks.refuse("model.name", name, f'one of {allowed}, or "package.module:function" of your own')
    function = import_function("model.name", name)

    def build(config: ModelConfig, spec: InputSpec) -> nn.Module:
        try:
            network = function(spec)
        except ConfigError:
            raise
        except Exception as error:
            raise user_error("model.name", name, "the function failed", error) from error
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise ConfigError(
                f"model.name = {name!r}: the function must return a torch.nn.Module, not {kind}"
            )
        return network

    return build


def _build_torchvision(config: ModelConfig, spec: InputSpec) -> nn.Module:
    # torchvision takes long to import, and few runs need its networks.
    from raygf.models.torchvision_network import build_torchvision

    return build_torchvision(config.name, spec, config.weights or None)


def _try_forward(name: str, network: nn.Module, spec: InputSpec) -> None:
    """Refuse a network that does not turn two images into one tensor (2, classes) per exit."""
    batch = 2
    try:
        with evaluating(network):
            output = network(spec.blank(batch))
    except Exception as error:
        images = f"{batch} images of {spec.channels}x{spec.height}x{spec.width}"
        raise user_error("model.name", name, f"the network failed on {images}", error) from error
    expected = (batch, spec.classes)
    if (
        not isinstance(output, list | tuple)
        or not output
        or not all(isinstance(logits, Tensor) and logits.shape == expected for logits in output)
    ):
        raise ConfigError(
            f"model.name = {name!r}: the network must return a list of logits (batch, {spec.classes}), "
            f"one per exit; for {batch} images it returned {_describe(output)}"
        )


def _describe(output: object) -> str:
    """An output in a few words: types, and the shapes of tensors."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of [{', '.join(_describe(part) for part in output)}]"
    return f"a {type(output).__name__}"
