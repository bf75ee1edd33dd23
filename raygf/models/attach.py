"""Early exits for a network that has one: one of torchvision or timm, or one that is built alike."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from raygf.config import fields as checks
from raygf.data.base import InputSpec
from raygf.errors import ConfigError, one_line
from raygf.models.graph_cut import ShapeRecorder, Traces, find_cuts, module_of, split_network, trace_modes
from raygf.models.multi_exit import ChannelsFirst, MultiExitNetwork, evaluating
from raygf.models.sdn import InternalClassifier
from raygf.models.weights import load_weights, read_weights

HeadKind = Literal["mean", "mixed"]


@dataclass(frozen=True)
class Features:
    """What a node gives for a batch of images.

    Attributes:
        shape: (B, C, H, W) or (B, H, W, C) maps, (B, T, C) tokens, or (B, C) vectors.
        channels_last: Whether maps are (B, H, W, C).
        class_token: Whether the first token is one that gathers what is needed to classify.
    """

    shape: torch.Size
    channels_last: bool = False
    class_token: bool = False

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[1] if len(self.shape) == 4 and not self.channels_last else self.shape[-1]


def describe_features(network: nn.Module, shape: torch.Size, image: torch.Size) -> Features:
    """What ``shape`` means in ``network`` for images of the size ``image`` (B, C, H, W).

    Maps are (B, H, W, C) if only so their sides are in the proportion of the image's.
    """
    is_map = len(shape) == 4
    last = is_map and _like(shape[1:3], image) and not _like(shape[2:4], image)
    has_token = len(shape) == 3 and any(
        getattr(network, name, None) is not None for name in ("class_token", "cls_token")
    )
    if has_token:  # if the tokens are all places of a map, it comes later, as in CaiT
        rows = max(1, round(math.sqrt(shape[1] * image[-2] / image[-1])))
        has_token = bool(shape[1] % rows) or not _like(torch.Size((rows, shape[1] // rows)), image)
    return Features(shape, last, has_token)


def _like(sides: torch.Size, image: torch.Size) -> bool:
    """Whether ``sides`` (H, W) are those of the image divided by one number, up to rounding."""
    height, width = image[-2:]
    return abs(sides[0] * width - sides[1] * height) <= max(height, width)


def default_head(features: Features, classes: int, kind: HeadKind) -> nn.Module:
    """The classifier that suits ``features``.

    Maps: the mean over all places, or with ``kind`` "mixed" the internal classifier of the Shallow-Deep
    Networks (more accurate and larger: up to 4x4 places are kept); then one linear layer. Tokens: the class
    token, or else the mean, normalised; then one linear layer. Vectors: one linear layer.
    """
    if len(features.shape) == 2:
        return nn.Linear(features.channels, classes)
    if len(features.shape) == 3:
        return TokenHead(features.channels, classes, features.class_token)
    height, width = features.shape[1:3] if features.channels_last else features.shape[2:]
    if kind == "mixed":
        head: nn.Module = InternalClassifier((features.channels, height, width), classes)
    else:
        pool, linear = nn.AdaptiveAvgPool2d(1), nn.Linear(features.channels, classes)
        head = nn.Sequential(OrderedDict(pool=pool, flatten=nn.Flatten(), linear=linear))
    return nn.Sequential(ChannelsFirst(), head) if features.channels_last else head


class TokenHead(nn.Module):
    """The class token, or else the mean of all tokens, normalised; then one linear layer."""

    def __init__(self, channels: int, classes: int, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, C) to logits (B, classes)."""
        pooled = x[:, 0] if self.class_token else x.mean(dim=1)
        logits: Tensor = self.linear(self.norm(pooled))
        return logits


HeadMaker = Callable[[int, int], nn.Module]
"""Called with the channels of the features and the number of classes."""


class AttachedNetwork(MultiExitNetwork):
    """A network cut into stages, with a head at every cut; the last exit is the network's own output."""

    branch = 0
    cuts: tuple[str, ...]
    """Where the exits were attached, shallow to deep: names of nodes, or of modules that end there."""


def attach_exits(
    network: nn.Module,
    spec: InputSpec | None = None,
    at: Sequence[float | str] = (),
    head: HeadKind | HeadMaker = "mean",
    weights: str | None = None,
) -> AttachedNetwork:
    """``network`` with an early exit at every place of ``at``, and its own output as the last exit.

    >>> import raygf, torch, torchvision
    >>> network = raygf.attach_exits(torchvision.models.resnet18(num_classes=10), at=[0.3, 0.6])
    >>> [tuple(logits.shape) for logits in network(torch.zeros(2, 3, 64, 64))]
    [(2, 10), (2, 10), (2, 10)]

    The network is traced with ``torch.fx``, in training and in evaluation mode, and cut into stages that take
    its modules over: train the result, not ``network``. Parameters keep their names after "stages.<number>.".

    Args:
        network: From images (B, C, H, W) to one tensor of logits (B, classes).
        spec: The images and the number of classes; by default images of 224x224 and what the network has.
        at: Shares of the network's operations in (0, 1): the first end of a block that reaches the share (see
            ``raygf.models.costs`` for what counts). Or names of nodes, as torchvision's
            ``get_graph_node_names`` lists them, or of modules: their last node. In any order.
        head: "mean", "mixed" (see ``default_head``), or a function of channels and classes that
            returns a module, from the tensor at the cut to logits (B, classes).
        weights: A file with the state dict of ``network``, loaded before the exits are attached.

    Raises ConfigError: the network can't be traced or run on such images, a place is unknown, out of range
    or named twice, a head does not fit, or the weights do not.
    """
    if not callable(head):
        checks.check("head", head, HeadKind)
    spec = spec or _own_spec(network)
    if weights is not None:
        load_weights(network, weights, spec.classes)
    traces = trace_modes(network)
    images = spec.blank(2)
    weight = next(network.parameters(), images)
    images = images.to(weight.device, weight.dtype)
    _record_shapes(network, traces, images, spec)
    cuts = find_cuts(network, traces, at, images)
    heads = []
    for cut in cuts:
        node = traces.eval.find(cut)
        assert node is not None  # as find_cuts found it
        features = describe_features(network, node.meta["shape"], images.shape)
        heads.append(_make_head(head, features, spec.classes, cut).to(images.device))
    _keep_features(network, traces, cuts)
    modes = [(module, module.training) for module in network.modules()]
    attached = AttachedNetwork(*split_network(network, traces, cuts, heads)).train(network.training)
    attached.cuts = cuts
    for module, training in modes:
        module.training = training
    return attached


def _own_spec(network: nn.Module) -> InputSpec:
    """Images of 224x224, with the channels that the first convolution takes, and the network's classes."""
    channels = next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), 3)
    try:
        with evaluating(network):
            classes = network(torch.zeros(2, channels, 224, 224)).shape[-1]
    except Exception as error:  # the forward is not raygf's, and may raise anything
        shown = f"it fails on images of {channels}x224x224: {one_line(error)}"
        raise ConfigError(
            f"{type(network).__name__}: {shown}; give spec, an InputSpec of its images"
        ) from error
    return InputSpec(channels, 224, 224, classes)


def _record_shapes(network: nn.Module, traces: Traces, images: Tensor, spec: InputSpec) -> None:
    """Note the shapes of what the nodes give in evaluation mode."""
    name = type(network).__name__
    try:
        with evaluating(network):
            ShapeRecorder(network, graph=traces.eval.graph).run(images)
    except Exception as error:  # the forward is not raygf's, and may raise anything
        size = "x".join(map(str, images.shape[1:]))
        raise ConfigError(f"{name} failed on 2 images of {size}: {one_line(error)}") from error
    shape = traces.eval.result.meta["shape"]
    if shape != (2, spec.classes):
        given = "no tensor" if shape is None else f"a tensor {tuple(shape)}"
        raise ConfigError(f"{name} must return logits (2, {spec.classes}) for 2 images; it returned {given}")


def _make_head(head: HeadKind | HeadMaker, features: Features, classes: int, cut: str) -> nn.Module:
    """The head at ``cut``, tried on zeros if it is the user's own."""
    if not callable(head):
        return default_head(features, classes, head)
    try:
        made = head(features.channels, classes)
        with evaluating(made):
            output = made(torch.zeros(features.shape))
    except Exception as error:  # the head is not raygf's, and may raise anything
        raise ConfigError(f"head at {cut}: {one_line(error)}") from error
    if not isinstance(output, Tensor) or output.shape != (features.shape[0], classes):
        raise ConfigError(
            f"head at {cut}: must turn features {tuple(features.shape)} into logits "
            f"({features.shape[0]}, {classes})"
        )
    return made


def _keep_features(network: nn.Module, traces: Traces, cuts: Sequence[str]) -> None:
    """Stop the modules that read a cut from overwriting it: its head needs it for the backward pass."""
    readers = [user for trace in traces for cut in map(trace.find, cuts) if cut for user in cut.users]
    for module in (module_of(network, user) for user in readers):
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010 (for mypy)


def build_attached(
    library: str, name: str, at: Sequence[float | str], spec: InputSpec, weights: str
) -> AttachedNetwork:
    """The network ``name`` of ``library`` ("torchvision" or "timm") with exits; ``at``: see ``attach_exits``.

    Args:
        spec: The images (torchvision: of three channels) and the number of classes.
        weights: A file with the network's state dict, without or with exits; "": weights are drawn.

    Raises ConfigError: there is no such place, or the network can't be built for ``spec``.
    """
    network = _make(library, name, spec)
    state = read_weights(weights) if weights else {}
    with_exits = any(key.startswith("stages.0.") for key in state)
    if weights and not with_exits:
        load_weights(network, weights, spec.classes, state)
    attached = attach_exits(network, spec, at)
    if weights and with_exits:
        load_weights(attached, weights, spec.classes, state)
    return attached


def _make(library: str, name: str, spec: InputSpec) -> nn.Module:
    """The network ``name`` of ``library`` without its pretrained weights."""
    if library == "torchvision" and spec.channels != 3:
        raise ConfigError(f"torchvision's networks take images of 3 channels, not {spec.channels}")
    network: nn.Module
    try:
        if library == "torchvision":
            options: dict[str, Any] = {}  # what a network must be told besides the number of classes
            if name.startswith("vit_"):
                options = {"image_size": spec.height}
            elif name.startswith("maxvit"):
                options = {"input_size": (spec.height, spec.width)}
            elif name in ("googlenet", "inception_v3"):
                options = {"aux_logits": False, "init_weights": True}
            network = torchvision.models.get_model(name, weights=None, num_classes=spec.classes, **options)
        else:
            import timm

            fixed = timm.get_pretrained_cfg(name).fixed_input_size
            size = {"img_size": (spec.height, spec.width)} if fixed else {}
            network = timm.create_model(name, num_classes=spec.classes, in_chans=spec.channels, **size)
    except Exception as error:  # the libraries assert, or raise ValueError, for what does not fit
        raise ConfigError(f"can't be built: {one_line(error)}") from error
    return network
