"""Within-step methods that change gradients on their way back, where an exit branches off."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raygf.errors import ConfigError
from raygf.methods.base import JointSGD
from raygf.models.multi_exit import MultiExitNetwork

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
