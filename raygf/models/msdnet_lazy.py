"""MSDNet evaluated lazily: up to each exit, only what its classifier depends on is computed.

Classifiers read the coarsest scale alone. So at an exit after layer L, the next finer scale is needed up to
layer L − 1 only, the one finer still up to L − 2; the rest is made up for by the next stage, for the images
that are still there. ("Lazy evaluation" in Huang et al., "Multi-Scale Dense Networks for Resource Efficient
Image Classification", ICLR 2018.) All stages together do the operations of the network's own forward pass, in
another order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from raygf.models.msdnet import DenseLayer, FirstLayer, MSDNet, Transition


class Place(NamedTuple):
    """Features after a layer (0: the first one) at a scale (0: the finest; −1: the images)."""

    layer: int
    scale: int


_IMAGES = Place(0, -1)
Parts = dict[Place, tuple[tuple[Place, ...], Callable[..., Tensor]]]
"""What the features of every place are computed from, and by what."""


class LazyStage:
    """From what the stage before has kept to what the head and later stages need.

    The state is a list of features (B, C, H, W), at first the images; the last one is the coarsest scale,
    which the head reads.
    """

    def __init__(self, parts: Parts, known: list[Place], steps: list[Place], kept: list[Place]) -> None:
        self._known, self._kept = known, kept
        last = {source: place for place in steps for source in parts[place][0]}  # which reads it last
        self._steps = [
            (place, *parts[place], [s for s in parts[place][0] if last[s] == place and s not in kept])
            for place in steps
        ]

    def __call__(self, state: Any) -> list[Tensor]:
        """The state after this stage."""
        given = [state] if isinstance(state, Tensor) else state
        features: dict[Place, Tensor] = dict(zip(self._known, given, strict=True))
        for place, sources, compute, unused in self._steps:
            features[place] = compute(*(features[source] for source in sources))
            for old in unused:
                del features[old]
        return [features[place] for place in self._kept]


def exit_stages(network: nn.Module, stages: nn.ModuleList) -> list[Callable[[Any], Any]]:
    """What is run one after the other up to each exit: an MSDNet's lazy stages, another's own ``stages``."""
    return [*(lazy_stages(network) if isinstance(network, MSDNet) else stages)]


def lazy_stages(network: MSDNet) -> list[LazyStage]:
    """The stages of ``network`` in their lazy form; they use its modules and copy nothing."""
    parts, ends = _parts(network)
    goals = [Place(end, max(place.scale for place in parts)) for end in ends]
    plans: list[list[Place]] = []
    done = {_IMAGES}
    for goal in goals:
        needed = {goal}
        for place in sorted(parts, reverse=True):  # every place after those that it is a source of
            if place in needed and place not in done:
                needed.update(parts[place][0])
        plans.append(sorted(needed - done))
        done |= needed
    stages, known = [], [_IMAGES]
    for number, (goal, steps) in enumerate(zip(goals, plans, strict=True)):
        later = {source for plan in plans[number + 1 :] for place in plan for source in parts[place][0]}
        kept = [*sorted((later & {*known, *steps}) - {goal}), goal]
        stages.append(LazyStage(parts, known, steps, kept))
        known = kept
    return stages


def _parts(network: MSDNet) -> tuple[Parts, list[int]]:
    """The parts of all places, and the last layer of every stage."""
    parts: Parts = {}
    ends, layer, scales = [], 0, 0
    for stage in network.stages:
        for module in stage.children():
            assert isinstance(module, FirstLayer | DenseLayer | Transition)
            layer += isinstance(module, DenseLayer)
            scales = scales or len(module.scales)  # the first layer has all
            for scale, unit in enumerate(module.scales, start=scales - len(module.scales)):
                here, same, finer = Place(layer, scale), Place(layer - 1, scale), Place(layer - 1, scale - 1)
                if isinstance(module, FirstLayer):
                    parts[here] = (Place(0, scale - 1),), unit
                elif isinstance(module, Transition):
                    sources, before = parts[here]
                    parts[here] = sources, partial(_both, before, unit)
                elif unit.down is None:
                    parts[here] = (same,), partial(unit, None)
                else:
                    parts[here] = (finer, same), unit
        ends.append(layer)
    return parts, ends


def _both(first: Callable[..., Tensor], second: nn.Module, *features: Tensor) -> Tensor:
    result: Tensor = second(first(*features))
    return result
