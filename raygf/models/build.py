"""The network of a configuration, with weights drawn from the run's seed."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from raygf import checks
from raygf.config import ModelConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.memory import is_out_of_memory
from raygf.models.mobilenet_sdn import MobileNetSDN
from raygf.models.msdnet import MSDNet
from raygf.models.resnet_sdn import ResNet56SDN
from raygf.models.strided_conv import mend_strides
from raygf.models.trial import too_large, try_network
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

    Torch's global generators are left as they were. A function of the user's own is called with ``spec``.
    The network is tried once, so that what does not fit is found here.

    Raises:
        ConfigError: there is no such network, it can't be built for ``spec`` or is too large for memory, its
            output is not one tensor (B, classes) per exit, or its weights can't be trained.
    """
    builder = _find_builder(config.name)
    if config.weights and not config.name.startswith(_TORCHVISION):
        raise ConfigError(
            f"model.weights = {config.weights!r}: only torchvision's networks start from a file; leave it out"
        )
    # The trial is inside, too: lazy modules draw their weights then.
    with seeded_globals(seed, "init"):
        network = _built(builder, config, spec)
        try_network(config.name, network, spec)
    mend_strides(network)
    return network


def _built(builder: Builder, config: ModelConfig, spec: InputSpec) -> nn.Module:
    try:
        return builder(config, spec)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise too_large(config.name, error) from error
        raise


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
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
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
