"""MSDNet evaluated lazily: up to each exit, only what its classifier depends on is computed.

Classifiers read the coarsest scale alone. So at an exit after layer L, the next finer scale is needed up to
layer L − 1 only, the one finer still up to L − 2; the rest is made up for by the next stage, for the images
that are still there. ("Lazy evaluation" in Huang et al., "Multi-Scale Dense Networks for Resource Efficient
Image Classification", ICLR 2018.) All stages together do the operations of the network's own forward pass, in
another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from raygf.models.msdnet import DenseLayer, DenseUnit, FirstLayer, MSDNet, Transition


class Place(NamedTuple):
    """Features after a layer (0: the first one) at a scale (0: the finest; −1: the images)."""

    layer: int
    scale: int


_IMAGES = Place(0, -1)


class LazyStage:
    """From what the stage before has kept to what the head and later stages need.

    The state is a list of features (B, C, H, W), at first the images; the last one is the coarsest scale,
    which the head reads.
    """

    def __init__(
        self, parts: Mapping[Place, _Part], known: list[Place], steps: list[Place], kept: list[Place]
    ) -> None:
        self._known, self._kept = known, kept
        self._steps = [(place, parts[place], _unused_after(parts, steps, kept, place)) for place in steps]

    def __call__(self, state: Any) -> list[Tensor]:
        """The state after this stage."""
        given = [state] if isinstance(state, Tensor) else state
        features: dict[Place, Tensor] = dict(zip(self._known, given, strict=True))
        for place, part, unused in self._steps:
            features[place] = part.compute(*(features[source] for source in part.sources))
            for old in unused & features.keys():
                del features[old]
        return [features[place] for place in self._kept]


def exit_stages(network: nn.Module, stages: nn.ModuleList) -> list[Callable[[Any], Any]]:
    """What is run one after the other up to each exit: an MSDNet's lazy stages, another's own ``stages``."""
    return [*(lazy_stages(network) if isinstance(network, MSDNet) else stages)]


def lazy_stages(network: MSDNet) -> list[LazyStage]:
    """The stages of ``network`` in their lazy form; they use its modules and copy nothing."""
    parts, ends = _parts(network)
    coarsest = max(place.scale for place in parts)
    goals = [Place(end, coarsest) for end in ends]
    plans: list[list[Place]] = []
    done = {_IMAGES}
    for goal in goals:
        plans.append(sorted(_missing(parts, goal, done)))
        done.update(plans[-1])
    stages, known = [], [_IMAGES]
    for number, (goal, steps) in enumerate(zip(goals, plans, strict=True)):
        later = {source for plan in plans[number + 1 :] for place in plan for source in parts[place].sources}
        kept = [*sorted((later & {*known, *steps}) - {goal}), goal]
        stages.append(LazyStage(parts, known, steps, kept))
        known = kept
    return stages


@dataclass(frozen=True)
class _Part:
    """How the features of one place come about."""

    sources: tuple[Place, ...]
    compute: Callable[..., Tensor]


def _parts(network: MSDNet) -> tuple[dict[Place, _Part], list[int]]:
    """The parts of all places, and the last layer of every stage."""
    parts: dict[Place, _Part] = {}
    ends, layer = [], 0
    for stage in network.stages:
        assert isinstance(stage, nn.Sequential)
        for module in stage:
            if isinstance(module, FirstLayer):
                for scale, conv in enumerate(module.scales):
                    parts[Place(0, scale)] = _Part((Place(0, scale - 1),), conv)
            elif isinstance(module, DenseLayer):
                layer += 1
                parts.update(_dense_parts(module, layer, _scales(parts)))
            elif isinstance(module, Transition):
                _append_transition(parts, module, layer)
        ends.append(layer)
    return parts, ends


def _scales(parts: Iterable[Place]) -> int:
    return 1 + max(place.scale for place in parts)


def _dense_parts(module: DenseLayer, layer: int, scales: int) -> dict[Place, _Part]:
    parts = {}
    for scale, unit in enumerate(module.scales, start=scales - len(module.scales)):
        assert isinstance(unit, DenseUnit)
        same, finer = Place(layer - 1, scale), Place(layer - 1, scale - 1)
        if unit.down is None:
            parts[Place(layer, scale)] = _Part((same,), partial(unit, None))
        else:
            parts[Place(layer, scale)] = _Part((finer, same), unit)
    return parts


def _append_transition(parts: dict[Place, _Part], module: Transition, layer: int) -> None:
    """Let the transition follow the layer's own computation, scale by scale."""
    for scale, conv in enumerate(module.scales, start=_scales(parts) - len(module.scales)):
        place = Place(layer, scale)
        parts[place] = _Part(parts[place].sources, _then(parts[place].compute, conv))


def _then(first: Callable[..., Tensor], second: nn.Module) -> Callable[..., Tensor]:
    def compute(*features: Tensor) -> Tensor:
        result: Tensor = second(first(*features))
        return result

    return compute


def _missing(parts: Mapping[Place, _Part], goal: Place, done: set[Place]) -> set[Place]:
    """All that must be computed for ``goal`` and is not ``done``."""
    missing: set[Place] = set()
    waiting = [goal]
    while waiting:
        place = waiting.pop()
        if place not in done and place not in missing:
            missing.add(place)
            waiting.extend(parts[place].sources)
    return missing


def _unused_after(
    parts: Mapping[Place, _Part], steps: list[Place], kept: list[Place], place: Place
) -> set[Place]:
    """What the step at ``place`` is the last one to read, and nobody keeps."""
    rest = steps[steps.index(place) + 1 :]
    return set(parts[place].sources) - {*kept, *(source for step in rest for source in parts[step].sources)}
