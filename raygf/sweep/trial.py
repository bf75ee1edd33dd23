"""What Ray Tune runs for every trial: a driver in the trial's bundles, its records reported as they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune

from raygf.config import RunConfig
from raygf.errors import RunFailed
from raygf.on_ray.bundles import Bundles
from raygf.on_ray.driver import RemoteDriver
from raygf.records import RoundRecord, RunEnd, RunStart
from raygf.sweep.bundles import trial_bundles
from raygf.sweep.causes import WOULD_HAPPEN_AGAIN
from raygf.sweep.folder import SweepFolder
from raygf.sweep.objective import metrics_of
from raygf.sweep.plan import Plan
from raygf.sweep.space import Values
from raygf.sweep.trial_files import handed_over, take_over

START, RECORD, END = "raygf_start", "raygf_record", "raygf_end"
"""Where a result holds what the driver said: ``RunStart`` (the first since the trial was started), the
``RoundRecord``, and ``RunEnd`` (the last)."""

FAILURE = "raygf_failure"
"""Where the last result of a trial that can't succeed says why. Tune would try again if it were raised."""

VALUES = "values"
"""Where a trial's configuration, as Tune knows it, holds the fields that the trial sets."""


def run_trial(config: dict[str, Any], plan: Plan) -> None:
    """Train the trial that ``config`` describes, from Tune's checkpoint if it has one.

    The driver's own checkpoints go to a folder on this node, where the trainable and the driver both are: the
    empty first bundle is placed with the driver's. Tune ends the trial by raising SystemExit in ``report``.
    """
    trial, values = str(tune.get_context().get_trial_id()), config[VALUES]
    folder = SweepFolder(plan.run.storage)
    with TemporaryDirectory(dir=Path.cwd(), prefix="rounds-", ignore_cleanup_errors=True) as rounds:
        try:
            run, notes = _continued(plan.trial_run(trial, values, rounds), folder.of_trial(trial), values)
            driver = RemoteDriver(run, _bundles(plan.exit_bundles(values)))
            try:
                _report(driver, folder.read_trials().get(trial, ""), notes)
            finally:
                driver.close()
        except WOULD_HAPPEN_AGAIN as error:
            tune.report({FAILURE: str(error), "done": True})


def placement(plan: Plan, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What the trial that ``config`` describes reserves, as a whole or not at all."""
    return tune.PlacementGroupFactory(trial_bundles(plan.run.resources, plan.exit_bundles(config[VALUES])))


def _bundles(actors: int) -> Bundles:
    """The trial's bundles; Ray leaves the empty one out, so the driver's is the first."""
    return Bundles(ray.util.get_current_placement_group(), 0, tuple(range(1, 1 + actors)))


def _continued(run: RunConfig, trial_folder: str, values: Values) -> tuple[RunConfig, tuple[str, ...]]:
    """``run``, to be resumed if Tune has a checkpoint for it, and remarks."""
    given = tune.get_checkpoint()
    if given is None:
        return run, ()
    notes = take_over(given, trial_folder, run, values)
    return replace(run, storage=replace(run.storage, resume=True)), notes


def _report(driver: RemoteDriver, run_id: str, notes: tuple[str, ...]) -> None:
    start = driver.prepare()
    said: dict[str, Any] = {START: replace(start, notes=(*notes, *start.notes))}
    for record, end in _rounds(driver, start, run_id):
        said |= {RECORD: record, **({} if end is None else {END: end})}
        with handed_over(record.checkpoint) as checkpoint:
            metrics = {**metrics_of(record), **said, "done": end is not None}
            tune.report(metrics, checkpoint=checkpoint)
        said = {}


def _rounds(
    driver: RemoteDriver, start: RunStart, run_id: str
) -> Iterator[tuple[RoundRecord, RunEnd | None]]:
    """Every record, the last one with the test's results: Tune takes nothing after the last report."""
    last = start.last
    for record in driver.rounds(run_id):
        if record.round < record.rounds:
            yield record, None
        last = record
    if last is None:
        raise RunFailed("the driver ended without a record")
    yield last, driver.end()
