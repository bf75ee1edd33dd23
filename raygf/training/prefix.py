"""The part of a network that one exit's training runs and updates when deeper exits are left out of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raygf.config.run import AuxExits
from raygf.models.msdnet import MSDNet
from raygf.models.msdnet_lazy import lazy_stages
from raygf.training.network import BoundNetwork
from raygf.training.space import Stretches, find_ownership

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
    """The part of every exit.

    Args:
        example: images (B, C, H, W), to find out what each exit depends on.
        aux_exits: the other exits whose losses a training sees: with "all" the part is the whole network.
    """
    owned = find_ownership(bound.network, example, bound.space)
    n = len(owned)
    if aux_exits == "all":
        whole = Stretches.of(bound.space, [True] * len(bound.space.slots))
        return [Part(range(n), bound.network, whole, whole)] * n
    parts = []
    for exit in range(n):
        seen = range(0 if aux_exits == "shallower" else exit, exit + 1)
        trained = owned[list(seen)].any(dim=0).tolist()
        mine = Stretches.of(bound.space, owned[exit].tolist())
        parts.append(Part(seen, prefix(bound.network, seen), Stretches.of(bound.space, trained), mine))
    return parts


def prefix(network: nn.Module, exits: Sequence[int]) -> Forward:
    """The forward pass of ``network`` up to the last of ``exits``, through their heads alone.

    An MSDNet in its lazy form: only what these heads read is computed. A network of the user's own that has
    no ``stages`` and ``heads`` is run whole.
    """
    stages, heads = getattr(network, "stages", None), getattr(network, "heads", None)
    if not isinstance(stages, nn.ModuleList) or not isinstance(heads, nn.ModuleList):
        return lambda images: [logits for exit, logits in enumerate(network(images)) if exit in exits]
    steps: list[Callable[[Any], Any]] = [*(lazy_stages(network) if isinstance(network, MSDNet) else stages)]

    def forward(images: Tensor) -> list[Tensor]:
        state: Any = images
        logits = []
        for exit in range(exits[-1] + 1):
            state = steps[exit](state)
            if exit in exits:
                logits.append(heads[exit](state))
        return logits

    return forward
