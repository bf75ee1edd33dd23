"""Early exits for a network that has one: any classification network of torchvision, or one like them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from raygf import checks
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.cut_points import Shapes, find_cuts
from raygf.models.evaluating import evaluating
from raygf.models.exit_heads import HEAD_KINDS, Features, HeadKind, default_head, describe_features
from raygf.models.graph_stage import split_network
from raygf.models.local_weights import load_local_weights
from raygf.models.multi_exit import MultiExitNetwork
from raygf.models.trace import Traces, run_nodes, trace_modes

HeadMaker = Callable[[int, int], nn.Module]
"""Called with the channels of the features and the number of classes."""


class AttachedNetwork(MultiExitNetwork):
    """A network cut into stages, with a head at every cut; the last exit is the network's own output.

    Attributes:
        cuts: Where the exits were attached, shallow to deep: names of nodes, or of modules that end there.
    """

    branch = 0

    def __init__(
        self, stages: Iterable[nn.Module], heads: Iterable[nn.Module], cuts: tuple[str, ...]
    ) -> None:
        super().__init__(stages, heads)
        self.cuts = cuts


def attach_exits(
    network: nn.Module,
    spec: InputSpec,
    at: Sequence[float | str],
    head: HeadKind | HeadMaker = "mean",
    weights: str | None = None,
) -> AttachedNetwork:
    """``network`` with an early exit at every place of ``at``, and its own output as the last exit.

    The network is traced with ``torch.fx``, in training and in evaluation mode, and cut into stages that take
    its modules over: train the result, not ``network``. Parameters keep their names after "stages.<number>.".

    Args:
        network: From images (B, C, H, W) to one tensor of logits (B, classes).
        spec: The images and the number of classes.
        at: Shares of the network's operations in (0, 1): the first end of a block that reaches the share (see
            ``raygf.models.costs`` for what counts). Or names of nodes, as torchvision's
            ``get_graph_node_names`` lists them, or of modules: their last node. In any order.
        head: "mean", "mixed" (see ``exit_heads.default_head``), or a function of channels and classes that
            returns a module, from the tensor at the cut to logits (B, classes).
        weights: A file with the state dict of ``network``, loaded before the exits are attached.

    Raises:
        ConfigError: the network can't be traced or run on such images, a place is unknown, out of range or
            named twice, a head does not fit, or the weights do not.
    """
    if not callable(head):
        checks.one_of("head", head, HEAD_KINDS)
    if weights is not None:
        load_local_weights(network, weights, spec.classes)
    traces = trace_modes(network)
    images = _example(network, spec)
    shapes = _run(network, traces, images, spec)
    cuts = find_cuts(network, traces, at, images, shapes)
    heads = []
    for cut in cuts:
        shape = shapes[traces.eval.find(cut)]  # type: ignore[index]
        assert shape is not None  # find_cuts refuses nodes without features
        features = describe_features(network, shape, images.shape)
        heads.append(_make_head(head, features, spec.classes, cut).to(images.device))
    _keep_features(network, traces, cuts)
    modes = [(module, module.training) for module in network.modules()]
    attached = AttachedNetwork(*split_network(network, traces, cuts, heads), cuts).train(network.training)
    for module, training in modes:
        module.training = training
    return attached


def _example(network: nn.Module, spec: InputSpec) -> Tensor:
    """Two black images where the network's weights are."""
    images = spec.blank(2)
    weight = next(network.parameters(), images)
    return images.to(weight.device, weight.dtype)


def _run(network: nn.Module, traces: Traces, images: Tensor, spec: InputSpec) -> Shapes:
    """The shapes of what the nodes give in evaluation mode."""
    name = type(network).__name__
    try:
        shapes = run_nodes(network, traces.eval, images)
    except Exception as error:  # the forward is not raygf's, and may raise anything
        cause = (str(error).splitlines() or [""])[0]
        size = "x".join(map(str, images.shape[1:]))
        raise ConfigError(f"{name} failed on 2 images of {size}: {type(error).__name__}: {cause}") from error
    result = shapes[traces.eval.result]  # type: ignore[index]
    if result != (2, spec.classes):
        given = "no tensor" if result is None else f"a tensor {tuple(result)}"
        raise ConfigError(f"{name} must return logits (2, {spec.classes}) for 2 images; it returned {given}")
    return shapes


def _make_head(head: HeadKind | HeadMaker, features: Features, classes: int, cut: str) -> nn.Module:
    """The head at ``cut``, tried on zeros if it is the user's own."""
    if not callable(head):
        return default_head(features, classes, head)
    try:
        made = head(features.channels, classes)
        with evaluating(made):
            output = made(torch.zeros(features.shape))
    except Exception as error:  # the head is not raygf's, and may raise anything
        cause = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"head at {cut}: {type(error).__name__}: {cause}") from error
    if not isinstance(output, Tensor) or output.shape != (features.shape[0], classes):
        raise ConfigError(
            f"head at {cut}: must turn features {tuple(features.shape)} into logits "
            f"({features.shape[0]}, {classes})"
        )
    return made


def _keep_features(network: nn.Module, traces: Traces, cuts: Sequence[str]) -> None:
    """Stop the modules that read a cut from overwriting it: its head needs it for the backward pass."""
    for trace in (traces.train, traces.eval):
        for cut in cuts:
            node = trace.find(cut)
            for user in node.users if node is not None else ():
                if user.op == "call_module" and isinstance(user.target, str):
                    module = network.get_submodule(user.target)
                    if getattr(module, "inplace", False) is True:
                        setattr(module, "inplace", False)  # noqa: B010 (for mypy)
