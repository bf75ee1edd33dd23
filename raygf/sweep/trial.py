"""What Ray Tune runs for every trial: a driver in the trial's bundles, its records reported as they come."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from pyarrow import fs
from ray import tune
from ray.exceptions import RayActorError, RayTaskError

from raygf.config.fields import to_dict
from raygf.config.run import RunConfig
from raygf.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MemoryExhausted,
    NonFiniteError,
    RaygfError,
    RunFailed,
)
from raygf.on_ray.driver import RemoteDriver
from raygf.on_ray.placement import Bundles, trial_bundles
from raygf.records import RoundRecord, RunEnd, RunStart
from raygf.storage.checkpoint import Checkpoint, CheckpointStore, read_archive
from raygf.storage.folder import file_system
from raygf.sweep.folder import SweepFolder
from raygf.sweep.plan import Plan, metrics_of
from raygf.sweep.space import Values

WOULD_HAPPEN_AGAIN = (ConfigError, DataError, CheckpointError, NonFiniteError, MemoryExhausted)
"""Errors that end a trial at once: training is repeatable, so another try would end the same way."""


def cause_of(error: object) -> str:
    """One line for people. raygf's own errors say all there is to say; others are named."""
    if isinstance(error, str):  # what Tune hands out when an error could not be read
        return ([line.strip() for line in error.splitlines() if line.strip()] or ["unknown"])[-1]
    if not isinstance(error, BaseException):
        return "unknown"
    inner = _innermost(error)
    if isinstance(inner, RayActorError):
        return "its process was lost (killed, out of memory, or its node has gone)"
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(inner, RaygfError) else f"{type(inner).__name__}: {text}".rstrip(": ")


def _innermost(error: BaseException) -> BaseException:
    """The first of raygf's errors on the way down, else the error that was there first.

    Ray's wrappers take on the type of what they wrap, so they are looked for first.
    """
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RayTaskError):
            below = error.cause
        else:
            below = None if isinstance(error, RaygfError) else error.__cause__
        if not isinstance(below, BaseException):
            break
        error = below
    return error


NAME = "checkpoint.npz"
"""What the checkpoint is called in the folders that Tune keeps."""


@contextmanager
def handed_over(path: str) -> Iterator[tune.Checkpoint | None]:
    """The checkpoint file ``path`` as Tune wants it: alone in a folder.

    None if it is gone: records that a lost driver could not hand out come after newer checkpoints.
    """
    with TemporaryDirectory(dir=Path(path).parent, prefix="to-tune-", ignore_cleanup_errors=True) as folder:
        try:
            _link(path, Path(folder) / NAME)
        except FileNotFoundError:
            yield None
        else:
            yield tune.Checkpoint.from_directory(folder)


def _link(path: str, name: Path) -> None:
    try:
        os.link(path, name)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(path, name)


def take_over(given: tune.Checkpoint, trial_folder: str, run: RunConfig, values: Values) -> tuple[str, ...]:
    """Put the checkpoint that Tune has ``given`` where the driver of ``run`` looks for it.

    Population based training gives the checkpoint of another trial, and other ``values`` to go on with; only
    those may differ from what is stored. Should the checkpoint be gone or damaged (Tune may have been killed
    just after it deleted an old one), the newest in ``trial_folder`` serves.

    Returns:
        A remark if another checkpoint than the one given was taken.

    Raises:
        CheckpointError: none can be read.
    """
    notes: tuple[str, ...] = ()
    try:
        checkpoint = _read(given.filesystem, given.path)
    except CheckpointError as error:
        checkpoint, path = _newest(trial_folder, error)
        notes = (f"{error}; going on from {path}",)
    store = CheckpointStore(run.storage.path, run.storage.name, keep=1)
    store.check_writable()
    store.save(_with_values(checkpoint, run, values))
    return notes


def _read(system: fs.FileSystem, folder: str) -> Checkpoint:
    try:
        with system.open_input_file(f"{folder}/{NAME}") as stream:
            return read_archive(stream)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/{NAME}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{folder}/{NAME} can't be read: {type(error).__name__}") from None


def _newest(trial_folder: str, first: CheckpointError) -> tuple[Checkpoint, str]:
    """The whole checkpoint of the latest round in ``trial_folder``, and its folder."""
    found: list[tuple[Checkpoint, str]] = []
    system, inner = file_system(trial_folder)
    for info in system.get_file_info(fs.FileSelector(inner, allow_not_found=True)):
        if info.type == fs.FileType.Directory and info.base_name.startswith("checkpoint_"):
            try:
                found.append((_read(system, info.path), info.path))
            except CheckpointError:
                continue
    if not found:
        raise first
    return max(found, key=lambda pair: pair[0].round)


def _with_values(checkpoint: Checkpoint, run: RunConfig, values: Values) -> Checkpoint:
    """``checkpoint`` as if it had been written with ``values``."""
    stored, now = checkpoint.meta.get("config"), to_dict(run)
    if not isinstance(stored, dict):
        return checkpoint
    for name in values:
        stored = _with_value(stored, now, name.split("."))
    return replace(checkpoint, meta={**checkpoint.meta, "config": stored})


def _with_value(stored: dict[str, object], now: dict[str, object], path: list[str]) -> dict[str, object]:
    """``stored`` with the value at ``path`` as it is ``now``."""
    head, rest = path[0], path[1:]
    theirs, ours = stored.get(head), now[head]
    if rest and isinstance(theirs, dict) and isinstance(ours, dict):
        return {**stored, head: _with_value(theirs, ours, rest)}
    return {**stored, head: ours}


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
