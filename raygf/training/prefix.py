"""The part of a network that one exit's training runs and updates when deeper exits are left out of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raygf.config.run import AuxExits
from raygf.models.msdnet_lazy import exit_stages
from raygf.models.multi_exit import MultiExitNetwork
from raygf.training.network import BoundNetwork
from raygf.training.space import FlatSpace, Stretches, find_ownership

Forward = Callable[[Tensor], Sequence[Tensor]]
"""From images (B, C, H, W) to the logits (B, classes) of some exits, shallow to deep."""


@dataclass(frozen=True)
class Part:
    """What one exit's training runs (``forward``), and whose losses it sees (``exits``, from 0).

    ``trained``: the stretches of the flat vector that it updates; ``owned``: those that its own output
    depends on, which it hands back.
    """

    exits: Sequence[int]
    forward: Forward
    trained: Stretches
    owned: Stretches


def parts_of(bound: BoundNetwork, example: Tensor, aux_exits: AuxExits) -> list[Part]:
    """The part of every exit, where it is not the whole network.

    Args:
        example: images (B, C, H, W), to find out what each exit depends on.
        aux_exits: the other exits whose losses a training sees, "shallower" or "none".
    """
    owned, parts = find_ownership(bound.network, example, bound.space), []
    for exit, mine in enumerate(handed_back(bound.space, owned, aux_exits)):
        seen = range(0 if aux_exits == "shallower" else exit, exit + 1)
        trained = Stretches.of(bound.space, owned[list(seen)].any(dim=0).tolist())
        parts.append(Part(seen, prefix(bound.network, seen), trained, mine))
    return parts


def whole(bound: BoundNetwork, exits: int) -> Part:
    """All of a network of so many ``exits``."""
    everything = Stretches.of(bound.space)
    return Part(range(exits), bound.network, everything, everything)


def handed_back(space: FlatSpace, owned: Tensor, aux_exits: AuxExits) -> list[Stretches]:
    """What each exit's delta is of: the tensors that it owns (n, T), or with "all" the whole vector."""
    if aux_exits == "all":
        return [Stretches.of(space)] * len(owned)
    return [Stretches.of(space, row) for row in owned.tolist()]


def prefix(network: nn.Module, exits: Sequence[int]) -> Forward:
    """The forward pass of ``network`` up to the last of ``exits``, through their heads alone.

    An MSDNet in its lazy form: only what these heads read is computed. A network of the user's own that is no
    ``MultiExitNetwork`` is run whole: its forward pass may do more than its stages and heads.
    """
    if not isinstance(network, MultiExitNetwork):
        return lambda images: [logits for exit, logits in enumerate(network(images)) if exit in exits]
    steps, heads = exit_stages(network, network.stages), network.heads

    def forward(images: Tensor) -> list[Tensor]:
        state: Any = images
        logits = []
        for exit in range(exits[-1] + 1):
            state = steps[exit](state)
            if exit in exits:
                logits.append(heads[exit](state))
        return logits

    return forward
