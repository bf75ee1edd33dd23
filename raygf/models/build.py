"""The network of a configuration, with weights drawn from the run's seed."""

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from raygf.compute import call_own, is_out_of_memory, seeded_globals
from raygf.config import fields as checks
from raygf.config.run import ModelConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError, import_function, user_error
from raygf.models.msdnet import MSDNet
from raygf.models.multi_exit import MultiExitNetwork, mend_strides, trainable_parameters, unchanged
from raygf.models.sdn import VGG16SDN, MobileNetSDN, ResNet56SDN, WideResNet32x4SDN
from raygf.models.weights import load_weights

BATCH = 2


def try_network(name: str, network: nn.Module, spec: InputSpec) -> None:
    """Have ``network`` answer two black images, in evaluation and in training mode; it stays as it was.

    ``name``: the value of ``model.name``, for errors.

    Raises ConfigError: it fails, its output is not one tensor (B, classes) per exit, or its weights can't be
    trained.
    """
    for training in (False, True):
        mode = " while training" if training else ""
        try:
            with unchanged(network), torch.set_grad_enabled(training):
                output = network.train(training)(spec.blank(BATCH))
        except (Exception, SystemExit) as error:  # the forward may be the user's, and raise anything
            if is_out_of_memory(error):
                raise too_large(name, error) from error
            images = f"{BATCH} images of {spec.channels}x{spec.height}x{spec.width}{mode}"
            raise user_error("model.name", name, f"the network failed on {images}", error) from error
        parts = output if isinstance(output, list | tuple) else ()
        shapes = {part.shape if isinstance(part, Tensor) else None for part in parts}
        if shapes != {(BATCH, spec.classes)}:
            raise ConfigError(
                f"model.name = {name!r}: the network must return a list of logits (batch, {spec.classes}), "
                f"one per exit; for {BATCH} images{mode} it returned {_describe(output)}"
            )
    try:
        trainable_parameters(network)
    except ValueError as error:
        raise ConfigError(f"model.name = {name!r}: {error}") from None
    if not any(logits.requires_grad for logits in output):
        raise ConfigError(f"model.name = {name!r}: no exit depends on a weight that can be trained")


def too_large(name: str, error: BaseException) -> ConfigError:
    """The error for a network that there is no memory for."""
    cause = " ".join(str(error).split()).removeprefix("[enforce fail at alloc_cpu.cpp:127] err == 0. ")
    return ConfigError(f"model.name = {name!r}: no memory for the network, make it smaller: {cause[:200]}")


def _describe(output: object) -> str:
    """An output in a few words: types, and the shapes of tensors."""
    kind = f"a {type(output).__name__}"
    if isinstance(output, list | tuple):
        return f"{kind} of [{', '.join(map(_describe, output))}]"
    return f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else kind


Builder = Callable[[ModelConfig, InputSpec], nn.Module]

BUILDERS: dict[str, Builder] = {
    "msdnet": lambda config, spec: MSDNet(config.msdnet, spec),
    "vgg16-sdn": lambda config, spec: VGG16SDN(spec),
    "resnet56-sdn": lambda config, spec: ResNet56SDN(spec),
    "wideresnet32-4-sdn": lambda config, spec: WideResNet32x4SDN(spec),
    "mobilenet-sdn": lambda config, spec: MobileNetSDN(spec),
}
"""raygf's own networks."""
_LIBRARIES = ("torchvision:", "timm:")
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:[@ \t)].*\n)*def (\w+)", re.MULTILINE)
"""A function in torchvision's or timm's source that makes a network."""
_SHARE = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?")


def build_model(config: ModelConfig, spec: InputSpec, seed: int) -> nn.Module:
    """The network that ``config.name`` names, on the CPU; equal seeds give equal bits.

    Torch's global generators are left as they were. A function of the user's own is called with ``spec``.
    The network is tried once, so that what does not fit is found here.

    Raises ConfigError: there is no such network, it can't be built for ``spec`` or is too large for memory,
    its output is not one tensor (B, classes) per exit, its weights can't be trained, or ``config.weights``
    can't be loaded into it.
    """
    builder = find_builder(config.name)
    # The trial is inside, too: lazy modules draw their weights then.
    with seeded_globals(seed, "init"):
        try:
            network = builder(config, spec)
            if config.weights and not config.name.startswith(_LIBRARIES):
                load_weights(network, config.weights, spec.classes)
            if config.freeze:
                if not isinstance(network, MultiExitNetwork):
                    kind = f"{type(network).__name__} is no raygf.models.multi_exit.MultiExitNetwork"
                    raise ConfigError(
                        f"model.freeze: {kind}; set requires_grad of its weights where it is built"
                    )
                network.freeze_backbone(spec.classes)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise too_large(config.name, error) from error
            raise
        try_network(config.name, network, spec)
    mend_strides(network)
    return network


def find_builder(name: str) -> Builder:
    """What builds the network ``name``.

    Raises ConfigError: there is no such network, or the user's function can't be imported.
    """
    if name in BUILDERS:
        return BUILDERS[name]
    if name.startswith(_LIBRARIES):
        library, network_name, at = _read_name(name)

        def attach(config: ModelConfig, spec: InputSpec) -> nn.Module:
            from raygf.models.attach import build_attached  # with torchvision, which takes long

            try:
                return build_attached(library, network_name, at, spec, config.weights)
            except ConfigError as error:
                raise ConfigError(f"model.name = {name!r}: {error}") from error

        return attach
    if ":" not in name:
        allowed = ", ".join([*BUILDERS, *(f'"{library}network@exits"' for library in _LIBRARIES)])
        raise checks.refuse(
            "model.name", name, f'one of {allowed}, or "package.module:function" of your own', BUILDERS
        )
    import_function("model.name", name)

    def build(config: ModelConfig, spec: InputSpec) -> nn.Module:
        network = call_own("model.name", name, spec)
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise ConfigError(
                f"model.name = {name!r}: the function must return a torch.nn.Module, not {kind}"
            )
        return network

    return build


def _read_name(name: str) -> tuple[str, str, list[float | str]]:
    """Library, network and exits (see ``raygf.attach_exits``) of "timm:convnext_atto@0.3,stages.1".

    Raises ConfigError: a part is missing, or the library has no such network.
    """
    library, _, rest = name.partition(":")
    network, _, places = rest.partition("@")
    texts = [text.strip() for text in places.split(",") if text.strip()]
    at = [float(text) if _SHARE.fullmatch(text) else text for text in texts]
    known, says = _names(library), ""
    if network.partition("." if library == "timm" else "@")[0] not in known:
        says = f"{library} has no classification network {network}{checks.did_you_mean(network, known)}"
    elif not at:
        says = f'exits must follow "@", as in {library}:resnet18@0.3,0.6'
    if says:
        raise ConfigError(f"model.name = {name!r}: {says}")
    return library, network, at


def _names(library: str) -> list[str]:
    """The networks of ``library``, read off its source: to import it takes longer than to refuse a name."""
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{library} can't be imported (pip install {library})")
    files = Path(spec.origin).parent.glob("models/*.py")
    names = [name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))]
    loaded = sys.modules.get("timm") if library == "timm" else None  # it may have learnt others since
    return names if loaded is None else [*names, *loaded.list_models()]
