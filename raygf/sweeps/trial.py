"""What Ray Tune runs for every trial: a driver in the trial's bundles, its records reported as they come.

The driver writes its checkpoints to a folder on its own node. Each round's is handed to Tune under one fixed
name: after a crash Tune may use a checkpoint's folder again, and there must not be two in it.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError

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
from raygf.storage.checkpoint import MODEL, WEIGHTS, CheckpointStore, read_archive
from raygf.storage.run_storage import CONFIG, METRICS, SUMMARY
from raygf.sweeps.plan import Plan, SweepFolder
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
WOULD_HAPPEN_AGAIN = (ConfigError, DataError, CheckpointError, NonFiniteError, MemoryExhausted)
"""Errors that end a trial at once: training is repeatable, so another try would end the same way."""

_RAYGFS = re.compile(r"^raygf\.errors\.\w+: ")
"""raygf's own errors say all there is to say without their kind."""


def run_trial(config: dict[str, Any], plan: Plan) -> None:
    """Train the trial that ``config`` describes, from Tune's checkpoint if it has one.

    The driver's own checkpoints go to a folder on this node, where the trainable and the driver both are: the
    empty first bundle is placed with the driver's. Tune ends the trial by raising SystemExit in ``report``.
    """
    trial, values = str(tune.get_context().get_trial_id()), config[VALUES]
    run_id = SweepFolder(plan.run.storage).read_trials().get(trial, "")
    with TemporaryDirectory(dir=Path.cwd(), prefix="rounds-", ignore_cleanup_errors=True) as rounds:
        try:
            run = plan.trial_run(trial, values, rounds)
            if given := tune.get_checkpoint():
                take_over(given, run)
                run = replace(run, storage=replace(run.storage, resume=True))
            # Ray leaves the empty bundle out, so the driver's is the first.
            exits = tuple(range(1, 1 + plan.exit_bundles(values)))
            driver = RemoteDriver(run, Bundles(ray.util.get_current_placement_group(), 0, exits))
            try:
                _report(driver, run_id)
            finally:
                driver.close()
        except WOULD_HAPPEN_AGAIN as error:
            tune.report({FAILURE: str(error), "done": True})


def placement(plan: Plan, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What the trial that ``config`` describes reserves, as a whole or not at all."""
    return tune.PlacementGroupFactory(trial_bundles(plan.run.resources, plan.exit_bundles(config[VALUES])))


def _report(driver: RemoteDriver, run_id: str) -> None:
    """Report every record, the last one with the test's results: Tune takes nothing after the last report."""
    start = driver.prepare()
    last, news = start.last, {START: start}

    def report(record: RoundRecord, **more: Any) -> None:
        with handed_over(record.checkpoint) as checkpoint:
            tune.report({**round_metrics(record), RECORD: record, **news, **more}, checkpoint=checkpoint)
        news.clear()

    for record in driver.rounds(run_id):
        if record.round < record.rounds:
            report(record, done=False)
        last = record
    if last is None:
        raise RunFailed("the driver ended without a record")
    report(last, done=True, **{END: driver.end()})


@contextmanager
def handed_over(path: str) -> Iterator[tune.Checkpoint | None]:
    """The checkpoint file ``path`` alone in a folder, as Tune wants it, with the files for people beside it.

    None if it is gone: records that a lost driver could not hand out come after newer checkpoints.
    """
    source = Path(path)
    with TemporaryDirectory(dir=source.parent, prefix="to-tune-", ignore_cleanup_errors=True) as folder:
        try:
            shutil.copyfile(source, Path(folder, NAME))
        except FileNotFoundError:
            yield None
            return
        for name in (CONFIG, METRICS, SUMMARY, WEIGHTS, MODEL):
            with suppress(FileNotFoundError):  # some come at the end, and none is worth a trial
                shutil.copyfile(source.with_name(name), Path(folder, name))
        yield tune.Checkpoint.from_directory(folder)


def take_over(given: tune.Checkpoint, run: RunConfig) -> None:
    """Put the checkpoint that Tune has ``given`` where the driver of ``run`` looks for it.

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
    store = CheckpointStore(run.storage.path, run.storage.name, keep=1)
    store.check_writable()
    store.save(checkpoint)


def cause_of(error: object) -> str:
    """Why a trial failed: the last line of the error's text, which may be a traceback with its cause."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    if isinstance(error, RayActorError) or any(line.startswith("The actor died") for line in lines):
        return "its process was lost (killed, out of memory, or its node has gone)"
    return without_password(_RAYGFS.sub("", lines[-1])) if lines else "unknown"
