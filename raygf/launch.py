"""START HERE: a run from its configuration to its result.

A job (``jobs/digits.py``) turns its flags into a ``RunConfig`` and calls ``run_job``. ``run`` makes a driver,
in this process or as an actor on a Ray cluster, and reads its records: one before the first round, one a
round, one at the end. They go to the terminal (``raygf.console``) and to MLflow (``raygf.tracking``). What a
round is: see ``Driver`` in ``raygf.rounds.driver``. Ray and MLflow are imported only where a run needs them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from raygf.cli import command_with, interruptible, parse, take
from raygf.config.fields import storage_path, to_dict
from raygf.config.run import OPTIMIZERS, SCHEDULES, RunConfig
from raygf.console import Progress, print_table
from raygf.data.load import check_source
from raygf.errors import ConfigError, import_function, without_password
from raygf.evaluation.tables import ResultColumn, ResultTable, to_rich
from raygf.methods.registry import check_method, is_step_method, method_title
from raygf.models.build import find_builder
from raygf.records import Notify, RunEnd, RunStart
from raygf.rounds.driver import Driver, DriverHandle
from raygf.storage.run_storage import LAST, recipe_of, stored_run
from raygf.tracking.listeners import Listeners
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.shares import check_shares

_TEMPORARY = "/runtime_resources/working_dir_files/"
"""Part of the path of the copies that Ray makes of a submitted job's working directory."""


def run_job(description: str, default_recipe: str, argv: Sequence[str]) -> dict[str, Any] | None:
    """A training job: parse ``argv``, run, show the result table on standard error.

    Returns:
        The last line; None if the configuration was to be printed only.
    """
    flags = {"print_config": {"action": "store_true"}, "resume": {"nargs": "?", "const": LAST}}
    known, argv = take(argv, **flags)
    recipe, config = parse(description, default_recipe, argv)
    if known.resume is not None:
        stored = stored_run(config.storage, known.resume)
        recipe, config = parse(description, default_recipe, argv, stored)
    if known.print_config:
        print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), end="")
        return None
    config = named(config, recipe)
    again = {"--storage.name": config.storage.name, "--storage.resume": "True"}
    resume = command_with(again if known.resume is None else {"--resume": config.storage.name})
    try:
        result = run(config, recipe, resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(resume) from None
    print_table(to_rich(result.table(), "Test accuracy of every exit"), sys.stderr)
    return asdict(result)


def train_job(argv: Sequence[str]) -> dict[str, Any] | None:
    """What ``raygf train`` does: a training job of any recipe."""
    return run_job("Train a network with several exits.", "digits", argv)


def run(config: RunConfig, recipe: str = "", resume: str = "") -> Result:
    """Train, show progress on standard error, log to MLflow, and evaluate on the test images.

    Args:
        config: the run; an empty ``storage.name`` becomes ``label`` and the time.
        recipe: the recipe that it came from, for names and tags.
        resume: the command that resumes it, named if Ctrl-C comes twice.

    Raises:
        RaygfError: with one line for people; MLflow's run is marked before.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the run is marked KILLED.
    """
    config = named(config, recipe)
    _check_names(config)
    progress = Progress(last_round=config.stop_after)
    listeners = Listeners(config.tracking.also, progress.note)
    with (
        interruptible(resume) as guard,
        _driver(config, progress.note) as (driver, config),
    ):
        guard()
        start, end, run_id = _follow(driver, config, progress, recipe, listeners)
    return Result(
        run_id=run_id,
        method=config.method,
        rounds=end.rounds,
        test_accuracy=end.test.accuracy,
        operations=start.operations,
        parameters=start.parameters,
        training_passes=end.training_passes,
        training_operations=end.training_operations,
        seconds=round(end.seconds, 3),
        weights_sha256=end.weights_sha256,
        checkpoint=end.checkpoint,
    )


def _follow(
    driver: DriverHandle, config: RunConfig, progress: Progress, recipe: str, listeners: Listeners
) -> tuple[RunStart, RunEnd, str]:
    """The run from its preparation to its test; returns the first and the last record and MLflow's run."""
    from raygf.tracking.tracker import make_tracker

    tracker = make_tracker(config.tracking, Path.cwd(), progress.note, config.storage)
    start = driver.prepare()
    run_id = tracker.start(config, config.storage.name, start.run_id or None, recipe=recipe)
    try:
        resumed = f", resumed after round {start.round}" if start.round else ""
        progress.note(f"run {config.storage.name}{resumed}, checkpoints in {config.storage.path}")
        if run_id:
            progress.note(f"MLflow: {tracker.where}")
        if warning := temporary_path_warning(config):
            progress.note(warning)
        tracker.log_start(start)
        uri = without_password(config.tracking.uri)
        listeners.tell("on_start", replace(config, tracking=replace(config.tracking, uri=uri)), start)
        progress.start(start)
        for record in driver.rounds(run_id):
            progress.round(record)
            tracker.log_round(record)
            listeners.tell("on_round", record)
        end = driver.end()
        tracker.finish(end)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        tracker.fail(*("KILLED", "interrupted") if interrupted else ("FAILED", str(error)))
        listeners.tell("on_end", None)
        raise
    listeners.tell("on_end", end)
    return start, end, run_id


@contextmanager
def _driver(config: RunConfig, notify: Notify) -> Iterator[tuple[DriverHandle, RunConfig]]:
    """A driver as ``resources`` asks for, and the configuration with their defaults filled in."""
    with ExitStack() as stack:
        driver: DriverHandle
        if config.resources.executor == "local":
            driver = Driver(config, lambda run, dataset, exits: LocalExecutor(run, dataset), notify=notify)
        else:
            from raygf.on_ray.cluster import connected

            where, resources = stack.enter_context(connected(config.resources))
            notify(where)
            config = replace(config, resources=resources)
            if workers := config.resources.workers:
                from raygf.on_ray.data_parallel import TrainDriver

                notify(f"data-parallel workers under Ray Train: {workers}")
                driver = TrainDriver(config, notify=notify)
            else:
                from raygf.on_ray.driver import RemoteDriver

                driver = RemoteDriver(config, notify=notify)
        stack.callback(driver.close)
        yield driver, config


def _check_names(config: RunConfig) -> None:
    """Refuse what there is no such thing of, before Ray is started, which takes its time.

    Raises UserError: an unknown method, network or data set, or a folder that is not there. Nodes of a
    cluster that is named may see other folders than this machine.
    """
    check_method(config.method)
    find_builder(config.model.name)
    loss, optim = config.loss, config.optim
    own = {"data.transform": config.data.transform, "loss.criterion": loss.criterion}
    own |= {"optim.schedule": optim.schedule, "optim.optimizer": optim.optimizer}
    for field, name in own.items():
        if name and name not in (*OPTIMIZERS, *SCHEDULES):
            import_function(field, name)
    elsewhere = config.resources.address or os.environ.get("RAY_ADDRESS", "local")
    check_source(config.data, files=config.resources.executor == "local" or elsewhere == "local")
    _check_workers(config)


def _check_workers(config: RunConfig) -> None:
    """Raise ConfigError if ``resources.workers`` is set and goes with nothing else."""
    workers = config.resources.workers
    if workers is None:
        return
    if not is_step_method(config.method):
        raise ConfigError(
            f"resources.workers = {workers}: for methods within a step; {config.method} trains its exits in "
            "parallel already, see resources.actors"
        )
    if config.resources.executor == "local":
        raise ConfigError(f"resources.workers = {workers}: needs Ray; leave out resources.executor = 'local'")
    if config.resources.driver_cpus == 0:
        raise ConfigError(f"resources.workers = {workers}: each needs CPUs; raise resources.driver_cpus")
    check_shares("resources.workers", workers, config.batch_size)


def label(config: RunConfig, recipe: str) -> str:
    """The recipe if nothing of it was changed, else data, network and method: ``cifar10-resnet18-metagf``."""
    own = Path(config.data.path).name if config.data.source in ("parquet", "imagefolder", "shards") else ""
    parts = (own or config.data.source, config.model.name.partition("@")[0], config.method)
    # Of torchvision:resnet18 or package.module:function what comes last.
    found = (re.sub(r"[^\w.+-]+", "-", re.sub(r"[\w.]+:", "", part)) for part in parts)
    return recipe_of(config, recipe) or "-".join(part.strip("-") for part in found)[:100]


def named(config: RunConfig, recipe: str) -> RunConfig:
    """With a name, and with a local path made absolute: workers have working directories of their own."""
    storage = config.storage
    if storage.resume and not storage.name:
        raise ConfigError("storage.resume: name the run with --storage.name")
    name = storage.name or f"{label(config, recipe)}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path = storage_path("storage.path", storage.path)
    return replace(config, storage=replace(storage, name=name, path=path))


def temporary_path_warning(config: RunConfig) -> str:
    """A note if results of a submitted job lie in its temporary working directory; else ""."""
    from raygf.tracking.store import resolve_uri

    places = {"checkpoints (--storage.path)": config.storage.path}
    if config.tracking.enabled:
        places["MLflow's records (--tracking.uri)"] = resolve_uri(config.tracking, Path.cwd())
    lost = [what for what, place in places.items() if _TEMPORARY in f"{place}/"]
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
    training_passes: float
    training_operations: int
    seconds: float
    weights_sha256: str
    checkpoint: str

    def table(self) -> ResultTable:
        """Test accuracy of every exit beside what it costs."""
        spent = self.training_passes, [self.seconds], None, self.training_operations
        column = ResultColumn(method_title(self.method), [self.test_accuracy], *spent)
        return ResultTable(self.operations, self.parameters, [column])
