"""Gradient Equilibrium: Li, Zhang, Qi, Yang, Huang, "Improved Techniques for Training Adaptive Deep
Networks", ICCV 2019.

At the branch of exit i (from 1, of n) the gradient that comes from its head is scaled by ``1/(n − i +
1)`` and the one that comes from deeper by ``(n − i)/(n − i + 1)``: the backbone receives a mean of the
exits' gradients, not their sum, so its gradients keep their scale at every depth. One exit alone is plain
SGD.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raygf.bound import BoundNetwork
from raygf.errors import ConfigError
from raygf.methods.base import StepMethod
from raygf.models.multi_exit import MultiExitNetwork


class GradientEquilibrium(StepMethod):
    """Hooks the branches of a ``MultiExitNetwork`` while it lives; the losses are simply added."""

    def __init__(self, network: nn.Module) -> None:
        """Hook ``network``.

        Raises:
            ConfigError: the network does not say where its branches are.
        """
        if not isinstance(network, MultiExitNetwork):
            raise ConfigError("method = 'ge' needs a network of stages and heads (a MultiExitNetwork)")
        self._handles = list(_hook(network))

    def backward(self, losses: Tensor, bound: BoundNetwork) -> None:
        """See ``StepMethod.backward``."""
        torch.autograd.backward(losses.sum())
        bound.peers.sum_(bound.grad)

    def close(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()


def _hook(network: MultiExitNetwork) -> list[RemovableHandle]:
    """Scale what goes into every head, and what goes on into the next stage."""
    exits, handles = len(network.heads), []
    for i, head in enumerate(network.heads):
        left = exits - i
        handles.append(head.register_forward_pre_hook(_scaler(1 / left, network.branch)))
        if left > 1:
            scaler = _scaler((left - 1) / left, network.branch)
            handles.append(network.stages[i + 1].register_forward_pre_hook(scaler))
    return handles


def _scaler(factor: float, branch: int) -> Any:
    """A pre-hook that scales the gradient of the tensor that heads read; finer scales don't branch."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        state = inputs[0]
        if isinstance(state, Tensor):
            return (_Scale.apply(state, factor),)  # type: ignore[no-untyped-call]
        states = list(state)
        states[branch] = _Scale.apply(states[branch], factor)  # type: ignore[no-untyped-call]
        return (type(state)(states),)

    return hook


class _Scale(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None
