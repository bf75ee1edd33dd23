"""Where a run's actors go when they must stay inside a placement group, as a Tune trial's must."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@dataclass(frozen=True)
class Bundles:
    """The driver in the bundle ``driver`` of ``group``, and one exit actor in each of ``exits``."""

    group: PlacementGroup
    driver: int
    exits: tuple[int, ...]

    def options(self, bundle: int) -> dict[str, Any]:
        """Options for an actor that goes into ``bundle``; what it starts itself goes where it says."""
        strategy = PlacementGroupSchedulingStrategy(
            self.group, placement_group_bundle_index=bundle, placement_group_capture_child_tasks=False
        )
        return {"scheduling_strategy": strategy}
