"""Running a configured run from start to end: driver, progress and tracking put together.

Ray and MLflow are imported only when a run needs them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from raygf.cli import interruptible, parse
from raygf.config.fields import storage_path
from raygf.config.run import RunConfig, StorageConfig
from raygf.console import Progress, print_table
from raygf.errors import ConfigError
from raygf.evaluation.tables import ResultColumn, ResultTable, to_rich
from raygf.methods.registry import check_method, is_step_method
from raygf.records import Notify
from raygf.rounds.driver import Driver, DriverHandle
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.peers import LEAST

_COPIES = "/runtime_resources/working_dir_files/"


def temporary_path_warning(config: RunConfig) -> str:
    """A note on what of a run is to lie in such a copy; "" if nothing is."""
    from raygf.tracking.store import resolve_uri

    places = {"checkpoints (--storage.path)": config.storage.path}
    if config.tracking.enabled:
        places["MLflow's records (--tracking.uri)"] = resolve_uri(config.tracking, Path.cwd())
    lost = [what for what, place in places.items() if _COPIES in f"{place}/"]
    if not lost:
        return ""
    return f"{' and '.join(lost)} lie in Ray's copy of the working directory, which it deletes after the job"


@dataclass(frozen=True)
class Result:
    """The outcome of a run, in the order and under the names of a job's last line."""

    run_id: str
    method: str
    rounds: int
    test_accuracy: tuple[float, ...]
    operations: tuple[int, ...]
    parameters: tuple[int, ...]
    training_passes: int
    seconds: float
    weights_sha256: str
    checkpoint: str

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def column(self, title: str) -> ResultColumn:
        """As a column of a result table."""
        return ResultColumn(title, [self.test_accuracy], self.training_passes, [self.seconds])


def run(config: RunConfig, recipe: str = "") -> Result:
    """Train, show progress on standard error, log to MLflow, and evaluate on the test images.

    Args:
        config: the run; an empty ``storage.name`` becomes the recipe (or method) and the time.
        recipe: the recipe that it came from, for names and tags.

    Raises:
        RaygfError: with one line for people; MLflow's run is marked before.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the run is marked KILLED.
    """
    started = time.perf_counter()
    config = replace(config, storage=_settled_storage(config.storage, recipe or config.method))
    from raygf.tracking.tracker import make_tracker

    with (
        interruptible() as guard,
        Progress(last_round=config.stop_after) as progress,
        _driver(config, progress.note) as (driver, config),
    ):
        guard()
        tracker = make_tracker(config.tracking, Path.cwd(), progress.note, config.storage)
        start = driver.prepare()
        run_id = tracker.start(config, config.storage.name, start.run_id or None, recipe=recipe)
        with _reported(tracker):
            progress.note(f"run {config.storage.name}, checkpoints in {config.storage.path}")
            if warning := temporary_path_warning(config):
                progress.note(warning)
            tracker.log_start(start)
            progress.start(start)
            for record in driver.rounds(run_id):
                progress.round(record)
                tracker.log_round(record)
            end = driver.end()
            tracker.finish(end)
    return Result(
        run_id=run_id,
        method=config.method,
        rounds=end.rounds,
        test_accuracy=end.test.accuracy,
        operations=start.operations,
        parameters=start.parameters,
        training_passes=end.training_passes,
        seconds=round(time.perf_counter() - started, 3),
        weights_sha256=end.weights_sha256,
        checkpoint=end.checkpoint,
    )


def run_job(description: str, default_recipe: str, argv: Sequence[str]) -> dict[str, Any]:
    """What a training job does: parse ``argv``, run, show the table on standard error."""
    recipe, config = parse(description, default_recipe, argv)
    result = run(config, recipe)
    print_table(compared({config.method: result}), sys.stderr)
    return result.json()


def compared(results: Mapping[str, Result]) -> Table:
    """Results of one network side by side, for a terminal; keys are the columns' titles."""
    first = next(iter(results.values()))
    columns = tuple(result.column(title) for title, result in results.items())
    return to_rich(ResultTable(first.operations, first.parameters, columns), "Test accuracy of every exit")


def _settled_storage(storage: StorageConfig, label: str) -> StorageConfig:
    """With a name, and with a local path made absolute: workers have working directories of their own."""
    if storage.resume and not storage.name:
        raise ConfigError("storage.resume: say which run with --storage.name")
    name = storage.name or f"{label}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return replace(storage, name=name, path=storage_path("storage.path", storage.path))


@contextmanager
def _driver(config: RunConfig, notify: Notify) -> Iterator[tuple[DriverHandle, RunConfig]]:
    """A driver as ``resources`` say, and the configuration with them settled."""
    _check_workers(config)
    if config.resources.executor == "local":
        local = Driver(config, lambda run, dataset, exits: LocalExecutor(run, dataset), notify=notify)
        try:
            yield local, config
        finally:
            local.close()
        return
    from raygf.on_ray.cluster import connected
    from raygf.on_ray.driver import RemoteDriver

    with connected(config.resources) as (where, resources):
        notify(where)
        config = replace(config, resources=resources)
        remote: DriverHandle
        if resources.workers:
            from raygf.on_ray.data_parallel import TrainDriver

            notify(f"data-parallel workers under Ray Train: {resources.workers}")
            remote = TrainDriver(config, notify=notify)
        else:
            remote = RemoteDriver(config, notify=notify)
        try:
            yield remote, config
        finally:
            remote.close()


def _check_workers(config: RunConfig) -> None:
    """Raise ConfigError if ``resources.workers`` is set and goes with nothing else."""
    workers = config.resources.workers
    if workers is None:
        return
    check_method(config.method)
    if not is_step_method(config.method):
        raise ConfigError(
            f"resources.workers = {workers}: for methods within a step; {config.method} trains its exits in "
            "parallel already, see resources.actors"
        )
    if config.resources.executor == "local":
        raise ConfigError(f"resources.workers = {workers}: needs Ray; leave out resources.executor = 'local'")
    if config.resources.driver_cpus == 0:
        raise ConfigError(f"resources.workers = {workers}: each needs CPUs; raise resources.driver_cpus")
    if workers > 1 and config.batch_size < LEAST * workers:
        raise ConfigError(
            f"batch_size = {config.batch_size}: must be at least {LEAST * workers} with resources.workers = "
            f"{workers}, {LEAST} images each"
        )


@contextmanager
def _reported(tracker: Any) -> Iterator[None]:
    """Marks the tracked run as failed or killed if its rounds end with an error."""
    try:
        yield
    except KeyboardInterrupt:
        tracker.fail("KILLED", "interrupted")
        raise
    except BaseException as error:
        tracker.fail("FAILED", str(error))
        raise
