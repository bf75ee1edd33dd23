"""What Ray Tune runs for every trial: a driver in the trial's bundles, its records reported as they come.

The driver writes its checkpoints to a folder on its own node. Each round's is handed to Tune under one fixed
name: after a crash Tune may use a checkpoint's folder again, and there must not be two in it.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError

from raygf.config.fields import flatten, to_dict
from raygf.config.run import RunConfig
from raygf.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MemoryExhausted,
    NonFiniteError,
    RunFailed,
    without_password,
)
from raygf.on_ray.driver import RemoteDriver
from raygf.on_ray.placement import Bundles, trial_bundles
from raygf.records import RoundRecord
from raygf.storage.checkpoint import CheckpointStore, read_archive
from raygf.sweeps.plan import Plan, SweepFolder, set_field
from raygf.sweeps.space import Values
from raygf.tracking.mlflow_run import round_metrics

START, RECORD, END = "raygf_start", "raygf_record", "raygf_end"
"""Where a result holds what came from the driver: ``RunStart`` (the first since the trial was started), the
``RoundRecord``, and ``RunEnd`` (the last)."""
FAILURE = "raygf_failure"
"""Where the last result of a trial that can't succeed says why. Tune would try again if it were raised."""
VALUES = "values"
"""Where a trial's configuration, as Tune knows it, holds the fields that the trial sets."""
NAME = "checkpoint.npz"
"""What the checkpoint is called in the folders that Tune keeps."""
SCHEDULE = "raygf_schedule"
"""Where a result has the trial's ``Schedule``."""
_SCHEDULE_FILE = "schedule.json"
"""Beside a checkpoint whose weights were trained with several values one after the other."""
WOULD_HAPPEN_AGAIN = (ConfigError, DataError, CheckpointError, NonFiniteError, MemoryExhausted)
"""Errors that end a trial at once: training is repeatable, so another try would end the same way."""

_RAYGFS = re.compile(r"^raygf\.errors\.\w+: ")
"""raygf's own errors say all there is to say without their kind."""

Schedule = list[tuple[int, Values]]
"""What weights were trained with: values, each with their first round. Only a population has several."""


def run_trial(config: dict[str, Any], plan: Plan) -> None:
    """Train the trial that ``config`` describes, from Tune's checkpoint if it has one.

    The driver's own checkpoints go to a folder on this node, where the trainable and the driver both are: the
    empty first bundle is placed with the driver's. Tune ends the trial by raising SystemExit in ``report``.
    """
    trial, values = str(tune.get_context().get_trial_id()), config[VALUES]
    run_id = SweepFolder(plan.run.storage).read_trials().get(trial, "")
    with TemporaryDirectory(dir=Path.cwd(), prefix="rounds-", ignore_cleanup_errors=True) as rounds:
        try:
            run, schedule = plan.trial_run(trial, values, rounds), [(1, values)]
            if given := tune.get_checkpoint():
                schedule = take_over(given, run, values)
                run = replace(run, storage=replace(run.storage, resume=True))
            # Ray leaves the empty bundle out, so the driver's is the first.
            exits = tuple(range(1, 1 + plan.exit_bundles(values)))
            driver = RemoteDriver(run, Bundles(ray.util.get_current_placement_group(), 0, exits))
            try:
                _report(driver, run_id, schedule)
            finally:
                driver.close()
        except WOULD_HAPPEN_AGAIN as error:
            tune.report({FAILURE: str(error), "done": True})


def placement(plan: Plan, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What the trial that ``config`` describes reserves, as a whole or not at all."""
    return tune.PlacementGroupFactory(trial_bundles(plan.run.resources, plan.exit_bundles(config[VALUES])))


def _report(driver: RemoteDriver, run_id: str, schedule: Schedule) -> None:
    """Report every record, the last one with the test's results: Tune takes nothing after the last report."""
    start = driver.prepare()
    last, news = start.last, {START: start}

    def report(record: RoundRecord, **more: Any) -> None:
        known = {**round_metrics(record), RECORD: record, SCHEDULE: schedule}
        with handed_over(record.checkpoint, schedule) as checkpoint:
            tune.report({**known, **news, **more}, checkpoint=checkpoint)
        news.clear()

    for record in driver.rounds(run_id):
        if record.round < record.rounds:
            report(record, done=False)
        last = record
    if last is None:
        raise RunFailed("the driver ended without a record")
    report(last, done=True, **{END: driver.end()})


@contextmanager
def handed_over(path: str, schedule: Schedule) -> Iterator[tune.Checkpoint | None]:
    """The checkpoint file ``path`` as Tune wants it: alone in a folder.

    None if it is gone: records that a lost driver could not hand out come after newer checkpoints.
    """
    with TemporaryDirectory(dir=Path(path).parent, prefix="to-tune-", ignore_cleanup_errors=True) as folder:
        try:
            shutil.copyfile(path, Path(folder, NAME))
            if len(schedule) > 1:
                Path(folder, _SCHEDULE_FILE).write_text(json.dumps(schedule))
        except FileNotFoundError:
            yield None
        else:
            yield tune.Checkpoint.from_directory(folder)


def take_over(given: tune.Checkpoint, run: RunConfig, values: Values) -> Schedule:
    """Put the checkpoint that Tune has ``given`` where the driver of ``run`` looks for it.

    Population based training gives the checkpoint of another trial, and other ``values`` to go on with; only
    those may differ from what is stored. Returns the values before, and these if they differ.

    Raises CheckpointError: it can't be read.
    """
    path = f"{given.path}/{NAME}"
    try:
        with given.filesystem.open_input_file(path) as stream:
            checkpoint = read_archive(stream)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {type(error).__name__}") from None
    config, now = deepcopy(checkpoint.meta["config"]), flatten(to_dict(run))
    before, after = ({name: known.get(name) for name in values} for known in (flatten(config), now))
    schedule: Schedule = [(1, before)]
    with suppress(OSError), given.filesystem.open_input_file(f"{given.path}/{_SCHEDULE_FILE}") as stream:
        schedule = [(first, values) for first, values in json.loads(stream.read())]
    if after != before:
        schedule.append((checkpoint.round + 1, after))
    for name in values:
        set_field(config, name, now[name])
    store = CheckpointStore(run.storage.path, run.storage.name, keep=1)
    store.check_writable()
    store.save(replace(checkpoint, meta={**checkpoint.meta, "config": config}))
    return schedule


def cause_of(error: object) -> str:
    """Why a trial failed: the last line of the error's text, which may be a traceback with its cause."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    if isinstance(error, RayActorError) or any(line.startswith("The actor died") for line in lines):
        return "its process was lost (killed, out of memory, or its node has gone)"
    return without_password(_RAYGFS.sub("", lines[-1])) if lines else "unknown"
