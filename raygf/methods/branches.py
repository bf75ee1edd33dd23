"""Within-step methods that change gradients on their way back, where an exit branches off: Gradient
Equilibrium, BoostNet's rescaling, Deep Feature Surgery.

One exit alone is plain SGD in all of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raygf.errors import ConfigError
from raygf.methods.base import JointSGD, Setting
from raygf.models.multi_exit import ChannelsFirst, MultiExitNetwork

Change = Callable[[Tensor], Tensor]
"""From a gradient of any shape to one of the same shape; the argument is not written to."""


@dataclass(frozen=True)
class Branch:
    """The changes of the two gradients that meet where an exit branches off."""

    from_head: Change
    from_deeper: Change


BranchAt = Callable[[MultiExitNetwork, int], Branch]
"""From a network and an exit (from 0) to its branch. Nothing comes from deeper at the last exit."""


class BranchMethod(JointSGD):
    """Hooks the branches of a ``MultiExitNetwork`` while it lives; the losses are simply added.

    What goes forward stays as it is, and so do the gradients of a head's own parameters: gradients are
    changed on their way out of the head.
    """

    def __init__(self, name: str, network: nn.Module, branch_at: BranchAt) -> None:
        """Hook ``network``; ``name`` is the method's in errors.

        Raises ConfigError: the network does not say where its branches are.
        """
        if not isinstance(network, MultiExitNetwork):
            raise ConfigError(f"method = {name!r} needs a network of stages and heads (a MultiExitNetwork)")
        self._handles = list(_hook(network, branch_at))

    def close(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()


def _hook(network: MultiExitNetwork, branch_at: BranchAt) -> Iterator[RemovableHandle]:
    """Change what comes back out of every head, and out of the stage that follows it."""
    for exit, head in enumerate(network.heads):
        branch = branch_at(network, exit)
        yield head.register_forward_pre_hook(_changer(branch.from_head, network.branch))
        if exit + 1 < len(network.heads):
            onward = network.branch if network.onward is None else network.onward
            changer = _changer(branch.from_deeper, onward)
            yield network.stages[exit + 1].register_forward_pre_hook(changer)


def _changer(change: Change, branch: int) -> Any:
    """A pre-hook that changes the gradient of the state's part ``branch``; finer scales don't branch."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        state = inputs[0]
        if isinstance(state, Tensor):
            return (_Changed.apply(state, change),)  # type: ignore[no-untyped-call]
        states = list(state)
        states[branch] = _Changed.apply(states[branch], change)  # type: ignore[no-untyped-call]
        return (type(state)(states),)

    return hook


class _Changed(torch.autograd.Function):
    """The identity, whose gradient is changed."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, change: Change) -> Tensor:  # type: ignore[override]
        ctx.change = change
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.change(grad), None


class GradientEquilibrium(BranchMethod):
    """Li, Zhang, Qi, Yang, Huang, "Improved Techniques for Training Adaptive Deep Networks", ICCV 2019.

    At the branch of exit i (from 1, of n) the gradient that comes from its head is scaled by ``1/(n − i +
    1)`` and the one that comes from deeper by ``(n − i)/(n − i + 1)``: the backbone receives a mean of the
    exits' gradients, not their sum, so its gradients keep their scale at every depth.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__("ge", setting.network, equilibrium)


class BoostNetRescaling(BranchMethod):
    """Yu, Li, Hua, Huang, Shi, "Boosted Dynamic Neural Networks", AAAI 2023: a mean over the exits.

    ``dL/db_i = 1/(n − i + 1) · Σ_{j ≥ i} dL_j/db_i`` for the features ``b_i`` of stage i (Eq. 7). That is
    what Gradient Equilibrium's two factors multiply out to, and the authors' program uses those very factors.
    What else BoostNet does, every exit adding to the shallower ones' logits, changes the network and is not
    part of it.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__("boostnet", setting.network, equilibrium)


def equilibrium(network: MultiExitNetwork, exit: int) -> Branch:
    """The factors at the branch of ``exit`` (from 0)."""
    left = len(network.heads) - exit
    return Branch(_scaled(1 / left), _scaled((left - 1) / left))


def _scaled(factor: float) -> Change:
    return lambda gradient: gradient * factor


class DeepFeatureSurgery(BranchMethod):
    """Gong et al., "Deep Feature Surgery: Towards Accurate and Efficient Multi-Exit Networks", ECCV 2024.

    The C channels of the features ``f_i`` at the branch of exit i are parted into ``f_i⁺``, the first
    round(βC), which train for the deeper exits, and ``f_i⁻``, the rest, which train for exit i. Forward, the
    head and the next stage both read all of them (feature referencing); backward, the gradient of ``f_i⁺``
    comes from deeper alone and that of ``f_i⁻`` from the head alone (feature partitioning). So exits share
    fewer weights to pull at. The last exit has all of its features to itself.

    Everything stands as the authors' README and their ResNet, VGG and BERT have it; the helper that their
    MSDNet uses lets the head's gradient into ``f_i⁺``, too. Fewer operations, as their split layers need, are
    not to be had with one unchanged network: the steps take as long as those of joint SGD.
    """

    def __init__(self, setting: Setting) -> None:
        beta = setting.config.dfs_beta
        super().__init__("dfs", setting.network, lambda network, exit: partition(network, exit, beta))


def partition(network: MultiExitNetwork, exit: int, beta: float) -> Branch:
    """What each side of the branch of ``exit`` (from 0) keeps of its gradient.

    ``beta`` (0–1): the share β of channels that train for deeper exits.
    """
    if exit + 1 == len(network.heads):
        return Branch(lambda gradient: gradient, lambda gradient: gradient)
    last = any(isinstance(module, ChannelsFirst) for module in network.heads[exit].modules())
    return Branch(_kept(beta, last, shared=False), _kept(beta, last, shared=True))


def _kept(beta: float, channels_last: bool, shared: bool) -> Change:
    """A gradient with zeros in the channels of the other side.

    Its shape is (B, C, H, W), or (B, H, W, C) with ``channels_last``; (B, T, C) of tokens; or (B, C).
    """

    def change(gradient: Tensor) -> Tensor:
        axis = -1 if channels_last or gradient.dim() == 3 else 1
        channels = gradient.shape[axis]
        split = round(beta * channels)
        kept = gradient.clone()
        other = kept.narrow(axis, split, channels - split) if shared else kept.narrow(axis, 0, split)
        other.zero_()
        return kept

    return change
