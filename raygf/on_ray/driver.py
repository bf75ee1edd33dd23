"""The driver as a Ray actor with its own resources, seen from the submitting process."""

from __future__ import annotations

import time
from functools import partial

from raygf.config import RunConfig
from raygf.on_ray.bundles import Bundles
from raygf.on_ray.driver_actor import Parts
from raygf.on_ray.driver_process import DriverProcess
from raygf.on_ray.failures import dead_nodes
from raygf.on_ray.restarts import RestartedDriver
from raygf.saying import Say, nobody
from raygf.storage.owner import Owner

NODE_S = 20.0
"""Seconds after which Ray knows for sure that a node is lost."""
_TICK_S = 1.0


class RemoteDriver(RestartedDriver):
    """Looks like ``Driver``. An actor that is lost is replaced, and goes on from the last checkpoint.

    With ``bundles``, it and its exit actors go into those. ``say`` is told at once of what is lost and waited
    for. ``parts``: what the actor is made of.
    """

    def __init__(
        self,
        config: RunConfig,
        bundles: Bundles | None = None,
        say: Say = nobody,
        parts: Parts | None = None,
    ) -> None:
        """Begin to start the actor."""
        start = partial(DriverProcess, bundles=bundles, owner=Owner.new(), say=say, parts=parts or Parts())
        super().__init__(start, config, say, lost_nodes)


def lost_nodes(wait: bool) -> set[str]:
    """The nodes that the cluster has lost; with ``wait``, after Ray has had the time to notice."""
    dead = dead_nodes()
    until = time.monotonic() + (NODE_S if wait else 0.0)
    while time.monotonic() < until and not dead_nodes() - dead:
        time.sleep(_TICK_S)
    return dead_nodes()
