"""The driver as a Ray actor with its own resources, and its handle in the submitting process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from raygf.config import RunConfig
from raygf.driver import Driver
from raygf.errors import ResourceError, RunFailed
from raygf.ray_bundles import Bundles
from raygf.ray_executor import RayExecutor, fetch
from raygf.records import RoundRecord, RunEnd, RunStart

_START_S = 300.0
_PREPARE_S = 1800.0
_CLOSE_S = 30.0


class DriverActor:
    """The plain driver with an executor of Ray actors; ``ray.remote`` is applied by ``RemoteDriver``."""

    def __init__(self, config: RunConfig, bundles: Bundles | None = None) -> None:
        self._driver = Driver(config, partial(RayExecutor, bundles=bundles))

    def ready(self) -> bool:
        """Answered once the actor runs."""
        return True

    def prepare(self) -> RunStart:
        """See ``Driver.prepare``."""
        return self._driver.prepare()

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """See ``Driver.rounds``; called as a streaming generator."""
        yield from self._driver.rounds(run_id)

    def end(self) -> RunEnd:
        """See ``Driver.end``."""
        return self._driver.end()

    def close(self) -> None:
        """See ``Driver.close``."""
        self._driver.close()


class RemoteDriver:
    """Looks like ``Driver``; every wait has a limit, and errors come back as the driver raised them.

    With ``bundles``, it and its exit actors go into those.
    """

    def __init__(self, config: RunConfig, bundles: Bundles | None = None) -> None:
        resources = config.resources
        self._resources = resources
        placed = {} if bundles is None else bundles.options(bundles.driver)
        remote = ray.remote(DriverActor).options(
            num_cpus=resources.driver_cpus, num_gpus=resources.driver_gpus or 0, max_restarts=0, **placed
        )
        self._actor = remote.remote(config, bundles)
        self._exits = 1
        self._training = False

    def prepare(self) -> RunStart:
        """See ``Driver.prepare``.

        Raises:
            ResourceError: the actor could not start.
        """
        limit = _START_S + self._resources.wait_for_resources_s
        started, _ = ray.wait([self._actor.ready.remote()], timeout=limit)
        if not started:
            raise ResourceError(
                f"the driver ({self._resources.driver_cpus:g} CPUs, {self._resources.driver_gpus or 0:g} "
                f"GPUs) could not start within {limit:.0f} s: the cluster is busy; free it, lower "
                "resources.driver_cpus, or raise resources.wait_for_resources_s"
            )
        start: RunStart = _get(self._actor.prepare.remote(), _PREPARE_S, "loading data and network")
        self._exits = len(start.operations)
        return start

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """See ``Driver.rounds``."""
        stream = self._actor.rounds.options(num_returns="streaming").remote(run_id)
        limit = self._round_limit()
        self._training = True
        while True:
            ready, _ = ray.wait([stream], timeout=limit)
            if not ready:
                raise RunFailed(f"no round ended within {limit:.0f} s; raise resources.exit_timeout_s")
            try:
                ref = next(stream)
            except StopIteration:
                self._training = False
                return
            yield _get(ref, _CLOSE_S, "fetching a record")

    def end(self) -> RunEnd:
        """See ``Driver.end``."""
        end: RunEnd = _get(self._actor.end.remote(), _PREPARE_S, "evaluating the test images")
        return end

    def close(self) -> None:
        """End the driver and its exit actors, at once if a round is under way."""
        if not self._training:  # else the call would wait for the rounds; actors end with their owner
            with suppress(RayError):
                ray.get(self._actor.close.remote(), timeout=_CLOSE_S)
        ray.kill(self._actor)

    def _round_limit(self) -> float:
        """Seconds that a round may take at most: all exits on one actor, all retries, the fusion pass."""
        resources = self._resources
        trainings = self._exits + 2 + resources.max_failures
        starts = (1 + resources.max_failures) * (_START_S + resources.wait_for_resources_s)
        return trainings * resources.exit_timeout_s + starts


def _get(ref: Any, limit: float, doing: str) -> Any:
    try:
        return fetch(ref, limit)
    except RayTaskError:
        raise
    except GetTimeoutError:
        raise RunFailed(f"the driver did not answer within {limit:.0f} s while {doing}") from None
    except RayError as error:
        first = str(error).strip().split("\n")[0]
        raise RunFailed(f"the driver was lost while {doing}: {first}; the last checkpoint stands") from None
