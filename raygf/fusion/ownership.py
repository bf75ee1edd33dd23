"""Which exits depend on which parameters, read off the autograd graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raygf.fusion.flat import FlatSpace
from raygf.models.evaluating import evaluating


def find_ownership(network: nn.Module, example: Tensor, space: FlatSpace) -> Tensor:
    """The mask ``m`` (n, T), bool: true where the output of exit i depends on tensor t.

    One forward pass of ``example`` (B, C, H, W) in evaluation mode, so that buffers stay as they are.
    """
    with evaluating(network), torch.enable_grad():
        logits: Sequence[Tensor] = network(example)
    index = {id(p): name for name, p in network.named_parameters()}
    position = {name: i for i, name in enumerate(space.names)}
    owned = torch.zeros(len(logits), len(space.slots), dtype=torch.bool)
    for exit, output in enumerate(logits):
        for parameter in _leaves(output):
            name = index.get(id(parameter))
            if name in position:
                owned[exit, position[name]] = True
    return owned


def _leaves(output: Tensor) -> list[Tensor]:
    """The leaf tensors that ``output`` was computed from."""
    seen, leaves = set(), []
    stack = [output.grad_fn] if output.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # an AccumulateGrad node: the end of a path
            leaves.append(node.variable)
        stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    return leaves
